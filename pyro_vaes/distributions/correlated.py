"""Correlated elements: vectors as data of any shape, and rows that share one scatter.

What was not seen of a row (NaN) is integrated out: the marginal of a normal or of a Student's t has
the rows and columns of the covariance that belong to what was seen. ``given(value)`` is the
distribution of the whole row, given that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vaes.distributions.scaled_normal import student_constant

__all__ = ["Given", "Shaped", "SharedLowRankNormal", "SharedNormal", "SharedStudentT"]

# Numbers in the covariances of rows with gaps that are made at once.
_NUMBERS = 2**22


class Shaped(dist.TorchDistribution):
    """A distribution over vectors as one over data of another shape.

    (A ``TransformedDistribution`` would have no mean.)

    >>> normal = dist.MultivariateNormal(torch.zeros(6), torch.eye(6))
    >>> pv.distributions.Shaped(normal, (1, 3, 2)).sample((5,)).shape
    torch.Size([5, 1, 3, 2])

    Args:
        base: with event shape ``(D,)``.
        event_shape: D numbers in another order of dimensions.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, base: Any, event_shape: tuple[int, ...], validate_args: bool | None = None
    ) -> None:
        self.base_dist = base
        if hasattr(base, "stand_in"):
            self.stand_in = base.stand_in
        super().__init__(base.batch_shape, Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All data of that shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_rsample)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Shaped:
        return Shaped(self.base_dist.expand(batch_shape), tuple(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value.flatten(-len(self.event_shape)))  # type: ignore[no-any-return]

    def given(self, value: Tensor) -> Any:
        """The distribution of the datum, given what was seen of it, by a base that has one."""
        flat = value.flatten(-len(self.event_shape))
        return Shaped(self.base_dist.given(flat), tuple(self.event_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self._shaped(self.base_dist.rsample(sample_shape))

    def _shaped(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:-1], *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """Of the base."""
        return self._shaped(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        """Of the base."""
        return self._shaped(self.base_dist.variance)


class Given(dist.TorchDistribution):
    """A distribution of rows of which something was seen: its mean and draws.

    >>> normal = pv.distributions.SharedNormal(torch.zeros(1, 2), torch.eye(2))
    >>> normal.given(torch.tensor([[3.0, torch.nan]])).mean
    tensor([[3., 0.]])

    Args:
        mean: of the rows, ``(*batch, D)``; what was seen is as it was.
        draw: makes a draw of the rows' shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, mean: Tensor, draw: Callable[[], Tensor]) -> None:
        self._mean, self._draw = mean, draw
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """What was seen, and the mean of what was not."""
        return self._mean

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            draws = [self._draw() for _ in range(Size(sample_shape).numel())]
        return torch.stack(draws).reshape(Size(sample_shape) + self._mean.shape)


class _Gappy:
    """Rows of one scatter, of which a NaN was not seen.

    Whether there are gaps is looked for, unless it is known. A step that is recorded cannot look:
    it scores rows one by one, as gaps need, unless it is known that there are none.
    """

    loc: Tensor
    gaps: bool | None
    _validate_args: bool
    _validate_sample: Callable[[Tensor], None]
    stand_in = 0.0

    def log_prob(self, value: Tensor) -> Tensor:
        if not self._some(value):
            return self._whole(value)
        if self._validate_args:
            self._validate_sample(torch.where(value.isnan(), self.stand_in, value))
        seen, away = self._away(value)
        square, log_det, _ = self._solved(seen, away)
        return self._scored(square, log_det, seen.sum(-1).to(away))

    def given(self, value: Tensor) -> Given:
        """The distribution of the rows, given what was seen of them."""
        seen, away = self._away(value)
        square, _, fill = self._solved(seen, away)
        seen = seen.expand(away.shape)

        def draw() -> Tensor:
            # A draw of all, corrected by what it misses in what was seen (Matheron's rule).
            noise = self._noise(away.shape[:-1])
            left = noise - self._solved(seen, torch.where(seen, noise, 0.0))[2]
            left = left * self._tail(square, seen.sum(-1).to(away)).unsqueeze(-1)
            return torch.where(seen, value, self.loc + fill + left)

        return Given(torch.where(seen, value, self.loc + fill), draw)

    def _some(self, value: Tensor) -> bool:
        if self.gaps or not value.is_floating_point():
            return bool(self.gaps)
        try:
            return bool(value.isnan().any())
        except RuntimeError:  # Recorded, or under vmap.
            return self.gaps is None

    def _away(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen, and how far it is from the centre: 0 for what was not."""
        seen = ~value.isnan()
        return seen, torch.where(seen, value - self.loc, 0.0)

    def _whole(self, value: Tensor) -> Tensor:
        """Log-probability of rows without gaps."""
        return super().log_prob(value)  # type: ignore[misc, no-any-return]

    def _scored(self, square: Tensor, log_det: Tensor, count: Tensor) -> Tensor:
        """Log-probability from the Mahalanobis distance, log det of the factor and number seen."""
        return -0.5 * (square + count * math.log(2 * math.pi)) - log_det

    def _tail(self, square: Tensor, count: Tensor) -> Tensor:
        """A draw of what normal noise is multiplied by, given what was seen."""
        return torch.ones_like(square)

    def _noise(self, batch_shape: Size) -> Tensor:
        """Normal noise of the scatter."""
        raise NotImplementedError

    def _solved(self, seen: Tensor, away: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared Mahalanobis distance, log det of the factor, and the regression on what was seen.

        Args:
            seen: ``(*rows, D)``.
            away: ``(*draws, *rows, D)``, 0 where nothing was seen.
        """
        raise NotImplementedError


class _GappyFactor(_Gappy):
    """By a triangular factor of the scatter, ``(D, D)``."""

    _unbroadcasted_scale_tril: Tensor

    def _noise(self, batch_shape: Size) -> Tensor:
        noise = torch.randn(*batch_shape, self.loc.shape[-1]).to(self.loc)
        return noise @ self._unbroadcasted_scale_tril.mT

    def _solved(self, seen: Tensor, away: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # In double precision, since a covariance has the squares of the factor's numbers.
        factor, size = self._unbroadcasted_scale_tril.double(), away.shape[-1]
        scatter, shape = factor @ factor.mT, torch.broadcast_shapes(seen.shape, away.shape)
        rows = shape[away.dim() - seen.dim() :]
        patterns = seen.expand(rows).reshape(-1, size)
        columns = away.expand(shape).reshape(-1, len(patterns), size).permute(1, 2, 0)
        pieces = max(1, _NUMBERS // size**2)
        pairs = zip(patterns.split(pieces), columns.double().split(pieces), strict=True)
        found = [_regressed(scatter, *pair) for pair in pairs]
        square, log_det, fill = (torch.cat(parts) for parts in zip(*found, strict=True))
        return (
            square.mT.reshape(shape[:-1]).to(away),
            log_det.reshape(rows[:-1]).to(away),
            fill.permute(2, 0, 1).reshape(shape).to(away),
        )


def _regressed(scatter: Tensor, seen: Tensor, away: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`_Gappy._solved`: of rows ``(n, D)`` and ``(n, D, draws)``.

    What was not seen is given unit variance and no correlations, which adds nothing.
    """
    both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
    unit = torch.eye(seen.shape[-1], dtype=scatter.dtype, device=scatter.device)
    factor = torch.linalg.cholesky(torch.where(both, scatter, unit))
    white = torch.linalg.solve_triangular(factor, away, upper=False)
    to = torch.linalg.solve_triangular(factor.mT, white, upper=True)
    fill = torch.where(seen.unsqueeze(-1), 0.0, scatter @ to)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return white.square().sum(-2), log_det, fill


class SharedNormal(_GappyFactor, dist.MultivariateNormal):
    """A multivariate normal with one covariance for all rows, of which a NaN was not seen.

    >>> normal = pv.distributions.SharedNormal(torch.zeros(9, 2), torch.eye(2))
    >>> round(normal.log_prob(torch.tensor([0.0, torch.nan]))[0].item(), 3)
    -0.919

    Args:
        loc: ``(*batch, D)``.
        scale_tril: ``(D, D)``, lower triangular.
        gaps: whether values have gaps; None where it is not known.
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, gaps: bool | None = None) -> None:
        self.gaps = gaps
        super().__init__(loc, scale_tril=scale_tril)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SharedNormal:
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return SharedNormal(loc, self._unbroadcasted_scale_tril, self.gaps)


class SharedLowRankNormal(_Gappy, dist.LowRankMultivariateNormal):
    """A normal of covariance W W' + diag, the same for all rows, of which a NaN was not seen.

    >>> loc, wide, own = torch.zeros(9, 2), torch.eye(2), torch.ones(2)
    >>> normal = pv.distributions.SharedLowRankNormal(loc, wide, own)
    >>> round(normal.log_prob(torch.tensor([0.0, torch.nan]))[0].item(), 3)
    -1.266

    Args:
        loc: ``(*batch, D)``.
        cov_factor: W, ``(D, rank)``.
        cov_diag: ``(D,)``.
        gaps: whether values have gaps; None where it is not known.
    """

    def __init__(
        self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, gaps: bool | None = None
    ) -> None:
        self.gaps, self.wide, self.own = gaps, cov_factor, cov_diag
        super().__init__(loc, cov_factor, cov_diag)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SharedLowRankNormal:
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return SharedLowRankNormal(loc, self.wide, self.own, self.gaps)

    def _noise(self, batch_shape: Size) -> Tensor:
        common = torch.randn(*batch_shape, self.wide.shape[-1]).to(self.loc) @ self.wide.mT
        return common + self.own.sqrt() * torch.randn(*batch_shape, len(self.own)).to(self.loc)

    def _solved(self, seen: Tensor, away: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Woodbury's identity on the rows of W that were seen, with unit variance elsewhere.
        wide = torch.where(seen.unsqueeze(-1), self.wide, 0.0)
        own = torch.where(seen, self.own, 1.0)
        scaled = wide / own.unsqueeze(-1)
        inner = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device) + wide.mT @ scaled
        factor = torch.linalg.cholesky(inner)
        common = torch.einsum("...d,...dk->...k", away, scaled)
        white = torch.linalg.solve_triangular(factor, common.unsqueeze(-1), upper=False)
        codes = torch.linalg.solve_triangular(factor.mT, white, upper=True).squeeze(-1)
        square = (away.square() / own).sum(-1) - white.squeeze(-1).square().sum(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * own.log().sum(-1)
        return square, log_det, torch.where(seen, 0.0, codes @ self.wide.mT)


class SharedStudentT(_GappyFactor, dist.MultivariateStudentT):
    """Pyro's multivariate Student's t with one scale matrix for all rows, solved for them at once.

    Pyro's repeats the matrix for each row, draws of z included.

    >>> t = pv.distributions.SharedStudentT(torch.tensor(4.0), torch.zeros(9, 3), torch.eye(3))
    >>> t.log_prob(torch.zeros(9, 3)).shape
    torch.Size([9])

    Args:
        df: degrees of freedom, ``()``.
        loc: ``(*batch, D)``.
        scale_tril: ``(D, D)``, lower triangular.
        gaps: whether values have gaps; None where it is not known.
    """

    def __init__(
        self, df: Tensor, loc: Tensor, scale_tril: Tensor, gaps: bool | None = None
    ) -> None:
        self.gaps = gaps
        super().__init__(df, loc, scale_tril)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SharedStudentT:
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return SharedStudentT(self.df.flatten()[0], loc, self._unbroadcasted_scale_tril, self.gaps)

    def _whole(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        away, factor = value - self.loc, self._unbroadcasted_scale_tril
        rows = torch.linalg.solve_triangular(
            factor, away.reshape(-1, away.shape[-1]).mT, upper=False
        )
        square = rows.square().sum(0).reshape(away.shape[:-1])
        count = away.new_tensor(away.shape[-1])
        return self._scored(square, factor.diagonal().log().sum(), count)

    def _scored(self, square: Tensor, log_det: Tensor, count: Tensor) -> Tensor:
        tail = 0.5 * (self.df + count) * torch.log1p(square / self.df)
        return student_constant(self.df, count) - log_det - tail

    def _tail(self, square: Tensor, count: Tensor) -> Tensor:
        # What was seen says how far out the row is.
        weight = torch.distributions.Gamma(0.5 * (self.df + count), 0.5 * (self.df + square))
        return weight.sample().rsqrt()

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        noise = torch.randn(
            self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device
        )
        chi2 = self._chi2.rsample(sample_shape)
        rows = noise * torch.rsqrt(chi2 / self.df).unsqueeze(-1)
        return self.loc + rows @ self._unbroadcasted_scale_tril.mT
