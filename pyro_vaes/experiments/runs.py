"""Trains, evaluates and caches the runs of a study.

A run is identified by its options, the contents of its data and the version of this library. Its
folder is named by their digest, so studies share runs, a finished run is reused, a killed one
resumes from its checkpoint, and figures always belong to the data. Besides the usual files, the
folder holds ``result.json``: the figures of :func:`pyro_vaes.evaluate` on the test split (in a
search on the validation split), the log-likelihood of each datum (for paired comparisons), further
measures, and the versions used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from pyro_vaes._version import __version__
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.evaluator import evaluate
from pyro_vaes.experiments.measures import MEASURES
from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.runs.build import build, build_objective, data_of
from pyro_vaes.runs.run import record_of, train
from pyro_vaes.runs.schema import RunConfig, digest, to_yaml
from pyro_vaes.runs.summary import versions
from pyro_vaes.storage.files import CONFIG, RunFolderError, read_json, write_text
from pyro_vaes.storage.weights import WEIGHTS, load, save
from pyro_vaes.training.history import History, NonFiniteError
from pyro_vaes.training.options import COMPILE_FROM_STEPS
from pyro_vaes.training.run_folder import METRICS
from pyro_vaes.training.sweep import fit_many
from pyro_vaes.training.validation import on_device, validate
from pyro_vaes.vae import VAE

__all__ = ["Run", "contents_of", "perform"]


RESULT = "result.json"

Task = tuple["Run", ...]
"""Runs that one process performs together."""
"""The tasks for a number of workers."""
"""Runs the tasks of a plan on a number of workers (0: one per core); yields the results of each
task, in any order."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run and the measures wanted of it.

    Attributes:
        config: its options.
        data: the digest of its data, see :func:`contents_of`.
        root: the folder of all run folders.
        samples: importance samples per test datum.
        measures: further measures, by their names in
            :data:`~pyro_vaes.experiments.measures.MEASURES`.
        proposal: the proposal for log p(x), as for ``evaluate``.
        split: the rows that it is evaluated on, ``test`` or ``val``.
    """

    config: RunConfig
    data: str
    root: Path
    samples: int
    measures: tuple[str, ...] = ()
    proposal: str = "auto"
    split: str = "test"

    @property
    def key(self) -> str:
        """The digest that identifies the run: options, contents of the data, version, other rows.

        The place of the data does not matter; of ``--init``, the weights there do.
        """
        named = [digest(self.config, ("data", "data_root")), self.data, __version__]
        if self.split != "test":
            named.append(self.split)
        if self.config.training.init != "none":
            named.append(_digest_of(Path(self.config.training.init).expanduser() / WEIGHTS))
        return hashlib.sha256(" ".join(named).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """The run's folder, named by its key."""
        return self.root / self.key[:16]

    def finished(self) -> dict[str, Any] | None:
        """The result, if it is complete: figures, measures and ``log_marginal``."""
        result = read_json(self.folder / RESULT)
        if not _is_result(result) or result["figures"]["num_samples"] != self.samples:
            return None
        # A result from before k-hat was recorded cannot show whether it is to be trusted.
        if "share_unreliable" not in result["figures"] or result["proposal"] != self.proposal:
            return None
        return result if result["measures"].keys() >= set(self.measures) else None


def contents_of(data: DataSet) -> str:
    """A digest of the values of data and of their kind, wherever they are stored."""
    meaning = (data.kind, data.num_levels, data.num_labels, data.image_shape)
    return hashlib.sha256(f"{data.digest} {meaning}".encode()).hexdigest()


def _digest_of(file: Path) -> str:
    """The digest of a file's contents; of nothing if it is not there, which training refuses."""
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()


def _is_result(result: Any) -> bool:
    """Whether a value is a result of :func:`perform`: a file may hold anything."""
    try:
        figures, log_marginal = result["figures"], result["log_marginal"]
        return (
            _is_training(result["training"])
            and all(_is_number(figures[name], or_none=True) for name in ("nll", "elbo", "kl"))
            and all(isinstance(found, dict) for found in result["measures"].values())
            and all(isinstance(version, str) for version in result["versions"].values())
            and _is_number(result["evaluate_seconds"])
            and isinstance(result["proposal"], str)
            and all(map(_is_number, log_marginal))
            and _is_mean_of(figures["nll"], log_marginal)
        )
    except (KeyError, TypeError, AttributeError, IndexError, statistics.StatisticsError):
        return False


