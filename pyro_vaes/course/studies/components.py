"""The number of components of a learned prior."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, mean_text
from pyro_vaes.experiments.panels import COLORS, NLL, Figures, axes_of, bar, drawn, lines
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import image_grid, style

__all__ = ["STUDY"]


_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def grid(data: DataSet, quick: bool) -> list[Cell]:
    counts = few(_COUNTS, quick, (1, 10, 50))
    cells = [
        Cell(
            f"{name}, K = {count}",
            {"prior": prior, "prior_components": count},
            {"prior": name, "K": count, "pseudo_inputs": "data"},
        )
        for name, prior in (("mixture", "mixture"), ("VampPrior", "vamp"))
        for count in counts
    ]
    return cells + [
        Cell(
            f"VampPrior, K = 50, {init}",
            {"prior": "vamp", "prior_components": 50, "pseudo_inputs": init},
            {"prior": "VampPrior", "K": 50, "pseudo_inputs": init},
        )
        for init in ("mean", "random")
    ]


def findings(o: Outcome) -> list[str]:
    """Sentences on the number of components."""
    found = []
    for prior in ("mixture", "VampPrior"):
        labels = [
            k for k in o.labels if k.startswith(f"{prior}, K = ") and k.rsplit(" ", 1)[1].isdigit()
        ]
        chosen = o.chosen(labels) or labels[0]
        least, most = labels[0], labels[-1]
        found.append(
            f"{prior}: validation chooses {chosen.split(', ')[1]}, with a test NLL of "
            f"{mean_text(o, chosen, 'nll')}; {o.compared(chosen, least)}."
            if chosen != least
            else f"{prior}: validation chooses {chosen.split(', ')[1]}, with a test NLL of "
            f"{mean_text(o, chosen, 'nll')}."
        )
        before, after = (o.values(k, "nll") - o.values(k, "nll_train") for k in (least, most))
        found.append(
            f"{prior}: test NLL exceeds training NLL by {before.mean():.2f} nats with "
            f"{least.split(', ')[1]} and by {after.mean():.2f} with {most.split(', ')[1]}, of "
            f"whose components {mean_text(o, most, 'components_used', 1)} are used and distinct."
        )
    reference = "VampPrior, K = 50"
    starts = [k for k in o.labels if k.startswith(f"{reference}, ")]
    moved = [k for k in (reference, *starts) if len(o.values(k, "pseudo_inputs_moved"))]
    if moved:
        shown = joined([f"{mean_text(o, k, 'pseudo_inputs_moved')} ({k})" for k in moved])
        used = joined([f"{mean_text(o, k, 'components_used', 1)}" for k in moved])
        found.append(
            f"The median pseudo-input moved by {shown}, in units of each pixel's standard "
            f"deviation; of 50, {used} are used and distinct."
        )
    return found + o.ranked(reference, starts)


def figures(o: Outcome) -> Figures:
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
        used, (ax,) = axes_of(2.8)
        groups = {prior: of(prior) for prior in ("mixture", "VampPrior")}
        lines(ax, o, groups, "K", "components_used", words=False)
        ax.set(xscale="log", yscale="log", ylabel="distinct components used")
        # At their ends the lines lie too close to be named there.
        for line, (color, name) in enumerate(zip(COLORS, groups, strict=False)):
            ax.text(0.05, 0.92 - 0.08 * line, name, color=color, transform=ax.transAxes)
    return drawn(
        [
            ("nll", figure, "Test and training NLL against K."),
            ("used", used, "How many components are used, copies of one counted once."),
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


STUDY = course_study(
    "How many components",
    "How do the figures and the fit to training data change with the number K of "
    "Gaussian components or pseudo-inputs? K is chosen by validation alone.",
    grid,
    figures,
    findings,
    {
        "nll_train": "training NLL",
        "val_elbo": "validation -ELBO",
        "components_used": "components used",
        "pseudo_inputs_moved": "pseudo-inputs moved (sd)",
    },
    ("components_used", "pseudo_inputs_moved", "training_rows"),
    comparisons=(
        Comparison(tuple(f"mixture, K = {k}" for k in _COUNTS[1:]), "mixture, K = 1"),
        Comparison(tuple(f"VampPrior, K = {k}" for k in _COUNTS[1:]), "VampPrior, K = 1"),
        Comparison("VampPrior, K = 50, mean", "VampPrior, K = 50"),
    ),
)
