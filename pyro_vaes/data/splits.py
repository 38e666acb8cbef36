"""Splits: rows, their batches, and initial pseudo-inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.checks import positive
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.augmentation import Transform
from pyro_vaes.data.rows import ROWS, by_parts, taken
from pyro_vaes.data.tables import check_rows, filled, read_labels, read_pair

__all__ = [
    "Init",
    "Split",
    "as_split",
    "batches",
    "labelled_pseudo_inputs",
    "pseudo_inputs",
    "weighted",
]


Init = Literal["data", "mean", "random"]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Rows, perhaps with labels, in memory or in a mapped file.

    >>> split = pv.Split(torch.rand(100, 4), torch.arange(100) % 3)
    >>> len(split), split.event_shape
    (100, (4,))

    Attributes:
        x: ``(n, *event_shape)``, float32 (or float64, if given so); levels are whole numbers in it,
            or bytes, which are converted batch by batch; memory-mapped files stay mapped. NaN is a
            value that was not seen.
        y: labels ``(n,)``, int64, or conditions ``(n, columns)``, floating, see
            :class:`~pyro_vaes.core.labels.Conditions`; or None.
        transform: applied to each training batch with fresh randomness (dynamic binarisation,
            augmentation), or None.
        dtype: the number format of batches of bytes.
        weights: how much each row counts in training, ``(n,)``, 0 or more, or None for all alike.
            A training epoch draws its rows by their weights; a validation set counts them so.
    """

    x: Tensor
    y: Tensor | None = None
    transform: Transform | None = None
    dtype: torch.dtype = torch.float32
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", check_rows(self.x))
        if self.y is not None and len(self.y) != len(self.x):
            raise DataError(f"Expected a label for each of {len(self.x)} rows; got {len(self.y)}.")
        if self.y is not None:
            object.__setattr__(self, "y", read_labels(self.y, len(self.x)))
        if self.weights is not None:
            object.__setattr__(self, "weights", _read_weights(self.weights, len(self.x)))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.x.shape[1:])

    def numbers(self, rows: Tensor) -> Tensor:
        """Some of the rows, bytes among them as floating numbers."""
        return rows if rows.is_floating_point() else rows.to(self.dtype)

    def digest(self, digest: Any) -> None:
        """Feeds the rows to a hash of ``hashlib``, bytes like the numbers they stand for."""
        for part in self.x.split(ROWS):
            digest.update(self.numbers(part).cpu().contiguous().numpy().data)
        if self.weights is not None:
            digest.update(self.weights.numpy().data)

    def frozen(self, seed: int = 0) -> Split:
        """This split with its transform applied once to all rows, and then removed."""
        if self.transform is None:
            return self
        transform, generator = self.transform, torch.Generator().manual_seed(seed)
        x = by_parts(lambda part: transform(self.numbers(part), generator), self.x)
        return dataclasses.replace(self, x=x, transform=None)


def _read_weights(value: Any, n: int) -> Tensor:
    """Weights as float64 on the CPU, refused if they are not one number of at least 0 a row."""
    try:
        # Pandas' arrays may be read-only.
        value = value if isinstance(value, Tensor) else np.array(value)
        weights = torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"Expected weights that are numbers; got {value!r:.60}.") from error
    if weights.shape != (n,):
        raise DataError(
            f"Expected a weight for each of {n} rows, shape ({n},); got {tuple(weights.shape)}."
        )
    wrong = weights[~((weights >= 0) & weights.isfinite())]
    if len(wrong):
        raise DataError(f"Expected finite weights of 0 or more; got {wrong[0]:g} among them.")
    if not weights.any():
        raise DataError("Expected weights of which one is above 0; all weights are zero.")
    return weights.contiguous()


