"""Reads data in memory into checked tensors.

The result is a pair: rows ``x`` of shape ``(n, *event_shape)``, floating or bytes, and labels
``y`` of shape ``(n,)``, int64, or None. Numbers are finite; NaN is a value that was not seen.
Nothing that is read is ever executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
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

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.class_names import Names
from pyro_vaes.data.rows import ROWS, by_parts, fits, gathered, in_single, mapped

__all__ = [
    "LABEL_KEYS",
    "ROWS",
    "Pair",
    "check_rows",
    "filled",
    "num_gaps",
    "read_labels",
    "read_pair",
    "suffix_of",
]


Pair = tuple[Tensor, Tensor | None]
#: Names of the labels in a mapping of arrays; the first is our own.
LABEL_KEYS = ("y", "label", "labels", "target", "targets")
# Types of numbers that need no copy of a mapped file.
_MAPPED = (np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64)


def _read_one(
    source: Mapping[str, Any], x: Any, labels: Any, notes: list[str]
) -> tuple[dict[str, Pair], tuple[str, ...] | None]:
    """The rows of a mapping without splits."""
    keys = [key for key in source if key.lower() in LABEL_KEYS and "x" in source]
    if len(keys) > 1:
        raise DataError(f"Expected one array of labels; got {', '.join(keys)}.")
    if "x" in source:
        _check_used(source, {"x", *keys})
    if keys and keys[0] != "y":
        notes.append(f"The array {keys[0]!r} was taken for the labels.")
    names = Names()
    pair = read_pair((x, source[keys[0]] if keys else None), labels, names)
    return {"all": pair}, names.found(notes)


def _check_used(source: Mapping[str, Any], used: set[str]) -> None:
    left = [key for key in source if key not in used]
    if left:
        raise DataError(
            f"Expected arrays called {', '.join(sorted(used & set(source)))} alone; got also "
            f"{', '.join(left)}, which would not be used. Leave them out, or rename them."
        )


def read_pair(source: Any, labels: Any = None, names: Names | None = None) -> Pair:
    """Reads one table: rows and perhaps their labels.

    Data sets and loaders are read once, so that random transforms in them are drawn once; beyond a
    gigabyte into a temporary file, see :mod:`pyro_vaes.data.rows`. Rows stay
    in order: plain shuffling (which the trainer does anyway) and ``drop_last`` are undone.

    Args:
        source: a tensor, an array, a tuple ``(x,)`` or ``(x, y)``, a ``Dataset`` or ``DataLoader``
            whose items are ``x``, ``(x,)`` or ``(x, y)``.
        labels: one label for each row, if the source holds none.
        names: numbers labels that do not count from 0; None to refuse them.

    Returns:
        x, float32 unless it was float64 or bytes, and the labels.

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
        raise DataError("Expected labels once; got labels= with data that hold their own.")
    x = check_rows(source)
    given = own_labels if labels is None else labels
    if names is not None and given is not None:
        given = names.number(given)
    return x, None if given is None else read_labels(given, len(x)).to(x.device)


def _read_table(path: Path, options: Any, notes: list[str]) -> Any:
    """A table, read by pandas; guesses go to the notes."""
    from pyro_vaes.data.spreadsheets import TableOptions, read_frame, read_table

    options = TableOptions() if options is None else options
    frame, named = read_table(path, options, notes)
    return read_frame(frame, options, notes, named=named)


def _read_anndata(path: Path) -> Any:
    try:
        from anndata import read_h5ad
    except ImportError as error:
        raise DataError(
            "Expected a library that reads .h5ad files; got none. Run pip install anndata."
        ) from error
    file = read_h5ad(path, backed="r")
    try:
        matrix = file.X
        # Rows stand together in all formats but this one.
        by_columns = getattr(matrix, "format", "") == "csc"
        return {"x": _dense(matrix.to_memory().tocsr() if by_columns else matrix)}
    except KeyError as error:
        raise DataError("Expected a matrix X in the file; got none.") from error
    finally:
        file.file.close()


