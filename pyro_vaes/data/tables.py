"""Where data come from: named sets and the user's own, read into checked tensors.

Everything ends up as a pair: rows ``x`` of shape ``(n, *event_shape)``, finite and floating, and
labels ``y`` of shape ``(n,)``, int64, or None. Nothing that is read is ever executed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from pyro_vaes.core.errors import InputError

__all__ = ["DataError", "Pair", "read_pair"]


Pair = tuple[Tensor, Tensor | None]


class DataError(InputError):
    """Data that cannot be used; one line that says what was expected and what to do."""


def read_pair(source: Any, labels: Any = None) -> Pair:
    """Reads one table: rows and perhaps their labels.

    A data set is read once, in order, so a random transform in it is drawn once. So is a loader,
    except that plain shuffling (which the trainer does anyway) and ``drop_last`` are undone.

    Args:
        source: a tensor, an array, a tuple ``(x,)`` or ``(x, y)``, a ``Dataset`` or ``DataLoader``
            whose items are ``x``, ``(x,)`` or ``(x, y)``.
        labels: one label for each row, if the source holds none.

    Returns:
        x in the precision it came in, float32 unless that was float64, and the labels.

    Raises:
        DataError: for anything that cannot be used.
    """
    if isinstance(source, DataLoader):
        source = _read_loader(source)
    elif type(source) is TensorDataset:
        source = source.tensors
    elif isinstance(source, Dataset):
        source = _join(DataLoader(source, 256, collate_fn=_collate, generator=torch.Generator()))
    own_labels = None
    if isinstance(source, tuple):
        source, own_labels = _unpack(source)
    if own_labels is not None and labels is not None:
        raise DataError("Expected labels once; got labels= beside data that hold their own.")
    x = _check_rows(source)
    given = own_labels if labels is None else labels
    return x, None if given is None else _check_labels(given, len(x)).to(x.device)


def _reason(error: Exception) -> str:
    """The last line of an error's text: many errors say the cause there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".").split("; use `")[0]


# --- data sets and loaders ---------------------------------------------------------------------


def _read_loader(loader: DataLoader[Any]) -> tuple[Any, ...]:
    if loader.batch_sampler is None:
        raise DataError("Expected a DataLoader that makes batches; got one with batch_size=None.")
    # Another sampler may choose rows, which is then the data: SubsetRandomSampler, for instance.
    sampler = loader.sampler
    in_order = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(cast(Any, loader.dataset))
    )
    if in_order and loader.batch_size is not None:
        loader = DataLoader(
            loader.dataset,
            loader.batch_size,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            generator=torch.Generator(),
        )
    return _join(loader)


def _join(batches: Iterable[Any]) -> tuple[Any, ...]:
    """Puts the batches of a loader together."""
    with torch.random.fork_rng(devices=[]):  # loaders and transforms draw from the caller's
        pairs = [_unpack(batch) for batch in batches]
    if not pairs:
        raise DataError("Expected at least one row; got none.")
    if any(not isinstance(part, (Tensor, type(None))) for pair in pairs for part in pair):
        raise DataError("Expected items x, (x,) or (x, y) of tensors, arrays or numbers.")
    xs, ys = zip(*pairs, strict=True)
    if len({x.shape[1:] for x in xs}) > 1:
        raise DataError(
            f"Expected rows of one shape; got {sorted({*(tuple(x.shape[1:]) for x in xs)})}."
        )
    if any(y is None for y in ys):
        return (torch.cat(xs),)
    return torch.cat(xs), torch.cat(ys)


def _collate(items: list[Any]) -> Any:
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:
        raise DataError(
            f"Expected items x, (x,) or (x, y) of tensors, arrays or numbers of one shape; "
            f"got {_reason(error)}. (Images want a transform that makes tensors of them.)"
        ) from error


def _unpack(item: Any) -> tuple[Any, Any]:
    """``x``, ``(x,)`` or ``(x, y)`` as ``(x, y)``; y may be None."""
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) not in (1, 2):
        raise DataError(f"Expected x, (x,) or (x, y); got {len(item)} things.")
    return (item[0], item[1]) if len(item) == 2 else (item[0], None)


# --- checks ------------------------------------------------------------------------------------


def _as_tensor(value: Any, what: str) -> Tensor:
    """A tensor of numbers, floating ones as they are (at least float32), without gradient."""
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except ValueError as error:  # lists of different lengths
            raise DataError(f"Expected {what} in rows of one length; got ragged ones.") from error
        if array.dtype.kind not in "biuf":
            raise DataError(f"Expected {what} that are real numbers; got dtype {array.dtype}.")
        # A copy: writable, in a type that torch has, and safe from later changes of the array.
        with np.errstate(over="ignore"):
            value = torch.from_numpy(array.astype(_torch_type(array.dtype), order="C"))
    if value.is_complex():
        raise DataError(f"Expected {what} that are real numbers; got dtype {value.dtype}.")
    return cast(Tensor, value.detach())


def _torch_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type nearest to a numeric one that torch works in, in the machine's byte order."""
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int64)
    return dtype.newbyteorder("=")


def _check_rows(value: Any) -> Tensor:
    x = _as_tensor(value, "data")
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    if x.dim() < 2:
        raise DataError(
            f"Expected data of shape (n, ...), one row for each datum; got shape {tuple(x.shape)}. "
            "(A single column has shape (n, 1).)"
        )
    if not x.numel():
        raise DataError(f"Expected rows with numbers in them; got shape {tuple(x.shape)}.")
    if not torch.isfinite(x).all():
        bad = ~torch.isfinite(x).flatten(1).all(1)
        what = "NaN" if torch.isnan(x).any() else "infinity"
        raise DataError(
            f"Expected finite numbers; got {what} in row {int(bad.nonzero()[0])} (counted from 0; "
            f"bad rows: {int(bad.sum())} of {len(x)}). Drop such rows or fill them in."
        )
    return x


def _check_labels(value: Any, n: int) -> Tensor:
    y = _as_tensor(value, "labels")
    if y.shape != (n,):
        raise DataError(
            f"Expected a label for each of {n} rows, shape ({n},); got {tuple(y.shape)}."
        )
    wrong = y < 0 if not y.is_floating_point() else ~((y >= 0) & (y == y.floor()) & y.isfinite())
    if bool(wrong.any()):
        raise DataError(
            f"Expected labels that are whole numbers of at least 0; got {y[wrong][0].item()}. "
            "Number the classes from 0."
        )
    return y.long()
