"""Likelihoods p(x | z): modules whose ``forward(z, y=None)`` returns a Pyro distribution.

The distribution has the batch shape of z and the event shape of one datum, and scores data in their
own units: levels stay levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import append_labels
from pyro_vaes.distributions.autoregressive import AutoregressiveLevels
from pyro_vaes.distributions.elements import Elements
from pyro_vaes.distributions.levels import (
    CategoricalLevels,
    DiscretizedLogisticLevels,
    OrdinalLevels,
)
from pyro_vaes.distributions.scaled_normal import ScaledNormal
from pyro_vaes.networks.masked import AutoregressiveNetwork
from pyro_vaes.networks.mlp import Network, check_network, shape_of
from pyro_vaes.parts.units import ElementUnits

__all__ = [
    "AutoregressiveLikelihood",
    "BernoulliLikelihood",
    "BetaBinomialLikelihood",
    "CategoricalLikelihood",
    "DiscretizedLogisticLikelihood",
    "LevelLikelihood",
    "Likelihood",
    "NormalLikelihood",
    "OrdinalLikelihood",
]


class PixelHead(nn.Module):
    """The same linear map from a pixel's features to its parameters, and a bias for each pixel.

    Args:
        feature_shape: ``(features, height, width)`` of the network's map.
        event_shape: shape of a datum of ``channels * height * width`` elements.
        parameters_per_element: outputs for each element.
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        event_shape: Sequence[int],
        parameters_per_element: int,
    ) -> None:
        super().__init__()
        self.feature_shape = tuple(feature_shape)
        self.parameters_per_element = parameters_per_element
        pixels = math.prod(self.feature_shape[1:])
        self.channels, rest = divmod(math.prod(event_shape), pixels)
        if rest or not self.channels:
            raise ValueError(
                f"Expected data of one or more channels of {pixels} pixels for a network with "
                f"features {self.feature_shape}; got data of shape {tuple(event_shape)}."
            )
        self.map = nn.Linear(
            self.feature_shape[0], self.channels * parameters_per_element, bias=False
        )
        self.bias = nn.Parameter(torch.zeros(self.channels, pixels, parameters_per_element))

    def forward(self, features: Tensor) -> Tensor:
        rows = features.reshape(-1, self.feature_shape[0], self.bias.shape[1]).mT
        shape = (-1, self.bias.shape[1], self.channels, self.parameters_per_element)
        outputs = self.map(rows).reshape(shape).transpose(1, 2) + self.bias
        return cast(Tensor, outputs).reshape(*features.shape[:-1], self.bias.numel())


class Likelihood(Described):
    """A likelihood of independent elements, whose parameters a network computes from z.

    To add a likelihood, subclass it: set the number of parameters of an element and return the
    distribution of the elements from :meth:`elements`. An element that is NaN was not seen, and is
    left out of log p(x | z); see :class:`~pyro_vaes.distributions.elements.Elements`.

    Args:
        network: maps z (and the one-hot label) to features; ``in_features`` is
            ``latent_dim + num_labels``.
        event_shape: shape of one datum.
        num_labels: number of labels of a conditional likelihood p(x | z, y); 0 for none.
        parameters_per_element: outputs of the head for each element of the datum.

    Attributes:
        x_range: ``(low, high)`` where the data are bounded, None otherwise.
        stand_in: a value that every element may have.
    """

    x_range: tuple[float, float] | None = None
    stand_in: float | Tensor = 0.0

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        parameters_per_element: int = 1,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        check_network(network)
        self.latent_dim = network.in_features - num_labels
        if self.latent_dim < 1:
            raise ValueError(
                f"Expected a network with in_features of latent_dim + {num_labels} labels; "
                f"got {network.in_features}."
            )
        self.num_labels = num_labels
        self.network = cast(nn.Module, network)
        self.parameters_per_element = parameters_per_element
        feature_shape = getattr(network, "feature_shape", None)
        self.head: nn.Module = (
            nn.Linear(network.out_features, math.prod(self.event_shape) * parameters_per_element)
            if feature_shape is None
            else PixelHead(feature_shape, self.event_shape, parameters_per_element)
        )

    def elements(self, parameters: Tensor) -> Any:
        """The distribution of the elements, not yet joined to one event.

        Args:
            parameters: ``(*batch, *event_shape, parameters_per_element)``.
        """
        raise NotImplementedError

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        outputs = self.head(self.network(append_labels(z, y, self.num_labels)))
        shape = (*outputs.shape[:-1], *self.event_shape, self.parameters_per_element)
        elements = self.elements(outputs.reshape(shape))
        return Elements(elements, len(self.event_shape), self.stand_in)


