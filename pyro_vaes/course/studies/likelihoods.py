"""The likelihood of pixel levels."""

from __future__ import annotations

from typing import Any

from pyro_vaes.course.studies.base import ALIVE, course_study, few
from pyro_vaes.course.studies.priors import _PRIORS
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined
from pyro_vaes.experiments.panels import COLORS, NLL, Figures, axes_of, dots, drawn, examples
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style

__all__ = ["STUDY"]


_LEVELS = ("categorical", "ordinal", "beta_binomial", "discretized_logistic")
_ORDERED = tuple(f"{name.replace('_', '-')}, MLP" for name in _LEVELS[1:])
_ORDERED_CONV = tuple(f"{name.replace('_', '-')}, convolutions" for name in _LEVELS[1:])
_LEARNED = tuple(f"categorical, MLP, {prior}" for prior in ("mixture", "VampPrior"))
_CONV = "categorical, convolutions"


def grid(data: DataSet, quick: bool) -> list[Cell]:
    names = few(_LEVELS, quick, ("categorical", "ordinal"))
    networks: dict[str, dict[str, Any]] = {"MLP": {}}
    if data.image_shape is not None and min(data.image_shape[1:]) >= 8:
        # Twice the channels validate no better.
        networks["convolutions"] = {
            "network": "conv",
            "hidden_dims": (256,),
            "channels": (16, 32),
        }
    cells = [
        Cell(
            f"{name.replace('_', '-')}, {network}",
            {"likelihood": name, **options},
            {"likelihood": name, "network": network, "prior": "standard"},
        )
        for network, options in networks.items()
        for name in names
    ]
    if len(networks) > 1:
        # Thresholds from the data start where z is of no use yet: the KL may win before it is.
        cells.append(
            Cell(
                "ordinal, convolutions, KL warm-up",
                {"likelihood": "ordinal", **networks["convolutions"], "warmup_epochs": 20},
                {"likelihood": "ordinal", "network": "convolutions", "prior": "standard"},
            )
        )
    for prior in ("mixture", "VampPrior"):
        factors = {"likelihood": "categorical", "network": "MLP", "prior": prior}
        cells.append(Cell(f"categorical, MLP, {prior}", _PRIORS[prior], factors))
    return cells


def figures(o: Outcome) -> Figures:
    """Figures on the likelihoods."""
    mlp = [k for k in o.labels if k.endswith(", MLP")]
    with style():
        calibrated, (ax,) = axes_of(3.6)
        ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
        for color, label in zip(COLORS, mlp, strict=False):
            row = o.table.loc[o.table["label"] == label].iloc[0]
            ax.plot(row["expected"], row["observed"], "o-", ms=3, lw=1, color=color)
        for place, (color, label) in enumerate(zip(COLORS, mlp, strict=False)):
            error = 100 * o.mean(label, "calibration_error")[0]
            text = f"{label.removesuffix(', MLP')}: off by {error:.1f}%"
            ax.text(0.03, 0.95 - 0.07 * place, text, color=color, transform=ax.transAxes)
        ax.set_xlabel("probability that p(x|z) gives to a pixel in the upper half of the levels")
        ax.set_ylabel("share of pixels that are")
    panels = {"nll": NLL, "calibration_error": "calibration error"}
    alive = [k for k in o.labels if o.mean(k, "active_units")[0] >= 0.5] or o.labels
    dead = [k for k in o.labels if k not in alive]
    without = f" Not drawn, since collapsed: {joined(dead)}." if dead else ""
    return drawn(
        [
            (
                "nll",
                dots(o, panels, alive),
                "Knowing the order of the levels against learning the prior; grey: seeds."
                + without,
            ),
            (
                "calibration",
                calibrated,
                "Calibration of single pixels of test images at a posterior draw of z.",
            ),
            examples(o, o.labels),
        ]
    )


def findings(o: Outcome) -> list[str]:
    """What knowing the order is worth, next to a prior and to convolutions."""
    base, cell, found = "categorical, MLP", o.cell, []
    ordered, learned = o.chosen(_ORDERED), o.chosen(_LEARNED)
    if ordered is None or base not in o.labels:
        return o.ranked(o.labels[0], o.labels)
    gap = o.paired(ordered, base)
    text = (
        f"Of the likelihoods that know the order, validation chooses {ordered}: NLL "
        f"{cell(ordered, 'NLL')}, {gap} {_way(gap.mean)} than the {cell(base, 'NLL')} of the "
        "categorical one. Sixteen free logits for each pixel must learn from a thousand images "
        "that a level lies between its neighbours; an ordered likelihood shares what it learns "
        "between levels"
    )
    if learned is not None:
        prior = o.paired(learned, base)
        text += f". The learned prior chosen ({learned}) makes it {prior} {_way(prior.mean)}"
    found.append(f"{text}.")
    conv, both = _CONV, o.chosen(_ORDERED_CONV)
    if conv in o.labels and both is not None:
        alone, more = o.paired(conv, base), o.paired(both, conv)
        text = o.note(f"NLL, {both} minus {conv}", f"{more.mean:+.2f} ± {more.error:.2f}")
        found.append(
            f"Convolutions do the same work: with the categorical likelihood they make the NLL "
            f"{alone} {_way(alone.mean)} ({cell(conv, 'NLL')}), and then the order changes it by "
            f"only {text} (validation's choice, {both}). Either one supplies the regularity that "
            "the plain network has to learn; both together supply it once."
        )
    for label in o.labels:
        warm = f"{label}, KL warm-up"
        if warm in o.labels and o.mean(label, "active_units")[0] < 1:
            found.append(
                f"With {label} the posterior collapses: {cell(label, 'active units')} units are "
                f"active, NLL {cell(label, 'NLL')}. With a warm-up of the KL "
                f"{cell(warm, 'active units')} are, NLL {cell(warm, 'NLL')}: thresholds that start "
                "from the data explain the pixels before z does, and the KL wins early."
            )
    return found


def _way(mean: float) -> str:
    return "lower" if mean < 0 else "higher"


STUDY = course_study(
    "The likelihood",
    "Levels carry an order. How much does knowing it gain, compared with a learned prior?",
    grid,
    figures,
    findings,
    {"calibration_error": "calibration error", **ALIVE},
    ("calibration",),
    ("levels",),
    comparisons=(
        Comparison(_ORDERED, "categorical, MLP"),
        Comparison(_LEARNED, "categorical, MLP"),
        Comparison(_ORDERED_CONV, _CONV),
    ),
)
