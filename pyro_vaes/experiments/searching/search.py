"""A search over options: a grid or random points, halved by validation, the test seen once.

Each rung trains the configurations that are left for longer: all for E / f^k epochs, the best f-th
of them for f times as many, and the last for E (successive halving; Jamieson and Talwalkar,
"Non-stochastic best arm identification and hyperparameter optimization", 2016). Every run is whole:
a configuration that is kept starts anew with more epochs, as ``pyro-vaes train`` would train it, so
the winner is a run like any other. The rungs are ranked by the validation ELBO, the last one by
-log p(x) of the validation rows. The test rows are looked at for the winner only.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.runs import Run, contents_of
from pyro_vaes.experiments.schedule import run_all
from pyro_vaes.experiments.searching.outputs import TABLE, write_page, write_table
from pyro_vaes.experiments.searching.points import (
    Candidate,
    Search,
    plan_text,
    points_of,
    reason_of,
    rungs_of,
    words_of,
)
from pyro_vaes.runs.build import build, data_of, device_of_flag
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.run import trainer_of
from pyro_vaes.runs.schema import OPTIONS, digest, flatten
from pyro_vaes.runs.summary import finished, summarise
from pyro_vaes.storage.files import CONFIG, RunFolderError, locked
from pyro_vaes.storage.weights import WEIGHTS, load
from pyro_vaes.training.history import History
from pyro_vaes.training.run_folder import METRICS

__all__ = ["search"]

# Draws per row in the rungs before the last, whose rank goes by the ELBO.
_FEW = 50


def _candidates(asked: Search) -> list[Candidate]:
    """The points, each model once: an option without effect makes no other model."""
    found: dict[str, Candidate] = {}
    for point in points_of(asked.axes, asked.num):
        try:
            flat = flatten(asked.config(point))
        except ConfigError as error:
            raise ConfigError(f"{words_of(point)}: {error}") from error
        kept = {}
        for name, value in point.items():
            other, values = OPTIONS[name].only_with or (name, (flat[name],))
            if flat[other] in values:
                kept[name] = value
        found.setdefault(digest(asked.config(kept)), Candidate(kept))
    return list(found.values())


def _checked(asked: Search, data: DataSet, candidates: Sequence[Candidate]) -> list[str]:
    """Builds every configuration once, so that what would be refused is refused at once.

    Returns:
        What ``train`` would remark on them, and for how many if not for all.
    """
    import torch

    found: Counter[str] = Counter()
    with torch.random.fork_rng():
        for candidate in candidates:
            try:
                config, remarks = asked.configured(candidate.point, data=data)
                vae, choices = build(config, data)
                trainer_of(vae, data, config)
            except ConfigError as error:
                raise ConfigError(f"{words_of(candidate.point)}: {error}") from error
            found.update({*remarks, *choices})
    total = len(candidates)
    return [
        line if count == total else f"{line} ({count} of {total} configurations)"
        for line, count in sorted(found.items())
    ]


# --- the search -----------------------------------------------------------------------------------


def search(asked: Search, say: Callable[[str], Any] = print) -> Path:
    """Searches, and writes ``search.csv``, ``search.md``, ``search.png`` and ``best/``.

    Runs are known by their content: the same command continues a search that was stopped.

    Args:
        asked: what to try, and how.
        say: gets what there is to say on the way.

    Returns:
        The page.

    Raises:
        ConfigError: for options that cannot be trained; nothing is written then.
        RunFolderError: if no run has figures, or another process searches in the same folder.
    """
    candidates = _candidates(asked)
    if len(candidates) < 2:
        raise ConfigError(
            "Expected two configurations at least to choose from; got one. Give an option several "
            "values: --prior standard,vamp."
        )
    data = data_of(asked.config(candidates[0].point), "Invalid value for '--data'")
    if data.val.weights is not None:
        raise ConfigError(
            "Invalid value for '--weights': expected none with search, whose figures of validation "
            f"rows count them alike; got {asked.config({}).data.weights}."
        )
    remarks = _checked(asked, data, candidates)
    epochs = {asked.config(c.point).training.epochs for c in candidates}
    rungs = rungs_of(len(candidates), max(epochs), asked.factor if len(epochs) == 1 else 1)
    _check_out(asked.out)
    for line in (data.describe(), *remarks, plan_text(len(candidates), rungs)):
        say(line)
    with locked(asked.out, "search"):
        left = candidates
        for number, (count, length) in enumerate(rungs):
            last = number == len(rungs) - 1
            left = _ranked(left, len(rungs) - 1)[:count]
            _train(asked, data, left, number, None if last else length, last)
        order = _ranked(candidates, len(rungs) - 1)
        if order[0].failed:
            raise RunFolderError(f"Expected a run with figures; got none: {reason_of(order[0])}.")
        rows = write_table(asked, order, rungs)
        return write_page(asked, data, order, rungs, rows, _best(asked, data, order[0]))


def _check_out(out: Path) -> None:
    """Refuses a folder whose ``best/`` is not that of a search."""
    if (out / "best").exists() and not (out / TABLE).exists():
        raise ConfigError(
            "Invalid value for '--out': expected the folder of a search, or one without best/; "
            f"got {out}, whose best/ would be overwritten."
        )


def _ranked(candidates: Collection[Candidate], last: int) -> list[Candidate]:
    """The best first: those that came farther, then by their score there; NLL in the last rung."""
    return sorted(candidates, key=lambda c: (-c.rung, c.score(c.rung == last)))


def _train(
    asked: Search,
    data: DataSet,
    left: Sequence[Candidate],
    rung: int,
    epochs: int | None,
    last: bool,
) -> None:
    few = (asked.samples, asked.proposal) if last else (_FEW, "encoder")
    contents = contents_of(data)
    for candidate in left:
        config = asked.config(candidate.point, epochs, data)
        candidate.run = Run(config, contents, asked.runs, few[0], (), few[1], "val")
        candidate.rung, candidate.epochs = rung, config.training.epochs
    results = run_all(
        [c.run for c in left if c.run is not None],
        workers=asked.workers,
        engine=asked.engine,
        progress=asked.progress,
    )
    for candidate in left:
        assert candidate.run is not None
        candidate.result = results[candidate.run.key]


def _best(asked: Search, data: DataSet, winner: Candidate) -> Mapping[str, Any]:
    """Puts the winner's run into a folder of its own, and evaluates it on the test rows, once."""
    assert winner.run is not None and winner.result is not None
    out, config = asked.out / "best", winner.run.config
    records = [
        json.loads(line) for line in (winner.run.folder / METRICS).read_text("utf-8").splitlines()
    ]
    training = winner.result["training"]
    history = History(
        records,
        best_epoch=training["best_epoch"],
        stopped=training["stopped"],
        mode=training["mode"],
        precision_shift=training.get("precision_shift"),
        device=device_of_flag(config.training.device).type,
    )
    if _same(out, winner.run.folder):
        before = finished(out, history, asked.samples, asked.proposal)
        if before is not None:
            return before
    with locked(out):
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
        (out / "summary.json").unlink(missing_ok=True)
        for name in (CONFIG, METRICS, WEIGHTS):
            shutil.copyfile(winner.run.folder / name, out / name)
        if (winner.run.folder / "checkpoint").is_dir():
            shutil.copytree(winner.run.folder / "checkpoint", out / "checkpoint")
        return summarise(load(out), data, config, history, out, asked.samples, asked.proposal)


def _same(out: Path, folder: Path) -> bool:
    """Whether a folder holds the weights of a run."""
    paths = [place / WEIGHTS for place in (out, folder)]
    return all(p.is_file() for p in paths) and len({p.read_bytes() for p in paths}) == 1
