"""Refuses values that a likelihood cannot score, before they are scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_support"]


def check_support(likelihood: Any, x: Tensor, first: int = 0) -> None:
    """Refuses values between or beyond the levels of a likelihood, rows counted from ``first``.

    Without Pyro's validation a value between two levels would be scored like any other. Gaps (NaN)
    are refused where elements are not independent given z, and cannot be left out.
    """
    x = _without_gaps(likelihood, x, first)
    try:
        support = likelihood.support
    except (AttributeError, NotImplementedError):  # Your own likelihood may have none.
        return
    if not support.is_discrete:
        return
    wrong = ~support.check(x).reshape(-1, len(x)).all(0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Expected {_expected(support, x[row])} in row {first + row} (counted from 0)."
        )


def _without_gaps(likelihood: Any, x: Tensor, first: int) -> Tensor:
    """Data with another value for NaN, which is refused where it cannot be left out."""
    if not x.is_floating_point() or not bool((gaps := x.isnan()).any()):
        return x
    if hasattr(likelihood, "stand_in"):
        return torch.where(gaps, likelihood.stand_in, x)
    row = int(gaps.reshape(len(x), -1).any(1).nonzero()[0])
    raise ValueError(
        f"Expected data without gaps for {type(likelihood).__name__}, which cannot leave elements "
        f"out; got NaN in row {first + row} (counted from 0). Fill them in, or use a likelihood of "
        "independent elements."
    )


def _expected(support: Any, row: Tensor) -> str:
    """What a support takes, and what a row has that it does not."""
    if hasattr(support, "explain"):
        return str(support.explain(row))
    base = getattr(support, "base_constraint", support)
    top = getattr(base, "upper_bound", None)
    levels = f"{base}" if top is None else f"whole numbers up to {torch.as_tensor(top).max():g}"
    if getattr(base, "lower_bound", None) == 0 and top is None:
        levels = "whole numbers from 0"
    return f"the likelihood's levels, {levels}; got values from {row.min():g} to {row.max():g}"
