"""Levels of latents: a prior and a posterior over z = (z_L, ..., z_1) as one event, top first.

The levels are concatenated, so that a hierarchy is a part like any other: p(z) is
``p(z_L) prod_l p(z_l | z_>l)``. A link is a posterior whose datum is what its level depends on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import takes_labels, with_labels
from pyro_vaes.core.looking import diagonal_normal
from pyro_vaes.distributions.chains import Chain

__all__ = ["ChainPosterior", "ChainPrior"]


def _sizes(first: nn.Module, links: Sequence[nn.Module], context: int) -> tuple[int, ...]:
    """The sizes of the levels in drawing order.

    Raises:
        ValueError: without links, or for one that sees something else than the levels before it.
    """
    if not links:
        raise ValueError("Expected at least one link, a level after the first; got none.")
    sizes = tuple(_stated(part, "latent_dim", "the size of its level") for part in (first, *links))
    for link, seen in zip(links, itertools.accumulate(sizes[:-1]), strict=True):
        expected = (context + seen,)
        found = tuple(_stated(link, "event_shape", f"{expected}, the shape of what it sees"))
        if found != expected:
            raise ValueError(
                f"Expected a link over {context} features and {seen} latents of the levels before "
                f"it, event_shape {expected}; got {found}."
                if context
                else f"Expected a link over the {seen} latents above it, event_shape {expected}; "
                f"got {found}."
            )
    return sizes


def _stated(part: nn.Module, name: str, meaning: str) -> Any:
    """An attribute that a level must have, which the user's own may lack."""
    if not hasattr(part, name):
        raise ValueError(
            f"Expected levels with the attribute {name}, {meaning}; got {type(part).__name__} "
            f"without it. Set self.{name} in its __init__."
        )
    return getattr(part, name)


def _num_labels(parts: Sequence[nn.Module]) -> int | None:
    """The number of labels of parts; None if one takes an unknown number."""
    found = [getattr(part, "num_labels", None if takes_labels(part) else 0) for part in parts]
    known: set[int] = {count for count in found if count}
    if len(known) > 1:
        raise ValueError(f"Expected levels that agree on num_labels; got {sorted(known)}.")
    return None if None in found else max(known, default=0)


class ChainPrior(Described):
    """A hierarchy ``p(z) = p(z_L) prod_l p(z_l | z_>l)``, the top level first.

    Sønderby et al., "Ladder variational autoencoders" (2016), section 2; with a VampPrior as top,
    Tomczak and Welling, "VAE with a VampPrior" (2018), section 4.

    >>> link = pv.NormalPosterior(pv.MLP(4, [32]), latent_dim=8)  # p(z_1 | z_2)
    >>> prior = pv.ChainPrior(pv.MixturePrior(4, 10), link)
    >>> prior.latent_dim, prior().sample((10,)).shape
    (12, torch.Size([10, 12]))

    Args:
        top: any prior, of the top level.
        links: for each level below, from the top down, a posterior that scores any value, over the
            concatenated levels above it: ``NormalPosterior(MLP(above, ...), latent_dim)``, a full
            covariance, or a flow.

    Raises:
        ValueError: if sizes or numbers of labels do not fit each other, or a link scores only its
            own draws.
    """

    def __init__(self, top: nn.Module, *links: nn.Module) -> None:
        super().__init__()
        self.level_dims = _sizes(top, links, 0)
        self.latent_dim = sum(self.level_dims)
        self.num_labels = _num_labels((top, *links))
        if not all(getattr(link, "scores", True) for link in links):
            raise ValueError(
                "Expected links that score any value for a prior; got one that scores only its own "
                "draws and serves posteriors."
            )
        self.top = top
        self.links = nn.ModuleList(links)

    def set_units(self, center: Any, spread: Any) -> None:
        """Passes the units of the data on to a top that learns values in them, a VampPrior."""
        if hasattr(self.top, "set_units"):
            cast(Any, self.top).set_units(center, spread)

    def forward(self, y: Tensor | None = None) -> Any:
        links = [functools.partial(with_labels, link, y) for link in self.links]
        top = with_labels(self.top, y)
        if y is not None and not top.batch_shape and any(map(takes_labels, self.links)):
            # One top for all labels, of which the links make a level for each.
            top = top.expand(y.shape[:-1] if y.is_floating_point() and y.dim() > 1 else y.shape)
        return Chain(top, links, self.level_dims)


