"""Likelihoods of counts: whole numbers from 0 without a highest one, perhaps per exposure.

The rate of each element is its mean over the training data times the exponential of what the
network makes of z. An exposure (time at risk, area, library size) multiplies it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_vaes.core.labels import append_labels
from pyro_vaes.data.rows import thinned
from pyro_vaes.data.splits import as_split
from pyro_vaes.distributions.counts import Exposed, NegativeBinomial, Poisson, ZeroInflated
from pyro_vaes.distributions.elements import Elements
from pyro_vaes.networks.mlp import Network, shape_of
from pyro_vaes.parts.likelihoods import Likelihood
from pyro_vaes.parts.units import ElementUnits

__all__ = ["CountLikelihood", "NegativeBinomialLikelihood", "PoissonLikelihood"]


# Counts that are added to each element's, so that one that was never met has a rate.
_PRIOR_COUNT = 0.5


class CountLikelihood(ElementUnits, Likelihood):
    """Counts whose rates a network computes from z: what such likelihoods share.

    A subclass returns the distribution of counts from :meth:`counts`.

    Args:
        network: see :class:`~pyro_vaes.parts.likelihoods.Likelihood`.
        event_shape: shape of one datum.
        num_labels: number of labels of a conditional likelihood p(x | z, y); 0 for none.
        zero_inflated: let the network also give each element a probability of a 0 that is no count
            (nobody looked, the probe failed), on top of the counts' own.
        exposure: the last element of a datum, of shape ``(D + 1,)``, is its exposure, a positive
            number that multiplies all rates. It is given, not modelled: log p(x | z) is that of the
            D counts given it. Draws have the median exposure of the training data there.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        zero_inflated: bool = False,
        exposure: bool = False,
    ) -> None:
        shape = shape_of(event_shape)
        if exposure and (len(shape) != 1 or shape[0] < 2):
            raise ValueError(
                f"Expected event_shape (D + 1,), counts and their exposure; got {shape}."
            )
        counted = (shape[0] - 1,) if exposure else shape
        super().__init__(network, counted, num_labels, 2 if zero_inflated else 1)
        self.event_shape, self.counted = shape, counted
        self.zero_inflated, self.exposure = zero_inflated, exposure
        self._start_units()
        self.register_buffer("log_mean", torch.zeros(counted))
        self.register_buffer("typical", torch.ones(1) if exposure else None)

    def counts(self, log_rate: Tensor) -> Any:
        """The distribution of counts with these logs of their means, without other zeros."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize_from(self, x: Any, shared: bool = False) -> None:
        """Takes the mean rate of each element from training data, and the units of all elements.

        Args:
            x: training data ``(n, *event_shape)``, or a split.
            shared: see :class:`~pyro_vaes.parts.units.ElementUnits`.

        Raises:
            ValueError: for data of another shape.
        """
        super().initialize_from(x, shared)
        split = as_split(x)
        rows = split.x[thinned(split.x)].double()
        exposure = torch.ones(len(rows), *[1] * len(self.counted)).to(rows)
        if self.exposure:
            rows, exposure = rows[:, :-1], rows[:, -1:]
            cast(Tensor, self.typical).copy_(exposure.median())
        exposed = (exposure * ~rows.isnan()).sum(0)
        total = rows.nansum(0) + _PRIOR_COUNT
        rate = total / exposed.clamp(min=exposure.mean())
        cast(Tensor, self.log_mean).copy_(rate.log())
        self._start_from(rows, rate * exposure)

    def _start_from(self, counts: Tensor, mean: Tensor) -> None:
        """What else a subclass takes from training data, given each count's mean."""

    def _inflated(self, gate: Tensor | None, log_rate: Tensor) -> Any:
        counts = self.counts(log_rate)
        if gate is None:
            return counts
        return ZeroInflated(counts, gate)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        outputs = self.head(self.network(append_labels(z, y, self.num_labels)))
        shape = (*outputs.shape[:-1], *self.counted, self.parameters_per_element)
        parameters = outputs.reshape(shape)
        log_rate = cast(Tensor, self.log_mean) + parameters[..., 0]
        # Other zeros begin as few: the counts' own are there as well.
        gate = parameters[..., 1] - 2 if self.zero_inflated else None
        build = functools.partial(self._inflated, gate)
        if self.exposure:
            return Exposed(log_rate, build, cast(Tensor, self.typical))
        return Elements(build(log_rate), len(self.counted))


class PoissonLikelihood(CountLikelihood):
    """Counts with a Poisson distribution, perhaps with more zeros than it has.

    Zero-inflated: Lambert, "Zero-inflated Poisson regression" (Technometrics 1992). Given z the
    variance is the mean; counts that vary more want :class:`NegativeBinomialLikelihood`. See
    :class:`CountLikelihood` for the arguments.

    >>> likelihood = pv.PoissonLikelihood(pv.MLP(2, [8]), event_shape=(3,))
    >>> likelihood.initialize_from(torch.poisson(torch.full((50, 3), 4.0)))
    >>> likelihood(torch.zeros(5, 2)).sample().shape
    torch.Size([5, 3])
    """

    def counts(self, log_rate: Tensor) -> Any:
        return Poisson(log_rate.exp())


class NegativeBinomialLikelihood(CountLikelihood):
    """Counts that vary more than a Poisson's: a Poisson whose rate is gamma distributed.

    Given z the variance is mean + mean^2 / r, with one r for each element, shared by all data
    (Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018, equation 5).
    See :class:`CountLikelihood` for the arguments.

    >>> likelihood = pv.NegativeBinomialLikelihood(pv.MLP(2, [8]), (4,), exposure=True)
    >>> cells = torch.tensor([[3.0, 0.0, 9.0, 1200.0], [1.0, 1.0, 2.0, 400.0]])
    >>> likelihood.initialize_from(cells)
    >>> likelihood(torch.zeros(2, 2)).log_prob(cells).shape
    torch.Size([2])
    """

    # The log of r moves as fast as a log of a scale, see NormalLikelihood.
    PACE = 10.0

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        zero_inflated: bool = False,
        exposure: bool = False,
    ) -> None:
        super().__init__(network, event_shape, num_labels, zero_inflated, exposure)
        self.log_total = nn.Parameter(torch.zeros(self.counted))

    @property
    def total_count(self) -> Tensor:
        """The r of each element, positive."""
        return (self.PACE * self.log_total).exp()

    def _start_from(self, counts: Tensor, mean: Tensor) -> None:
        # By moments: E[(x - m)^2 - m] = E[m^2] / r.
        excess = ((counts - mean).square() - mean).nansum(0)
        squares = torch.where(counts.isnan(), 0.0, mean.square()).sum(0)
        found = (squares / excess.clamp(min=1e-12)).clamp(0.05, 100.0)
        self.log_total.copy_(found.log() / self.PACE)

    def counts(self, log_rate: Tensor) -> Any:
        logits = log_rate - self.PACE * self.log_total
        return NegativeBinomial(self.total_count, logits=logits)
