"""What is guessed of data in memory, and what is odd about them, to be said and corrected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.splits import Split
from pyro_vaes.data.tables import ROWS, filled, num_gaps, suffix_of

__all__ = ["find_images", "is_bytes", "note_gaps", "oddities", "whole_again"]


# Of pictures: grey, grey with transparency, colour, colour with transparency.
_CHANNELS = (1, 2, 3, 4)
# Usual distances from the median beyond which a value is asked about.
_FAR_OUT = 1e6
# What a computation may make whole numbers miss by: a millionth of their size, within these.
_ROUNDING = (1e-4, 1e-2)
# Rows, at most, that say where an element usually lies.
_SOME = 10_000


def is_bytes(source: Any) -> bool:
    """Whether rows were bytes where they came from: so pictures are kept, and little else."""
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            return True
        if suffix_of(path) == ".npy":
            return bool(np.load(path, mmap_mode="r", allow_pickle=False).dtype == np.uint8)
        if suffix_of(path) != ".npz":
            return False
        with np.load(path, allow_pickle=False) as arrays:
            source = dict(arrays)
    if isinstance(source, Mapping):
        keys = [key for key in ("x", "train_x") if key in source] or list(source)
        source = source[keys[0]]
    if isinstance(source, (tuple, list)) and len(source) == 2:
        source = source[0]
    return str(getattr(source, "dtype", "")).removeprefix("torch.") == "uint8"


def oddities(
    train: Split, splits: Sequence[Split], kind: str, names: tuple[str, ...] | None
) -> list[str]:
    """What is odd about the data, in sentences."""
    notes, x = [], filled(train.x).flatten(1)
    never = train.x.isnan().flatten(1).all(0)
    if bool(never.any()):
        notes.append(
            f"{int(never.sum())} of {x.shape[1]} elements (element {int(never.nonzero()[0])}) have "
            "no value in training: nothing can be learned of them."
        )
    still = (x == x[0]).all(0) & ~never if kind == "real" else torch.tensor(False)
    if bool(still.any()):
        i = int(still.nonzero()[0])
        notes.append(
            f"{int(still.sum())} of {x.shape[1]} elements never vary in training (element {i} is "
            f"always {x[0, i]:g}): their density is that of the floor under the scales."
        )
    if kind == "real" and len(x) > 2 and (found := _farthest(x)) is not None:
        notes.append(
            f"A value of {found[0]:.4g} in element {found[1]} lies more than {_FAR_OUT:.0e} times "
            "farther out than the others do: is it right?"
        )
    seen = set() if train.y is None else set(train.y.unique().tolist())
    given = {int(label) for s in splits if s.y is not None for label in s.y.unique()}
    unseen = sorted(given - seen)
    if unseen:
        shown = ", ".join(names[label] if names else str(label) for label in unseen[:10])
        notes.append(f"No training row has the label {shown}: what is said of it means little.")
    return notes


def _farthest(x: Tensor) -> tuple[float, int] | None:
    """The value that lies farthest out of an element, and the element, if it is very far."""
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
    return [dataclasses.replace(split, x=split.x.round()) for split in splits]


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
