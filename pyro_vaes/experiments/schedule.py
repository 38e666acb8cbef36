"""Schedules the runs of a study: merges equal ones, trains like ones jointly, long ones first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from pyro_vaes.experiments.engines import ENGINES
from pyro_vaes.experiments.runs import Run, Task
from pyro_vaes.runs.registry import values_with
from pyro_vaes.runs.schema import RunConfig, digest, flatten, from_values

__all__ = ["run_all"]


# Train jointly from this many models of one architecture on.
_TOGETHER_FROM = 8
# Options that may differ between models that train together.
_OWN = ("seed", "beta", "learning_rate")
_WITH_COMPONENTS = values_with("prior", "prior_components")
_WITH_FLOWS = values_with("posterior", "posterior_flows")


def run_all(
    runs: Sequence[Run], *, workers: int = 0, engine: str = "local", progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Performs all runs that are not finished, the long ones first.

    Args:
        runs: the runs; equal ones are performed once.
        workers: processes; 0 for one per core, of the cluster if there is one.
        engine: a name in :data:`ENGINES`; ``ray`` needs the run folders on a shared disk.
        progress: show one bar over all runs, with the time left.

    Returns:
        The result of each run by its key, see :func:`perform`.
    """
    merged = _merged(runs)
    results = {run.key: run.finished() for run in merged}
    todo = [run for run in merged if results[run.key] is None]

    def plan(workers: int) -> Sequence[Task]:
        return sorted(_tasks(todo, workers), key=_cost, reverse=True)

    bar = tqdm(
        total=len(merged),
        initial=len(merged) - len(todo),
        desc="runs",
        unit="run",
        disable=None if progress else True,
        dynamic_ncols=True,
        smoothing=0.05,
    )
    with bar:
        for found in ENGINES[engine](plan, workers) if todo else ():
            for result in found:
                results[result.pop("key")] = result
            bar.update(len(found))
    return cast("dict[str, dict[str, Any]]", results)


def _merged(runs: Sequence[Run]) -> list[Run]:
    """One run for each folder, with the measures of all studies."""
    merged: dict[Path, Run] = {}
    for run in runs:
        measures = {*run.measures, *(merged[run.folder].measures if run.folder in merged else ())}
        merged[run.folder] = dataclasses.replace(run, measures=tuple(sorted(measures)))
    return list(merged.values())


def _tasks(runs: Sequence[Run], workers: int) -> Iterator[Task]:
    """Groups runs that can train together into tasks; each other run is its own task."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_kind(run.config), []).append(run)
    for group in groups.values():
        if len(group) < _TOGETHER_FROM or not _batches(group[0].config):
            yield from ((run,) for run in group)
            continue
        # Runs of similar beta stop at about the same time, so they share a program.
        group.sort(key=lambda run: (run.config.objective.beta, run.config.training.seed))
        size = math.ceil(len(group) / min(workers, len(group) // (_TOGETHER_FROM // 2)))
        yield from (tuple(group[i : i + size]) for i in range(0, len(group), size))


def _kind(config: RunConfig) -> str:
    """The digest of the options that are equal in runs that train together."""
    return digest(from_values({**flatten(config), **dict.fromkeys(_OWN, 1)}))


def _batches(config: RunConfig) -> bool:
    """Whether a run can be part of a joint program."""
    o, t = config.objective, config.training
    kind = (o.alpha, o.lambda_, o.divergence, o.train_samples, o.gradient)
    plain = kind == (0, 1, "none", 1, "total")
    plain &= (o.tc_weight, o.capacity, o.cycle_epochs) == (1, 0, 0) and not config.network.levels
    simple = (t.precision, t.mode) == ("float32", "auto") and not o.warmup_steps
    simple &= (t.start, t.freeze, config.data.weights) == ("random", "none", "none")
    return plain and simple and not config.data.augment


def _cost(task: Task) -> float:
    """A rough estimate of the time of a task, which sets the order of tasks only."""
    parts, network = task[0].config.parts, task[0].config.network
    cost = 3.0 if "conv" in network.kind else 1.0
    cost += parts.prior_components / 200 if parts.prior in _WITH_COMPONENTS else 0
    cost += 0.2 * parts.posterior_flows if parts.posterior in _WITH_FLOWS else 0
    return cost * len(task)
