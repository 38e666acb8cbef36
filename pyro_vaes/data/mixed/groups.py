"""Splits that keep rows together: by group, or by time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError

__all__ = ["SPLITS", "shares", "unusual"]


#: How rows are assigned to splits.
SPLITS = ("random", "time")
_USUAL = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0, "split": "random"}


def unusual(**options: Any) -> list[str]:
    """The names of those options of splits that are not at their defaults."""
    return [name for name, value in options.items() if value != _USUAL[name]]


def shares(
    n: int, num_test: int, num_val: int, seed: int, group: Any = None, split: str = "random"
) -> list[Tensor]:
    """The rows of training, validation and test data.

    Args:
        n: number of rows.
        num_test: rows for testing, of groups about as many.
        num_val: rows for validation.
        seed: of the permutation of rows, or of groups.
        group: one value for each row; rows that share it stay in one split. None for no groups.
        split: ``random``, or ``time``: the first rows train, the last ones test.

    Raises:
        DataError: for fewer than three groups, groups without a value, or groups by time.
    """
    if split not in SPLITS:
        raise DataError(f"Expected split among {', '.join(SPLITS)}; got {split!r}.")
    if group is None:
        order = torch.arange(n).flip(0)
        if split == "random":
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        test, val, train = torch.split(order, [num_test, num_val, n - num_test - num_val])
        return [train, val, test] if split == "random" else [p.flip(0) for p in (train, val, test)]
    if split == "time":
        raise DataError("Expected a split by group or by time; got both.")
    return _grouped(_numbered(group, n), num_test, num_val, seed)


def _numbered(group: Any, n: int) -> Tensor:
    import pandas as pd

    if isinstance(group, str):
        raise DataError(f"Expected a table with a column of groups called {group!r}; got none.")
    codes, names = pd.factorize(np.asarray(group))
    if codes.shape != (n,) or (codes < 0).any():
        raise DataError(f"Expected a group for each of {n} rows; got {int((codes >= 0).sum())}.")
    if len(names) < 3:
        raise DataError(f"Expected at least three groups for three splits; got {len(names)}.")
    return torch.from_numpy(codes.astype(np.int64))


def _grouped(group: Tensor, num_test: int, num_val: int, seed: int) -> list[Tensor]:
    """Whole groups in a random order: to testing, then validation, until each has its rows."""
    sizes = group.bincount()
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    place, filled = torch.full((len(sizes),), 0), 0
    for wanted, split in ((num_test, 2), (num_val, 1)):
        filled = 0
        while len(order) > split and (not filled or filled + int(sizes[order[-1]]) / 2 <= wanted):
            chosen = order.pop()
            place[chosen], filled = split, filled + int(sizes[chosen])
    return [(place[group] == split).nonzero()[:, 0] for split in range(3)]
