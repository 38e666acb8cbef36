"""Looking at a module or a distribution without changing anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["depends_on", "in_evaluation_mode", "in_pieces", "mean_of"]


# Draws for a mean without a closed form, and numbers drawn at once.
_MEAN_DRAWS = 512
_MEAN_NUMBERS = 2**20
# Seconds before a bar is shown.
_DELAY = 2.0


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards each module is back in its mode."""
    modes = [(part, part.training) for part in module.modules()]
    with torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def mean_of(distribution: Any) -> Tensor:
    """The mean of a distribution, or the average of fixed draws if it has no analytic one.

    >>> from pyro_vaes.vae import mean_of
    >>> mean_of(dist.Normal(1.0, 2.0))
    tensor(1.)
    """
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
    """Applies a function to rows and their labels, ``size`` rows at a time.

    On a terminal, work that takes over two seconds has a bar with the time left.
    """
    result = None
    starts = range(0, len(rows), size)
    for start in tqdm(starts, "Computing", unit="piece", delay=_DELAY, disable=None, leave=False):
        piece = slice(start, start + size)
        part = work(rows[piece], None if y is None else y[piece])
        if result is None:
            result = part.new_empty(len(rows), *part.shape[1:])
        # Copied, since small results kept among large freed ones fragment the memory.
        result[piece] = part
    return cast(Tensor, result)


def diagonal_normal(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """The ``(loc, scale)`` of a diagonal normal over vectors, None for any other distribution."""
    if isinstance(distribution, torch.distributions.Independent):
        base = distribution.base_dist
        if isinstance(base, torch.distributions.Normal) and len(distribution.event_shape) == 1:
            return base.loc, base.scale
    return None


def normal_marginals(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """The ``(loc, scale)`` of each coordinate of a normal over vectors, None for any other."""
    if isinstance(distribution, torch.distributions.MultivariateNormal):
        return distribution.loc, distribution.stddev
    return diagonal_normal(distribution)


def depends_on(value: Tensor, other: Tensor) -> bool:
    """Whether a gradient of one tensor passes another.

    >>> from pyro_vaes.core.looking import depends_on
    >>> z = 2 * torch.ones(3, requires_grad=True)
    >>> depends_on(z.exp(), z), depends_on(z, z.exp())
    (True, False)
    """
    seen, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node is other.grad_fn:
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False
