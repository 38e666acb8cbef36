"""Paths through the latent space: straight lines, and walks along one unit after the other."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["bulk_of", "line", "walks"]


# Number of fixed draws, and the places of those between which, once sorted, 95 % of them lie.
_DRAWS, _ENDS = 1000, (25, 974)


def line(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points on straight lines, ends included.

    >>> line(torch.zeros(1, 2), torch.ones(1, 2), 3)[:, 0].tolist()
    [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]

    Args:
        start: ``(n, D)``.
        end: ``(n, D)``.
        steps: points on each line.

    Returns:
        ``(steps, n, D)``.

    Raises:
        ValueError: for fewer than 2 steps, or another number of ends.
    """
    if operator.index(steps) < 2:
        raise ValueError(f"Expected steps of at least 2; got {steps}.")
    if start.shape != end.shape:
        raise ValueError(f"Expected {len(start)} rows b, as in a; got {len(end)}.")
    share = torch.linspace(0, 1, steps).to(start).view(-1, 1, 1)
    return torch.lerp(start, end, share)


def bulk_of(prior: Any) -> tuple[Tensor, Tensor]:
    """Where 95 % of each unit lie, by fixed draws from a distribution over z.

    Returns:
        The lower and the upper ends, each of the prior's batch and event shape.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ordered = prior.sample((_DRAWS,)).sort(0).values
    return ordered[_ENDS[0]], ordered[_ENDS[1]]


def walks(z: Tensor, low: Tensor, high: Tensor, units: Iterable[Any] | None, steps: int) -> Tensor:
    """Codes as one unit after the other goes from a low to a high value, the others staying.

    Args:
        z: ``(n, D)``.
        low: where the units begin; broadcasts against z.
        high: where they end.
        units: numbers of units; None for all.
        steps: values of each unit.

    Returns:
        ``(units, steps, n, D)``.

    Raises:
        ValueError: for fewer than 2 steps, or for units that are none.
    """
    chosen = list(range(z.shape[-1]) if units is None else map(operator.index, units))
    if not chosen or not 0 <= min(chosen) <= max(chosen) < z.shape[-1]:
        raise ValueError(f"Expected units in 0..{z.shape[-1] - 1}; got {chosen}.")
    values = line(low.expand_as(z), high.expand_as(z), steps)
    moved = z.expand(len(chosen), steps, *z.shape).clone()
    for i, unit in enumerate(chosen):
        moved[i, ..., unit] = values[..., unit]
    return moved
