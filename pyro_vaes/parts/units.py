"""Units of the data: those that a likelihood takes from them, and values learned in them."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pyro_vaes.core.described import Described
from pyro_vaes.data.units import units_of

__all__ = ["ElementUnits", "InUnits"]


class InUnits(Described):
    """A part that learns values u of the data space as v in u = center + spread * v.

    An optimiser moves a parameter by about its step size, whatever the unit: at a step size for
    weights a pixel of levels 0..255 would hardly move. The spread scales v to the size of weights.
    ``VAE`` sets both: the centre and half the width of the range of levels, one for all elements;
    each element's own for real values. They are buffers, saved with the weights; files of earlier
    versions have none.
    """

    center: Tensor | None
    spread: Tensor | None

    #: Buffers that a file may lack, or hold in another shape.
    optional_buffers: ClassVar[tuple[str, ...]] = ("center", "spread")

    def _start_units(self) -> None:
        self.register_buffer("center", None)
        self.register_buffer("spread", None)

    def _hold_units(self, center: Any, spread: Any, like: Tensor) -> bool:
        """Sets the units; returns whether they changed."""
        before = self.center, self.spread
        self.center, self.spread = (
            torch.as_tensor(t).detach().to(like, copy=True) for t in (center, spread)
        )
        pairs = zip(before, (self.center, self.spread), strict=True)
        return not all(old is not None and torch.equal(old, new) for old, new in pairs)

    @property
    def _units(self) -> tuple[Any, Any]:
        """Centre and spread, 0 and 1 where none are known."""
        if self.center is None or self.spread is None:
            return 0.0, 1.0
        return self.center, self.spread

    def _to_data(self, values: Tensor) -> Tensor:
        if self.center is None or self.spread is None:
            return values
        return self.center + self.spread * values

    def _from_data(self, values: Tensor) -> Tensor:
        center, spread = self._units
        return (values - center) / spread


class ElementUnits(Described):
    """The centre and spread of each element, which a likelihood takes from its training data.

    They are buffers, saved with the weights. A VAE hands them on to its posterior and prior,
    whether it is made before or after they are taken. A likelihood mixes this in and calls
    ``_start_units()`` in its constructor.
    """

    event_shape: tuple[int, ...]

    def _start_units(self) -> None:
        self.register_buffer("center", torch.zeros(self.event_shape))
        self.register_buffer("spread", torch.ones(self.event_shape))
        self._followers: list[Any] = []

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """The centre and spread of each element, both of shape ``event_shape``."""
        return cast(Tensor, self.center), cast(Tensor, self.spread)

    @torch.no_grad()
    def initialize_from(self, x: Any, shared: bool = False) -> None:
        """Takes the centre and spread of each element from training data, before training.

        Args:
            x: training data ``(n, *event_shape)``, or a split.
            shared: one centre and spread for all elements, as befits pixels.

        Raises:
            ValueError: for data of another shape, or with values that are infinite.
        """
        self._take(*units_of(x, self.event_shape, shared))

    def _take(self, center: Tensor, spread: Tensor) -> None:
        for own, value in zip(self.units, (center, spread), strict=True):
            own.copy_(value)
        for follower in self._followers:
            follower.set_units(*self.units)

    def hand_on(self, part: Any) -> None:
        """Keeps a part that looks at data informed of :attr:`units`, from now on."""
        if not any(part is known for known in self._followers):
            self._followers.append(part)
        part.set_units(*self.units)
