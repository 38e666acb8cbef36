"""Tools of the laws: quadrature, goodness of fit, Jacobians, pairwise covering."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Half width of the grid, in units of asinh: 500 spreads of the draws to each side.
_HALF_WIDTH = 7.0
_CHUNK = 2**17


@dataclass(frozen=True)
class Histogram:
    """Draws counted in cells of R^D, beside the integral of the density over each cell."""

    counts: Tensor
    masses: Tensor
    change: float
    """How far the masses moved in the last refinement of the grid: the error of the quadrature."""

    @property
    def p_value(self) -> float:
        """Chi-square goodness of fit; cells (and the rest of space) of few draws are pooled."""
        total = self.counts.sum()
        expected = self.masses * total
        seldom = expected < 10
        expected = torch.cat([expected[~seldom], (total - expected[~seldom].sum()).view(1)])
        counts = torch.cat([self.counts[~seldom], self.counts[seldom].sum().view(1)])
        # The pool itself may be too small for the approximation: join it to its neighbour.
        if expected[-1] < 10:
            expected = torch.cat([expected[:-2], expected[-2:].sum().view(1)])
            counts = torch.cat([counts[:-2], counts[-2:].sum().view(1)])
        statistic = ((counts - expected) ** 2 / expected).sum()
        freedom = torch.tensor((len(counts) - 1) / 2, dtype=statistic.dtype)
        return torch.special.gammaincc(freedom, statistic / 2).item()


@torch.no_grad()
def histogram(
    log_prob: Callable[[Tensor], Tensor],
    draws: Tensor,
    tolerance: float = 1e-4,
    max_points: int = 4_000_000,
) -> Histogram:
    """Integrates a density over cells that cover R^D for D of 1 or 2, and counts the draws in them.

    The substitution z = center + spread sinh(t) makes an even grid over t fine where the draws are
    and wide enough for heavy tails. The midpoint rule is refined until the masses have converged.

    Args:
        log_prob: maps ``(n, D)`` to ``(n,)``.
        draws: ``(n, D)``; they also place the grid.
        tolerance: on the sum of the absolute changes of the masses at the last refinement.
        max_points: where refining stops.
    """
    dim = draws.shape[-1]
    cells = {1: 96, 2: 32}[dim]
    center = draws.quantile(0.5, dim=0)
    spread = (draws.quantile(0.84, dim=0) - draws.quantile(0.16, dim=0)) / 2
    masses, change, per_cell = None, float("inf"), 4
    while change > tolerance and (cells * per_cell) ** dim <= max_points:
        finer = _masses(log_prob, center, spread, cells, per_cell)
        change = float("inf") if masses is None else (finer - masses).abs().sum().item()
        masses, per_cell = finer, 2 * per_cell
    assert masses is not None
    t = torch.asinh((draws - center) / spread)
    place = ((t + _HALF_WIDTH) * (cells / (2 * _HALF_WIDTH))).floor().long()
    inside = ((place >= 0) & (place < cells)).all(-1)
    index = sum(place[:, i] * cells ** (dim - 1 - i) for i in range(dim))
    index = torch.where(inside, index, cells**dim)
    counts = torch.bincount(index, minlength=cells**dim + 1).to(masses)
    return Histogram(counts, torch.cat([masses, masses.new_zeros(1)]), change)


def _masses(
    log_prob: Callable[[Tensor], Tensor],
    center: Tensor,
    spread: Tensor,
    cells: int,
    per_cell: int,
) -> Tensor:
    """The midpoint rule with ``per_cell`` points for each side of a cell: ``(cells^D,)``."""
    dim, points = len(center), cells * per_cell
    step = 2 * _HALF_WIDTH / points
    t = -_HALF_WIDTH + step * (torch.arange(points, dtype=center.dtype) + 0.5)
    z = torch.cartesian_prod(*(c + s * t.sinh() for c, s in zip(center, spread, strict=True)))
    z = z.reshape(-1, dim)
    score = torch.cat([log_prob(chunk) for chunk in z.split(_CHUNK)])
    side = [(s * t.cosh() * step).log() for s in spread]
    volume = side[0] if dim == 1 else (side[0][:, None] + side[1]).flatten()
    mass = (score + volume).exp().reshape([cells, per_cell] * dim)
    return mass.sum(dim=list(range(1, 2 * dim, 2))).flatten()


def jacobian(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The Jacobian ``(n, D, D)`` by autograd of a function that maps each row by itself."""
    rows = rows.detach().requires_grad_()
    output = function(rows)
    lines = [
        torch.autograd.grad(output[..., i].sum(), rows, retain_graph=True)[0]
        for i in range(output.shape[-1])
    ]
    return torch.stack(lines, dim=-2)


def pairwise(factors: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Rows in which every pair of values of two factors occurs together: greedy, deterministic."""
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    order = {(name, value): i for name in names for i, value in enumerate(factors[name])}

    def gain(row: dict[str, Any], name: str, value: Any) -> int:
        whole = {**row, name: value}
        items = [(n, whole[n]) for n in names if n in whole]
        return sum(pair in missing for pair in itertools.combinations(items, 2))

    while missing:
        (a, x), (b, y) = min(missing, key=lambda pair: (order[pair[0]], order[pair[1]], str(pair)))
        row = {a: x, b: y}
        for name in names:
            if name not in row:
                row[name] = max(factors[name], key=lambda value: gain(row, name, value))
        items = [(name, row[name]) for name in names]
        missing -= set(itertools.combinations(items, 2))
        yield dict(items)
