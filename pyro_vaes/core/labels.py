"""Labels and other conditions as inputs: one-hot columns, and which parts take them.

A part takes labels y as numbers of classes ``(...)``, or as rows of inputs ``(..., num_labels)``:
the one-hot row of a label is such a row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described

__all__ = [
    "Conditions",
    "append_labels",
    "are_inputs",
    "as_labels",
    "batch_of",
    "by_label",
    "labels_in_range",
    "takes_labels",
    "with_labels",
]


def append_labels(rows: Tensor, labels: Tensor | None, num_labels: int) -> Tensor:
    """Appends the one-hot label to each row; without labels, returns the rows unchanged.

    Args:
        rows: ``(..., features)``.
        labels: whole numbers in ``0..num_labels - 1`` of a shape that broadcasts against the rows'
            batch shape, or rows of ``num_labels`` inputs; needed exactly when ``num_labels > 0``.
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
    if not are_inputs(labels, num_labels):
        labels = as_labels(labels).to(rows.device)
        # A comparison instead of one_hot(), which waits for the device to check the range.
        labels = labels.unsqueeze(-1) == torch.arange(num_labels, device=labels.device)
    batch_shape = torch.broadcast_shapes(rows.shape[:-1], labels.shape[:-1])
    return torch.cat(
        [
            rows.expand(*batch_shape, rows.shape[-1]),
            labels.to(rows).expand(*batch_shape, num_labels),
        ],
        dim=-1,
    )


def are_inputs(y: Tensor, num_labels: int) -> bool:
    """Whether y are rows of inputs ``(..., num_labels)`` instead of numbers of classes."""
    return y.dim() > 1 and y.is_floating_point() and y.shape[-1] == num_labels


def batch_of(y: Tensor, num_labels: int) -> torch.Size:
    """The batch shape of labels or rows of inputs."""
    return y.shape[:-1] if are_inputs(y, num_labels) else y.shape


def by_label(table: Tensor, y: Tensor) -> Tensor:
    """The rows of a table ``(num_labels, ...)`` for labels; for inputs the linear map with them.

    >>> from pyro_vaes.core.labels import by_label
    >>> by_label(torch.eye(2), torch.tensor([[0.0, 1.0]]))
    tensor([[0., 1.]])
    """
    if are_inputs(y, len(table)):
        return torch.tensordot(y.to(table), table, dims=1)
    return table[as_labels(y)]


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
    given = isinstance(y, Tensor) and y.is_floating_point() and y.dim() > 1
    return part(*inputs, y if given else as_labels(y))


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


def labels_in_range(
    y: Any, num_labels: int, n: int | None = None, device: torch.device | None = None
) -> Tensor | None:
    """Labels in 0..num_labels - 1, one for each of n data if n is given; None if none are needed.

    Raises:
        ValueError: for labels that are missing, out of range or of another shape.
    """
    if y is None:
        if num_labels:
            raise ValueError(
                f"Expected labels y in 0..{num_labels - 1} for a conditional VAE; got none."
            )
        return None
    labels = as_labels(y).to(device)
    if n is not None and tuple(labels.shape) not in ((), (1,), (n,)):
        raise ValueError(
            f"Expected labels y of shape ({n},), one for each datum, or one for all; got shape "
            f"{tuple(labels.shape)}. (Labels are numbers of classes, not one-hot rows.)"
        )
    if num_labels and not bool(((labels >= 0) & (labels < num_labels)).all()):
        wrong = labels[(labels < 0) | (labels >= num_labels)][0].item()
        raise ValueError(f"Expected labels y in 0..{num_labels - 1}; got {wrong}.")
    return labels if n is None else labels.expand(n)


