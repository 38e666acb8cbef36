"""Several latents as one event, drawn and scored one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform, ComposeTransform, LowerCholeskyAffine
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vaes.core.looking import diagonal_normal

__all__ = ["Chain"]


class _Drawn(NamedTuple):
    """A draw and its parts: the levels in drawing order, and their distributions.

    A value that is changed in place has another version, and is scored as any other value; so is
    one drawn without gradients where the score needs them, and one whose own gradient is asked for
    (a leaf, or one with a hook): the levels do not pass it on.
    """

    value: Tensor
    version: int
    levels: list[Tensor]
    distributions: list[Any]
    differentiable: bool

    def serves(self, value: Tensor, split: Callable[[Tensor], list[Tensor]]) -> bool:
        """Whether a score of ``value``, whose levels ``split`` finds, may use these distributions.

        Changes in inference mode are not counted: there the levels are compared.
        """
        same = value is self.value and _version(value) == self.version
        if same and value.is_inference():
            same = all(map(torch.equal, split(value), self.levels))
        if not same or not torch.is_grad_enabled():
            return same
        own = value.requires_grad and (value.is_leaf or value.retains_grad)
        return self.differentiable and not own and not value._backward_hooks


def _version(value: Tensor) -> int:
    """How often a tensor was changed in place; those of inference mode do not count."""
    return -1 if value.is_inference() else value._version


class _LowerCholeskyAffine(LowerCholeskyAffine):
    """Pyro's, whose Jacobian takes one factor only, for a batch of factors."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        log_diagonal = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_diagonal.expand(x.shape[:-1])


def _frame(p: Any) -> Any:
    """The map from standard normal noise to a level; None where the level is no normal or flow."""
    normal = diagonal_normal(p)
    if normal is not None:
        return AffineTransform(*normal, event_dim=1)
    if isinstance(p, torch.distributions.MultivariateNormal):
        return _LowerCholeskyAffine(p.loc, p.scale_tril)
    if isinstance(p, torch.distributions.TransformedDistribution):
        base = _frame(p.base_dist)
        return None if base is None else ComposeTransform([base, *p.transforms])
    return None


