"""The command ``pyro-vaes explore``: one page to look into a model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_vaes.cli.apply import Use, draw_options, use
from pyro_vaes.cli.evaluate import LABEL_HELP
from pyro_vaes.cli.flags import PLACE, Whole
from pyro_vaes.core.choices import PROPOSALS
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import read_config

if TYPE_CHECKING:
    from pyro_vaes.explorer.contents import Rows

__all__ = ["explore_command"]

_PAGE = "explore.html"


@click.command("explore")
@click.argument("run", type=PLACE)
@click.option("--data", type=PLACE, help="A file of rows with the columns of the run's.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Rows of the run's own data instead.  [default: test, without --data]",
)
@click.option("--label", help=LABEL_HELP)
@click.option(
    "--rows",
    "count",
    type=Whole(2, 5000),
    default=500,
    show_default=True,
    help="Rows on the page, at most.",
)
@draw_options(PROPOSALS)
@click.option("--out", type=PLACE, help=f"The page to write.  [default: {_PAGE} in RUN]")
def explore_command(
    run: Path,
    data: Path | None,
    split: str | None,
    label: str | None,
    count: int,
    samples: int,
    proposal: str,
    seed: int,
    out: Path | None,
) -> None:
    """Writes one HTML page to look into a model: no server, no network.

    The latent space with the prior, reconstructions, traversals, lines between rows, the worst
    modelled rows, log p(x) by class and k-hat. It needs Bokeh: pip install 'pyro_vaes[explore]'.
    """
    from pyro_vaes.explorer.page import check_library, page_of

    check_library()
    out = out or run / _PAGE
    used = use(run, data, split, label, out, (".html",))
    if len(used.rows.x) < 2:
        flag = "--split" if data is None else "--data"
        raise ConfigError(f"Invalid value for '{flag}': expected two rows or more; got one.")
    from pyro_vaes.explorer.contents import contents_of
    from pyro_vaes.storage.files import write_text

    rows = _rows(used, split if data is None else None, data is None).some(count)
    found = contents_of(used.vae, rows, num_samples=samples, proposal=proposal, seed=seed)
    text = page_of(found, f"{run.resolve().name}: a look into the model", " ".join(used.rows.notes))
    write_text(out, text)
    for warning in found.scores.warnings:
        click.echo(f"Warning: {warning}")
    click.echo(f"{len(rows.x)} rows, {len(text.encode()) / 1e6:.1f} MB: {out}")


def _rows(used: Use, split: str | None, own: bool) -> Rows:
    """The rows of a page, coloured by their labels, also where the model does not see these."""
    from pyro_vaes.explorer.contents import Rows
    from pyro_vaes.runs.new_data import element_columns, own_data

    classes: Any = used.rows.y
    if classes is None and own:
        found = own_data(read_config(used.run), used.run, used.record)
        classes = getattr(found, split or "test").y
    if classes is not None and classes.dim() > 1:
        classes = None  # Conditions are no classes.
    names = next(iter(used.known().values()))
    return Rows(
        x=used.rows.x,
        y=used.rows.y,
        classes=classes,
        names=[str(name) for name in names],
        image_shape=used.facts["image_shape"],
        columns=functools.partial(element_columns, used.facts),
        class_names=used.facts.get("label_names"),
    )
