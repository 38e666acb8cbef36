"""Flows: recipes for chains of invertible transforms, built by the part that uses them.

A *layer* is a module whose ``forward(context)`` returns Pyro transforms, as a part is a module whose
``forward`` returns a Pyro distribution. A *recipe* (``flows.iaf(16, 4)``) is what a user writes down;
its owner builds it: a ``FlowPrior`` without context, a ``FlowPosterior`` with the features of x as
context. Transforms are made anew at each call, so their caches never outlive a distribution.

============= ======================================== ======= ===============
recipe        source                                   samples scores
============= ======================================== ======= ===============
``planar``    Rezende and Mohamed 2015                 fast    no
``sylvester`` van den Berg et al. 2018                 fast    no
``iaf``       Kingma et al. 2016                       fast    slow (D passes)
``maf``       Papamakarios et al. 2017                 slow    fast
``realnvp``   Dinh et al. 2017                         fast    fast
``spline``    Durkan et al. 2019                       fast    fast
============= ======================================== ======= ===============

A flow that does not *score* has no inverse: it can only tell the density of its own draws, which is
enough for a posterior and not for a prior.
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
from pyro_vaes.spec import recorded
from pyro_vaes.transforms import Autoregressive, SplineCoupling, Sylvester, householder_columns

__all__ = [
    "LAYERS",
    "Flow",
    "FlowLayer",
    "FlowRecipe",
    "iaf",
    "maf",
    "planar",
    "realnvp",
    "spline",
    "sylvester",
]

SylvesterKind = Literal["orthogonal", "householder", "triangular"]

Transform = torch.distributions.Transform


class FlowLayer(nn.Module):
    """One layer of a flow; to add one, subclass it and enter the class in :data:`LAYERS`.

    A subclass takes ``(dim, index, context_dim, **options)``, where ``index`` counts the layers of a
    flow from 0 (so that they can alternate), creates all its parameters in its constructor, and
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
        with warnings.catch_warnings():
            # Pyro advises against dim 1, where the flow is affine: allowed here, as the laws ask.
            warnings.filterwarnings("ignore", ".*input_dim = 1.*")
            self.network: nn.Module = (
                ConditionalAutoRegressiveNN(dim, context_dim, hidden, permutation=ordering)
                if context_dim
                else AutoRegressiveNN(dim, hidden, permutation=ordering)
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

    A subclass says how: :meth:`couple` is given the network, which maps the half that stays (and the
    context) to parameters of the sizes passed to this constructor.
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
        self.network: nn.Module = (
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
        if not 2 <= count_bins <= 100 or not 0 < bound < math.inf:
            raise ValueError(
                "Expected from 2 to 100 spline bins and a bound above zero; got "
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
        self.head = (
            nn.Linear(context_dim, sum(self.sizes), bias=False) if context_dim else None
        )
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


LAYERS: dict[str, type[FlowLayer]] = {
    "iaf": IAFLayer,
    "maf": MAFLayer,
    "planar": PlanarLayer,
    "realnvp": RealNVPLayer,
    "spline": SplineLayer,
    "sylvester": SylvesterLayer,
}


class Flow(nn.Module):
    """A built flow: ``forward(context)`` returns its transforms, first to last from the base."""

    def __init__(self, layers: Sequence[FlowLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, context: Tensor | None = None) -> list[Transform]:
        return [transform for layer in self.layers for transform in layer(context)]


@recorded
class FlowRecipe:
    """What a flow is made of; :meth:`build` makes it.

    Args:
        name: a key of :data:`LAYERS`.
        dim: size of the vectors.
        depth: number of layers.
        options: keyword arguments of the layer.

    Raises:
        ValueError: for an unknown name, a size below one, or a ``dim`` too small for the layer.
    """

    def __init__(
        self, name: str, dim: int, depth: int, options: dict[str, Any] | None = None
    ) -> None:
        if name not in LAYERS:
            raise ValueError(f"Expected a flow among {', '.join(LAYERS)}; got {name!r}.")
        positive(dim=dim, depth=depth)
        if dim < LAYERS[name].min_dim:
            raise ValueError(
                f"Expected dim of at least {LAYERS[name].min_dim} for {name}, which splits z; got {dim}."
            )
        self.name, self.dim, self.depth = name, dim, depth
        self.options = dict(options or {})

    @property
    def samples(self) -> bool:
        """Whether the flow draws samples and scores them."""
        return LAYERS[self.name].samples

    @property
    def scores(self) -> bool:
        """Whether the flow scores any value, not only its own draws."""
        return LAYERS[self.name].scores

    def build(self, context_dim: int = 0) -> Flow:
        """Makes the layers, with parameters drawn from torch's global generator."""
        layer: Callable[..., FlowLayer] = LAYERS[self.name]
        return Flow([layer(self.dim, i, context_dim, **self.options) for i in range(self.depth)])

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"flows.{self.name}({self.dim}, {self.depth}{options})"


def planar(dim: int, depth: int) -> FlowRecipe:
    """A planar flow of ``depth`` layers, see :class:`PlanarLayer`; posteriors only."""
    return FlowRecipe("planar", dim, depth)


def iaf(dim: int, depth: int, hidden_dims: Sequence[int] | None = None) -> FlowRecipe:
    """An inverse autoregressive flow, see :class:`IAFLayer`; draws fast, scores slowly."""
    return FlowRecipe("iaf", dim, depth, _given(hidden_dims=hidden_dims))


def maf(dim: int, depth: int, hidden_dims: Sequence[int] | None = None) -> FlowRecipe:
    """A masked autoregressive flow, see :class:`MAFLayer`; scores fast, draws slowly."""
    return FlowRecipe("maf", dim, depth, _given(hidden_dims=hidden_dims))


def realnvp(dim: int, depth: int, hidden_dims: Sequence[int] | None = None) -> FlowRecipe:
    """A RealNVP of affine couplings, see :class:`RealNVPLayer`; fast both ways."""
    return FlowRecipe("realnvp", dim, depth, _given(hidden_dims=hidden_dims))


def spline(
    dim: int,
    depth: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int | None = None,
    bound: float | None = None,
) -> FlowRecipe:
    """A flow of spline couplings, see :class:`SplineLayer`; fast both ways.

    Args:
        dim: size of z, at least 2.
        depth: number of couplings.
        hidden_dims: hidden layers of each coupling's network.
        count_bins: bins of each spline; 8 if None.
        bound: half width of the interval that the splines bend; 5 if None.
    """
    options = _given(hidden_dims=hidden_dims, count_bins=count_bins, bound=bound)
    return FlowRecipe("spline", dim, depth, options)


def sylvester(
    dim: int,
    depth: int,
    kind: SylvesterKind | None = None,
    num_columns: int | None = None,
    num_reflections: int | None = None,
) -> FlowRecipe:
    """A Sylvester flow of ``depth`` layers, see :class:`SylvesterLayer`; posteriors only.

    Args:
        dim: size of z, D.
        depth: number of layers.
        kind: ``orthogonal``, ``householder`` (if None) or ``triangular``.
        num_columns: M of the kind ``orthogonal``; half of D if None.
        num_reflections: of the kind ``householder``; half of D if None.
    """
    options = _given(kind=kind, num_columns=num_columns, num_reflections=num_reflections)
    return FlowRecipe("sylvester", dim, depth, options)


def _given(**options: Any) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if value is not None}
    if "hidden_dims" in given:
        given["hidden_dims"] = list(given["hidden_dims"])
    return given
