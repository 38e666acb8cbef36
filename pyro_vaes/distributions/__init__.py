"""Distributions that Pyro lacks or gets wrong."""

from pyro_vaes.distributions.autoregressive import (
    AutoregressiveLevels,
    SharedAutoregressiveNormal,
)
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.distributions.correlated import (
    Given,
    Shaped,
    SharedLowRankNormal,
    SharedNormal,
    SharedStudentT,
)
from pyro_vaes.distributions.counts import Exposed, NegativeBinomial, Poisson, ZeroInflated
from pyro_vaes.distributions.elements import Elements
from pyro_vaes.distributions.levels import (
    CategoricalLevels,
    DiscretizedLogisticLevels,
    OrdinalLevels,
)
from pyro_vaes.distributions.mixtures import Mixture, VampDistribution
from pyro_vaes.distributions.powers import Powered
from pyro_vaes.distributions.transformed import FlowDistribution

__all__ = [
    "AutoregressiveLevels",
    "CategoricalLevels",
    "Chain",
    "DiscretizedLogisticLevels",
    "Elements",
    "Exposed",
    "FlowDistribution",
    "Given",
    "Mixture",
    "NegativeBinomial",
    "OrdinalLevels",
    "Poisson",
    "Powered",
    "Shaped",
    "SharedAutoregressiveNormal",
    "SharedLowRankNormal",
    "SharedNormal",
    "SharedStudentT",
    "VampDistribution",
    "ZeroInflated",
]
