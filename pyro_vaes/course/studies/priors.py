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
    cell, found = o.cell, []
    for set_up, labels in _set_ups(o).items():
        standard, learned = labels[0], labels[1:]
        best = o.chosen(learned)
        if best is None:
            continue
        found.append(
            f"{_WHERE.get(set_up, set_up)}, validation chooses {_name(best)} of the learned "
            f"priors: NLL {cell(best, 'NLL')}, {o.lead(best, standard)} than with the standard "
            f"prior ({cell(standard, 'NLL')}), and -ELBO {cell(best, '-ELBO')} against "
            f"{cell(standard, '-ELBO')}."
        )
    pair = o.labels[0], "standard, regularized"
    if pair[1] in o.labels:
        gaps = [o.differs_within(k, "nll", "nll_train") for k in pair]
        texts = [
            o.note(f"test minus training NLL, {k}", with_error(gap.mean, gap.error))
            for k, gap in zip(pair, gaps, strict=True)
        ]
        found.append(
            f"Why the set-up decides: the course's decoder over-fits by {texts[0]} nats, the "
            f"regularized one by {texts[1]}. What a prior can win is about its marginal KL, a nat "
            "or two. Where training stops early because the decoder over-fits, the encoder never "
            "spends what the prior offers, and the gain drowns."
        )
    for set_up, labels in _set_ups(o).items():
        if set_up == "2-D" or len(labels) < 2:
            continue
        standard, learned = labels[0], labels[1:]
        far = [k for k in learned if o.differs(k, standard, "marginal_kl").mean >= 0]
        informed = [k for k in learned if o.differs(k, standard, "mutual_information").mean > 0]
        text = (
            f"{_WHERE.get(set_up, set_up)}, {in_words(len(learned) - len(far))} of "
            f"{in_words(len(learned))} learned priors end closer to q(z) than the standard one, "
            f"and with {in_words(len(informed))} z carries more information"
        )
        if far:
            shown = joined([f"{_name(k)} ({cell(k, 'marginal KL')})" for k in far])
            text += f"; farther are {shown}, the standard prior {cell(standard, 'marginal KL')}"
        found.append(
            f"{text}. A learned prior does not only move to the codes, the codes move too: it "
            "makes information cheaper, and the encoder buys more."
        )
    return found


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
    wide = [k for k in o.labels if not k.endswith(", 2-D")]
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
            (
                "means",
                drawn_means(o, wide, 10),
                "Means of p(x|z) at ten draws of z from each prior, for each model its own draws.",
            ),
            examples(o, wide),
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
