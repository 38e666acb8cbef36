"""Coupling flows by rational-quadratic splines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform
from torch.nn import functional as F

from pyro_vaes.core.checks import positive
from pyro_vaes.flows.base import CachedTransform
from pyro_vaes.flows.coupling import CouplingLayer

__all__ = ["SplineCoupling", "SplineLayer", "rational_quadratic"]


# Smallest width and height of a bin, as shares of the whole, and smallest slope at a knot. Durkan
# et al. take 1e-3; inside a flat bin the slope is its square, too small for float32 to invert.
_MIN_BIN = 1e-2
_MIN_SLOPE = 1e-2


# --- splines ------------------------------------------------------------------------------------


def rational_quadratic(
    value: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    bound: float,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """A monotonic rational-quadratic spline, or its inverse; outside [-bound, bound] the identity.

    Durkan et al., "Neural spline flows" (2019), section 3.1 and appendix A.1. The slope is 1 at
    both bounds, so that the tails join smoothly; parameters of zero make the identity.

    Args:
        value: ``(*batch)``, where to evaluate.
        widths: unnormalised widths of the K bins, ``(*batch, K)``.
        heights: unnormalised heights of the bins, ``(*batch, K)``.
        slopes: unconstrained slopes at the inner knots, ``(*batch, K - 1)``.
        bound: half the side of the square that holds the spline.
        inverse: evaluate the inverse.

    Returns:
        The image, and the log slope of the spline (not of its inverse) there, both ``(*batch)``.
    """
    width, left = _bins(widths, bound)
    height, bottom = _bins(heights, bound)
    at_zero = math.log(math.expm1(1 - _MIN_SLOPE))
    slope = F.pad(_MIN_SLOPE + F.softplus(slopes + at_zero), (1, 1), value=1.0)

    # Outside, the spline is evaluated at the bound and not used, so that no gradient is NaN.
    inside = (value > -bound) & (value < bound)
    v = value.clamp(-bound, bound)
    knots = bottom if inverse else left
    bin_index = (v.unsqueeze(-1) >= knots[..., 1:]).sum(-1, keepdim=True)
    w, x0, h, y0, s0, s1 = (
        torch.take_along_dim(t, bin_index, dim=-1).squeeze(-1)
        for t in (width, left, height, bottom, slope[..., :-1], slope[..., 1:])
    )
    steepness = h / w
    bend = s0 + s1 - 2 * steepness
    if inverse:
        rise = v - y0
        a = h * (steepness - s0) + rise * bend
        b = h * s0 - rise * bend
        c = -steepness * rise
        # Negative by rounding only.
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        t = 2 * c / (-b - root)
    else:
        t = (v - x0) / w
    t_between = t * (1 - t)
    denominator = steepness + bend * t_between
    if inverse:
        image = x0 + t * w
    else:
        image = y0 + h * (steepness * t.square() + s0 * t_between) / denominator
    numerator = s1 * t.square() + 2 * steepness * t_between + s0 * (1 - t).square()
    log_slope = 2 * steepness.log() + numerator.log() - 2 * denominator.log()
    return torch.where(inside, image, value), torch.where(inside, log_slope, 0.0)


def _bins(unnormalised: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Sizes and lower ends of the bins ``(*batch, K)``, which fill [-bound, bound] exactly."""
    count = unnormalised.shape[-1]
    shares = _MIN_BIN + (1 - count * _MIN_BIN) * unnormalised.softmax(-1)
    inner = 2 * bound * shares[..., :-1].cumsum(-1) - bound
    knots = F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    return knots.diff(dim=-1), knots[..., :-1]


class SplineCoupling(CachedTransform):
    """The first components are fixed; each other one goes through a spline computed from them.

    Durkan et al., "Neural spline flows" (2019), section 3. Pyro's own has a slope of 0.999 where it
    joins the tails of slope 1, and branches on values, which prevents recording and batching.

    Args:
        split: number of fixed components.
        network: maps them, ``(*batch, split)``, to widths, heights and slopes of all the splines,
            ``(*batch, n * K)`` twice and ``(*batch, n * (K - 1))``.
        count_bins: bins of each spline, K.
        bound: see :func:`rational_quadratic`.
    """

    def __init__(
        self, split: int, network: Callable[[Tensor], Any], count_bins: int, bound: float
    ) -> None:
        super().__init__()
        self.split, self.network = split, network
        self.count_bins, self.bound = count_bins, bound

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(x, inverse=False)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(y, inverse=True)

    def _couple(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = value[..., : self.split], value[..., self.split :]
        shape = moved.shape
        widths, heights, slopes = (p.reshape(*shape, -1) for p in self.network(kept))
        moved, log_slope = rational_quadratic(moved, widths, heights, slopes, self.bound, inverse)
        return torch.cat([kept, moved], dim=-1), log_slope.sum(-1)


class SplineLayer(CouplingLayer):
    """Spline coupling: a spline transforms each component of one half of z given the other half.

    Durkan et al., "Neural spline flows" (2019), section 3: rational-quadratic splines within
    [-bound, bound], the identity outside.
    """

    def __init__(
        self,
        dim: int,
        index: int,
        context_dim: int,
        hidden_dims: Sequence[int] | None = None,
        count_bins: int = 8,
        bound: float = 5.0,
        normalise: bool = False,
    ) -> None:
        positive(count_bins=count_bins)
        if not 2 <= count_bins <= 50 or not 0 < bound < math.inf:
            raise ValueError(
                "Expected from 2 to 50 spline bins and a finite bound above zero; got "
                f"count_bins={count_bins}, bound={bound}."
            )
        bins = (count_bins, count_bins, count_bins - 1)
        sizes = lambda moved: [moved * n for n in bins]  # noqa: E731
        super().__init__(dim, context_dim, hidden_dims, sizes, normalise)
        self.count_bins, self.bound = count_bins, float(bound)

    def couple(self, network: Callable[[Tensor], Any]) -> Transform:
        return SplineCoupling(self.split, network, self.count_bins, self.bound)
