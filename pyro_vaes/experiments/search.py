"""A search over options: a grid or random points, halved by validation, the test seen once.

Each rung trains the configurations that are left for longer: all for E / f^k epochs, the best f-th
of them for f times as many, and the last for E (successive halving; Jamieson and Talwalkar,
"Non-stochastic best arm identification and hyperparameter optimization", 2016). Every run is whole:
a configuration that is kept starts anew with more epochs, as ``pyro-vaes train`` would train it, so
the winner is a run like any other. The rungs are ranked by the validation ELBO, the last one by
-log p(x) of the validation rows. The test rows are looked at for the winner only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.experiments.outcomes import DAGGER
from pyro_vaes.experiments.page import markdown_table
from pyro_vaes.experiments.panels import COLORS, axes_of
from pyro_vaes.experiments.points import Axis, Range, points_of, rungs_of
from pyro_vaes.experiments.runs import Run, contents_of
from pyro_vaes.experiments.schedule import run_all
from pyro_vaes.plotting import save_figure, style
from pyro_vaes.runs.build import build, data_of, device_of_flag
from pyro_vaes.runs.options import ConfigError, text
from pyro_vaes.runs.resolve import check_combination, check_warmup_steps, resolve
from pyro_vaes.runs.run import trainer_of
from pyro_vaes.runs.schema import OPTIONS, RunConfig, digest, flatten, from_values
from pyro_vaes.runs.summary import finished, report_text, summarise
from pyro_vaes.storage.files import CONFIG, RunFolderError, locked, write_text
from pyro_vaes.storage.weights import WEIGHTS, load
from pyro_vaes.training.history import History
from pyro_vaes.training.run_folder import METRICS

__all__ = ["Search", "search"]

# The table, and panels of the picture.
_TABLE, _PANELS = "search.csv", 4
# Draws per row in the rungs before the last, whose rank goes by the ELBO.
_FEW = 50


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

    def config(self, point: Mapping[str, Any], epochs: int | None = None) -> RunConfig:
        """The options of a point; with fewer epochs a warm-up is shortened to fit.

        Raises:
            ConfigError: for options that contradict each other.
        """
        asked = {**self.fixed, **point}
        config, explicit = resolve(self.recipe, self.file, asked)
        whole = config.training.epochs
        if epochs is not None and epochs < whole:
            config = from_values({**flatten(config), "epochs": epochs})
            explicit -= {"warmup_epochs", "warmup_steps"}
        return check_combination(config, explicit)[0]


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


def _candidates(asked: Search) -> list[Candidate]:
    """The points, each model once: an option without effect makes no other model."""
    found: dict[str, Candidate] = {}
    for point in points_of(asked.axes, asked.num):
        try:
            flat = flatten(asked.config(point))
        except ConfigError as error:
            raise ConfigError(f"{_words(point)}: {error}") from error
        kept = {}
        for name, value in point.items():
            other, values = OPTIONS[name].only_with or (name, (flat[name],))
            if flat[other] in values:
                kept[name] = value
        found.setdefault(digest(asked.config(kept)), Candidate(kept))
    return list(found.values())


def _words(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{OPTIONS[n].flag} {text(v)}" for n, v in point.items()) or "as given"


def _checked(asked: Search, data: DataSet, candidates: Sequence[Candidate]) -> None:
    """Builds every configuration once, so that what would be refused is refused at once."""
    import torch

    with torch.random.fork_rng():
        for candidate in candidates:
            try:
                config = asked.config(candidate.point)
                steps = math.ceil(len(data.train) / config.training.batch_size)
                check_warmup_steps(config, (*asked.fixed, *candidate.point), steps)
                trainer_of(build(config, data)[0], data, config)
            except ConfigError as error:
                raise ConfigError(f"{_words(candidate.point)}: {error}") from error


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
    _checked(asked, data, candidates)
    epochs = {asked.config(c.point).training.epochs for c in candidates}
    rungs = rungs_of(len(candidates), max(epochs), asked.factor if len(epochs) == 1 else 1)
    contents = contents_of(data)
    _check_out(asked.out)
    say(_plan_text(len(candidates), rungs))
    with locked(asked.out, "search"):
        left = candidates
        for number, (count, length) in enumerate(rungs):
            last = number == len(rungs) - 1
            left = _ranked(left)[:count]
            _train(asked, left, number, None if last else length, contents, last)
        order = _ranked(candidates)
        if order[0].failed:
            raise RunFolderError(f"Expected a run with figures; got none: {_reason(order[0])}.")
        return _write(asked, data, order, rungs)


def _check_out(out: Path) -> None:
    """Refuses a folder whose ``best/`` is not that of a search."""
    if (out / "best").exists() and not (out / _TABLE).exists():
        raise ConfigError(
            "Invalid value for '--out': expected the folder of a search, or one without best/; "
            f"got {out}, whose best/ would be overwritten."
        )


def _plan_text(count: int, rungs: Sequence[tuple[int, int]]) -> str:
    steps = ", then ".join(f"{n} for {epochs} epochs" for n, epochs in rungs)
    return f"{count} configurations: {steps}. Chosen by the validation rows."


def _ranked(candidates: Collection[Candidate]) -> list[Candidate]:
    """The best first: those that came farther, then by their score there."""
    last = max(c.rung for c in candidates)
    return sorted(candidates, key=lambda c: (-c.rung, c.score(c.rung == last)))


def _train(
    asked: Search,
    left: Sequence[Candidate],
    rung: int,
    epochs: int | None,
    contents: str,
    last: bool,
) -> None:
    few = (asked.samples, asked.proposal) if last else (_FEW, "encoder")
    for candidate in left:
        config = asked.config(candidate.point, epochs)
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


def _reason(candidate: Candidate) -> str:
    return str((candidate.result or {}).get("error", "not run"))


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
        device=device_of_flag(config.training.device).type,
    )
    before = finished(out, history) if _same(out, winner.run.folder) else None
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


# --- what is written ------------------------------------------------------------------------------


def _write(
    asked: Search,
    data: DataSet,
    order: Sequence[Candidate],
    rungs: Sequence[tuple[int, int]],
) -> Path:
    rows = [dict(_row(asked, candidate, len(rungs) - 1)) for candidate in order]
    table = pd.DataFrame(rows)
    csv = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    write_text(asked.out / _TABLE, csv)
    save_figure(_picture(asked, order, len(rungs) - 1), asked.out / "search.png")
    summary, page = _best(asked, data, order[0]), asked.out / "search.md"
    write_text(page, "\n\n".join(_page(asked, data, order, rungs, rows, summary)) + "\n")
    return page


def _row(asked: Search, candidate: Candidate, last: int) -> Iterator[tuple[str, Any]]:
    for name in asked.axes:
        yield name, text(candidate.point[name]) if name in candidate.point else ""
    yield "epochs", candidate.epochs
    if candidate.failed:
        yield "error", _reason(candidate)
        return
    assert candidate.result is not None and candidate.run is not None
    figures, training = candidate.result["figures"], candidate.result["training"]
    yield "val_elbo", training["val_elbo"]
    if candidate.rung == last:
        yield "val_nll", figures["nll"]
        yield "val_nll_se", figures["nll_se"]
        yield "share_unreliable", figures.get("share_unreliable")
    yield "active_units", figures.get("active_units")
    yield "parameters", training["parameters"]
    yield "seconds", training["seconds"]
    yield "run", candidate.run.folder.name


def _page(
    asked: Search,
    data: DataSet,
    order: Sequence[Candidate],
    rungs: Sequence[tuple[int, int]],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Iterator[str]:
    winner, last = order[0], len(rungs) - 1
    yield "# A search"
    yield _plan_text(len(order), rungs)
    heads = [
        *(OPTIONS[name].flag for name in asked.axes),
        "epochs",
        "val -ELBO",
        "val NLL",
        "active",
    ]
    cells = [
        [*(row[name] for name in asked.axes), str(row["epochs"]), *_cells(row, candidate)]
        for row, candidate in zip(rows, order, strict=True)
    ]
    yield markdown_table(heads, *cells)
    if any(c.rung == last and not c.failed and not c.trusted for c in order):
        yield (
            f"{DAGGER} Not to be trusted: log p(x) is unreliable for more than {UNRELIABLE:.0%} of "
            "the validation rows, or that is unknown."
        )
    yield "![validation by option](search.png)"
    yield f"## The best: {_words(winner.point)}"
    yield (
        f"Chosen by the {len(data.val)} validation rows. The best of many is a little flattered by "
        "them; the test rows, looked at once, are not:"
    )
    yield f"```text\n{report_text(summary, asked.out / 'best').strip()}\n```"
    units, active = flatten(asked.config(winner.point))["latent_dim"], summary.get("active_units")
    if isinstance(active, int) and active < units:
        yield f"{active} of {units} units of z are active: `--latent-dim {max(1, active)}` may do."
    yield f"To look into it: `pyro-vaes explore {asked.out / 'best'}`."


def _cells(row: Mapping[str, Any], candidate: Candidate) -> list[str]:
    if candidate.failed:
        return ["no figures", "", ""]
    nll, mark = row.get("val_nll"), "" if candidate.trusted else f" {DAGGER}"
    return [
        f"{-row['val_elbo']:.2f}",
        "" if nll is None else f"{nll:.2f} ± {row['val_nll_se']:.2f}{mark}",
        str(row["active_units"] if row["active_units"] is not None else ""),
    ]


def _picture(asked: Search, order: Sequence[Candidate], last: int) -> Figure:
    """The validation -ELBO over the values of each option, coloured by rung."""
    names = list(asked.axes)[:_PANELS]
    with style():
        figure, axes = axes_of(3.2, len(names), sharey=True)
        for ax, name in zip(axes, names, strict=True):
            there = [c for c in order if not c.failed and name in c.point]
            numbers = all(isinstance(c.point[name], (int, float)) for c in there)
            values = [c.point[name] if numbers else text(c.point[name]) for c in there]
            scores = [c.score(False) for c in there]
            ax.scatter(values, scores, color=[COLORS[c.rung] for c in there], s=18)
            if there and there[0] is order[0]:
                ax.scatter(values[:1], scores[:1], s=90, facecolors="none", edgecolors="black")
            axis = asked.axes[name]
            if isinstance(axis, Range) and axis.low > 0:
                ax.set_xscale("log")
            ax.set_xlabel(OPTIONS[name].flag)
            ax.tick_params(axis="x", labelrotation=0 if numbers else 30)
        axes[0].set_ylabel("validation -ELBO (nats)")
        for rung in range(last + 1):
            epochs = [c.epochs for c in order if c.rung == rung]
            if epochs:
                axes[-1].scatter([], [], color=COLORS[rung], s=18, label=f"{epochs[0]} epochs")
        axes[-1].legend(fontsize=8)
    return figure
