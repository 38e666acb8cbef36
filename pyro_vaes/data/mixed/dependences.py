"""Columns that are linear functions of others, found by the rank of the training rows.

In such a direction the data have no spread: no noise can be learned there, a density grows until a
floor stops it, and log p(x) says how low the floor is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.codec import Codec
from pyro_vaes.data.rows import ROWS
from pyro_vaes.data.splits import Split
from pyro_vaes.data.spreadsheets import Columns

__all__ = ["DEPENDENT", "Dependence", "dependences", "look_at_dependent"]


#: What is done with columns that depend on others.
DEPENDENT = ("keep", "drop", "refuse")

# The variance, as a share of its own, that others must leave of a column: a spread of a thousandth,
# where the likelihoods of real values have their floor.
_SHARE = 1e-6
# Rows beyond those that a fit of a column by others takes up.
_SPARE_ROWS = 2
_MOST_COLUMNS = 500
# Others that are named, of a column; and columns.
_NAMED = 3
# A weight below this share of the largest is rounding.
_WEIGHT = 1e-3


class Dependence(NamedTuple):
    """A column that is a linear function of columns before it.

    Attributes:
        column: its number.
        on: the numbers of the others; none of a column that never varies.
    """

    column: int
    on: tuple[int, ...]


def dependences(x: Tensor) -> list[Dependence]:
    """The columns of rows ``(n, D)`` that are linear functions of those before them, or constant.

    Rows with gaps are left out. Nothing is found where rows are too few to know.

    >>> x = torch.randn(50, 2)
    >>> dependences(torch.cat([x, x.sum(1, keepdim=True) / 2, torch.ones(50, 1)], 1))
    [Dependence(column=2, on=(0, 1)), Dependence(column=3, on=())]
    """
    found: list[Dependence] = []
    if x.shape[1] > _MOST_COLUMNS:
        return found
    count, products = _products(x)
    size = products.diagonal().clamp(min=0).sqrt()
    shares = products / (size.outer(size)).clamp(min=torch.finfo(torch.float64).tiny)
    kept: list[int] = []
    # Cholesky's factor of the kept columns: a row is what they say of a column, and what is left.
    factor = torch.zeros_like(shares)
    for column in range(x.shape[1]):
        if len(kept) + 1 + _SPARE_ROWS > count:
            break
        if size[column] == 0:
            found.append(Dependence(column, ()))
            continue
        place = len(kept)
        known = factor[:place, :place]
        by = torch.linalg.solve_triangular(known, shares[kept, column : column + 1], upper=False)
        left = 1 - float(by.square().sum())
        if left < _SHARE:
            weights = torch.linalg.solve_triangular(known.mT, by, upper=True)[:, 0].abs()
            large = (weights > _WEIGHT * weights.max()).tolist()
            on = tuple(i for i, there in zip(kept, large, strict=True) if there)
            found.append(Dependence(column, on))
        else:
            factor[place, :place], factor[place, place] = by[:, 0], left**0.5
            kept.append(column)
    return found


def _products(x: Tensor) -> tuple[int, Tensor]:
    """The number of rows without gaps, and the products of their columns around the means."""
    count, total = 0, torch.zeros(x.shape[1], dtype=torch.float64)
    products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    first: Tensor | None = None
    for part in x.split(ROWS):
        rows = part[~part.isnan().any(1)].double()
        if first is None and len(rows):
            first = rows[0]
        if first is None:
            continue
        rows = rows - first  # Far from zero the products would be mostly of the means.
        count, total = count + len(rows), total + rows.sum(0)
        products += rows.mT @ rows
    return count, products - total.outer(total) / max(count, 1)


@dataclasses.dataclass
class _Table:
    """Real columns of splits, by number, and their names."""

    splits: Sequence[Split]
    columns: Columns | None

    def name(self, column: int) -> str:
        return f"column {column}" if self.columns is None else repr(self.columns.names[column])

    def words(self, found: Dependence) -> str:
        """The dependence as a clause."""
        if not found.on:
            return f"{self.name(found.column)} never varies"
        some = [self.name(i) for i in found.on[:_NAMED]]
        more = len(found.on) - len(some)
        others = ", ".join(some) + (f" and {more} more" if more else "")
        return f"{self.name(found.column)} is a linear function of {others}"


def look_at_dependent(
    splits: Sequence[Split],
    columns: Columns | None,
    codec: Codec | None,
    dependent: str,
    notes: list[str],
) -> tuple[list[Split], Columns | None]:
    """Splits of real rows whose dependent columns were kept, left out or refused, which is noted.

    Args:
        splits: of rows ``(n, D)``.
        columns: their names, if they have some.
        codec: of a table with columns of several kinds, whose real ones are looked at.
        dependent: one of :data:`DEPENDENT`.
        notes: takes what there is to say.

    Returns:
        The splits and the names of their columns.

    Raises:
        DataError: if they are to be refused, or dropped where columns cannot be.
    """
    kinds = ["real"] * splits[0].x.shape[1] if codec is None else [c.kind for c in codec.columns]
    real = [i for i, kind in enumerate(kinds) if kind == "real"]
    x = splits[0].x
    found = [
        Dependence(real[one.column], tuple(real[i] for i in one.on))
        for one in dependences(x if len(real) == x.shape[1] else x[:, real])
    ]
    table = _Table(splits, columns)
    if dependent == "keep":  # Those that never vary are reported with other oddities.
        found = [one for one in found if one.on]
    if not found:
        return list(splits), columns
    words = "; ".join(table.words(one) for one in found[:_NAMED])
    words += f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    if dependent == "keep":
        notes.append(
            f"In training {words}: the smallest scale sets the density there. "
            "dependent='drop' (--dependent drop) leaves such columns out."
        )
        return list(splits), columns
    if dependent == "refuse" or columns is None or codec is not None:
        how = "of the array" if columns is None else "by name, with drop (--drop)"
        raise DataError(
            "Expected columns none of which never varies or is a function of others; got training "
            f"rows where {words}. Leave these out {how}."
        )
    out = {one.column for one in found}
    keep = [i for i in range(len(kinds)) if i not in out]
    if not keep:
        raise DataError(f"Expected columns that vary; got training rows where {words}.")
    notes.append(f"Left out, since in training {words}.")
    kept = [dataclasses.replace(split, x=split.x[:, keep]) for split in splits]
    return kept, dataclasses.replace(columns, names=tuple(columns.names[i] for i in keep))
