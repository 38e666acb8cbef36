"""A model of a table next to the best classical density, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.data.tables import num_gaps

__all__ = ["compared", "comparison_lines"]


# Columns up to which a covariance is quickly fitted.
_MOST_COLUMNS = 200


def compared(data: DataSet, rows: Any, result: Any) -> dict[str, Any]:
    """Figures of the best classical density on some rows, next to those of a model.

    Args:
        data: the data set, whose training rows it is fitted to, and validation rows chosen by.
        rows: a split of it, without transforms.
        result: what :func:`.evaluate` found for the model on these rows.

    Returns:
        ``classical``, the name of the density; ``classical_nll`` and its standard error;
        ``above_classical``, the mean over the rows by which the model's log p(x) is above, with its
        paired standard error and the median. All of them None where there is none to compare with,
        and ``classical_reason`` says why.
    """
    names = [f"classical{end}" for end in ("", "_nll", "_nll_se")]
    names += [f"above_classical{end}" for end in ("", "_se", "_median")]
    reason = _reason(data, result)
    if reason is not None:
        return {**dict.fromkeys(names), "classical_reason": reason}
    from pyro_vaes.classical.densities import best_density  # Imports SciPy and scikit-learn.

    best = best_density(data.train, data.val)
    theirs = best.log_prob(rows)
    difference = result.log_marginal.cpu().double() - theirs
    figures = (
        *(-theirs.mean(), _error(theirs)),
        *(difference.mean(), _error(difference), difference.median()),
    )
    return dict(zip(names, (best.name, *map(float, figures)), strict=True))


def _reason(data: DataSet, result: Any) -> str | None:
    """Why there is no classical density to compare with; None if there is one."""
    if data.kind != "real" or len(data.event_shape) != 1:
        return "the data are no rows of real numbers"
    if any(num_gaps(split.x) for split in (data.train, data.val, data.test)):
        return "some values were not seen"
    if data.event_shape[0] > _MOST_COLUMNS:
        return f"there are more than {_MOST_COLUMNS} columns"
    return None if result.log_marginal is not None else "log p(x) of the rows is not known"


def _error(values: Tensor) -> Tensor:
    return values.std() / math.sqrt(len(values))


def comparison_lines(figures: Mapping[str, Any]) -> list[str]:
    """The comparison in words; no lines if there was none."""
    if figures.get("classical") is None:
        reason = figures.get("classical_reason")
        return [f"no classical density to compare with: {reason}"] if reason else []
    return [
        f"best classical density, chosen by the validation rows: {figures['classical']}",
        f"  its -log p(x) {figures['classical_nll']:.2f} +- {figures['classical_nll_se']:.2f}; the "
        f"model's log p(x) is above it by {figures['above_classical']:+.2f} +- "
        f"{figures['above_classical_se']:.2f} (paired; median "
        f"{figures['above_classical_median']:+.2f})",
    ]
