"""The number of components of a learned prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import course_study, few, regularized
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, with_error
from pyro_vaes.experiments.panels import COLORS, NLL, WIDTH, Figures, axes_of, drawn, lines
from pyro_vaes.experiments.pictures import picture
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
from pyro_vaes.vae import evaluating

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
    """What K changes, for the fit and for what is learned."""
    cell, sweeps = o.cell, _sweeps(o)
    set_ups = list(dict.fromkeys(set_up for set_up, _ in sweeps))
    found = [_course_of_k(o, set_up) for set_up in reversed(set_ups)]
    for (set_up, prior), labels in sweeps.items():
        if set_up == "course" and len(set_ups) > 1:
            continue
        last, best = labels[-1], o.lowest(labels)
        more = o.paired(last, best)
        found.append(
            f"With {_count(last)}, {cell(last, 'components used')} components of the {prior} are "
            f"used and distinct; test NLL exceeds training NLL by {_overfit(o, last)} nats, with "
            f"{_count(labels[0])} by {_overfit(o, labels[0])}. "
            + (
                "More components than the codes need over-fit: with "
                f"{_count(best)} the NLL is {o.lead(best, last)}."
                if more.mean > 0 and more.p < 0.05
                else "More components than the codes need are a waste rather than a danger: the "
                "mixture leaves them alike or without weight, and the cost of a step grows with K."
            )
        )
    return found + _moved(o)


def _course_of_k(o: Outcome, set_up: str) -> str:
    """The NLL of each prior in a set-up at the ends and its lowest, and the K chosen."""
    cell, parts = o.cell, []
    standard = "standard" if set_up == "course" else f"standard, {set_up}"
    for (where, prior), labels in _sweeps(o).items():
        if where != set_up:
            continue
        chosen, best = o.chosen(labels) or labels[0], o.lowest(labels)
        ends = dict.fromkeys((labels[0], best, labels[-1]))
        shown = joined([f"{cell(k, 'NLL')} with {_count(k)}" for k in ends])
        parts.append(
            f"That of the {prior} is {shown}; validation chooses {_count(chosen)}, "
            f"{o.lead(chosen, standard)} than with the standard prior."
        )
    head = f"{_WHERE.get(set_up, set_up)}, the NLL with the standard prior is"
    return " ".join([f"{head} {cell(standard, 'NLL')}.", *parts])


def _moved(o: Outcome) -> list[str]:
    """How far pseudo-inputs move from their start, and whether the start matters."""
    cell, head = o.cell, "pseudo-inputs moved (sd)"
    moved = [k for k in _starts(o).values() if len(o.values(k, "pseudo_inputs_moved"))]
    if not moved:
        return []
    longer = [k for k in (f"{moved[0]}, regularized",) if k in o.labels]
    shown = joined([f"{cell(k, head)} ({k})" for k in [*moved, *longer]])
    used = joined([cell(k, "components used") for k in moved])
    fits = joined([cell(k, "NLL") for k in moved])
    return [
        f"Pseudo-inputs learn, but stay near their start: the median one moved by {shown}, in "
        "standard deviations of each pixel. So the start decides how many are used and distinct: "
        f"{used} of those that start from data, from their mean and at random (in that order). The "
        f"NLL shows little of it: {fits}. They need not look like digits, since all that counts is "
        "where the encoder puts them; what they decode to does."
    ]


_WHERE = {
    "course": "In the course's set-up",
    "regularized": "Where over-fitting is held down (regularized)",
}


def _count(label: str) -> str:
    return label.split(", ")[1]


def _overfit(o: Outcome, label: str) -> str:
    gap = o.differs_within(label, "nll", "nll_train")
    return o.note(f"test minus training NLL, {label}", with_error(gap.mean, gap.error))


def _starts(o: Outcome) -> dict[str, str]:
    """The cells that start from data, from their mean and at random, by start."""
    reference = "VampPrior, K = 50"
    starts = {"data": reference, **{s: f"{reference}, {s}" for s in ("mean", "random")}}
    return {start: label for start, label in starts.items() if label in o.labels}


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
                ax.set(xscale="log", xlabel="")
            row[0].set_ylabel(f"{name} {NLL}")
        for above, below, set_up in zip(panels[0], panels[-1], set_ups, strict=True):
            above.set_title(set_up)
            below.set_xlabel("K")
        _legend(panels[0][-1], [prior for s, prior in sweeps if s == set_ups[0]], top=0.18)
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


def _legend(ax: Any, names: Sequence[str], top: float = 0.92) -> None:
    """Names the lines in a corner: at their ends they lie too close."""
    for line, (color, name) in enumerate(zip(COLORS, names, strict=False)):
        ax.text(0.05, top - 0.1 * line, name, color=color, transform=ax.transAxes)


_PSEUDO = (
    "Ten pseudo-inputs of the VampPrior with K = 50, as started and as learned, from data, from "
    "their mean plus noise, and at random; and the mean of p(x|z) at the mean of q(z|u) of each."
)


def _pseudo_inputs(o: Outcome) -> Figure | None:
    rows, names = [], []
    for start, label in _starts(o).items():
        vae = o.vae(label)
        prior: Any = vae.prior
        with evaluating(vae):
            u = prior.pseudo_inputs[:10]
            if prior.start is not None:
                rows.append(prior.start[:10].to(u))
                names.append(f"{start}: start")
            rows += [u, vae.reconstruct(u)]
        names += ["learned", "decoded"]
    return picture(o, rows, names) if rows else None


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
