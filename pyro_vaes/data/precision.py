"""Single precision, for data that it can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError

__all__ = ["in_single"]


# Largest rounding error, as a share of an element's standard deviation.
_ROUNDING = 0.05
# Rows processed at once.
_ROWS = 1024


def in_single(x: Tensor) -> Tensor:
    """Rows in single precision, bytes unchanged; refused if it cannot distinguish the values.

    Raises:
        DataError: naming the element and its values.
    """
    if x.dtype == torch.uint8:
        return x
    rounded = x.to(torch.float32)
    if x.dtype not in (torch.float64, torch.int32, torch.int64) or x.dim() < 2 or not len(x):
        return rounded
    table = x.flatten(1)
    error, spread = _rounding(table, rounded.flatten(1))
    bad = error > _ROUNDING * spread
    if bool((bad & (spread > 0)).any()):
        i = int((bad & (spread > 0)).nonzero()[0])
        kept, all_ = (len(rows[:, i].unique()) for rows in (rounded.flatten(1), table))
        usual = float(table[0, i])
        raise DataError(
            f"Expected values that single precision can distinguish; got element {i} about "
            f"{usual:.10g} with a standard deviation of {spread[i]:.4g}, of which it keeps "
            f"{kept} of {all_} different values. Subtract {usual:.10g} from it first."
        )
    return rounded


def _rounding(table: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The largest error of each element and its spread, a part of the rows at a time."""
    first = table[0].double().nan_to_num(0.0)
    error, total, squares = (torch.zeros_like(first) for _ in range(3))
    for part, near in zip(table.split(_ROWS), rounded.split(_ROWS), strict=True):
        # A gap has no digits to lose: it stands at the first row's value, or at zero.
        exact = torch.where(part.isnan(), first, part.double())
        near = torch.where(part.isnan(), first, near.double())
        error = torch.maximum(error, (near - exact).abs().amax(0))
        total += (exact - first).sum(0)
        squares += (exact - first).square().sum(0)
    mean = total / len(table)
    return error, (squares / len(table) - mean.square()).clamp(min=0).sqrt()
