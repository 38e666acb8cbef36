"""The figures of the studies on priors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vaes.evaluation import untouched
from pyro_vaes.outcomes import Outcome
from pyro_vaes.plotting import image_grid, style
from pyro_vaes.study_panels import (
    COLORS,
    NLL,
    WIDTH,
    Figures,
    axes_of,
    bar,
    dots,
    drawn,
    examples,
    lines,
)

__all__ = ["components", "flow_priors", "priors"]


def priors(o: Outcome) -> Figures:
    """Figures on learned priors."""
    planes = []
    for size in (2, 16):
        labels = [k for k in o.labels if k.endswith(f", {size}-D")]
        what = "" if size == 2 else ", in the plane of the first two principal components"
        planes.append(
            (
                f"latent_{size}d",
                _planes(o, labels),
                f"Aggregated posterior of the test data (dots, by label) over the prior's density "
                f"(grey), z in {size} dimensions{what}.",
            )
        )
    figure = dots(o, {"nll": NLL, "marginal_kl": "marginal KL (nats)"})
    caption = "Test NLL and the distance of the aggregated posterior from each prior; grey: seeds."
    wide = [k for k in o.labels if k.endswith(", 16-D")]
    return drawn([("nll", figure, caption), *planes, examples(o, wide)])


def _planes(o: Outcome, labels: Sequence[str]) -> Figure:
    columns = min(3, len(labels))
    rows = math.ceil(len(labels) / columns)
    with style():
        figure = Figure(figsize=(WIDTH, 2.05 * rows), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for ax in panels[len(labels) :]:
            ax.set_axis_off()
        for ax, label in zip(panels, labels, strict=False):
            vae = o.vae(label)
            with untouched(vae):
                torch.manual_seed(0)
                points = vae.q_z(o.data.test.frozen().x).sample()
                ground = vae.p_z().sample((4000,))
            center, plane = points.mean(0), torch.eye(points.shape[1])[:2]
            if points.shape[1] > 2:
                plane = torch.linalg.svd(points - center, full_matrices=False).Vh[:2]
            points, ground = ((v - center) @ plane.mT for v in (points, ground))
            reach = float(points.abs().quantile(0.995)) * 1.15
            sns.kdeplot(
                x=ground[:, 0].numpy(),
                y=ground[:, 1].numpy(),
                fill=True,
                cmap="Greys",
                levels=7,
                thresh=0.03,
                gridsize=80,
                bw_adjust=0.6,
                clip=(-1.5 * reach, 1.5 * reach),
                ax=ax,
            )
            colors: Any = COLORS[0]
            if o.data.test.y is not None:
                colors = [COLORS[int(c) % 10] for c in o.data.test.y]
            ax.scatter(points[:, 0], points[:, 1], s=3, c=colors, linewidths=0)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            ax.set_title(label.split(",")[0])
    return figure


def components(o: Outcome) -> Figures:
    """Figures on the number of components."""

    def of(prior: str) -> list[str]:
        return [
            k for k in o.labels if k.startswith(f"{prior}, K = ") and k.rsplit(" ", 1)[1].isdigit()
        ]

    with style():
        figure, axes = axes_of(3.2, 2, sharey=True)
        for ax, prior in zip(axes, ("mixture", "VampPrior"), strict=True):
            for color, (key, name) in zip(
                COLORS,
                {"nll": "test", "nll_train": "training"}.items(),
                strict=False,
            ):
                ks = [float(k.rsplit(" ", 1)[1]) for k in of(prior)]
                means, errors = zip(*(o.mean(k, key) for k in of(prior)), strict=True)
                bars = [bar(e) for e in errors]
                ax.errorbar(ks, means, yerr=bars, fmt="o-", ms=3, lw=1.2, color=color)
                if ax is axes[0]:
                    place = (ks[0], means[0])
                    ax.annotate(name, place, (0, -16), textcoords="offset points", color=color)
            ax.set_xscale("log")
            ax.set_xlabel("K")
            ax.set_title(prior)
        axes[0].set_ylabel(NLL)
        cost, axes = axes_of(2.8, 2)
        groups = {prior: of(prior) for prior in ("mixture", "VampPrior")}
        for ax, key, title in zip(
            axes,
            ("seconds_per_epoch", "components_used"),
            ("seconds per epoch", "components used"),
            strict=True,
        ):
            lines(ax, o, groups, "K", key, words=False)
            ax.set_xscale("log")
            ax.set_ylabel(title)
        axes[1].set_yscale("log")
        # At their ends the lines lie too close to be named there.
        for line, (color, name) in enumerate(zip(COLORS, groups, strict=False)):
            place = (0.05, 0.92 - 0.08 * line)
            axes[1].text(*place, name, color=color, transform=axes[1].transAxes)
    return drawn(
        [
            ("nll", figure, "Test and training NLL against K."),
            ("cost", cost, "What K costs and how much of it is used (exp of the entropy)."),
            ("pseudo_inputs", _pseudo_inputs(o), _PSEUDO),
        ]
    )


_PSEUDO = (
    "Ten learned pseudo-inputs of the VampPrior with K = 50, started from data, from their mean "
    "plus noise, and at random."
)


def _pseudo_inputs(o: Outcome) -> Figure | None:
    starts = {"data": "VampPrior, K = 50"}
    starts |= {s: f"VampPrior, K = 50, {s}" for s in ("mean", "random")}
    if o.data.image_shape is None or not set(starts.values()) <= set(o.labels):
        return None
    rows = []
    for label in starts.values():
        prior: Any = o.vae(label).prior
        with torch.no_grad():
            rows.append(prior.pseudo_inputs[:10].flatten(1))
    high = float((o.data.num_levels or 2) - 1)
    return image_grid(
        torch.cat(rows),
        o.data.image_shape,
        columns=10,
        row_labels=list(starts),
        value_range=(0.0, high),
    )


def flow_priors(o: Outcome) -> Figures:
    """Figures on flow priors."""
    groups: dict[str, list[str]] = {}
    for label in o.labels[1:]:
        groups.setdefault(label.split(",")[0], []).append(label)
    with style():
        figure, axes = axes_of(3.2, 2)
        for ax, key, title in zip(
            axes, ("nll", "seconds_per_epoch"), (NLL, "seconds per epoch"), strict=True
        ):
            lines(ax, o, groups, "depth", key, words=ax is axes[0])
            level = o.mean(o.labels[0], key)[0]
            ax.axhline(level, color="0.5", lw=0.8, ls=":")
            ax.text(0.02, level, "standard", color="0.4", va="bottom", transform=_beside(ax))
            ax.set_xlabel("layers")
            ax.set_ylabel(title)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_xlim(right=axes[0].get_xlim()[1] * 1.3)
    deepest = [labels[-1] for labels in groups.values()]
    return drawn(
        [
            ("nll", figure, "Test NLL and cost against the number of layers."),
            examples(o, [o.labels[0], *deepest]),
        ]
    )


def _beside(ax: Any) -> Any:
    return ax.get_yaxis_transform()
