"""The runs of a study: trained, measured and kept, each once, over as many processes as help.

A run is known by its options: its folder is named by their digest, so that studies share runs, one
that has finished is not run again, and one that was killed goes on from its checkpoint. Beside the
usual files a folder holds ``result.json``: the figures of :func:`pyro_vaes.evaluate` on the test
split, the log-likelihood of each test datum (for paired comparisons), and what else was measured.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from pyro_vaes.allocator import keep_freed_memory
from pyro_vaes.assemble import build, build_objective, record_of, train
from pyro_vaes.checkpoints import load, save
from pyro_vaes.cluster import spread
from pyro_vaes.config import RunConfig, digest, flatten, from_values, to_yaml
from pyro_vaes.data import DataSet, load_data
from pyro_vaes.evaluation import evaluate
from pyro_vaes.fit_options import COMPILE_FROM_STEPS
from pyro_vaes.folders import RunFolderError, write_text
from pyro_vaes.measures import MEASURES
from pyro_vaes.monitoring import History, NonFiniteError
from pyro_vaes.objectives import ELBO
from pyro_vaes.run_folder import METRICS
from pyro_vaes.sweep import fit_many
from pyro_vaes.vae import VAE

__all__ = ["ENGINES", "Engine", "Run", "data_of", "perform", "run_all"]

RESULT = "result.json"
# So many models of one architecture are worth a joint program.
_TOGETHER_FROM = 8
# What may differ between models that train together.
_OWN = ("seed", "beta", "learning_rate")

Task = tuple["Run", ...]
"""Runs that one process does together."""
Plan = Callable[[int], Sequence[Task]]
"""The tasks for so many workers."""
Engine = Callable[[Plan, int], Iterator["list[dict[str, Any]]"]]
"""Does tasks over so many workers (0: as many as it has cores); yields the results of each task, in
any order."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run and what is to be known of it.

    Attributes:
        config: its options.
        root: where the folders of all runs lie.
        samples: importance samples for each test datum.
        measures: names in :data:`~pyro_vaes.measures.MEASURES` of what else to measure.
    """

    config: RunConfig
    root: Path
    samples: int
    measures: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder, named by its options."""
        return self.root / digest(self.config)[:16]

    def finished(self) -> dict[str, Any] | None:
        """What was found, if all of it was: figures, measures and ``log_marginal``."""
        try:
            result = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
            whole = result["figures"]["num_samples"] == self.samples
            whole = whole and result["measures"].keys() >= set(self.measures)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return cast("dict[str, Any]", result) if whole else None


def data_of(config: RunConfig) -> DataSet:
    """The data that a configuration asks for."""
    binarization: Any = config.data.binarization
    return load_data(
        config.data.source,
        root=config.data.root,
        binarization=None if binarization == "auto" else binarization,
    )


# --- one task, in whatever process ----------------------------------------------------------------


def perform(task: Task) -> list[dict[str, Any]]:
    """Trains and measures the runs of a task, as far as that is not done.

    Returns:
        A result for each run, with its ``digest``; one that met a loss that is not finite has an
        ``error`` instead of figures.
    """
    data = data_of(task[0].config)
    todo = [run for run in task if run.finished() is None]
    trained = {run: _trained(run) for run in todo}
    untrained = [run for run in todo if trained[run] is None]
    if len(untrained) > 1:
        trained |= _train_together(untrained, data)
    results = []
    for run in task:
        result = run.finished()
        if result is None:
            try:
                facts = trained[run] or _train(run, data)
            except NonFiniteError as error:
                results.append({"digest": digest(run.config), "error": str(error)})
                continue
            result = _measure(run, data, facts)
        results.append({"digest": digest(run.config), **result})
    return results


def _trained(run: Run) -> dict[str, Any] | None:
    """The facts of a training that has ended, if they were written down."""
    try:
        result = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
        load(run.folder)
        return cast("dict[str, Any]", result["training"])
    except (OSError, ValueError, KeyError):
        return None


def _train(run: Run, data: DataSet) -> dict[str, Any]:
    torch.manual_seed(run.config.training.seed)
    vae, _ = build(run.config, data)
    if not (run.folder / "config.yaml").exists():
        write_text(run.folder / "config.yaml", to_yaml(run.config))
    history = train(vae, data, run.config, out=run.folder, resume=True, progress=False)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return _facts(vae, history)


def _train_together(runs: Sequence[Run], data: DataSet) -> dict[Run, dict[str, Any]]:
    """Trains models of one architecture as one program; see :func:`pyro_vaes.fit_many`."""
    vaes = []
    for run in runs:
        torch.manual_seed(run.config.training.seed)
        vaes.append(build(run.config, data)[0])
    training = runs[0].config.training
    steps = len(runs) * training.epochs * math.ceil(len(data.train) / training.batch_size)
    histories = fit_many(
        vaes,
        data.train,
        data.val,
        objectives=[cast(ELBO, build_objective(run.config)) for run in runs],
        learning_rates=[run.config.training.learning_rate for run in runs],
        seeds=[run.config.training.seed for run in runs],
        epochs=training.epochs,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        clip_norm=training.clip_norm or None,
        warmup_epochs=runs[0].config.objective.warmup_epochs,
        patience=training.patience,
        ema_decay=training.ema_decay,
        device=training.device,
        mode="compiled" if steps >= COMPILE_FROM_STEPS else "traced",
    )
    found = {}
    for run, vae, history in zip(runs, vaes, histories, strict=True):
        write_text(run.folder / "config.yaml", to_yaml(run.config))
        write_text(run.folder / METRICS, "".join(f"{json.dumps(r)}\n" for r in history.records))
        # There is no checkpoint to go on from: with the weights, this says that all is done.
        found[run] = _facts(vae, history)
        write_text(run.folder / RESULT, json.dumps({"training": found[run]}) + "\n")
        save(vae, run.folder, record_of(run.config, data))
    return found


