"""The kind of a column: guessed from its values, said, and corrected by the user."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from pyro_vaes.core.columns import KINDS
from pyro_vaes.core.errors import DataError

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
# Dates begin so: 2024-01-31, 2024/1/31, 31.1.2024.
_DATE = r"\s*(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})"


class Guess(NamedTuple):
    """What a column was taken for."""

    kind: str
    """One of :data:`~pyro_vaes.core.columns.KINDS`, ``date``, or ``drop``."""
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
    if asked not in (*KINDS, "date", "drop"):
        raise DataError(
            f"Expected a kind of column {name!r} among {', '.join(KINDS)}, date, drop; got "
            f"{asked!r}."
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
        return _numeric(seen.to_numpy(dtype=float))
    return _words(seen.astype(str))


def _words(seen: Any) -> Guess:
    if seen.str.match(_DATE).all() and dates_of(seen).notna().all():
        return Guess("date", "it reads as dates")
    distinct = seen.nunique()
    if distinct > 2 and distinct > _NAMES * len(seen):
        return Guess("drop", f"{distinct} of {len(seen)} words are different: names?", True)
    if distinct == 2:
        return Guess("binary", "it has two words")
    return Guess("category", f"it has {distinct} words")


def dates_of(column: Any) -> Any:
    """Words as dates, NaT where they are none."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pd.to_datetime(column, errors="coerce", format="mixed")


def _numeric(x: Any) -> Guess:
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
