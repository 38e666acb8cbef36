"""What a search is asked for: its points, its rungs, and what becomes of each configuration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.experiments.runs import Run
from pyro_vaes.runs.options import ConfigError, text
from pyro_vaes.runs.resolve import (
    check_combination,
    check_conditional,
    check_warmup_steps,
    resolve,
)
from pyro_vaes.runs.schema import OPTIONS, RunConfig, flatten, from_values

__all__ = [
    "Axis",
    "Candidate",
    "Range",
    "Search",
    "plan_text",
    "points_of",
    "reason_of",
    "rungs_of",
    "words_of",
]

# The fewest epochs of a rung, and rungs at most.
_LEAST, _RUNGS = 10, 3
# Tries for each new random point before the space is taken to be exhausted.
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two limits: drawn evenly in their logarithm if the lower one is positive."""

    low: float
    high: float
    whole: bool

    def draw(self, generator: np.random.Generator) -> float | int:
        """A number in the range."""
        low, high = (math.log(v) if self.low > 0 else v for v in (self.low, self.high))
        value = generator.uniform(low, high)
        value = math.exp(value) if self.low > 0 else value
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.3g}")


Axis = tuple[Any, ...] | Range
"""The values of an option that a search tries."""


def points_of(axes: Mapping[str, Axis], num: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """The whole grid, or ``num`` random points of it, each once.

    Raises:
        ConfigError: for a range without a number of points.
    """
    ranges = [name for name, axis in axes.items() if isinstance(axis, Range)]
    if num is None:
        if ranges:
            raise ConfigError(
                f"Invalid value for '{OPTIONS[ranges[0]].flag}': expected --num with a range, "
                "which has no grid; got none."
            )
        grid = itertools.product(*(a for a in axes.values() if not isinstance(a, Range)))
        return [dict(zip(axes, values, strict=True)) for values in grid]
    generator = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_TRIES * num):
        point = {
            name: axis.draw(generator) if isinstance(axis, Range) else axis[int(index)]
            for name, axis in axes.items()
            for index in [generator.integers(1 if isinstance(axis, Range) else len(axis))]
        }
        found.setdefault(repr(point), point)
        if len(found) == num:
            break
    return list(found.values())


def rungs_of(count: int, epochs: int, factor: int) -> list[tuple[int, int]]:
    """The configurations and epochs of each rung; the last one compares two at least."""
    last = 0
    while (
        factor > 1
        and last + 1 < _RUNGS
        and math.ceil(count / factor ** (last + 1)) >= 2
        and epochs // factor ** (last + 1) >= _LEAST
    ):
        last += 1
    return [
        (math.ceil(count / factor**rung), max(1, epochs // factor ** (last - rung)))
        for rung in range(last + 1)
    ]


class Search(NamedTuple):
    """The settings of a search.

    Attributes:
        axes: the options that vary, by flat name.
        fixed: those that do not, over recipe and file.
        out: the folder of table, picture and best run.
        runs: the folder of all runs.
        recipe: a recipe, or None.
        file: the options of a file, or None.
        num: the number of random points; None for the whole grid.
        factor: a rung keeps the best 1 / factor of the one before; 1 for no halving.
        samples: draws per row for log p(x).
        proposal: what they are drawn from.
        workers: processes; 0 for one per core.
        engine: a name in :data:`~pyro_vaes.experiments.engines.ENGINES`.
        progress: show a bar.
    """

    axes: Mapping[str, Axis]
    fixed: Mapping[str, Any]
    out: Path
    runs: Path
    recipe: str | None = None
    file: Mapping[str, Any] | None = None
    num: int | None = None
    factor: int = 3
    samples: int = 1000
    proposal: str = "auto"
    workers: int = 0
    engine: str = "local"
    progress: bool = True

    def config(
        self, point: Mapping[str, Any], epochs: int | None = None, data: DataSet | None = None
    ) -> RunConfig:
        """The options of a point; see :meth:`configured`."""
        return self.configured(point, epochs, data)[0]

    def configured(
        self, point: Mapping[str, Any], epochs: int | None = None, data: DataSet | None = None
    ) -> tuple[RunConfig, list[str]]:
        """The options of a point, as ``train`` takes them, and what it remarks on them.

        Args:
            point: the options that vary.
            epochs: of a rung; with fewer a warm-up is shortened to fit.
            data: the data; None before they are read.

        Raises:
            ConfigError: for options that contradict each other, or the data.
        """
        asked = {**self.fixed, **point}
        config, explicit = resolve(self.recipe, self.file, asked)
        whole = config.training.epochs
        if epochs is not None and epochs < whole:
            config = from_values({**flatten(config), "epochs": epochs})
            explicit -= {"warmup_epochs", "warmup_steps"}
        config, remarks = check_combination(config, explicit)
        if data is None:
            return config, remarks
        steps = math.ceil(len(data.train) / config.training.batch_size)
        config, more = check_warmup_steps(config, explicit, steps)
        config, given = check_conditional(config, explicit, data.condition_names)
        return config, [*remarks, *more, *given]


@dataclasses.dataclass
class Candidate:
    """One configuration, and what became of it.

    Attributes:
        point: the options that vary.
        rung: the last rung that it was in.
        epochs: of that rung.
        run: its run there.
        result: what it gave; None before.
    """

    point: Mapping[str, Any]
    rung: int = 0
    epochs: int = 0
    run: Run | None = None
    result: Mapping[str, Any] | None = None

    @property
    def failed(self) -> bool:
        """Whether it has no figures."""
        return self.result is None or "error" in self.result

    def score(self, last: bool) -> float:
        """What it is ranked by, less being better: -log p(x) in the last rung, else -ELBO."""
        if self.failed or self.result is None:
            return math.inf
        figures, training = self.result["figures"], self.result["training"]
        value = figures["nll"] if last else -training["val_elbo"]
        return math.inf if value is None or not math.isfinite(value) else float(value)

    @property
    def trusted(self) -> bool:
        """Whether k-hat supports its log p(x)."""
        share = None if self.result is None else self.result["figures"].get("share_unreliable")
        return share is not None and share <= UNRELIABLE


def words_of(point: Mapping[str, Any]) -> str:
    """The options of a point, as flags."""
    return ", ".join(f"{OPTIONS[n].flag} {text(v)}" for n, v in point.items()) or "as given"


def plan_text(count: int, rungs: Sequence[tuple[int, int]]) -> str:
    """What a search will do, in a line."""
    steps = ", then ".join(f"{n} for {epochs} epochs" for n, epochs in rungs)
    return f"{count} configurations: {steps}. Chosen by the validation rows."


def reason_of(candidate: Candidate) -> str:
    """Why a configuration has no figures."""
    return str((candidate.result or {}).get("error", "not run"))
