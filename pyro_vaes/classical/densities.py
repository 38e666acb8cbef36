"""The best classical density of a table: is a latent variable worth having?

Each is fitted to the training rows and chosen by the validation rows, in standardised units; scores
are in the units of the data. Floors under variances are part of the choice: they decide the density
of columns that are close to a function of others.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.data.splits import as_split
from pyro_vaes.data.units import units_of

__all__ = ["Classical", "best_density", "candidates"]


_COMPONENTS = (1, 2, 3, 5, 8, 12, 20)
_FLOORS = (1e-4, 1e-3, 1e-2)
_SHRINKAGES = (1e-3, 1e-2, 3e-2, 0.1, 0.3)
# Rows for each component, and rows that a fit looks at.
_ROWS_EACH, _MOST_ROWS = 10, 5000
# A floor under the variances of what factors do not explain.
_FLOOR = 1e-4


class _Normal:
    """A normal by its moments."""

    def __init__(self, mean: Any, covariance: Any) -> None:
        self.mean, self.factor = mean, np.linalg.cholesky(covariance)

    def score_samples(self, rows: Any) -> Any:
        away = np.linalg.solve(self.factor, (rows - self.mean).T)
        constant = 2 * np.log(self.factor.diagonal()) + math.log(2 * math.pi)
        return -0.5 * ((away**2).sum(0) + constant.sum())


@dataclasses.dataclass(frozen=True)
class Classical:
    """A density that was fitted and chosen.

    Attributes:
        name: the model and what was chosen of it.
        model: scores standardised rows.
        center: of each column.
        spread: of each column.
    """

    name: str
    model: Any
    center: Tensor
    spread: Tensor

    def log_prob(self, x: Any) -> Tensor:
        """Log densities of rows ``(n, D)``, ``(n,)``, in nats and the units of the data."""
        rows = (_rows(x) - self.center) / self.spread
        found = torch.as_tensor(self.model.score_samples(rows.numpy()))
        return found - self.spread.log().sum()


def best_density(train: Any, val: Any, seed: int = 0, only: str = "") -> Classical:
    """The classical density that scores the validation rows best.

    Among a normal with a shrunken covariance, probabilistic principal components, factor analyses,
    mixtures of normals, one multivariate t and mixtures of t's. Of many rows it sees 5000, and its
    name says so.

    >>> from pyro_vaes.classical.densities import best_density
    >>> found = best_density(torch.randn(200, 3), torch.randn(50, 3), only="Factor")
    >>> found.name, found.log_prob(torch.zeros(5, 3)).shape
    ('FactorAnalysis, 1 factor', torch.Size([5]))

    Args:
        train: rows ``(n, D)`` without gaps, or a split.
        val: the same, to choose by.
        seed: of the fits that draw random numbers, and of the rows they look at if there are many.
        only: part of the names of those to choose among.

    Raises:
        ValueError: for rows with gaps, or none of that name.
    """
    x = as_split(train).x
    center, spread = units_of(x, x.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)[:_MOST_ROWS]
    some, other = (((_rows(t) - center) / spread) for t in (x[order], as_split(val).x))
    if some.isnan().any() or other.isnan().any():
        raise ValueError("Expected rows without gaps for a classical density; got some.")
    best: tuple[float, str, Any] | None = None
    for name, model in candidates(some.numpy(), seed, only):
        value = float(np.mean(model.score_samples(other.numpy())))
        if math.isfinite(value) and (best is None or value > best[0]):
            best = value, name, model
    if best is None:
        raise ValueError(f"Expected part of the name of a classical density; got {only!r}.")
    fewer = f", of {_MOST_ROWS} rows" if len(x) > _MOST_ROWS else ""
    return Classical(best[1] + fewer, best[2], center, spread)


def candidates(rows: Any, seed: int, only: str = "") -> Iterator[tuple[str, Any]]:
    """Names and fitted models of standardised rows ``(n, D)``; those that fail are left out."""
    most = min(12, rows.shape[1] - 1)
    counts = [k for k in _COMPONENTS if k == 1 or len(rows) >= _ROWS_EACH * k]
    plans: list[tuple[str, Any]] = []
    plans += [(f"normal, shrunk by {s:g}", lambda s=s: _shrunken(rows, s)) for s in _SHRINKAGES]
    plans += [(f"PCA, {_count(k, 'component')}", lambda k=k: _pca(rows, k)) for k in range(1, most)]
    plans += [
        (f"FactorAnalysis, {_count(k, 'factor')}", lambda k=k: _factors(rows, k))
        for k in range(1, most + 1)
    ]
    plans += [
        (
            f"GaussianMixture, {kind}, {_count(k, 'component')}, floor {floor:g}",
            lambda k=k, kind=kind, floor=floor: _mixture(rows, k, kind, floor, seed),
        )
        for k, kind, floor in itertools.product(counts, ("full", "diag"), _FLOORS)
    ]
    plans += [
        (
            f"mixture of t's, {_count(k, 'component')}, floor {floor:g}"
            if k > 1
            else f"multivariate t, floor {floor:g}",
            lambda k=k, floor=floor: _student(rows, k, floor, seed),
        )
        for k, floor in itertools.product(counts[:4], _FLOORS)
    ]
    for name, fit in plans:
        if only in name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Not converged: another will score better.
                try:
                    model = fit()
                except (np.linalg.LinAlgError, ValueError):
                    continue
            yield name, model


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _rows(x: Any) -> Tensor:
    return as_split(x).x.detach().cpu().double()


def _shrunken(rows: Any, shrinkage: float) -> Any:
    from sklearn.covariance import ShrunkCovariance

    found = ShrunkCovariance(shrinkage=shrinkage).fit(rows)
    return _Normal(found.location_, found.covariance_)


def _pca(rows: Any, count: int) -> Any:
    from sklearn.decomposition import PCA

    found = PCA(count, svd_solver="full").fit(rows)
    return _Normal(found.mean_, found.get_covariance())


def _factors(rows: Any, count: int) -> Any:
    from sklearn.decomposition import FactorAnalysis

    found = FactorAnalysis(count).fit(rows)
    noise = np.maximum(found.noise_variance_, _FLOOR)
    return _Normal(found.mean_, found.components_.T @ found.components_ + np.diag(noise))


def _mixture(rows: Any, count: int, kind: str, floor: float, seed: int) -> Any:
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(count, covariance_type=kind, reg_covar=floor, random_state=seed).fit(
        rows
    )


def _student(rows: Any, count: int, floor: float, seed: int) -> Any:
    from pyro_vaes.classical.student import StudentMixture  # Imports SciPy.

    return StudentMixture(count, floor, seed=seed).fit(rows)
