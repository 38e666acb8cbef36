"""Reads arrays and tables from files: ``.npy``, ``.npz`` and ``.csv``."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vaes.data.tables import DataError, Pair, _check_labels, _reason, read_pair

__all__ = ["read"]


SUFFIXES = (".csv", ".npy", ".npz")
_SPLITS = ("train", "val", "test")
_LABEL_COLUMNS = ("label", "y")


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
