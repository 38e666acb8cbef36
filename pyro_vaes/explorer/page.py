"""Writes the page: one HTML file with all that it shows, which needs no server and no network."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

import numpy as np

from pyro_vaes._version import __version__
from pyro_vaes.core.errors import InputError
from pyro_vaes.evaluation.pareto import reliable_k
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.explorer.contents import Contents
from pyro_vaes.explorer.pictures import Pictures, words

__all__ = ["check_library", "page_of"]

# The colours of classes, taken in turn: Okabe and Ito's, and four more.
_COLORS: tuple[str, ...] = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_COLORS += ("#b8a900", "#666666", "#7b4bb7", "#8c510a")
# Rows in the table of the worst modelled; columns of a traversal that is no image.
_WORST, _CHANGING = 12, 6
_HEIGHT = 420


def check_library() -> None:
    """Refuses to work without Bokeh.

    Raises:
        InputError: with how to get it.
    """
    try:
        import bokeh  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Expected Bokeh to be installed; got none. Run pip install 'pyro_vaes[explore]'."
        ) from error


def page_of(contents: Contents, title: str, notes: str = "") -> str:
    """The page as HTML.

    Args:
        contents: what it shows.
        title: its title.
        notes: what there is to say of the rows.
    """
    from bokeh.embed import components
    from bokeh.resources import Resources

    source = _source(contents)
    figures = {"plane": _plane(contents, source), "classes": _classes(contents, source)}
    if contents.scores.pareto_k is not None:
        figures["khat"] = _khat(contents)
    script, places = components(figures)
    template = resources.files("pyro_vaes.explorer").joinpath("page.html").read_text("utf-8")
    filled = {
        "TITLE": html.escape(title),
        "NOTES": html.escape(notes),
        "SUMMARY": html.escape(_summary(contents)),
        "VERSION": html.escape(__version__),
        "BOKEH": Resources(mode="inline", components=["bokeh"]).render(),
        # No text of the data may end the script.
        "DATA": json.dumps(_facts(contents), allow_nan=False).replace("<", "\\u003c"),
        "PLANE": places["plane"],
        "CLASSES": places["classes"],
        "KHAT": places.get("khat", "<p>Too few draws for a k-hat.</p>"),
        "SCRIPT": script,
    }
    for name, text in filled.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


# --- what the page knows --------------------------------------------------------------------------


def _summary(contents: Contents) -> str:
    scores, count = contents.scores, len(contents.rows.x)
    mean = float(scores.log_p.mean())
    unit = "unit" if len(contents.units) == 1 else "units"
    text = (
        f"{count} rows; mean log p(x) {mean:.2f} nats by {scores.num_samples} draws a row; "
        f"{len(contents.units)} active {unit} shown, {contents.inactive} inactive."
    )
    if scores.unreliable is not None:
        share = float(scores.unreliable.double().mean())
        verdict = "can be trusted" if share <= UNRELIABLE else "is NOT to be trusted"
        text += f" {share:.1%} of the rows are unreliable by k-hat: the mean {verdict}."
    return text


def _facts(contents: Contents) -> dict[str, Any]:
    """Everything that the page's script shows, ready for JSON."""
    rows, scores = contents.rows, contents.scores
    order = scores.log_p.argsort()[:_WORST].tolist()
    shown = _image_facts(contents) if rows.image_shape else _table_facts(contents)
    return {
        "names": list(rows.names),
        "labels": rows.labels,
        "colors": _colors(rows.labels),
        "logp": [f"{v:.2f}" for v in scores.log_p.tolist()],
        "se": [f"{v:.2f}" for v in scores.log_p_se.tolist()],
        "k": None if scores.pareto_k is None else [f"{v:.2f}" for v in scores.pareto_k.tolist()],
        "worst": order,
        "units": contents.units,
        "walked": contents.walked,
        "ends": contents.ends,
        "steps": contents.paths.shape[1],
        "walkSteps": contents.walks.shape[2],
        **shown,
    }


def _image_facts(contents: Contents) -> dict[str, Any]:
    rows = contents.rows
    assert rows.image_shape is not None
    draw = Pictures(rows.image_shape, rows.x)
    _, height, width = rows.image_shape
    pairs = zip(rows.x.numpy(), contents.means.numpy(), strict=True)
    walks = contents.walks.numpy()
    steps = walks.shape[2]
    return {
        "kind": "image",
        "ratio": width / height,
        "pairs": [draw.sheet(np.stack(pair), 2) for pair in pairs],
        "walks": [draw.sheet(walk, steps) for walk in walks] if contents.units else [],
        "paths": _keyed(contents, [draw.sheet(p, len(p)) for p in contents.paths.numpy()]),
    }


def _table_facts(contents: Contents) -> dict[str, Any]:
    """The same for data that are no images: the cells of each row."""
    rows, count = contents.rows, contents.walks.shape[1]
    columns = list(rows.columns(rows.x[:1].numpy()))
    return {
        "kind": "table",
        "columns": columns,
        "cells": words(rows.columns, rows.x),
        "means": words(rows.columns, contents.means),
        "walks": [_walk_facts(contents, walk) for walk in contents.walks] if count else [],
        "paths": _keyed(contents, [words(rows.columns, path) for path in contents.paths]),
    }


