"""The points that a search tries, and the rungs of successive halving."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import OPTIONS

__all__ = ["Axis", "Range", "points_of", "rungs_of"]

# The fewest epochs of a rung, and rungs at most.
_LEAST, _RUNGS = 10, 3
# Tries for each new random point before the space is taken to be exhausted.
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two limits: drawn evenly in their logarithm if the lower one is positive."""

    low: float
    high: float
    whole: bool

    def draw(self, generator: np.random.Generator) -> float | int:
        """A number in the range."""
        low, high = (math.log(v) if self.low > 0 else v for v in (self.low, self.high))
        value = generator.uniform(low, high)
        value = math.exp(value) if self.low > 0 else value
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.3g}")


Axis = tuple[Any, ...] | Range
"""The values of an option that a search tries."""


def points_of(axes: Mapping[str, Axis], num: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """The whole grid, or ``num`` random points of it, each once.

    Raises:
        ConfigError: for a range without a number of points.
    """
    ranges = [name for name, axis in axes.items() if isinstance(axis, Range)]
    if num is None:
        if ranges:
            raise ConfigError(
                f"Invalid value for '{OPTIONS[ranges[0]].flag}': expected --num with a range, "
                "which has no grid; got none."
            )
        grid = itertools.product(*(a for a in axes.values() if not isinstance(a, Range)))
        return [dict(zip(axes, values, strict=True)) for values in grid]
    generator = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_TRIES * num):
        point = {
            name: axis.draw(generator) if isinstance(axis, Range) else axis[int(index)]
            for name, axis in axes.items()
            for index in [generator.integers(1 if isinstance(axis, Range) else len(axis))]
        }
        found.setdefault(repr(point), point)
        if len(found) == num:
            break
    return list(found.values())


def rungs_of(count: int, epochs: int, factor: int) -> list[tuple[int, int]]:
    """The configurations and epochs of each rung; the last one compares two at least."""
    last = 0
    while (
        factor > 1
        and last + 1 < _RUNGS
        and math.ceil(count / factor ** (last + 1)) >= 2
        and epochs // factor ** (last + 1) >= _LEAST
    ):
        last += 1
    return [
        (math.ceil(count / factor**rung), max(1, epochs // factor ** (last - rung)))
        for rung in range(last + 1)
    ]
