"""Pictures of what the benchmarks measured."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from harness import quartiles

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter


def bars(
    path: Path,
    panels: Mapping[str, Sequence[Mapping[str, Any]]],
    label: str,
    factor: float = 1e3,
    caption: str = "",
) -> None:
    """Draws the medians of each panel's contenders as bars, with their quartiles."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 3.6), layout="constrained", squeeze=False
    )
    for axis, (title, records) in zip(axes[0], panels.items(), strict=True):
        names = list(dict.fromkeys(record["contender"] for record in records))
        spread = [
            [
                factor * q
                for q in quartiles(float(r["seconds"]) for r in records if r["contender"] == n)
            ]
            for n in names
        ]
        middle = [q[1] for q in spread]
        errors = [[q[1] - q[0] for q in spread], [q[2] - q[1] for q in spread]]
        colours = ["tab:blue" if name.startswith("pyro_vaes") else "0.65" for name in names]
        places = range(len(names))
        drawn = axis.barh(places, middle, xerr=errors, color=colours, ecolor="0.3")
        axis.bar_label(drawn, [f"{value:.3g}" for value in middle], padding=4)
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set(title=textwrap.fill(title, 32), xlabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path, caption)


def curves(
    path: Path,
    points: Sequence[Mapping[str, Any]],
    values: Mapping[str, str],
    caption: str = "",
) -> None:
    """Draws the medians of each curve's contenders against its size, on logarithmic scales.

    Args:
        path: of the picture.
        points: records with ``curve``, ``contender``, ``size`` and the values.
        values: titles of the rows, by the name of the value each shows.
        caption: a line below.
    """
    names = list(dict.fromkeys(point["curve"] for point in points))
    contenders = list(dict.fromkeys(point["contender"] for point in points))
    colours = {name: f"C{number}" for number, name in enumerate(contenders)}
    wide = min(4, len(names))
    bands = math.ceil(len(names) / wide)
    figure, axes = plt.subplots(
        bands * len(values),
        wide,
        figsize=(max(4, 3 * wide), 2.4 * bands * len(values) + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for place, name in enumerate(names):
        for line, (value, title) in enumerate(values.items()):
            axis = axes[place // wide * len(values) + line, place % wide]
            axis.set_visible(True)
            for contender in contenders:
                _curve(axis, points, name, contender, value, colours[contender])
            # A depth may be 0, which a logarithmic scale has no place for.
            linear = any(int(p["size"]) == 0 for p in points if p["curve"] == name)
            axis.set(xscale="linear" if linear else "log", yscale="log")
            axis.set_xlabel(name if line == len(values) - 1 else "")
            axis.set_ylabel(title if place % wide == 0 else "")
            axis.yaxis.set_major_formatter("{x:g}")
            # Where the scale spans less than a decade, its minor ticks say how much.
            low, high = axis.get_ylim()
            axis.yaxis.set_minor_formatter("{x:g}" if high / low < 8 else NullFormatter())
            axis.tick_params(axis="y", which="minor", labelsize=7)
            if not linear:
                axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=c, linestyle=_stroke(n)) for n, c in colours.items()]
    columns = len(lines) if wide > 2 else 1
    figure.legend(lines, contenders, loc="outside upper left", ncols=columns, frameon=False)
    _save(figure, path, caption)


def _curve(
    axis: Axes,
    points: Sequence[Mapping[str, Any]],
    name: str,
    contender: str,
    value: str,
    colour: str,
) -> None:
    found: dict[int, list[float]] = {}
    for point in points:
        if (point["curve"], point["contender"]) == (name, contender):
            found.setdefault(int(point["size"]), []).append(float(point[value]))
    spread = [quartiles(found[size]) for size in sorted(found)]
    low, middle, high = ([q[i] for q in spread] for i in range(3))
    axis.plot(sorted(found), middle, marker="o", ms=3, ls=_stroke(contender), color=colour)
    axis.fill_between(sorted(found), low, high, color=colour, alpha=0.2)


def _stroke(contender: str) -> str:
    return "-" if contender.startswith("pyro_vaes") else "--"


def validation(
    path: Path,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    kept: Mapping[str, int | None],
    references: Mapping[str, tuple[float, Mapping[int, float]]],
    title: str,
    caption: str = "",
) -> None:
    """Draws -ELBO of the validation rows against epochs.

    Args:
        path: of the picture.
        curves: epochs and nats, by the name of the run.
        kept: the epoch whose weights each run has kept so far.
        references: what others saw, by the name of their model: the best, and by epoch.
        title: above the picture.
        caption: a line below.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, points in curves.items():
        epochs, nats = zip(*points, strict=True)
        line = axis.plot(epochs, nats, linewidth=1, label=name)
        best = kept[name]
        if best is not None:
            at = (best, dict(points)[best])
            axis.plot(*at, "o", color=line[0].get_color(), label=f"{name}, kept: {at[1]:.2f}")
    _references(axis, references)
    # The first fifth of the epochs, tens of nats above the rest, would leave it flat.
    last = max(epoch for points in curves.values() for epoch, _ in points)
    shown = [nats for points in curves.values() for epoch, nats in points if epoch > last / 5]
    seen = [nats for best, curve in references.values() for nats in (best, *curve.values())]
    axis.set_ylim(min([*shown, *seen]) - 0.5, max([*shown, *seen]) + 0.5)
    heading = textwrap.fill(title, 60)
    axis.set(title=heading, xlabel="epoch", ylabel="validation -ELBO, nats")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path, caption)


def _references(axis: Axes, references: Mapping[str, tuple[float, Mapping[int, float]]]) -> None:
    """Draws what others saw: a line at the best, crosses where their log is known."""
    for number, (model, (best, curve)) in enumerate(references.items()):
        grey = str(0.1 + 0.4 * number)
        axis.axhline(best, color=grey, linestyle=":", label=f"{model}, best: {best:.2f}")
        if curve:
            axis.plot(*zip(*curve.items(), strict=True), "+", color=grey, markersize=9)


def _save(figure: Figure, path: Path, caption: str) -> None:
    """Writes a picture with a caption below, in lines that its width can hold."""
    if caption:
        lines = textwrap.fill(caption, round(18 * figure.get_figwidth()))
        figure.supxlabel(lines, fontsize=7, color="0.4")
    figure.savefig(path, dpi=120)
    plt.close(figure)
