"""Posterior collapse and InfoVAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, course_study
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, mean_text
from pyro_vaes.experiments.panels import NLL, Figures, dots, drawn, examples
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
                "Collapse with a strong decoder, and its cures.",
            ),
            examples(o, o.labels),
        ]
    )


def findings(o: Outcome) -> list[str]:
    """Sentences on InfoVAE."""
    reference = "ELBO"
    found = [
        "With the autoregressive decoder the ELBO leaves "
        f"{mean_text(o, reference, 'active_units', 1)} units active and "
        f"{mean_text(o, reference, 'mutual_information')} nats in z."
    ]
    plain_label = "ELBO, plain decoder"
    if plain_label in o.labels:
        found.append(
            "With the plain decoder there are "
            f"{mean_text(o, plain_label, 'active_units', 1)} active units and "
            f"{mean_text(o, plain_label, 'mutual_information')} nats; "
            f"{o.compared(reference, plain_label)}."
        )
    for label in o.labels:
        if label in (reference, plain_label):
            continue
        gap = o.differs(label, reference, "mutual_information")
        more = "more" if gap.mean > 0 else "less"
        found.append(
            f"{label}: {gap} nats {more} in z than with the ELBO, "
            f"{mean_text(o, label, 'active_units', 1)} active units, MMD² "
            f"{mean_text(o, label, 'mmd2', 4)}; {o.compared(label, reference)}."
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
