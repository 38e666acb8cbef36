"""A likelihood of table rows: one small distribution for each column, by its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vaes.core.columns import Column, columns_of
from pyro_vaes.core.labels import append_labels
from pyro_vaes.data.rows import thinned
from pyro_vaes.data.splits import as_split
from pyro_vaes.data.units import units_of
from pyro_vaes.distributions.counts import NegativeBinomial
from pyro_vaes.distributions.levels import CategoricalLevels, OrdinalLevels
from pyro_vaes.distributions.rows import Block, Hurdle, Row
from pyro_vaes.distributions.scaled_normal import ScaledNormal, ScaledStudentT
from pyro_vaes.networks.mlp import Network
from pyro_vaes.parts.likelihoods import Likelihood
from pyro_vaes.parts.units import ElementUnits

__all__ = ["TableLikelihood"]


# Logs of scales move ten times as fast as weights, see NormalLikelihood.
_PACE = 10.0
_MIN_SCALE = 1e-3
# The least distance of two thresholds of an ordinal column.
_MIN_GAP = 1e-4


class _Kind(nn.Module):
    """Columns of one kind (and size): what the network's outputs for them mean.

    Args:
        columns: where they stand in a row.
        size: values of a category or an ordinal.
    """

    stand_in: ClassVar[float] = 0.0

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.n, self.size = len(columns), size
        self.outputs = 1  # For each column.
        self.register_buffer("center", torch.zeros(self.n))
        self.register_buffer("spread", torch.ones(self.n))

    def elements(self, outputs: Tensor) -> Any:
        """The distribution of the columns, from outputs ``(*batch, n, outputs)``."""
        raise NotImplementedError

    def start(self, x: Tensor) -> None:
        """Takes what is to be known from training values ``(rows, n)``, gaps among them."""
        center, spread = units_of(x, (self.n,))
        cast(Tensor, self.center).copy_(center)
        cast(Tensor, self.spread).copy_(spread)

    @property
    def scale(self) -> Tensor:
        """Of kinds that have one, in spreads."""
        return _MIN_SCALE + (_PACE * cast(Tensor, self.log_scale)).exp()

    def located(self, outputs: Tensor) -> Tensor:
        """An output as a location in the columns' units."""
        return cast(Tensor, self.center) + cast(Tensor, self.spread) * outputs


class _Real(_Kind):
    """Student's t, parametrised by its standard deviation: a value far out is no catastrophe."""

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__(columns, size)
        self.log_scale = nn.Parameter(torch.zeros(self.n))
        self.log_df = nn.Parameter(torch.full((self.n,), 1.5 / _PACE))

    def elements(self, outputs: Tensor) -> Any:
        df = 2 + (_PACE * self.log_df).exp()
        scale = ((df - 2) / df).sqrt() * cast(Tensor, self.spread) * self.scale
        return ScaledStudentT(df, self.located(outputs[..., 0]), scale)


class _Positive(_Kind):
    """Log-normal: the logarithm has a location and a scale."""

    stand_in = 1.0

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__(columns, size)
        self.log_scale = nn.Parameter(torch.zeros(self.n))

    def start(self, x: Tensor) -> None:
        super().start(x.log())

    def elements(self, outputs: Tensor) -> Any:
        scale = cast(Tensor, self.spread) * self.scale
        return dist.LogNormal(self.located(outputs[..., 0]), scale)


class _Hurdle(_Kind):
    """Exactly 0, or normal."""

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__(columns, size)
        self.outputs = 2
        self.log_scale = nn.Parameter(torch.zeros(self.n))
        self.register_buffer("log_odds", torch.zeros(self.n))

    def start(self, x: Tensor) -> None:
        super().start(x.masked_fill(x == 0, torch.nan))
        zeros, seen = (x == 0).sum(0) + 0.5, (~x.isnan()).sum(0) + 1
        cast(Tensor, self.log_odds).copy_((zeros / seen).logit())

    def elements(self, outputs: Tensor) -> Any:
        scale = cast(Tensor, self.spread) * self.scale
        base = ScaledNormal(self.located(outputs[..., 0]), scale)
        return Hurdle(cast(Tensor, self.log_odds) + outputs[..., 1], base)


