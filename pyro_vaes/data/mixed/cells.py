"""Lines of text tables, cell by cell."""

from __future__ import annotations

import csv
import re
from typing import Any

import numpy as np

from pyro_vaes.core.errors import DataError

__all__ = [
    "SPACES",
    "cells_of",
    "check_cells",
    "gaps_of",
    "letter_of",
    "numbers_in_words",
    "numbers_of",
    "separator_of",
    "weights_of",
]


#: The separator of columns that blanks align.
SPACES = r"\s+"
_THOUSANDS = r"\s*[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*"


def separator_of(first: str, second: str) -> str:
    """The separator of two lines: the first mark found that is no part of a number, or a comma.

    Blanks are one if there is no mark and both lines have as many words.
    """
    bare = re.sub(r'"[^"]*"', "", first)
    mark = next((mark for mark in ("\t", ";", ",", "|") if mark in bare), None)
    words = len(first.split())
    return mark or (SPACES if 1 < words == len(second.split()) else ",")


def cells_of(line: str, separator: str) -> list[str]:
    """The cells of a line, quotes around them left out."""
    if separator == SPACES:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]


def check_cells(column: Any, place: str) -> None:
    """Refuses a column of what is neither numbers, words, dates nor categories.

    Numbers with separators of thousands would be words, durations and complex numbers others.
    """
    import pandas as pd

    if column.dtype.kind in "cm" or isinstance(
        column.dtype, (pd.PeriodDtype, pd.IntervalDtype, pd.SparseDtype)
    ):
        raise DataError(
            f"Expected numbers, words, dates or categories in {place}; got {column.dtype}. Make "
            "one of these of it, or leave it out."
        )
    if column.dtype.kind in "biufM":
        return
    words = column.dropna()
    others = [cell for cell in words if not pd.api.types.is_scalar(cell)]
    if others:
        raise DataError(
            f"Expected a number, a word or a date in each cell of {place}; got "
            f"{type(others[0]).__name__}."
        )
    _check_thousands(column, words.astype(str), place)


def _check_thousands(column: Any, words: Any, place: str) -> None:
    found = words.str.fullmatch(_THOUSANDS)
    if found.any() and (found | words.str.fullmatch(r"\s*[+-]?\d{1,3}(?:\.\d+)?\s*")).all():
        line = column.index[column.notna()][found.to_numpy()][0]
        raise DataError(
            f"Expected numbers without separators of thousands; got {words[found].iloc[0]!r} in "
            f"line {line}, {place}. Leave the commas out, as pandas.read_csv(thousands=',') does."
        )


def weights_of(column: Any, name: str) -> Any:
    """A column as the weights of rows, refused with the line of a cell that is none."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        got = column[bad].iloc[0]
        raise DataError(
            f"Expected a finite weight of 0 or more in each row; got "
            f"{'none' if pd.isna(got) else got} in line {column.index[bad][0]}, column {name!r} "
            f"({int(bad.sum())} of {len(bad)} rows are so)."
        )
    return values


def numbers_in_words(column: Any) -> Any:
    """A column of words that all read as numbers, as numbers; any other as it is."""
    import pandas as pd

    if column.dtype.kind not in "OT" and not str(column.dtype).startswith("str"):
        return column
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column
    numbers, gaps = pd.to_numeric(column, errors="coerce"), gaps_of(column)
    truths = column.map(lambda cell: isinstance(cell, (bool, np.bool_)))
    return numbers if (numbers.notna() | gaps).all() and not truths.any() else column


def numbers_of(column: Any, place: str) -> Any:
    """A column as numbers, gaps as NaN; refused with the line of a cell that is none."""
    import pandas as pd

    if column.dtype.kind == "b":
        return column.to_numpy().astype(np.float64)
    if pd.api.types.is_numeric_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values) & ~gaps_of(column)
    if not bad.any():
        return values
    line, cell = column.index[bad][0], column[bad].iloc[0]
    got = str(cell) if isinstance(cell, float) else repr(str(cell))
    raise DataError(
        f"Expected a number in line {line}, {place}; got {got} ({int(bad.sum())} of {len(bad)} "
        "rows are so). Leave the column out, or number it."
    )


def gaps_of(column: Any) -> Any:
    """Which cells hold no value: NaN, NA, and blanks, also in quotes."""
    gaps = column.isna().to_numpy()
    if column.dtype.kind in "OT" or str(column.dtype).startswith("str"):
        gaps = gaps | (column.astype(str).str.strip() == "").to_numpy()
    return gaps


def letter_of(i: int) -> str:
    """The name that a spreadsheet gives to column i, counted from 0: A to Z, then AA."""
    name = ""
    i += 1
    while i:
        i, rest = divmod(i - 1, 26)
        name = chr(ord("A") + rest) + name
    return name
