"""Numbers for classes whose labels are words, identifiers or arbitrary integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Names"]


class Names:
    """Numbers the classes of labels from 0, if they are not numbers of classes already.

    Args:
        parts: all labels that share one numbering; if none, the first that are numbered.
    """

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        self._values: Any = None
        arrays = [array for array in map(_label_array, parts) if array is not None]
        if arrays:
            self._look(np.concatenate([array.astype(object) for array in arrays]))

    def _look(self, values: Any) -> None:
        words = any(isinstance(value, str) for value in values)
        distinct: list[Any] = sorted({str(v) if words else v for v in values.tolist()})
        if not words:
            numbers = np.array(distinct, dtype=np.float64)
            if not (np.isfinite(numbers) & (numbers == np.floor(numbers))).all():
                return  # Not labels; refused by later checks.
            if distinct[0] >= 0 and distinct[-1] < max(2 * len(distinct), len(distinct) + 10):
                return
            distinct = [int(value) for value in distinct]
        self._values = distinct

    def number(self, labels: Any) -> Any:
        """The labels' numbers, or the labels as they are if they need none."""
        array = _label_array(labels)
        if array is None:
            return labels
        if self._values is None:
            self._look(array.astype(object))
        if self._values is None:
            return labels
        words = isinstance(self._values[0], str)
        place = {value: i for i, value in enumerate(self._values)}
        return np.array([place[str(v) if words else int(v)] for v in array.tolist()])

    def found(self, notes: list[str]) -> tuple[str, ...] | None:
        """The names of the classes, if they were numbered, with a note on it."""
        if self._values is None:
            return None
        names = tuple(map(str, self._values))
        shown = ", ".join(f"{i} is {name}" for i, name in enumerate(names[:10]))
        notes.append(f"Labels were numbered: {shown}{', ...' if len(names) > 10 else ''}.")
        return names


def _label_array(labels: Any) -> Any:
    """Labels as a NumPy row; None for anything else (refused by later checks)."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy() if not labels.is_complex() else None
    if labels is None or np.ma.is_masked(labels):
        return None
    array = np.asarray(labels)
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        array = array.astype(str)
    return array if array.ndim == 1 and array.dtype.kind in "biufU" and array.size else None
