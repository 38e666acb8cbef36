"""A model of a table next to the best classical density, row by row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vaes.classical.densities import best_density
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.data.splits import Split
from pyro_vaes.data.tables import num_gaps

__all__ = ["compared", "comparison_lines", "gain_of", "on_scale", "why_not", "with_error"]


# Columns up to which a covariance is quickly fitted.
_MOST_COLUMNS = 200


def on_scale(data: DataSet, powers: Any) -> DataSet:
    """A data set whose rows are transformed by the power transform of a model."""
    return dataclasses.replace(
        data, **{name: powers.split(getattr(data, name)) for name in ("train", "val", "test")}
    )


def gain_of(data: DataSet, powers: Any) -> tuple[float, float]:
    """What one multivariate t gains by a transform, in nats a validation row.

    Args:
        data: rows of real numbers without gaps.
        powers: a power transform, see :class:`~pyro_vaes.parts.powers.YeoJohnson`.

    Returns:
        The mean over the rows, slope of the transform included, and its paired standard error,
        infinite for one row.
    """
    scores = []
    for powered in (False, True):
        seen = on_scale(data, powers) if powered else data
        found = best_density(seen.train, seen.val, only="multivariate t")
        slope = powers.log_slope(data.val.x).double() if powered else 0.0
        scores.append(found.log_prob(seen.val) + slope)
    difference = scores[1] - scores[0]
    error = _error(difference)
    return float(difference.mean()), math.inf if error is None else error


def compared(data: DataSet, rows: Split, result: Any, likelihood: Any = None) -> dict[str, Any]:
    """Figures of the best classical density on some rows, next to those of a model.

    Args:
        data: the data set, whose training rows it is fitted to, and validation rows chosen by.
        rows: what was scored.
        result: what :func:`.evaluate` found for the model there.
        likelihood: of the model; a power transform of its is that of the classical density, too.

    Returns:
        ``classical``, the name of the density; ``classical_nll`` and its standard error;
        ``above_classical``, the mean over the rows by which the model's log p(x) is above, with its
        paired standard error and the median. All of them None where there is none to compare with,
        and ``classical_reason`` says why; one row has no standard errors.
    """
    names = [f"classical{end}" for end in ("", "_nll", "_nll_se")]
    names += [f"above_classical{end}" for end in ("", "_se", "_median")]
    reason = why_not(data)
    if reason is None and result.log_marginal is None:
        reason = "log p(x) of the rows is not known"
    if reason is not None:
        return {**dict.fromkeys(names), "classical_reason": reason}
    powers = getattr(likelihood, "powers", None)
    seen = data if powers is None else on_scale(data, powers)
    best = best_density(seen.train, seen.val)
    slope = 0.0 if powers is None else powers.log_slope(rows.x).double()
    theirs = best.log_prob(rows if powers is None else powers.split(rows)) + slope
    difference = result.log_marginal.cpu().double() - theirs
    name = best.name if powers is None else f"{best.name}, of transformed columns"
    if result.given_label:
        name += " (of the rows alone: the model is given their labels)"
    figures = (float(-theirs.mean()), _error(theirs), float(difference.mean()), _error(difference))
    found = dict(zip(names, (name, *figures, float(difference.median())), strict=True))
    lacking = [key for key, value in found.items() if value is None]
    return found | {f"{key}_reason": "one datum has no standard error" for key in lacking}


def why_not(data: DataSet) -> str | None:
    """Why there is no classical density to compare with; None if there is one."""
    if data.kind != "real" or len(data.event_shape) != 1:
        return "the data are no rows of real numbers"
    if len(data.train) < 2:
        return "one training row has no spread"
    if any(num_gaps(split.x) for split in (data.train, data.val, data.test)):
        return "some values were not seen"
    if data.train.weights is not None:
        return "rows carry weights"
    if data.event_shape[0] > _MOST_COLUMNS:
        return f"there are more than {_MOST_COLUMNS} columns"
    return None


def _error(values: Tensor) -> float | None:
    """The standard error of the mean; None for one row."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None


def comparison_lines(figures: Mapping[str, Any]) -> list[str]:
    """The comparison in words; no lines if there was none."""
    if figures.get("classical") is None:
        reason = figures.get("classical_reason")
        return [f"no classical density to compare with: {reason}"] if reason else []
    return [
        f"best classical density, chosen by the validation rows: {figures['classical']}",
        f"  its -log p(x) {with_error(figures, 'classical_nll')}; the model's log p(x) is above it "
        f"by {with_error(figures, 'above_classical', '+')} (paired; median "
        f"{figures['above_classical_median']:+.2f})",
    ]


def with_error(figures: Mapping[str, Any], name: str, sign: str = "") -> str:
    """A figure in words, with its standard error where it has one."""
    error = figures[f"{name}_se"]
    return f"{figures[name]:{sign}.2f}" + ("" if error is None else f" +- {error:.2f}")
