"""A normal and a Student's t whose scores keep their digits, whatever the units of the data."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["ScaledNormal", "ScaledStudentT", "student_constant"]


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


class ScaledStudentT(dist.StudentT):
    """A Student's t, likewise, that keeps its digits where it is all but a normal.

    >>> from pyro_vaes.distributions.scaled_normal import ScaledStudentT
    >>> p = ScaledStudentT(torch.tensor(1e8), torch.zeros(3), torch.ones(3))
    >>> p.log_prob(torch.zeros(3))[0]
    tensor(-0.9189)

    Args:
        df: degrees of freedom, of the last dimensions of the batch shape.
        loc: location.
        scale: positive.
        validate_args: as in PyTorch.
    """

    def __init__(
        self, df: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self._own = df  # Not repeated for each row, as its logs of gammas would be.
        super().__init__(df, loc, scale, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledStudentT:
        loc, scale = (p.expand(torch.Size(batch_shape)) for p in (self.loc, self.scale))
        return ScaledStudentT(self._own, loc, scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        square = ((value - self.loc) / self.scale).square()
        tail = 0.5 * (self._own + 1) * torch.log1p(square / self._own)
        return student_constant(self._own, 1) - self.scale.log() - tail


def student_constant(df: Tensor, count: Any) -> Tensor:
    """The log density at the centre of a Student's t of unit scale over ``count`` elements.

    In double precision: at a million degrees of freedom, to which normal data drive df, two logs of
    gammas of six million cancel to seven.
    """
    wide = df if df.device.type == "mps" else df.double()  # Metal has no float64.
    gammas = torch.lgamma((wide + count) / 2) - torch.lgamma(wide / 2)
    return (gammas - 0.5 * count * (wide * math.pi).log()).to(df.dtype)
