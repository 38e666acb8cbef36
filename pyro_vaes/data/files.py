"""Reads arrays and tables from files: ``.npy``, ``.npz`` and ``.csv``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.class_names import Names
from pyro_vaes.data.mixed.cells import letter_of
from pyro_vaes.data.rows import ROWS, fits, gathered
from pyro_vaes.data.tables import (
    LABEL_KEYS,
    Pair,
    _check_used,
    _read_anndata,
    _read_one,
    _read_table,
    _reason,
    read_pair,
    suffix_of,
)

__all__ = ["SUFFIXES", "read", "read_columns"]


SUFFIXES = (".csv", ".csv.gz", ".h5ad", ".npy", ".npz", ".parquet", ".tsv", ".tsv.gz")
_SPLITS = ("train", "val", "test")


def read(
    source: Any, labels: Any = None, options: Any = None, notes: list[str] | None = None
) -> tuple[dict[str, Pair], tuple[str, ...] | None]:
    """Reads the user's own data.

    A mapping of arrays, which is also what an ``.npz`` file holds, has the keys ``x`` and perhaps
    ``y`` (a lone array may have any name); or ``train_x``, ``val_x``, ``test_x`` and perhaps
    ``train_y``, ``val_y``, ``test_y``. A table, in a text file, a ``.parquet`` file or a data
    frame, has numbers in it, perhaps names for its columns, and then perhaps a column of labels;
    see :mod:`pyro_vaes.data.spreadsheets`. A folder holds pictures, see
    :mod:`pyro_vaes.data.pictures`.

    Args:
        source: a path, a mapping as above, a data frame, or anything that
            :func:`~pyro_vaes.data.tables.read_pair` takes.
        labels: one label for each row, if the source holds none.
        options: :class:`~pyro_vaes.data.spreadsheets.TableOptions`, which override guesses.
        notes: collects a sentence for each guess.

    Returns:
        Pairs under the keys ``train``, ``val`` and ``test``, or one under ``all``; and the names
        of the classes, if the labels had to be numbered.

    Raises:
        DataError: for anything that cannot be read or used.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        try:
            return read(_read_file(path, options, notes), labels, options, notes)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error.__cause__
    notes = [] if notes is None else notes
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        from pyro_vaes.data.spreadsheets import TableOptions, read_frame, without_index

        frame = without_index(source, notes)
        return read(read_frame(frame, options or TableOptions(), notes), labels, options, notes)
    if not isinstance(source, Mapping):
        names = Names()
        return {"all": read_pair(source, labels, names)}, names.found(notes)
    wanted = [f"{split}_x" for split in _SPLITS]
    if not any(key in source for key in wanted):
        if "x" not in source and len(source) != 1:
            raise DataError(
                f"Expected arrays called x (and y), or {', '.join(wanted)}; "
                f"got {', '.join(source) or 'none'}."
            )
        x = source["x"] if "x" in source else next(iter(source.values()))
        return _read_one(source, x, labels, notes)
    if not all(key in source for key in wanted):
        raise DataError(f"Expected all of {', '.join(wanted)}; got {', '.join(source)}.")
    if labels is not None:
        raise DataError("Expected train_y, val_y and test_y with splits; got labels=.")
    if len({f"{split}_y" in source for split in _SPLITS}) > 1:
        raise DataError(f"Expected labels for all splits or none; got {', '.join(source)}.")
    _check_used(source, {f"{split}_{part}" for split in _SPLITS for part in "xy"})
    names = Names(source[f"{s}_y"] for s in _SPLITS if f"{s}_y" in source)
    pairs = {s: read_pair((source[f"{s}_x"], source.get(f"{s}_y")), None, names) for s in _SPLITS}
    return pairs, names.found(notes)


# --- files -------------------------------------------------------------------------------------


def _read_file(path: Path, options: Any = None, notes: list[str] | None = None) -> Any:
    """The content of a file: an array or a mapping of arrays."""
    suffix, notes = suffix_of(path), [] if notes is None else notes
    if path.is_dir() and suffix not in SUFFIXES:
        from pyro_vaes.data.pictures import read_pictures

        return read_pictures(path, notes)
    with _readable(path, suffix):
        if suffix in (".npy", ".npz"):
            return _read_numpy(path)
        if suffix != ".h5ad":
            _check_size(path)
        return _read_anndata(path) if suffix == ".h5ad" else _read_table(path, options, notes)


