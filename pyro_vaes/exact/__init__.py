"""Models whose log-likelihood is known, for checks."""

from pyro_vaes.exact.discrete import Discrete
from pyro_vaes.exact.linear_gaussian import (
    Identity,
    LinearGaussian,
    LinearPosterior,
    diagonal_posterior,
)
from pyro_vaes.exact.quadrature import Quadrature

__all__ = [
    "Discrete",
    "Identity",
    "LinearGaussian",
    "LinearPosterior",
    "Quadrature",
    "diagonal_posterior",
]