class Conditions(Described):
    """Several conditions for one datum, categories and real values: a matrix y as inputs of parts.

    Categories are one-hot; real values are centred and scaled as in the training data, which makes
    their units of no account. Where there are no categories a column of ones comes with them, so
    that what is linear in the inputs has an offset.

    >>> conditions = pv.Conditions([3, 0])  # One of three sites, and an age.
    >>> conditions.initialize_from(torch.tensor([[0.0, 30.0], [2.0, 50.0]]))
    >>> conditions(torch.tensor([[1.0, 60.0]]))
    tensor([[0., 1., 0., 2.]])
    >>> n = conditions.width
    >>> posterior = pv.NormalPosterior(pv.MLP(5 + n, [8]), 2, num_labels=n)
    >>> likelihood = pv.NormalLikelihood(pv.MLP(2 + n, [8]), (5,), num_labels=n)
    >>> vae = pv.VAE(pv.NormalPrior(2, n), posterior, likelihood, conditions)
    >>> vae.sample(10, y=[1, 60]).shape
    torch.Size([10, 5])

    Args:
        sizes: for each column of y, the number of its categories, or 0 for a real value.

    Attributes:
        width: the number of inputs, ``num_labels`` of the parts that take them.

    Raises:
        ValueError: without columns, or for a category alone.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(map(int, sizes))
        if not self.sizes or any(size < 0 or size == 1 for size in self.sizes):
            raise ValueError(
                "Expected for each condition 2 or more categories, or 0 for a real value; got "
                f"{list(self.sizes)}."
            )
        self.width = sum(size or 1 for size in self.sizes) + (not any(self.sizes))
        self.register_buffer("center", torch.zeros(len(self.sizes)))
        self.register_buffer("spread", torch.ones(len(self.sizes)))

    @torch.no_grad()
    def initialize_from(self, y: Any) -> None:
        """Takes the centre and spread of real values from training data, ``(n, columns)``.

        Raises:
            ValueError: for another number of columns, or values that are none of them.
        """
        values = self.checked(y).double().reshape(-1, len(self.sizes))
        spread = values.std(0, correction=0)
        self.center.copy_(values.mean(0))
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))

    def forward(self, y: Tensor) -> Tensor:
        standard = ((y - self.center) / self.spread).to(self.spread)
        inputs = [
            y[..., i, None] == torch.arange(size, device=y.device)
            if size
            else standard[..., i, None]
            for i, size in enumerate(self.sizes)
        ]
        if not any(self.sizes):
            inputs.append(torch.ones_like(inputs[0]))
        return torch.cat([part.to(standard) for part in inputs], -1)

    def checked(self, y: Any, n: int | None = None) -> Tensor:
        """Conditions ``(..., columns)`` as a floating tensor, in range.

        Args:
            y: of each datum, or ``(columns,)`` for all.
            n: number of data; None for any.

        Raises:
            ValueError: for another shape, numbers that are no categories, or what is not finite.
        """
        count, shown = len(self.sizes), "..." if n is None else n
        if y is None:
            raise ValueError(
                f"Expected conditions y of shape ({shown}, {count}) for a conditional VAE; got "
                "none."
            )
        try:
            rows = torch.as_tensor(y).to(self.center.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"Expected conditions that are numbers; got {y!r:.60}.") from error
        rows = rows if rows.is_floating_point() else rows.to(self.center.dtype)
        fits = rows.dim() and rows.shape[-1] == count
        if not fits or (n is not None and tuple(rows.shape[:-1]) not in ((), (1,), (n,))):
            raise ValueError(
                f"Expected conditions y of shape ({shown}, {count}), or ({count},) for all data; "
                f"got {tuple(rows.shape)}."
            )
        if not bool(rows.isfinite().all()):
            raise ValueError("Expected conditions that are all there; got NaN or infinity.")
        for i, size in enumerate(self.sizes):
            column = rows[..., i]
            wrong = (column != column.floor()) | (column < 0) | (column >= size)
            if size and bool(wrong.any()):
                raise ValueError(
                    f"Expected categories 0..{size - 1} in column {i} of the conditions; got "
                    f"{column[wrong][0].item():g}."
                )
        return rows if n is None else rows.expand(n, count)

    def fit(self, parts: Sequence[nn.Module]) -> None:
        """Refuses parts that cannot take these conditions.

        Raises:
            ValueError: for another number of inputs, parts without any, or labels alone.
        """
        taking = [part for part in parts if takes_labels(part)]
        if not taking:
            raise ValueError(
                f"Expected a part with num_labels={self.width} for the conditions; got none."
            )
        for part in taking:
            count = getattr(part, "num_labels", None)
            if count not in (None, self.width):
                raise ValueError(
                    f"Expected num_labels={self.width}, the width of the conditions; got {count} "
                    f"of {type(part).__name__}."
                )
            alone = [m for m in part.modules() if getattr(m, "labels_alone", False)]
            if any(takes_labels(module) for module in alone):
                raise ValueError(
                    f"Expected a prior that takes a matrix of conditions; got "
                    f"{type(alone[0]).__name__}, which takes labels alone."
                )
