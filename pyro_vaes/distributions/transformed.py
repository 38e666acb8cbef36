"""Transformed distributions whose flow may score only its own draws."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vaes.distributions.elements import joined_shape

__all__ = ["FlowDistribution"]


class FlowDistribution(dist.TransformedDistribution):
    """A base pushed through transforms that may depend on a context of the base's batch shape.

    Pyro's conditional networks cannot broadcast a value against their context, so a value of fewer
    dimensions is expanded before it is scored. One of full shape stays the same object, by which a
    flow without an inverse recognises its own draws.

    >>> from pyro_vaes.distributions import FlowDistribution
    >>> base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
    >>> q = FlowDistribution(base, pv.flows.planar(4, 2).build()())
    >>> q.log_prob(q.rsample((10,))).shape
    torch.Size([10])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        shape = joined_shape(value.shape, self.batch_shape + self.event_shape)
        return super().log_prob(value if value.shape == shape else value.expand(shape))