def read_columns(
    path: Path,
    columns: Any,
    labelled: bool,
    codec: Any = None,
    conditions: Any = None,
    named: bool = True,
) -> tuple[Any, Any, Mapping[str, Any]]:
    """Reads columns of a table that are known by name.

    Args:
        path: of the file.
        columns: :class:`~pyro_vaes.data.spreadsheets.Columns`.
        labelled: whether labels are needed.
        codec: :class:`~pyro_vaes.data.mixed.codec.Codec` of columns of several kinds.
        conditions: that of the columns of conditions, if labels are such.
        named: whether the first row holds names; columns are called by their letters otherwise.

    Returns:
        See :func:`~pyro_vaes.data.spreadsheets.pick_columns`.

    Raises:
        DataError: for anything that cannot be read or used.
    """
    from pyro_vaes.data.mixed.lines import as_written
    from pyro_vaes.data.spreadsheets import TableOptions, pick_columns, read_table

    path = path.expanduser()
    with _readable(path, suffix_of(path)):
        _check_size(path)
        frame, _ = read_table(path, TableOptions(header=named), [])
        if not named:
            frame.columns = list(map(letter_of, range(frame.shape[1])))
        written = partial(as_written, path) if path.suffix.lower() != ".parquet" else None
        return pick_columns(frame, columns, labelled, codec, conditions, written)


def _check_size(path: Path) -> None:
    """Refuses a table that is read in one piece and would not fit into memory."""
    size, memory = path.stat().st_size, _memory()
    if size > memory / 2:
        raise DataError(
            f"Expected a table of at most half the memory, {memory / 2e9:.1f} GB, for tables are "
            f"read in one piece; got {size / 1e9:.1f} GB. Save its numbers by numpy.save: an .npy "
            "file of any size will do."
        )


def _memory() -> float:
    """Bytes of the machine's memory; without bound where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


@contextmanager
def _readable(path: Path, suffix: str) -> Iterator[None]:
    """Refuses a file that is none of data, or turns out inside to be damaged."""
    if suffix not in SUFFIXES:
        raise DataError(f"Expected a file ending in {', '.join(SUFFIXES)}; got {suffix or 'none'}.")
    if not path.is_file():
        raise DataError(f"Expected a file; got {'a folder' if path.is_dir() else 'none there'}.")
    if not path.stat().st_size:
        raise DataError("Expected a file with data; got an empty one.")
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected text in UTF-8; got another encoding ({_reason(error)}). Save it as UTF-8."
        ) from error
    # A damaged file fails in many ways (zip, zlib, header, encoding, sizes beyond memory).
    except Exception as error:
        raise DataError(
            f"Expected a readable {suffix} file of numbers; got {_reason(error)}."
        ) from error


def _members(archive: Any) -> dict[str, Any]:
    """The arrays of an ``.npz`` file; those that nothing would use are not unpacked."""
    used = {"x", *LABEL_KEYS, *(f"{split}_{part}" for split in _SPLITS for part in "xy")}
    names = archive.files
    wanted = [name for name in names if name.lower() in used or len(names) == 1]
    return {name: _member(archive, name) if name in wanted else None for name in names}


def _member(archive: Any, name: str) -> Any:
    """One array of an ``.npz`` file, unpacked a part at a time if it is large."""
    held = archive.zip.namelist()
    inside = name if name in held else f"{name}.npy"
    if fits(archive.zip.getinfo(inside).file_size):
        return archive[name]
    form = np.lib.format
    with archive.zip.open(inside) as file:
        old = form.read_magic(file) == (1, 0)
        found = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)
        shape, by_columns, dtype = found
        if len(shape) < 2:
            return archive[name]
        if by_columns or dtype.hasobject:
            raise DataError(
                f"Expected {name!r}, which is large, to hold numbers row by row; got another array."
            )
        size = dtype.itemsize * math.prod(shape[1:])
        counts = (min(ROWS, shape[0] - i) for i in range(0, shape[0], ROWS))
        parts = (np.frombuffer(file.read(count * size), dtype) for count in counts)
        return gathered(torch.from_numpy(part.reshape(-1, *shape[1:]).copy()) for part in parts)


def _read_numpy(path: Path) -> Any:
    with path.open("rb") as file:  # np.load leaves a damaged file open
        try:
            if path.suffix.lower() == ".npy":  # Mapped, so that only a copy takes memory.
                return np.load(path, mmap_mode="r", allow_pickle=False)
            content = np.load(file, allow_pickle=False)
            return content if isinstance(content, np.ndarray) else _members(content)
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            # NumPy's message advises loading the pickle.
            raise DataError(
                "Expected arrays of numbers; got objects, or a file that numpy.save did not write."
            ) from error
