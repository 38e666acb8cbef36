"""Flow priors: which flow, and how deep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, in_words
from pyro_vaes.experiments.panels import (
    COLORS,
    NLL,
    WIDTH,
    Figures,
    axes_of,
    drawn,
    examples,
    lines,
)
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
from pyro_vaes.vae import evaluating

__all__ = ["STUDY"]


def grid(data: DataSet, quick: bool) -> list[Cell]:
    depths = few((1, 2, 4), quick, (1, 2))
    return [Cell("standard", {}, {"flow": "standard", "depth": 0})] + [
        Cell(
            f"{name}, {depth} layer{'s' * (depth > 1)}",
            {"prior": prior, "prior_flows": depth},
            {"flow": name, "depth": depth},
        )
        for name, prior in (("RealNVP", "realnvp"), ("MAF", "maf"), ("spline", "spline"))
        for depth in depths
    ]


def findings(o: Outcome) -> list[str]:
    """What flow priors win, and what depth adds."""
    groups, cell = _groups(o), o.cell
    flows = [label for labels in groups.values() for label in labels]
    if not flows or o.labels[0] in flows:
        return o.ranked(o.labels[0], o.labels)
    chosen, near = o.chosen(flows) or flows[0], o.lowest(flows, "marginal_kl")
    gain = o.paired(chosen, "standard").mean
    better = "a lower" if gain < 0 else "no lower"
    found = [
        f"Validation chooses {chosen}, which has {better} NLL than the standard prior "
        f"({cell(chosen, 'NLL')} against {cell('standard', 'NLL')}), with a -ELBO of "
        f"{cell(chosen, '-ELBO')} against {cell('standard', '-ELBO')}: a flow is an exact density "
        "that can bend, so it can follow q(z), and all that it can win is the marginal KL, "
        f"{cell('standard', 'marginal KL')} nats with the standard prior."
    ]
    closer = [k for k in flows if o.differs(k, "standard", "marginal_kl").mean < 0]
    found.append(
        f"{in_words(len(closer)).capitalize()} of {in_words(len(flows))} flows end closer to the "
        f"aggregated posterior than the standard prior; the closest is {near}, with a marginal KL "
        f"of {cell(near, 'marginal KL')} nats. That is less than one might expect of a density "
        "that can take any shape. But q(z) is here the mixture of the posteriors of the test "
        "images alone: between so few it has gaps, while the prior is fitted to the codes of other "
        "images, and no prior takes that part."
    )
    steps = [f"{k[0]} to {k[-1]}: {_change(o, k)}" for k in groups.values() if len(k) > 1]
    if steps:
        found.append(
            "Depth moves the marginal KL by little (" + "; ".join(steps) + "). One layer already "
            "takes up most of what there is to win: a coupling layer bends half of the units given "
            "the other half, an autoregressive one each unit given those before it; what more "
            "layers could model, a thousand images do not show."
        )
    return found


def _change(o: Outcome, labels: Sequence[str]) -> str:
    gap = o.differs(labels[-1], labels[0], "marginal_kl")
    text = f"{gap.mean:+.2f}" + ("" if math.isnan(gap.error) else f" ± {gap.error:.2f}")
    return o.note(f"marginal KL, {labels[-1]} minus {labels[0]}", text)


def _groups(o: Outcome) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for label in o.labels:
        if label != "standard":
            groups.setdefault(label.split(",")[0], []).append(label)
    return groups


def figures(o: Outcome) -> Figures:
    """Figures on flow priors."""
    groups = _groups(o)
    deepest = [labels[-1] for labels in groups.values()]
    return drawn(
        [
            (
                "nll",
                _by_depth(o, groups),
                "Test NLL and the marginal KL, by layers; dotted: the standard prior.",
            ),
            (
                "straightened",
                _straightened(o, deepest),
                "What the flow does to z: codes of the "
                "test images by class (above), and what the flow makes of them (below), where the "
                "prior is the standard normal; circles: one and two of its standard deviations; "
                "the two units that vary most.",
            ),
            examples(o, [o.labels[0], *deepest]),
        ]
    )


def _by_depth(o: Outcome, groups: Mapping[str, Sequence[str]]) -> Figure:
    with style():
        figure, axes = axes_of(3.2, 2)
        panels = ("nll", "marginal_kl"), (NLL, "marginal KL (nats)")
        for ax, key, title in zip(axes, *panels, strict=True):
            ax.axhline(o.mean(o.labels[0], key)[0], color="0.5", lw=0.8, ls=":")
            lines(ax, o, groups, "depth", key, words=False)
            ax.set_xlabel("layers")
            ax.set_ylabel(title)
            ax.set_xticks(sorted({int(depth) for depth in o.table["depth"] if depth}))
        for line, (color, name) in enumerate(zip(COLORS, groups, strict=False)):
            axes[1].text(
                0.98, 0.82 - 0.1 * line, name, color=color, ha="right", transform=axes[1].transAxes
            )
    return figure


def _straightened(o: Outcome, labels: Sequence[str]) -> Figure:
    test, ring = o.data.test.frozen(), torch.linspace(0, 2 * math.pi, 100)
    colors: Any = COLORS[0] if test.y is None else [COLORS[int(c) % 10] for c in test.y]
    with style():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        panels = figure.subplots(2, len(labels), sharex=True, sharey=True, squeeze=False)
        for column, label in zip(panels.T, labels, strict=True):
            vae = o.vae(label)
            with evaluating(vae):
                torch.manual_seed(0)
                z = vae.q_z(test.x).sample()
                u = z
                for transform in reversed(vae.p_z().transforms):
                    u = transform.inv(u)
                first, second = vae.encode(test.x).var(0).topk(2).indices.tolist()
            for ax, points in zip(column, (z, u), strict=True):
                ax.scatter(points[:, first], points[:, second], s=3, c=colors, linewidths=0)
                for radius in (1, 2):
                    ax.plot(radius * ring.cos(), radius * ring.sin(), color="0.5", lw=0.7)
                ax.set(aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
            column[0].set_title(label)
            column[1].set_xlabel(f"unit {first}")
            column[0].set_ylabel(f"z, unit {second}")
            column[1].set_ylabel(f"u, unit {second}")
    return figure


_FLOWS = tuple(
    f"{name}, {depth}"
    for name in ("RealNVP", "MAF", "spline")
    for depth in ("1 layer", "2 layers", "4 layers")
)


STUDY = course_study(
    "Flow priors",
    "Which flow, and how deep?",
    grid,
    figures,
    findings,
    {"marginal_kl": "marginal KL"},
    comparisons=(
        Comparison(_FLOWS, "standard"),
        Comparison(_FLOWS, "standard", "marginal_kl", "Marginal KL"),
        Comparison("MAF, 4 layers", "MAF, 1 layer"),
    ),
)
