"""Rows of a table as numbers, and numbers as rows again: names, words, dates, rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vaes.core.columns import Column
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.dates import DATE_KINDS, Dates, dates_like
from pyro_vaes.data.mixed.kinds import Guess, guess_kind, kind_asked

__all__ = ["Codec", "Coded", "codec_of"]


_SEVERAL = ("category", "ordinal", "binary")
# Decimals of a real column, at most, that rows come back with.
_DECIMALS = 6


@dataclasses.dataclass(frozen=True)
class Coded:
    """How a column is written as numbers.

    Attributes:
        column: its name, kind and size.
        values: what the numbers 0, 1, ... of a category, ordinal or binary stand for.
        decimals: with which numbers come back; None for all.
        date: how its dates are written, which are numbers of days; None if it holds none.
    """

    column: Column
    values: tuple[Any, ...] = ()
    decimals: int | None = None
    date: Dates | None = None

    def numbers(self, column: Any) -> Any:
        """The numbers of a column of a data frame; what was not seen is NaN.

        Raises:
            DataError: naming the first value that is none of the column's.
        """
        if self.date:
            return self._checked(column, self.date.days(column))
        if self.values:
            places = {_key(value): float(i) for i, value in enumerate(self.values)}
            # A file holds 1 or "1" as its other cells are.
            words = {str(value): place for value, place in places.items()}
            texts = column.map(lambda cell: words.get(str(_key(cell))))
            found = column.map(_key).map(places).fillna(texts.astype(float))
            return self._checked(column, found.to_numpy(dtype=float))
        import pandas as pd

        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        return self._checked(column, np.where(self._allowed(numbers), numbers, np.nan))

    def _allowed(self, numbers: Any) -> Any:
        """Which numbers the kind of the column has."""
        finite = np.isfinite(numbers)
        if self.column.kind == "count":
            return finite & (numbers >= 0) & (numbers == np.floor(numbers))
        return finite & (numbers > 0) if self.column.kind == "positive" else finite

    def _checked(self, column: Any, numbers: Any) -> Any:
        gaps = column.isna() | (column.astype(str).str.strip() == "")
        wrong = np.isnan(numbers) & ~gaps.to_numpy()
        if wrong.any():
            known = f", one of {', '.join(map(str, self.values[:8]))}" if self.values else ""
            if self.date is not None and self.date.first:
                known = f", the {self.date.first} first"
            got = column[wrong].iloc[0]
            raise DataError(
                f"Expected {'date' if self.date else self.column.kind} values in column "
                f"{self.column.name!r}{known}; got {repr(got) if isinstance(got, str) else got} in "
                f"line {column.index[wrong][0]}."
            )
        return numbers

    def finer(self, numbers: Any) -> Coded:
        """The same with as many decimals, or as short a unit of time, as some numbers need."""
        if self.date:
            return dataclasses.replace(self, date=self.date.finer(numbers))
        if self.values or self.decimals is None:
            return self
        import pandas as pd

        need = _decimals(pd.Series(numbers), self.column.kind)
        return dataclasses.replace(
            self, decimals=None if need is None else max(need, self.decimals)
        )

    def back(self, numbers: Any) -> Any:
        """A column of a data frame from numbers, each as near as its kind allows."""
        import pandas as pd

        gaps = np.isnan(numbers)
        if self.date:
            return self.date.back(numbers)
        if self.values:
            near = np.where(gaps, 0, np.round(numbers)).astype(int).clip(0, len(self.values) - 1)
            words = pd.Series([self.values[i] for i in near])
            return words.mask(gaps) if gaps.any() else words
        if self.decimals is not None:
            numbers = np.round(numbers, self.decimals)
        if self.decimals == 0:
            return pd.Series(numbers).astype("Int64" if gaps.any() else "int64")
        return pd.Series(numbers)


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a table is written as numbers, one for each column."""

    coded: tuple[Coded, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """Names and kinds, for :class:`~pyro_vaes.parts.columns.TableLikelihood`."""
        return tuple(one.column for one in self.coded)

    def numbers(self, frame: Any) -> Any:
        """A data frame as an array ``(n, D)``: columns are found by name, whatever their order.

        Raises:
            DataError: for a column that is missing, or a value that is none of its column's.
        """
        missing = [c.name for c in self.columns if c.name not in frame.columns]
        if missing:
            raise DataError(
                f"Expected columns {', '.join(c.name for c in self.columns)}; got none called "
                f"{', '.join(missing)}."
            )
        return np.stack([one.numbers(frame[one.column.name]) for one in self.coded], axis=1)

    def rows(self, x: Any) -> Any:
        """Numbers ``(n, D)`` as a data frame with the names, words, dates and rounding it had."""
        import pandas as pd

        table = np.asarray(x, dtype=float)
        if table.ndim != 2 or table.shape[1] != len(self.coded):
            raise ValueError(f"Expected rows of {len(self.coded)} columns; got {table.shape}.")
        pairs = zip(self.coded, table.T, strict=True)
        return pd.DataFrame({one.column.name: one.back(numbers) for one, numbers in pairs})

    def finer(self, x: Any) -> Codec:
        """The same, by which some numbers ``(n, D)`` come back as they are."""
        pairs = zip(self.coded, np.asarray(x, dtype=float).T, strict=True)
        return Codec(tuple(one.finer(numbers) for one, numbers in pairs))

    def plain(self) -> list[dict[str, Any]]:
        """As JSON-ready data."""
        return [{**dataclasses.asdict(one), "column": list(one.column)} for one in self.coded]

    @classmethod
    def of(cls, plain: Sequence[Mapping[str, Any]]) -> Codec:
        """From what :meth:`plain` gives."""
        return cls(
            tuple(
                Coded(
                    Column(*one["column"]),
                    tuple(one["values"]),
                    one["decimals"],
                    _dates(one["date"]),
                )
                for one in plain
            )
        )


def _dates(plain: Any) -> Dates | None:
    """From plain data; of an earlier version these are true or false."""
    return Dates(**plain) if isinstance(plain, Mapping) else Dates() if plain else None


def codec_of(
    frame: Any, types: Mapping[str, Any], notes: list[str], what: str = "Columns"
) -> Codec:
    """Looks at each column of a data frame, and says what it was taken for.

    Args:
        frame: the columns to model.
        types: kinds by name, which are not guessed; a list gives the values of an ordinal in order.
        notes: takes the sentences.
        what: they are called in these.

    Raises:
        DataError: for a kind that there is not, a column that is not there, or none left.
    """
    unknown = [name for name in types if name not in frame.columns]
    if unknown:
        raise DataError(f"Expected types of columns of the table; got one for {unknown[0]!r}.")
    coded: list[Coded] = []
    unsure: list[tuple[str, Guess]] = []
    left: list[str] = []
    for name in frame.columns:
        guess = kind_asked(name, types[name]) if name in types else guess_kind(frame[name])
        if guess.unsure:
            unsure.append((name, guess))
        if guess.kind == "drop":
            left.append(f"{name!r} ({guess.why})")
            continue
        coded.append(_coded(name, frame[name], guess, types.get(name)))
    if not coded:
        raise DataError("Expected a column to model; got none that is left.")
    notes.append(f"{what} were taken for: {_listed(coded)}.")
    if left:
        notes.append(f"Left out: {', '.join(left)}.")
    if unsure:
        doubts = "; ".join(f"{n!r} is {g.kind} since {g.why}" for n, g in unsure)
        notes.append(f"Not certain, say otherwise with types: {doubts}.")
    return Codec(tuple(coded))


def _listed(coded: Sequence[Coded]) -> str:
    """The columns by their kinds."""
    kinds: dict[str, list[str]] = {}
    for one in coded:
        size = f" ({one.column.size})" if one.column.size else ""
        kind = "date" if one.date else one.column.kind
        kinds.setdefault(kind, []).append(f"{one.column.name}{size}")
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())


