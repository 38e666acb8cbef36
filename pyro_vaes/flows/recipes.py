"""Flows: recipes for chains of invertible transforms, built by the part that uses them.

A *layer* is a module whose ``forward(context)`` returns Pyro transforms, as a part is a module
whose ``forward`` returns a Pyro distribution. A *recipe*, such as ``flows.iaf(16, 4)``, is built by
the part that gets it: a ``FlowPrior`` without context, a ``FlowPosterior`` with the features of x
as context. Transforms are made anew at each call, so their caches never outlive a distribution.

============= ======================================== ======= ====================
recipe        source                                   samples scores
============= ======================================== ======= ====================
``planar``    Rezende and Mohamed 2015                 fast    no
``sylvester`` van den Berg et al. 2018                 fast    no
``iaf``       Kingma et al. 2016                       fast    slow (D small steps)
``maf``       Papamakarios et al. 2017                 slow    fast
``realnvp``   Dinh et al. 2017                         fast    fast
``spline``    Durkan et al. 2019                       fast    fast
============= ======================================== ======= ====================

A flow that does not *score* has no inverse: it knows the density of its own draws only, which is
enough for a posterior but not for a prior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import remembers_arguments
from pyro_vaes.flows.autoregressive import IAFLayer, MAFLayer
from pyro_vaes.flows.base import FlowLayer
from pyro_vaes.flows.coupling import RealNVPLayer
from pyro_vaes.flows.residual import PlanarLayer, SylvesterKind, SylvesterLayer
from pyro_vaes.flows.splines import SplineLayer

__all__ = ["LAYERS", "Flow", "FlowRecipe", "iaf", "maf", "planar", "realnvp", "spline", "sylvester"]


#: The layers by the names of their recipes.
LAYERS: dict[str, type[FlowLayer]] = {
    "iaf": IAFLayer,
    "maf": MAFLayer,
    "planar": PlanarLayer,
    "realnvp": RealNVPLayer,
    "spline": SplineLayer,
    "sylvester": SylvesterLayer,
}


class Flow(nn.Module):
    """A built flow: ``forward(context)`` returns its transforms, first to last from the base.

    >>> flow = pv.flows.maf(16, 4).build()
    >>> len(flow())
    4
    """

    def __init__(self, layers: Sequence[FlowLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, context: Tensor | None = None) -> list[torch.distributions.Transform]:
        return [transform for layer in self.layers for transform in layer(context)]

    @torch.no_grad()
    def initialize_from(self, z: Tensor, context: Tensor | None = None) -> None:
        """Starts layers that depend on data from values ``(n, dim)`` of the flow.

        Raises:
            ValueError: if no layer does.
        """
        found = False
        for layer in reversed(self.layers):
            found |= cast(FlowLayer, layer).initialize_from(z)
            for transform in reversed(layer(context)):
                z = transform.inv(z)
        if not found:
            raise ValueError("Expected a flow with normalise=True; got one that takes no data.")


@remembers_arguments
class FlowRecipe:
    """The specification of a flow, which :meth:`build` makes.

    >>> recipe = pv.flows.FlowRecipe("spline", dim=16, depth=4, options={"count_bins": 8})
    >>> recipe, recipe.samples, recipe.scores
    (flows.spline(16, 4, count_bins=8), True, True)

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
                f"Expected dim of at least {LAYERS[name].min_dim} for {name}, which splits z; "
                f"got {dim}."
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
    """A planar flow of ``depth`` layers, see :class:`.PlanarLayer`; posteriors only.

    >>> base = pv.NormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> posterior = pv.FlowPosterior(base, pv.flows.planar(16, 4))
    >>> posterior.scores
    False
    """
    return FlowRecipe("planar", dim, depth)


def iaf(dim: int, depth: int, hidden_dims: Sequence[int] | None = None) -> FlowRecipe:
    """An inverse autoregressive flow, see :class:`.IAFLayer`; draws fast, scores slowly.

    >>> base = pv.NormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> posterior = pv.FlowPosterior(base, pv.flows.iaf(16, 4))
    >>> posterior.scores
    True
    """
    return FlowRecipe("iaf", dim, depth, _given(hidden_dims=hidden_dims))


def maf(dim: int, depth: int, hidden_dims: Sequence[int] | None = None) -> FlowRecipe:
    """A masked autoregressive flow, see :class:`.MAFLayer`; scores fast, draws slowly.

    >>> prior = pv.FlowPrior(16, pv.flows.maf(16, 4, hidden_dims=[64]))
    >>> prior().log_prob(torch.zeros(10, 16)).shape
    torch.Size([10])
    """
    return FlowRecipe("maf", dim, depth, _given(hidden_dims=hidden_dims))


def realnvp(
    dim: int,
    depth: int,
    hidden_dims: Sequence[int] | None = None,
    normalise: bool | None = None,
) -> FlowRecipe:
    """A RealNVP of affine couplings, see :class:`.RealNVPLayer`; fast both ways.

    >>> prior = pv.FlowPrior(16, pv.flows.realnvp(16, 4))
    >>> prior().sample((10,)).shape
    torch.Size([10, 16])

    Args:
        dim: size of z, at least 2.
        depth: number of couplings.
        hidden_dims: hidden layers of each coupling's network.
        normalise: follow each coupling by an :class:`.ActivationNorm`, which
            :meth:`.FlowPrior.initialize_from` starts from data.
    """
    options = _given(hidden_dims=hidden_dims, normalise=normalise)
    return FlowRecipe("realnvp", dim, depth, options)


def spline(
    dim: int,
    depth: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int | None = None,
    bound: float | None = None,
    normalise: bool | None = None,
) -> FlowRecipe:
    """A flow of spline couplings, see :class:`.SplineLayer`; fast both ways.

    >>> prior = pv.FlowPrior(16, pv.flows.spline(16, 4, count_bins=16))
    >>> prior().sample((10,)).shape
    torch.Size([10, 16])

    Args:
        dim: size of z, at least 2.
        depth: number of couplings.
        hidden_dims: hidden layers of each coupling's network.
        count_bins: bins of each spline; 8 if None.
        bound: half width of the interval that the splines bend; 5 if None.
        normalise: as for :func:`realnvp`.
    """
    options = _given(
        hidden_dims=hidden_dims, count_bins=count_bins, bound=bound, normalise=normalise
    )
    return FlowRecipe("spline", dim, depth, options)


def sylvester(
    dim: int,
    depth: int,
    kind: SylvesterKind | None = None,
    num_columns: int | None = None,
    num_reflections: int | None = None,
) -> FlowRecipe:
    """A Sylvester flow of ``depth`` layers, see :class:`.SylvesterLayer`; posteriors only.

    >>> base = pv.NormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> posterior = pv.FlowPosterior(base, pv.flows.sylvester(16, 4, kind="orthogonal"))
    >>> posterior(torch.zeros(10, 64)).rsample().shape
    torch.Size([10, 16])

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
