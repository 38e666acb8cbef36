"""Layers of flows: modules whose ``forward(context)`` returns Pyro transforms.

:mod:`pyro_vaes.flows` makes recipes of them. To add one, subclass :class:`FlowLayer`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast, get_args

import pyro.distributions.transforms as T
import torch
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import Tensor, nn

from pyro_vaes.networks import positive
from pyro_vaes.transforms import Autoregressive, SplineCoupling, Sylvester, householder_columns

__all__ = [
    "CouplingLayer",
    "FlowLayer",
    "IAFLayer",
    "MAFLayer",
    "PlanarLayer",
    "RealNVPLayer",
    "SplineLayer",
    "SylvesterKind",
    "SylvesterLayer",
]

Transform = torch.distributions.Transform
SylvesterKind = Literal["orthogonal", "householder", "triangular"]


class FlowLayer(nn.Module):
    """One layer of a flow; to add one, subclass it and enter the class in ``flows.LAYERS``.

    A subclass takes ``(dim, index, context_dim, **options)``, where ``index`` counts the layers of
    a flow from 0 (so that they can alternate), creates all its parameters in its constructor, and
    returns from ``forward(context)`` a list of new transforms over vectors of size ``dim``. The
    context is None, or a tensor ``(*batch, context_dim)``.

    Attributes:
        samples: whether draws can be made and scored at once.
        scores: whether any value can be scored, so that the flow may serve as a prior.
        min_dim: the smallest ``dim`` that makes sense.
    """

    samples: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    min_dim: ClassVar[int] = 1

    def forward(self, context: Tensor | None) -> list[Transform]:
        raise NotImplementedError


def _near_identity(network: nn.Module) -> nn.Module:
    """Shrinks the last layer: couplings as they come start thousands of nats away from the base."""
    last = cast(nn.Linear, cast(nn.ModuleList, network.layers)[-1])
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.mul_(0.1)
    return network


class PlanarLayer(FlowLayer):
    """f(z) = z + u tanh(w'z + b) with w'u > -1, which keeps it invertible (assignment 2.1).

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


class IAFLayer(FlowLayer):
    """Inverse autoregressive flow: one pass draws and scores a sample (assignment 2.4).

    Kingma et al., "Improving variational inference with inverse autoregressive flow" (2016),
    equation 10. Scoring a foreign value takes D passes. The ordering is reversed in every other
    layer.
    """

    def __init__(
        self, dim: int, index: int, context_dim: int, hidden_dims: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        hidden = list(hidden_dims) if hidden_dims else [max(64, 2 * dim)]
        ordering = torch.arange(dim)
        if index % 2:
            ordering = ordering.flip(0)
        permutation = cast(torch.LongTensor, ordering)
        with warnings.catch_warnings():
            # Pyro advises against dim 1, where the flow is affine: allowed here, as the laws ask.
            warnings.filterwarnings("ignore", ".*input_dim = 1.*")
            self.network = _near_identity(
                ConditionalAutoRegressiveNN(dim, context_dim, hidden, permutation=permutation)
                if context_dim
                else AutoRegressiveNN(dim, hidden, permutation=permutation)
            )

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [Autoregressive(self.network, context)]


class MAFLayer(IAFLayer):
    """Masked autoregressive flow, the inverse of :class:`IAFLayer`: one pass scores any value.

    Papamakarios et al., "Masked autoregressive flow for density estimation" (2017). Drawing takes D
    passes.
    """

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [transform.inv for transform in super().forward(context)]


class CouplingLayer(FlowLayer):
    """One half of z is transformed given the other; the halves take turns.

    A subclass says how: :meth:`couple` is given the network, which maps the half that stays (and
    the context) to parameters of the sizes passed to this constructor.
    """

    min_dim = 2

    def __init__(
        self,
        dim: int,
        context_dim: int,
        hidden_dims: Sequence[int] | None,
        sizes: Callable[[int], Sequence[int]],
    ) -> None:
        super().__init__()
        hidden = list(hidden_dims) if hidden_dims else [max(64, 2 * dim)]
        self.split = dim // 2
        param_dims = list(sizes(dim - self.split))
        self.network = _near_identity(
            ConditionalDenseNN(self.split, context_dim, hidden, param_dims)
            if context_dim
            else DenseNN(self.split, hidden, param_dims)
        )
        self.register_buffer("reversed", torch.arange(dim).flip(0), persistent=False)

    def couple(self, network: Callable[[Tensor], Any]) -> Transform:
        """The transform, given the network with its context filled in."""
        raise NotImplementedError

    def forward(self, context: Tensor | None) -> list[Transform]:
        network = self.network if context is None else partial(self.network, context=context)
        return [self.couple(network), T.Permute(cast(Tensor, self.reversed), cache_size=1)]


class RealNVPLayer(CouplingLayer):
    """Affine coupling: one half of z is shifted and scaled given the other.

    Dinh et al., "Density estimation using Real NVP" (2017), equations 4 and 5.
    """

    def __init__(
        self, dim: int, index: int, context_dim: int, hidden_dims: Sequence[int] | None = None
    ) -> None:
        super().__init__(dim, context_dim, hidden_dims, lambda moved: [moved] * 2)

    def couple(self, network: Callable[[Tensor], Any]) -> Transform:
        return T.AffineCoupling(self.split, network)


class SplineLayer(CouplingLayer):
    """Spline coupling: each component of one half of z is bent by a spline given the other half.

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
    ) -> None:
        positive(count_bins=count_bins)
        if not 2 <= count_bins <= 50 or not 0 < bound < math.inf:
            raise ValueError(
                "Expected from 2 to 50 spline bins and a finite bound above zero; got "
                f"count_bins={count_bins}, bound={bound}."
            )
        bins = (count_bins, count_bins, count_bins - 1)
        super().__init__(dim, context_dim, hidden_dims, lambda moved: [moved * n for n in bins])
        self.count_bins, self.bound = count_bins, float(bound)

    def couple(self, network: Callable[[Tensor], Any]) -> Transform:
        return SplineCoupling(self.split, network, self.count_bins, self.bound)


class SylvesterLayer(FlowLayer):
    """f(z) = z + Q R tanh(S Q'z + b) with Q of orthonormal columns, R and S upper triangular.

    Van den Berg et al., "Sylvester normalizing flows for variational inference" (2018). M columns
    are a hidden layer of M units, where a planar flow has one. The three kinds of the paper differ
    in Q only:

    - ``orthogonal``: M <= D columns, any that are orthonormal (here M reflections make them, which
      are exactly orthonormal and reach them all, where the paper iterates);
    - ``householder``: all D columns, a product of ``num_reflections`` reflections;
    - ``triangular``: all D columns, the identity and the reversed order in turn.

    With a context, all of Q, R, S and b are linear in it: an amortised flow. It begins near the
    identity.
    """

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
        # R near zero, not S: from z alone, yet every gradient but that of S is alive.
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
        basis = cast(Tensor, self.order)
        if self.reflections:
            vectors = vectors.unflatten(-1, (self.reflections, self.dim))
            basis = householder_columns(vectors, self.columns)
        mixing = mixing.unflatten(-1, (self.columns, self.columns))
        return [Sylvester(basis, mixing, diagonal, bias)]