def _facts(vae: VAE, history: History) -> dict[str, Any]:
    return {
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "stopped": history.stopped,
        "mode": history.mode,
        "seconds": round(history.seconds, 3),
        # The first epoch traces; the median leaves it out, and what a busy machine adds.
        "seconds_per_epoch": statistics.median(r["seconds"] for r in history.records),
        "val_elbo": None
        if history.best_epoch is None
        else history.records[history.best_epoch - 1]["val_elbo"],
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def _measure(run: Run, data: DataSet, facts: Mapping[str, Any]) -> dict[str, Any]:
    vae = load(run.folder)
    # Another study may have evaluated the run, and want less measured of it.
    result = dataclasses.replace(run, measures=()).finished()
    if result is None:
        started = time.perf_counter()
        evaluation = evaluate(vae, data.test, num_samples=run.samples, train=data.train)
        result = {
            "training": facts,
            "figures": evaluation.to_dict(),
            "evaluate_seconds": round(time.perf_counter() - started, 3),
            "measures": {},
            "log_marginal": [round(v, 6) for v in cast(Any, evaluation.log_marginal).tolist()],
        }
    for name in run.measures:
        if name not in result["measures"]:
            result["measures"][name] = MEASURES[name](vae, data, run.samples)
    write_text(run.folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


# --- all tasks ------------------------------------------------------------------------------------


def _start(threads: int) -> None:
    """Sets up a worker: the terminal's Ctrl-C is for the study, which ends its workers itself."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(threads)


def _local(plan: Plan, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Over processes of this machine; over none of its own if one is enough."""
    workers = workers or _cores()
    tasks = plan(workers)
    if workers == 1 or len(tasks) == 1:
        yield from map(perform, tasks)
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")  # A fork would inherit torch's thread pool.
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(threads,))
    try:
        for future in as_completed([pool.submit(perform, task) for task in tasks]):
            yield future.result()
    except BaseException as error:
        # What the workers are doing goes on from its checkpoints.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunFolderError(
                "A process of the study was killed (out of memory?): what has finished is kept; "
                "the same command goes on."
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


ENGINES: dict[str, Engine] = {"local": _local, "ray": functools.partial(spread, perform)}


def run_all(
    runs: Sequence[Run], *, workers: int = 0, engine: str = "local", progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Does all runs that are not done, the long ones first.

    Args:
        runs: the runs; equal ones are done once.
        workers: processes; 0 for one on each core, of the cluster if there is one.
        engine: a name in :data:`ENGINES`; ``ray`` needs ``runs`` on a disk that all nodes see.
        progress: show one bar over all runs, with the time left.

    Returns:
        The result of each run by the digest of its configuration, see :func:`perform`.
    """
    merged = _merged(runs)
    results = {digest(run.config): run.finished() for run in merged}
    todo = [run for run in merged if results[digest(run.config)] is None]

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
                results[result.pop("digest")] = result
            bar.update(len(found))
    return cast("dict[str, dict[str, Any]]", results)


def _merged(runs: Sequence[Run]) -> list[Run]:
    """One run for each folder, with all that any study wants measured of it."""
    merged: dict[Path, Run] = {}
    for run in runs:
        measures = {*run.measures, *(merged[run.folder].measures if run.folder in merged else ())}
        merged[run.folder] = dataclasses.replace(run, measures=tuple(sorted(measures)))
    return list(merged.values())


def _tasks(runs: Sequence[Run], workers: int) -> Iterator[Task]:
    """Puts runs that can train together into tasks, the others into tasks of their own."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_kind(run.config), []).append(run)
    for group in groups.values():
        if len(group) < _TOGETHER_FROM or not _batches(group[0].config):
            yield from ((run,) for run in group)
            continue
        # Runs that stop at about the same time share a program: those of like beta.
        group.sort(key=lambda run: (run.config.objective.beta, run.config.training.seed))
        size = math.ceil(len(group) / min(workers, len(group) // (_TOGETHER_FROM // 2)))
        yield from (tuple(group[i : i + size]) for i in range(0, len(group), size))


def _kind(config: RunConfig) -> str:
    """What runs that train together have in common."""
    return digest(from_values({**flatten(config), **dict.fromkeys(_OWN, 1)}))


def _batches(config: RunConfig) -> bool:
    """Whether a run can be part of a joint program."""
    o, t = config.objective, config.training
    plain = (o.alpha, o.lambda_, o.divergence, o.train_samples) == (0, 1, "none", 1)
    simple = (t.precision, t.mode) == ("float32", "auto") and not o.warmup_steps
    return plain and simple and not config.data.augment


def _cost(task: Task) -> float:
    """A guess at how long a task takes: only the order of tasks depends on it."""
    parts, network = task[0].config.parts, task[0].config.network
    cost = 3.0 if network.kind == "conv" else 1.0
    cost += parts.prior_components / 200 if parts.prior in ("vamp", "mixture") else 0
    cost += 0.2 * parts.posterior_flows if parts.posterior in ("planar", "iaf", "sylvester") else 0
    return cost * len(task)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
