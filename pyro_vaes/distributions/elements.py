"""Independent elements of a datum, some of which may not have been seen."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

__all__ = ["Elements", "joined_shape"]


def joined_shape(*shapes: torch.Size) -> torch.Size:
    """``torch.broadcast_shapes``, which takes longer than a kernel, only where it has to decide."""
    longest = max(shapes, key=len)
    if all(shape == longest[len(longest) - len(shape) :] for shape in shapes):
        return longest
    return torch.broadcast_shapes(*shapes)


class Elements(dist.Independent):
    """Independent elements joined to one event, of which a NaN is one that was not seen.

    What was not seen is integrated out: given z the elements are independent, so that its factor in
    p(x | z) is one. Draws and means have all elements. Any distribution with an attribute
    ``stand_in`` is taken to treat NaN so.

    >>> elements = pv.distributions.Elements(dist.Normal(torch.zeros(3), 1.0), 1)
    >>> round(elements.log_prob(torch.tensor([0.0, torch.nan, torch.nan])).item(), 3)
    -0.919

    Args:
        base: the distribution of the elements.
        dims: how many of its batch dimensions make the event.
        stand_in: a value in the support of each element. It is scored in the place of what was not
            seen, and the score left out, so that no gradient is NaN.
    """

    def __init__(self, base: Any, dims: int, stand_in: float | Tensor = 0.0) -> None:
        super().__init__(base, dims)
        self.stand_in = stand_in

    def expand(self, batch_shape: Any, _instance: Any = None) -> Elements:
        shape = torch.Size(batch_shape) + self.event_shape
        return Elements(self.base_dist.expand(shape), len(self.event_shape), self.stand_in)

    def log_prob(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():  # Whole numbers have no NaN.
            return super().log_prob(value)
        seen = ~value.isnan()
        each = self.base_dist.log_prob(torch.where(seen, value, self.stand_in))
        return sum_rightmost(torch.where(seen, each, 0.0), len(self.event_shape))