def _is_mean_of(nll: float | None, log_marginal: Sequence[float]) -> bool:
    mean = -statistics.fmean(log_marginal)
    return not math.isfinite(mean) if nll is None else math.isclose(mean, nll, rel_tol=1e-5)


def _is_training(facts: Any) -> bool:
    numbers = ("epochs", "seconds", "seconds_per_epoch", "parameters", "val_elbo")
    return isinstance(facts, dict) and all(_is_number(facts.get(name)) for name in numbers)


def _is_number(value: Any, or_none: bool = False) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number or (or_none and value is None)


# --- one task, in any process ---------------------------------------------------------------------


def perform(task: Task) -> list[dict[str, Any]]:
    """Trains and measures the runs of a task that are not finished.

    Returns:
        A result for each run, with its ``key``; a run whose loss was not finite has an ``error``
        instead of figures.

    Raises:
        RunFolderError: if the data have changed since the study started.
    """
    data = data_of(task[0].config)
    if any(run.data != contents_of(data) for run in task):
        raise RunFolderError(
            f"Expected the data ({task[0].config.data.source}) that the study started with; got "
            "others: they have changed since. The same command starts anew with the present data."
        )
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
                results.append({"key": run.key, "error": str(error)})
                continue
            result = _measure(run, data, facts)
        results.append({"key": run.key, **result})
    return results


def _trained(run: Run) -> dict[str, Any] | None:
    """The recorded facts of a finished training; None without them."""
    result = read_json(run.folder / RESULT)
    facts = result.get("training") if isinstance(result, dict) else None
    try:
        load(run.folder)
    except RunFolderError:
        return None
    return facts if _is_training(facts) else None


def _train(run: Run, data: DataSet) -> dict[str, Any]:
    torch.manual_seed(run.config.training.seed)
    vae, _ = build(run.config, data, run.folder)
    history = train(vae, data, run.config, out=run.folder, resume=True, progress=False)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    facts = _facts(vae, history)
    if history.best_epoch == 0:  # The start was kept, which no record describes.
        rows, objective = on_device(data.val, vae), build_objective(run.config)
        found = validate(vae, objective, rows, run.config.training.seed)
        facts["val_elbo"] = found["val_elbo"]
    return facts


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
        write_text(run.folder / CONFIG, to_yaml(run.config))
        write_text(run.folder / METRICS, "".join(f"{json.dumps(r)}\n" for r in history.records))
        # There is no checkpoint to resume from: this file and the weights mark the run as finished.
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
        "precision_shift": history.precision_shift,
        "seconds": round(history.seconds, 3),
        # The median is robust to the first epoch, which traces, and to a busy machine.
        "seconds_per_epoch": statistics.median(r["seconds"] for r in history.records),
        "val_elbo": next(
            (r["val_elbo"] for r in history.records if r["epoch"] == history.best_epoch), None
        ),
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def _measure(run: Run, data: DataSet, facts: Mapping[str, Any]) -> dict[str, Any]:
    vae = load(run.folder)
    # Another study, with fewer measures, may have evaluated the run.
    result = dataclasses.replace(run, measures=()).finished()
    if result is None:
        started = time.perf_counter()
        rows = getattr(data, run.split)
        evaluation = evaluate(
            vae, rows, num_samples=run.samples, proposal=run.proposal, train=data.train
        )
        result = {
            "training": facts,
            "versions": versions(),
            "proposal": run.proposal,
            "figures": evaluation.to_dict(),
            "evaluate_seconds": round(time.perf_counter() - started, 3),
            "measures": {},
            "log_marginal": [round(v, 6) for v in cast(Any, evaluation.log_marginal).tolist()],
        }
    for name in run.measures:
        if name not in result["measures"]:
            result["measures"][name] = MEASURES[name](vae, data, run.samples, run.proposal)
    write_text(run.folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result
