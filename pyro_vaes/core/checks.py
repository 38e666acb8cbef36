"""Checks of arguments that every folder needs."""

from __future__ import annotations

import operator

__all__ = ["positive"]


def positive(**sizes: int) -> None:
    """Refuses sizes that are not whole numbers of at least one, naming the argument."""
    for name, size in sizes.items():
        try:
            whole = not isinstance(size, bool) and operator.index(size) >= 1
        except TypeError:
            whole = False
        if not whole:
            raise ValueError(f"Expected {name} to be a whole number of at least 1; got {size!r}.")
