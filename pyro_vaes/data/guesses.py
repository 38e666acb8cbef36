"""Guesses about data and oddities in them, reported so that they can be corrected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.rows import ROWS, by_parts
from pyro_vaes.data.splits import Split
from pyro_vaes.data.tables import filled, num_gaps

__all__ = [
    "LIKELIHOODS",
    "Kind",
    "find_images",
    "kind_of",
    "note_gaps",
    "oddities",
    "whole_again",
]


Kind = Literal["binary", "levels", "counts", "real", "table"]
LIKELIHOODS: dict[Kind, str] = {
    "binary": "bernoulli",
    "levels": "ordinal",
    "counts": "negative_binomial",
    "real": "normal",
    "table": "table",
}

# Whole numbers are taken for levels up to this many, the grey values of a byte.
_MOST_LEVELS = 256
# More than this and a likelihood over levels would not fit into memory.
_MOST_LEVELS_ON_REQUEST = 2**16
# Larger ones are taken for counts if at least this share of them is 0.
_ZEROS_OF_COUNTS = 0.1
# Of pictures: grey, grey with transparency, colour, colour with transparency.
_CHANNELS = (1, 2, 3, 4)
# A value this many typical distances from the median is questioned.
_FAR_OUT = 1e6
# Rounding errors of whole numbers, at most: a millionth of their size, within these bounds.
_ROUNDING = (1e-4, 1e-2)
# Fewer rows than this may have two values by chance.
_FEW_ROWS = 10
# Numbers that often stand for what was not seen, if they lie apart from all others.
_CODES = [sign * (10**digits - 1) for digits in range(1, 7) for sign in (-1, 1)]
# Most rows from which typical distances are estimated.
_SOME = 10_000


def oddities(
    train: Split,
    splits: Sequence[Split],
    kind: str,
    names: tuple[str, ...] | None,
    columns: Sequence[str] | None = None,
) -> list[str]:
    """Oddities in the data, in sentences, with the names of labels and columns."""
    notes, x = [], filled(train.x).flatten(1)
    never = _in_all_rows(train.x.flatten(1), torch.isnan)
    if bool(never.any()):
        notes.append(
            f"{int(never.sum())} of {x.shape[1]} elements (element {int(never.nonzero()[0])}) have "
            "no value in training: nothing can be learned of them."
        )
    still = torch.tensor(False)
    if kind == "real":
        still = _in_all_rows(x, x[0].eq) & ~never
    if bool(still.any()):
        i = int(still.nonzero()[0])
        notes.append(
            f"{int(still.sum())} of {x.shape[1]} elements never vary in training (element {i} is "
            f"always {x[0, i]:g}): the smallest scale sets their density."
        )
    if kind == "real":
        notes += _two_valued(train.x.flatten(1), still | never)
    if kind == "real" and len(x) > 2 and (found := _farthest(x)) is not None:
        notes.append(
            f"A value of {found[0]:.4g} in element {found[1]} lies more than {_FAR_OUT:.0e} times "
            "farther out than the others do: is it right?"
        )
    if kind not in ("binary", "levels"):
        notes += _codes(train.x.flatten(1), columns)
    if train.y is not None and train.y.dim() > 1:
        return notes
    seen = set() if train.y is None else set(train.y.unique().tolist())
    given = {int(label) for s in splits if s.y is not None for label in s.y.unique()}
    unseen = sorted(given - seen)
    if unseen:
        shown = ", ".join(names[label] if names else str(label) for label in unseen[:10])
        notes.append(f"No training row has the label {shown}: figures for it mean little.")
    return notes


def _two_valued(rows: Tensor, without: Tensor) -> list[str]:
    """A sentence on elements that only ever have one of two values, if there are any."""
    x = filled(rows)
    low, high = x.amin(0), x.amax(0)  # What fills the gaps lies between.
    two = _in_all_rows(rows, lambda part: part.isnan() | (part == low) | (part == high)) & ~without
    if len(x) < _FEW_ROWS or not bool(two.any()):
        return []
    i = int(two.nonzero()[0])
    return [
        f"{int(two.sum())} of {x.shape[1]} elements have two values only (element {i}: "
        f"{low[i]:g} and {high[i]:g}): a density of them means little. In a file of rows or a data "
        "frame kind='table' (--kind table) gives them a probability."
    ]


def _codes(rows: Tensor, columns: Sequence[str] | None) -> list[str]:
    """A sentence on numbers like -999 that stand apart from the rest of their element."""
    x, found = rows[:: -(-len(rows) // _SOME)].double(), []  # Bytes have no room for the codes.
    usual = ~(x.isnan() | torch.isin(x, x.new_tensor(_CODES)))
    for code in _CODES:
        for i in ((x == code).sum(0) > 1).nonzero()[:, 0].tolist():
            others = x[usual[:, i], i]
            low, high = map(float, others.aminmax()) if len(others) else (0.0, 0.0)
            if max(low - code, code - high) > high - low > 0:
                where = f"element {i}" if columns is None else f"column {columns[i]!r}"
                found.append(f"{code} in {where}, whose others lie from {low:g} to {high:g}")
    if not found:
        return []
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return [
        f"Taken for numbers: {'; '.join(found[:3])}{more}. If they mark values that were not seen, "
        "leave such cells blank (NaN)."
    ]


def _in_all_rows(x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Of which elements it holds in all rows."""
    return torch.stack([of(part).all(0) for part in x.split(ROWS)]).all(0)


