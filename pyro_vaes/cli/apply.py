"""The commands that apply a model to rows: ``score``, ``impute``, ``encode``, ``reconstruct``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_vaes.cli.evaluate import LABEL_HELP, label_given, open_run
from pyro_vaes.cli.flags import PLACE, SEED, Whole, with_options
from pyro_vaes.cli.outputs import PICTURES, TABLES, check_out, write_array, write_table
from pyro_vaes.core.choices import DEVICES, PROPOSALS
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import read_config

if TYPE_CHECKING:
    from pyro_vaes.evaluation.scores import Scores
    from pyro_vaes.runs.new_data import NewRows
    from pyro_vaes.vae import VAE

__all__ = [
    "Use",
    "encode_command",
    "impute_command",
    "reconstruct_command",
    "rows_options",
    "score_command",
    "use",
]

# Rows, at most, that new ones are compared with, and that a picture shows.
_REFERENCE, _SHOWN = 1000, 12
# A p-value that is worth a look.
_UNUSUAL = 0.01
_SPLITS = ("train", "val", "test")


# --- what these commands share --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Use:
    """A trained model and the rows that it is applied to.

    Attributes:
        run: the run folder.
        vae: the model.
        record: what its weights say of the run.
        rows: what it is applied to.
        suffix: of the file to write.
    """

    run: Path
    vae: VAE
    record: Mapping[str, Any]
    rows: NewRows
    suffix: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run knows of its data."""
        facts: Mapping[str, Any] = self.record["data"]
        return facts

    def known(self, *written: str) -> dict[str, Any]:
        """What stands before the columns that are written: what is known of each row.

        Raises:
            ConfigError: if two columns would have one name.
        """
        known = dict(self.rows.carried) or {"row": range(len(self.rows.x))}
        for name in written:
            if name in known and name != "row":  # That is our own, see write_table.
                raise ConfigError(
                    f"Invalid value for '--data': expected no column called {name!r} there, which "
                    "is a column of the output. Rename it."
                )
        return known


