"""Panels shared by the figures of several studies: axes, rows of dots, lines, images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vaes.experiments.outcomes import Outcome
from pyro_vaes.plotting import apart, image_grid, style
from pyro_vaes.vae import VAE, evaluating

__all__ = [
    "COLORS",
    "NLL",
    "WIDTH",
    "Figures",
    "axes_of",
    "bar",
    "dots",
    "drawn",
    "examples",
    "from_prior",
    "greek",
    "lines",
    "name_ends",
    "sheet",
]


Figures = Mapping[str, tuple[Figure, str]]
"""Figure and caption by name."""

COLORS = sns.color_palette("colorblind", 10)
WIDTH = 6.0
NLL = "NLL (nats)"


def axes_of(height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure as wide as a column, with panels side by side."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, **options)))


def dots(o: Outcome, panels: Mapping[str, str], labels: Sequence[str] | None = None) -> Figure:
    """A row for each cell, a panel for each figure: mean, standard error, and every seed."""
    labels = list(labels or o.labels)
    with style():
        figure, axes = axes_of(0.7 + 0.27 * len(labels), len(panels), sharey=True)
        places = np.arange(len(labels))[::-1]
        for ax, (key, title) in zip(axes, panels.items(), strict=True):
            for place, label in zip(places, labels, strict=True):
                seeds, (mean, error) = o.values(label, key), o.mean(label, key)
                ax.plot(seeds, [place] * len(seeds), "o", ms=3, color="0.7")
                ax.errorbar(mean, place, xerr=bar(error), fmt="o", ms=5, color=COLORS[0])
            ax.set_xlabel(title)
            ax.xaxis.set_major_locator(MaxNLocator(3))
            ax.grid(axis="y", color="0.92")
        axes[0].set_yticks(places, [greek(label) for label in labels])
    return figure


def greek(label: str) -> str:
    """A label with the letters that its parameters have in formulas."""
    letters = {"alpha =": "\N{GREEK SMALL LETTER ALPHA} =", "beta =": "β =", "lambda =": "λ ="}
    for word, letter in letters.items():
        label = label.replace(word, letter)
    return label


def bar(error: float) -> float:
    """The length of an error bar: zero where the error is unknown."""
    return 0.0 if math.isnan(error) else error


def lines(
    ax: Any, o: Outcome, groups: Mapping[str, Sequence[str]], x: str, key: str, words: bool = True
) -> None:
    """A line for each group of cells over a factor, with error bars, named at its end."""
    ends = []
    for color, (name, labels) in zip(COLORS, groups.items(), strict=False):
        at = [float(o.table.loc[o.table["label"] == label, x].iloc[0]) for label in labels]
        means, errors = zip(*(o.mean(label, key) for label in labels), strict=True)
        ax.errorbar(at, means, yerr=[bar(e) for e in errors], fmt="o-", ms=3, lw=1.2, color=color)
        if words and not math.isnan(means[-1]):
            ends.append((at[-1], means[-1], name, color))
    name_ends(ax, ends)
    ax.set_xlabel(x)


def name_ends(ax: Any, ends: Iterable[tuple[float, float, str, Any]], size: float = 9) -> None:
    """Names lines at their ends ``(x, y, name, color)``, the names clear of each other.

    Call it once the axis has its scale and limits.
    """
    ends = sorted(ends, key=lambda end: end[1])
    points = 72 / ax.figure.dpi
    ax.get_ylim()  # Matplotlib updates the limits only when they are read.
    heights = [float(ax.transData.transform((x, y))[1]) * points for x, y, _, _ in ends]
    places = np.sort(apart([[height] for height in heights], 1.2 * size).ravel())  # In their order.
    for (x, y, name, color), height, place in zip(ends, heights, places, strict=True):
        ax.annotate(
            name,
            (x, y),
            (4, place - height),
            textcoords="offset points",
            color=color,
            fontsize=size,
            va="center",
        )


def sheet(
    o: Outcome, labels: Sequence[str], make: Callable[[VAE], Tensor], per_row: int = 10
) -> Figure | None:
    """A row of images from the model of each cell; None if the data are no images."""
    if o.data.image_shape is None:
        return None
    rows = []
    for seed, label in enumerate(labels):
        vae = o.vae(label)
        with evaluating(vae):
            torch.manual_seed(seed)  # Noise of its own: rows look alike only if models are.
            rows.append(make(vae)[:per_row].flatten(1))
    high = float((o.data.num_levels or 2) - 1)
    value_range = None if o.data.kind == "real" else (0.0, high)
    return image_grid(
        torch.cat(rows),
        o.data.image_shape,
        columns=per_row,
        row_labels=[greek(label) for label in labels],
        value_range=value_range,
    )


def from_prior(vae: VAE) -> Tensor:
    """Ten draws: z from the prior, x from p(x | z); one of each label if there are labels."""
    labels = None
    if vae.conditional:
        labels = torch.arange(10) % max(getattr(p, "num_labels", 0) or 0 for p in vae.children())
    return vae.sample(10, labels)


def drawn(figures: Iterable[tuple[str, Figure | None, str]]) -> Figures:
    """The figures, without those that could not be drawn, by name."""
    return {name: (figure, caption) for name, figure, caption in figures if figure is not None}


def examples(o: Outcome, labels: Sequence[str]) -> tuple[str, Figure | None, str]:
    """The figure of draws from each model."""
    return (
        "samples",
        sheet(o, labels, from_prior),
        "Ten draws from each model: z from the prior, x from p(x|z).",
    )
