"""A normal whose score does not overflow, whatever the units of the data."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor

__all__ = ["ScaledNormal"]


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class ScaledNormal(dist.Normal):
    """A normal scored by (x - loc) / scale, so that no square overflows, whatever the units.

    Multiplying data, locations and scales by a power of two changes no bit of that ratio.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ratio = (value - self.loc) / self.scale
        return -0.5 * ratio.square() - self.scale.log() - _HALF_LOG_2PI
