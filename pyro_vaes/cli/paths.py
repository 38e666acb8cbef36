"""The commands that walk through the latent space: ``interpolate`` and ``traverse``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from pyro_vaes.cli.apply import Use, rows_options, use
from pyro_vaes.cli.flags import Whole
from pyro_vaes.cli.outputs import PICTURES, write_array, write_table
from pyro_vaes.runs.options import ConfigError

__all__ = ["interpolate_command", "traverse_command"]


_STEPS = click.option(
    "--steps", type=Whole(min=2), default=8, show_default=True, help="Data on each path."
)


@click.command("interpolate")
@rows_options
@click.option(
    "--rows", default="0,1", show_default=True, help="Rows to go through, counted from 0: I,J,..."
)
@_STEPS
def interpolate_command(
    run: Path,
    data: Path | None,
    split: str | None,
    label: str | None,
    out: Path,
    rows: str,
    steps: int,
) -> None:
    """Follows straight lines from the code of one row to that of the next."""
    used = use(run, data, split, label, out, pictures=True)
    chosen = _numbers(rows, "--rows", len(used.rows.x), least=2)
    x, y = used.rows.x[chosen], None if used.rows.y is None else used.rows.y[chosen]
    if y is not None and len(y.unique(dim=0)) > 1:
        raise ConfigError(
            "Invalid value for '--rows': expected rows of one label; got several. Give one for all "
            "with --label."
        )
    made = used.vae.interpolate(x[:-1], x[1:], steps, None if y is None else y[:-1])
    ends = list(itertools.pairwise(chosen))
    known = _known(used, "from", [a for a, _ in ends for _ in range(steps)])
    known |= _known(used, "to", [b for _, b in ends for _ in range(steps)])
    known["position"] = [i / (steps - 1) for _ in ends for i in range(steps)]
    labels = [f"{a} to {b}" for a, b in ends]
    _write(used, out, made, known, steps, labels)
    click.echo(f"Rows {rows}, {steps} steps from each to the next: {out}")


@click.command("traverse")
@rows_options
@click.option("--rows", default="0", show_default=True, help="Rows to begin from: I,J,...")
@click.option(
    "--units",
    default="active",
    show_default=True,
    help="Units of the code to move: active (in the run's test rows), all, or I,J,...",
)
@_STEPS
def traverse_command(
    run: Path,
    data: Path | None,
    split: str | None,
    label: str | None,
    out: Path,
    rows: str,
    units: str,
    steps: int,
) -> None:
    """Moves one unit of a row's code after the other through the prior."""
    used = use(run, data, split, label, out, pictures=True)
    chosen = _numbers(rows, "--rows", len(used.rows.x))
    x, y = used.rows.x[chosen], None if used.rows.y is None else used.rows.y[chosen]
    moved = _units(used, units, used.vae.encode(x[:1], None if y is None else y[:1]).shape[1])
    made = used.vae.traverse(x, moved, steps, y)
    places = [(row, unit) for row in chosen for unit in moved]
    known = _known(used, "", [row for row, _ in places for _ in range(steps)])
    known["unit"] = [unit for _, unit in places for _ in range(steps)]
    known["position"] = [i / (steps - 1) for _ in places for i in range(steps)]
    labels = [f"{row}: z{unit}" if len(chosen) > 1 else f"z{unit}" for row, unit in places]
    _write(used, out, made, known, steps, labels)
    click.echo(f"Units {', '.join(map(str, moved))} of rows {rows}, {steps} steps each: {out}")


def _units(used: Use, asked: str, latent_dim: int) -> list[int]:
    from pyro_vaes.storage.files import read_json

    if asked == "all":
        return list(range(latent_dim))
    if asked != "active":
        return _numbers(asked, "--units", latent_dim)
    summary = read_json(used.run / "summary.json")
    active = summary.get("active") if isinstance(summary, dict) else None
    if not active:
        why = "no unit is active" if active == [] else "summary.json does not say which are active"
        raise ConfigError(f"Invalid value for '--units': expected all or I,J,...; {why} there.")
    return [int(unit) for unit in active]


def _numbers(text: str, flag: str, count: int, least: int = 1) -> list[int]:
    """At least ``least`` numbers from 0 to below a count."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and int(word) < count for word in words) or (
        len(words) < least
    ):
        such = "0,1" if least > 1 else "0"
        raise ConfigError(
            f"Invalid value for '{flag}': expected numbers from 0 to {count - 1} such as {such}; "
            f"got {text}."
        )
    return [int(word) for word in words]


def _known(used: Use, role: str, rows: list[int]) -> dict[str, Any]:
    """What is known of some rows, under names that say what role they play."""
    return {
        f"{role}_{name}" if role else name: [values[row] for row in rows]
        for name, values in used.known(*(() if role else ("unit", "position"))).items()
    }


def _write(
    used: Use, out: Path, made: Any, known: dict[str, Any], steps: int, labels: list[str]
) -> None:
    """Writes data along paths: an array, a table, or a picture with a path in each line."""
    from pyro_vaes.runs.new_data import element_columns

    if used.suffix == ".npy":
        write_array(out, made.numpy())
    elif used.suffix in PICTURES:
        from pyro_vaes import plotting

        shape = used.facts["image_shape"]
        rows = made.reshape(len(labels) * steps, -1)
        figure = plotting.image_grid(rows, shape, columns=steps, row_labels=labels)
        plotting.save_figure(figure, out)
    else:
        rows = made.reshape(len(labels) * steps, -1).numpy()
        write_table(out, known, element_columns(used.facts, rows))