def _of_elements(support: Any) -> Any:
    """The support of the elements of a vector."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _rsample(p: Any, shape: Size) -> Tensor:
    """Differentiable draws of a level.

    Raises:
        NotImplementedError: if it has none.
    """
    if not p.has_rsample:
        raise NotImplementedError(
            f"Expected levels that are reparameterised; got {type(p).__name__}, which has no "
            "rsample. A prior may draw such a level by sample(), a posterior may not."
        )
    return cast(Tensor, p.rsample(shape))


class Chain(dist.TorchDistribution):
    """p(z) = p(z_1) prod_i p(z_i | z_<i) over the concatenation of its levels.

    A draw of its own is scored by the distributions that it was drawn from: no network runs twice.
    Such a score passes gradients to all that made the draw, but none to the draw itself: for those,
    score ``z.clone()``.

    >>> from pyro_vaes.distributions import Chain
    >>> link = pv.NormalPosterior(pv.MLP(2, [8]), latent_dim=3)
    >>> p = Chain(pv.NormalPrior(2)(), [link], sizes=(2, 3))
    >>> p.rsample((10,)).shape, p.level_log_probs(torch.zeros(10, 5)).shape
    (torch.Size([10, 5]), torch.Size([10, 2]))

    Args:
        first: the distribution of the level drawn first, of event shape ``(sizes[0],)``.
        links: for each further level a function of the levels drawn so far, concatenated,
            ``(*batch, sum of their sizes)``; it returns that level's distribution, with that batch
            shape or one that expands to it.
        sizes: of the levels, in drawing order.
        reverse: lay the levels out in the reverse of drawing order.
        validate_args: as in PyTorch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        first: Any,
        links: Sequence[Callable[[Tensor], Any]],
        sizes: Sequence[int],
        reverse: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.first, self.links, self.sizes, self.reverse = first, links, tuple(sizes), reverse
        self._drawn: _Drawn | None = None
        super().__init__(first.batch_shape, Size((sum(sizes),)), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws are differentiable, which those of a mixture in the first level are not.

        A later level is known once it is drawn: then ``rsample`` raises ``NotImplementedError``.
        """
        return bool(self.first.has_rsample)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """All of R^D, or that of each level, which a draw has if none was made before."""
        supports = [_of_elements(p.support) for p in self.distributions()]
        if all(isinstance(support, type(constraints.real)) for support in supports):
            return constraints.real_vector
        ordered = [(s[::-1] if self.reverse else s) for s in (supports, list(self.sizes))]
        return constraints.independent(constraints.cat(ordered[0], -1, ordered[1]), 1)

    @torch.no_grad()
    def distributions(self) -> list[Any]:
        """Those of the levels in drawing order, given some draw."""
        if self._drawn is None:
            with torch.random.fork_rng():
                self.sample()
        return cast(_Drawn, self._drawn).distributions

    def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
        """The same links under a larger batch shape."""
        first = self.first.expand(Size(batch_shape))
        return Chain(first, self.links, self.sizes, self.reverse, self._validate_args)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = Size(sample_shape)
        return self._draw(lambda p, i: _rsample(p, Size() if i else shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        # The levels are detached; their distributions are not, so that a score has gradients.
        shape = Size(sample_shape)
        return self._draw(lambda p, i: p.sample(Size() if i else shape))

    def colour(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The value z of which ``noise`` is the noise, and ``log |det dz/dnoise|``, ``(*batch,)``.

        A level after the first is ``loc(z_<i) + scale(z_<i) noise_i``, or the flow of that; one of
        another kind, and the first, is its own noise. In these coordinates a level does not
        depend on those before it under p (Papaspiliopoulos, Roberts and Sköld, "A general
        framework for the parametrization of hierarchical models", 2007).
        """
        parts = self.split(noise)
        log_det = noise.new_zeros(noise.shape[:-1])

        def place(p: Any, i: int) -> Tensor:
            nonlocal log_det
            frame = _frame(p) if i else None
            if frame is None:
                return parts[i]
            level: Tensor = frame(parts[i])
            log_det = log_det + frame.log_abs_det_jacobian(parts[i], level)
            return level

        return self._draw(place), log_det

    def whiten(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`colour`: the noise of a value, and ``log |det dz/dnoise|``."""
        levels, distributions = self._placed(value)
        noise, log_det = [levels[0]], value.new_zeros(value.shape[:-1])
        for p, level in zip(distributions[1:], levels[1:], strict=True):
            frame = _frame(p)
            noise.append(level if frame is None else frame.inv(level))
            if frame is not None:
                log_det = log_det + frame.log_abs_det_jacobian(noise[-1], level)
        return torch.cat(noise[::-1] if self.reverse else noise, -1), log_det

    def _draw(self, draw: Callable[[Any, int], Tensor]) -> Tensor:
        distributions = [self.first]
        levels = [draw(self.first, 0)]
        for i in range(1, len(self.sizes)):
            distributions.append(self._level(i, torch.cat(levels, -1)))
            levels.append(draw(distributions[-1], i))
        value = torch.cat(levels[::-1] if self.reverse else levels, -1)
        graph = torch.is_grad_enabled()
        self._drawn = _Drawn(value, _version(value), levels, distributions, graph)
        return value

    def level_log_probs(self, value: Tensor) -> Tensor:
        """Scores each level, log p(z_i | z_<i), in the order of the event: ``(*batch, levels)``."""
        levels, distributions = self._placed(value)
        found = [p.log_prob(level) for p, level in zip(distributions, levels, strict=True)]
        return torch.stack(found[::-1] if self.reverse else found, -1)

    def _placed(self, value: Tensor) -> tuple[list[Tensor], list[Any]]:
        """The levels of a value in drawing order, and their distributions given those before."""
        own = self._drawn
        if own is not None and own.serves(value, self.split):
            return own.levels, own.distributions
        levels = self.split(value.expand(torch.broadcast_shapes(value.shape, self.shape())))
        above = list(itertools.accumulate(levels[:-1], lambda a, b: torch.cat([a, b], -1)))
        links = [self._level(i, some) for i, some in enumerate(above, 1)]
        return levels, [self.first, *links]

    def _level(self, i: int, above: Tensor) -> Any:
        """The distribution of a level after the first, given those before it.

        Raises:
            ValueError: if its link returns one of another shape.
        """
        p, batch, size = self.links[i - 1](above), above.shape[:-1], self.sizes[i]
        if p.batch_shape == batch and p.event_shape == (size,):
            return p
        try:
            if p.event_shape == (size,):
                return p.expand(batch)
        except (RuntimeError, ValueError):
            pass
        raise ValueError(
            f"Expected link {i} to return a distribution of batch shape {tuple(batch)} and event "
            f"shape ({size},), such as Normal(...).to_event(1); got {type(p).__name__} of batch "
            f"shape {tuple(p.batch_shape)} and event shape {tuple(p.event_shape)}."
        )

    def split(self, value: Tensor) -> list[Tensor]:
        """The levels of an event in drawing order, ``(*batch, sizes[i])`` each."""
        sizes = self.sizes[::-1] if self.reverse else self.sizes
        levels = list(value.split(sizes, -1))
        return levels[::-1] if self.reverse else levels

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args and value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"Expected values of event shape {tuple(self.event_shape)}; got "
                f"{tuple(value.shape)}."
            )  # Each level looks at its own values.
        return self.level_log_probs(value).sum(-1)
