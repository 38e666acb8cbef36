"""Objectives, and SVI that runs them fast."""

from pyro_vaes.inference.divergences import MMD, Adversarial, Divergence
from pyro_vaes.inference.elbo import (
    ELBO,
    BetaELBO,
    CapacityRamp,
    CyclicalWeight,
    NotReparameterizedError,
)
from pyro_vaes.inference.info import BetaTCELBO, InfoELBO
from pyro_vaes.inference.many_samples import ManySamples
from pyro_vaes.inference.svi import FastSVI

__all__ = [
    "ELBO",
    "MMD",
    "Adversarial",
    "BetaELBO",
    "BetaTCELBO",
    "CapacityRamp",
    "CyclicalWeight",
    "Divergence",
    "FastSVI",
    "InfoELBO",
    "ManySamples",
    "NotReparameterizedError",
]
