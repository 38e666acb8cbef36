"""Learned priors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import ALIVE, course_study, few, overfit, regularized
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, mean_text
from pyro_vaes.experiments.panels import COLORS, NLL, WIDTH, Figures, dots, drawn, examples
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
from pyro_vaes.vae import evaluating

__all__ = ["STUDY"]


_PRIORS: Mapping[str, Mapping[str, Any]] = {
    "standard": {},
    "mixture": {"prior": "mixture", "prior_components": 50},
    "VampPrior": {"prior": "vamp", "prior_components": 50},
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


def findings(o: Outcome) -> list[str]:
    """Sentences on learned priors."""
    found = overfit(o, "standard, 16-D", "standard, regularized")
    for set_up in dict.fromkeys(o.table["set_up"]):
        labels = [label for label in o.labels if label.endswith(f", {set_up}")]
        reference = f"standard, {set_up}"
        found += o.ranked(reference, labels)
        gaps = {k: o.differs(k, reference, "marginal_kl") for k in labels if k != reference}
        for way, sides in (
            ("Closer to", [k for k, gap in gaps.items() if gap.mean < 0]),
            ("Farther from", [k for k, gap in gaps.items() if gap.mean >= 0]),
        ):
            if sides:
                shown = joined([f"{k} ({mean_text(o, k, 'marginal_kl')})" for k in sides])
                found.append(
                    f"{way} the aggregated posterior than {reference} (marginal KL "
                    f"{mean_text(o, reference, 'marginal_kl')} nats): {shown}."
                )
    return found


def figures(o: Outcome) -> Figures:
    """Figures on learned priors."""
    planes = []
    for set_up in dict.fromkeys(o.table["set_up"]):
        labels = [k for k in o.labels if k.endswith(f", {set_up}")]
        what = "" if set_up == "2-D" else ", in the plane of the first two principal components"
        planes.append(
            (
                f"latent_{set_up.replace('-', '').lower()}",
                _planes(o, labels),
                f"Aggregated posterior of the test data (dots, by label) over the prior's density "
                f"(grey), {set_up}{what}.",
            )
        )
    figure = dots(o, {"nll": NLL, "marginal_kl": "marginal KL (nats)"})
    caption = "Test NLL and the distance of the aggregated posterior from each prior; grey: seeds."
    wide = [k for k in o.labels if not k.endswith(", 2-D")]
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
            with evaluating(vae):
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
