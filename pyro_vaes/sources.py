"""Where data come from: named sets and the user's own, read into checked tensors.

Everything ends up as a pair: rows ``x`` of shape ``(n, *event_shape)``, finite and floating, and
labels ``y`` of shape ``(n,)``, int64, or None. Nothing that is read is ever executed.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import warnings
from collections.abc import Iterable, Mapping
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

__all__ = ["DataError", "Pair", "read", "read_digits", "read_pair", "read_torchvision"]

Pair = tuple[Tensor, Tensor | None]

SUFFIXES = (".csv", ".npy", ".npz")
_SPLITS = ("train", "val", "test")
_LABEL_COLUMNS = ("label", "y")


class DataError(ValueError):
    """Data that cannot be used; one line that says what was expected and what to do."""


def read(source: Any, labels: Any = None) -> dict[str, Pair]:
    """Reads the user's own data.

    A mapping of arrays, which is also what an ``.npz`` file holds, has the keys ``x`` and perhaps
    ``y`` (a lone array may have any name); or ``train_x``, ``val_x``, ``test_x`` and perhaps
    ``train_y``, ``val_y``, ``test_y``. A ``.csv`` file has commas, numbers, perhaps a header, and
    then perhaps a column called ``label`` or ``y`` that holds the labels.

    Args:
        source: a path to a ``.npy``, ``.npz`` or ``.csv`` file, a mapping as above, or anything
            that :func:`read_pair` takes.
        labels: one label for each row, if the source holds none.

    Returns:
        Pairs under the keys ``train``, ``val`` and ``test``, or one under ``all``.

    Raises:
        DataError: for anything that cannot be read or used.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        try:
            return read(_read_file(path), labels)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error.__cause__
    if not isinstance(source, Mapping):
        return {"all": read_pair(source, labels)}
    wanted = [f"{split}_x" for split in _SPLITS]
    if not any(key in source for key in wanted):
        if "x" not in source and len(source) != 1:
            raise DataError(
                f"Expected arrays called x (and y), or {', '.join(wanted)}; "
                f"got {', '.join(source) or 'none'}."
            )
        x = source["x"] if "x" in source else next(iter(source.values()))
        return {"all": read_pair((x, source.get("y")), labels)}
    if not all(key in source for key in wanted):
        raise DataError(f"Expected all of {', '.join(wanted)}; got {', '.join(source)}.")
    if labels is not None:
        raise DataError("Expected train_y, val_y and test_y beside splits; got labels=.")
    if len({f"{split}_y" in source for split in _SPLITS}) > 1:
        raise DataError(f"Expected labels for all splits or none; got {', '.join(source)}.")
    return {s: read_pair((source[f"{s}_x"], source.get(f"{s}_y"))) for s in _SPLITS}


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


def read_digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits of 8x8 pixels that scikit-learn carries, in file order; levels 0..16.

    Alpaydin and Kaynak, "Optical recognition of handwritten digits" (UCI, 1998), its test part.
    """
    # Its table alone, if it lies where it has always lain: to import the library takes a second.
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return torch.from_numpy(table[:, :-1].copy()), torch.from_numpy(table[:, -1]).long()
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x), torch.from_numpy(y)


def read_torchvision(name: str, root: str | Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """The training and test file of ``mnist`` or ``fashion_mnist``, fetched if they are absent.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        root: the folder that holds, or will hold, torchvision's folders.

    Returns:
        ``(x, y)`` of the training file and of the test file, x of shape ``(n, 28, 28)``, uint8.

    Raises:
        DataError: if the files are absent and cannot be fetched, or are damaged.
    """
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    root = Path(root).expanduser()
    folder = root / kind.__name__ / "raw"
    new_folders = [path for path in (folder, folder.parent, root) if not path.exists()]
    try:
        train, test = (kind(root, train=part, download=True) for part in (True, False))
    # Downloading and parsing fail in many ways; each has the same two remedies.
    except Exception as error:
        for path in new_folders:
            with contextlib.suppress(OSError):  # kept if something did arrive
                path.rmdir()
        reason = _reason(error)
        if len(list(folder.glob("*-ubyte"))) == len(kind.resources):
            raise DataError(
                f"Expected the files of {name} in {folder}; got damaged ones ({reason}). "
                "Delete them to fetch them again."
            ) from error
        raise DataError(
            f"Expected the files of {name} in {folder}, or a network to fetch them from; got "
            f"neither ({reason}). Connect, or put the four ...-ubyte files there."
        ) from error
    return (train.data, train.targets), (test.data, test.targets)


# --- files -------------------------------------------------------------------------------------


def _read_file(path: Path) -> Any:
    """What a file holds: an array or a mapping of arrays."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"Expected a file ending in {', '.join(SUFFIXES)}; got {suffix or 'none'}.")
    if not path.is_file():
        raise DataError(f"Expected a file; got {'a folder' if path.is_dir() else 'none there'}.")
    if not path.stat().st_size:
        raise DataError("Expected a file with data; got an empty one.")
    try:
        return _read_csv(path) if suffix == ".csv" else _read_numpy(path)
    except DataError:
        raise
    # A damaged file fails in many ways (zip, zlib, header, encoding, sizes beyond memory).
    except Exception as error:
        raise DataError(
            f"Expected a readable {suffix} file of numbers; got {_reason(error)}."
        ) from error


def _read_numpy(path: Path) -> Any:
    with path.open("rb") as file:  # np.load leaves a damaged file open
        try:
            content = np.load(file, allow_pickle=False)
            return content if isinstance(content, np.ndarray) else dict(content)
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            # numpy's own text advises to load the pickle.
            raise DataError(
                "Expected arrays of numbers; got objects, or a file that numpy.save did not write."
            ) from error


def _read_csv(path: Path) -> Any:
    # A byte order mark, which spreadsheets write, is no part of the first name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = [cell.strip() for cell in next(csv.reader(file), [])]
    has_header = not all(map(_is_number, first))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "no data", which is refused later
        table = np.loadtxt(
            path,
            delimiter=",",
            skiprows=int(has_header),
            ndmin=2,
            comments=None,
            quotechar='"',
            encoding="utf-8-sig",
        )
    if not has_header:
        return table
    if "" in first:
        raise DataError("Expected a name for each column; got one without. (Leave an index out.)")
    if table.size and table.shape[1] != len(first):
        raise DataError(
            f"Expected a name for each column; got {len(first)} names and {table.shape[1]} columns."
        )
    named = [i for i, name in enumerate(first) if name.lower() in _LABEL_COLUMNS]
    if len(named) > 1:
        raise DataError(f"Expected one column called label or y at most; got {len(named)}.")
    if not named or not table.size:
        return table
    try:
        labels = _check_labels(table[:, named[0]], len(table))
    except DataError as error:
        raise DataError(f"{error} (Rename column {first[named[0]]!r} if it is no label.)") from None
    return {"x": np.delete(table, named, axis=1), "y": labels}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        # A first row with a gap is a damaged row of numbers, not a header.
        return not cell
    return True


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
