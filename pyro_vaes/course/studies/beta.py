"""The weight of the KL."""

from __future__ import annotations

import seaborn as sns

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, mean_text
from pyro_vaes.experiments.panels import Figures, axes_of, bar, drawn, examples, name_ends
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style

__all__ = ["STUDY"]


def grid(data: DataSet, quick: bool) -> list[Cell]:
    betas = few((0, 0.1, 0.25, 0.5, 1, 2, 4, 10), quick, (0, 0.5, 1, 10))
    return [Cell(f"beta = {beta:g}", {"beta": float(beta)}, {"beta": beta}) for beta in betas]


def figures(o: Outcome) -> Figures:
    """Figures on the weight of the KL."""
    with style():
        curve, (ax,) = axes_of(3.4)
        points = [
            (o.mean(k, "kl")[0], -o.mean(k, "reconstruction")[0], k.split(" = ")[1])
            for k in o.labels
        ]
        shown = [point for point in points if point[2] != "0"] or points
        ax.plot(*zip(*((rate, cost) for rate, cost, _ in shown), strict=True), "o-", ms=4)
        names: dict[tuple[int, int], list[str]] = {}
        for rate, cost, name in shown:  # Dead models lie on one point: one name for all.
            names.setdefault((round(10 * rate), round(10 * cost)), []).append(name)
        for (rate, cost), alike in names.items():
            text, place = f"β = {', '.join(alike)}", (rate / 10, cost / 10)
            ax.annotate(text, place, (5, 4), textcoords="offset points", fontsize=9)
        ax.set_xlabel("rate: KL(q(z|x) || p(z)) (nats per datum)")
        ax.set_ylabel("distortion: -E log p(x|z) (nats)")
        for rate, cost, name in points:
            if name == "0" and len(points) > 1:
                text = (
                    f"β = 0 lies outside, at a rate of {rate:.0f}\nand a distortion of {cost:.1f}"
                )
                ax.text(0.98, 0.95, text, transform=ax.transAxes, ha="right", va="top", color="0.4")
        units, axes = axes_of(2.6, 2)
        places = range(len(o.labels))
        for ax, key, title in zip(
            axes,
            ("active_units", "mutual_information"),
            ("active units", "I(x; z) (nats)"),
            strict=True,
        ):
            means, errors = zip(*(o.mean(k, key) for k in o.labels), strict=True)
            ax.errorbar(places, means, yerr=[bar(e) for e in errors], fmt="o-", ms=4)
            ax.set_xticks(list(places), [k.split(" = ")[1] for k in o.labels])
            ax.set_xlabel("β")
            ax.set_ylabel(title)
            ax.set_ylim(bottom=0)
        dying, (ax,) = axes_of(3.0)
        shades = sns.color_palette("viridis", len(o.labels))
        ax.set_yscale("log")
        ends = []
        for shade, label in zip(shades, o.labels, strict=True):
            variances = _unit_variances(o, label)
            ax.plot(range(1, len(variances) + 1), variances, "o-", ms=3, lw=1, color=shade)
            ends.append((len(variances), variances[-1], f"β = {label.split(' = ')[1]}", shade))
        name_ends(ax, ends, 8)
        ax.axhline(0.01, color="0.5", lw=0.8, ls=":")
        ax.text(1, 0.0115, "active above", color="0.4", fontsize=8)
        ax.set_xlabel("latent unit, by rank")
        ax.set_ylabel("variance of its posterior mean")
    return drawn(
        [
            ("rate_distortion", curve, "What beta trades: rate against distortion on test data."),
            ("units", units, "Active units and information in z against beta."),
            ("dying_units", dying, "Which dimensions die: units sorted by activity, first seed."),
            examples(o, o.labels),
        ]
    )


def _unit_variances(o: Outcome, label: str) -> list[float]:
    return sorted(o.table.loc[o.table["label"] == label, "unit_variances"].iloc[0], reverse=True)


def findings(o: Outcome) -> list[str]:
    """Sentences on the weight of the KL."""
    first, last = o.labels[0], o.labels[-1]
    found = [
        f"As beta rises from {first.split(' = ')[1]} to {last.split(' = ')[1]}, the active units "
        f"go from {mean_text(o, first, 'active_units', 1)} to "
        f"{mean_text(o, last, 'active_units', 1)} "
        f"and I(x; z) from {mean_text(o, first, 'mutual_information')} to "
        f"{mean_text(o, last, 'mutual_information')} nats.",
        *o.ranked("beta = 1", o.labels),
    ]
    if first == "beta = 0":
        gap = o.differs(first, "beta = 1", "marginal_kl")
        found.append(
            "With beta = 0 nothing holds q(z) to the prior: the marginal KL is "
            f"{mean_text(o, first, 'marginal_kl', 1)} nats, {gap.mean:+.1f} against beta = 1. "
            "Where it is large, draws from the prior fall where the decoder has never been trained."
        )
    return found


STUDY = course_study(
    "The weight of the KL",
    "What does beta trade, which dimensions of z die, and why does beta = 0 generate rubbish "
    "well as it reconstructs?",
    grid,
    figures,
    findings,
    {"reconstruction": "E log p(x given z)", **KL_SPLIT, **ALIVE},
    reference="beta = 1",
    comparisons=(
        Comparison("beta = 0.5", "beta = 1"),
        Comparison("beta = 4", "beta = 1"),
        Comparison("beta = 0", "beta = 1", "marginal_kl", "Marginal KL"),
    ),
)
