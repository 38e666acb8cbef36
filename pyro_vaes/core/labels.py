"""Labels as inputs: one-hot columns, and which parts take them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["append_labels", "as_labels", "takes_labels", "with_labels"]


def append_labels(rows: Tensor, labels: Tensor | None, num_labels: int) -> Tensor:
    """Appends the one-hot label to each row; without labels, returns the rows unchanged.

    Args:
        rows: ``(..., features)``.
        labels: whole numbers in ``0..num_labels - 1`` of a shape that broadcasts against the rows'
            batch shape; needed exactly when ``num_labels > 0``.
        num_labels: number of labels, 0 for an unconditional part.

    Returns:
        ``(..., features + num_labels)``.
    """
    if num_labels == 0:
        return rows
    if labels is None:
        raise ValueError(
            f"Expected labels y in 0..{num_labels - 1} for a conditional part; got none."
        )
    labels = as_labels(labels).to(rows.device)
    # A comparison instead of one_hot(), which waits for the device to check the range.
    one_hot = labels.unsqueeze(-1) == torch.arange(num_labels, device=labels.device)
    batch_shape = torch.broadcast_shapes(rows.shape[:-1], labels.shape)
    return torch.cat(
        [
            rows.expand(*batch_shape, rows.shape[-1]),
            one_hot.to(rows.dtype).expand(*batch_shape, num_labels),
        ],
        dim=-1,
    )


def takes_labels(part: nn.Module) -> bool:
    """Whether a part takes labels: by its ``num_labels``, or else by an argument ``y``."""
    num_labels = getattr(part, "num_labels", None)
    if num_labels is not None:
        return bool(num_labels)
    return "y" in inspect.signature(part.forward).parameters


def with_labels(part: nn.Module, y: Tensor | None, *inputs: Tensor) -> Any:
    """Calls a part, with the labels if it takes them."""
    if y is None or not takes_labels(part):
        return part(*inputs)
    return part(*inputs, as_labels(y))


def flat(x: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Flattens the event dimensions: ``(..., *event_shape)`` to ``(..., prod(event_shape))``."""
    event_shape = tuple(event_shape)
    batch_dims = x.dim() - len(event_shape)
    if batch_dims < 0 or tuple(x.shape[batch_dims:]) != event_shape:
        raise ValueError(
            f"Expected data of shape (..., {', '.join(map(str, event_shape))}); "
            f"got {tuple(x.shape)}."
        )
    return x.reshape(*x.shape[:batch_dims], math.prod(event_shape))


def as_labels(y: Any) -> Tensor:
    """Labels of any type as int64: an index of uint8 or bool would be a mask.

    >>> as_labels([0.0, 2.0])
    tensor([0, 2])

    Raises:
        ValueError: for labels that are no whole numbers.
    """
    try:
        labels = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected labels that are whole numbers; got {y!r:.60}.") from error
    if labels.dtype == torch.long:
        return labels
    if labels.is_complex():
        raise ValueError(f"Expected labels that are whole numbers; got {labels.dtype}.")
    if labels.is_floating_point():
        wrong = ~(labels.isfinite() & (labels == labels.floor()))
        if bool(wrong.any()):
            raise ValueError(
                f"Expected labels that are whole numbers; got {labels[wrong][0].item():g}."
            )
    return labels.long()
