"""Transforms that Pyro lacks or gets wrong; :mod:`pyro_vaes.flows` makes flows of them.

They map vectors to vectors and use tensor operations only: no branch on a value, no boolean index.
So a step through them can be recorded, compiled, captured as a CUDA graph and batched by ``vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pyro.distributions.transforms as T
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn import functional as F

__all__ = [
    "Autoregressive",
    "CachedTransform",
    "SplineCoupling",
    "Sylvester",
    "householder_columns",
    "rational_quadratic",
]

# No bin is narrower or flatter than this part of the whole, no slope at a knot smaller. Durkan et
# al. take 1e-3; the slope inside a flat bin goes with its square, too small for float32 to invert.
_MIN_BIN = 1e-2
_MIN_SLOPE = 1e-2
# The tanh of float32 reaches 1; the product of two diagonals must stay above -1.
_DIAGONAL_LIMIT = 0.999


class CachedTransform(Transform):
    """A transform that keeps the log-determinant of the pair (x, y) that it computed last.

    A subclass defines :meth:`push` and, if it has an inverse, :meth:`pull`. One that has none still
    scores its own draws: Pyro's cache finds the x that belongs to the very tensor y.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._log_det: Tensor | None = None

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image ``(*batch, D)`` of x and log abs det dy/dx ``(*batch)``."""
        raise NotImplementedError

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x ``(*batch, D)`` that y is the image of, and log abs det dy/dx ``(*batch)``."""
        raise NotImplementedError(
            f"Expected a value that this {type(self).__name__} drew itself, the same tensor; got "
            "another, and it has no inverse. Score it with a flow whose recipe says scores=True."
        )

    def _call(self, x: Tensor) -> Tensor:
        y, self._log_det = self.push(x)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, self._log_det = self.pull(y)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        known_x, known_y = self._cached_x_y
        if x is not known_x or y is not known_y:
            self(x)
        return cast(Tensor, self._log_det)


class Autoregressive(T.AffineAutoregressive):
    """Pyro's affine autoregressive transform, mended: its own inverse fails beyond float32.

    Args:
        network: a Pyro autoregressive network.
        context: what the network sees beside the value, if anything.
    """

    def __init__(self, network: nn.Module, context: Tensor | None = None) -> None:
        super().__init__(_WithContext(network, context))

    def _inverse(self, y: Tensor) -> Tensor:
        columns = [torch.zeros_like(y[..., 0])] * y.shape[-1]
        # The i-th column of the permutation needs only those before it: one pass for each.
        for column in self.arn.permutation.tolist():
            mean, log_scale = self.arn(torch.stack(columns, dim=-1))
            log_scale = log_scale.clamp(self.log_scale_min_clip, self.log_scale_max_clip)
            columns[column] = (y[..., column] - mean[..., column]) * (-log_scale[..., column]).exp()
        # The last pass saw every input that any scale depends on.
        self._cached_log_scale = log_scale
        return torch.stack(columns, dim=-1)


class _WithContext:
    """An autoregressive network with its context filled in, and the ordering Pyro looks for."""

    def __init__(self, network: nn.Module, context: Tensor | None) -> None:
        self.permutation = cast(Tensor, network.permutation)
        self._call = network if context is None else partial(network, context=context)

    def __call__(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self._call(value))


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
        bound: half the side of the square that the spline lives in.
        inverse: evaluate the inverse.

    Returns:
        The image, and the log slope of the spline (not of its inverse) there, both ``(*batch)``.
    """
    width, left = _bins(widths, bound)
    height, bottom = _bins(heights, bound)
    at_zero = math.log(math.expm1(1 - _MIN_SLOPE))
    slope = F.pad(_MIN_SLOPE + F.softplus(slopes + at_zero), (1, 1), value=1.0)

    # Outside, the spline is evaluated at the bound: unused there, and no gradient of it is NaN.
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
        # Never negative but for rounding.
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
    """The first components stay; each of the rest goes through a spline made from them.

    Durkan et al., "Neural spline flows" (2019), section 3. Pyro's own has a slope of 0.999 where it
    joins the tails of slope 1, and branches on values, which stops recording and batching.

    Args:
        split: number of components that stay.
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


# --- Sylvester ----------------------------------------------------------------------------------


def householder_columns(vectors: Tensor, num_columns: int) -> Tensor:
    """The first M columns of the product of H Householder reflections: exactly orthonormal.

    Every set of M orthonormal columns is, up to their signs, that of M reflections (the QR
    decomposition). The product is taken at once: with unit vectors as the columns of V it is
    I - V T V', where T is the inverse of I/2 plus the strictly upper part of V'V (Joffrain et al.,
    "Accumulating Householder transformations, revisited", 2006).

    Args:
        vectors: normals of the mirrors ``(*batch, H, D)``, of any length but zero.
        num_columns: M, at most D.

    Returns:
        ``(*batch, D, M)``.
    """
    v = F.normalize(vectors, dim=-1)
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    half = 0.5 * torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    inverse_t = (v @ v.mT).triu(1) + half
    reflected = torch.linalg.solve_triangular(inverse_t, v[..., :num_columns], upper=True)
    return eye[:, :num_columns] - v.mT @ reflected


class Sylvester(CachedTransform):
    """z' = z + Q R tanh(S Q'z + b), with Q of M orthonormal columns and R and S upper triangular.

    Van den Berg et al., "Sylvester normalizing flows for variational inference" (2018), section 3
    (S is their R tilde). By Sylvester's identity the determinant is that of an M by M
    triangular matrix, prod_m (1 + tanh'(.) r_mm s_mm). Diagonals within (-1, 1) keep every factor
    positive and the map invertible; the inverse has no closed form.

    Args:
        basis: Q, ``(*batch, D, M)``.
        mixing: ``(*batch, M, M)``; above the diagonal R, below it the transpose of S, and on it R's
            diagonal before the tanh that bounds it.
        diagonal: that of S before the tanh, ``(*batch, M)``.
        bias: b, ``(*batch, M)``.
    """

    def __init__(self, basis: Tensor, mixing: Tensor, diagonal: Tensor, bias: Tensor) -> None:
        super().__init__()
        r_diagonal = _DIAGONAL_LIMIT * mixing.diagonal(dim1=-2, dim2=-1).tanh()
        s_diagonal = _DIAGONAL_LIMIT * diagonal.tanh()
        self.basis, self.bias = basis, bias
        self.outer = mixing.triu(1) + r_diagonal.diag_embed()
        self.inner = mixing.mT.triu(1) + s_diagonal.diag_embed()
        self.diagonals = r_diagonal * s_diagonal

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = (_times(self.inner, _times(self.basis.mT, x)) + self.bias).tanh()
        y = x + _times(self.basis, _times(self.outer, h))
        return y, torch.log1p((1 - h.square()) * self.diagonals).sum(-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector; einsum, since matmul would copy the matrix for every draw."""
    return torch.einsum("...ij,...j->...i", matrix, vector)
