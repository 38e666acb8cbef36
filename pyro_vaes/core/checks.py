"""Checks of arguments that every folder needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["check_bounds"]


def positive(**sizes: int) -> None:
    """Refuses sizes that are not whole numbers of at least one, naming the argument."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"Expected {name} to be a whole number of at least 1; got {size!r}.")


def check_bounds(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    """The bounds as floats, if they are two in order."""
    if bounds is None:
        return None
    low, high = map(float, bounds)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"Expected bounds with low < high, both finite; got ({low}, {high}).")
    return low, high
