"""Levels one after another: each element's distribution depends on the elements before it.

Pyro makes the masks of such a network, but lacks the distribution, which scores a datum in one pass
and draws it element by element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vaes.distributions.levels import CategoricalLevels
from pyro_vaes.networks.masked import AutoregressiveNetwork

__all__ = ["AutoregressiveLevels"]


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