def _walk_facts(contents: Contents, walk: Any) -> list[dict[str, list[str]]]:
    """For each unit the columns that it changes most, and their values along it."""
    rows, found = contents.rows, []
    spread = np.nanstd(rows.x.numpy().reshape(len(rows.x), -1), axis=0)
    for line in walk:
        values = line.numpy().reshape(len(line), -1)
        change = np.ptp(values, axis=0) / np.maximum(spread, 1e-12)
        cells = words(rows.columns, line)
        names = list(rows.columns(line.numpy()))
        if len(names) == len(change):
            order = np.argsort(-change)[:_CHANGING]
        else:  # A column of several numbers, such as a category.
            order = np.arange(min(_CHANGING, len(names)))
        found.append({names[i]: [row[i] for row in cells] for i in order})
    return found


def _keyed(contents: Contents, values: list[Any]) -> dict[str, Any]:
    return {f"{a},{b}": value for (a, b), value in zip(contents.pairs, values, strict=True)}


# --- figures --------------------------------------------------------------------------------------


def _source(contents: Contents) -> Any:
    """The rows, a column for each of their figures, shared by the plots."""
    from bokeh.models import ColumnDataSource, CustomJS

    rows, points = contents.rows, contents.plane.points
    labels = rows.labels
    colors = _colors(labels)
    height = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    source = ColumnDataSource(
        {
            "x": points[:, 0].astype(float),
            "y": height.astype(float),
            "label": labels,
            "color": [colors[label] for label in labels],
            "name": list(rows.names),
            "logp": contents.scores.log_p.numpy(),
        }
    )
    click = CustomJS(code="if (cb_obj.indices.length) window.explore.choose(cb_obj.indices[0])")
    source.selected.js_on_change("indices", click)
    return source


def _colors(labels: list[str]) -> dict[str, str]:
    """A colour for each class, in the order of the classes."""
    kinds = sorted(set(labels), key=_natural)
    return {kind: _COLORS[i % len(_COLORS)] for i, kind in enumerate(kinds)}


def _natural(label: str) -> tuple[bool, float, str]:
    number = label.lstrip("-").isdecimal()
    return not number, float(label) if number else 0.0, label


def _figure(title: str, **options: Any) -> Any:
    from bokeh.plotting import figure

    plot = figure(
        title=title,
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset,tap",
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.active_drag = None  # On a phone, dragging scrolls the page.
    plot.grid.grid_line_alpha = 0.3
    return plot


def _hover(plot: Any, renderer: Any) -> None:
    from bokeh.models import CustomJS, HoverTool

    code = "const i = cb_data.index.indices; if (i.length) window.explore.show(i[0])"
    tips = [("row", "@name"), ("label", "@label"), ("log p(x)", "@logp{0.00} nats")]
    callback = CustomJS(code=code)
    plot.add_tools(HoverTool(renderers=[renderer], tooltips=tips, callback=callback))


def _plane(contents: Contents, source: Any) -> Any:
    """The codes over the prior's density."""
    what = "principal component of z" if contents.plane.latent_dim > 2 else "dimension of z"
    plot = _figure("Posterior means over the prior (grey)", x_axis_label=f"first {what}")
    plot.yaxis.axis_label = f"second {what}" if contents.plane.prior.shape[1] > 1 else ""
    _density(plot, contents.plane)
    points = plot.scatter(
        "x", "y", source=source, color="color", size=7, alpha=0.75, nonselection_alpha=0.3
    )
    _hover(plot, points)
    return plot


def _density(plot: Any, plane: Any) -> None:
    """Draws the density of the prior's draws by a kernel estimate."""
    from scipy.stats import gaussian_kde

    draws = plane.prior.T.astype(float)
    low, high = np.quantile(draws, (0.001, 0.999), axis=1)
    axes = [np.linspace(a, b, 70) for a, b in zip(low, high, strict=True)]
    estimate = gaussian_kde(draws)
    if len(axes) == 1:
        plot.varea(axes[0], 0, estimate(axes[0]), color="#cccccc")
        return
    x, y = np.meshgrid(*axes)
    z = estimate(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    levels = np.linspace(0.02, 1, 8) * z.max()
    greys = [f"#{v:02x}{v:02x}{v:02x}" for v in np.linspace(238, 150, 7).astype(int)]
    plot.contour(x, y, z, levels, fill_color=greys, line_color=None)


def _classes(contents: Contents, source: Any) -> Any:
    """The log p(x) of the rows of each class, with their medians."""
    from bokeh.transform import jitter

    labels = contents.rows.labels
    kinds = list(_colors(labels))
    plot = _figure("log p(x) (line: median)", x_range=kinds)
    points = plot.scatter(
        jitter("label", width=0.5, range=plot.x_range),
        "logp",
        source=source,
        color="color",
        size=5,
        alpha=0.6,
    )
    values, names = contents.scores.log_p.numpy(), np.asarray(labels)
    medians = [float(np.median(values[names == kind])) for kind in kinds]
    plot.scatter(kinds, medians, marker="dash", size=30, line_width=3, color="black")
    plot.xaxis.axis_label = "class" if contents.rows.classes is not None else ""
    plot.yaxis.axis_label = "log p(x), nats"
    _hover(plot, points)
    return plot


def _khat(contents: Contents) -> Any:
    """A histogram of k-hat, with the limit of trust."""
    from bokeh.models.annotations import Span

    assert contents.scores.pareto_k is not None
    limit = reliable_k(contents.scores.num_samples)
    values = contents.scores.pareto_k.double().numpy()
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=30)
    plot = _figure(f"Pareto k-hat (above {limit:.2f}: doubtful)")
    plot.quad(left=edges[:-1], right=edges[1:], bottom=0, top=counts, color="#56b4e9")
    plot.add_layout(Span(location=limit, dimension="height", line_color="#d55e00", line_width=2))
    plot.xaxis.axis_label, plot.yaxis.axis_label = "k-hat", "rows"
    return plot
