"""Posterior collapse and InfoVAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, course_study
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, in_words
from pyro_vaes.experiments.panels import NLL, Figures, dots, drawn, examples
from pyro_vaes.experiments.pictures import rebuilt
from pyro_vaes.experiments.study import Cell

__all__ = ["STUDY"]


_STRONG: Mapping[str, Any] = {"likelihood": "autoregressive"}


def grid(data: DataSet, quick: bool) -> list[Cell]:
    grid: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ELBO, plain decoder", {}),
        ("ELBO", dict(_STRONG)),
        ("beta = 0.25", {**_STRONG, "beta": 0.25}),
        ("alpha = 0.5, lambda = 10, MMD", _info_of(0.5, 10, "mmd")),
        ("alpha = 1, lambda = 10, MMD", _info_of(1, 10, "mmd")),
        ("alpha = 1, lambda = 100, MMD", _info_of(1, 100, "mmd")),
        ("alpha = 0.5, lambda = 2, adversarial", _info_of(0.5, 2, "adversarial")),
        ("alpha = 1, lambda = 2, adversarial", _info_of(1, 2, "adversarial")),
    )
    keys = ("alpha", "lambda", "divergence", "beta")
    cells = [Cell(label, o, {k: o.get(k) for k in keys}) for label, o in grid]
    return [cells[i] for i in (1, 4, 7)] if quick else cells


def _info_of(alpha: float, lambda_: float, divergence: str) -> dict[str, Any]:
    return {**_STRONG, "alpha": alpha, "lambda": lambda_, "divergence": divergence}


def figures(o: Outcome) -> Figures:
    """Figures on InfoVAE."""
    panels = {
        "active_units": "active units",
        "mutual_information": "I(x; z) (nats)",
        "nll": NLL,
    }
    return drawn(
        [
            (
                "cure",
                dots(o, panels),
                "Collapse with a strong decoder, and its cures; grey: seeds.",
            ),
            (
                "reconstructions",
                rebuilt(o, o.labels, 10),
                "Test images, and what each model makes of the mean of their z.",
            ),
            examples(o, o.labels),
        ]
    )


def findings(o: Outcome) -> list[str]:
    """How the posterior collapses, and what brings it back."""
    elbo, plain, cell = "ELBO", "ELBO, plain decoder", o.cell
    if elbo not in o.labels:
        return o.ranked(o.labels[0], o.labels)
    active = o.values(elbo, "active_units")
    found = [
        f"With the autoregressive decoder the ELBO leaves {cell(elbo, 'active units')} units "
        f"active (none in {in_words(int((active < 0.5).sum()))} of {in_words(len(active))} "
        f"seeds) and {cell(elbo, 'I(x; z)')} nats in z: the decoder models the pixels by each "
        "other, so a code that costs KL has little left to save, and the posterior collapses."
    ]
    cures = [k for k in o.labels if k not in (elbo, plain)]
    if plain in o.labels:
        found.append(
            f"The fit does not suffer from it. NLL is {cell(elbo, 'NLL')} against "
            f"{cell(plain, 'NLL')} with the plain decoder, whose z carries "
            f"{cell(plain, 'I(x; z)')} nats: the ELBO prefers fitting the data to inference."
        )
    if cures:
        best = o.lowest(cures)
        better = [k for k in cures if o.paired(k, elbo).mean < 0]
        found.append(
            f"The code comes back, and need not cost likelihood: {in_words(len(better))} of "
            f"{in_words(len(cures))} cures have a lower NLL than the ELBO, the lowest "
            f"{cell(best, 'NLL')} with *{best}*, with {cell(best, 'I(x; z)')} nats in z. A code "
            "that is used lets the decoder share strength between pixels that lie far apart."
        )
        far = max(cures, key=lambda k: o.mean(k, "marginal_kl")[0])
        near = min(cures, key=lambda k: o.mean(k, "marginal_kl")[0])
        found.append(
            "What the cures differ in is where the codes lie. With alpha = 1 nothing bounds the "
            f"information, and only the divergence holds q(z) to the prior: marginal KL reaches "
            f"{cell(far, 'marginal KL')} nats with *{far}*, and -ELBO {cell(far, '-ELBO')}. It is "
            f"smallest, {cell(near, 'marginal KL')}, with *{near}*. So the encoder's bound says "
            "little about such a model, and its likelihood needs a proposal fitted to each image."
        )
    return found


STUDY = course_study(
    "Posterior collapse and InfoVAE",
    "An autoregressive decoder can model the data without z. Does the ELBO then let z die, and "
    "do alpha, lambda and a divergence between q(z) and p(z) bring it back?",
    grid,
    figures,
    findings,
    {**KL_SPLIT, **ALIVE, "mmd2": "MMD²"},
    needs=("levels",),
    reference="ELBO",
    comparisons=(
        Comparison("alpha = 1, lambda = 10, MMD", "ELBO", "mutual_information", "I(x; z)"),
        Comparison("alpha = 1, lambda = 10, MMD", "ELBO"),
        Comparison("ELBO", "ELBO, plain decoder"),
    ),
)
