"""Distributions over levels ``0..L-1``, numbers such as pixel intensities.

A categorical gives each level a probability of its own and must learn from the data that 7 lies
between 6 and 8. In the others the order is built in: one location moves the distribution along the
levels. Levels are whole numbers, in a tensor of any type.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_vaes.distributions.elements import joined_shape

__all__ = [
    "CategoricalLevels",
    "DiscretizedLogisticLevels",
    "Levels",
    "OrdinalLevels",
]


# Instead of infinity, which times a sharpness becomes NaN in the backward pass.
_FAR = 1e30


def _moments(log_pmf: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the level from the log probabilities ``(..., L)`` of all levels."""
    pmf = log_pmf.exp()
    level = torch.arange(pmf.shape[-1], dtype=pmf.dtype, device=pmf.device)
    mean = (pmf * level).sum(-1)
    return mean, (pmf * (level - mean.unsqueeze(-1)).square()).sum(-1)


class Levels(dist.TorchDistribution):
    """Base of distributions over ordered levels; a subclass defines how a level is scored.

    Args:
        num_levels: L, at least 2.
        batch_shape: shape of the distribution.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(
        self, num_levels: int, batch_shape: Any, validate_args: bool | None = None
    ) -> None:
        self.num_levels = num_levels
        super().__init__(Size(batch_shape), Size(), validate_args=validate_args)

    @property
    def _like(self) -> Tensor:
        """A parameter, for its type and device."""
        raise NotImplementedError

    def _log_prob(self, value: Tensor) -> Tensor:
        """Scores whole numbers (int64) whose shape broadcasts against the parameters'."""
        raise NotImplementedError

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The levels."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Levels:
        """The same parameters under a larger batch shape, without copies."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self._log_prob(value.long())
        if log_prob.shape == self.batch_shape:  # As in training; broadcasting takes time.
            return log_prob
        return log_prob.expand(joined_shape(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            # By the inverse of the distribution function: the number of levels below a draw.
            heights = self.log_pmf().exp().cumsum(-1)[..., :-1]
            shape = (*sample_shape, *self.batch_shape, 1)
            draws = torch.rand(shape, dtype=heights.dtype, device=heights.device)
            return (draws >= heights).sum(-1).to(heights.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        levels = torch.arange(self.num_levels, dtype=self._like.dtype, device=self._like.device)
        levels = levels.reshape(-1, *[1] * len(self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    def log_pmf(self) -> Tensor:
        """The log probability of every level, ``(*batch, L)``."""
        log_pmf = self._log_prob(self.enumerate_support(expand=False).long())
        return log_pmf.expand(-1, *self.batch_shape).movedim(0, -1)

    @property
    def mean(self) -> Tensor:
        """Expected level, of the batch shape."""
        return _moments(self.log_pmf())[0]

    @property
    def variance(self) -> Tensor:
        """Variance of the level, of the batch shape."""
        return _moments(self.log_pmf())[1]


class CategoricalLevels(Levels):
    """A categorical over the levels, each with a probability of its own.

    >>> from pyro_vaes.distributions import CategoricalLevels
    >>> p = CategoricalLevels(logits=torch.zeros(3))
    >>> round(p.mean.item(), 3), round(p.log_prob(torch.tensor(2.0)).item(), 3)
    (1.0, -1.099)

    Args:
        logits: ``(*batch, L)``, unnormalised log probabilities.
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = functional.log_softmax(logits, -1)
        super().__init__(logits.shape[-1], logits.shape[:-1], validate_args)

    @property
    def _like(self) -> Tensor:
        return self.logits

    def _log_prob(self, value: Tensor) -> Tensor:
        if value.shape == self.logits.shape[:-1]:  # As in training: one kernel, also backward.
            rows = self.logits.reshape(-1, self.num_levels)
            scores = functional.nll_loss(rows, value.reshape(-1), reduction="none")
            return -scores.view(value.shape)
        value, log_pmf = torch.broadcast_tensors(value.unsqueeze(-1), self.logits)
        return log_pmf.gather(-1, value[..., :1]).squeeze(-1)

    def log_pmf(self) -> Tensor:
        return self.logits.expand(*self.batch_shape, -1)


