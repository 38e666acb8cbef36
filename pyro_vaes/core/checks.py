"""Checks of arguments that every folder needs."""

from __future__ import annotations

import operator

from pyro_vaes.core.choices import GRADIENTS

__all__ = ["check_gradient", "positive"]


def positive(**sizes: int) -> None:
    """Refuses sizes that are not whole numbers of at least one, naming the argument."""
    for name, size in sizes.items():
        try:
            whole = not isinstance(size, bool) and operator.index(size) >= 1
        except TypeError:
            whole = False
        if not whole:
            raise ValueError(f"Expected {name} to be a whole number of at least 1; got {size!r}.")


def check_gradient(gradient: str) -> None:
    """Refuses an unknown kind of gradient."""
    if gradient not in GRADIENTS:
        raise ValueError(
            f"Expected a gradient among {', '.join(map(repr, GRADIENTS))}; got {gradient!r}."
        )
