"""Dates and times in columns: read in one order, counted in days, written back.

A column has one order of day and month, in new rows as in those of the training: read cell by cell,
1/2/2024 and 13/2/2024 would be two orders.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from pyro_vaes.core.errors import DataError

__all__ = [
    "DATE_KINDS",
    "Dates",
    "are_dates",
    "are_numbered_days",
    "date_form",
    "dates_like",
    "order_of",
]


#: Kinds of columns of dates that a user may ask for.
DATE_KINDS = ("date", "day_first", "month_first")
_TIME = r"(?:[T\s]+(?P<time>\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?:\s?[AaPp][Mm])?)"
_ZONE = r"\s?(?P<zone>Z|UTC|[+-]\d\d:?\d\d)?)?"
# 2024-01-31, 2024/1/31, 2024-01; 31.1.2024, 1/31/2024; perhaps with a time of day.
_DIGITS = (
    r"(?:(?P<year>\d{4})[-/.](?P<month>\d{1,2})(?:[-/.](?P<day>\d{1,2}))?"
    r"|(?P<one>\d{1,2})(?P<mark>[-/.])(?P<two>\d{1,2})[-/.](?P<last>\d{4}))"
)
_FORM = rf"^\s*{_DIGITS}{_TIME}{_ZONE}\s*$"
# 31 Jan 2024, 31-January-2024, Jan 31, 2024.
_NAMED = r"^\s*(?:\d{1,2}[-\s.]+[A-Za-z]{3,9}\.?|[A-Za-z]{3,9}\.?\s+\d{1,2},?)[-\s]+\d{4}\s*$"
# What dates come back rounded to, in seconds.
_SECONDS = {"D": 86400, "min": 60, "s": 1}
# Numbers like 20240131 are dates between these days.
_FIRST_DAY, _LAST_DAY = 19000101, 21001231


@dataclasses.dataclass(frozen=True)
class Dates:
    """How a column of dates is written.

    Attributes:
        first: ``day`` or ``month``, whichever stands first in dates like 3/4/2024; empty without.
        since: the day that counts as 0.
        unit: what they come back rounded to: ``D`` for days, ``min`` or ``s`` for times.
    """

    first: str = ""
    since: str = "1970-01-01"
    unit: str = "D"

    def days(self, column: Any) -> Any:
        """The cells of a column as days, NaN where they are no dates of this form."""
        return _days(_dates(column, self.first), self.since)

    def back(self, days: Any) -> Any:
        """Days as a column of dates, NaT for NaN."""
        import pandas as pd

        gaps = np.isnan(days)
        seconds = _SECONDS[self.unit]
        steps = np.round(np.where(gaps, 0.0, days) * (86400 / seconds)) * seconds
        moved = np.datetime64(self.since, "s") + steps.astype("timedelta64[s]")
        return pd.Series(moved).mask(gaps)

    def finer(self, days: Any) -> Dates:
        """The same with a unit as short as some days need."""
        seconds, units = np.round(days[~np.isnan(days)] * 86400), list(_SECONDS)
        need = next(unit for unit in units if (seconds % _SECONDS[unit] == 0).all())
        return dataclasses.replace(self, unit=max(self.unit, need, key=units.index))

    def text(self, dates: Any) -> Any:
        """Dates as words."""
        forms = {"D": "%Y-%m-%d", "min": "%Y-%m-%d %H:%M", "s": "%Y-%m-%d %H:%M:%S"}
        return dates.dt.strftime(forms[self.unit])


def date_form(column: Any) -> Any:
    """Which words of a column have the form of dates."""
    return column.str.match(_FORM) | column.str.match(_NAMED)


def are_dates(column: Any, first: str) -> bool:
    """Whether all words of a column, without gaps, are dates in an order of day and month."""
    return bool(date_form(column).all() and _dates(column, first).notna().all())


def are_numbered_days(x: Any) -> bool:
    """Whether whole numbers are days, like 20240131."""
    if not (x.min() >= _FIRST_DAY and x.max() <= _LAST_DAY):
        return False
    import pandas as pd

    return bool(_numbered(pd.Series(x)).notna().all())


def order_of(column: Any, name: str) -> tuple[str, bool]:
    """Whether ``day`` or ``month`` stands first in dates like 3/4/2024, and whether that is sure.

    Empty where no date is written so.

    Raises:
        DataError: for a column in which both orders occur.
    """
    if column.dtype.kind in "Mbiuf" or not hasattr(column, "str"):
        return "", True
    parts = column.dropna().astype(str).str.extract(_FORM).dropna(subset=["one"])
    if not len(parts):
        return "", True
    late = {p: parts[c].astype(int) > 12 for p, c in (("day", "one"), ("month", "two"))}
    if late["day"].any() and late["month"].any():
        day, month = (late[part].index[late[part]][0] for part in ("day", "month"))
        raise DataError(
            f"Expected dates in one order in column {name!r}; got {column[day]!r} in line {day} "
            f"and {column[month]!r} in line {month}. Write all of them as 2024-01-31."
        )
    for first, is_late in late.items():
        if is_late.any():
            return first, True
    return ("day", True) if (parts["mark"] == ".").all() else ("month", False)


def dates_like(column: Any, name: str, kind: str) -> Dates:
    """How the dates of a column are written.

    Args:
        column: of a data frame.
        name: of the column.
        kind: one of :data:`DATE_KINDS`; ``date`` leaves the order to the cells.

    Raises:
        DataError: if both orders occur.
    """
    first = order_of(column, name)[0] if kind == "date" else kind.removesuffix("_first")
    seen = _dates(column, first).dropna()
    if not len(seen) or (seen == seen.dt.normalize()).all():
        return Dates(first)
    # Days since 1970 would leave single precision no more than minutes.
    since = str(seen.min().date())
    return Dates(first, since, "min" if (seen == seen.dt.floor("min")).all() else "s")


def _days(dates: Any, since: str) -> Any:
    return ((dates - np.datetime64(since)) / np.timedelta64(1, "D")).to_numpy(dtype=float)


def _dates(column: Any, first: str) -> Any:
    """Cells as dates without a time zone (UTC where they have one), NaT where they are none."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column if column.dt.tz is None else column.dt.tz_convert(None)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _numbered(column)
    words = column.where(column.notna(), "").astype(str).str.strip()
    found = words.str.extract(_FORM).fillna("")
    day, month = (found["one"], found["two"]) if first == "day" else (found["two"], found["one"])
    known = found["year"] != ""
    day = found["day"].where(known, day if first else "")
    day = day.where(~known | (day != ""), "1")  # A month stands for its first day.
    month, year = found["month"].where(known, month), found["year"].where(known, found["last"])
    iso = year + "-" + month.str.zfill(2) + "-" + day.str.zfill(2)
    iso = (iso + " " + found["time"] + " " + found["zone"]).str.strip().where(day != "")
    iso = iso.where(~words.str.match(_NAMED), words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pd.to_datetime(iso, errors="coerce", format="mixed", utc=True)
    return read.dt.tz_convert(None)


def _numbered(column: Any) -> Any:
    """Numbers like 20240131 as days and whole ones of four digits as years; NaT for others."""
    import pandas as pd

    x = column.to_numpy(dtype=float, na_value=np.nan)
    whole = (x == np.floor(x)) & (x >= 1000) & (x <= _LAST_DAY)
    words = pd.Series([f"{int(v)}" if ok else "" for v, ok in zip(x, whole, strict=True)])
    words = words.where(words.str.len() != 4, words + "0101")
    return pd.to_datetime(words, errors="coerce", format="%Y%m%d").set_axis(column.index)
