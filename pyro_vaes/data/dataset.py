"""Data sets, splits and batches: tensors, read by name, from files or from the user.

``load_data`` gives a :class:`DataSet` of three splits; :mod:`pyro_vaes.data.tables` reads,
:mod:`pyro_vaes.data.splits` holds rows and walks through them,
:mod:`pyro_vaes.data.augmentation` transforms batches.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vaes.core.described import plain
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.augmentation import augment_images, binarize, compose
from pyro_vaes.data.files import SUFFIXES, read
from pyro_vaes.data.guesses import (
    LIKELIHOODS,
    Kind,
    find_images,
    kind_of,
    note_gaps,
    oddities,
    whole_again,
)
from pyro_vaes.data.mixed.codec import Codec
from pyro_vaes.data.mixed.dependences import look_at_dependent
from pyro_vaes.data.mixed.groups import shares, unusual
from pyro_vaes.data.named import read_digits, read_pixels
from pyro_vaes.data.rows import ROWS, by_parts, in_single, taken
from pyro_vaes.data.splits import Split, weighted
from pyro_vaes.data.spreadsheets import Columns, TableOptions
from pyro_vaes.data.tables import Pair, num_gaps, suffix_of

__all__ = ["DataSet", "load_data"]


Binarization = Literal["dynamic", "static", "threshold", "grey"]

NAMES = ("cifar10", "digits", "fashion_mnist", "mnist", "omniglot")
_GREY = ("fashion_mnist", "mnist", "omniglot")
BINARIZATIONS = ("dynamic", "static", "threshold", "grey")
# One fixed draw, whatever the run's seed, so that test figures can be compared.
_BINARIZATION_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class DataSet:
    """Three splits and what is known of their values.

    >>> data = pv.load_data("digits")
    >>> len(data.train), data.kind, data.num_levels, data.image_shape
    (1000, 'levels', 17, (1, 8, 8))

    Attributes:
        name: of the source.
        train: rows for training.
        val: rows for validation.
        test: rows for the final evaluation.
        kind: ``binary`` (0 and 1), ``levels`` (whole numbers from 0 to a highest one), ``counts``
            (whole numbers from 0 without one), ``real``, or ``table`` (columns of several kinds).
        num_levels: the number of levels, 0 included; None unless the kind is ``levels``.
        num_labels: the number of labels, 0 included; None without labels.
        image_shape: ``(C, H, W)`` if a datum is an image, else None; x may hold it flat.
        reason: why this kind, as a clause.
        label_names: the classes in the order of their labels, if these had to be numbered.
        notes: sentences on guesses about the source and on oddities in the data.
        columns: the names of a table's columns, None where there are none.
        codec: of a table with columns of several kinds: how rows are written as numbers.
        conditions: of a table whose labels are several conditions: how they are written as numbers.
        places: by split, the numbers that its rows have in the source, from 0; None if the source
            brought its splits.
    """

    name: str
    train: Split
    val: Split
    test: Split
    kind: Kind
    num_levels: int | None = None
    num_labels: int | None = None
    image_shape: tuple[int, int, int] | None = None
    reason: str = "it was asked for"
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    columns: Columns | None = None
    codec: Codec | None = None
    conditions: Codec | None = None
    places: Mapping[str, Tensor] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return self.train.event_shape

    @property
    def default_likelihood(self) -> str:
        """The name of a likelihood that fits the kind of the values."""
        return LIKELIHOODS[self.kind]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the values, labels and shapes of all splits, in hexadecimal."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            # Bytes have the digest of the numbers they stand for.
            digest.update(f"{split.numbers(split.x[:0]).dtype}{tuple(split.x.shape)}".encode())
            split.digest(digest)
            if split.y is None:
                digest.update(b"none")
            else:
                digest.update(f"{split.y.dtype}{tuple(split.y.shape)}".encode())
                digest.update(split.y.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> str:
        """A summary: sizes, the kind of the values and why, and all guesses."""
        labels = f" with labels 0..{self.num_labels - 1}" if self.num_labels else ""
        if self.train.y is not None and self.train.y.dim() > 1:
            count = self.train.y.shape[1]
            labels = f" with {count} condition{'s' * (count > 1)} each"
        kind = {
            "binary": "binary",
            "levels": f"{self.num_levels} levels",
            "counts": "counts",
            "real": "real numbers",
            "table": "a table",
        }
        return (
            f"{self.name}: {len(self.train)} training, {len(self.val)} validation and "
            f"{len(self.test)} test rows of shape {self.event_shape}{labels}, taken for "
            f"{kind[self.kind]} because {self.reason}; "
            f"the default likelihood is {self.default_likelihood}."
            + "".join(f" {note}" for note in self.notes)
        )

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The names of the conditions that y holds; empty if it holds none, or one label."""
        return tuple(column.name for column in self.conditions.columns) if self.conditions else ()

    def rows(self, x: Any) -> Any:
        """Numbers ``(n, D)`` of a table as a data frame with its names, words, dates and rounding.

        Raises:
            DataError: for data that are no table with columns of several kinds.
        """
        if self.codec is None:
            raise DataError(f"Expected a table with columns of several kinds; got {self.kind}.")
        return self.codec.rows(x.detach().cpu() if isinstance(x, Tensor) else x)

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that training rows have; empty without labels."""
        y = self.train.y
        return () if y is None or y.dim() > 1 else tuple(y.unique().tolist())

    def augmented(self, **strengths: float) -> DataSet:
        """This data set with training images moved a little, anew at each batch.

        Args:
            strengths: ``max_shift``, ``max_rotate``, ``max_scale`` and ``max_shear``, see
                :func:`.augment_images`. Levels stay levels and binary images binary; grey images
                are moved before they are binarised.

        Raises:
            DataError: if the data are not images.
        """
        if self.image_shape is None:
            raise DataError(
                f"Expected images to augment; got rows of shape {self.event_shape}. Say how they "
                "are images with image_shape=(C, H, W)."
            )
        if num_gaps(self.train.x):
            raise DataError(
                f"Expected images without gaps to augment; got {num_gaps(self.train.x)} values "
                "that were not seen (NaN). Moves would spread them: leave them out (--augment 0)."
            )
        binary = self.kind == "binary" and self.train.transform is None
        moves = augment_images(
            self.image_shape, num_levels=2 if binary else self.num_levels, **strengths
        )
        train = dataclasses.replace(self.train, transform=compose(moves, self.train.transform))
        return dataclasses.replace(self, train=train)


def load_data(
    source: Any = "digits",
    *,
    labels: Any = None,
    kind: Kind | None = None,
    num_levels: int | None = None,
    image_shape: Sequence[int] | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    root: str | Path = "data",
    binarization: Binarization | None = None,
    header: bool | None = None,
    label_column: str | Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: Literal["keep", "refuse"] = "keep",
    dependent: Literal["keep", "drop", "refuse"] = "keep",
    types: Mapping[str, Any] | None = None,
    group: Any = None,
    weights: Any = None,
    split: Literal["random", "time"] = "random",
) -> DataSet:
    """Loads a data set by name, from a file, or from memory.

    - ``digits``: 1797 flat 8x8 images in 17 levels, in file order: 1000, 350 and 447 rows.
    - ``mnist``, ``fashion_mnist``: flat 28x28 images, 50,000, 10,000 and 10,000 rows, downloaded
      on first use.
    - ``cifar10``: flat 3x32x32 images in 256 levels, 40,000, 10,000 and 10,000 rows, likewise.
    - ``omniglot``: flat 28x28 images, 23,045, 1,345 and 8,070 rows, likewise. Torchvision's images
      of 105x105 pixels are averaged over 3.75x3.75; a permutation of both its parts from seed 0
      makes the splits, so all 50 alphabets, which are the labels, are in each. The file of the
      literature (Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016) was
      made smaller and split in another way: compare figures with its roughly.
    - a path to a ``.npy``, ``.npz``, ``.csv``, ``.tsv`` (also ``.gz``), ``.parquet`` or ``.h5ad``
      file or to a folder of pictures, a mapping of arrays, a data frame, a tensor, an array, a
      sparse matrix, a tuple ``(x, y)``, a ``Dataset`` or a ``DataLoader``;
      :mod:`pyro_vaes.data.tables` says how each is read. Unless the source has splits, a seeded
      permutation makes them.

    Values that are all 0 or 1 are taken for binary, whole numbers from 0 in at most 256 levels for
    levels, larger ones for counts if one in ten is 0 and rows are not images, everything else for
    real numbers; ``describe()`` of the result says which and why, with all other guesses. Whole
    numbers with rounding errors are rounded. Gaps (NaN, blank and NA cells) are
    values that were not seen: they stay NaN and are left out of log p(x), and ``describe()`` says
    how many there are. Bytes of shape ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)`` with one to four
    channels are taken for images if at least 4 pixels wide and high, other rows only if
    ``image_shape`` says so.

    >>> data = pv.load_data(torch.randn(100, 4), labels=["cat", "dog"] * 50)
    >>> print(data.describe())
    data: 60 training, 20 validation and 20 test rows of shape (4,) with labels 0..1, ...

    Args:
        source: see above.
        labels: one label per row of your own data: words or integers, numbered from 0 if needed.
        kind: ``binary``, ``levels``, ``counts``, ``real`` or ``table``; None to infer it from the
            values.
        num_levels: number of levels; None for the highest level plus one. Implies ``levels``.
        image_shape: ``(C, H, W)`` of rows that are images, flat or not; ``(H, W)`` for grey ones.
            Rows of shape ``(H, W, C)`` are transposed. ``()`` for rows that are not images.
        val_fraction: share of your own rows for validation; a split gets one row at least.
        test_fraction: share for testing. The test rows do not depend on ``val_fraction``.
        seed: of the permutation that makes the splits.
        root: the folder for downloads.
        binarization: for ``mnist``, ``fashion_mnist`` and ``omniglot``: ``dynamic`` (the default:
            training images stay grey and are drawn anew for each batch, the others are drawn once
            from seed 0), ``static`` (all are drawn once from seed 0, so not the file of the
            literature's static MNIST), ``threshold`` (one half) or ``grey`` (256 levels).
        header: of a text file: whether the first row holds names; None to detect it.
        label_column: of a table: the name of the label column, ``""`` for none; None to detect it.
            Several names (also with commas between), a column of fractions or one whose kind
            ``types`` gives make y a matrix of conditions, see :class:`.Conditions`.
        drop: of a table: names of columns to leave out.
        missing: whether gaps are kept, or refused.
        dependent: whether real columns that never vary, or are linear functions of others in the
            training rows, are kept (which is said: the smallest scale sets their density), dropped
            from a table that names its columns, or refused.
        types: of a table: kinds of columns by name (:data:`~pyro_vaes.core.columns.KINDS`,
            ``date``, ``drop``, or the values of an ordinal in order); others are guessed, and said.
        group: rows with the same value stay in one split: a column of a table, left out of the
            data, or one value for each row.
        weights: how much each row counts in training and validation, see :class:`.Split`: a column
            of a table, left out of the data, or one value for each row. Test rows count alike.
        split: ``random``, or ``time``: the first rows train, the last ones test.

    Returns:
        The data set, on the CPU, float32; bytes stay bytes until a batch needs them. Splits of more
        than a gigabyte lie in mapped temporary files (``TMPDIR``), not in memory.

    Raises:
        DataError: for data that are missing, damaged or unfit, with one line that says why.
    """
    num_levels, val_fraction, test_fraction = map(plain, (num_levels, val_fraction, test_fraction))
    notes: list[str] = []
    by, counted = (value if isinstance(value, str) else None for value in (group, weights))
    table = None if kind is None else kind == "table"
    options = TableOptions(header, label_column, tuple(drop), types or {}, table, by, counted)
    label_names: tuple[str, ...] | None = None
    codec = places = None
    name = source if isinstance(source, str) and source in NAMES else None
    options.check_used(source)
    splitting = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}
    own = {"labels": labels, "group": group, "weights": weights}
    given = [n for n, value in own.items() if value is not None] + unusual(**splitting, split=split)
    if name is not None and given:
        raise DataError(f"Expected no {given[0]}= with {name}; that is for your own data.")
    if binarization is not None and name not in _GREY:
        raise DataError(f"Expected binarization= only with {', '.join(_GREY)}.")
    if binarization not in (None, *BINARIZATIONS):
        raise DataError(
            f"Expected binarization among {', '.join(BINARIZATIONS)}; got {binarization!r}."
        )
    if name == "digits":
        splits, image_shape = _digits(), image_shape or (1, 8, 8)
    elif name is not None:
        colour = name == "cifar10"
        pixels, label_names = read_pixels(name, root)
        splits = _binarized(pixels, "grey" if colour else binarization or "dynamic")
        image_shape = image_shape or ((3, 32, 32) if colour else (1, 28, 28))
    else:
        pairs, label_names = _read(source, labels, options, notes)
        first = pairs.get("train", pairs.get("all"))
        shape = tuple(first[0].shape[1:]) if first else ()
        are_bytes = first is not None and first[0].dtype == torch.uint8
        image_shape, turned = find_images(shape, image_shape, are_bytes, notes)
        if turned:
            pairs = {key: (by_parts(_channels_first, x), y) for key, (x, y) in pairs.items()}
        codec, group = options.extras.get("codec"), options.extras.get("group", group)
        splits, places = _own(pairs, val_fraction, test_fraction, int(plain(seed)), group, split)
        splits = weighted(splits, places, options.extras.get("weights", weights), notes)
        if kind != "real" and codec is None:
            splits = whole_again(splits, notes)
        name = Path(source).name if isinstance(source, (str, Path)) else "data"
    train, val, test = splits
    if not train.event_shape == val.event_shape == test.event_shape:
        shapes = ", ".join(str(split.event_shape) for split in splits)
        raise DataError(f"Expected splits with rows of one shape; got {shapes}.")
    note_gaps(splits, missing, notes)
    # Splits with a random transform are left out: the model sees other values than are stored.
    known = [s.x for s in splits if not s.transform]
    found: Kind = "table"
    reason = "it has columns of several kinds" if kind is None else "that was asked for"
    if codec is None:
        found, num_levels, reason = kind_of(known, kind, num_levels, bool(image_shape))
    elif kind not in (None, "table") or num_levels is not None or image_shape:
        raise DataError("Expected no other kind, levels or image_shape of a table with types.")
    columns = options.found[-1] if options.found else None
    if found in ("real", "table") and train.x.dim() == 2 and not image_shape:
        splits, columns = look_at_dependent(splits, columns, codec, dependent, notes)
        train, val, test = splits
    if train.transform is not None:
        reason += " (for training, grey ones are drawn anew at each batch)"
    notes += oddities(train, splits, found, label_names, columns.names if columns else None)
    return DataSet(
        name=name,
        train=train,
        val=val,
        test=test,
        kind=found,
        num_levels=num_levels,
        num_labels=_count([s.y for s in splits if s.y is not None and s.y.dim() == 1]),
        image_shape=tuple(image_shape) if image_shape else None,  # type: ignore[arg-type]
        reason=reason,
        label_names=label_names,
        notes=tuple(notes),
        columns=columns,
        codec=codec,
        conditions=options.extras.get("conditions"),
        places=places,
    )


# --- steps of load_data ------------------------------------------------------------------------


def _digits() -> list[Split]:
    x, y = read_digits()
    cuts = (slice(0, 1000), slice(1000, 1350), slice(1350, None))
    return [Split(x[cut].to(torch.float32), y[cut]) for cut in cuts]


def _binarized(pixels: Sequence[Pair], binarization: str) -> list[Split]:
    splits = []
    for x, y in pixels:
        if binarization == "grey":
            splits.append(Split(x.flatten(1), y))
            continue
        grey = x.flatten(1).to(torch.float32)
        if binarization == "threshold":
            splits.append(Split((grey > 127.5).to(torch.float32), y))
        else:
            splits.append(Split(grey / 255, y, binarize))
    if binarization in ("dynamic", "static"):
        first = int(binarization == "dynamic")
        splits[first:] = [split.frozen(_BINARIZATION_SEED) for split in splits[first:]]
    return splits


def _read(
    source: Any, labels: Any, options: TableOptions, notes: list[str]
) -> tuple[dict[str, Pair], tuple[str, ...] | None]:
    """The user's own data, and the names of their classes if those had to be numbered."""
    known = not isinstance(source, str) or suffix_of(Path(source)) in SUFFIXES
    if not known and not Path(source).expanduser().is_dir():
        raise DataError(
            f"Expected data to be one of {', '.join(NAMES)}, a folder of pictures, or the path of "
            f"a file ending in {', '.join(SUFFIXES)}; got {source!r}."
        )
    return read(source, labels, options, notes)


def _own(
    pairs: dict[str, Pair],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    group: Any,
    split: str,
) -> tuple[list[Split], dict[str, Tensor] | None]:
    if "all" not in pairs:
        if group is not None or split != "random":
            raise DataError("Expected no group or split of data that bring their splits.")
        if unusual(val_fraction=val_fraction, test_fraction=test_fraction):
            raise DataError(
                "Expected no val_fraction or test_fraction of data that bring their splits."
            )
        return [_single(pairs[key]) for key in ("train", "val", "test")], None
    whole = _single(pairs["all"])
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise DataError(
            "Expected val_fraction and test_fraction above 0 that leave something for training; "
            f"got {val_fraction} and {test_fraction}."
        )
    n = len(whole)
    num_test, num_val = (max(1, round(n * share)) for share in (test_fraction, val_fraction))
    if num_test + num_val >= n:
        raise DataError(f"Expected rows enough for three splits; got {n}.")
    index = shares(n, num_test, num_val, seed, group, split)
    splits = [Split(taken(whole.x, i), None if whole.y is None else whole.y[i]) for i in index]
    return splits, dict(zip(("train", "val", "test"), index, strict=True))


def _count(labels: Sequence[Tensor]) -> int | None:
    return max((int(y.max()) + 1 for y in labels), default=None)


def _channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1).contiguous()


def _single(pair: Pair) -> Split:
    """The rows in single precision or bytes, on the CPU."""
    x = in_single(pair[0].cpu())
    if x.is_floating_point() and any(part.isinf().any() for part in x.split(ROWS)):
        raise DataError("Expected numbers within the range of float32; got larger ones.")
    return Split(x, None if pair[1] is None else pair[1].cpu())
