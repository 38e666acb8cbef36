"""Learned values that lie where the data do, in the units of the data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vaes.core.described import Described

__all__ = ["InUnits"]


class InUnits(Described):
    """A part that learns values u of the data space as v in u = center + spread * v.

    An optimiser moves a parameter by about its step size, whatever the unit: at a step size for
    weights a pixel of levels 0..255 would stand still. The spread makes v as large as weights are,
    so that values in any unit are learned as weights are. ``VAE`` sets both: the centre and half
    the width of the range of levels, one for all; each element's own for real values. They are
    buffers, saved with the weights; a file from before they were there has none, and is read as is.
    """

    center: Tensor | None
    spread: Tensor | None

    #: Buffers that a file may hold or not, and in which shape it likes.
    optional_buffers: ClassVar[tuple[str, ...]] = ("center", "spread")

    def _start_units(self) -> None:
        self.register_buffer("center", None)
        self.register_buffer("spread", None)

    def _hold_units(self, center: Any, spread: Any, like: Tensor) -> bool:
        """Whether these are other units than those that were held."""
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
