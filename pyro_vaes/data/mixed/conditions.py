"""Conditions of a table's rows: columns, categories or real values, that make the matrix y.

A column is written as numbers as a column of x is: :class:`~pyro_vaes.data.mixed.codec.Codec`. A
category, ordinal or binary column has the numbers of its values, any other counts as a real value,
dates in days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.codec import Codec, Coded, codec_of
from pyro_vaes.data.mixed.kinds import guess_kind, kind_asked

__all__ = [
    "are_conditions",
    "condition_row",
    "condition_rows",
    "conditions_of",
    "labels_asked",
    "sizes",
]


def labels_asked(asked: str | Sequence[str] | None, names: Sequence[str]) -> tuple[str, ...] | None:
    """The columns of labels that an option names; None where they are to be detected.

    A text that is no column's name is several, with commas between.
    """
    if asked is None or asked == "":
        return None if asked is None else ()
    found = (asked,) if isinstance(asked, str) else tuple(asked)
    if isinstance(asked, str) and asked not in names and "," in asked:
        found = tuple(asked.split(","))
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise DataError(f"Expected different columns of labels; got {twice[0]!r} twice.")
    return found


def are_conditions(frame: Any, types: Mapping[str, Any]) -> bool:
    """Whether columns that were named as labels are conditions, not the one label of a row.

    Several are, and so is one of which the kind is given or that holds fractions.
    """
    import pandas as pd

    if frame.shape[1] != 1 or frame.columns[0] in types:
        return frame.shape[1] > 0
    column = frame.iloc[:, 0].dropna()
    fractions = pd.api.types.is_float_dtype(column.dtype) and bool((column % 1 != 0).any())
    return fractions or pd.api.types.is_datetime64_any_dtype(column.dtype)


def conditions_of(frame: Any, types: Mapping[str, Any], notes: list[str]) -> Codec:
    """Looks at columns of conditions, and says what each was taken for.

    Args:
        frame: the columns.
        types: kinds of columns by name, which are not guessed.
        notes: takes the sentences.

    Raises:
        DataError: for a column that never varies, or looks like names.
    """
    kinds = {name: types[name] for name in frame.columns if name in types}
    for name in frame.columns:
        guess = kind_asked(name, kinds[name]) if name in kinds else guess_kind(frame[name])
        if guess.kind == "drop":
            raise DataError(
                f"Expected categories or real values in the column of conditions {name!r}; got "
                f"others: {guess.why}. (Say otherwise with types.)"
            )
    return codec_of(frame, kinds, notes, "Conditions")


def sizes(codec: Codec) -> list[int]:
    """Of each condition its number of categories, 0 for a real value."""
    return [len(one.values) for one in codec.coded]


def condition_rows(codec: Codec, frame: Any) -> Any:
    """Conditions of the rows of a data frame, ``(n, columns)`` in single precision.

    Raises:
        DataError: for a column that is missing, a value that is none of its column's, or a gap.
    """
    numbers = codec.numbers(frame)
    gaps = np.argwhere(np.isnan(numbers))
    if len(gaps):
        row, column = gaps[0]
        raise DataError(
            f"Expected a condition in each row; got none in line {frame.index[row]}, column "
            f"{codec.columns[column].name!r} ({int(np.isnan(numbers).any(1).sum())} of "
            f"{len(numbers)} rows are so)."
        )
    return numbers.astype(np.float32)


def condition_row(codec: Codec, text: str) -> Tensor:
    """The conditions that a text such as ``site=north,age=40`` gives, ``(columns,)``.

    Raises:
        DataError: for a column that is none of them, is given twice or not at all, and for a value
            that is none of its column's.
    """
    names = [column.name for column in codec.columns]
    given: list[list[str]] = []
    for item in text.split(","):
        name, equals, value = item.partition("=")
        if not equals and given:  # A comma within a value.
            given[-1][1] += f",{item}"
        else:
            given.append([name.strip(), value])
    asked = [name for name, _ in given]
    strange = [name for name in asked if name not in names]
    missing = [name for name in names if name not in asked]
    if strange or missing or len(asked) > len(names):
        got = (
            repr(strange[0]) if strange else f"none for {missing[0]!r}" if missing else "one twice"
        )
        form = ",".join(f"{one.column.name}={_example(one)}" for one in codec.coded)
        raise DataError(f"Expected a value of each of {', '.join(names)}, as {form}; got {got}.")
    values = dict(given)
    return torch.tensor([_number(one, values[one.column.name].strip()) for one in codec.coded])


def _example(one: Coded) -> str:
    return str(one.values[0]) if one.values else "2024-01-31" if one.date else "1.5"


def _number(one: Coded, text: str) -> float:
    """One value, as it is written, as a number."""
    import pandas as pd

    name = one.column.name
    if one.values:
        places = {str(value): float(i) for i, value in enumerate(one.values)}
        if text not in places:
            known = ", ".join(list(places)[:10]) + ", ..." * (len(places) > 10)
            raise DataError(f"Expected {name} among {known}; got {text!r}.")
        return places[text]
    try:
        if one.date:
            return float(one.numbers(pd.Series([text], name=name))[0])
        number = float(text)
    except (DataError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"Expected {name} as a {'date' if one.date else 'number'}; got {text!r}.")
    return number
