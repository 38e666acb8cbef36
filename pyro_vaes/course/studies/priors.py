"""Learned priors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import ALIVE, course_study, few, regularized
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, in_words, joined, with_error
from pyro_vaes.experiments.panels import COLORS, NLL, WIDTH, Figures, dots, drawn, examples
from pyro_vaes.experiments.pictures import drawn_means, interpolated, manifold
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
from pyro_vaes.vae import evaluating

__all__ = ["STUDY"]


_PRIORS: Mapping[str, Mapping[str, Any]] = {
    "standard": {},
    "mixture": {"prior": "mixture", "prior_components": 50},
    "VampPrior": {"prior": "vamp", "prior_components": 50},
    "GTM": {"prior": "gtm", "prior_components": 49},
    "GTM-VampPrior": {"prior": "vamp", "prior_components": 49, "pseudo_inputs": "gtm"},
    "RealNVP": {"prior": "realnvp"},
    "MAF": {"prior": "maf"},
    "spline": {"prior": "spline"},
}


def grid(data: DataSet, quick: bool) -> list[Cell]:
    set_ups = {"16-D": {}, "2-D": {"latent_dim": 2}, **regularized(data)}
    names = few(list(_PRIORS), quick, ("standard", "VampPrior", "RealNVP"))
    return [
        Cell(
            f"{name}, {set_up}",
            {**_PRIORS[name], **options},
            {"prior": name, "set_up": set_up, "latent_dim": options.get("latent_dim", 16)},
        )
        for set_up, options in set_ups.items()
        for name in names
    ]


def _set_ups(o: Outcome) -> dict[str, list[str]]:
    """The labels of each set-up, the standard prior first."""
    return {
        set_up: [k for k in o.labels if k.endswith(f", {set_up}")]
        for set_up in dict.fromkeys(o.table["set_up"])
    }


def findings(o: Outcome) -> list[str]:
    """Where a learned prior pays, and why."""
    set_ups = {name: labels for name, labels in _set_ups(o).items() if len(labels) > 1}
    wide = [name for name in set_ups if name != "2-D"]
    worth = {name: _worth(o, name, labels) for name, labels in set_ups.items()}
    found = [" ".join(worth[name] for name in wide)] if wide else []
    found += [text for name, text in worth.items() if name not in wide]
    if {"16-D", "regularized"} <= set_ups.keys():
        found.append(_why(o, set_ups["regularized"]))
    return found + [_closer(o, name, set_ups[name]) for name in wide]


def _worth(o: Outcome, set_up: str, labels: Sequence[str]) -> str:
    """What the learned prior that validation chooses changes in a set-up."""
    cell, standard, best = o.cell, labels[0], o.chosen(labels[1:]) or labels[1]
    return (
        f"{_WHERE.get(set_up, set_up)}, validation chooses *{_name(best)}* among the learned "
        f"priors: NLL {cell(best, 'NLL')}, {o.lead(best, standard)} than with the standard prior "
        f"({cell(standard, 'NLL')}), and -ELBO {cell(best, '-ELBO')} against "
        f"{cell(standard, '-ELBO')}."
    )


def _why(o: Outcome, regularized: Sequence[str]) -> str:
    """Why the set-up decides."""
    cell, course, standard = o.cell, o.labels[0], regularized[0]
    near = o.lowest(regularized[1:], "marginal_kl")
    gaps = [o.differs_within(label, "nll", "nll_train") for label in (course, standard)]
    over = [
        o.note(f"test minus training NLL, {label}", with_error(gap.mean, gap.error))
        for label, gap in zip((course, standard), gaps, strict=True)
    ]
    return (
        "Why the set-up decides: all that a prior can win is the marginal KL. In the course's "
        f"set-up that is {cell(course, 'marginal KL')} nats of a KL of {cell(course, 'KL')}: "
        f"training ends early, as the decoder over-fits (by {over[0]} nats), and the gain drowns. "
        f"In the regularized one it is {cell(standard, 'marginal KL')} of {cell(standard, 'KL')} "
        f"(over-fitting: {over[1]}), and *{_name(near)}* lowers it to {cell(near, 'marginal KL')}. "
        f"There I(x; z) is {cell(standard, 'I(x; z)')} nats, the most that so few images allow: "
        "each has a code of its own, and a smooth prior cannot follow codes one by one, so most of "
        "the marginal KL stays."
    )


def _closer(o: Outcome, set_up: str, labels: Sequence[str]) -> str:
    """Which priors come closer to q(z), and what that does to the information in z."""
    cell, standard, learned = o.cell, labels[0], labels[1:]
    far = [k for k in learned if o.differs(k, standard, "marginal_kl").mean >= 0]
    near, least = o.lowest(learned, "marginal_kl"), o.lowest(learned, "mutual_information")
    most = max(learned, key=lambda k: o.mean(k, "mutual_information")[0])
    text = (
        f"{_WHERE.get(set_up, set_up)}, {in_words(len(learned) - len(far))} of "
        f"{in_words(len(learned))} learned priors end closer to q(z) than the standard one, the "
        f"closest is *{_name(near)}* ({cell(near, 'marginal KL')} against "
        f"{cell(standard, 'marginal KL')})"
    )
    if far:
        text += "; farther: " + joined([f"*{_name(k)}* ({cell(k, 'marginal KL')})" for k in far])
    return (
        f"{text}. z carries from {cell(least, 'I(x; z)')} to {cell(most, 'I(x; z)')} nats with "
        f"them, {cell(standard, 'I(x; z)')} with the standard prior: a prior that fits makes the "
        "code cheaper; how much the code says, it hardly changes."
    )


_WHERE = {
    "16-D": "In the course's set-up",
    "2-D": "With two latent dimensions",
    "regularized": "Where over-fitting is held down (regularized)",
}


def _name(label: str) -> str:
    return label.split(",")[0]


def figures(o: Outcome) -> Figures:
    """Figures on learned priors."""
    planes: list[tuple[str, Figure | None, str]] = []
    for set_up, labels in _set_ups(o).items():
        what = "" if set_up == "2-D" else ", in the plane of the first two principal components"
        planes.append(
            (
                f"latent_{set_up.replace('-', '').lower()}",
                _planes(o, labels),
                "Aggregated posterior of the test data (dots; digits at the medians of their "
                f"classes) over the prior's density (grey), {set_up}{what}; one scale for all.",
            )
        )
    figures: list[tuple[str, Figure | None, str]] = [
        (
            f"nll_{set_up.replace('-', '').lower()}",
            dots(o, {"nll": NLL, "marginal_kl": "marginal KL (nats)"}, labels),
            f"Test NLL and the distance of the aggregated posterior from each prior, {set_up}; "
            "grey: seeds.",
        )
        for set_up, labels in _set_ups(o).items()
    ]
    drawings: list[tuple[str, Figure | None, str]] = []
    for set_up, labels in _set_ups(o).items():
        if set_up == "2-D":
            continue
        name, means = set_up.replace("-", "").lower(), drawn_means(o, labels, 10)
        text = f"Means of p(x|z) at ten draws of z from each prior, {set_up}; own draws for each."
        _, draws, what = examples(o, labels)
        drawings += [(f"means_{name}", means, text), (f"samples_{name}", draws, what)]
    compared = [k for k in ("standard, regularized", "VampPrior, regularized") if k in o.labels]
    flat = next((k for k in o.labels if k.endswith(", 2-D")), None)
    return drawn(
        [
            *figures,
            *planes,
            (
                "manifold",
                manifold(o, flat) if flat else None,
                "The means of p(x|z) over two latent dimensions, standard prior, at equal steps of "
                "probability.",
            ),
            (
                "interpolations",
                interpolated(o, compared) if compared else None,
                "Straight lines between test images (at the ends) in the latent spaces under two "
                "priors.",
            ),
            *drawings,
        ]
    )


def _planes(o: Outcome, labels: Sequence[str]) -> Figure:
    columns = min(3, len(labels))
    rows = math.ceil(len(labels) / columns)
    projected = {label: _projected(o, label) for label in labels}
    spread = [float(points.abs().quantile(0.995)) for points, _ in projected.values()]
    reach = 1.15 * max(spread)
    with style():
        figure = Figure(figsize=(WIDTH, 2.2 * rows), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
        for ax in panels[len(labels) :]:
            ax.set_axis_off()
        for ax, (label, (points, ground)) in zip(panels, projected.items(), strict=False):
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
            _classes(ax, points, o.data.test.y)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="", ylabel="")
            ax.set_title(_name(label))
        what = "unit" if labels[0].endswith(", 2-D") else "principal component"
        figure.supxlabel(f"first {what} of z", fontsize=10)
        figure.supylabel(f"second {what}", fontsize=10)
    return figure


def _projected(o: Outcome, label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One draw of z of each test image, and draws from the prior, in a plane."""
    vae = o.vae(label)
    with evaluating(vae):
        torch.manual_seed(0)
        points = vae.q_z(o.data.test.frozen().x).sample()
        ground = vae.p_z().sample((4000,))
    if points.shape[1] == 2:
        return points, ground
    center = points.mean(0)
    plane = torch.linalg.svd(points - center, full_matrices=False).Vh[:2]
    return (points - center) @ plane.mT, (ground - center) @ plane.mT


