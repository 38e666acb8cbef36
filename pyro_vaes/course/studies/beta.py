"""The weight of the KL."""

from __future__ import annotations

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, class_in_code, course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, with_error
from pyro_vaes.experiments.panels import Figures, axes_of, bar, drawn, examples, name_ends
from pyro_vaes.experiments.pictures import drawn_means, rebuilt, traversed
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style

__all__ = ["STUDY"]


def grid(data: DataSet, quick: bool) -> list[Cell]:
    betas = few((0, 0.1, 0.25, 0.5, 1, 2, 4, 10), quick, (0, 0.5, 1, 10))
    return [Cell(f"beta = {beta:g}", {"beta": float(beta)}, {"beta": beta}) for beta in betas]


def figures(o: Outcome) -> Figures:
    """Figures on the weight of the KL."""
    units = _extremes(o, "beta = 1") if "beta = 1" in o.labels else []
    walks = traversed(o, "beta = 1", units) if units else None
    return drawn(
        [
            (
                "rate_distortion",
                _rate_distortion(o),
                "What beta trades: rate against distortion on test data; the dashed line has the "
                "ELBO of beta = 1, and below it the ELBO is better.",
            ),
            (
                "units",
                _units(o),
                "Active units, information in z, and how often a classifier reads the class from "
                "one draw of z, against beta.",
            ),
            (
                "dying_units",
                _dying(o),
                "Which dimensions die: units sorted by activity, first seed.",
            ),
            ("reconstructions", rebuilt(o, o.labels, 10), "Test images, and what z keeps of them."),
            (
                "means",
                drawn_means(o, o.labels, 10),
                "Means of p(x|z) at ten draws of z from the prior, for each model its own draws.",
            ),
            examples(o, o.labels),
            (
                "traversals",
                walks,
                "One test image as single units run through the bulk of the prior, beta = 1: the "
                "three most active units, and the two least active ones.",
            ),
        ]
    )


def _beta(label: str) -> str:
    return label.split(" = ")[1]


def _rate_distortion(o: Outcome) -> Figure:
    points = [(o.mean(k, "kl")[0], -o.mean(k, "reconstruction")[0], _beta(k)) for k in o.labels]
    shown = [point for point in points if point[2] != "0"] or points
    with style():
        figure, (ax,) = axes_of(3.4)
        ax.plot(*zip(*((rate, cost) for rate, cost, _ in shown), strict=True), "o-", ms=4)
        names: dict[tuple[int, int], list[str]] = {}
        for rate, cost, name in shown:  # Dead models lie on one point: one name for all.
            names.setdefault((round(10 * rate), round(10 * cost)), []).append(name)
        for (rate, cost), alike in names.items():
            text, place = f"β = {', '.join(alike)}", (rate / 10, cost / 10)
            ax.annotate(text, place, (5, 4), textcoords="offset points", fontsize=9)
        ax.get_xlim(), ax.get_ylim()  # Matplotlib updates the limits only when they are read.
        ax.autoscale(False)
        for rate, cost, name in points:
            if name == "1":
                (left, right), total = ax.get_xlim(), rate + cost
                ax.plot([left, right], [total - left, total - right], color="0.6", lw=0.8, ls="--")
                low = max(ax.get_ylim()[0], total - right)  # Where the line leaves the panel.
                side = "left" if total - low < (left + right) / 2 else "right"
                text = f"  -ELBO = {total:.1f}  "
                ax.annotate(text, (total - low, low), ha=side, va="bottom", color="0.4")
            if name == "0" and len(points) > 1:
                text = (
                    f"β = 0 lies outside, at a rate of {rate:.0f}\nand a distortion of {cost:.1f}"
                )
                ax.text(0.98, 0.95, text, transform=ax.transAxes, ha="right", va="top", color="0.4")
        ax.set_xlabel("rate: KL(q(z|x) || p(z)) (nats per datum)")
        ax.set_ylabel("distortion: -E log p(x|z) (nats)")
    return figure


def _units(o: Outcome) -> Figure:
    at = [float(_beta(k)) for k in o.labels]
    panels = {
        "active units": [o.mean(k, "active_units") for k in o.labels],
        "I(x; z) (nats)": [o.mean(k, "mutual_information") for k in o.labels],
    }
    drawn = [code for k in o.labels if (code := class_in_code(o, k, drawn=True))]
    if drawn:
        panels["class read from z (%)"] = [(code.mean, code.error) for code in drawn]
    with style():
        figure, axes = axes_of(2.6, len(panels))
        for ax, (title, figures) in zip(axes, panels.items(), strict=True):
            means, errors = zip(*figures, strict=True)
            ax.errorbar(at, means, yerr=[bar(e) for e in errors], fmt="o-", ms=4)
            ax.set_xscale("symlog", linthresh=0.1)
            ax.set_xticks(at, [f"{x:g}" if x in (0, 0.1, 1, 10) else "" for x in at])
            ax.minorticks_off()
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set(xlabel="β", ylabel=title, ylim=(0, None))
    return figure