class ChainPosterior(Described):
    """Levels ``q(z | x) = q(z_L | x) prod_l q(z_l | x, z_>l)``, or drawn from the bottom up.

    One pass of the first posterior's network serves all levels: a link sees its features together
    with the levels drawn before. Given the prior, a link says how far q is from it, in units of
    the prior's scale: Vahdat and Kautz, "NVAE" (2020), equation 5, so that a level whose data say
    nothing starts at the prior.

    >>> encoder = pv.NormalPosterior(pv.MLP(64, [32]), latent_dim=4)  # q(z_2 | x)
    >>> prior = pv.ChainPrior(pv.NormalPrior(4), pv.NormalPosterior(pv.MLP(4, [32]), 8))
    >>> link = pv.NormalPosterior(pv.MLP(32 + 4, [32]), latent_dim=8)  # q(z_1 | x, z_2)
    >>> posterior = pv.ChainPosterior(encoder, link, prior=prior)
    >>> posterior(torch.zeros(10, 64)).rsample().shape
    torch.Size([10, 12])

    Args:
        first: a posterior with features, of the top level; of the bottom one if ``upward``. A
            VampPrior as top of the prior is given this very posterior.
        links: for each further level, in drawing order, a posterior over the features of x
            together with the levels drawn before it.
        upward: draw the bottom level first: q(z_1 | x) prod_l q(z_l | x, z_<l).
        prior: a :class:`ChainPrior` of diagonal normal links, whose parameters the posterior then
            shares, its own links being normals of any covariance; None for links that stand alone.

    Attributes:
        scores: whether the distribution scores any z, not only its own draws.

    Raises:
        ValueError: if sizes or numbers of labels do not fit each other, the first posterior has no
            features, or both ``upward`` and ``prior`` are given.
    """

    def __init__(
        self,
        first: nn.Module,
        *links: nn.Module,
        upward: bool = False,
        prior: ChainPrior | None = None,
    ) -> None:
        super().__init__()
        # A flow over a base without features has none of its own.
        if not getattr(first, "_amortised", hasattr(first, "from_features")):
            raise ValueError(
                "Expected a first posterior with features(x) and from_features(features), such as "
                f"NormalPosterior; got {type(first).__name__}."
            )
        self.level_dims = _sizes(first, links, cast(int, first.out_features))
        if upward and prior is not None:
            raise ValueError(
                "Expected prior=None with upward=True; got both: a prior goes from the top down."
            )
        if prior is not None and prior.level_dims != self.level_dims:
            raise ValueError(
                f"Expected a prior of levels {self.level_dims}; got {prior.level_dims}."
            )
        self.latent_dim = sum(self.level_dims)
        self.event_shape: tuple[int, ...] = cast(Any, first.event_shape)
        self.num_labels = _num_labels((first, *links))
        self.scores: bool = all(getattr(part, "scores", True) for part in (first, *links))
        self.first, self.upward, self.prior = first, upward, prior
        self.links = nn.ModuleList(links)

    @property
    def x_range(self) -> tuple[Any, Any] | None:
        """The range of x that the first posterior's network sees as [-1, 1]."""
        return cast("tuple[Any, Any] | None", getattr(self.first, "x_range", None))

    def set_x_range(self, low: Any, high: Any) -> None:
        """Passes a range of x on to the first posterior."""
        if hasattr(self.first, "set_x_range"):
            cast(Any, self.first).set_x_range(low, high)

    def take_x_range(self, low: float, high: float) -> None:
        """Passes a likelihood's range on to the first posterior."""
        for method in ("take_x_range", "set_x_range"):
            if hasattr(self.first, method):
                getattr(self.first, method)(low, high)
                break

    def set_units(self, center: Tensor, spread: Tensor) -> None:
        """Passes the units of x on to the first posterior."""
        if hasattr(self.first, "set_units"):
            cast(Any, self.first).set_units(center, spread)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        with_y = (y,) if takes_labels(self.first) else ()
        features = cast(Any, self.first).features(x, *with_y)
        links = [self._link(i, features, y) for i in range(len(self.links))]
        first = cast(Any, self.first).from_features(features)
        return Chain(first, links, self.level_dims, reverse=self.upward)

    def _link(self, i: int, features: Tensor, y: Tensor | None) -> Callable[[Tensor], Any]:
        link = self.links[i]

        def distribution(drawn: Tensor) -> Any:
            context = features.expand(*drawn.shape[:-1], features.shape[-1])
            q = with_labels(link, y, torch.cat([context, drawn], -1))
            return q if self.prior is None else _relative(q, self.prior.links[i], drawn, y)

        return distribution


def _relative(q: Any, link: nn.Module, above: Tensor, y: Tensor | None) -> Any:
    """A normal read as a distance from the prior's diagonal one, in units of the prior's scale."""
    p = with_labels(link, y, above)
    place = diagonal_normal(p)
    if place is not None:
        loc, scale = place
        if (distance := diagonal_normal(q)) is not None:
            return dist.Normal(loc + scale * distance[0], scale * distance[1]).to_event(1)
        if isinstance(q, dist.MultivariateNormal):
            factor = scale.unsqueeze(-1) * q.scale_tril
            return dist.MultivariateNormal(loc + scale * q.loc, scale_tril=factor)
    raise ValueError(
        "Expected links that are normals, those of the prior diagonal, with prior=; got "
        f"{type(q).__name__} and {type(p).__name__}. Leave prior out."
    )
