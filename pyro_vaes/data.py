"""Data: named sets and the user's own, whole in memory, split, and cut into batches.

A :class:`Split` holds rows ``x`` and labels ``y``; a :class:`DataSet` holds three splits and what the
values are. Levels (whole numbers 0..L-1, such as pixel intensities) are held as floats, as networks
want them, and stay what they are: nothing is rescaled here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = [
    "DATA_NAMES",
    "DataError",
    "DataSet",
    "Split",
    "as_split",
    "batches",
    "load_data",
    "pseudo_inputs",
]

DATA_NAMES = ("digits", "mnist", "fashion_mnist")
Kind = Literal["binary", "levels", "real"]

# Whole numbers up to here are levels; beyond, counting every level would be absurd.
_MOST_LEVELS = 256


class DataError(ValueError):
    """Data that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        x: ``(n, *event_shape)``, float32.
        y: labels ``(n,)``, whole numbers from 0, or None.
        transform: ``transform(x_batch, generator)`` makes a training batch anew each time it is
            drawn (dynamic binarisation, augmentation); None for none.
    """

    x: Tensor
    y: Tensor | None = None
    transform: Callable[[Tensor, Generator], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set in three splits, and what its values are.

    Attributes:
        name: a known name, or the file it came from.
        train: training split.
        val: validation split, for choices.
        test: test split, looked at once.
        kind: ``binary`` (0 and 1), ``levels`` (0..num_levels - 1) or ``real``.
        num_levels: number of levels; 2 for binary data, None for real data.
        num_labels: number of labels; None without labels.
        image_shape: ``(channels, height, width)`` of a datum that is an image, else None.
    """

    name: str
    train: Split
    val: Split
    test: Split
    kind: Kind
    num_levels: int | None = None
    num_labels: int | None = None
    image_shape: tuple[int, int, int] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    @property
    def default_likelihood(self) -> str:
        """The likelihood that suits the values where nobody chose one."""
        return {"binary": "bernoulli", "levels": "categorical", "real": "normal"}[self.kind]

    @cached_property
    def digest(self) -> str:
        """A fingerprint of all values and labels."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in (split.x, split.y):
                if tensor is not None:
                    digest.update(f"{tuple(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> str:
        """Says in one line what the data are taken for, and so which likelihood suits them."""
        what = {
            "binary": "binary values",
            "levels": f"whole levels 0..{(self.num_levels or 0) - 1}",
            "real": "real values",
        }[self.kind]
        sizes = f"{len(self.train)} train, {len(self.val)} validation, {len(self.test)} test"
        labels = f", labels 0..{self.num_labels - 1}" if self.num_labels else ""
        return f"{self.name}: {sizes}; shape {self.event_shape}, {what}{labels}"


# --- loading ---------------------------------------------------------------------------------------


def load_data(
    source: Any = "digits",
    *,
    labels: Any = None,
    root: str | Path = "data",
    binarization: str = "dynamic",
    seed: int = 0,
    fractions: tuple[float, float] = (0.2, 0.2),
) -> DataSet:
    """Loads a named data set or the user's own data.

    Args:
        source: ``digits`` (embedded, 8x8, levels 0..16: 1000/350/447 rows in file order), ``mnist``
            or ``fashion_mnist`` (28x28, downloaded through torchvision: 50,000/10,000/10,000); the
            path of a ``.npy``, ``.npz`` or ``.csv`` file; a tensor, array, pair ``(x, y)``,
            ``Dataset`` or ``DataLoader``. An ``.npz`` file holds ``x`` and perhaps ``y``; a column
            ``label`` or ``y`` of a ``.csv`` file with a header holds the labels.
        labels: labels of the user's own data, one a row.
        root: folder for downloads.
        binarization: of MNIST and Fashion-MNIST: ``dynamic`` (training batches drawn anew from the
            grey values, validation and test drawn once from a fixed seed), ``threshold`` (at half)
            or ``grey`` (levels 0..255).
        seed: seed of the split of the user's own data, and of the fixed binarisation.
        fractions: parts of the user's own rows for validation and test, after a seeded shuffle.

    Returns:
        The data set.

    Raises:
        DataError: for data that cannot be used, with one line that says why.
    """
    if isinstance(source, str) and source == "digits":
        return _digits()
    if isinstance(source, str) and source in DATA_NAMES:
        from pyro_vaes.images import load_images

        return load_images(source, Path(root), binarization, seed)
    if isinstance(source, (str, Path)):
        x, y = _read(Path(source))
        return _split(Path(source).name, x, y if labels is None else labels, seed, fractions)
    x, y = _rows(source)
    return _split("your data", x, y if labels is None else labels, seed, fractions)


def as_split(data: Any, labels: Any = None) -> Split:
    """Makes a split of a split, tensor, array, pair ``(x, y)``, ``Dataset`` or ``DataLoader``.

    Raises:
        DataError: for anything else, and for values that cannot be used.
    """
    if isinstance(data, Split):
        return data
    if isinstance(data, DataSet):
        raise DataError("Expected one split; got a DataSet: pass its .train, .val or .test.")
    x, y = _rows(data)
    y = y if labels is None else labels
    x = _values(x)
    return Split(x, None if y is None else _labels(y, len(x)))


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor(bunch.target, dtype=torch.int64)
    cuts = (slice(0, 1000), slice(1000, 1350), slice(1350, 1797))
    train, val, test = (Split(x[cut], y[cut]) for cut in cuts)
    return DataSet("digits", train, val, test, "levels", 17, 10, (1, 8, 8))


def _read(path: Path) -> tuple[Any, Any]:
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    if path.suffix not in readers:
        raise DataError(
            f"Expected a data set among {', '.join(DATA_NAMES)} or a file ending in "
            f"{', '.join(readers)}; got {str(path)!r}."
        )
    if not path.is_file():
        raise DataError(f"Expected a data file; found none at {path}.")
    if path.stat().st_size == 0:
        raise DataError(f"Expected data in {path}; the file is empty.")
    try:
        return readers[path.suffix](path)
    except DataError:
        raise
    except Exception as error:  # NumPy raises a dozen kinds over a damaged file.
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise DataError(
                f"Expected numbers in {path}; got an array of objects (or a pickle), which is never "
                "loaded."
            ) from error
        raise DataError(f"Expected a whole {path.suffix} file at {path}; it is damaged.") from error


def _read_npy(path: Path) -> tuple[Any, Any]:
    return np.load(path, allow_pickle=False), None


def _read_npz(path: Path) -> tuple[Any, Any]:
    with np.load(path, allow_pickle=False) as archive:
        if "x" not in archive.files:
            raise DataError(
                f"Expected arrays x and perhaps y in {path}; got {', '.join(archive.files) or 'none'}."
            )
        return archive["x"], archive["y"] if "y" in archive.files else None


def _read_csv(path: Path) -> tuple[Any, Any]:
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip().split(",")
    names = [name.strip().strip('"').lower() for name in first]
    header = any(not _is_number(name) for name in names)
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2)
    except ValueError as error:
        reason = str(error).split(";")[0]
        raise DataError(f"Expected rows of numbers, equally long, in {path}; {reason}.") from error
    for name in ("label", "y"):
        if header and name in names and len(names) == table.shape[1]:
            column = names.index(name)
            return np.delete(table, column, axis=1), table[:, column]
    return table, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(source: Any) -> tuple[Any, Any]:
    """Rows, and labels if the source brings them."""
    if isinstance(source, (Tensor, np.ndarray)):
        return source, None
    if isinstance(source, tuple) and len(source) == 2:
        return source
    if isinstance(source, DataLoader):
        return _stack([_item(batch) for batch in source], torch.cat)
    if isinstance(source, Dataset) and hasattr(source, "__len__"):
        # A loader collates whole batches; shuffling and workers are of no use here.
        return _rows(DataLoader(source, batch_size=1024))
    if isinstance(source, list):
        try:
            return np.asarray(source, dtype=float), None
        except (TypeError, ValueError) as error:
            raise DataError("Expected rows of numbers, equally long; got a ragged list.") from error
    raise DataError(
        "Expected a split, tensor, array, pair (x, y), Dataset or DataLoader; "
        f"got {type(source).__name__}."
    )


def _item(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2:
        return batch[0], batch[1] if len(batch) == 2 else None
    raise DataError(f"Expected batches x, (x,) or (x, y); got {type(batch).__name__}.")


def _stack(items: list[tuple[Tensor, Tensor | None]], join: Any) -> tuple[Any, Any]:
    if not items:
        raise DataError("Expected at least one batch of data; got none.")
    x, y = zip(*items, strict=True)
    return join(x), None if y[0] is None else join(y)


def _values(x: Any) -> Tensor:
    """Rows as float32, checked."""
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise DataError(f"Expected numbers; got an array of type {x.dtype}.")
        x = torch.from_numpy(np.ascontiguousarray(x.astype(np.float32 if x.dtype.kind != "f" else x.dtype.newbyteorder("="))))
    if not isinstance(x, Tensor) or x.is_complex():
        raise DataError(f"Expected real numbers; got {getattr(x, 'dtype', type(x).__name__)}.")
    if x.dim() < 2:
        raise DataError(f"Expected data of shape (rows, ...); got {tuple(x.shape)}.")
    if not x.numel():
        raise DataError(f"Expected at least one row of data; got shape {tuple(x.shape)}.")
    x = x.detach().cpu()
    x = x if x.dtype == torch.float64 else x.float()
    if not torch.isfinite(x).all():
        raise DataError("Expected finite values; got NaN or infinity in the data.")
    return x


def _labels(y: Any, rows: int) -> Tensor:
    y = torch.as_tensor(np.asarray(y) if isinstance(y, (list, np.ndarray)) else y).detach().cpu()
    if y.shape != (rows,):
        raise DataError(f"Expected one label for each of {rows} rows; got shape {tuple(y.shape)}.")
    whole = y.long()
    if y.is_complex() or not torch.equal(whole.to(y.dtype), y) or whole.min() < 0:
        raise DataError("Expected labels that are whole numbers from 0; got others.")
    return whole


def _split(name: str, x: Any, y: Any, seed: int, fractions: tuple[float, float]) -> DataSet:
    x = _values(x).float()
    y = None if y is None else _labels(y, len(x))
    n = len(x)
    if n < 3:
        raise DataError(f"Expected at least 3 rows, one for each split; got {n}.")
    order = torch.randperm(n, generator=Generator().manual_seed(seed))
    val, test = (max(1, round(fraction * n)) for fraction in fractions)
    if val + test >= n:
        raise DataError(f"Expected fractions that leave rows to train on; got {fractions}.")
    cuts = order.split([n - val - test, val, test])
    splits = [Split(x[cut], None if y is None else y[cut]) for cut in cuts]
    kind, num_levels = kind_of(x)
    num_labels = None if y is None else int(y.max()) + 1
    return DataSet(name, *splits, kind, num_levels, num_labels, _image_shape(tuple(x.shape[1:])))


def kind_of(x: Tensor) -> tuple[Kind, int | None]:
    """What values are: binary, levels (with their number) or real."""
    if x.min() >= 0 and torch.equal(x, x.round()) and x.max() < _MOST_LEVELS:
        levels = max(2, int(x.max()) + 1)
        return ("binary" if levels == 2 else "levels"), levels
    return "real", None


def _image_shape(event_shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    shape = (1, *event_shape) if len(event_shape) == 2 else event_shape
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4:
        return cast("tuple[int, int, int]", shape)
    return None


# --- batches ---------------------------------------------------------------------------------------


def batches(
    split: Split, batch_size: int, generator: Generator | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cuts a split into batches ``(x, y)``; the last may be smaller.

    Args:
        split: the rows, on any device.
        batch_size: rows in a batch.
        generator: shuffles, and feeds the split's transform, if given; rows come in order, and as
            they are, otherwise.
    """
    x, y = split.x, split.y
    order = None
    if generator is not None:
        # One gather an epoch: a batch is then a view.
        order = torch.randperm(len(split), generator=generator).to(x.device)
        x, y = x[order], None if y is None else y[order]
    for start in range(0, len(split), batch_size):
        rows = slice(start, start + batch_size)
        part = x[rows]
        if generator is not None and split.transform is not None:
            part = split.transform(part, generator)
        yield part, None if y is None else y[rows]


