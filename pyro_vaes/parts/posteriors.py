"""Posteriors q(z | x): modules whose ``forward(x, y=None)`` returns a Pyro distribution.

The distribution has the batch shape of x and event shape ``(latent_dim,)``. The network sees the
datum scaled to about [-1, 1]; that scaling is the posterior's own and is saved with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import flat, join, takes_labels, with_labels
from pyro_vaes.distributions.transformed import FlowDistribution
from pyro_vaes.flows.recipes import FlowRecipe
from pyro_vaes.networks.mlp import Network

__all__ = ["FlowPosterior", "FullNormalPosterior", "NormalPosterior", "Posterior"]


class Posterior(Described):
    """A posterior amortised by a network; a subclass adds the head.

    To add a posterior, subclass it: build the head in the constructor and return the distribution
    from :meth:`from_features`.

    Args:
        network: maps the flattened datum (and one-hot label) to features.
        latent_dim: size of z.
        event_shape: shape of one datum; ``(network.in_features - num_labels,)`` if None.
        num_labels: number of labels of a conditional posterior q(z | x, y); 0 for none.
        x_range: ``(low, high)``, the values that are mapped to -1 and 1. If None, ``VAE`` takes it
            from the likelihood where that knows the range of the data; otherwise x is seen as is.

    Attributes:
        scores: whether the distribution scores any z, not only its own draws.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    scores: bool = True

    def __init__(
        self,
        network: Network,
        latent_dim: int,
        event_shape: Sequence[int] | None = None,
        num_labels: int = 0,
        x_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        positive(latent_dim=latent_dim)
        self.event_shape = tuple(event_shape or (network.in_features - num_labels,))
        expected = math.prod(self.event_shape) + num_labels
        if network.in_features != expected:
            raise ValueError(
                f"Expected a network with in_features={expected} (data of shape {self.event_shape}"
                f"{f' and {num_labels} labels' if num_labels else ''}); got {network.in_features}."
            )
        self.network = cast(nn.Module, network)
        self.latent_dim = latent_dim
        self.num_labels = num_labels
        self.out_features = network.out_features
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("half_range", torch.ones(()))
        self.x_range: tuple[float, float] | None = None
        if x_range is not None:
            self.set_x_range(*x_range)

    def set_x_range(self, low: float, high: float) -> None:
        """Makes the network see ``low`` as -1 and ``high`` as 1."""
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"Expected x_range with low < high, both finite; got ({low}, {high}).")
        self.x_range = (float(low), float(high))
        cast(Tensor, self.center).fill_((low + high) / 2)
        cast(Tensor, self.half_range).fill_((high - low) / 2)

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's features ``(*batch, out_features)`` of data ``(*batch, *event_shape)``."""
        center = cast(Tensor, self.center)
        rows = flat(x, self.event_shape).to(center.dtype)
        rows = (rows - center) / cast(Tensor, self.half_range)
        return cast(Tensor, self.network(join(rows, y, self.num_labels)))

    def from_features(self, features: Tensor) -> Any:
        """The distribution, given the network's features."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.from_features(self.features(x, y))


class NormalPosterior(Posterior):
    """The diagonal normal q(z | x) = N(mu(x), diag(sigma(x)^2)) of the assignment's question 1.3.

    Kingma and Welling, "Auto-encoding variational Bayes" (2014), equation 9. See
    :class:`Posterior` for the arguments.
    """

    def __init__(
        self,
        network: Network,
        latent_dim: int,
        event_shape: Sequence[int] | None = None,
        num_labels: int = 0,
        x_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(network, latent_dim, event_shape, num_labels, x_range)
        self.head = nn.Linear(self.out_features, 2 * latent_dim)

    def from_features(self, features: Tensor) -> Any:
        loc, log_variance = self.head(features).chunk(2, dim=-1)
        return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)


class FullNormalPosterior(Posterior):
    """The normal q(z | x) = N(mu(x), L(x) L(x)') with a full covariance.

    Kingma and Welling, "An introduction to variational autoencoders" (2019), section 2.5.1. Here
    L = diag(s) (I + N) with N strictly lower triangular: N is free of the scale of z, and starts at
    zero for every x, at the diagonal posterior. The head grows with the square of ``latent_dim``.
    See :class:`Posterior` for the arguments.
    """

    def __init__(
        self,
        network: Network,
        latent_dim: int,
        event_shape: Sequence[int] | None = None,
        num_labels: int = 0,
        x_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(network, latent_dim, event_shape, num_labels, x_range)
        self.head = nn.Linear(self.out_features, 2 * latent_dim)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
        # Where each element of N stands in the output of its head; the last, a zero, elsewhere.
        place = torch.full((latent_dim, latent_dim), len(rows))
        place[rows, columns] = torch.arange(len(rows))
        self.register_buffer("place", place.flatten(), persistent=False)
        self.below = nn.Linear(self.out_features, len(rows)) if len(rows) else None
        if self.below is not None:
            nn.init.zeros_(self.below.weight)
            nn.init.zeros_(self.below.bias)

    def from_features(self, features: Tensor) -> Any:
        loc, log_variance = self.head(features).chunk(2, dim=-1)
        scale = (0.5 * log_variance).exp()
        scale_tril = scale.diag_embed()
        if self.below is not None:
            below = F.pad(self.below(features), (0, 1)).index_select(-1, cast(Tensor, self.place))
            below = below.unflatten(-1, (self.latent_dim, self.latent_dim))
            scale_tril = scale_tril + scale.unsqueeze(-1) * below
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


class FlowPosterior(Described):
    """A posterior whose draws go through a flow, amortised over x (assignment, equations 8 to 12).

    The flow's parameters depend on ``base.features(x, y)``, or on the flattened x where the base
    has no features.

    Args:
        base: any posterior; kept as ``.base``.
        transforms: a recipe such as ``flows.iaf(latent_dim, 4)``.
        event_shape: shape of one datum; needed only for a base that does not say its own.

    Attributes:
        scores: whether the distribution scores any z, not only its own draws.

    Raises:
        ValueError: if the flow cannot sample, its size differs from the base's, or the shape of a
            datum is unknown.
    """

    def __init__(
        self,
        base: nn.Module,
        transforms: FlowRecipe,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not transforms.samples:
            raise ValueError(f"Expected a flow that can sample; got {transforms!r}.")
        self.latent_dim: int = getattr(base, "latent_dim", transforms.dim)
        if self.latent_dim != transforms.dim:
            raise ValueError(
                f"Expected a flow over the base's latent_dim={self.latent_dim}; got {transforms!r}."
            )
        event_shape = event_shape or getattr(base, "event_shape", None)
        if event_shape is None:
            raise ValueError("Expected event_shape for a base that does not tell it; got none.")
        self.base = base
        self.event_shape = tuple(event_shape)
        # None: the base takes labels without telling their number.
        unknown = None if takes_labels(base) else 0
        self.num_labels: int | None = getattr(base, "num_labels", unknown)
        self.scores: bool = transforms.scores and getattr(base, "scores", True)
        self._amortised: bool = getattr(base, "_amortised", hasattr(base, "from_features"))
        self.out_features: int = (
            cast(int, base.out_features) if self._amortised else math.prod(self.event_shape)
        )
        self.flow = transforms.build(context_dim=self.out_features)

    @property
    def x_range(self) -> tuple[float, float] | None:
        """The range of x that the base maps to [-1, 1]."""
        return cast("tuple[float, float] | None", getattr(self.base, "x_range", None))

    def set_x_range(self, low: float, high: float) -> None:
        """Makes the base's network see ``low`` as -1 and ``high`` as 1."""
        if hasattr(self.base, "set_x_range"):
            cast(Posterior, self.base).set_x_range(low, high)

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The base's features, or the flattened x: ``(*batch, out_features)``."""
        if self._amortised:
            return cast(Posterior, self.base).features(x, y)
        return flat(x, self.event_shape).to(next(self.flow.parameters()).dtype)

    def from_features(self, features: Tensor) -> Any:
        """The distribution, given the base's features (of a base that has them)."""
        base = cast(Posterior, self.base).from_features(features)
        return FlowDistribution(base, self.flow(features))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        features = self.features(x, y)
        if self._amortised:  # One pass of the network serves the base and the flow.
            return self.from_features(features)
        return FlowDistribution(with_labels(self.base, y, x), self.flow(features))
