"""Text files of tables, line by line: separator, header, decimal mark, cut-off lines."""

from __future__ import annotations

import gzip
import itertools
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.cells import SPACES, cells_of, letter_of, separator_of

__all__ = ["as_written", "read_text"]


# Lines, at most, by which the decimal mark and the header are known.
_LOOKED_AT = 1000
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_DECIMAL_POINT = r"\s*[+-]?\d+\.\d+\s*"
_TOO_MANY = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


def read_text(path: Path, header: bool | None, notes: list[str]) -> tuple[Any, bool]:
    """Reads a text file of rows.

    Args:
        path: the file.
        header: whether its first row holds the names of the columns; None to detect it.
        notes: collects a sentence for each guess.

    Returns:
        A pandas ``DataFrame`` whose index counts the lines, and whether its columns have names.

    Raises:
        DataError: for a line with fewer cells or more, or two decimal marks.
    """
    import pandas as pd

    found = _first_rows(path)
    (line, first), (next_line, second) = found[:2]
    separator = separator_of(first, second)
    names, *rows = (cells_of(text, separator) for _, text in found)
    comma = separator != "," and _has_comma([names, *rows])
    asked, header = header, _has_header(names, rows, comma) if header is None else header
    numbers = [name for name in names if name and _is_number(name, comma)]
    if asked is None and header and numbers:
        said = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        notes.append(f"The first row, {said}, was taken for a header.")
    if asked is None and not header:
        notes.append("The first row was taken for data, not for a header.")
    if separator != "," or comma:
        named = {"\t": "tabs", SPACES: "spaces"}.get(separator, repr(separator))
        notes.append(f"Columns are separated by {named}{', with decimal commas' * comma}.")
    if header and not second:
        raise DataError("Expected rows with numbers in them; got none below the names.")
    skipped = (next_line if header else line) - 1
    frame = _frame(path, separator, comma, skipped)
    frame.index = frame.index + 1 + skipped  # The line of each row.
    frame = frame[~_blank(path, frame)]
    _check_whole(path, frame, separator)
    if comma:
        _check_marks(frame)
    if header and len(frame) and len(names) != frame.shape[1]:
        raise DataError(
            f"Expected a name for each column in line {line}; got {len(names)} names and "
            f"{frame.shape[1]} columns. (Leave titles and comments out.)"
        )
    if header and len(frame):
        frame.columns = pd.Index(names)
    return frame, header


def as_written(path: Path, frame: Any, columns: Sequence[int]) -> Any:
    """Some columns that :func:`read_text` gave, with cells as they stand in the file: 007 is 007.

    Args:
        path: the file.
        frame: its rows.
        columns: their numbers, from 0.

    Returns:
        A data frame of words under these numbers.
    """
    (_, first), (_, second) = _first_rows(path)[:2]
    start = frame.index[0]
    options = {"dtype": str, "keep_default_na": False, "usecols": list(columns)}
    return _frame(path, separator_of(first, second), False, start - 1, **options).iloc[
        frame.index - start
    ]


def _frame(path: Path, separator: str, comma: bool, skipped: int, **options: Any) -> Any:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pd.read_csv(
                path,
                sep=separator,
                decimal="," if comma else ".",
                header=None,
                skiprows=skipped,
                skipinitialspace=True,
                skip_blank_lines=False,
                encoding="utf-8-sig",
                low_memory=False,
                **options,
            )
    except pd.errors.ParserError as error:
        found = _TOO_MANY.search(str(error))
        if found is None:
            raise
        cells, line, got = found.groups()
        raise DataError(
            f"Expected {cells} cells in line {line}, as in those above; got {got}. (Leave titles "
            "and comments out, and put quotes around cells with separators in them.)"
        ) from error


def _first_rows(path: Path) -> list[tuple[int, str]]:
    """The first lines that are not blank, two at least, with their numbers, counted from 1."""
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        full = ((i, line.rstrip("\n")) for i, line in enumerate(file, 1) if line.strip())
        found = list(itertools.islice(full, _LOOKED_AT))
    if not found:
        raise DataError("Expected rows with numbers in them; got blank lines.")
    return found if len(found) > 1 else [*found, (found[0][0] + 1, "")]


def _has_comma(rows: Sequence[Sequence[str]]) -> bool:
    return any(_DECIMAL_COMMA.fullmatch(cell) for row in rows for cell in row)


def _is_number(cell: str, comma: bool = False) -> bool:
    try:
        float(cell.replace(",", ".") if comma else cell)
    except ValueError:
        # A first row with a gap is a damaged row of numbers, not a header.
        return not cell
    return True


def _has_header(names: Sequence[str], rows: Sequence[Sequence[str]], comma: bool) -> bool:
    """Words are a header, unless they stand next to numbers and below, too.

    A count from 0 is one, above a row that does not repeat it.
    """
    if not all(_is_number(name, comma) for name in names):
        return not _recur(names, rows, comma)
    counted = [str(i) for i in range(len(names))]
    # The name of an index is empty.
    return len(names) > 1 and names in (counted, ["", *counted[:-1]]) and list(rows[0]) != names


def _recur(names: Sequence[str], rows: Sequence[Sequence[str]], comma: bool) -> bool:
    """Whether a row with numbers in it is one of data: its words stand below themselves, too."""
    if not any(name and _is_number(name, comma) for name in names):
        return False
    words = [(i, name) for i, name in enumerate(names) if name and not _is_number(name, comma)]
    return any(name == row[i] for row in rows for i, name in words if i < len(row))


def _blank(path: Path, frame: Any) -> Any:
    """Which rows are blank lines; a row of empty cells is not."""
    empty = frame.isna().all(axis=1).to_numpy().copy()
    if empty.any():
        texts = _lines(path)
        for i in np.flatnonzero(empty):
            empty[i] = not texts.get(int(frame.index[i]), "").strip()
    return empty


def _lines(path: Path) -> dict[int, str]:
    """The lines of a file by their numbers, counted from 1."""
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        return dict(enumerate(file, 1))


def _check_whole(path: Path, frame: Any, separator: str) -> None:
    """Refuses a line with fewer cells than the others: pandas would take the rest for gaps."""
    ends = frame.index[frame.iloc[:, -1].isna()] if frame.shape[1] > 1 else []
    texts = _lines(path) if len(ends) else {}
    for line in ends:
        text = texts.get(int(line), "").rstrip("\n")
        cells = text.split(None if separator == SPACES else separator)
        if len(cells) < frame.shape[1] and '"' not in texts.get(int(line), '"'):
            raise DataError(
                f"Expected {frame.shape[1]} cells in line {line}; got {len(cells)}. Is it cut off?"
            )


def _check_marks(frame: Any) -> None:
    """Refuses numbers with points where others have commas: is one of them of thousands?"""
    import pandas as pd

    for i, (_, column) in enumerate(frame.items()):
        if pd.api.types.is_numeric_dtype(column.dtype):
            continue
        pointed = column.astype(str).str.fullmatch(_DECIMAL_POINT).fillna(False).to_numpy()
        if pointed.any():
            raise DataError(
                "Expected numbers with decimal commas, as others are; got "
                f"{column[pointed].iloc[0]!r} in line {column.index[pointed][0]}, column "
                f"{letter_of(i)}. Leave out separators of thousands."
            )
