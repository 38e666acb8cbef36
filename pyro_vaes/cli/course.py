"""The commands of the course: ``pyro-vaes study``, ``reproduce`` and ``report``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from pyro_vaes.cli.flags import FOLDER, PLACE, Whole, check_drawing, with_options
from pyro_vaes.core.choices import PROPOSALS
from pyro_vaes.runs.options import ConfigError

__all__ = ["report_command", "reproduce", "study_command"]


_NOTEBOOKS = Path("notebooks")
_MOST_SEEDS = 10_000

# Lines below the report's title.
_TITLE = [
    click.option("--author", default="", help="Below the title.  [default: a blank line]"),
    click.option("--course", default="", help="Below the title.  [default: a blank line]"),
    click.option("--collaborators", default="", help="Below the title.  [default: a blank line]"),
    click.option(
        "--date",
        type=click.DateTime(["%Y-%m-%d"]),
        help="Below the title.  [default: that of the results]",
    ),
]


@click.command("report")
@click.option(
    "--results",
    type=PLACE,
    default=Path("figures"),
    show_default=True,
    help="The folder of the studies' results.",
)
@click.option(
    "--notebooks",
    type=PLACE,
    help="The folder of the notebooks with the derivations.  [default: notebooks, if there]",
)
@click.option(
    "--out",
    type=PLACE,
    default=Path("report"),
    show_default=True,
    help="The folder to write report.html and report.pdf to.",
)
@with_options(_TITLE)
def report_command(
    results: Path, notebooks: Path | None, out: Path, date: datetime | None, **lines: str
) -> None:
    """Makes one document, HTML and PDF, of the derivations and the studies' results.

    The PDF needs a TeX engine: xelatex, lualatex, pdflatex or tectonic.
    """
    check_drawing()
    from pyro_vaes.course.report.report import TITLE, write_report  # Imports pandoc and nbformat.

    if notebooks is None and _NOTEBOOKS.is_dir():
        notebooks = _NOTEBOOKS
    day = "" if date is None else date.date().isoformat()
    title = dataclasses.replace(TITLE, date=day, **lines)
    report = write_report(results, out, notebooks, title)
    for remark in report.remarks:
        click.echo(remark, err=True)
    for path in (report.html, report.pdf):
        if path is not None:
            click.echo(path)


# pandas and seaborn take a second to import, so only the studies' commands import them.


def _options(out: str) -> Callable[[Any], Any]:
    """The options that ``study`` and ``reproduce`` share."""
    options = [
        click.option("--data", default="digits", show_default=True, help="A name or a file."),
        click.option(
            "--data-root", default="data", show_default=True, help="Folder for downloaded data."
        ),
        click.option(
            "--seeds", type=Whole(1, _MOST_SEEDS), help="How many.  [default: 3, quick: 1]"
        ),
        click.option(
            "--samples",
            type=Whole(min=1),
            help="Importance samples for each test datum.  [default: 500, quick: 50]",
        ),
        click.option(
            "--proposal",
            type=click.Choice(PROPOSALS),
            help="What z is drawn from to estimate log p(x).  [default: auto, quick: encoder]",
        ),
        click.option("--quick", is_flag=True, help="A rehearsal: few epochs, small grids."),
        click.option(
            "--out",
            type=FOLDER,
            default=out,
            show_default=True,
            help="Folder of tables and figures.",
        ),
        click.option(
            "--runs",
            type=FOLDER,
            default="runs/studies",
            show_default=True,
            help="Folder of the runs, shared by all studies; finished runs are reused.",
        ),
        click.option(
            "--workers",
            type=Whole(min=0),
            default=0,
            show_default=True,
            help="Processes; 0: one per core, of the cluster if there is one.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where to run: on this machine, or on the CPUs of a Ray cluster whose nodes share "
            "this folder (at RAY_ADDRESS, running here, or started for this).",
        ),
    ]
    return with_options(options)


def _settings(
    seeds: int | None, samples: int | None, proposal: str | None, quick: bool, **given: Any
) -> Any:
    from pyro_vaes.experiments.pages import Settings, usual_proposal

    return Settings(
        seeds=seeds or (1 if quick else 3),
        samples=samples or (50 if quick else 500),
        proposal=proposal or usual_proposal(quick),
        quick=quick,
        **given,
    )


@click.command("study")
@click.argument("name")
@_options("figures")
def study_command(name: str, **given: Any) -> None:
    """Runs one study: table, figures, findings.

    Those of the assignment, or depth, which is beyond it and in no report.

    Finished runs are kept: the same command continues a study that was stopped.
    """
    check_drawing()
    from pyro_vaes.course.studies.table import BEYOND, STUDIES
    from pyro_vaes.experiments.pages import write_pages

    known = {**STUDIES, **BEYOND}
    if name not in known:
        raise ConfigError(
            f"Invalid value for 'NAME': expected one of {', '.join(known)}; got {name!r}."
        )
    (path,) = write_pages({name: known[name]}, _settings(**given))
    click.echo(f"\n{path.read_text(encoding='utf-8')}\n{path}")


@click.command("reproduce")
@_options("report")
@click.option(
    "--notebooks",
    type=PLACE,
    help="The folder of the notebooks with the derivations.  [default: notebooks, if there]",
)
@with_options(_TITLE)
def reproduce(out: Path, notebooks: Path | None, **given: Any) -> None:
    """Runs every study, draws all figures and writes the report."""
    check_drawing()
    from pyro_vaes.course.studies.table import STUDIES
    from pyro_vaes.experiments.pages import write_pages

    title = {name: given.pop(name) for name in ("author", "course", "collaborators", "date")}
    for path in write_pages(STUDIES, _settings(out=out / "results", **given)):
        click.echo(path)
    context = click.get_current_context()
    places = {"results": out / "results", "notebooks": notebooks, "out": out}
    context.invoke(report_command, **places, **title)