def _dying(o: Outcome) -> Figure:
    with style():
        figure, (ax,) = axes_of(3.0)
        ax.set_yscale("log")
        ends = []
        for shade, label in zip(sns.color_palette("viridis", len(o.labels)), o.labels, strict=True):
            variances = sorted(_unit_variances(o, label), reverse=True)
            ax.plot(range(1, len(variances) + 1), variances, "o-", ms=3, lw=1, color=shade)
            ends.append((len(variances), variances[-1], f"β = {_beta(label)}", shade))
        name_ends(ax, ends, 8)
        ax.axhline(0.01, color="0.5", lw=0.8, ls=":")
        last = max(x for x, *_ in ends)
        ax.text(last, 0.0085, "active above", color="0.4", fontsize=8, ha="right", va="top")
        ax.set_xlabel("latent unit, by rank")
        ax.set_ylabel("variance of its posterior mean")
    return figure


def _unit_variances(o: Outcome, label: str) -> list[float]:
    return list(o.table.loc[o.table["label"] == label, "unit_variances"].iloc[0])


def _extremes(o: Outcome, label: str) -> list[int]:
    """The three most active units and the two least active ones, first seed."""
    variances = _unit_variances(o, label)
    order = sorted(range(len(variances)), key=variances.__getitem__, reverse=True)
    return order[:3] + order[-2:]


def findings(o: Outcome) -> list[str]:
    """What beta trades, and why."""
    one, best = "beta = 1", o.lowest(o.labels)
    cell = o.cell
    if one not in o.labels:
        return o.ranked(o.labels[0], o.labels)
    found = []
    if best != one:
        near = [k for k in o.labels if k not in (one, best) and o.paired(k, best).p > 0.05]
        alike = f"; {joined(near)} cannot be distinguished from it" if near else ""
        found.append(
            f"The larger beta, the less z says: I(x; z) falls from {cell(o.labels[0], 'I(x; z)')} "
            f"nats with {o.labels[0]} to {cell(one, 'I(x; z)')} with {one} and "
            f"{cell(o.labels[-1], 'I(x; z)')} with {o.labels[-1]}. The best "
            f"likelihood is not that of beta = 1 (NLL {cell(one, 'NLL')}) but that of "
            f"{best} ({cell(best, 'NLL')}{alike}). The bound prefers beta = 1, as it must "
            f"({cell(one, '-ELBO')} against {cell(best, '-ELBO')}): a cheaper KL lets z carry more "
            f"({cell(best, 'I(x; z)')} nats against {cell(one, 'I(x; z)')}), from which "
            "the decoder learns more, and the wider mismatch of q(z) and the prior counts in the "
            "bound but hardly in the likelihood."
        )
    else:
        found.append(f"The best likelihood is that of beta = 1: NLL {cell(one, 'NLL')}.")
    if "beta = 0" in o.labels:
        found.append(
            "beta = 0 is an autoencoder. Its reconstructions are among the best (E log p(x given "
            f"z) of -{cell('beta = 0', 'E log p(x given z)')}), and z identifies each test image: "
            f"I(x; z) is {cell('beta = 0', 'I(x; z)')} nats, the most that so few images allow. "
            "But nothing holds q(z) to the prior: the marginal KL is "
            f"{cell('beta = 0', 'marginal KL')} nats, so draws from the prior fall where the "
            f"decoder has never been trained, and the NLL is {cell('beta = 0', 'NLL')}."
        )
    dead = [k for k in o.labels if o.mean(k, "active_units")[0] < 0.5]
    if dead:
        shown = joined(dead)
        found.append(
            f"With {shown} all units are dead, and once the KL is zero the objective no longer "
            f"depends on beta: these models are one and the same, with an NLL of "
            f"{cell(dead[0], 'NLL')}, a product of pixels that are independent and alike for all z."
        )
    dying = [k for k in o.labels if k not in dead and float(_beta(k)) > 1]
    if dying:
        found.append(
            f"Units die one by one: {cell(one, 'active units')} are active with beta = 1, "
            f"{cell(dying[0], 'active units')} with {dying[0]}. A unit is kept while the "
            "reconstruction gains more from it than beta times its KL, so the units that save "
            "least die first; moving a dead unit leaves the image as it is."
        )
    return found + _classes(o)


def _classes(o: Outcome) -> list[str]:
    """What of the class z keeps: in draws, which carry information, and in means, which hide none.

    The mean of a dead unit still moves a little, and a classifier that scales its inputs reads it.
    """
    found = []
    for label in dict.fromkeys([o.labels[0], "beta = 1", o.labels[-1]]):
        of_draw, of_mean = class_in_code(o, label, drawn=True), class_in_code(o, label)
        if of_draw is None or of_mean is None:
            return []
        draw = with_error(of_draw.mean, of_draw.error, 1)
        mean = with_error(of_mean.mean, of_mean.error, 1)
        found.append(
            f"{o.note(f'class read from a draw of z, {label} (%)', draw)} % with {label} "
            f"({o.note(f'class read from the mean of z, {label} (%)', mean)} % from the mean)"
        )
    return [
        f"From one draw of z a classifier names the digit of {joined(found)} of the test images. "
        "The draw is what the decoder sees; the mean alone can mislead, since a dead unit's mean "
        "still moves a little, far below the noise of q(z|x), and a classifier scales it up."
    ]


STUDY = course_study(
    "The weight of the KL",
    "What does beta trade, which dimensions of z die, and why does beta = 0 reconstruct "
    "well and generate badly?",
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
