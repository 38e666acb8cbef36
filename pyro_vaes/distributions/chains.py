"""Several latents as one event, drawn and scored one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Chain"]


class _Drawn(NamedTuple):
    """A draw and its parts: the levels in drawing order, and their distributions.

    A value that is changed in place has another version, and is scored as any other value.
    """

    value: Tensor
    version: int
    levels: list[Tensor]
    distributions: list[Any]


def _version(value: Tensor) -> int:
    """How often a tensor was changed in place; those of inference mode do not count."""
    return -1 if value.is_inference() else value._version


class Chain(dist.TorchDistribution):
    """p(z) = p(z_1) prod_i p(z_i | z_<i) over the concatenation of its levels.

    A draw of its own is scored by the distributions that it was drawn from: no network runs twice.

    >>> from pyro_vaes.distributions import Chain
    >>> link = pv.NormalPosterior(pv.MLP(2, [8]), latent_dim=3)
    >>> p = Chain(pv.NormalPrior(2)(), [link], sizes=(2, 3))
    >>> p.rsample((10,)).shape, p.level_log_probs(torch.zeros(10, 5)).shape
    (torch.Size([10, 5]), torch.Size([10, 2]))

    Args:
        first: the distribution of the level drawn first, of event shape ``(sizes[0],)``.
        links: for each further level a function of the levels drawn so far, concatenated,
            ``(*batch, sum of their sizes)``; it returns that level's distribution.
        sizes: of the levels, in drawing order.
        reverse: lay the levels out in the reverse of drawing order.
        validate_args: as in PyTorch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

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
        """Whether draws are differentiable, which those of a mixture in the first level are not."""
        return bool(self.first.has_rsample)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
        """The same links under a larger batch shape."""
        first = self.first.expand(Size(batch_shape))
        return Chain(first, self.links, self.sizes, self.reverse, self._validate_args)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self._draw(sample_shape, lambda level, shape: level.rsample(shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._draw(sample_shape, lambda level, shape: level.sample(shape))

    def _draw(self, sample_shape: Any, draw: Callable[[Any, Any], Tensor]) -> Tensor:
        distributions = [self.first]
        levels = [draw(self.first, Size(sample_shape))]
        for link in self.links:
            distributions.append(link(torch.cat(levels, -1)))
            levels.append(draw(distributions[-1], Size()))
        value = torch.cat(levels[::-1] if self.reverse else levels, -1)
        self._drawn = _Drawn(value, _version(value), levels, distributions)
        return value

    def level_log_probs(self, value: Tensor) -> Tensor:
        """Scores each level, log p(z_i | z_<i), in the order of the event: ``(*batch, levels)``."""
        own = self._drawn
        if own is not None and value is own.value and _version(value) == own.version:
            levels, distributions = own.levels, own.distributions
        else:
            value = value.expand(torch.broadcast_shapes(value.shape, self.shape()))
            levels = self.split(value)
            above = list(itertools.accumulate(levels[:-1], lambda a, b: torch.cat([a, b], -1)))
            distributions = [
                self.first,
                *(link(some) for link, some in zip(self.links, above, strict=True)),
            ]
        found = [p.log_prob(level) for p, level in zip(distributions, levels, strict=True)]
        return torch.stack(found[::-1] if self.reverse else found, -1)

    def split(self, value: Tensor) -> list[Tensor]:
        """The levels of an event in drawing order, ``(*batch, sizes[i])`` each."""
        sizes = self.sizes[::-1] if self.reverse else self.sizes
        levels = list(value.split(sizes, -1))
        return levels[::-1] if self.reverse else levels

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.level_log_probs(value).sum(-1)
