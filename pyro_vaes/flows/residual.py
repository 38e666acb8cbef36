"""Planar and Sylvester flows, which score only their own draws."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn import functional as F

from pyro_vaes.core.checks import positive
from pyro_vaes.flows.base import CachedTransform, FlowLayer

__all__ = ["PlanarLayer", "Sylvester", "SylvesterKind", "SylvesterLayer", "householder_columns"]


SylvesterKind = Literal["orthogonal", "householder", "triangular"]


class PlanarLayer(FlowLayer):
    """f(z) = z + u tanh(w'z + b) with w'u > -1, which keeps it invertible.

    Rezende and Mohamed, "Variational inference with normalizing flows" (2015), equations 10 to 12
    and appendix A.1. With a context, u, w and b are linear in it: an amortised flow.
    """

    scores = False

    def __init__(self, dim: int, index: int, context_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.parameters_at_zero = nn.Parameter(torch.empty(2 * dim + 1))
        bound = 1 / math.sqrt(dim)
        nn.init.uniform_(self.parameters_at_zero, -bound, bound)
        self.head = nn.Linear(context_dim, 2 * dim + 1, bias=False) if context_dim else None

    def forward(self, context: Tensor | None) -> list[Transform]:
        parameters: Tensor = self.parameters_at_zero
        if self.head is not None and context is not None:
            parameters = parameters + self.head(context)
        bias, u, w = parameters.split([1, self.dim, self.dim], dim=-1)
        return [ConditionedPlanar((bias, u, w))]


class SylvesterLayer(FlowLayer):
    """f(z) = z + Q R tanh(S Q'z + b) with Q of orthonormal columns, R and S upper triangular.

    Van den Berg et al., "Sylvester normalizing flows for variational inference" (2018). M columns
    are a hidden layer of M units; a planar flow has one. The three kinds of the paper differ in Q:

    - ``orthogonal``: any M <= D orthonormal columns (from M reflections, exactly, where the paper
      iterates);
    - ``householder``: all D columns, a product of ``num_reflections`` reflections;
    - ``triangular``: all D columns, alternately the identity and the reversed order.

    With a context, Q, R, S and b are linear in it: an amortised flow. It starts near the identity.
    """

    order: Tensor
    scores = False

    def __init__(
        self,
        dim: int,
        index: int,
        context_dim: int,
        kind: SylvesterKind = "householder",
        num_columns: int | None = None,
        num_reflections: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(SylvesterKind):
            raise ValueError(
                f"Expected kind to be one of {', '.join(get_args(SylvesterKind))}; got {kind!r}."
            )
        if num_columns is not None and kind != "orthogonal":
            raise ValueError(f"Expected num_columns for kind 'orthogonal' only; got {kind!r}.")
        if num_reflections is not None and kind != "householder":
            raise ValueError(f"Expected num_reflections for kind 'householder' only; got {kind!r}.")
        half = max(1, dim // 2)
        columns = dim if kind != "orthogonal" else half if num_columns is None else num_columns
        reflections = half if num_reflections is None else num_reflections
        positive(num_columns=columns, num_reflections=reflections)
        if columns > dim:
            raise ValueError(f"Expected num_columns of at most dim={dim}; got {columns}.")
        if kind != "householder":
            reflections = columns if kind == "orthogonal" else 0
        self.dim, self.columns, self.reflections = dim, columns, reflections
        order = torch.eye(dim)
        self.register_buffer("order", order.flip(0) if index % 2 else order, persistent=False)
        mixing = torch.randn(columns, columns) / math.sqrt(columns)
        # R near zero, not S: near the identity, with nonzero gradients of all but S.
        mixing = torch.where(torch.ones_like(mixing).triu().bool(), 0.1 * mixing, mixing)
        start = [torch.randn(reflections, dim), mixing, torch.randn(columns), torch.zeros(columns)]
        self.sizes = [part.numel() for part in start]
        self.parameters_at_zero = nn.Parameter(torch.cat([part.flatten() for part in start]))
        self.head = nn.Linear(context_dim, sum(self.sizes), bias=False) if context_dim else None
        if self.head is not None:
            with torch.no_grad():
                self.head.weight.mul_(0.1)

    def forward(self, context: Tensor | None) -> list[Transform]:
        parameters: Tensor = self.parameters_at_zero
        if self.head is not None and context is not None:
            parameters = parameters + self.head(context)
        vectors, mixing, diagonal, bias = parameters.split(self.sizes, dim=-1)
        basis = self.order
        if self.reflections:
            vectors = vectors.unflatten(-1, (self.reflections, self.dim))
            basis = householder_columns(vectors, self.columns)
        mixing = mixing.unflatten(-1, (self.columns, self.columns))
        return [Sylvester(basis, mixing, diagonal, bias)]


# The tanh of float32 reaches 1; the product of two diagonals must stay above -1.
_DIAGONAL_LIMIT = 0.999


# --- Sylvester ----------------------------------------------------------------------------------


def householder_columns(vectors: Tensor, num_columns: int) -> Tensor:
    """The first M columns of the product of H Householder reflections, exactly orthonormal.

    Every set of M orthonormal columns is, up to their signs, that of M reflections (by the QR
    decomposition). In closed form, with unit vectors as the columns of V, the product is
    I - V T V', where T is the inverse of I/2 plus the strictly upper part of V'V (Joffrain et al.,
    "Accumulating Householder transformations, revisited", 2006).

    Args:
        vectors: nonzero normals of the mirrors ``(*batch, H, D)``.
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