def weighted(
    splits: list[Split], places: Mapping[str, Tensor] | None, weights: Any, notes: list[str]
) -> list[Split]:
    """Splits whose training and validation rows count by their weights, which is noted.

    Test rows count alike, since figures of them are means over rows.

    Args:
        splits: training, validation and test rows.
        places: by split, the numbers of its rows in the source; None if that brought its splits.
        weights: of each row of the source, or None.
        notes: collects a sentence.

    Raises:
        DataError: for weights of data that brought their splits, or that are none.
    """
    if weights is None:
        return splits
    if places is None:
        raise DataError("Expected no weights of data that bring their splits.")
    if isinstance(weights, str):
        raise DataError(f"Expected a table with a column of weights called {weights!r}; got none.")
    each = _read_weights(weights, sum(map(len, splits)))
    notes.append("Rows count by their weights in training and validation, and alike in testing.")
    pairs = zip(splits[:2], (places["train"], places["val"]), strict=True)
    return [*(dataclasses.replace(s, weights=each[index]) for s, index in pairs), splits[2]]


def as_split(data: Any, labels: Any = None) -> Split:
    """Converts data that ``fit`` and ``evaluate`` accept to a split.

    >>> from pyro_vaes.data import as_split
    >>> as_split(([[0.5], [1.5], [2.5]], [0, 1, 0])).y
    tensor([0, 1, 0])

    Args:
        data: a split, a tensor, an array, a tuple ``(x, y)``, a ``Dataset`` or a ``DataLoader``.
        labels: one label for each row, if the data hold none.

    Returns:
        A split; a given split is returned as it is. Float64 data stay float64.

    Raises:
        DataError: for data that cannot be used.
    """
    if all(hasattr(data, part) for part in ("train", "val", "test")):
        raise DataError("Expected one split; got a data set. Pass its .train, .val or .test.")
    if isinstance(data, (str, Path)):
        raise DataError(f"Expected data in memory; got {str(data)!r}. Use load_data to read it.")
    if not isinstance(data, Split):
        return Split(*read_pair(data, labels))
    if labels is None:
        return data
    if data.y is not None:
        raise DataError("Expected labels once; got labels= with a split that holds its own.")
    return dataclasses.replace(data, y=read_pair(data.x, labels)[1])