def _reason(error: Exception) -> str:
    """The last line of an error's message, where many errors give the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".").split("; use `")[0]


# --- data sets and loaders ---------------------------------------------------------------------


def _read_loader(loader: DataLoader[Any]) -> tuple[Any, ...]:
    if loader.batch_sampler is None:
        raise DataError("Expected a DataLoader that makes batches; got one with batch_size=None.")
    # Another sampler may choose the rows that are the data: SubsetRandomSampler, for instance.
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
    """Concatenates the batches of a loader, of which two are in memory at a time."""
    labels: list[Any] = []
    with torch.random.fork_rng(devices=[]):  # loaders and transforms draw random numbers
        x = gathered(_rows(batches, labels))
    return (x,) if any(y is None for y in labels) else (x, torch.cat(labels))


def _rows(batches: Iterable[Any], labels: list[Any]) -> Iterator[Tensor]:
    """The rows of each batch; their labels go to a list."""
    shape = None
    for batch in batches:
        x, y = _unpack(batch)
        if any(not isinstance(part, (Tensor, type(None))) for part in (x, y)) or x is None:
            raise DataError("Expected items x, (x,) or (x, y) of tensors, arrays or numbers.")
        shape = x.shape[1:] if shape is None else shape
        if x.shape[1:] != shape:
            shapes = [tuple(shape), tuple(x.shape[1:])]
            raise DataError(f"Expected rows of one shape; got {sorted(shapes)}.")
        labels.append(y)
        yield x


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
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            remedy = "x.filled(numpy.nan)" if what == "data" else "such rows left out"
            raise DataError(
                f"Expected {what} without a mask; got {int(np.ma.getmaskarray(value).sum())} "
                f"masked (missing) values. Give {remedy}."
            )
        value = value.data
    if isinstance(value, Tensor) and value.layout != torch.strided:
        value = value.to_dense()
    elif hasattr(value, "toarray") and hasattr(value, "tocsr"):  # SciPy's sparse matrices.
        value = _dense(value.tocsr())
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except ValueError as error:  # lists of different lengths
            raise DataError(f"Expected {what} in rows of one length; got ragged ones.") from error
        if array.dtype.kind not in "biuf":
            raise DataError(f"Expected {what} that are real numbers; got dtype {array.dtype}.")
        if _can_be_mapped(value):
            value = mapped(value)
        elif array.ndim and not fits(array.nbytes):
            parts = (array[i : i + ROWS] for i in range(0, len(array), ROWS))
            value = gathered(map(_copied, parts))
        else:
            value = _copied(array)
    if value.is_complex():
        raise DataError(f"Expected {what} that are real numbers; got dtype {value.dtype}.")
    return cast(Tensor, value.detach() if value.requires_grad else value)


def _can_be_mapped(array: Any) -> bool:
    """Whether an array is a file that is open for reading alone, of numbers that torch has."""
    if not isinstance(array, np.memmap) or array.dtype not in _MAPPED:
        return False
    return bool(array.flags.c_contiguous and not array.flags.writeable)


def _copied(array: np.ndarray) -> Tensor:
    """A copy: writable, in a type torch has, and safe from later changes of the array."""
    most = array.max() if array.dtype.kind == "u" and array.size else 0
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(_torch_type(array.dtype, most), order="C"))


def _dense(matrix: Any) -> Tensor:
    """A matrix, sparse or on a disk, which gives rows by slicing; a part of them at a time."""
    parts = (matrix[i : i + ROWS] for i in range(0, matrix.shape[0], ROWS))
    arrays = (part.toarray() if hasattr(part, "toarray") else np.asarray(part) for part in parts)
    return gathered(_as_tensor(array, "data") for array in arrays)


def _torch_type(dtype: np.dtype[Any], most: Any = 0) -> np.dtype[Any]:
    """The nearest numeric type that torch supports, in native byte order, up to a number."""
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.float64 if most > np.iinfo(np.int64).max else np.int64)
    return dtype.newbyteorder("=")


def check_rows(value: Any) -> Tensor:
    """Rows as a floating tensor or as bytes, refused if empty or infinite.

    NaN is a value that was not seen: a likelihood leaves it out, or refuses it.
    """
    x = _as_tensor(value, "data")
    if x.dtype not in (torch.float32, torch.float64, torch.uint8):
        x = in_single(x)
    if x.dim() < 2:
        raise DataError(
            f"Expected data of shape (n, ...), one row for each datum; got shape {tuple(x.shape)}. "
            "(A single column has shape (n, 1).)"
        )
    if not x.numel():
        raise DataError(f"Expected rows with numbers in them; got shape {tuple(x.shape)}.")
    if x.is_floating_point() and any(part.isinf().any() for part in x.split(ROWS)):
        bad = x.isinf().flatten(1).any(1)
        raise DataError(
            f"Expected finite numbers; got infinity in row {int(bad.nonzero()[0])} (counted from "
            f"0; bad rows: {int(bad.sum())} of {len(x)}). Drop such rows, or put NaN for a value "
            "that was not seen."
        )
    return x


def num_gaps(x: Tensor) -> int:
    """How many values were not seen (are NaN)."""
    if not x.is_floating_point():
        return 0
    return sum(int(part.isnan().sum()) for part in x.split(ROWS))


def filled(x: Tensor) -> Tensor:
    """Rows whose gaps hold the mean of what was seen of their element, 0 if nothing was.

    For starting points and checks, never for what is scored. Rows without gaps come back as they
    are.

    >>> filled(torch.tensor([[1.0, 5.0], [3.0, torch.nan]])).tolist()
    [[1.0, 5.0], [3.0, 5.0]]
    """
    if not num_gaps(x):
        return x
    total, count = (x.new_zeros(x.shape[1:], dtype=torch.float64) for _ in range(2))
    for part in x.split(ROWS):
        total += part.double().nansum(0)
        count += (~part.isnan()).sum(0)
    mean = (total / count).nan_to_num(0.0).to(x)
    return by_parts(lambda part: torch.where(part.isnan(), mean, part), x)


def suffix_of(path: Path) -> str:
    """The ending of a file's name, compression included."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else path.suffix.lower()


def read_labels(value: Any, n: int) -> Tensor:
    """Labels as int64, refused if they are not one whole number from 0 for each of n rows.

    A matrix holds conditions, a row for each row: floating numbers, all of them there.
    """
    y = _as_tensor(value, "labels")
    if y.dim() == 2 and len(y) == n and y.shape[1]:
        y = y if y.is_floating_point() else y.float()
        if not bool(y.isfinite().all()):
            raise DataError("Expected conditions that are all there; got NaN or infinity.")
        return y
    if y.shape != (n,):
        raise DataError(
            f"Expected a label for each of {n} rows, shape ({n},); got {tuple(y.shape)}."
        )
    wrong = y < 0 if not y.is_floating_point() else ~((y >= 0) & (y == y.floor()) & (y < 2**63))
    if bool(wrong.any()):
        raise DataError(
            f"Expected labels that are whole numbers of at least 0; got {y[wrong][0].item()}. "
            "Number the classes from 0."
        )
    return y.long()