class BernoulliLikelihood(Likelihood):
    """Independent binary elements.

    See :class:`Likelihood` for the arguments.

    >>> likelihood = pv.BernoulliLikelihood(pv.MLP(16, [128]), event_shape=(784,))
    >>> likelihood(torch.zeros(10, 16)).mean.shape
    torch.Size([10, 784])
    """

    x_range = (0.0, 1.0)

    def __init__(self, network: Network, event_shape: Sequence[int], num_labels: int = 0) -> None:
        super().__init__(network, event_shape, num_labels)

    def elements(self, parameters: Tensor) -> Any:
        return dist.Bernoulli(logits=parameters.squeeze(-1))


class LevelLikelihood(Likelihood):
    """Base of likelihoods whose elements take the levels ``0..num_levels - 1``."""

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_levels: int,
        num_labels: int = 0,
        parameters_per_element: int = 1,
    ) -> None:
        positive(num_levels=num_levels)
        if num_levels < 2:
            raise ValueError(f"Expected num_levels of at least 2; got {num_levels}.")
        super().__init__(network, event_shape, num_labels, parameters_per_element)
        self.num_levels = num_levels
        self.x_range = (0.0, float(num_levels - 1))


class CategoricalLikelihood(LevelLikelihood):
    """A free probability for each level of each element.

    >>> likelihood = pv.CategoricalLikelihood(pv.MLP(16, [128]), (64,), num_levels=17)
    >>> likelihood(torch.zeros(10, 16)).log_prob(torch.zeros(10, 64)).shape
    torch.Size([10])

    Args:
        network: see :class:`Likelihood`.
        event_shape: see :class:`Likelihood`.
        num_levels: number of levels.
        num_labels: see :class:`Likelihood`.
    """

    def __init__(
        self, network: Network, event_shape: Sequence[int], num_levels: int, num_labels: int = 0
    ) -> None:
        super().__init__(network, event_shape, num_levels, num_labels, num_levels)

    def elements(self, parameters: Tensor) -> Any:
        return CategoricalLevels(parameters)


