"""Counts with other zeros than their own, and counts given an exposure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vaes.distributions.elements import Elements, joined_shape

__all__ = ["Exposed", "NegativeBinomial", "Poisson", "ZeroInflated"]


class Poisson(dist.Poisson):
    """A Poisson that scores in double precision.

    Powers and factorials of a count of a million have logarithms of ten million, of which single
    precision keeps 1: their difference, a log-probability of -8, would be wrong by a nat.

    >>> millions = torch.tensor([1e6, 1e7])
    >>> pv.distributions.Poisson(millions).log_prob(millions)
    tensor([-7.8267, -8.9780])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        wide = dist.Poisson(_wide(self.rate), validate_args=False)
        return _narrow(wide.log_prob(_wide(value)), self.rate, value)


class NegativeBinomial(dist.NegativeBinomial):
    """A negative binomial that scores in double precision, for the same reason.

    >>> r, mean = torch.tensor(1e7), torch.tensor(3.0)  # All but a Poisson.
    >>> p = pv.distributions.NegativeBinomial(r, logits=(mean / r).log())
    >>> round(p.log_prob(torch.tensor(3.0)).exp().item(), 3)
    0.224
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        total, logits = _wide(self.total_count), _wide(self.logits)
        wide = dist.NegativeBinomial(total, logits=logits, validate_args=False)
        return _narrow(wide.log_prob(_wide(value)), self.logits, value)


def _wide(values: Tensor) -> Tensor:
    return values if values.device.type == "mps" else values.double()  # Metal has no float64.


def _narrow(scores: Tensor, parameter: Tensor, value: Tensor) -> Tensor:
    """Scores in the precision that they would have been computed in."""
    return scores.to(torch.result_type(parameter, value))


class ZeroInflated(dist.ZeroInflatedDistribution):
    """A distribution over counts with other zeros than its own.

    Pyro's keeps the gate that a draw computed, then scores by it and cannot be expanded any more.

    >>> counts = pv.distributions.ZeroInflated(dist.Poisson(torch.ones(3)), torch.zeros(3))
    >>> counts.sample().shape, counts.expand((2, 3)).mean.shape
    (torch.Size([3]), torch.Size([2, 3]))

    Args:
        base: the distribution of the counts.
        gate_logits: log odds of a zero that is no count.
    """

    def __init__(self, base: Any, gate_logits: Tensor) -> None:
        super().__init__(base, gate_logits=gate_logits)

    @property
    def gate(self) -> Tensor:
        """The probability of such a zero."""
        return self.gate_logits.sigmoid()

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroInflated:
        return ZeroInflated(
            self.base_dist.expand(batch_shape), self.gate_logits.expand(batch_shape)
        )


class Exposed(dist.TorchDistribution):
    """D counts and their exposure, ``(D + 1,)``: p(counts | exposure), the exposure being given.

    As a density over all D + 1 elements it is one conditional on the last: it sums to 1 over the
    counts at any exposure. Draws and means are at a typical exposure, which they hold; those of
    ``given(value)`` at the exposures of a value.

    >>> rates = torch.zeros(5, 2)
    >>> counts = pv.distributions.Exposed(rates, lambda m: dist.Poisson(m.exp()), torch.ones(1))
    >>> counts.mean[0].tolist()
    [1.0, 1.0, 1.0]

    Args:
        log_rate: logs of the mean counts per unit of exposure, ``(*batch, D)``.
        counts: maps logs of mean counts to the distribution of the counts.
        typical: the exposure of draws and means, ``(1,)`` or ``(*batch, 1)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    # A count that was not seen is left out; there must be an exposure.
    stand_in = 0.0

    def __init__(
        self,
        log_rate: Tensor,
        counts: Callable[[Tensor], Any],
        typical: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.log_rate, self.counts, self.typical = log_rate, counts, typical
        event = Size((log_rate.shape[-1] + 1,))
        super().__init__(log_rate.shape[:-1], event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Whole numbers, and above zero the exposure."""
        parts = [constraints.nonnegative_integer, constraints.positive]
        lengths = [self.event_shape[0] - 1, 1]
        return constraints.independent(constraints.cat(parts, -1, lengths), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Exposed:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def given(self, value: Tensor) -> Exposed:
        """The distribution of the data at their own exposures, not at a typical one."""
        new = self.expand(self.batch_shape)
        new.typical = value[..., -1:]
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(torch.where(value.isnan(), self.stand_in, value))
        counts, exposure = value[..., :-1], value[..., -1:]
        score = self._given(exposure).log_prob(counts)
        return score.expand(joined_shape(score.shape, self.batch_shape))

    def _given(self, exposure: Tensor) -> Elements:
        return Elements(self.counts(self.log_rate + exposure.log()), 1)

    def _with_exposure(self, counts: Tensor) -> Tensor:
        exposure = self.typical.to(counts).expand(*counts.shape[:-1], 1)
        return torch.cat([counts, exposure], -1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            given = self._given(self.typical).expand(self.batch_shape)
            return self._with_exposure(given.sample(sample_shape))

    @property
    def mean(self) -> Tensor:
        """Expected counts at the typical exposure, and that, ``(*batch, D + 1)``."""
        return self._with_exposure(self._given(self.typical).expand(self.batch_shape).mean)
