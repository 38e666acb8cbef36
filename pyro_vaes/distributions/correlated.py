"""Correlated elements: vectors as data of any shape, and a t whose rows share one scatter."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Shaped", "SharedStudentT"]


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


class SharedStudentT(dist.MultivariateStudentT):
    """Pyro's multivariate Student's t with one scale matrix for all rows, solved for them at once.

    Pyro's repeats the matrix for each row, draws of z included.

    >>> t = pv.distributions.SharedStudentT(torch.tensor(4.0), torch.zeros(9, 3), torch.eye(3))
    >>> t.log_prob(torch.zeros(9, 3)).shape
    torch.Size([9])

    Args:
        df: degrees of freedom, ``()``.
        loc: ``(*batch, D)``.
        scale_tril: ``(D, D)``, lower triangular.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> SharedStudentT:
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return SharedStudentT(self.df.flatten()[0], loc, self._unbroadcasted_scale_tril)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        away, factor = value - self.loc, self._unbroadcasted_scale_tril
        rows = torch.linalg.solve_triangular(
            factor, away.reshape(-1, away.shape[-1]).mT, upper=False
        )
        square = rows.square().sum(0).reshape(away.shape[:-1])
        n, df = away.shape[-1], self.df
        constant = torch.lgamma((df + n) / 2) - torch.lgamma(df / 2)
        constant = constant - 0.5 * n * (df * math.pi).log() - factor.diagonal().log().sum()
        return constant - 0.5 * (df + n) * torch.log1p(square / df)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        noise = torch.randn(
            self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device
        )
        chi2 = self._chi2.rsample(sample_shape)
        rows = noise * torch.rsqrt(chi2 / self.df).unsqueeze(-1)
        return self.loc + rows @ self._unbroadcasted_scale_tril.mT