class _LogisticLevels(Levels):
    """A level is the mass of a logistic density between two edges on the real line.

    P(X = l) = sigmoid(s (upper - m)) - sigmoid(s (lower - m)), with location m and sharpness s.
    The outer edges are infinite, so that the probabilities sum to one.
    """

    location: Tensor
    sharpness: Tensor | None

    @property
    def _like(self) -> Tensor:
        return self.location

    def edges(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper edge of each level in ``value``."""
        raise NotImplementedError

    def _log_prob(self, value: Tensor) -> Tensor:
        lower, upper = self.edges(value)
        above, below, gap = self.location - lower, upper - self.location, upper - lower
        if self.sharpness is not None:
            above, below, gap = (self.sharpness * distance for distance in (above, below, gap))
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): nothing cancels, also
        # because the gap is the difference of the edges, not of two numbers far from zero.
        inside = functional.logsigmoid(below) + functional.logsigmoid(above)
        return inside + torch.log(-torch.expm1(-gap))

    def _noisy_location(self, sample_shape: Any) -> Tensor:
        """Draws from the logistic density, to be rounded to levels."""
        shape = (*sample_shape, *self.batch_shape)
        noise = torch.rand(shape, dtype=self.location.dtype, device=self.location.device).logit()
        return self.location + (noise if self.sharpness is None else noise / self.sharpness)


class OrdinalLevels(_LogisticLevels):
    """Cumulative logits: P(X <= l) = sigmoid(sharpness (threshold_l - location)).

    McCullagh, "Regression models for ordinal data" (1980), the proportional-odds model.

    >>> from pyro_vaes.distributions import OrdinalLevels
    >>> p = OrdinalLevels(torch.tensor(0.0), thresholds=torch.tensor([-1.0, 1.0]))
    >>> [round(value, 3) for value in p.log_pmf().exp().tolist()]
    [0.269, 0.462, 0.269]

    Args:
        location: ``(*batch)``; a larger one moves probability to higher levels.
        thresholds: ``(*shared, L - 1)``, increasing, where ``shared`` are the last dimensions of
            the batch shape (one row of thresholds for each pixel, say).
        sharpness: positive, broadcasts against ``location``; 1 if None.
        validate_args: as in PyTorch.
    """

    def __init__(
        self,
        location: Tensor,
        thresholds: Tensor,
        sharpness: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.location, self.thresholds, self.sharpness = location, thresholds, sharpness
        shapes = [location.shape, thresholds.shape[:-1]]
        if sharpness is not None:
            shapes.append(sharpness.shape)
        batch_shape = joined_shape(*shapes)
        super().__init__(thresholds.shape[-1] + 1, batch_shape, validate_args)

    def edges(self, value: Tensor) -> tuple[Tensor, Tensor]:
        # Looked up in one flat table of all rows, without a tensor of shape (*batch, L).
        rows = self.thresholds.shape[:-1]
        far = self.thresholds.new_full((*rows, 1), _FAR)
        table = torch.cat([-far, self.thresholds, far], dim=-1).reshape(-1)
        row = torch.arange(rows.numel(), device=value.device).reshape(rows)
        place = value + (self.num_levels + 1) * row
        # index_select is the lookup that vmap and the compiler support best.
        lower, upper = (table.index_select(0, p.reshape(-1)) for p in (place, place + 1))
        return lower.reshape(place.shape), upper.reshape(place.shape)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            draws = self._noisy_location(sample_shape)
            return (draws.unsqueeze(-1) > self.thresholds).sum(-1).to(draws.dtype)


class DiscretizedLogisticLevels(_LogisticLevels):
    """A logistic density over the real line, cut half way between the levels.

    Salimans et al., "PixelCNN++" (2017), equation 2; the outer levels take the tails.

    >>> from pyro_vaes.distributions import DiscretizedLogisticLevels
    >>> p = DiscretizedLogisticLevels(torch.tensor(8.0), torch.tensor(2.0), num_levels=17)
    >>> round(p.mean.item(), 3)
    8.0

    Args:
        location: ``(*batch)``, in levels.
        scale: positive, in levels; broadcasts against ``location``.
        num_levels: L, at least 2.
        validate_args: as in PyTorch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "location": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self, location: Tensor, scale: Tensor, num_levels: int, validate_args: bool | None = None
    ) -> None:
        self.location, self.scale, self.sharpness = location, scale, scale.reciprocal()
        batch_shape = joined_shape(location.shape, scale.shape)
        super().__init__(num_levels, batch_shape, validate_args)

    def edges(self, value: Tensor) -> tuple[Tensor, Tensor]:
        middle = value.to(self.location.dtype)
        lower = (middle - 0.5).masked_fill(value == 0, -_FAR)
        return lower, (middle + 0.5).masked_fill(value == self.num_levels - 1, _FAR)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._noisy_location(sample_shape).round().clamp(0, self.num_levels - 1)