class _Count(_Kind):
    """Negative binomial, its mean a factor of that in training."""

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__(columns, size)
        self.log_total = nn.Parameter(torch.zeros(self.n))

    def start(self, x: Tensor) -> None:
        mean = x.nanmean(0).nan_to_num(0.0).clamp(min=1e-3)
        cast(Tensor, self.center).copy_(mean.log())
        excess = ((x - mean).square() - mean).nanmean(0).nan_to_num(0.0)
        total = (mean.square() / excess.clamp(min=1e-12)).clamp(0.05, 100.0)
        self.log_total.copy_(total.log() / _PACE)

    def elements(self, outputs: Tensor) -> Any:
        logits = cast(Tensor, self.center) + outputs[..., 0] - _PACE * self.log_total
        return NegativeBinomial((_PACE * self.log_total).exp(), logits=logits)


class _Binary(_Kind):
    """Bernoulli."""

    def start(self, x: Tensor) -> None:
        ones, seen = x.nansum(0) + 0.5, (~x.isnan()).sum(0) + 1
        cast(Tensor, self.center).copy_((ones / seen).logit())

    def elements(self, outputs: Tensor) -> Any:
        return dist.Bernoulli(logits=cast(Tensor, self.center) + outputs[..., 0])


class _Category(_Kind):
    """A probability for each value."""

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__(columns, size)
        self.outputs = size
        self.register_buffer("logits", torch.zeros(self.n, size))

    def start(self, x: Tensor) -> None:
        cast(Tensor, self.logits).copy_((_frequencies(x, self.size) + 0.5).log())

    def elements(self, outputs: Tensor) -> Any:
        return CategoricalLevels(cast(Tensor, self.logits) + outputs)


class _Ordinal(_Kind):
    """A location, and thresholds between the values that all data share."""

    def __init__(self, columns: Sequence[int], size: int) -> None:
        super().__init__(columns, size)
        self.first = nn.Parameter(torch.empty(self.n, 1))
        self.gaps = nn.Parameter(torch.empty(self.n, size - 2))
        self._set(torch.linspace(-3, 3, size - 1).expand(self.n, -1))

    @torch.no_grad()
    def _set(self, thresholds: Tensor) -> None:
        gaps = thresholds.diff(dim=-1).clamp(min=1e-2) - _MIN_GAP
        self.first.copy_(thresholds[:, :1])
        self.gaps.copy_(gaps + torch.log(-torch.expm1(-gaps)))  # The inverse of softplus.

    def start(self, x: Tensor) -> None:
        counts = _frequencies(x, self.size)
        below = counts.cumsum(-1)[:, :-1]
        self._set(torch.logit((below + 0.5) / (counts.sum(-1, keepdim=True) + 1)))

    def elements(self, outputs: Tensor) -> Any:
        gaps = functional.softplus(self.gaps) + _MIN_GAP
        thresholds = torch.cat([self.first, self.first + gaps.cumsum(-1)], -1)
        return OrdinalLevels(outputs[..., 0], thresholds)


_CLASSES: dict[str, type[_Kind]] = {
    "real": _Real,
    "positive": _Positive,
    "hurdle": _Hurdle,
    "count": _Count,
    "binary": _Binary,
    "category": _Category,
    "ordinal": _Ordinal,
}


def _frequencies(x: Tensor, size: int) -> Tensor:
    """How often each of the values 0 to size - 1 is there, ``(n, size)``."""
    values = torch.arange(size, device=x.device).to(x)
    return (x.unsqueeze(-1) == values).sum(0).to(x)


