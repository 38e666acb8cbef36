"""Likelihoods p(x | z): modules whose ``forward(z, y=None)`` returns a Pyro distribution.

The distribution has the batch shape of z and the event shape of one datum, and scores the datum as
it is: levels stay levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.distributions import CategoricalLevels
from pyro_vaes.networks import Network, join, positive
from pyro_vaes.spec import Described

__all__ = ["BernoulliLikelihood", "CategoricalLikelihood", "Likelihood", "NormalLikelihood"]


class Likelihood(Described):
    """A likelihood of independent elements, whose parameters a network computes from z.

    To add a likelihood, subclass it: say how many parameters an element has and return the
    distribution of the elements from :meth:`elements`.

    Args:
        network: maps z (and the one-hot label) to features; ``in_features`` is
            ``latent_dim + num_labels``.
        event_shape: shape of one datum.
        num_labels: number of labels of a conditional likelihood p(x | z, y); 0 for none.
        parameters_per_element: outputs of the head for each element of the datum.

    Attributes:
        x_range: ``(low, high)`` where the data are bounded, None otherwise.
    """

    x_range: tuple[float, float] | None = None

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        parameters_per_element: int = 1,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        positive(**{f"event_shape[{i}]": size for i, size in enumerate(self.event_shape)})
        self.latent_dim = network.in_features - num_labels
        if self.latent_dim < 1:
            raise ValueError(
                f"Expected a network with in_features of latent_dim + {num_labels} labels; "
                f"got {network.in_features}."
            )
        self.num_labels = num_labels
        self.network = cast(nn.Module, network)
        self.parameters_per_element = parameters_per_element
        self.head = nn.Linear(
            network.out_features, math.prod(self.event_shape) * parameters_per_element
        )

    def elements(self, parameters: Tensor) -> Any:
        """The distribution of the elements, not yet joined to one event.

        Args:
            parameters: ``(*batch, *event_shape, parameters_per_element)``.
        """
        raise NotImplementedError

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        outputs = self.head(self.network(join(z, y, self.num_labels)))
        shape = (*outputs.shape[:-1], *self.event_shape, self.parameters_per_element)
        return self.elements(outputs.reshape(shape)).to_event(len(self.event_shape))


class BernoulliLikelihood(Likelihood):
    """Independent binary elements; see :class:`Likelihood` for the arguments."""

    x_range = (0.0, 1.0)

    def __init__(self, network: Network, event_shape: Sequence[int], num_labels: int = 0) -> None:
        super().__init__(network, event_shape, num_labels)

    def elements(self, parameters: Tensor) -> Any:
        return dist.Bernoulli(logits=parameters.squeeze(-1))


class LevelLikelihood(Likelihood):
    """Elements that take the levels ``0..num_levels - 1``: the shared room of such likelihoods."""

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
    """A free probability for each level of each element, the course's choice for 17 pixel levels.

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
        return CategoricalLevels(logits=parameters)


class NormalLikelihood(Likelihood):
    """Real elements with a learned scale, one for each element, shared by all data.

    Args:
        network: see :class:`Likelihood`.
        event_shape: see :class:`Likelihood`.
        num_labels: see :class:`Likelihood`.
        initial_scale: where the scales start, in the units of the data.
        min_scale: a floor under the scales: without one, an element that never varies would drive
            its density, and the likelihood, to infinity.
    """

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
        start = math.log(initial_scale - min_scale)
        self.log_scale = nn.Parameter(torch.full(self.event_shape, start))

    def elements(self, parameters: Tensor) -> Any:
        return dist.Normal(parameters.squeeze(-1), self.min_scale + self.log_scale.exp())
