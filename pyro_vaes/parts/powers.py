"""Skewed columns on another scale: power transforms, with their exact Jacobian.

An area or a price is far more symmetric on the scale of its logarithm or root. A power transform
takes each element there; a likelihood and a posterior work there; log p(x) is in the units of the
data, with the log of the slope of the transform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import flat, takes_labels, with_labels
from pyro_vaes.data.splits import as_split
from pyro_vaes.data.units import units_of
from pyro_vaes.distributions.powers import Powered, power, root, slope
from pyro_vaes.networks.mlp import shape_of

__all__ = ["PowerLikelihood", "PowerPosterior", "YeoJohnson"]


# An exponent as near as this to 0 or 2 is that.
_NEAR = 1e-3
_MOST_ROWS = 10_000


class YeoJohnson(Described):
    """The power transform of Yeo and Johnson of each element, in its own units.

    Standardised values u go to ((u + 1)^p - 1) / p above 0, and to -((1 - u)^(2 - p) - 1) / (2 - p)
    below, of one slope at 0 (Yeo and Johnson, "A new family of power transformations to improve
    normality or symmetry", Biometrika 2000, equation 2.1). For exponents p from 0 to 2 it maps the
    line onto itself, so that a density stays one; p = 1 changes nothing.

    >>> x = torch.randn(200, 3).exp()
    >>> scale = pv.YeoJohnson.of(x)
    >>> bool((scale.exponent < 0.5).all()), torch.allclose(scale.inverse(scale(x)), x, atol=1e-4)
    (True, True)

    Args:
        event_shape: shape of one datum.

    Attributes:
        exponent: p of each element; 1 until :meth:`initialize_from` is called.
        center: of each element.
        spread: of each element.
    """

    exponent: Tensor
    center: Tensor
    spread: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        for name, value in (("exponent", 1.0), ("center", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full(self.event_shape, value))

    @classmethod
    def of(cls, x: Any) -> YeoJohnson:
        """The transform with the exponents that training data ``(n, *event_shape)`` want."""
        found = cls(tuple(as_split(x).x.shape[1:]))
        found.initialize_from(x)
        return found

    @torch.no_grad()
    def initialize_from(self, x: Any) -> None:
        """Takes centres, spreads and the most likely exponents from training data, gaps left out.

        Raises:
            ValueError: for data of another shape.
        """
        center, spread = units_of(x, self.event_shape)
        rows = ((as_split(x).x.double().cpu() - center) / spread).flatten(1)[:_MOST_ROWS]
        exponents = torch.tensor([_exponent(column) for column in rows.mT.numpy()])
        for own, value in (
            (self.exponent, exponents.reshape(self.event_shape)),
            (self.center, center),
            (self.spread, spread),
        ):
            own.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """Transformed values of data ``(..., *event_shape)``.

        Raises:
            ValueError: for data of another shape.
        """
        flat(x, self.event_shape)
        return power((x - self.center) / self.spread, self.exponent)

    def inverse(self, values: Tensor) -> Tensor:
        """The data of transformed values."""
        return self.center + self.spread * root(values, self.exponent)

    def log_slope(self, x: Tensor) -> Tensor:
        """The log of the derivative at data ``(..., *event_shape)``, summed over elements, in nats.

        What was not seen (NaN) does not count.
        """
        each = slope((x - self.center) / self.spread, self.exponent) - self.spread.log()
        dims = tuple(range(-len(self.event_shape), 0))
        return torch.where(x.isnan(), 0.0, each).sum(dims)

    def split(self, split: Any) -> Any:
        """A split whose rows are transformed."""
        rows = as_split(split)
        return dataclasses.replace(rows, x=self(rows.x))


def _exponent(column: Any) -> float:
    """The most likely exponent of standardised values; 1 of ones that never vary."""
    seen = column[np.isfinite(column)]
    if len(seen) < 3 or seen.min() == seen.max():
        return 1.0
    from scipy import optimize, stats  # Only skewed columns need it.

    found = optimize.minimize_scalar(
        lambda p: -stats.yeojohnson_llf(p, seen), bounds=(0.0, 2.0), method="bounded"
    )
    near = round(found.x)
    return float(near if abs(found.x - near) < _NEAR else found.x)


class PowerLikelihood(Described):
    """A likelihood of real elements on the scale of a power transform.

    >>> x = torch.randn(50, 3).exp()
    >>> base = pv.StudentTLikelihood(pv.MLP(2, [8]), (3,))
    >>> likelihood = pv.PowerLikelihood(base, pv.YeoJohnson.of(x))
    >>> likelihood.initialize_from(x)
    >>> likelihood(torch.zeros(50, 2)).log_prob(x).shape
    torch.Size([50])

    Args:
        base: a likelihood of real elements, which sees transformed data.
        powers: the transform, shared with the posterior.
    """

    base: Any
    powers: YeoJohnson
    event_shape: tuple[int, ...]

    def __init__(self, base: nn.Module, powers: YeoJohnson) -> None:
        super().__init__()
        _take_over(self, base, powers)

    def initialize_from(self, x: Any, shared: bool = False) -> None:
        """Takes the units of transformed training data; see the base. The exponents stay.

        Raises:
            ValueError: see the base.
        """
        self.base.initialize_from(self.powers.split(x), shared)

    def hand_on(self, part: Any) -> None:
        """Keeps a part informed of the units of the transformed data."""
        if hasattr(self.base, "hand_on"):
            self.base.hand_on(part)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        p = self.powers
        return Powered(with_labels(self.base, y, z), p.exponent, p.center, p.spread)


class PowerPosterior(Described):
    """A posterior that sees data on the scale of a power transform.

    >>> powers = pv.YeoJohnson.of(torch.randn(50, 3).exp())
    >>> posterior = pv.PowerPosterior(pv.NormalPosterior(pv.MLP(3, [8]), 2), powers)
    >>> posterior(torch.ones(5, 3)).event_shape
    torch.Size([2])

    Args:
        base: the posterior.
        powers: the transform, shared with the likelihood.

    Attributes:
        scores: whether the distribution scores any z, not only its own draws.
    """

    base: Any
    powers: YeoJohnson
    event_shape: tuple[int, ...]

    def __init__(self, base: nn.Module, powers: YeoJohnson) -> None:
        super().__init__()
        _take_over(self, base, powers)
        self.scores: bool = getattr(base, "scores", True)

    def set_units(self, center: Tensor, spread: Tensor) -> None:
        """Centres and scales each transformed element, see the base."""
        if hasattr(self.base, "set_units"):
            self.base.set_units(center, spread)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return with_labels(self.base, y, self.powers(x.to(self.powers.center.dtype)))


def _take_over(part: Any, base: nn.Module, powers: YeoJohnson) -> None:
    """Gives a part its base, the transform, and the sizes of the base."""
    shape = getattr(base, "event_shape", powers.event_shape)
    if tuple(shape) != powers.event_shape:
        raise ValueError(
            f"Expected a transform of data of shape {tuple(shape)}, as {type(base).__name__} has; "
            f"got one of {powers.event_shape}."
        )
    part.base, part.powers, part.event_shape = base, powers, powers.event_shape
    part.latent_dim = getattr(base, "latent_dim", None)
    if hasattr(base, "num_labels") or not takes_labels(base):
        part.num_labels = getattr(base, "num_labels", 0)
