"""Posteriors q(z | x): modules whose ``forward(x, y=None)`` returns a Pyro distribution.

The distribution has the batch shape of x and event shape ``(latent_dim,)``. The network sees levels
scaled to [-1, 1], and real values standardised by each element's centre and spread; this map is
part of the posterior and is saved with it.
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
from pyro_vaes.core.labels import append_labels, flat, takes_labels, with_labels
from pyro_vaes.distributions.transformed import FlowDistribution
from pyro_vaes.flows.recipes import FlowRecipe
from pyro_vaes.networks.mlp import Network, check_network, shape_of

__all__ = ["FlowPosterior", "FullNormalPosterior", "NormalPosterior", "Posterior"]

# The largest log of a variance, either way: in single precision a scale of zero or infinity would
# score what lies far off by NaN.
_MOST = 80.0


class _Scaled(Described):
    """A part whose networks see x through an affine map, ``(x - center) / half_range``."""

    center: Tensor
    half_range: Tensor
    event_shape: tuple[int, ...]

    def _start_scaling(self) -> None:
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("half_range", torch.ones(()))
        self._bounds: tuple[float, float] | None = None
        # Whether a range was set, by the constructor (fixed) or by a call.
        self._ranged = self._fixed = False

    @property
    def x_range(self) -> tuple[Any, Any] | None:
        """The values mapped to -1 and 1, numbers or one for each element; None if unset."""
        if self._bounds is not None or not self._ranged:
            return self._bounds
        center, half_range = self.center, self.half_range
        return center - half_range, center + half_range

    def set_x_range(self, low: Any, high: Any) -> None:
        """Maps ``low`` to -1 and ``high`` to 1 before the network.

        Args:
            low: a number, or a tensor with one for each element of a datum.
            high: the same, above ``low``.

        Raises:
            ValueError: for a range that is empty or not finite.
        """
        if not (isinstance(low, Tensor) or isinstance(high, Tensor)):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"Expected x_range with low < high, both finite; got ({low}, {high})."
                )
            self._bounds = (float(low), float(high))
            self._place(self.center.new_tensor((low + high) / 2), (high - low) / 2, ())
        else:
            low, high = torch.as_tensor(low), torch.as_tensor(high)
            # NaN passes: a rebuilt part has no values yet.
            if bool((low >= high).any() or low.isinf().any() or high.isinf().any()):
                raise ValueError(
                    "Expected x_range with low < high for each element, all finite; got others. "
                    "(An element that never varies has no range: give it one.)"
                )
            self._bounds = None
            self._place((low + high) / 2, (high - low) / 2, self.event_shape)
        self._ranged = True

    def take_x_range(self, low: float, high: float) -> None:
        """Like :meth:`set_x_range`, for the range of a likelihood, which a later one may change."""
        ranged = self._ranged
        _Scaled.set_x_range(self, low, high)
        self._ranged = ranged

    def set_units(self, center: Tensor, spread: Tensor) -> None:
        """Centres and scales each element before the network, unless a range was given.

        Args:
            center: of each element, of the shape of a datum.
            spread: the same.
        """
        if self._fixed:
            return
        if self._ranged:
            # Of the shape that a rebuilt part will have, on which no method was called.
            center, spread = self.center, self.half_range
        else:
            self._bounds = None
        self._place(center, spread, self.event_shape)

    def _place(self, center: Tensor, half_range: Any, shape: tuple[int, ...]) -> None:
        like = self.center
        self.center = center.detach().to(like).expand(shape).clone()
        self.half_range = torch.as_tensor(half_range).detach().to(like).expand(shape).clone()

    def _seen(self, x: Tensor) -> Tensor:
        """Data as the network sees them, flat: ``(*batch, prod(event_shape))``.

        What was not seen (NaN) is zero: Mattei and Frellsen, "MIWAE" (2019), section 3.
        """
        center, half_range = self.center, self.half_range
        rows = flat(x, self.event_shape).to(center.dtype)
        if center.dim():
            center, half_range = center.flatten(), half_range.flatten()
        return torch.where(rows.isnan(), 0.0, (rows - center) / half_range)


class Posterior(_Scaled):
    """A posterior amortised by a network; a subclass adds the head.

    To add a posterior, subclass it: build the head in the constructor and return the distribution
    from :meth:`from_features`.

    Args:
        network: maps the flattened datum (and one-hot label) to features.
        latent_dim: size of z.
        event_shape: shape of one datum; ``(network.in_features - num_labels,)`` if None.
        num_labels: number of labels of a conditional posterior q(z | x, y); 0 for none.
        x_range: ``(low, high)``, the values that are mapped to -1 and 1: two numbers, or two
            tensors of the shape of a datum. If None, ``VAE`` takes the map from a likelihood that
            knows the range or the units of the data; otherwise x is not scaled.
        mask: for data with gaps (NaN), for which the network is given zeros: give it also a mask,
            as many ones (seen) and zeros after the values. It then has ``in_features`` of twice
            the size of a datum, and the labels.

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
        mask: bool = False,
    ) -> None:
        super().__init__()
        positive(latent_dim=latent_dim)
        check_network(network)
        shown = 2 if mask else 1
        self.event_shape = shape_of(event_shape or ((network.in_features - num_labels) // shown,))
        expected = shown * math.prod(self.event_shape) + num_labels
        if network.in_features != expected:
            raise ValueError(
                f"Expected a network with in_features={expected} (data of shape {self.event_shape}"
                f"{' and their mask' if mask else ''}"
                f"{f' and {num_labels} labels' if num_labels else ''}); got {network.in_features}."
            )
        self.mask = mask
        self.network = cast(nn.Module, network)
        self.latent_dim = latent_dim
        self.num_labels = num_labels
        self.out_features = network.out_features
        self._start_scaling()
        if x_range is not None:
            self.set_x_range(*x_range)
            self._fixed = True

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's features ``(*batch, out_features)`` of data ``(*batch, *event_shape)``."""
        rows = self._seen(x)
        if self.mask:
            rows = torch.cat([rows, (~flat(x, self.event_shape).isnan()).to(rows)], -1)
        return cast(Tensor, self.network(append_labels(rows, y, self.num_labels)))

    def from_features(self, features: Tensor) -> Any:
        """The distribution, given the network's features."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.from_features(self.features(x, y))


def _scale(log_variance: Tensor) -> Tensor:
    return (0.5 * log_variance.clamp(-_MOST, _MOST)).exp()


class NormalPosterior(Posterior):
    """The diagonal normal q(z | x) = N(mu(x), diag(sigma(x)^2)).

    Kingma and Welling, "Auto-encoding variational Bayes" (2014), equation 9. See
    :class:`Posterior` for the arguments.

    >>> posterior = pv.NormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> q = posterior(torch.zeros(10, 64))
    >>> q.batch_shape, q.event_shape
    (torch.Size([10]), torch.Size([16]))
    """

    def __init__(
        self,
        network: Network,
        latent_dim: int,
        event_shape: Sequence[int] | None = None,
        num_labels: int = 0,
        x_range: Sequence[float] | None = None,
        mask: bool = False,
    ) -> None:
        super().__init__(network, latent_dim, event_shape, num_labels, x_range, mask)
        self.head = nn.Linear(self.out_features, 2 * latent_dim)

    def from_features(self, features: Tensor) -> Any:
        loc, log_variance = self.head(features).chunk(2, dim=-1)
        return dist.Normal(loc, _scale(log_variance)).to_event(1)


class FullNormalPosterior(Posterior):
    """The normal q(z | x) = N(mu(x), L(x) L(x)') with a full covariance.

    Kingma and Welling, "An introduction to variational autoencoders" (2019), section 2.5.1. Here
    L = diag(s) (I + N) with N strictly lower triangular: N is free of the scale of z, and starts at
    zero for every x, at the diagonal posterior. The head grows with the square of ``latent_dim``.
    See :class:`Posterior` for the arguments.

    >>> posterior = pv.FullNormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> posterior(torch.zeros(10, 64)).covariance_matrix.shape
    torch.Size([10, 16, 16])
    """

    place: Tensor

    def __init__(
        self,
        network: Network,
        latent_dim: int,
        event_shape: Sequence[int] | None = None,
        num_labels: int = 0,
        x_range: Sequence[float] | None = None,
        mask: bool = False,
    ) -> None:
        super().__init__(network, latent_dim, event_shape, num_labels, x_range, mask)
        self.head = nn.Linear(self.out_features, 2 * latent_dim)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
        # Index of each element of N in the output of its head; elsewhere that of the last, a zero.
        place = torch.full((latent_dim, latent_dim), len(rows))
        place[rows, columns] = torch.arange(len(rows))
        self.register_buffer("place", place.flatten(), persistent=False)
        self.below = nn.Linear(self.out_features, len(rows)) if len(rows) else None
        if self.below is not None:
            nn.init.zeros_(self.below.weight)
            nn.init.zeros_(self.below.bias)

    def from_features(self, features: Tensor) -> Any:
        loc, log_variance = self.head(features).chunk(2, dim=-1)
        scale = _scale(log_variance)
        scale_tril = scale.diag_embed()
        if self.below is not None:
            below = F.pad(self.below(features), (0, 1)).index_select(-1, self.place)
            below = below.unflatten(-1, (self.latent_dim, self.latent_dim))
            scale_tril = scale_tril + scale.unsqueeze(-1) * below
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


class FlowPosterior(_Scaled):
    """A posterior whose draws go through a flow, amortised over x.

    The flow's parameters depend on ``base.features(x, y)``, or on the flattened x where the base
    has no features.

    >>> base = pv.NormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> posterior = pv.FlowPosterior(base, pv.flows.iaf(16, 4))
    >>> posterior(torch.zeros(10, 64)).rsample().shape
    torch.Size([10, 16])

    Args:
        base: any posterior; kept as ``.base``.
        transforms: a recipe such as ``flows.iaf(latent_dim, 4)``.
        event_shape: shape of one datum; needed only for a base without ``event_shape``.

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
            raise ValueError("Expected event_shape for a base without one; got none.")
        self.base = base
        self.event_shape = shape_of(event_shape)
        # None: the base takes labels of an unknown number.
        unknown = None if takes_labels(base) else 0
        self.num_labels: int | None = getattr(base, "num_labels", unknown)
        self.scores: bool = transforms.scores and getattr(base, "scores", True)
        self._amortised: bool = getattr(base, "_amortised", hasattr(base, "from_features"))
        self.out_features: int = (
            cast(int, base.out_features) if self._amortised else math.prod(self.event_shape)
        )
        self.flow = transforms.build(context_dim=self.out_features)
        if not self._amortised:  # The flow sees x itself.
            self._start_scaling()

    @property
    def x_range(self) -> tuple[Any, Any] | None:
        """The range of x that the base maps to [-1, 1]; without features, the flow's own."""
        if not self._amortised:
            return super().x_range
        return cast("tuple[Any, Any] | None", getattr(self.base, "x_range", None))

    def set_x_range(self, low: Any, high: Any) -> None:
        """Maps ``low`` to -1 and ``high`` to 1 before the base's network, or the flow."""
        if not self._amortised:
            super().set_x_range(low, high)
        if hasattr(self.base, "set_x_range"):
            cast(Posterior, self.base).set_x_range(low, high)

    def take_x_range(self, low: float, high: float) -> None:
        """Passes a likelihood's range to the base, or to a flow that sees x itself."""
        if not self._amortised:
            super().take_x_range(low, high)
        for method in ("take_x_range", "set_x_range"):
            if hasattr(self.base, method):
                getattr(self.base, method)(low, high)
                break

    def set_units(self, center: Tensor, spread: Tensor) -> None:
        """Passes the units of x to the base, or to a flow that sees x itself."""
        if not self._amortised:
            super().set_units(center, spread)
        if hasattr(self.base, "set_units"):
            cast(Posterior, self.base).set_units(center, spread)

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The base's features, or the flattened x: ``(*batch, out_features)``."""
        if self._amortised:
            return cast(Posterior, self.base).features(x, y)
        return self._seen(x)

    def from_features(self, features: Tensor) -> Any:
        """The distribution, given the base's features (of a base that has them)."""
        base = cast(Posterior, self.base).from_features(features)
        return FlowDistribution(base, self.flow(features))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        features = self.features(x, y)
        if self._amortised:  # One pass of the network serves the base and the flow.
            return self.from_features(features)
        return FlowDistribution(with_labels(self.base, y, x), self.flow(features))
