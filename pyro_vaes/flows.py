"""Flows: recipes for chains of invertible transforms, built by the part that uses them.

A *layer* is a module whose ``forward(context)`` returns Pyro transforms, as a part is a module whose
``forward`` returns a Pyro distribution. A *recipe* (``flows.iaf(16, 4)``) is what a user writes down;
its owner builds it: a ``FlowPrior`` without context, a ``FlowPosterior`` with the features of x as
context. Transforms are made anew at each call, so their caches never outlive a distribution.

=========== ======================================== ======= ======
recipe      source                                   samples scores
=========== ======================================== ======= ======
``planar``  Rezende and Mohamed 2015                 yes     no
``iaf``     Kingma et al. 2016                       fast    slow (D passes)
``maf``     Papamakarios et al. 2017                 slow    fast
``realnvp`` Dinh et al. 2017                         fast    fast
=========== ======================================== ======= ======

A flow that does not *score* has no inverse: it can only tell the density of its own draws, which is
enough for a posterior and not for a prior.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import pyro.distributions.transforms as T
import torch
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import Tensor, nn

from pyro_vaes.networks import positive
from pyro_vaes.spec import recorded

__all__ = ["LAYERS", "Flow", "FlowLayer", "FlowRecipe", "iaf", "maf", "planar", "realnvp"]

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


class _AffineAutoregressive(T.AffineAutoregressive):
    """Pyro's transform with an inverse that keeps the dtype: its own fails beyond float32."""

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


class _Autoregressive:
    """An autoregressive network with its context filled in, and the ordering Pyro looks for."""

    def __init__(self, network: nn.Module, context: Tensor | None) -> None:
        self.permutation = cast(Tensor, network.permutation)
        self._call = network if context is None else partial(network, context=context)

    def __call__(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self._call(value))


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
        return [_AffineAutoregressive(_Autoregressive(self.network, context))]


class MAFLayer(IAFLayer):
    """Masked autoregressive flow, the inverse of :class:`IAFLayer`: one pass scores any value.

    Papamakarios et al., "Masked autoregressive flow for density estimation" (2017). Drawing takes D
    passes.
    """

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [transform.inv for transform in super().forward(context)]


class RealNVPLayer(FlowLayer):
    """Affine coupling: one half of z is shifted and scaled given the other; the halves take turns.

    Dinh et al., "Density estimation using Real NVP" (2017), equations 4 and 5.
    """

    min_dim = 2

    def __init__(
        self, dim: int, index: int, context_dim: int, hidden_dims: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        hidden = list(hidden_dims) if hidden_dims else [max(64, 2 * dim)]
        self.split = dim // 2
        sizes = [dim - self.split] * 2
        self.network: nn.Module = (
            ConditionalDenseNN(self.split, context_dim, hidden, sizes)
            if context_dim
            else DenseNN(self.split, hidden, sizes)
        )
        self.register_buffer("reversed", torch.arange(dim).flip(0), persistent=False)

    def forward(self, context: Tensor | None) -> list[Transform]:
        network = self.network if context is None else partial(self.network, context=context)
        swap = T.Permute(cast(Tensor, self.reversed), cache_size=1)
        return [T.AffineCoupling(self.split, network), swap]


LAYERS: dict[str, type[FlowLayer]] = {
    "iaf": IAFLayer,
    "maf": MAFLayer,
    "planar": PlanarLayer,
    "realnvp": RealNVPLayer,
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


def _given(**options: Any) -> dict[str, Any]:
    return {key: list(value) for key, value in options.items() if value is not None}