def _coded(name: str, column: Any, guess: Guess, asked: Any) -> Coded:
    if guess.kind in DATE_KINDS:
        return Coded(Column(name, "real"), date=dates_like(column, name, guess.kind))
    if guess.kind not in _SEVERAL:
        return Coded(Column(name, guess.kind), decimals=_decimals(column, guess.kind))
    values = _values(column) if asked is None or isinstance(asked, str) else tuple(asked)
    if guess.kind == "binary":
        if len(values) != 2:
            raise DataError(f"Expected two values in binary column {name!r}; got {len(values)}.")
        return Coded(Column(name, "binary"), values)
    if len(values) < 2:
        raise DataError(f"Expected several values in {guess.kind} column {name!r}; got one.")
    return Coded(Column(name, guess.kind, len(values)), values)


def _values(column: Any) -> tuple[Any, ...]:
    """The different values in order, as plain words and numbers."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return tuple(value for value in column.dtype.categories.tolist())
    found = column.dropna().unique().tolist()
    return tuple(sorted((_key(value) for value in found), key=lambda v: (str(type(v)), v)))


def _key(value: Any) -> Any:
    """A value as it is looked up: 1.0 is 1, and words have no blanks around them."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value.strip() if isinstance(value, str) else value


def _decimals(column: Any, kind: str) -> int | None:
    """The fewest decimals that all values of a column are written with, if they are few."""
    import pandas as pd

    if kind == "count":
        return 0
    x = pd.to_numeric(column, errors="coerce").dropna().to_numpy(dtype=float)
    x = x[np.isfinite(x)]
    scale = max(1.0, float(np.abs(x).max(initial=0.0)))
    for decimals in range(_DECIMALS + 1):
        if bool((np.abs(x - np.round(x, decimals)) <= 1e-9 * scale).all()):
            return decimals
    return None
