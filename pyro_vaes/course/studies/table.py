"""The studies of the assignment by name, in its order."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_vaes.course.studies import (
    beta,
    components,
    conditional,
    depth,
    flow_priors,
    info,
    likelihoods,
    posteriors,
    priors,
    vae,
)
from pyro_vaes.experiments.study import Study

__all__ = ["BEYOND", "QUESTIONS", "STUDIES"]

STUDIES: Mapping[str, Study] = {
    "vae": vae.STUDY,
    "beta": beta.STUDY,
    "conditional": conditional.STUDY,
    "priors": priors.STUDY,
    "likelihoods": likelihoods.STUDY,
    "components": components.STUDY,
    "flow_priors": flow_priors.STUDY,
    "posteriors": posteriors.STUDY,
    "info": info.STUDY,
}

BEYOND: Mapping[str, Study] = {"depth": depth.STUDY}
"""Studies beyond the assignment, which neither ``reproduce`` nor the report has."""

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "5.1": ("vae",),
    "5.2": ("beta",),
    "5.3": ("conditional",),
    "5.4": ("priors", "components"),
    "5.5": ("flow_priors",),
}
"""The studies that answer each programming question of the assignment."""
