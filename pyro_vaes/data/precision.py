"""Single precision, for data that it can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError

__all__ = ["in_single"]


# Part of an element's spread that rounding may change its values by.
_ROUNDING = 0.05


def in_single(x: Tensor) -> Tensor:
    """Rows in single precision, refused if that cannot tell their values apart.

    Raises:
        DataError: naming the element and its values.
    """
    rounded = x.to(torch.float32)
    if x.dtype not in (torch.float64, torch.int32, torch.int64) or x.dim() < 2 or not len(x):
        return rounded
    table = x.double().flatten(1)
    error = (rounded.double().flatten(1) - table).abs().amax(0)
    spread = (table - table[0]).std(0, correction=0)
    bad = error > _ROUNDING * spread
    if bool((bad & (spread > 0)).any()):
        i = int((bad & (spread > 0)).nonzero()[0])
        kept, all_ = (len(rows[:, i].unique()) for rows in (rounded.flatten(1), table))
        raise DataError(
            f"Expected values that single precision can tell apart; got element {i} about "
            f"{table[0, i]:.10g} with a standard deviation of {spread[i]:.4g}, of which it keeps "
            f"{kept} of {all_} different values. Subtract {table[0, i]:.10g} from it first."
        )
    return rounded
