"""Likelihoods of real elements whose noise is correlated, or has heavy tails in common.

What is learned of the noise is shared by all data; only its centre depends on z. Elements that were
not seen (NaN) are integrated out. Rows with gaps take longer: each has a covariance of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_vaes.core.checks import positive
from pyro_vaes.core.labels import append_labels
from pyro_vaes.data.splits import as_split
from pyro_vaes.data.tables import num_gaps
from pyro_vaes.distributions.autoregressive import SharedAutoregressiveNormal
from pyro_vaes.distributions.correlated import (
    Shaped,
    SharedLowRankNormal,
    SharedNormal,
    SharedStudentT,
)
from pyro_vaes.networks.mlp import Network
from pyro_vaes.parts.likelihoods import Likelihood
from pyro_vaes.parts.units import ElementUnits

__all__ = [
    "AutoregressiveNormalLikelihood",
    "CorrelatedLikelihood",
    "LowRankNormalLikelihood",
    "StudentTLikelihood",
]


class CorrelatedLikelihood(ElementUnits, Likelihood):
    """Real elements with one noise over all of them: what such likelihoods share.

    A subclass returns the distribution of flat data around their centres from :meth:`around`.

    Args:
        network: see :class:`~pyro_vaes.parts.likelihoods.Likelihood`.
        event_shape: shape of one datum, of D numbers.
        num_labels: number of labels of a conditional likelihood p(x | z, y); 0 for none.
        initial_scale: where the scales start, in spreads of each element; in the units of the data
            as long as ``initialize_from`` has not been called.
        min_scale: a floor under the scale of each element given those before it, in the same units.

    Attributes:
        gaps: whether data in training have gaps, which a recorded step has to know; None where it
            is not known. ``initialize_from`` sets it.

    Raises:
        ValueError: for sizes that do not fit each other, or scales that are none.
    """

    gaps: bool | None

    # As in NormalLikelihood: a log of a scale moves ten times as fast as a weight.
    PACE = 10.0

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        initial_scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(network, event_shape, num_labels)
        if not 0 < min_scale < initial_scale < math.inf:
            raise ValueError(
                f"Expected 0 < min_scale < initial_scale; got {min_scale} and {initial_scale}."
            )
        self.min_scale, self.size = min_scale, math.prod(self.event_shape)
        start = math.log(initial_scale - min_scale) / self.PACE
        self.log_scale = nn.Parameter(torch.full((self.size,), start))
        self.gaps = None
        self._start_units()

    def initialize_from(self, x: Any, shared: bool = False) -> None:
        super().initialize_from(x, shared)
        self.gaps = num_gaps(as_split(x).x) > 0

    @property
    def scale(self) -> Tensor:
        """The scales, ``(D,)``, in spreads of each element."""
        return self.min_scale + (self.PACE * self.log_scale).exp()

    @property
    def spreads(self) -> Tensor:
        """The spread of each element, ``(D,)``."""
        return self.units[1].flatten()

    def factor(self, below: Tensor | None) -> Tensor:
        """The lower triangular factor of a covariance, ``(D, D)``, in the units of the data."""
        lower = self.scale.diag()
        if below is not None:
            lower = lower + below.tril(-1)
        return self.spreads.unsqueeze(-1) * lower

    def around(self, loc: Tensor) -> Any:
        """The distribution of flat data around centres ``(*batch, D)``."""
        raise NotImplementedError

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        outputs = self.head(self.network(append_labels(z, y, self.num_labels)))
        vectors = self.around(self.units[0].flatten() + self.spreads * outputs)
        return vectors if len(self.event_shape) == 1 else Shaped(vectors, self.event_shape)


class StudentTLikelihood(CorrelatedLikelihood):
    """One multivariate Student's t for the whole datum, its scatter shared over z.

    A datum far out in one element is expected to be so in the others: a few such rows decide a
    normal's likelihood of a table. Lange, Little and Taylor, "Robust statistical modeling using the
    t distribution" (JASA 1989). It is parametrised by its covariance C and degrees of freedom
    df > 2, with the scale matrix (df - 2) / df C, so that df can be learned without C in its way.
    See :class:`CorrelatedLikelihood` for the other arguments.

    >>> likelihood = pv.StudentTLikelihood(pv.MLP(2, [8]), event_shape=(3,))
    >>> likelihood.initialize_from(torch.randn(50, 3))
    >>> likelihood(torch.zeros(5, 2)).sample().shape
    torch.Size([5, 3])

    Args:
        full: a full covariance; False for a diagonal one, which many columns and few rows want.
        initial_df: degrees of freedom at the start, above 2.
    """

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        full: bool = True,
        initial_df: float = 6.5,
        initial_scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(network, event_shape, num_labels, initial_scale, min_scale)
        if not 2 < initial_df < math.inf:
            raise ValueError(f"Expected initial_df above 2; got {initial_df}.")
        self.log_df = nn.Parameter(torch.tensor(math.log(initial_df - 2) / self.PACE))
        self.below = nn.Parameter(torch.zeros(self.size, self.size)) if full else None

    @property
    def df(self) -> Tensor:
        """The degrees of freedom, above 2."""
        return 2 + (self.PACE * self.log_df).exp()

    def around(self, loc: Tensor) -> Any:
        shrink = ((self.df - 2) / self.df).sqrt()
        return SharedStudentT(self.df, loc, shrink * self.factor(self.below), self.gaps)


class LowRankNormalLikelihood(CorrelatedLikelihood):
    """Normal noise that is correlated: of low rank and a diagonal, or of full covariance.

    The noise of factor analysis, next to what z explains: neighbours in a smooth signal are off in
    the same direction. See :class:`CorrelatedLikelihood` for the other arguments.

    >>> likelihood = pv.LowRankNormalLikelihood(pv.MLP(2, [8]), event_shape=(1, 40), rank=3)
    >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 1, 40)).shape
    torch.Size([5])

    Args:
        rank: columns of the factor W of the covariance W W' + diag; None for a full covariance.
    """

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        rank: int | None = 1,
        initial_scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(network, event_shape, num_labels, initial_scale, min_scale)
        if rank is not None:
            positive(rank=rank)
        self.rank = rank
        # At zero a factor of low rank would have no gradient.
        start = (
            torch.zeros(self.size, self.size)
            if rank is None
            else 0.1 * torch.randn(self.size, rank)
        )
        self.below = nn.Parameter(start)

    def initialize_from(self, x: Any, shared: bool = False) -> None:
        """See the base.

        Raises:
            ValueError: for data so small or large that their variances cannot be stored.
        """
        super().initialize_from(x, shared)
        least, most = (self.min_scale * self.spreads).square(), self.spreads.square()
        wrong = (least < torch.finfo(least.dtype).tiny) | ~most.isfinite()
        if self.rank is not None and bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"Expected elements whose variances {least.dtype} can hold; got a standard "
                f"deviation of {self.spreads[i]:.3g} in element {i}. Give them in another unit."
            )

    def around(self, loc: Tensor) -> Any:
        if self.rank is None:
            return SharedNormal(loc, self.factor(cast(Tensor, self.below)), self.gaps)
        wide = self.spreads.unsqueeze(-1) * self.below
        return SharedLowRankNormal(loc, wide, (self.spreads * self.scale).square(), self.gaps)


class AutoregressiveNormalLikelihood(CorrelatedLikelihood):
    """Normal noise of a signal that is correlated over time: autoregressive around the mean.

    Each element's noise is a linear function of the ``order`` before it, plus an innovation:
    Yule, "On a method of investigating periodicities in disturbed series" (1927). Time is the last
    dimension of a datum; others, channels for instance, are series of their own with the same
    coefficients. The noise is stationary but for its scale, which each element has. What is learned
    are partial autocorrelations in (-1, 1), so that it stays so; at 0, where they start, elements
    are independent. See :class:`CorrelatedLikelihood` for the other arguments.

    >>> likelihood = pv.AutoregressiveNormalLikelihood(pv.MLP(2, [8]), event_shape=(3, 40), order=2)
    >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3, 40)).shape
    torch.Size([5])

    Args:
        order: the number of elements before, less than the length of a series; 0 for none.
        initial_scale: where the scales of innovations start; see :class:`CorrelatedLikelihood`.

    Raises:
        ValueError: for an order that is no number of elements before one.
    """

    # Closer to 1 a partial autocorrelation would leave an innovation nothing in single precision.
    MOST = 0.9999

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        num_labels: int = 0,
        order: int = 1,
        initial_scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(network, event_shape, num_labels, initial_scale, min_scale)
        if not 0 <= order < self.event_shape[-1]:
            raise ValueError(
                f"Expected an order from 0 to below {self.event_shape[-1]}, the length of a series "
                f"(the last dimension of event_shape); got {order}."
            )
        self.order = order
        self.slant = nn.Parameter(torch.zeros(order))

    @property
    def partial(self) -> Tensor:
        """The partial autocorrelations at lags 1 to ``order``, in (-1, 1)."""
        return self.MOST * (self.PACE * self.slant).tanh()

    def around(self, loc: Tensor) -> Any:
        scale, length = self.spreads * self.scale, self.event_shape[-1]
        return SharedAutoregressiveNormal(loc, scale, self.partial, length, self.gaps)