class OrdinalLikelihood(LevelLikelihood):
    """Ordered levels: a location for each element, and learned thresholds between its levels.

    P(x <= l) = sigmoid(sharpness (threshold_l - location)), with one row of increasing thresholds
    for each element, shared by all data; see
    :class:`~pyro_vaes.distributions.levels.OrdinalLevels`.

    >>> likelihood = pv.OrdinalLikelihood(pv.MLP(16, [128]), (64,), num_levels=17)
    >>> likelihood.initialize_from(pv.load_data("digits").train.x)
    >>> likelihood.thresholds.shape, likelihood(torch.zeros(10, 16)).event_shape
    (torch.Size([64, 16]), torch.Size([64]))

    Args:
        network: see :class:`Likelihood`.
        event_shape: see :class:`Likelihood`.
        num_levels: number of levels.
        num_labels: see :class:`Likelihood`.
        sharpness: whether the network also computes a sharpness for each element.
    """

    # Least distance of thresholds: at zero the level between them would have probability zero.
    _MIN_GAP = 1e-4

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_levels: int,
        num_labels: int = 0,
        sharpness: bool = False,
    ) -> None:
        super().__init__(network, event_shape, num_levels, num_labels, 2 if sharpness else 1)
        self.sharpness = sharpness
        self.first = nn.Parameter(torch.empty(*self.event_shape, 1))
        self.gaps = nn.Parameter(torch.empty(*self.event_shape, num_levels - 2))
        self._set_thresholds(torch.linspace(-3, 3, num_levels - 1).expand(*self.event_shape, -1))

    @torch.no_grad()
    def initialize_from(self, x: Tensor) -> None:
        """Sets the thresholds to each element's frequencies of levels in ``x``."""
        table = x.flatten(1)
        counts = torch.zeros(table.shape[1], self.num_levels, dtype=torch.long, device=x.device)
        for rows in table.split(1024):
            seen = ~rows.T.isnan()
            level = torch.where(seen, rows.T, 0).ceil().clamp(0, self.num_levels - 1).long()
            counts.scatter_add_(1, level, seen.long())
        below = counts.cumsum(1)[:, :-1].reshape(*self.event_shape, -1)
        # Half a datum is added on either side, since a level that never occurs is not impossible.
        total = counts.sum(1).reshape(*self.event_shape, 1)
        self._set_thresholds(torch.logit((below + 0.5) / (total + 1)))

    @torch.no_grad()
    def _set_thresholds(self, thresholds: Tensor) -> None:
        gaps = thresholds.diff(dim=-1).clamp(min=1e-2) - self._MIN_GAP
        self.first.copy_(thresholds[..., :1])
        self.gaps.copy_(gaps + torch.log(-torch.expm1(-gaps)))  # the inverse of softplus

    @property
    def thresholds(self) -> Tensor:
        """The thresholds, ``(*event_shape, num_levels - 1)``, increasing."""
        gaps = functional.softplus(self.gaps) + self._MIN_GAP
        return torch.cat([self.first, self.first + gaps.cumsum(-1)], dim=-1)

    def elements(self, parameters: Tensor) -> Any:
        sharpness = parameters[..., 1].exp() if self.sharpness else None
        return OrdinalLevels(parameters[..., 0], self.thresholds, sharpness)


class DiscretizedLogisticLikelihood(LevelLikelihood):
    """A logistic density cut half way between the levels, with location and scale per element.

    Salimans et al., "PixelCNN++" (2017), equation 2, with one component. See
    :class:`CategoricalLikelihood` for the arguments.

    >>> likelihood = pv.DiscretizedLogisticLikelihood(pv.MLP(16, [128]), (64,), num_levels=17)
    >>> likelihood(torch.zeros(10, 16)).sample().shape
    torch.Size([10, 64])
    """

    def __init__(
        self, network: Network, event_shape: Sequence[int], num_levels: int, num_labels: int = 0
    ) -> None:
        super().__init__(network, event_shape, num_levels, num_labels, 2)

    def elements(self, parameters: Tensor) -> Any:
        # In units of half the range, so that an untrained network's outputs are sensible.
        half = (self.num_levels - 1) / 2
        location = half * (1 + parameters[..., 0])
        scale = half * (parameters[..., 1] - 1).exp() + 1e-3
        return DiscretizedLogisticLevels(location, scale, self.num_levels)


class BetaBinomialLikelihood(LevelLikelihood):
    """Successes in ``num_levels - 1`` trials, whose chance is itself beta distributed.

    See :class:`CategoricalLikelihood` for the arguments.

    >>> likelihood = pv.BetaBinomialLikelihood(pv.MLP(16, [128]), (64,), num_levels=17)
    >>> likelihood(torch.zeros(10, 16)).mean.shape
    torch.Size([10, 64])
    """

    def __init__(
        self, network: Network, event_shape: Sequence[int], num_levels: int, num_labels: int = 0
    ) -> None:
        super().__init__(network, event_shape, num_levels, num_labels, 2)

    def elements(self, parameters: Tensor) -> Any:
        ones, zeros = (functional.softplus(parameters) + 1e-4).unbind(-1)
        return dist.BetaBinomial(ones, zeros, total_count=self.num_levels - 1)