def _classes(ax: Any, points: torch.Tensor, y: torch.Tensor | None) -> None:
    if y is None:
        ax.scatter(points[:, 0], points[:, 1], s=3, color=COLORS[0], linewidths=0)
        return
    colors = [COLORS[int(c) % 10] for c in y]
    ax.scatter(points[:, 0], points[:, 1], s=3, c=colors, linewidths=0)
    for label in y.unique().tolist():
        x, height = points[y == label].median(0).values.tolist()
        box = {"boxstyle": "circle,pad=0.1", "fc": "white", "ec": COLORS[label % 10], "alpha": 0.8}
        ax.text(x, height, str(label), fontsize=7, ha="center", va="center", bbox=box)


def _learned(set_up: str) -> tuple[str, ...]:
    return tuple(f"{name}, {set_up}" for name in _PRIORS if name != "standard")


STUDY = course_study(
    "Learned priors",
    "Does a prior that learns come closer to the aggregated posterior, and does that pay? Asked in "
    "the course's set-up (16-D, 2-D), and in one that over-fits less (regularized: a likelihood of "
    "ordered levels, KL warm-up, images moved a little).",
    grid,
    figures,
    findings,
    {
        "nll_train": "training NLL",
        "marginal_kl": "marginal KL",
        "mutual_information": "I(x; z)",
        **ALIVE,
    },
    ("training_rows",),
    comparisons=(
        Comparison(_learned("16-D"), "standard, 16-D"),
        Comparison(_learned("regularized"), "standard, regularized"),
        Comparison(_learned("regularized"), "standard, regularized", "marginal_kl", "Marginal KL"),
    ),
)
