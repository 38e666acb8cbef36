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
    """Draws counted in cells of R^D, with the integral of the density over each cell."""

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
    log_prob: Callable[[Tensor], Tensor], draws: Tensor, tolerance: float = 1e-3
) -> Histogram:
    """Integrates a density over cells that cover R^D for D of 1 or 2, and counts the draws in them.

    The substitution z = center + spread sinh(t) makes even cells over t small where the draws are
    and wide enough for heavy tails. The midpoint rule is refined, in the cells where it still
    changes, until it has converged.

    Args:
        log_prob: maps ``(n, D)`` to ``(n,)``.
        draws: ``(n, D)``; they also place the cells.
        tolerance: on the sum of the absolute changes of the masses at the last refinement.
    """
    dim = draws.shape[-1]
    cells = {1: 96, 2: 32}[dim]
    center = draws.quantile(0.5, dim=0)
    spread = (draws.quantile(0.84, dim=0) - draws.quantile(0.16, dim=0)) / 2
    t = torch.asinh((draws - center) / spread)
    place = ((t + _HALF_WIDTH) * (cells / (2 * _HALF_WIDTH))).floor().long()
    inside = ((place >= 0) & (place < cells)).all(-1)
    index = sum(place[:, i] * cells ** (dim - 1 - i) for i in range(dim))
    counts = torch.bincount(torch.where(inside, index, cells**dim), minlength=cells**dim + 1).to(
        draws
    )

    corners = torch.cartesian_prod(*[torch.arange(cells)] * dim).reshape(-1, dim)
    masses = _masses(log_prob, center, spread, corners, cells, 4)
    changes = torch.full_like(masses, torch.inf)
    share = counts[:-1] / len(draws)
    for level in range(3, 10):
        # A ridge may hide between the points of a coarse grid: where draws say so, look closer.
        missed = masses < share / 2 - 5e-4
        if level > 4 and changes.sum() < tolerance and not missed.any():
            break
        active = (changes > tolerance / len(changes)) | missed | ((share > 0) & (level <= 4))
        finer = _masses(log_prob, center, spread, corners[active], cells, 2**level)
        changes[active] = (finer - masses[active]).abs()
        masses[active] = finer
    return Histogram(counts, torch.cat([masses, masses.new_zeros(1)]), changes.sum().item())


def _masses(
    log_prob: Callable[[Tensor], Tensor],
    center: Tensor,
    spread: Tensor,
    corners: Tensor,
    cells: int,
    per_side: int,
) -> Tensor:
    """The midpoint rule with ``per_side``^D points in each of the given cells."""
    dim, width = len(center), 2 * _HALF_WIDTH / cells
    ticks = (torch.arange(per_side, dtype=center.dtype) + 0.5) / per_side
    offsets = torch.cartesian_prod(*[ticks] * dim).reshape(-1, dim)
    masses = []
    for some in corners.split(max(1, _CHUNK // len(offsets))):
        t = (some[:, None] + offsets) * width - _HALF_WIDTH
        z = center + spread * t.sinh()
        volume = (spread * t.cosh() * (width / per_side)).log().sum(-1)
        score = log_prob(z.reshape(-1, dim)).reshape(volume.shape)
        masses.append((score + volume).exp().sum(-1))
    return torch.cat(masses)


def jacobian(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The Jacobian ``(n, D, D)`` by autograd of a function that maps each row by itself."""
    rows = rows.detach().requires_grad_()
    output = function(rows)
    lines = [
        torch.autograd.grad(output[..., i].sum(), rows, retain_graph=True)[0]
        for i in range(output.shape[-1])
    ]
    return torch.stack(lines, dim=-2)


def only_row_changed(before: Tensor, after: Tensor, row: int) -> None:
    """Asserts it, of rows along the first dimension."""
    kept = torch.arange(len(before)) != row
    torch.testing.assert_close(after[kept], before[kept], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[row], before[row])


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
