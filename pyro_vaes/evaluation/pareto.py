"""The Pareto k-hat: whether an importance-weighted estimate has enough draws to be trusted.

The largest weights of an importance sampler follow a generalised Pareto distribution, whose shape
k determines how many of their moments exist. Over 0.7 the estimate converges so slowly that its
spread does not show its error (Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance
sampling", JMLR 2024). The fit is the one of Zhang and Stephens, "A new and efficient estimation
method for the generalized Pareto distribution" (Technometrics 2009), for all data at once and from
the largest weights alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["MIN_SAMPLES", "pareto_k", "reliable_k", "tail_size"]


# A tail of fewer than five weights has no shape; 21 draws are the fewest with such a tail.
_MIN_TAIL = 5
MIN_SAMPLES = 21

# Log weights this close to each other are equal up to rounding, and have no tail.
_EQUAL = 1e-8

# The weakly informative prior of Vehtari et al. (2024), appendix C: ten draws' worth of k = 0.5.
_PRIOR_COUNT, _PRIOR_K = 10, 0.5


def tail_size(num_samples: int) -> int:
    """How many of S weights form the tail: the smaller of S / 5 and 3 sqrt(S), rounded up."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def reliable_k(num_samples: int) -> float:
    """The k-hat over which an estimate from S weights is not to be trusted.

    The smaller of 1 - 1 / log10 S and 0.7: Vehtari et al. (2024), section 3.2.4.
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def pareto_k(largest: Tensor) -> Tensor:
    """Fits a generalised Pareto distribution to the tail of each datum's weights.

    Args:
        largest: the largest log weights in descending order, ``(*batch, M + 1)``, where M is the
            :func:`tail_size`; the last one is the threshold over which the tail begins.

    Returns:
        k-hat ``(*batch)``, float64: infinite where a few weights dominate, minus infinite where
        all are equal.
    """
    largest = largest.double()
    peak, cutoff = largest[..., :1], largest[..., -1:]
    excess = (largest[..., :-1] - peak).exp() - (cutoff - peak).exp()
    # Weights at the threshold (ties, underflow) are no part of the tail.
    inside = excess > 0
    count = inside.sum(-1)
    shape = _fit(excess.where(inside, 0.0), count.clamp(min=1), largest.shape[-1] - 1)
    few = torch.full_like(shape, math.inf)
    few[(peak - cutoff).squeeze(-1) < _EQUAL] = -math.inf
    enough = (count >= _MIN_TAIL) & few.isposinf() & shape.isfinite()
    return shape.where(enough, few)


def _fit(excess: Tensor, count: Tensor, size: int) -> Tensor:
    """The posterior mean of the shape, Zhang and Stephens (2009), equations 7 to 9.

    Args:
        excess: ``(*batch, M)``, descending, padded with zeros.
        count: how many are not padding, ``(*batch)``.
        size: M, from which the number of points of the grid follows.
    """

    def mean_log(theta: Tensor) -> Tensor:
        return torch.log1p(-theta.unsqueeze(-1) * excess).sum(-1) / count

    # The lower quartile, in descending order.
    index = (count - (count / 4 + 0.5).long()).clamp(0, size - 1)
    quartile = excess.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    points = 30 + math.isqrt(size)
    grid = torch.stack(
        [
            1 / excess[..., 0] + (1 - math.sqrt(points / (j - 0.5))) / (3 * quartile)
            for j in range(1, points + 1)
        ]
    )
    # Point by point: the whole grid at once would need M times the memory.
    shapes = torch.stack([mean_log(theta) for theta in grid])
    profile = count * ((-grid / shapes).log() - shapes - 1)
    theta = (profile.softmax(0) * grid).sum(0)
    shape = mean_log(theta)
    return (count * shape + _PRIOR_COUNT * _PRIOR_K) / (count + _PRIOR_COUNT)
