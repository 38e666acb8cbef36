"""Elements one after another: the distribution of each depends on the elements before it.

Of levels by a network: Pyro makes the masks of such a network, but lacks the distribution, which
scores a datum in one pass and draws it element by element. Of real elements by a linear function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vaes.distributions.correlated import _GappyFactor
from pyro_vaes.distributions.levels import CategoricalLevels
from pyro_vaes.networks.masked import AutoregressiveNetwork

__all__ = ["AutoregressiveLevels", "SharedAutoregressiveNormal"]


# Rows drawn together, which fit into the cache and bound the memory.
_ROWS = 2048


class AutoregressiveLevels(dist.TorchDistribution):
    """p(x) = prod_i p(x_i | x_<i) over levels ``0..L-1``, elements in the order of the flat datum.

    Without a mean, which has no closed form.

    >>> from pyro_vaes.distributions import AutoregressiveLevels
    >>> from pyro_vaes.networks import AutoregressiveNetwork
    >>> network = AutoregressiveNetwork(3, num_levels=5, context_dim=8, hidden_dims=[16])
    >>> p = AutoregressiveLevels(torch.zeros(10, 3, 5), torch.zeros(10, 8), network, (3,))
    >>> p.log_prob(p.sample()).shape
    torch.Size([10])

    Args:
        logits: ``(*batch, D, L)``, to which the network adds its output on the previous elements.
        context: ``(*batch, context_dim)``.
        network: the network; D is the product of ``event_shape``.
        event_shape: shape of a datum.
        validate_args: as in PyTorch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        logits: Tensor,
        context: Tensor,
        network: AutoregressiveNetwork,
        event_shape: Sequence[int],
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.seen, self.network = logits, network.context(context), network
        self.num_levels = logits.shape[-1]
        super().__init__(logits.shape[:-2], Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:
        """The levels, of each element."""
        levels = constraints.integer_interval(0, self.num_levels - 1)
        return constraints.independent(levels, len(self.event_shape))  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveLevels:
        """The same parameters under a larger batch shape, without copies."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def _scaled(self, levels: Tensor) -> Tensor:
        return levels.to(self.logits.dtype) * (2 / (self.num_levels - 1)) - 1

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.reshape(*value.shape[: value.dim() - len(self.event_shape)], -1)
        # Values that many draws of z share pass the network once; only the sum is large.
        logits = self.logits + self.network(self._scaled(x), self.seen)
        log_prob = CategoricalLevels(logits).log_prob(x.expand(logits.shape[:-1])).sum(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            batch_shape = self.logits.shape[:-2]
            shape = (*sample_shape, *self.batch_shape)
            # Draws refer to their row of parameters, so that these are not repeated.
            rows = torch.arange(batch_shape.numel(), device=self.logits.device)
            rows = rows.reshape(batch_shape).expand(shape).reshape(-1)
            draws = torch.cat([self._draw(some) for some in rows.split(_ROWS)])
            return draws.reshape(*shape, *self.event_shape)

    def _draw(self, rows: Tensor) -> Tensor:
        """Draws one flat datum ``(n, D)`` for each row of the parameters."""
        network, elements = self.network, math.prod(self.event_shape)
        first, last, direct = (
            layer.weight * layer.mask for layer in (network.first, network.last, network.direct)
        )
        last, direct = (weight.unflatten(0, (elements, -1)) for weight in (last, direct))
        logits = self.logits.reshape(-1, elements, self.num_levels)
        # The first layer's sum over the elements so far, to which each new one is added.
        seen = self.seen.reshape(-1, self.seen.shape[-1])[rows]
        x = self.logits.new_zeros(len(rows), elements)
        scaled = torch.zeros_like(x)
        for i in range(elements):
            own = logits[rows, i] + network.inner(seen) @ last[i].mT + scaled @ direct[i].mT
            x[:, i] = CategoricalLevels(own).sample()
            scaled[:, i] = self._scaled(x[:, i])
            seen.addr_(scaled[:, i], first[:, i])
        return x


class SharedAutoregressiveNormal(_GappyFactor, dist.TorchDistribution):
    """A normal whose noise is autoregressive over time, the same for all rows, NaN not seen.

    In units of its scale, an element's noise is a linear function of the ``p`` before it plus an
    innovation of unit variance, and stationary: the first ones have their marginal. So the density
    is exact in O(D p). Coefficients follow from partial autocorrelations, any in (-1, 1), by
    Levinson's and Durbin's recursion: Barndorff-Nielsen and Schou, "On the parametrization of
    autoregressive models by partial autocorrelations" (J. Multivariate Analysis 3, 1973).

    >>> loc, scale, partial = torch.zeros(9, 4), torch.ones(4), torch.tensor([0.5])
    >>> normal = pv.distributions.SharedAutoregressiveNormal(loc, scale, partial)
    >>> round(normal.log_prob(torch.tensor([1.0, 0.5, 0.25, torch.nan]))[0].item(), 3)
    -3.276

    Args:
        loc: ``(*batch, D)``.
        scale: of the innovation of each element, ``(D,)``.
        partial: partial autocorrelations at lags 1 to p, ``(p,)``.
        length: of a series, more than p; D is one or several of them. None for D.
        gaps: whether values have gaps; None where it is not known.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        partial: Tensor,
        length: int | None = None,
        gaps: bool | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.partial, self.gaps = loc, scale, partial, gaps
        self.length = length or loc.shape[-1]
        # The variances of innovations fall from 1, that of the first, to that of all others.
        left = torch.cat([partial.new_zeros(1), torch.log1p(-partial.square()).cumsum(0)])
        self._wide = (0.5 * (left[:-1] - left[-1])).exp()
        self._sd = torch.exp(-0.5 * left[-1])
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def coefficients(self) -> Tensor:
        """Of the elements 1 to p before each element of a series, ``(length, p)``."""
        order, rows, last = len(self.partial), [], self.partial.new_zeros(0)
        for partial in self.partial.unbind():
            rows.append(torch.cat([last, last.new_zeros(order - len(last))]))
            last = torch.cat([last - partial * last.flip(0), partial.unsqueeze(0)])
        starts = (row.unsqueeze(0) for row in rows)
        return torch.cat([*starts, last.expand(self.length - order, order)])

    @property
    def _widths(self) -> Tensor:
        """The standard deviations of a series' innovations in units of the scale, ``(length,)``."""
        return torch.cat([self._wide, self._wide.new_ones(self.length - len(self._wide))])

    def _series(self, rows: Tensor) -> Tensor:
        """Rows ``(*batch, D)`` as series ``(*batch, D / length, length)``."""
        return rows.unflatten(-1, (-1, self.length))

    def expand(self, batch_shape: Any, _instance: Any = None) -> SharedAutoregressiveNormal:
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return SharedAutoregressiveNormal(loc, self.scale, self.partial, self.length, self.gaps)

    @property
    def mean(self) -> Tensor:
        """The centres."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Of each element by itself."""
        return (self.scale * self._sd).square().expand(self.loc.shape)

    def _whole(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        noise = self._series((value - self.loc) / self.scale)
        left = noise
        for lag, weights in enumerate(self.coefficients.unbind(-1), 1):
            before = torch.nn.functional.pad(noise[..., :-lag], (lag, 0))
            left = left - weights * before
        square = (left / self._widths).square().sum((-2, -1))
        log_det = (
            self.scale.log().sum() + self._series(self.scale).shape[0] * self._wide.log().sum()
        )
        return self._scored(square, log_det, square.new_tensor(self.loc.shape[-1]))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * self._followed(noise)

    def _followed(self, noise: Tensor) -> Tensor:
        """Series, joined to rows, from unit noise ``(*batch, D)`` that drives them."""
        driving, weights = self._series(noise) * self._widths, self.coefficients
        found: list[Tensor] = []
        for t in range(self.length):
            before = found[: -len(self.partial) - 1 : -1]  # The last comes first.
            pairs = zip(weights[t], before, strict=False)
            found.append(sum((w * x for w, x in pairs), driving[..., t]))
        return torch.stack(found, -1).flatten(-2)

    def _noise(self, batch_shape: Size) -> Tensor:
        noise = torch.randn(*batch_shape, self.loc.shape[-1]).to(self.loc)
        return self.scale * self._followed(noise)

    @property
    def _unbroadcasted_scale_tril(self) -> Tensor:  # type: ignore[override]
        """What unit noise is multiplied by, ``(D, D)``: needed where there are gaps."""
        unit = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        return self.scale.unsqueeze(-1) * self._followed(unit).mT
