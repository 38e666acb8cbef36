"""A row of a table: columns of several kinds, independent given their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vaes.distributions.levels import CategoricalLevels

__all__ = ["Block", "Hurdle", "Row"]


class Block(NamedTuple):
    """Columns of one kind."""

    columns: Tensor
    """Where they stand in a row, ``(n,)``."""
    elements: Any
    """Their distribution, with batch shape ``(*batch, n)``."""
    stand_in: float
    """A value that each of them may have."""


class Hurdle(dist.TorchDistribution):
    """Exactly 0 with some probability, else a real number: rain, spending, doses.

    Scores are of a probability at 0 and a density elsewhere: Cragg, "Some statistical models for
    limited dependent variables" (Econometrica 1971).

    Args:
        logits: log odds of a 0.
        base: the distribution of the others.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.real

    def __init__(self, logits: Tensor, base: Any, validate_args: bool | None = None) -> None:
        self.logits, self.base = logits, base
        super().__init__(logits.shape, Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Hurdle:
        return Hurdle(self.logits.expand(batch_shape), self.base.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        zero, other = (torch.nn.functional.logsigmoid(t) for t in (self.logits, -self.logits))
        return torch.where(value == 0, zero, other + self.base.log_prob(value))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            others = self.base.sample(sample_shape)
            return torch.where(torch.rand_like(others) < self.logits.sigmoid(), 0.0, others)

    @property
    def mean(self) -> Tensor:
        """Of zeros and others."""
        return (-self.logits).sigmoid() * self.base.mean


class _Kinds(constraints.Constraint):
    """Rows each of whose values is one of its column's kind."""

    is_discrete = True
    event_dim = 1

    def __init__(self, blocks: Sequence[Block], names: Sequence[str]) -> None:
        self.blocks, self.names = blocks, names

    def check(self, value: Tensor) -> Tensor:
        return self.fits(value).all(-1)

    def fits(self, value: Tensor) -> Tensor:
        """Which values are of their column's kind."""
        fits = torch.ones_like(value, dtype=torch.bool)
        for block in self.blocks:
            some = block.elements.support.check(value[..., block.columns])
            fits[..., block.columns] = some
        return fits

    def explain(self, row: Tensor) -> str:
        """What is wrong with a row that is refused."""
        i = int((~self.fits(row)).nonzero()[0])
        return f"a value of the kind of column {self.names[i]!r}; got {row[i]:g}"


class Row(dist.TorchDistribution):
    """A row of D columns: the product of one distribution for each, ``(D,)``.

    A NaN is a value that was not seen, and left out. Categories are numbered from 0, and their mean
    says nothing: :attr:`mean` has the most probable one, and :attr:`averages` their probabilities.

    Args:
        blocks: columns of one kind each, which make up all columns.
        names: of the columns.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, blocks: Sequence[Block], names: Sequence[str], validate_args: bool | None = None
    ) -> None:
        self.blocks, self.names = tuple(blocks), tuple(names)
        batch = self.blocks[0].elements.batch_shape[:-1]
        super().__init__(batch, Size((len(self.names),)), validate_args=validate_args)

    @property
    def all_discrete(self) -> bool:
        """Whether no column has a density; the support is checked like a discrete one anyway."""
        return all(block.elements.support.is_discrete for block in self.blocks)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Rows whose values are of their columns' kinds."""
        return _Kinds(self.blocks, self.names)

    @property
    def stand_in(self) -> Tensor:
        """A value that each column may have, ``(D,)``."""
        parts = [torch.full_like(b.columns, b.stand_in, dtype=torch.float32) for b in self.blocks]
        return self._placed(parts)

    def _placed(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of the blocks, put where their columns stand."""
        order = torch.cat([block.columns for block in self.blocks]).argsort()
        return torch.cat(list(parts), -1).index_select(-1, order)

    def _each(self, of: Callable[[Any], Tensor]) -> Tensor:
        return self._placed([of(block.elements) for block in self.blocks])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Row:
        shape = torch.Size(batch_shape)
        wide = [block.elements.expand(shape + block.columns.shape) for block in self.blocks]
        pairs = zip(self.blocks, wide, strict=True)
        return Row([block._replace(elements=elements) for block, elements in pairs], self.names)

    def log_prob(self, value: Tensor) -> Tensor:
        seen = ~value.isnan()
        if self._validate_args:
            self._validate_sample(torch.where(seen, value, self.stand_in.to(value)))
        scores = []
        for block in self.blocks:
            there = seen.index_select(-1, block.columns)
            some = value.index_select(-1, block.columns)
            each = block.elements.log_prob(torch.where(there, some, block.stand_in))
            scores.append(torch.where(there, each, 0.0).sum(-1))
        return torch.stack(torch.broadcast_tensors(*scores)).sum(0)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._each(lambda elements: elements.sample(sample_shape))

    @property
    def mean(self) -> Tensor:
        """The mean of numbers, and the most probable of categories, ``(*batch, D)``."""
        return self._each(_point)

    @property
    def averages(self) -> Tensor:
        """Means of numbers and probabilities of categories in a row, which may be averaged."""
        return torch.cat([_averages(block.elements) for block in self.blocks], -1)

    def from_averages(self, averages: Tensor) -> Tensor:
        """Rows ``(..., D)`` from averages of :attr:`averages`: means, and most probable ones."""
        parts, start = [], 0
        for block in self.blocks:
            n, elements = len(block.columns), block.elements
            size = elements.num_levels if isinstance(elements, CategoricalLevels) else 1
            some = averages[..., start : start + n * size]
            start += n * size
            if size > 1:
                some = some.unflatten(-1, (n, size)).argmax(-1).to(averages.dtype)
            parts.append(some)
        return self._placed(parts)


def _point(elements: Any) -> Tensor:
    if isinstance(elements, CategoricalLevels):
        return elements.logits.argmax(-1).to(elements.logits.dtype).expand(elements.batch_shape)
    return elements.mean  # type: ignore[no-any-return]


def _averages(elements: Any) -> Tensor:
    if isinstance(elements, CategoricalLevels):
        return elements.log_pmf().exp().flatten(-2)
    return elements.mean  # type: ignore[no-any-return]