class AutoregressiveLikelihood(LevelLikelihood):
    """Autoregressive levels: each element depends on z and all elements before it.

    p(x | z) = prod_i p(x_i | x_<i, z), elements in the order of the flat datum, by a masked network
    (Germain et al., "MADE: masked autoencoder for distribution estimation", 2015) on top of
    :class:`CategoricalLikelihood`, which it equals where the masked network's outputs are zero. So
    strong a decoder can ignore z, and then the posterior collapses (Bowman et al. 2016). It scores
    in one pass and draws in one pass per element; its mean is estimated from draws.

    >>> likelihood = pv.AutoregressiveLikelihood(pv.MLP(16, [128]), (64,), num_levels=17)
    >>> likelihood(torch.zeros(10, 16)).log_prob(torch.zeros(10, 64)).shape
    torch.Size([10])

    Args:
        network: see :class:`Likelihood`; its features are the masked network's context.
        event_shape: see :class:`Likelihood`.
        num_levels: number of levels.
        num_labels: see :class:`Likelihood`.
        hidden_dims: hidden layers of the masked network, each at least as large as the datum; one
            of 256 (or the size of the datum, if larger) if None.
        activation: of the masked network, one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.
    """

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_levels: int,
        num_labels: int = 0,
        hidden_dims: Sequence[int] | None = None,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__(network, event_shape, num_levels, num_labels, num_levels)
        size = math.prod(self.event_shape)
        hidden_dims = [max(256, size)] if hidden_dims is None else hidden_dims
        self.masked = AutoregressiveNetwork(
            size, num_levels, network.out_features, hidden_dims, activation
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        features = self.network(append_labels(z, y, self.num_labels))
        logits = self.head(features).unflatten(-1, (-1, self.num_levels))
        return AutoregressiveLevels(logits, features, self.masked, self.event_shape)


class NormalLikelihood(ElementUnits, Likelihood):
    """Real elements with a learned scale, one for each element, shared by all data.

    The network works in each element's own centre and spread, see ``initialize_from``; scores,
    means and draws are in the units of the data. So a change of units changes log p(x) by the log
    of the unit only, after training too.

    >>> likelihood = pv.NormalLikelihood(pv.MLP(2, [8]), event_shape=(3,))
    >>> likelihood.initialize_from(1000 + torch.randn(50, 3))
    >>> likelihood(torch.zeros(10, 2)).mean.shape
    torch.Size([10, 3])

    Args:
        network: see :class:`Likelihood`.
        event_shape: see :class:`Likelihood`.
        num_labels: see :class:`Likelihood`.
        initial_scale: initial scale, in spreads of each element; in the units of the data before
            ``initialize_from`` is called.
        min_scale: smallest scale, in the same units: without it, the density of an element that
            never varies, and so the likelihood, would grow to infinity.
    """

    center: Tensor
    spread: Tensor

    # The log of a scale moves ten times as fast as its parameter: at a network's step size a scale
    # would otherwise take thousands of steps to fall tenfold.
    PACE = 10.0

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        initial_scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(network, event_shape, num_labels)
        if not 0 < min_scale < initial_scale < math.inf:
            raise ValueError(
                f"Expected 0 < min_scale < initial_scale; got {min_scale} and {initial_scale}."
            )
        self.min_scale = min_scale
        start = math.log(initial_scale - min_scale) / self.PACE
        self.log_scale = nn.Parameter(torch.full(self.event_shape, start))
        self._start_units()

    @property
    def scale(self) -> Tensor:
        """The standard deviation of each element given z, in the units of the data."""
        learned = (self.PACE * self.log_scale).exp()
        return self.spread * (self.min_scale + learned)

    def elements(self, parameters: Tensor) -> Any:
        center, spread = self.units
        return ScaledNormal(center + spread * parameters.squeeze(-1), self.scale)
