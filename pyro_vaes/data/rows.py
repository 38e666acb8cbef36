"""Rows in single precision, in memory or, where that is too small, in a mapped file.

Many rows go to a temporary file that is mapped: the system reads those that a batch needs, and may
take their memory back at any time. So data of any size are a tensor, to everything that meets them.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError

__all__ = ["ROWS", "by_parts", "fits", "gathered", "in_single", "mapped", "taken", "thinned"]


# Rows processed at once, which bounds the memory of intermediate results.
ROWS = 1024
# Rows of more bytes than this go to a file.
_IN_MEMORY = 2**30
# Largest rounding error, as a share of an element's standard deviation.
_ROUNDING = 0.05
# Spreads up to which, and down to whose inverse, single precision has its full number of digits.
_WIDEST = 1e37


def fits(size: int) -> bool:
    """Whether rows of this many bytes are held in memory."""
    return size <= _IN_MEMORY


def gathered(parts: Iterable[Tensor]) -> Tensor:
    """Parts of some rows, one after another, as one tensor.

    Beyond a gigabyte they go, part by part, to a file without a name in the folder of temporary
    files (``TMPDIR``), which is mapped and goes away with the tensor.

    Raises:
        DataError: without any part, if the parts hold different types of numbers, or if the disk
            is full.
    """
    held: list[Tensor] = []
    rest, size = iter(parts), 0
    for part in rest:
        held.append(part)
        size += _bytes(part)
        if not fits(size):
            return _in_file(itertools.chain(_drained(held), rest))
    if not held:
        raise DataError("Expected at least one row; got none.")
    return held[0] if len(held) == 1 else torch.cat(held)


def by_parts(of: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``of(x)`` for a function of each row by itself, a part at a time if the rows are many."""
    if fits(_bytes(x)) or x.device.type != "cpu":
        return of(x)
    return gathered(map(of, x.split(ROWS)))


def taken(x: Tensor, index: Tensor) -> Tensor:
    """A copy of some of the rows, in the order of ``index``."""
    if fits(len(index) * _bytes(x[:1])) or x.device.type != "cpu":
        return x[index]
    return gathered(x[part] for part in index.split(ROWS))


def thinned(x: Tensor) -> slice:
    """Which rows make a starting point: all, or as many, evenly spread, as fit into memory."""
    return slice(None, None, max(1, math.ceil(8 * x.numel() / _IN_MEMORY)))


def mapped(array: np.memmap) -> Tensor:
    """A mapped file as a tensor, without a copy."""
    with warnings.catch_warnings():  # Nothing writes to a file that is open for reading.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.asarray(array))


def _in_file(parts: Iterator[Tensor]) -> Tensor:
    first = next(parts)
    count = 0
    folder = tempfile.gettempdir()
    try:
        # Nothing else needs a name: the mapping holds the file until the tensor is gone.
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in itertools.chain([first], parts):
                if part.dtype != first.dtype:
                    raise DataError(
                        f"Expected rows of one type of number; got {first.dtype} and {part.dtype}."
                    )
                file.write(part.detach().cpu().contiguous().numpy().data)
                count += len(part)
            file.flush()
            shape = (count, *first.shape[1:])
            dtype = first[:0].numpy().dtype
            return mapped(np.memmap(file, dtype, "r+", shape=shape))
    except OSError as error:
        raise DataError(
            f"Expected room for data that are larger than memory in {folder}; got {error}. Let "
            "TMPDIR name a folder on a larger disk."
        ) from error


def _drained(held: list[Tensor]) -> Iterator[Tensor]:
    """The parts, each given up before the next."""
    held.reverse()
    while held:
        yield held.pop()


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def in_single(x: Tensor) -> Tensor:
    """Rows in single precision, bytes unchanged; refused if it cannot distinguish the values.

    Raises:
        DataError: naming the element and its values.
    """
    if x.dtype in (torch.uint8, torch.float32):
        return x
    rounded = by_parts(lambda part: part.to(torch.float32), x)
    if x.dtype not in (torch.float64, torch.int32, torch.int64) or x.dim() < 2 or not len(x):
        return rounded
    table = x.flatten(1)
    error, spread = _rounding(table, rounded.flatten(1))
    bad = error > _ROUNDING * spread
    if bool((bad & (spread > 0)).any()):
        i = int((bad & (spread > 0)).nonzero()[0])
        kept, all_ = (len(rows[:, i].unique()) for rows in (rounded.flatten(1), table))
        usual = float(table[0, i])
        within = 1 / _WIDEST < float(spread[i]) < _WIDEST
        advice = f"Subtract {usual:.10g} from it first." if within else "Give it in another unit."
        raise DataError(
            f"Expected values that single precision can distinguish; got element {i} about "
            f"{usual:.10g} with a standard deviation of {spread[i]:.4g}, of which it keeps "
            f"{kept} of {all_} different values. {advice}"
        )
    return rounded


def _rounding(table: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The largest error of each element and its spread, a part of the rows at a time."""
    first = table[0].double().nan_to_num(0.0)
    error, total, squares = (torch.zeros_like(first) for _ in range(3))
    for part, near in zip(table.split(ROWS), rounded.split(ROWS), strict=True):
        # A gap has no digits to lose: it stands at the first row's value, or at zero.
        exact = torch.where(part.isnan(), first, part.double())
        near = torch.where(part.isnan(), first, near.double())
        error = torch.maximum(error, (near - exact).abs().amax(0))
        total += (exact - first).sum(0)
        squares += (exact - first).square().sum(0)
    mean = total / len(table)
    return error, (squares / len(table) - mean.square()).clamp(min=0).sqrt()