def _farthest(x: Tensor) -> tuple[float, int] | None:
    """The most extreme value and its element, if it is very far out."""
    some = x[:: -(-len(x) // _SOME)]
    middle = some.median(0).values
    usual = (some - middle).abs().median(0).values
    most, found = _FAR_OUT, None
    for part in x.split(ROWS):
        far = torch.where(usual > 0, (part - middle).abs() / usual, 0.0)
        if far.max() > most:
            place = int(far.argmax())
            most, found = float(far.max()), (float(part.flatten()[place]), place % x.shape[1])
    return found


def whole_again(splits: Sequence[Split], notes: list[str]) -> list[Split]:
    """Whole numbers in the place of those that missed one by the rounding of a computation.

    Only if all do, none is negative, and no element loses what varied: 250.00002 is a count of 250,
    but data that are small altogether are no whole numbers.
    """
    parts = [part.flatten(1) for split in splits for part in split.x.split(ROWS)]
    if not parts[0].is_floating_point() or not any(map(_misses, parts)):
        return list(splits)
    off = parts[0].new_zeros(parts[0].shape[1])
    low, high = off + math.inf, off - math.inf
    for part in parts:
        near = part.round().nan_to_num(0.0)
        missed = (part - near).nan_to_num(0.0).abs()
        if bool((missed > (1e-6 * near).clamp(*_ROUNDING)).any()) or near.min() < 0:
            return list(splits)
        low, high = torch.minimum(low, near.amin(0)), torch.maximum(high, near.amax(0))
        off = torch.maximum(off, missed.amax(0))
    if high.max() < 1 or bool(((low == high) & (off > 0)).any()):
        return list(splits)
    notes.append(f"Values up to {float(off.max()):.1g} off whole numbers were rounded to them.")
    return [dataclasses.replace(split, x=by_parts(torch.round, split.x)) for split in splits]


def _misses(part: Tensor) -> bool:
    return bool(((part != part.round()) & ~part.isnan()).any())


def note_gaps(splits: Sequence[Split], missing: str, notes: list[str]) -> None:
    """Says how many values were not seen; refuses them if that was asked for."""
    if missing not in ("keep", "refuse"):
        raise DataError(f"Expected missing among keep, refuse; got {missing!r}.")
    gaps, values = (sum(of(s.x) for s in splits) for of in (num_gaps, Tensor.numel))
    if not gaps:
        return
    if gaps == values:
        raise DataError("Expected numbers; got gaps (NaN) alone.")
    if missing == "refuse":
        raise DataError(f"Expected data without gaps (missing='refuse'); got {gaps} of {values}.")
    notes.append(
        f"{gaps} of {values} values ({gaps / values:.1%}) are gaps, values that were not seen: "
        "they are left out of log p(x)."
    )


def find_images(
    event_shape: tuple[int, ...], asked: Sequence[int] | None, shown: bool, notes: list[str]
) -> tuple[tuple[int, ...], bool]:
    """The shape of images, empty for none, and whether their channels are to be moved first."""
    if asked is not None:
        return _asked_shape(event_shape, tuple(asked))
    of_images = (1, *event_shape) if len(event_shape) == 2 else event_shape
    last_first = (*of_images[-1:], *of_images[:-1])
    if len(of_images) != 3:
        return (), False
    if not shown:
        notes.append(
            f"Rows of shape {event_shape} are not taken for images, which only bytes are unless "
            "image_shape says so."
        )
        return (), False
    if of_images[0] in _CHANNELS and min(of_images[1:]) >= 4:
        notes.append(f"Rows are taken for images of shape {of_images}, since they are bytes.")
        return of_images, False
    if last_first[0] in _CHANNELS and min(last_first[1:]) >= 4:
        notes.append(
            f"Rows are taken for images of shape {last_first}, since they are bytes; their "
            "channels, which stood last, were moved to the front."
        )
        return last_first, True
    return (), False


def _asked_shape(
    event_shape: tuple[int, ...], asked: tuple[int, ...]
) -> tuple[tuple[int, ...], bool]:
    if not asked:
        return (), False
    shape = (1, *asked) if len(asked) == 2 else asked
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) != math.prod(event_shape):
        raise DataError(
            f"Expected image_shape (C, H, W) of rows of shape {event_shape}; got {asked}."
        )
    # Channels that stand last must be moved: to read them otherwise would mix pixels.
    return shape, event_shape == (*shape[1:], shape[0]) and event_shape != shape


def _whole(x: Tensor) -> bool:
    return not x.is_floating_point() or all(
        bool(((part == part.floor()) | part.isnan()).all()) for part in x.split(ROWS)
    )


def _extent(parts: Sequence[Tensor]) -> tuple[float, float]:
    """The least and the largest of what was seen."""
    low, high = math.inf, -math.inf
    for part in (part for x in parts for part in x.split(ROWS)):
        values = part[~part.isnan()] if num_gaps(part) else part
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high


def kind_of(
    parts: list[Tensor], asked: str | None, num_levels: int | None, images: bool
) -> tuple[Kind, int | None, str]:
    """The kind of the values, their number of levels, and the reason."""
    low, high = _extent(parts)
    whole = low >= 0 and all(map(_whole, parts))
    if num_levels is not None:
        if num_levels < 2:
            raise DataError(f"Expected num_levels of at least 2; got {num_levels}.")
        if asked not in (None, "levels"):
            raise DataError(f"Expected num_levels only for kind='levels'; got kind={asked!r}.")
        asked = "levels"
    if asked is None:
        if whole and high <= 1:
            return "binary", None, "all values are 0 or 1"
        if whole and high < _MOST_LEVELS:
            return "levels", int(high) + 1, f"all values are whole numbers from {low:g} to {high:g}"
        if low < 0:
            why = "some values are negative"
        elif whole:
            why = f"whole numbers up to {high:g} are more than {_MOST_LEVELS} levels"
            count = sum(int((part == 0).sum()) for x in parts for part in x.split(ROWS))
            zeros = count / sum(x.numel() - num_gaps(x) for x in parts)
            if zeros >= _ZEROS_OF_COUNTS and not images:
                return "counts", None, f"{why}, and {zeros:.0%} of them are 0"
            why += " (if they are counts, say kind='counts')"
        else:
            why = "some values are not whole numbers"
        return "real", None, why
    if asked == "table":
        raise DataError("Expected a data frame, or a file of rows, for kind='table'; got others.")
    if asked not in LIKELIHOODS:
        raise DataError(f"Expected kind among {', '.join(LIKELIHOODS)}; got {asked!r}.")
    if asked == "binary" and not (whole and high <= 1):
        raise DataError(f"Expected values of 0 and 1 for kind='binary'; got {low:g} to {high:g}.")
    if asked == "counts" and not whole:
        raise DataError(
            f"Expected whole numbers from 0 for kind='counts'; got values from {low:g} to {high:g}."
        )
    if asked == "levels":
        most = (num_levels or _MOST_LEVELS_ON_REQUEST) - 1
        if not whole or high > most:
            fractions = "" if whole or low < 0 else ", fractions among them"
            raise DataError(
                f"Expected levels that are whole numbers from 0 to {most}; "
                f"got values from {low:g} to {high:g}{fractions}."
            )
        num_levels = num_levels or max(2, int(high) + 1)
    return asked, num_levels, "that was asked for"
