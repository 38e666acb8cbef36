"""Columns of a table: the name and the kind of each, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["KINDS", "Column", "columns_of"]


#: Kinds of columns, and what each stands for.
KINDS: dict[str, str] = {
    "real": "real numbers",
    "positive": "numbers above 0",
    "hurdle": "exactly 0, or else a real number",
    "count": "whole numbers from 0",
    "binary": "0 or 1",
    "category": "one of several without an order, numbered from 0",
    "ordinal": "one of several in order, numbered from 0",
}
_SIZED = ("category", "ordinal")


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: of the column.
        kind: one of :data:`KINDS`.
        size: how many values a ``category`` or ``ordinal`` has; 0 for the others.
    """

    name: str
    kind: str
    size: int = 0


def columns_of(columns: Mapping[str, Any] | Sequence[Any]) -> tuple[Column, ...]:
    """Columns from ``{name: kind}`` or ``{name: (kind, size)}``, or from a list of columns.

    >>> columns_of({"mass": "real", "species": ("category", 3)})[1]
    Column(name='species', kind='category', size=3)

    Raises:
        ValueError: for an unknown kind, or a size that is missing or not asked for.
    """
    if isinstance(columns, Mapping):
        pairs = [(k, v) if isinstance(v, str) else (k, *v) for k, v in columns.items()]
    else:
        pairs = [tuple(column) for column in columns]
    found = tuple(Column(*pair) for pair in pairs)
    if not found:
        raise ValueError("Expected at least one column; got none.")
    for column in found:
        if column.kind not in KINDS:
            raise ValueError(
                f"Expected a kind of column {column.name!r} among {', '.join(KINDS)}; got "
                f"{column.kind!r}."
            )
        sized = column.kind in _SIZED
        if (sized and column.size < 2) or (not sized and column.size):
            wanted = "a size of at least 2" if sized else "no size"
            raise ValueError(
                f"Expected {wanted} for the {column.kind} column {column.name!r}; got "
                f"{column.size}."
            )
    names = [column.name for column in found]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected columns of different names; got {', '.join(names)}.")
    return found
