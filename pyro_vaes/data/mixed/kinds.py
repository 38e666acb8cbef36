"""The kind of a column: guessed from its values, said, and corrected by the user."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyro_vaes.core.columns import KINDS
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.dates import (
    DATE_KINDS,
    are_dates,
    are_numbered_days,
    date_form,
    order_of,
)

__all__ = ["Guess", "guess_kind", "kind_asked"]


# Different whole numbers up to which a column is taken for an ordinal, and the largest of them.
_FEW, _SMALL = 10, 20
# Small whole numbers from 0 are counts if there are at least this number of values, the mean lies
# in this part of the range, and none is clearly more frequent than the one below.
_VALUES_OF_COUNT, _NEAR_ZERO = 4, 1 / 3
# Years: whole numbers between these.
_YEARS = (1800, 2100)
# Whole numbers of which none is below this are measured rather than counted.
_LEAST_COUNT = 10
# Share of zeros among fractions that makes a hurdle.
_ZEROS = 0.1
# Skewness from which positive numbers are taken on a logarithmic scale.
_SKEWED = 2.0
# Share of rows with a word of their own from which words are names, not categories.
_NAMES = 0.5
# 31/1/24, 31-Jan-24, whose century is not known.
_SHORT_DATE = r"^\s*(?:\d{1,2}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-\s.][A-Za-z]{3,9}[-\s.]\d\d)\b"
# A number with something next to it, or with separators of thousands: 12.5%, $ 3.10, 1.234,5.
_WITHIN = (
    r"^\s*(?P<before>[^\w\s.+-]*)\s*(?:[+-]?\d+(?:[.,'\s]\d{3})*(?:[.,]\d+)?)"
    r"\s*(?P<after>[^\d\s.,:/-]{0,6})\s*$"
)


class Guess(NamedTuple):
    """What a column was taken for."""

    kind: str
    """One of :data:`~pyro_vaes.core.columns.KINDS`, of ``DATE_KINDS``, or ``drop``."""
    why: str
    """A clause."""
    unsure: bool = False
    """Whether the values would allow another kind as well."""


def kind_asked(name: str, asked: Any) -> Guess:
    """A kind that the user names, or the values of an ordinal in order.

    Raises:
        DataError: for an unknown kind.
    """
    if not isinstance(asked, str):
        return Guess("ordinal", "its values were given in order")
    known = (*KINDS, *DATE_KINDS, "drop")
    if asked not in known:
        raise DataError(
            f"Expected a kind of column {name!r} among {', '.join(known)}; got {asked!r}."
        )
    return Guess(asked, "that was asked for")


def guess_kind(column: Any) -> Guess:
    """What a column of a data frame looks like."""
    import pandas as pd

    seen = column.dropna()
    if not len(seen):
        return Guess("drop", "it has no value")
    if seen.nunique() == 1:
        return Guess("drop", f"it is always {seen.iloc[0]}")
    if isinstance(column.dtype, pd.CategoricalDtype):
        return Guess("ordinal" if column.dtype.ordered else "category", "it holds categories")
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return Guess("date", "it holds dates")
    if pd.api.types.is_bool_dtype(column.dtype):
        return Guess("binary", "it is true or false")
    if pd.api.types.is_numeric_dtype(column.dtype):
        x = seen.to_numpy(dtype=float)
        return _numeric(x[np.isfinite(x)])  # Infinities are refused with their place.
    return _words(seen.astype(str))


def _words(seen: Any) -> Guess:
    dates = date_form(seen)
    if dates.all():
        first, sure = order_of(seen, str(seen.name))
        if are_dates(seen, first) and sure:
            return Guess("date", "it reads as dates")
        if are_dates(seen, first):
            return Guess("month_first", f"{seen.iloc[0]} was read so, or is it day_first?", True)
    distinct = seen.nunique()
    if seen.str.match(_SHORT_DATE).all():
        why = f"{seen.iloc[0]} may be a date: write years of four digits"
        return Guess("drop" if distinct > _NAMES * len(seen) else "category", why, True)
    if distinct > 2 and distinct > _NAMES * len(seen):
        _refuse_spoilt(seen, dates)
        return Guess("drop", f"{distinct} of {len(seen)} words are different: names?", True)
    if distinct == 2:
        return Guess("binary", "it has two words")
    return Guess("category", f"it has {distinct} words")


def _refuse_spoilt(seen: Any, dates: Any) -> None:
    """Refuses numbers or dates that some cells keep from being such: they are no names to drop."""
    import pandas as pd

    numbers = pd.to_numeric(seen, errors="coerce").notna()
    for what, found in (("numbers", numbers), ("dates", dates)):
        if _NAMES < found.mean() < 1:
            got, line = seen[~found].iloc[0], seen.index[~found][0]
            raise DataError(
                f"Expected {what} in column {seen.name!r}, as most cells hold; got {got!r} in line "
                f"{line} ({int((~found).sum())} of {len(seen)} are so). Leave such cells blank, or "
                "the column out: --drop, or drop= in Python."
            )
    within = seen.str.extract(_WITHIN).dropna()
    if len(within) and within.value_counts(["before", "after"]).iloc[0] > _NAMES * len(seen):
        line = within.index[0]
        raise DataError(
            f"Expected numbers in column {seen.name!r}; got {seen[line]!r} in line {line}. Leave "
            "signs, units and separators of thousands out of the cells, or the column out: "
            "--drop, or drop= in Python."
        )


def _numeric(x: Any) -> Guess:
    if not len(x):
        return Guess("real", "it has no finite number")
    distinct, low, high = len(np.unique(x)), x.min(), x.max()
    if bool((x == np.floor(x)).all()):
        return _whole(x, distinct, low, high)
    if (x == 0).mean() >= _ZEROS:
        return Guess("hurdle", f"{(x == 0).mean():.0%} are exactly 0, others have fractions")
    if low > 0 and _skew(x) > _SKEWED and abs(_skew(np.log(x))) < _skew(x) / 2:
        return Guess("positive", "it is above 0 and skewed", True)
    return Guess("real", "it has fractions")


def _whole(x: Any, distinct: int, low: float, high: float) -> Guess:
    rows = len(x)
    if (low, high) == (0, 1):
        return Guess("binary", "it is 0 or 1", True)
    if distinct == rows and high - low == rows - 1 and rows > _FEW:
        return Guess("drop", "it counts the rows: an id?", True)
    if are_numbered_days(x):
        return Guess("date", f"{low:.0f} to {high:.0f} read as dates", True)
    if _YEARS[0] <= low and high <= _YEARS[1]:
        return Guess("real", "whole numbers like years", True)
    if low >= 0 and high <= _SMALL and distinct <= _FEW:
        if _falls_from_zero(x):
            return Guess("count", f"whole numbers from 0 to {high:g}, the higher the rarer", True)
        return Guess("ordinal", f"{distinct} small whole numbers", True)
    if 0 <= low < _LEAST_COUNT:
        return Guess("count", f"whole numbers from {low:g} to {high:g}")
    return Guess("real", f"whole numbers from {low:g} to {high:g}")


def _falls_from_zero(x: Any) -> bool:
    """Whether small whole numbers are the rarer the higher, up to two standard errors."""
    number = np.bincount(x.astype(int))
    rise = np.diff(number)
    allowed = 2 * np.sqrt(number[1:] + number[:-1])
    near = x.mean() <= _NEAR_ZERO * x.max()
    seen = number[:_VALUES_OF_COUNT]
    return bool(len(number) >= _VALUES_OF_COUNT and seen.all() and near and (rise <= allowed).all())


def _skew(x: Any) -> float:
    away = x - x.mean()
    return float((away**3).mean() / max((away**2).mean(), 1e-300) ** 1.5)
