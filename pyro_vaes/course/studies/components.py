"""The number of components of a learned prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import course_study, few, overfit, regularized
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, mean_text
from pyro_vaes.experiments.panels import COLORS, NLL, WIDTH, Figures, axes_of, drawn, lines
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import image_grid, style

__all__ = ["STUDY"]


_COUNTS = (1, 10, 50, 200, 500)
_PRIORS = {"mixture": "mixture", "VampPrior": "vamp"}


def grid(data: DataSet, quick: bool) -> list[Cell]:
    # All counts where the prior can matter, a few in the set-up of the course.
    second = regularized(data)
    counts = few((1, 50, 500) if second else _COUNTS, quick, (1, 50))
    sweeps: dict[str, tuple[Sequence[int], Mapping[str, Any]]] = {"": (counts, {})}
    for name, options in second.items():
        sweeps[f", {name}"] = few(_COUNTS, quick, (1, 10)), options
    cells = []
    for ending, (counts, options) in sweeps.items():
        facts = {"set_up": ending.removeprefix(", ") or "course", "pseudo_inputs": "data"}
        cells.append(Cell(f"standard{ending}", options, {"prior": "standard", "K": 0, **facts}))
        cells += [
            Cell(
                f"{name}, K = {count}{ending}",
                {"prior": prior, "prior_components": count, **options},
                {"prior": name, "K": count, **facts},
            )
            for name, prior in _PRIORS.items()
            for count in counts
        ]
    return cells + [
        Cell(
            f"VampPrior, K = 50, {init}",
            {"prior": "vamp", "prior_components": 50, "pseudo_inputs": init},
            {"prior": "VampPrior", "K": 50, "set_up": "course", "pseudo_inputs": init},
        )
        for init in ("mean", "random")
    ]


def _sweeps(o: Outcome) -> dict[tuple[str, str], list[str]]:
    """The labels of each sweep of K, by set-up and prior."""
    rows = o.table[(o.table["pseudo_inputs"] == "data") & (o.table["K"] > 0)]
    return {
        (set_up, prior): list(dict.fromkeys(some["label"]))
        for (set_up, prior), some in rows.groupby(["set_up", "prior"], sort=False)
    }


def findings(o: Outcome) -> list[str]:
    """Sentences on the number of components."""
    found = overfit(o, "standard", "standard, regularized")
    for (set_up, prior), labels in _sweeps(o).items():
        reference = "standard" if set_up == "course" else f"standard, {set_up}"
        chosen = o.chosen(labels) or labels[0]
        found.append(
            f"Of {prior} ({set_up}), validation chooses {chosen}: {o.compared(chosen, reference)}."
        )
        before, after = (o.differs_within(k, "nll", "nll_train") for k in (labels[0], labels[-1]))
        found.append(
            f"Test NLL exceeds training NLL by {before} nats with {labels[0]} and by {after} with "
            f"{labels[-1]}, of whose components {mean_text(o, labels[-1], 'components_used', 1)} "
            "are used and distinct."
        )
    reference = "VampPrior, K = 50"
    starts = [k for k in o.labels if k in (f"{reference}, mean", f"{reference}, random")]
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
    sweeps = _sweeps(o)
    return drawn(
        [
            ("nll", _nll(o, sweeps), _NLL),
            ("used", _used(o, sweeps), "How many components are used, copies of one counted once."),
            ("pseudo_inputs", _pseudo_inputs(o), _PSEUDO),
        ]
    )


_NLL = (
    "Test NLL (above) and training NLL (below) against K, each with its own axis; dotted: the "
    "standard prior."
)


def _nll(o: Outcome, sweeps: Mapping[tuple[str, str], Sequence[str]]) -> Figure:
    """A column for each set-up, a row for test and one for training data."""
    set_ups = list(dict.fromkeys(set_up for set_up, _ in sweeps))
    with style():
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        panels = figure.subplots(2, len(set_ups), sharex="col", squeeze=False)
        for row, (key, name) in zip(
            panels, {"nll": "test", "nll_train": "training"}.items(), strict=True
        ):
            for ax, set_up in zip(row, set_ups, strict=True):
                groups = {prior: labels for (s, prior), labels in sweeps.items() if s == set_up}
                lines(ax, o, groups, "K", key, words=False)
                standard = "standard" if set_up == "course" else f"standard, {set_up}"
                if standard in o.labels:
                    ax.axhline(o.mean(standard, key)[0], color="0.5", lw=0.8, ls=":")
                ax.set(xscale="log", xlabel="K" if row is panels[-1] else "")
                if row is panels[0]:
                    ax.set_title(set_up)
            row[0].set_ylabel(f"{name} {NLL}")
        _legend(panels[0][0], [prior for s, prior in sweeps if s == set_ups[0]])
    return figure


def _used(o: Outcome, sweeps: Mapping[tuple[str, str], Sequence[str]]) -> Figure:
    set_ups = list(dict.fromkeys(set_up for set_up, _ in sweeps))
    with style():
        figure, axes = axes_of(2.8, len(set_ups), sharey=True)
        for ax, set_up in zip(axes, set_ups, strict=True):
            groups = {prior: labels for (s, prior), labels in sweeps.items() if s == set_up}
            lines(ax, o, groups, "K", "components_used", words=False)
            ax.set(xscale="log", yscale="log", title=set_up)
        axes[0].set_ylabel("distinct components used")
        _legend(axes[0], [prior for s, prior in sweeps if s == set_ups[0]])
    return figure


def _legend(ax: Any, names: Sequence[str]) -> None:
    """Names the lines in a corner: at their ends they lie too close."""
    for line, (color, name) in enumerate(zip(COLORS, names, strict=False)):
        ax.text(0.05, 0.92 - 0.1 * line, name, color=color, transform=ax.transAxes)


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


def _ordered(name: str) -> tuple[str, ...]:
    return tuple(f"{name}, K = {k}, regularized" for k in _COUNTS)


STUDY = course_study(
    "How many components",
    "How do the figures and the fit to training data change with the number K of Gaussian "
    "components or pseudo-inputs? K is chosen by validation alone. Asked in the course's set-up, "
    "and in one that over-fits less (regularized, see the study of learned priors).",
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
        Comparison(_ordered("mixture"), "standard, regularized"),
        Comparison(_ordered("VampPrior"), "standard, regularized"),
        Comparison("VampPrior, K = 50, mean", "VampPrior, K = 50"),
    ),
)