class TableLikelihood(ElementUnits, Likelihood):
    """Rows of a table with columns of several kinds, independent given z.

    A product of one small distribution for each column: Student's t for real numbers, log-normal
    for positive ones, a hurdle for "exactly 0, or else real", negative binomial, Bernoulli, and
    free or ordered probabilities for categories and ordinals (Nazabal et al., "Handling incomplete
    heterogeneous data using VAEs", 2020, section 3). Log p(x | z) is in the units of the data: a
    density for some columns, a probability for others. NaN is a value that was not seen.

    >>> columns = {"mass": "real", "visits": "count", "species": ("category", 3)}
    >>> likelihood = pv.TableLikelihood(pv.MLP(2, [8]), columns)
    >>> rows = torch.tensor([[4.2, 3.0, 1.0], [3.7, 0.0, torch.nan]])
    >>> likelihood.initialize_from(rows)
    >>> likelihood(torch.zeros(2, 2)).log_prob(rows).shape
    torch.Size([2])

    Args:
        network: see :class:`~pyro_vaes.parts.likelihoods.Likelihood`.
        columns: the kind of each column by its name, see
            :func:`~pyro_vaes.core.columns.columns_of`; in x each is one number.
        num_labels: number of labels of a conditional likelihood p(x | z, y); 0 for none.

    Raises:
        ValueError: for a kind that there is not, or sizes that do not fit each other.
    """

    def __init__(
        self,
        network: Network,
        columns: Mapping[str, Any] | Sequence[Any],
        num_labels: int = 0,
    ) -> None:
        self.columns: tuple[Column, ...] = columns_of(columns)
        super().__init__(network, (len(self.columns),), num_labels)
        if type(self) is TableLikelihood:  # A list: a file may keep a mapping in another order.
            self.__dict__["_arguments"]["columns"] = [list(column) for column in self.columns]
        groups: dict[tuple[str, int], list[int]] = {}
        for i, column in enumerate(self.columns):
            groups.setdefault((column.kind, column.size), []).append(i)
        self.kinds = nn.ModuleList(_CLASSES[k](places, n) for (k, n), places in groups.items())
        self._sizes = [kind.n * kind.outputs for kind in self._kinds]
        self.head = nn.Linear(network.out_features, sum(self._sizes))
        self._start_units()

    @property
    def _kinds(self) -> list[_Kind]:
        return list(cast(Any, self.kinds))

    @torch.no_grad()
    def initialize_from(self, x: Any, shared: bool = False) -> None:
        """Takes centres, spreads and frequencies of the columns from training data.

        Posteriors see a category's number as one more, in no other unit, so that 0 is left for
        what was not seen; see :class:`~pyro_vaes.networks.columns.OneHotColumns`.

        Args:
            x: training data ``(n, D)``, or a split.
            shared: of no use to tables.

        Raises:
            ValueError: for data of another shape, or with values that are not of their kind.
        """
        if shared:
            raise ValueError("Expected columns with units of their own; got shared=True.")
        given = as_split(x).x
        rows = given[thinned(given)].double()
        center, spread = units_of(rows, self.event_shape)
        for i, column in enumerate(self.columns):
            if column.kind == "category":
                center[i], spread[i] = -1.0, 1.0
        self._check(rows)
        for kind in self._kinds:
            kind.start(rows[:, cast(Tensor, kind.columns).to(rows.device)])
        self._take(center, spread)

    def _check(self, rows: Tensor) -> None:
        """Refuses training values that are not of their columns' kinds."""
        device = cast(nn.Linear, self.head).weight.device
        support = self(torch.zeros(1, self.latent_dim, device=device), self._any_label()).support
        seen = torch.where(rows.isnan(), 1.0, rows)
        wrong = ~support.fits(seen.to(device)).to(rows.device) & ~rows.isnan()
        if bool(wrong.any()):
            row, i = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"Expected {self.columns[i].kind} values in column {self.columns[i].name!r}; got "
                f"{rows[row, i]:g} in row {row} (counted from 0)."
            )

    def _any_label(self) -> Tensor | None:
        device = cast(nn.Linear, self.head).weight.device
        return torch.zeros(1, dtype=torch.long, device=device) if self.num_labels else None

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        outputs = self.head(self.network(append_labels(z, y, self.num_labels)))
        blocks = []
        for kind, some in zip(self._kinds, outputs.split(self._sizes, -1), strict=True):
            elements = kind.elements(some.unflatten(-1, (kind.n, kind.outputs)))
            blocks.append(Block(cast(Tensor, kind.columns), elements, kind.stand_in))
        return Row(blocks, [column.name for column in self.columns])