def rows_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which model, which rows, and where to."""
    for option in (
        click.option("--out", type=PLACE, required=True, help="The file to write."),
        click.option("--label", help=LABEL_HELP),
        click.option(
            "--split",
            type=click.Choice(_SPLITS),
            help="Rows of the run's own data instead.  [default: test, without --data]",
        ),
        click.option("--data", type=PLACE, help="A file of rows with the columns of the run's."),
        click.argument("run", type=PLACE),
    ):
        command = option(command)
    return command


def use(
    run: Path,
    data: Path | None,
    split: str | None,
    label: str | None,
    out: Path,
    suffixes: Sequence[str] = (*TABLES, ".npy"),
    pictures: bool = False,
) -> Use:
    """Opens a run and reads the rows that are asked for, all of it checked.

    Args:
        run: the run folder.
        data: a file of rows, or None for those of the run.
        split: which of the latter.
        label: of all rows, if they bring none.
        out: the file to write.
        suffixes: what it may be.
        pictures: whether it may be a picture where the data are images.

    Raises:
        InputError: in one line, before anything is written.
    """
    from pyro_vaes.runs.new_data import checked

    vae, record = open_run(run)
    image_shape = record["data"]["image_shape"]
    why = " (the data are no images)" if pictures and not image_shape else ""
    allowed = (*suffixes, *(PICTURES if pictures and image_shape else ()))
    suffix = check_out(out, allowed, why, data)
    rows = checked(_rows(run, record, data, split, label), vae, data)
    for note in rows.notes:
        click.echo(note)
    return Use(run, vae, record, rows, suffix)


def _rows(
    run: Path, record: dict[str, Any], data: Path | None, split: str | None, label: str | None
) -> NewRows:
    from pyro_vaes.runs.new_data import NewRows, own_data, read_new, takes_y

    config = read_config(run)
    given = None if label is None else label_given(record["data"], label)
    if data is not None:
        if split is not None:
            raise ConfigError(
                f"Invalid value for '--split': expected none with --data; got {split}."
            )
        return read_new(data, config, run, record, label=given)
    split = split or "test"
    found = own_data(config, run, record)
    own = getattr(found, split).frozen()
    y = own.y if takes_y(record["data"]) else None
    if given is not None:
        y = given.expand(len(own), *given.shape)
    # A row is known by its place in the file, where that is known.
    carried = {} if found.places is None else {"row": found.places[split].tolist()}
    return NewRows(
        own.x, y, carried, (f"Rows: the {len(own)} {split} rows of the run's own data.",)
    )


def draw_options(proposals: Sequence[str]) -> Callable[[Any], Any]:
    """The options of commands that weigh draws of z."""
    options = (
        click.option(
            "--samples",
            type=Whole(min=1),
            default=1000,
            show_default=True,
            help="Draws per row.",
        ),
        click.option(
            "--proposal",
            type=click.Choice(proposals),
            default="auto",
            show_default=True,
            help="What z is drawn from, as for evaluate.",
        ),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the draws."),
    )
    return with_options(options)


# --- commands -------------------------------------------------------------------------------------


@click.command("score")
@rows_options
@draw_options(PROPOSALS)
@click.option(
    "--against",
    type=click.Choice(("train", "val", "none")),
    default="train",
    show_default=True,
    help="The run's rows that a score's p-value compares with; val is fair if training overfitted.",
)
@click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where."
)
def score_command(
    run: Path,
    data: Path | None,
    split: str | None,
    label: str | None,
    out: Path,
    samples: int,
    proposal: str,
    against: str,
    seed: int,
    device: str,
) -> None:
    """Scores rows: log p(x) in nats, its error, and a p-value, one line a row."""
    from pyro_vaes.evaluation.scores import score
    from pyro_vaes.runs.build import device_of_flag
    from pyro_vaes.runs.run import threads

    place = device_of_flag(device)
    used = use(run, data, split, label, out)
    names = ("log_p", "log_p_se", "pareto_k", "unreliable", "p_value")
    known = used.known(*names)
    vae = used.vae.to(place)
    options: dict[str, Any] = {"num_samples": samples, "proposal": proposal, "seed": seed}
    compared = None if against == "none" else _reference(used, against)
    with threads(read_config(run), used.record["data"]["event_shape"]):
        scores = score(vae, used.rows.x, used.rows.y, **options)
        others = None if compared is None else score(vae, *compared[:2], **options)
    columns = _columns(scores)
    if compared is not None and others is not None:
        columns["p_value"] = scores.p_values(others).cpu().numpy()
        count = int((~(others.gaps | others.log_p.isnan())).sum())
        click.echo(f"{compared[2]} {_unusual(columns['p_value'], count)}")
        if count := int(scores.gaps.sum()):
            click.echo(f"Rows with gaps ({count}) have no p-value: their log p(x) is of less.")
    if used.suffix == ".npy":
        import numpy as np

        write_array(out, np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], 1))
        click.echo(f"Columns: {', '.join(columns)}.")
    else:
        write_table(out, known, columns)
    for warning in scores.warnings:
        click.echo(f"Warning: {warning}")
    click.echo(f"{len(scores)} rows scored by {scores.proposal} draws, in nats: {out}")


def _unusual(p_values: Any, count: int) -> str:
    """How many p-values from ``count`` rows are low, and how many would be by chance."""
    import numpy as np

    known = int((~np.isnan(p_values)).sum())
    share = int(_UNUSUAL * (count + 1)) / (count + 1)  # They are multiples of 1 / (count + 1).
    if not share:
        return (
            f"None can be {_UNUSUAL} or less, which takes {round(1 / _UNUSUAL) - 1} rows to "
            f"compare with; the least is {1 / (count + 1):.2g}."
        )
    return (
        f"{int((p_values <= _UNUSUAL).sum())} of {known} are {_UNUSUAL} or less; of rows like "
        f"those of the run about {share * known:.3g} would be."
    )


def _columns(scores: Scores) -> dict[str, Any]:
    columns = {"log_p": scores.log_p, "log_p_se": scores.log_p_se}
    for name in ("pareto_k", "unreliable"):
        if (values := getattr(scores, name)) is not None:
            columns[name] = values
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _reference(used: Use, against: str) -> tuple[Any, Any, str]:
    """Rows of the run to compare with, their labels, and what to say of them."""
    import torch

    from pyro_vaes.runs.new_data import own_data, takes_y

    own = getattr(own_data(read_config(used.run), used.run, used.record), against).frozen()
    count = min(len(own), _REFERENCE)
    index = torch.linspace(0, len(own) - 1, count).round().long()
    name = {"train": "training", "val": "validation"}[against]
    some = f"{count} " if count == len(own) else f"{count} of the {len(own)} "
    y = own.y[index] if own.y is not None and takes_y(used.facts) else None
    return own.x[index], y, f"p-values compare with {some}{name} rows of the run."


@click.command("impute")
@rows_options
@draw_options(("auto", "encoder", "refined"))
def impute_command(
    run: Path,
    data: Path | None,
    split: str | None,
    label: str | None,
    out: Path,
    samples: int,
    proposal: str,
    seed: int,
) -> None:
    """Fills gaps in rows by their means given what was seen; a category by the most probable."""
    from pyro_vaes.evaluation.imputation import impute
    from pyro_vaes.runs.new_data import element_columns

    used = use(run, data, split, label, out)
    rows = used.rows
    gaps = rows.x.isnan().flatten(1)
    found = impute(used.vae, rows.x, samples, y=rows.y, proposal=proposal, seed=seed)
    if used.suffix == ".npy":
        write_array(out, found.x.numpy())
    else:
        columns = element_columns(used.facts, found.x.numpy(), rows.exact)
        marks = {"unreliable": found.unreliable.numpy()}
        write_table(out, used.known(*columns, *marks), columns, marks)
    if doubtful := int(found.unreliable.sum()):
        click.echo(f"Warning: what was filled in is not to be trusted in {doubtful} rows (k-hat).")
    click.echo(f"{int(gaps.sum())} gaps in {int(gaps.any(1).sum())} rows filled: {out}")


@click.command("encode")
@rows_options
def encode_command(
    run: Path, data: Path | None, split: str | None, label: str | None, out: Path
) -> None:
    """Encodes rows: posterior means as a table or array, or a picture of them over the prior."""
    used = use(run, data, split, label, out, (*TABLES, ".npy", *PICTURES))
    if used.suffix in PICTURES:
        from pyro_vaes import plotting
        from pyro_vaes.data.splits import Split

        rows = Split(used.rows.x, used.rows.y)
        plotting.save_figure(plotting.latent_space(used.vae, rows, num=len(rows)), out)
    else:
        codes = used.vae.encode(used.rows.x, used.rows.y).numpy()
        if used.suffix == ".npy":
            write_array(out, codes)
        else:
            columns = {f"z{i}": codes[:, i] for i in range(codes.shape[1])}
            write_table(out, used.known(*columns), columns)
    click.echo(f"{len(used.rows.x)} rows encoded: {out}")


@click.command("reconstruct")
@rows_options
def reconstruct_command(
    run: Path, data: Path | None, split: str | None, label: str | None, out: Path
) -> None:
    """Reconstructs rows: means of p(x given z) at their codes, in the units of the data."""
    from pyro_vaes.runs.new_data import element_columns

    used = use(run, data, split, label, out, pictures=True)
    count = len(used.rows.x)
    if used.suffix in PICTURES:
        from pyro_vaes import plotting
        from pyro_vaes.data.splits import Split

        count = min(count, _SHOWN)
        rows, shape = Split(used.rows.x, used.rows.y), used.facts["image_shape"]
        plotting.save_figure(plotting.reconstructions(used.vae, rows, shape, num=count), out)
    else:
        made = used.vae.reconstruct(used.rows.x, used.rows.y).numpy()
        if (typical := getattr(used.vae.likelihood, "typical", None)) is not None:
            click.echo(
                f"Means are at an exposure of {float(typical):g}, the median of training rows, "
                "which is their last element."
            )
        if used.suffix == ".npy":
            write_array(out, made)
        else:
            columns = element_columns(used.facts, made)
            write_table(out, used.known(*columns), columns)
    some = "" if count == len(used.rows.x) else "The first "
    click.echo(f"{some}{count} rows reconstructed: {out}")
