"""Distributions over ordered levels ``0..L-1``, such as pixel intensities.

A categorical gives each level a probability of its own and must learn from the data that 7 lies
between 6 and 8. These know it: one location moves the whole distribution along the levels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional

__all__ = ["DiscretizedLogisticLevels", "Levels", "OrdinalLevels"]


class Levels(dist.TorchDistribution):
    """Levels ``0..L-1``, each the part of a logistic density between two cuts.

    P(X <= l) = sigmoid(upper cut of l), so the probabilities of all levels sum to one whatever the
    cuts. A subclass says where they are.

    Args:
        num_levels: L, at least 2.
        parameters: tensors that broadcast to the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(
        self, num_levels: int, *parameters: Tensor, validate_args: bool | None = None
    ) -> None:
        self.num_levels = num_levels
        self._parameters = parameters
        shape = torch.broadcast_shapes(*(p.shape for p in parameters))
        super().__init__(shape, Size(), validate_args=validate_args)

    def cuts(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of P(X < value) and P(X <= value); those of the outer cuts are not looked at.

        Args:
            value: levels, whole numbers, of a shape that broadcasts against the batch shape.
        """
        raise NotImplementedError

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The levels."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Levels:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self._log_prob(value.long())
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        lower, upper = self.cuts(value)
        first, last = value == 0, value == self.num_levels - 1
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)),
        # where nothing cancels; at the ends one cut lies at infinity and only one term is left.
        gap = torch.where(first | last, torch.ones_like(upper), upper - lower)
        below = functional.logsigmoid(upper).masked_fill(last, 0.0)
        above = functional.logsigmoid(-lower).masked_fill(first, 0.0)
        between = torch.log(-torch.expm1(-gap)).masked_fill(first | last, 0.0)
        return below + above + between

    def log_pmf(self) -> Tensor:
        """The log probability of every level, ``(*batch, L)``."""
        log_pmf = self._log_prob(self.enumerate_support(expand=False))
        return log_pmf.expand(-1, *self.batch_shape).movedim(0, -1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        levels = torch.arange(self.num_levels, device=self._parameters[0].device)
        levels = levels.reshape(-1, *([1] * len(self.batch_shape)))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            # The inverse of the distribution function: how many levels lie wholly below a draw.
            heights = self.log_pmf().exp().cumsum(-1)[..., :-1]
            shape = (*sample_shape, *self.batch_shape)
            draws = torch.rand(shape, dtype=heights.dtype, device=heights.device)
            return (draws.unsqueeze(-1) >= heights).sum(-1).to(heights.dtype)

    @property
    def mean(self) -> Tensor:
        """Expected level, of the batch shape."""
        return (self.log_pmf().exp() * self._numbers).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the level, of the batch shape."""
        return (self.log_pmf().exp() * self._numbers.square()).sum(-1) - self.mean.square()

    @property
    def _numbers(self) -> Tensor:
        like = self._parameters[0]
        return torch.arange(self.num_levels, device=like.device, dtype=like.dtype)


class OrdinalLevels(Levels):
    """Cumulative logits: P(X <= l) = sigmoid(sharpness (threshold_l - location)).

    McCullagh, "Regression models for ordinal data" (1980), the proportional-odds model.

    Args:
        location: ``(*batch)``; a larger one moves probability to higher levels.
        thresholds: ``(*shared, L - 1)``, increasing, where ``shared`` are the last dimensions of
            the batch shape (one row of thresholds for each pixel, say).
        sharpness: positive, broadcasts against ``location``; 1 if None.
    """

    def __init__(
        self,
        location: Tensor,
        thresholds: Tensor,
        sharpness: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.thresholds = thresholds
        self.location, self.sharpness = location, sharpness
        parameters = (location,) if sharpness is None else (location, sharpness)
        super().__init__(thresholds.shape[-1] + 1, *parameters, validate_args=validate_args)

    def cuts(self, value: Tensor) -> tuple[Tensor, Tensor]:
        count = self.num_levels - 1
        # Looked up in the flat table: no (*batch, L) tensor is made.
        row = torch.arange(self.thresholds.numel() // count, device=value.device)
        place = row.reshape(self.thresholds.shape[:-1]) * count
        table = self.thresholds.reshape(-1)
        upper = table[place + value.clamp(max=count - 1)] - self.location
        lower = table[place + (value - 1).clamp(min=0)] - self.location
        if self.sharpness is None:
            return lower, upper
        return self.sharpness * lower, self.sharpness * upper


class DiscretizedLogisticLevels(Levels):
    """A logistic density over the real line, cut half way between the levels.

    Salimans et al., "PixelCNN++" (2017), equation 2; the outer levels take the tails.

    Args:
        location: ``(*batch)``, in levels.
        scale: positive, in levels; broadcasts against ``location``.
        num_levels: L.
    """

    def __init__(
        self, location: Tensor, scale: Tensor, num_levels: int, validate_args: bool | None = None
    ) -> None:
        self.location, self.scale = location, scale
        super().__init__(num_levels, location, scale, validate_args=validate_args)

    def cuts(self, value: Tensor) -> tuple[Tensor, Tensor]:
        middle = value - self.location
        return (middle - 0.5) / self.scale, (middle + 0.5) / self.scale
