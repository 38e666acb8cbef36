"""Looking at a module or a distribution without changing anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["in_evaluation_mode", "in_pieces", "mean_of"]


# Draws behind the mean of a distribution that cannot tell it, and numbers drawn at once.
_MEAN_DRAWS = 512
_MEAN_NUMBERS = 2**20


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards each module is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    with torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def mean_of(distribution: Any) -> Tensor:
    """The mean of a distribution; of one that cannot tell it, the average of fixed draws."""
    try:
        return cast(Tensor, distribution.mean)
    except NotImplementedError:
        numbers = math.prod((*distribution.batch_shape, *distribution.event_shape))
        most = max(1, _MEAN_NUMBERS // max(1, numbers))
        pieces = [min(most, _MEAN_DRAWS - done) for done in range(0, _MEAN_DRAWS, most)]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cast(
                Tensor,
                sum(distribution.sample((count,)).sum(0) for count in pieces) / _MEAN_DRAWS,
            )


def in_pieces(
    work: Callable[[Any, Tensor | None], Tensor], rows: Any, y: Tensor | None, size: int
) -> Tensor:
    """What is done to some rows and their labels, so many of them at a time."""
    result = None
    for start in range(0, len(rows), size):
        piece = slice(start, start + size)
        part = work(rows[piece], None if y is None else y[piece])
        if result is None:
            result = part.new_empty(len(rows), *part.shape[1:])
        # Copied: kept, small results among large freed ones would leave holes in the memory.
        result[piece] = part
    return cast(Tensor, result)
