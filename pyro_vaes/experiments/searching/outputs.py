"""What a search writes: a table, a picture and a page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.experiments.outcomes import DAGGER
from pyro_vaes.experiments.page import markdown_table
from pyro_vaes.experiments.panels import COLORS, axes_of
from pyro_vaes.experiments.searching.points import (
    Candidate,
    Range,
    Search,
    plan_text,
    reason_of,
    words_of,
)
from pyro_vaes.plotting import save_figure, style
from pyro_vaes.runs.options import text
from pyro_vaes.runs.schema import OPTIONS, flatten
from pyro_vaes.runs.summary import report_text
from pyro_vaes.storage.files import write_text

__all__ = ["TABLE", "write_page", "write_table"]

TABLE = "search.csv"
"""The name of the table."""
# Panels of the picture.
_PANELS = 4

Rungs = Sequence[tuple[int, int]]


def write_table(asked: Search, order: Sequence[Candidate], rungs: Rungs) -> list[Mapping[str, Any]]:
    """Writes ``search.csv`` and ``search.png``; returns the rows of the table."""
    rows: list[Mapping[str, Any]] = [dict(_row(asked, c, len(rungs) - 1)) for c in order]
    csv = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.6g")
    write_text(asked.out / TABLE, csv)
    save_figure(_picture(asked, order, len(rungs) - 1), asked.out / "search.png")
    return rows


def write_page(
    asked: Search,
    data: DataSet,
    order: Sequence[Candidate],
    rungs: Rungs,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Path:
    """Writes ``search.md`` and returns its path.

    Args:
        asked: the search.
        data: its data.
        order: the configurations, the best first.
        rungs: the configurations and epochs of each rung.
        rows: of the table.
        summary: of the best run, with its test figures.
    """
    page = asked.out / "search.md"
    write_text(page, "\n\n".join(_page(asked, data, order, rungs, rows, summary)) + "\n")
    return page


def _row(asked: Search, candidate: Candidate, last: int) -> Iterator[tuple[str, Any]]:
    for name in asked.axes:
        yield name, text(candidate.point[name]) if name in candidate.point else ""
    yield "epochs", candidate.epochs
    if candidate.failed:
        yield "error", reason_of(candidate)
        return
    assert candidate.result is not None and candidate.run is not None
    figures, training = candidate.result["figures"], candidate.result["training"]
    yield "val_elbo", training["val_elbo"]
    if candidate.rung == last:
        yield "val_nll", figures["nll"]
        yield "val_nll_se", figures["nll_se"]
        yield "share_unreliable", figures.get("share_unreliable")
    yield "active_units", figures.get("active_units")
    yield "parameters", training["parameters"]
    yield "seconds", training["seconds"]
    yield "run", candidate.run.folder.name


def _page(
    asked: Search,
    data: DataSet,
    order: Sequence[Candidate],
    rungs: Rungs,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Iterator[str]:
    winner, last = order[0], len(rungs) - 1
    yield "# A search"
    yield plan_text(len(order), rungs)
    heads = [
        *(OPTIONS[name].flag for name in asked.axes),
        "epochs",
        "val -ELBO",
        "val NLL",
        "active",
    ]
    cells = [
        [*(row[name] for name in asked.axes), str(row["epochs"]), *_cells(row, candidate)]
        for row, candidate in zip(rows, order, strict=True)
    ]
    yield markdown_table(heads, *cells)
    if any(c.rung == last and not c.failed and not c.trusted for c in order):
        yield (
            f"{DAGGER} Not to be trusted: log p(x) is unreliable for more than {UNRELIABLE:.0%} of "
            "the validation rows, or that is unknown."
        )
    yield "![validation by option](search.png)"
    yield f"## The best: {words_of(winner.point)}"
    yield (
        f"Chosen by the {len(data.val)} validation rows. The best of many is a little flattered by "
        "them; the test rows, looked at once, are not:"
    )
    yield f"```text\n{report_text(summary, asked.out / 'best').strip()}\n```"
    units, active = flatten(asked.config(winner.point))["latent_dim"], summary.get("active_units")
    if isinstance(active, int) and active < units:
        yield f"{active} of {units} units of z are active: `--latent-dim {max(1, active)}` may do."
    yield f"To look into it: `pyro-vaes explore {shlex.quote(str(asked.out / 'best'))}`."


def _cells(row: Mapping[str, Any], candidate: Candidate) -> list[str]:
    if candidate.failed:
        return ["no figures", "", ""]
    nll, mark = row.get("val_nll"), "" if candidate.trusted else f" {DAGGER}"
    return [
        f"{-row['val_elbo']:.2f}",
        "" if nll is None else f"{nll:.2f} ± {row['val_nll_se']:.2f}{mark}",
        str(row["active_units"] if row["active_units"] is not None else ""),
    ]


def _picture(asked: Search, order: Sequence[Candidate], last: int) -> Figure:
    """The validation -ELBO over the values of each option, coloured by rung."""
    names = list(asked.axes)[:_PANELS]
    with style():
        figure, axes = axes_of(3.2, len(names), sharey=True)
        for ax, name in zip(axes, names, strict=True):
            there = [c for c in order if not c.failed and name in c.point]
            numbers = all(isinstance(c.point[name], (int, float)) for c in there)
            values = [c.point[name] if numbers else text(c.point[name]) for c in there]
            scores = [c.score(False) for c in there]
            ax.scatter(values, scores, color=[COLORS[c.rung] for c in there], s=18)
            if there and there[0] is order[0]:
                ax.scatter(values[:1], scores[:1], s=90, facecolors="none", edgecolors="black")
            axis = asked.axes[name]
            if isinstance(axis, Range) and axis.low > 0:
                ax.set_xscale("log")
            ax.set_xlabel(OPTIONS[name].flag)
            ax.tick_params(axis="x", labelrotation=0 if numbers else 30)
        axes[0].set_ylabel("validation -ELBO (nats)")
        for rung in range(last + 1):
            epochs = [c.epochs for c in order if c.rung == rung]
            if epochs:
                axes[-1].scatter([], [], color=COLORS[rung], s=18, label=f"{epochs[0]} epochs")
        axes[-1].legend(fontsize=8)
    return figure
