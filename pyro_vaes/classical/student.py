"""Mixtures of multivariate Student's t distributions, which scikit-learn lacks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, special

__all__ = ["StudentMixture"]

Array = Any

# Degrees of freedom: a t has a covariance above 2, and is a normal for all purposes far up.
_LEAST, _MOST = 2.05, 1e3


class StudentMixture:
    """A mixture of K multivariate t's with full scatter and one number of degrees of freedom.

    Fitted by expectation and conditional maximisation, from a mixture of normals: Peel and
    McLachlan, "Robust mixture modelling using the t distribution" (2000). K = 1 is one
    multivariate t.

    >>> import numpy as np
    >>> from pyro_vaes.classical.student import StudentMixture
    >>> rows = np.random.default_rng(0).standard_t(3, (500, 2))
    >>> model = StudentMixture(1).fit(rows)
    >>> model.score_samples(rows).shape, bool(2.1 < model.df < 6)
    ((500,), True)

    Args:
        num_components: K.
        floor: added to the diagonal of each scatter matrix.
        steps: most iterations.
        tolerance: they end when the mean log-likelihood of a row rises by less, in nats.
        seed: of the mixture of normals.
    """

    def __init__(
        self,
        num_components: int = 1,
        floor: float = 1e-3,
        steps: int = 100,
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> None:
        self.num_components, self.floor = num_components, floor
        self.steps, self.tolerance, self.seed = steps, tolerance, seed

    def fit(self, rows: Array) -> StudentMixture:
        """Fits rows ``(n, D)``; returns itself."""
        from sklearn.mixture import GaussianMixture

        start = GaussianMixture(
            self.num_components, reg_covar=self.floor, random_state=self.seed, max_iter=50
        ).fit(rows)
        self.weights, self.locs = start.weights_, start.means_
        self.scatters, self.df = start.covariances_, 10.0
        before = -math.inf
        for _ in range(self.steps):
            mean = self._step(rows)
            if mean - before < self.tolerance:
                break
            before = mean
        return self

    def score_samples(self, rows: Array) -> Array:
        """Log densities of rows ``(n, D)``, ``(n,)``, in nats."""
        return special.logsumexp(self._joint(*self._distances(rows), self.df), axis=1)

    def _distances(self, rows: Array) -> tuple[Array, Array]:
        """Squared distances in units of the scatters ``(n, K)``, and their log determinants."""
        factors = np.linalg.cholesky(self.scatters)
        away = [
            np.linalg.solve(factor, (rows - loc).T)
            for factor, loc in zip(factors, self.locs, strict=True)
        ]
        logs = 2 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
        return np.stack([(part**2).sum(0) for part in away], 1), logs

    def _joint(self, square: Array, logs: Array, df: float) -> Array:
        """Log of weight times density, for each row and component."""
        d = self.locs.shape[1]
        constant = special.gammaln((df + d) / 2) - special.gammaln(df / 2)
        constant -= d / 2 * math.log(df * math.pi)
        with np.errstate(divide="ignore"):  # A component may lose all its weight.
            log_weights = np.log(self.weights)
        return log_weights + constant - logs / 2 - (df + d) / 2 * np.log1p(square / df)

    def _step(self, rows: Array) -> float:
        """One iteration; returns the mean log-likelihood before it."""
        square, logs = self._distances(rows)
        joint = self._joint(square, logs, self.df)
        mean = float(special.logsumexp(joint, axis=1).mean())
        share = special.softmax(joint, axis=1)
        scaled = share * (self.df + rows.shape[1]) / (self.df + square)
        total = share.sum(0) + 1e-12
        self.weights = total / total.sum()
        self.locs = scaled.T @ rows / (scaled.sum(0)[:, None] + 1e-12)
        away = rows - self.locs[:, None]
        self.scatters = np.einsum("nk,kni,knj->kij", scaled, away, away) / total[:, None, None]
        self.scatters += self.floor * np.eye(rows.shape[1])
        self.df = self._best_df(rows)
        return mean

    def _best_df(self, rows: Array) -> float:
        square, logs = self._distances(rows)

        def loss(log_df: float) -> float:
            joint = self._joint(square, logs, math.exp(log_df))
            return -float(special.logsumexp(joint, axis=1).mean())

        bounds = (math.log(_LEAST), math.log(_MOST))
        found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
        return math.exp(found.x)