def pseudo_inputs(
    x: Tensor,
    num: int,
    init: str = "data",
    generator: Generator | None = None,
) -> Tensor:
    """Where the pseudo-inputs of a VampPrior start.

    Args:
        x: training data ``(n, *event_shape)``.
        num: K.
        init: ``data``: K distinct rows (rows again once all are used); ``mean``: the mean row plus
            normal noise of a tenth of each element's standard deviation; ``random``: uniform
            between each element's least and greatest value.
        generator: source of randomness; torch's own if None.

    Returns:
        ``(num, *event_shape)``.

    Raises:
        ValueError: for ``num`` below one or an unknown ``init``.
    """
    if num < 1:
        raise ValueError(f"Expected at least one pseudo-input; got {num}.")
    shape = (num, *x.shape[1:])
    if init == "data":
        rounds = math.ceil(num / len(x))
        order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(rounds)])
        return x[order[:num].to(x.device)].clone()
    if init == "mean":
        noise = torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)
        return x.mean(0) + 0.1 * x.std(0, correction=0) * noise
    if init == "random":
        low, high = x.amin(0), x.amax(0)
        uniform = torch.rand(shape, generator=generator, dtype=x.dtype).to(x.device)
        return low + (high - low) * uniform
    raise ValueError(f"Expected init among data, mean, random; got {init!r}.")
