"""Units of real values: each element's own centre and spread, in which networks work.

Networks need numbers of about one; data come in hectopascals and microns. The affine map between
them belongs to the part that needs it, one for each element of a datum, and is saved with it.
Scores and draws stay in the units of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.data.rows import ROWS
from pyro_vaes.data.splits import as_split
from pyro_vaes.data.tables import num_gaps

__all__ = ["units_of"]


def _mean(table: Tensor, origin: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of ``of(table - origin)`` over the rows, in float64, a part of them at a time.

    All rows in float64 at once could take eight times the memory of the data.
    """
    total, count = torch.zeros_like(origin), torch.zeros_like(origin)
    for part in table.split(max(ROWS, 2**20 // table.shape[1])):
        away = of(part.double() - origin)
        total += away.nansum(0)
        count += (~away.isnan()).sum(0)
    return total / count


def _range(table: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of what was seen of each element; crossed where nothing was."""
    if not num_gaps(table):
        return table.amin(0), table.amax(0)
    low, high = (table.new_full(table.shape[1:], bound) for bound in (math.inf, -math.inf))
    for part in table.split(ROWS):
        gap = part.isnan()
        low = torch.minimum(low, part.masked_fill(gap, math.inf).amin(0))
        high = torch.maximum(high, part.masked_fill(gap, -math.inf).amax(0))
    return low, high


def units_of(x: Any, event_shape: Sequence[int], shared: bool = False) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of each element of some data, float64.

    An element that never varies has no spread: its size takes that place, or 1 if it is zero. What
    was not seen (NaN) does not count; an element of which nothing was has centre 0 and spread 1.

    >>> center, spread = units_of(torch.tensor([[0.0, 5.0], [2.0, 5.0]]), (2,))
    >>> center.tolist(), spread.tolist()
    ([1.0, 5.0], [1.0, 5.0])

    Args:
        x: data ``(n, *event_shape)``, or a split.
        event_shape: shape of one datum.
        shared: one centre and spread for all elements, as for pixels.

    Returns:
        Both of shape ``event_shape``.

    Raises:
        ValueError: for data of another shape.
    """
    rows = as_split(x).x
    if tuple(rows.shape[1:]) != tuple(event_shape):
        raise ValueError(
            f"Expected data of shape (n, {', '.join(map(str, event_shape))}); "
            f"got {tuple(rows.shape)}."
        )
    table = rows.reshape(-1, 1) if shared else rows.flatten(1)
    low, high = (t.double() for t in _range(table))
    # Relative to a row, not to zero: a large common offset costs no digits then.
    first = torch.where(table[0].isnan(), low, table[0].double())
    center = first + _mean(table, first, lambda away: away)
    spread = _mean(table, center, torch.square).sqrt()
    still = low == high
    size = torch.where(low == 0, 1.0, low.abs())
    center, spread = torch.where(still, low, center), torch.where(still, size, spread)
    never = low > high
    center, spread = center.masked_fill(never, 0.0), spread.masked_fill(never, 1.0)
    shape = tuple(event_shape)
    center, spread = (t.expand(rows[0].numel()).reshape(shape) for t in (center, spread))
    return center, spread
