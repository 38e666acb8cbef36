"""The command ``pyro-vaes report``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report_command"]

_NOTEBOOKS = Path("notebooks")


@click.command("report")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="The folder of the studies' results.",
)
@click.option(
    "--notebooks",
    type=click.Path(path_type=Path),
    help="The folder of the notebooks with the derivations.  [default: notebooks, if there]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report"),
    show_default=True,
    help="The folder to write report.html and report.pdf to.",
)
def report_command(results: Path, notebooks: Path | None, out: Path) -> None:
    """Makes one document, HTML and PDF, of the derivations and the studies' results.

    The PDF needs a TeX engine: xelatex, lualatex, pdflatex or tectonic.
    """
    from pyro_vaes.report import ReportError, write_report  # It reads in pandoc and Jupyter.

    if notebooks is None and _NOTEBOOKS.is_dir():
        notebooks = _NOTEBOOKS
    try:
        report = write_report(results, out, notebooks)
    except ReportError as error:
        raise click.ClickException(str(error)) from error
    for remark in report.remarks:
        click.echo(remark, err=True)
    for path in (report.html, report.pdf):
        if path is not None:
            click.echo(path)
