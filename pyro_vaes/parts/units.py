"""Learned values in the data space, in the units of the data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vaes.core.described import Described

__all__ = ["InUnits"]


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
