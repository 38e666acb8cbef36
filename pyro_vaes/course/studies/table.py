"""The studies of the assignment by name, in its order."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_vaes.course.studies import (
    beta,
    components,
    conditional,
    flow_priors,
    info,
    likelihoods,
    posteriors,
    priors,
    vae,
)
from pyro_vaes.experiments.study import Study

__all__ = ["STUDIES"]

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
