"""Flow priors: which flow, and how deep."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import MaxNLocator

from pyro_vaes.course.studies.base import course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome
from pyro_vaes.experiments.panels import NLL, Figures, axes_of, drawn, examples, lines
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style

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
    """Sentences on flow priors."""
    found = o.ranked("standard", o.labels)
    for flow in dict.fromkeys(o.table["flow"]):
        labels = [k for k in o.labels if k.startswith(f"{flow}, ")]
        if len(labels) > 1:
            found.append(f"{o.compared(labels[-1], labels[0])}.")
    return found


def figures(o: Outcome) -> Figures:
    """Figures on flow priors."""
    groups: dict[str, list[str]] = {}
    for label in o.labels[1:]:
        groups.setdefault(label.split(",")[0], []).append(label)
    with style():
        figure, axes = axes_of(3.2, 2)
        panels = ("nll", "marginal_kl"), (NLL, "marginal KL (nats)")
        for ax, key, title in zip(axes, *panels, strict=True):
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
            (
                "nll",
                figure,
                "Test NLL and the distance of q(z) from the prior, by layers.",
            ),
            examples(o, [o.labels[0], *deepest]),
        ]
    )


_FLOWS = tuple(
    f"{name}, {depth}"
    for name in ("RealNVP", "MAF", "spline")
    for depth in ("1 layer", "2 layers", "4 layers")
)


def _beside(ax: Any) -> Any:
    return ax.get_yaxis_transform()


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