def batches(
    split: Split, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Iterates once over a split.

    Args:
        split: the rows.
        batch_size: rows in a batch; the last may have fewer.
        generator: for training: draws the order of the rows, then each batch's transform. None
            for rows in order, as they are.

    Returns:
        An iterator over ``(x, y)``; y is None without labels.
    """
    positive(batch_size=batch_size)  # at the call, not at the first batch
    return _batches(split, batch_size, generator)


def _batches(
    split: Split, batch_size: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    x, y = split.x, split.y
    if generator is None and split.weights is None:
        for start in range(0, len(x), batch_size):
            stop = start + batch_size
            yield split.numbers(x[start:stop]), None if y is None else y[start:stop]
        return
    for index in torch.split(_order(split, generator).to(x.device), batch_size):
        rows = split.numbers(x.index_select(0, index))
        if split.transform is not None and generator is not None:
            rows = split.transform(rows, generator)
        yield rows, None if y is None else y.index_select(0, index)


def _order(split: Split, generator: torch.Generator | None) -> Tensor:
    """Which rows make an epoch; with weights, some come more than once and others not at all."""
    n = len(split)
    if split.weights is None:
        assert generator is not None
        return torch.randperm(n, generator=generator, device=generator.device)
    fixed = generator is None
    source = torch.Generator().manual_seed(0) if generator is None else generator
    share = torch.rand(n, dtype=torch.float64, generator=source, device=source.device).cpu()
    if fixed:  # In order, one in each n-th: what is validated on is spread evenly.
        share = (torch.arange(n) + share) / n
    sums = split.weights.cumsum(0)
    return torch.searchsorted(sums, share * sums[-1], right=True).clamp(max=n - 1)


def pseudo_inputs(
    x: Any,
    num: int,
    init: Init = "data",
    generator: torch.Generator | None = None,
    *,
    noise: float = 0.01,
) -> Tensor:
    """Starting points for the pseudo-inputs of a VampPrior, in the units and range of the data.

    Equal pseudo-inputs get equal gradients and never separate, so repeats get noise of ``noise``
    standard deviations of each element, within the range of the data.

    >>> pv.pseudo_inputs(pv.load_data("digits").train, 50).shape
    torch.Size([50, 64])

    Args:
        x: training data, ``(n, *event_shape)``, or a split.
        num: number of pseudo-inputs.
        init: ``data`` takes distinct random rows (beyond n, rows repeat with noise); ``mean``
            takes the mean of the data with noise; ``random`` draws uniformly within each element's
            range.
        generator: source of the draws; torch's own if None.
        noise: see above.

    Returns:
        ``(num, *event_shape)``.

    Raises:
        ValueError: for a ``num`` below one or an unknown ``init``.
    """
    positive(num=num)
    split = as_split(x)
    rows = filled(split.x)
    low, high = split.numbers(rows.amin(0)), split.numbers(rows.amax(0))
    device = torch.device("cpu") if generator is None else generator.device

    def draw(kind: Callable[..., Tensor]) -> Tensor:
        draws = kind(num, *rows.shape[1:], generator=generator, device=device, dtype=low.dtype)
        return draws.to(rows.device)

    if init == "random":
        start = low + (high - low) * draw(torch.rand)
    elif init == "data":
        order = [
            torch.randperm(len(rows), generator=generator, device=device)
            for _ in range(math.ceil(num / len(rows)))
        ]
        start = split.numbers(rows[torch.cat(order)[:num].to(rows.device)])
    elif init == "mean":
        start = rows.mean(0, dtype=low.dtype).expand(num, *rows.shape[1:])
    else:
        raise ValueError(f"Expected init among data, mean, random; got {init!r}.")
    spread = _spread(rows)
    varies = bool((spread > 0).any())
    repeats = _repeats(start) | (init == "mean" and varies)
    if not bool(repeats.any()):
        return start
    if not varies:
        # All rows are equal: only their size gives a scale.
        spread = torch.where(low == 0, 1.0, low.abs())
        low, high = low - spread, high + spread
    jitter = noise * spread * draw(torch.randn)
    jitter[~repeats] = 0
    return (start + jitter).clamp(low, high)


def _spread(rows: Tensor) -> Tensor:
    """The standard deviation of each element; of bytes without a copy of them all."""
    if rows.is_floating_point():
        return rows.std(0, correction=0)
    mean = rows.mean(0, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for part in rows.split(ROWS):
        squares += (part - mean).square().sum(0)
    return (squares / len(rows)).sqrt().float()


def _repeats(rows: Tensor) -> Tensor:
    """Which rows are equal to an earlier one."""
    _, group = torch.unique(rows.flatten(1), dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(rows), device=rows.device)
    index = torch.arange(len(rows), device=rows.device)
    first = first.scatter_reduce(0, group, index, "amin")
    return first[group] != index


def labelled_pseudo_inputs(
    split: Split,
    num: int,
    init: Init = "data",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pseudo-inputs for a conditional VampPrior: equally many per label, from its own rows.

    >>> from pyro_vaes.data import labelled_pseudo_inputs
    >>> inputs, labels = labelled_pseudo_inputs(pv.load_data("digits").train, 50)
    >>> inputs.shape, labels.bincount().tolist()
    (torch.Size([50, 64]), [5, 5, 5, 5, 5, 5, 5, 5, 5, 5])

    Args:
        split: training data with labels.
        num: number of pseudo-inputs, at least one for each label.
        init: see :func:`pseudo_inputs`.
        generator: see :func:`pseudo_inputs`.

    Returns:
        ``(num, *event_shape)`` and the labels ``(num,)``, in order.

    Raises:
        ValueError: without labels, or for fewer pseudo-inputs than labels.
    """
    if split.y is None or split.y.dim() > 1:
        got = "one without" if split.y is None else "a matrix of conditions"
        raise DataError(f"Expected a split with labels; got {got}.")
    num_labels = int(split.y.max()) + 1
    if num < num_labels:
        raise ValueError(f"Expected a pseudo-input for each of {num_labels} labels; got num={num}.")
    labels = (torch.arange(num, device=split.y.device) % num_labels).sort().values
    parts = []
    for label, count in enumerate(labels.bincount().tolist()):
        own = taken(split.x, (split.y == label).nonzero()[:, 0])
        # For a label that no row has, any row will do.
        parts.append(pseudo_inputs(own if len(own) else split.x, count, init, generator))
    return torch.cat(parts), labels
