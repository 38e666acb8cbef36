"""Bounds on values: two numbers, or two for each element, checked and kept in a module."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["check_bounds", "held_bounds", "hold_bounds"]


def check_bounds(bounds: Any) -> tuple[Any, Any] | None:
    """Two bounds in order, as floats, or as tensors if one of them is a tensor."""
    if bounds is None:
        return None
    if any(isinstance(bound, Tensor) for bound in bounds):
        tensors = [torch.as_tensor(b).to(torch.get_default_dtype(), copy=True) for b in bounds]
        low, high = torch.broadcast_tensors(*tensors)
        # NaN passes: a rebuilt part has no values yet. Equal bounds fix an element.
        if bool((low > high).any() or low.isinf().any() or high.isinf().any()):
            raise ValueError(
                "Expected bounds with low <= high for each element, all finite; got others."
            )
        return low.clone(), high.clone()
    least, most = map(float, bounds)
    if not (math.isfinite(least) and math.isfinite(most) and least < most):
        raise ValueError(f"Expected bounds with low < high, both finite; got ({least}, {most}).")
    return least, most


def hold_bounds(module: nn.Module, bounds: Any) -> None:
    """Keeps checked bounds in a module, those of each element as buffers."""
    low, high = check_bounds(bounds) or (None, None)
    of_elements = isinstance(low, Tensor)
    cast(Any, module)._numbers = None if low is None or of_elements else (low, high)
    module.register_buffer("low", low if of_elements else None)
    module.register_buffer("high", high if of_elements else None)


def held_bounds(module: nn.Module) -> tuple[Any, Any] | None:
    """The bounds that :func:`hold_bounds` keeps."""
    if module.low is not None:
        return module.low, module.high
    return cast("tuple[float, float] | None", module._numbers)
