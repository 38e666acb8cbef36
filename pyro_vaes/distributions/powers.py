"""Power transforms of standardised values, and distributions on their scale."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Powered", "power", "root", "slope"]


def power(u: Tensor, exponent: Tensor) -> Tensor:
    """Yeo and Johnson's transform: ((1 + u)^p - 1) / p above 0, with 2 - p mirrored below.

    >>> power(torch.tensor([3.0, -3.0]), torch.tensor([0.5, 1.0]))
    tensor([ 2., -3.])

    Args:
        u: standardised values.
        exponent: p, from 0 to 2.
    """
    p, straight, log = _parts(u, exponent)
    return u.sign() * torch.where(straight, log, torch.expm1(p * log) / p)


def root(v: Tensor, exponent: Tensor) -> Tensor:
    """The inverse of :func:`power`.

    >>> root(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0]))
    tensor([ 3., -3.])
    """
    p, straight, _ = _parts(v, exponent)
    log = torch.where(straight, v.abs(), torch.log1p(p * v.abs()) / p)
    return v.sign() * torch.expm1(log)


def slope(u: Tensor, exponent: Tensor) -> Tensor:
    """The log of the derivative of :func:`power`, element by element.

    >>> slope(torch.tensor([3.0]), torch.tensor([1.0]))
    tensor([0.])
    """
    return (exponent - 1) * u.sign() * torch.log1p(u.abs())


def _parts(u: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The exponent on each value's side (1 where it is 0), where it is 0, and log(1 + abs u)."""
    p = torch.where(u < 0, 2 - exponent, exponent)
    straight = p == 0
    return torch.where(straight, 1.0, p), straight, torch.log1p(u.abs())


class Powered(dist.TorchDistribution):
    """A distribution of real elements whose power transforms have another.

    Log-probabilities are those of the transformed values and the log of the slope. NaN is left out
    where the base leaves it out.

    >>> base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    >>> p = pv.distributions.Powered(base, torch.zeros(3), torch.zeros(3), torch.ones(3))
    >>> p.sample((5,)).shape
    torch.Size([5, 3])

    Args:
        base: of the transformed values.
        exponent: of each element, from 0 to 2.
        center: of each element; it is subtracted before the transform.
        spread: of each element; what is left is divided by it.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: Any,
        exponent: Tensor,
        center: Tensor,
        spread: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist = base
        self.exponent, self.center, self.spread = exponent, center, spread
        if hasattr(base, "stand_in"):
            self.stand_in = 0.0
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All data of that shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_rsample)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Powered:
        wide = self.base_dist.expand(batch_shape)
        return Powered(wide, self.exponent, self.center, self.spread)

    def log_prob(self, value: Tensor) -> Tensor:
        u = (value - self.center) / self.spread
        each = slope(u, self.exponent) - self.spread.log()
        dims = tuple(range(-len(self.event_shape), 0))
        gained = torch.where(value.isnan(), 0.0, each).sum(dims)
        return self.base_dist.log_prob(power(u, self.exponent)) + gained  # type: ignore[no-any-return]

    def given(self, value: Tensor) -> Any:
        """The distribution of the data, given what was seen; itself of independent elements."""
        if not hasattr(self.base_dist, "given"):
            return self
        base = self.base_dist.given(power((value - self.center) / self.spread, self.exponent))
        return Powered(base, self.exponent, self.center, self.spread)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self._data(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._data(self.base_dist.sample(sample_shape))

    def _data(self, values: Tensor) -> Tensor:
        return self.center + self.spread * root(values, self.exponent)

    @property
    def mean(self) -> Tensor:
        """Unknown in closed form; with heavy tails on a logarithmic scale there is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError

    @property
    def averages(self) -> Tensor:
        """Means of the transformed values, which have one."""
        return self.base_dist.mean  # type: ignore[no-any-return]

    def from_averages(self, averages: Tensor) -> Tensor:
        """The data at averages of :attr:`averages`: a median, where those are symmetric."""
        return self._data(averages)
