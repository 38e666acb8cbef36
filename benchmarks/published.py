"""Published figures next to ours: from raw data to the test figure, in one resumable command.

    python benchmarks/published.py mnist-standard
    python benchmarks/published.py mnist-vamp --minutes 60   # the same command again resumes
    python benchmarks/published.py mnist-best --seeds 3
    python benchmarks/published.py mnist-best --redraw       # from the CSVs alone

A model of the VampPrior literature (a single level of gated layers of 300, 40 latent dimensions) is
trained as there: batches of 100, binarised anew each time, KL warm-up over 100 epochs, Adam at
5e-4, early stopping; rows with a falling step size are done in 300 epochs. With ``--minutes``,
training stops after the epoch in which the budget ends; the same command goes on, and the run ends
as if it had never been stopped. The weights that have validated best until then are evaluated on
the test rows.

Writes, to ``benchmarks/results/``, ``published_ROW.csv`` (one line a seed),
``published_curve_ROW.csv`` and ``published_ROW.png`` (validation against epochs), and
``published.md``, a table of all rows that lie there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from harness import RESULTS, hardware, header, read, write

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.runs.build import build
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.resolve import check_combination, check_resume, resolve
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import RunConfig, read_config, to_yaml
from pyro_vaes.storage.files import CONFIG, RunFolderError, write_text

TABLE = 'Norouzi, Fleet and Norouzi, "Exemplar VAE" (2020), arXiv:2004.04795, table of densities'
REPLICATION = "github.com/andrejkorenic/reconstruction-likelihood-clustering, README"
EXEMPLAR_LOG = "github.com/sajadn/Exemplar-VAE, whole_log.txt of its pretrained model"
# A figure with a larger share of unreliable data is marked (docs/laws.md).
MOST_UNRELIABLE = 0.05
DOUBTFUL = (
    f"† Not to be trusted: Pareto's k-hat is over its limit for more than {MOST_UNRELIABLE:.0%} of "
    "the test images ([how claims are made](../../docs/laws.md#how-claims-are-made))."
)
# Where the evaluation of a run is kept, so that a finished one is not evaluated twice.
EVALUATION = "published.json"


@dataclasses.dataclass(frozen=True)
class Reference:
    """What others saw of -ELBO on the validation rows, and of which model.

    Attributes:
        model: the prior, which is what differs: the networks are those of the rows here.
        source: where.
        best: the lowest, nats.
        curve: by epoch, where a log is known.
    """

    model: str
    source: str
    best: float
    curve: Mapping[int, float] = dataclasses.field(default_factory=dict)


STANDARD_SEEN = Reference("standard prior, independent replication", REPLICATION, 88.04)
VAMP_SEEN = Reference("VampPrior, independent replication", REPLICATION, 85.30)
# Stopped after 1088 epochs, test NLL 82.05.
EXEMPLAR_SEEN = Reference(
    "another model: exemplar prior, 25,000 exemplars",
    EXEMPLAR_LOG,
    85.85,
    {100: 90.62, 200: 88.79, 300: 87.71},
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure to reach: our recipe, the flags that differ from it, and what was published.

    Attributes:
        title: what tables call it.
        recipe: a recipe's name.
        flags: options that differ from the recipe's.
        published: -log p(x), nats; None for toys.
        error: the standard error that was published with it.
        model: which model the published figure is of.
        source: where.
        references: what others saw during training.
        restarts: epochs after which a run that has ended is resumed, its step size back on the way
            of the longer training (Loshchilov and Hutter, "SGDR", 2017).
        start: a row whose weights this one starts from, wherever it has one of that name; trained
            first, in a run folder of its own.
        goal: -log p(x) to get below, nats; None for none but the published one.
        compared: rows of the same training, drawn in the same picture wherever they have been run.
    """

    title: str
    recipe: str
    flags: Mapping[str, Any]
    published: float | None
    error: float | None = None
    model: str = ""
    source: str = TABLE
    references: tuple[Reference, ...] = ()
    restarts: tuple[int, ...] = ()
    start: str | None = None
    goal: float | None = None
    compared: tuple[str, ...] = ()


STANDARD, VAMP, EXEMPLAR = "standard prior", "VampPrior", "Exemplar VAE"
FASHION = {"data": "fashion_mnist"}
# Larger steps on larger batches (pseudo-inputs are encoded once a step), falling to zero: an end
# that early stopping at the literature's step size is long in finding.
FALLING = {
    "ema_decay": 0.999,
    "batch_size": 250,
    "learning_rate": 1.5e-3,
    "schedule": "cosine",
    "epochs": 300,
    "warmup_epochs": 30.0,
}
SHORT = {**FALLING, "epochs": 100, "warmup_epochs": 10.0}
LONG = {**FALLING, "epochs": 600}
BEST = {**FALLING, "prior_weights": "learned"}
ROWS = {
    "mnist-standard": Row(
        "MNIST, standard prior",
        "mnist-standard",
        {},
        84.45,
        0.12,
        STANDARD,
        references=(STANDARD_SEEN,),
    ),
    "mnist-vamp": Row(
        "MNIST, VampPrior, K = 500",
        "mnist-vamp",
        {},
        82.43,
        0.06,
        VAMP,
        f"{TABLE}; an independent replication got 82.29 ({REPLICATION})",
        references=(VAMP_SEEN, EXEMPLAR_SEEN),
    ),
    "mnist-standard-falling": Row(
        "MNIST, standard prior, step size falling",
        "mnist-standard",
        FALLING,
        84.45,
        0.12,
        STANDARD,
        references=(STANDARD_SEEN,),
    ),
    "mnist-standard-long": Row(
        "MNIST, standard prior, step size falling, 600 epochs",
        "mnist-standard",
        LONG,
        84.45,
        0.12,
        STANDARD,
        references=(STANDARD_SEEN,),
    ),
    "mnist-best": Row(
        "MNIST, VampPrior, K = 500, step size falling",
        "mnist-vamp",
        BEST,
        82.09,
        0.18,
        EXEMPLAR,
    ),
    "mnist-best-restarted": Row(
        "MNIST, VampPrior, K = 500, step size falling twice",
        "mnist-vamp",
        {**BEST, "epochs": 600},
        82.09,
        0.18,
        EXEMPLAR,
        restarts=(300,),
    ),
    # From there on with what the diagonal posterior and the bound of one draw miss: the posterior,
    # and so the components of its prior, correlate; the bound is nearer to what is judged.
    "mnist-best-full": Row(
        "MNIST, VampPrior, K = 500, then full covariances, five draws",
        "mnist-vamp",
        {
            **BEST,
            "posterior": "full_normal",
            "train_samples": 5,
            "warmup_epochs": 0.0,
            "epochs": 30,
            "learning_rate": 5e-4,
            "mode": "compiled",
        },
        82.09,
        0.18,
        EXEMPLAR,
        start="mnist-best-restarted",
    ),
    # A bound that is nearer to what is judged. It has no KL to weigh: no warm-up.
    "mnist-many-samples": Row(
        "MNIST, VampPrior, K = 500, step size falling, five draws a datum",
        "mnist-vamp",
        {**BEST, "train_samples": 5, "warmup_epochs": 0.0, "epochs": 200},
        82.09,
        0.18,
        EXEMPLAR,
    ),
    "mnist-twenty-samples": Row(
        "MNIST, VampPrior, K = 500, step size falling, twenty draws a datum",
        "mnist-vamp",
        {**BEST, "train_samples": 20, "warmup_epochs": 0.0, "epochs": 200},
        82.09,
        0.18,
        EXEMPLAR,
    ),
    # Without, the training bound ends two nats below that of the validation rows.
    "mnist-augmented": Row(
        "MNIST, VampPrior, K = 500, step size falling, images moved",
        "mnist-vamp",
        {**BEST, "augment": 1.0},
        82.09,
        0.18,
        EXEMPLAR,
    ),
    "fashion-standard": Row(
        "Fashion-MNIST, standard prior", "mnist-standard", FASHION, 228.70, model=STANDARD
    ),
    "fashion-vamp": Row(
        "Fashion-MNIST, VampPrior, K = 500", "mnist-vamp", FASHION, 227.35, model=VAMP
    ),
    "fashion-standard-falling": Row(
        "Fashion-MNIST, standard prior, step size falling",
        "mnist-standard",
        {**FASHION, **SHORT},
        228.70,
        model=STANDARD,
    ),
    "fashion-vamp-falling": Row(
        "Fashion-MNIST, VampPrior, K = 500, step size falling",
        "mnist-vamp",
        {**FASHION, **SHORT},
        227.35,
        model=VAMP,
    ),
    "fashion-standard-long": Row(
        "Fashion-MNIST, standard prior, step size falling, 600 epochs",
        "mnist-standard",
        {**FASHION, **LONG},
        228.70,
        model=STANDARD,
    ),
    "fashion-vamp-long": Row(
        "Fashion-MNIST, VampPrior, K = 500, step size falling, 600 epochs",
        "mnist-vamp",
        {**FASHION, **LONG},
        227.35,
        model=VAMP,
    ),
}
# A flow as prior, its figures as its authors' table has them, from memory where that is said.
XU = "Xu et al. (2019), arXiv:1905.13452, Table 1"
REALNVP = {"prior": "realnvp", "prior_flows": 20, "mode": "compiled"}
RESIDUAL = {
    "network": "residual_conv",
    "channels": (32, 64),
    "hidden_dims": (256,),
    "blocks": 2,
    "input_scaling": "auto",
}
# From there on as in mnist-best-full; the gradient has less noise near the posterior.
THEN_FULL = {
    **FALLING,
    "posterior": "full_normal",
    "train_samples": 5,
    "gradient": "path",
    "warmup_epochs": 0.0,
    "epochs": 30,
    "learning_rate": 5e-4,
}
QUOTED = "as later papers quote it"
ROWS |= {
    "mnist-realnvp": Row(
        "MNIST, RealNVP prior, 20 layers, step size falling",
        "mnist-standard",
        {**FALLING, **REALNVP},
        80.4,
        model="RealNVP prior, dense networks",
        source=f"{XU}, from memory: check before citing",
        goal=80.4,
        compared=("mnist-standard-falling", "mnist-best"),
    ),
    "mnist-realnvp-full": Row(
        "MNIST, RealNVP prior, 20 layers, then full covariances, five draws",
        "mnist-standard",
        {**REALNVP, **THEN_FULL},
        80.4,
        model="RealNVP prior, dense networks",
        source=f"{XU}, from memory: check before citing",
        start="mnist-realnvp",
        goal=80.4,
        compared=("mnist-best-full",),
    ),
    "mnist-residual-realnvp": Row(
        "MNIST, residual convolutions, RealNVP prior, 20 layers, step size falling",
        "mnist-standard",
        {**FALLING, **REALNVP, **RESIDUAL},
        78.49,
        model="RealNVP prior, residual networks, 1,000 samples",
        source=f"{XU}, {QUOTED}",
        goal=78.5,
        compared=("mnist-realnvp",),
    ),
    "mnist-two-levels": Row(
        "MNIST, two levels of 40, VampPrior, K = 500, step size falling",
        "mnist-vamp",
        {**BEST, "levels": (40, 40), "mode": "compiled"},
        81.24,
        model="two levels, VampPrior",
        source=f'Tomczak and Welling, "VAE with a VampPrior" (2018), {QUOTED}',
        goal=81.2,
        compared=("mnist-standard-falling", "mnist-best"),
    ),
    "mnist-two-levels-full": Row(
        "MNIST, two levels of 40, VampPrior, K = 500, then 10 epochs of full covariances, five "
        "draws",
        "mnist-vamp",
        {**BEST, **THEN_FULL, "epochs": 10, "levels": (40, 40), "mode": "compiled"},
        81.24,
        model="two levels, VampPrior",
        source=f'Tomczak and Welling, "VAE with a VampPrior" (2018), {QUOTED}',
        goal=81.2,
        start="mnist-two-levels",
    ),
    # As in mnist-best-restarted, but as a row of its own: the first 300 epochs are a row already.
    "mnist-two-levels-restarted": Row(
        "MNIST, two levels of 40, VampPrior, K = 500, then 300 epochs more, step size falling",
        "mnist-vamp",
        {
            **BEST,
            "levels": (40, 40),
            "mode": "compiled",
            "warmup_epochs": 0.0,
            "learning_rate": 7.5e-4,
            "patience": 300,
        },
        81.24,
        model="two levels, VampPrior",
        source=f'Tomczak and Welling, "VAE with a VampPrior" (2018), {QUOTED}',
        goal=81.2,
        start="mnist-two-levels",
    ),
    "mnist-two-levels-residual": Row(
        "MNIST, two levels of 40, residual convolutions, VampPrior, K = 500, step size falling",
        "mnist-vamp",
        {**BEST, **RESIDUAL, "levels": (40, 40), "mode": "compiled"},
        79.58,
        model="Exemplar VAE, two levels, convolutions",
        goal=79.5,
        compared=("mnist-two-levels",),
    ),
    "fashion-realnvp": Row(
        "Fashion-MNIST, RealNVP prior, 20 layers, step size falling",
        "mnist-standard",
        {**FASHION, **SHORT, **REALNVP},
        226.1,
        model="RealNVP prior, dense networks",
        source=f"{XU}, from memory: check before citing",
        goal=226.0,
        compared=("fashion-standard-falling", "fashion-vamp-falling"),
    ),
    "fashion-realnvp-long": Row(
        "Fashion-MNIST, RealNVP prior, 20 layers, step size falling, 300 epochs",
        "mnist-standard",
        {**FASHION, **FALLING, **REALNVP},
        226.1,
        model="RealNVP prior, dense networks",
        source=f"{XU}, from memory: check before citing",
        goal=226.0,
    ),
    "fashion-realnvp-full": Row(
        "Fashion-MNIST, RealNVP prior, 20 layers, 300 epochs, then full covariances, five draws",
        "mnist-standard",
        {**FASHION, **REALNVP, **THEN_FULL},
        226.1,
        model="RealNVP prior, dense networks",
        source=f"{XU}, from memory: check before citing",
        start="fashion-realnvp-long",
        goal=226.0,
    ),
    "digits-conv-full": Row(
        "digits, convolutions, full covariance, five draws, images moved by more",
        "digits-conv",
        {
            "posterior": "full_normal",
            "train_samples": 5,
            "gradient": "path",
            "warmup_epochs": 0.0,
            "augment": 2.2,
        },
        80.74,
        model="ours before, convolutions; nobody else has published one",
        source="an earlier commit of this repository, one run, k-hat unknown",
        goal=80.0,
    ),
}
TOY = {
    "hidden_dims": (16,),
    "latent_dim": 3,
    "prior_components": 5,
    "prior_flows": 2,
    "channels": (2, 4),
    "batch_size": 40,
    "epochs": 6,
    "warmup_epochs": 2.0,
    "mode": "traced",
    "device": "cpu",
}
WHY = {
    "patience": "early stopping",
    "epochs": "all epochs",
    "time": "**cut by the time budget**",
}


# --- training, to an end or to the budget ---------------------------------------------------------


class Stopped(Exception):
    """The command ends here, with a line that says why; the same command resumes."""


def lineage(name: str) -> list[str]:
    """A row, after those that it starts from."""
    start = ROWS[name].start
    return [*(lineage(start) if start else []), name]


def configurations(row: Row, seed: int, root: Path) -> list[RunConfig]:
    """The options of one run: one set, and one more for each restart."""
    flags = {**row.flags, "seed": seed, "data_root": str(root)}
    whole = check_combination(*resolve(row.recipe, None, flags))[0]
    stages = [epochs for epochs in row.restarts if epochs < whole.training.epochs]
    return [
        dataclasses.replace(whole, training=dataclasses.replace(whole.training, epochs=epochs))
        for epochs in [*stages, whole.training.epochs]
    ]


def trained(
    configs: Sequence[RunConfig],
    data: DataSet,
    run: Path,
    minutes: float | None = None,
    start: Path | None = None,
) -> tuple[pv.VAE, pv.History]:
    """Trains or resumes a run until it ends or its budget is spent.

    Args:
        configs: the options, of one stage after another.
        data: the data set.
        run: the run folder, the same as ``pyro-vaes train --resume --out`` would go on with.
        minutes: of training, set-up included, and the epoch under way is ended; None for no limit.
        start: the folder of a run whose weights this one starts from.

    Returns:
        The VAE with the weights to evaluate, and the history; ``stopped`` is ``time`` if the budget
        is what ended it.

    Raises:
        Stopped: if the user stopped it.
    """
    if (run / CONFIG).exists():
        found = read_config(run)
        configs = [c for c in configs if c.training.epochs >= found.training.epochs] or configs
        check_resume(configs[0], found)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for config in configs:
        write_text(run / CONFIG, to_yaml(config))
        torch.manual_seed(config.training.seed)
        vae, _ = build(config, data)
        if start is not None:
            begin_at(vae, start)
        # The budget always leaves one more epoch, so that each call makes progress.
        left = None if end is None else max(1e-9, end - time.monotonic()) / 60
        with warnings.catch_warnings():
            # The step size rises on purpose where a row restarts.
            warnings.filterwarnings("ignore", "The cosine schedule of the learning rate now ends")
            history = train(vae, data, config, out=run, resume=True, minutes=left)
        if history.stopped == "interrupted":
            raise Stopped(
                f"{run}: stopped by the user after {history.epochs} epochs; the same command goes "
                "on."
            )
        if history.stopped == "time":
            break
    return vae, history


def begin_at(vae: pv.VAE, start: Path) -> None:
    """Gives a VAE the weights of a run; parts that the run has not keep their own."""
    unknown = vae.load_state_dict(pv.load(start).state_dict(), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"Expected a VAE with all weights of {start}; got one without {unknown}.")


def evaluated(
    vae: pv.VAE, data: DataSet, history: pv.History, run: Path, samples: int
) -> dict[str, Any]:
    """Figures of the test rows; those of the same weights are not made twice."""
    made = {"best_epoch": history.best_epoch, "samples": samples}
    path = run / EVALUATION
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if made.items() <= found.items():
            return found
    started = time.perf_counter()
    result = pv.evaluate(vae, data.test, num_samples=samples)
    found = {
        **made,
        "nll": result.nll,
        "nll_se": result.nll_se,
        "neg_elbo": -result.elbo,
        "kl": result.kl,
        "pareto_k_median": result.pareto_k_median,
        "share_unreliable": _share(result.num_unreliable, result.num_data),
        "evaluation_minutes": (time.perf_counter() - started) / 60,
    }
    write_text(path, json.dumps(found) + "\n")
    return found


def _share(number: int | None, of: int) -> float | None:
    return None if number is None else number / of


def record_of(name: str, row: Row, seed: int, history: pv.History) -> dict[str, Any]:
    """What is kept of one run, without the figures of the test rows."""
    best = history.best_epoch
    return {
        "row": name,
        "title": row.title,
        "published": row.published,
        "published_error": row.error,
        "published_model": row.model,
        "source": row.source,
        "start": row.start,
        "goal": row.goal,
        "seed": seed,
        "stopped": history.stopped,
        "epochs": history.epochs,
        "val_neg_elbo": -history.records[(best or history.epochs) - 1]["val_elbo"],
        "train_hours": history.seconds / 3600,
        "seconds_per_epoch": statistics.median(r["seconds"] for r in history.records),
        "mode": history.mode,
        "device": history.device,
        "threads": history.threads,
        "best_epoch": best,
    }


# --- what is written ------------------------------------------------------------------------------


def table(out: Path) -> str:
    """A Markdown table of all rows whose CSV lies in a folder, and how each was made."""
    lines = [
        "| model | published NLL | ours | unreliable images | s.e., test images "
        "| s.e., seeds | seeds | -ELBO | validation -ELBO | epochs | training ended by | hours |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name in ROWS:
        path = out / f"published_{name}.csv"
        if not path.exists():
            continue
        runs, facts = read(path)
        first = runs[0]
        lines.append(f"| {first['title']} | {_published(first)} | {_ours(runs)} |")
        note = "".join(
            f" The time budget cut seed {run['seed']} after {run['epochs']} epochs"
            f"{'' if run['best_epoch'] else ', within the KL warm-up'}: not its final figure."
            for run in runs
            if run["stopped"] == "time"
        )
        if first.get("start"):
            note += f" Begins where `{first['start']}` ends, whose hours are counted."
        note += _goal(runs)
        places = ", ".join(sorted({_place(run) for run in runs}))
        samples = first.get("samples") or "no"
        notes.append(
            f"- {first['title']}:{note} {samples} importance samples. "
            f"Published: {first['source']}. {hardware(facts)}, "
            f"{places}, evaluated on "
            f"{_threads(facts['threads'])}; {facts['versions']}; commit {facts['commit']}, "
            f"{facts['date']}. `{facts['command']}`"
        )
    if any("†" in line for line in lines):
        notes = [DOUBTFUL, "", *notes]
    return "\n".join([*lines, "", "Nats per image.", "", *notes]) + "\n"


def _goal(runs: Sequence[Mapping[str, str]]) -> str:
    """What a row was to get below, and whether its mean over the seeds did."""
    if not runs[0].get("goal"):
        return ""
    goal = float(runs[0]["goal"])
    figures = [float(run["nll"]) for run in runs if run.get("nll")]
    over = statistics.mean(figures) - goal if figures else math.nan
    how = "not evaluated yet" if not figures else "reached" if over < 0 else f"missed by {over:.2f}"
    return f" Goal: below {goal:g}, {how}."


def _place(run: Mapping[str, str]) -> str:
    known = run.get("threads") or "0"  # Not of runs that began before it was noted.
    on = f"{_threads(known)}, " if known != "0" else ""
    return f"{run['device']}, {on}{run['mode']} steps"


def _threads(number: str) -> str:
    return f"{number} thread{'s' * (number != '1')}"


def _reliability(runs: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """A mark for a mean that is not to be trusted; the share of such data, by the worst seed."""
    evaluated = [run for run in runs if run.get("nll")]
    shares = [float(run["share_unreliable"]) for run in evaluated if run.get("share_unreliable")]
    if len(shares) < len(evaluated):
        return "", "k-hat unknown"
    if not shares:
        return "", "none yet"
    return " †" if max(shares) > MOST_UNRELIABLE else "", f"{max(shares):.1%}"


def _published(run: Mapping[str, str]) -> str:
    if not run["published"]:
        return "-"
    error = run["published_error"]
    figure = f"{float(run['published']):.2f}" + (f" ± {float(error):.2f}" if error else "")
    return f"{figure} ({run['published_model']})"


def _ours(runs: Sequence[Mapping[str, str]]) -> str:
    """The cells that are ours: means over the seeds that have been evaluated."""

    def mean(key: str, places: int = 2) -> str:
        values = [float(run[key]) for run in runs if run.get(key)]
        return f"{statistics.mean(values):.{places}f}" if values else "none yet"

    figures = [float(run["nll"]) for run in runs if run.get("nll")]
    many = len(figures) > 1
    error = f"{statistics.stdev(figures) / math.sqrt(len(figures)):.2f}" if many else "one seed"
    epochs = ", ".join(f"{run['epochs']} (kept {run['best_epoch'] or 'none'})" for run in runs)
    why = ", ".join(dict.fromkeys(WHY[run["stopped"]] for run in runs))
    mark, unreliable = _reliability(runs)
    cells = [mean("nll") + mark, unreliable, mean("nll_se"), error, str(len(runs))]
    cells += [mean("neg_elbo")]
    return " | ".join([*cells, mean("val_neg_elbo"), epochs, why, mean("train_hours")])


def curve(out: Path, name: str, histories: Mapping[int, pv.History], facts: Any) -> None:
    """Writes validation against epochs."""
    points = [
        {
            "seed": seed,
            "epoch": record["epoch"],
            "val_neg_elbo": -record["val_elbo"],
            "train_loss": record["train_loss"],
            "kl_weight": record.get("kl_weight"),  # A bound of many samples has none.
            "seconds": record["seconds"],
        }
        for seed, history in histories.items()
        for record in history.records
    ]
    write(out, f"published_curve_{name}", points, facts)


def redraw(out: Path, name: str, row: Row) -> None:
    """Draws validation against epochs from the CSVs of a row, other rows up to the same epoch."""
    points, facts = read(out / f"published_curve_{name}.csv")
    runs, _ = read(out / f"published_{name}.csv")
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        pair = int(point["epoch"]), float(point["val_neg_elbo"])
        curves.setdefault(f"seed {point['seed']}", []).append(pair)
    best = {f"seed {run['seed']}": run["best_epoch"] for run in runs}
    last = max(epoch for pairs in curves.values() for epoch, _ in pairs)
    for other in row.compared:
        path = out / f"published_curve_{other}.csv"
        for point in read(path)[0] if path.exists() else ():
            pair = int(point["epoch"]), float(point["val_neg_elbo"])
            if pair[0] <= last:
                curves.setdefault(f"{other}, seed {point['seed']}", []).append(pair)
    pictures.validation(
        out / f"published_{name}.png",
        curves,
        {seed: int(best[seed]) if best.get(seed) else None for seed in curves},
        {seen.model: (seen.best, seen.curve) for seen in row.references},
        row.title,
        hardware(facts),
    )


def toy_data(path: Path) -> Path:
    """Writes a few binary images: two crossing bars each, some pixels flipped."""
    draws = np.random.default_rng(0)
    x = np.zeros((300, 8, 8), dtype=np.uint8)
    x[np.arange(300), draws.integers(0, 8, 300)] = 1
    x[np.arange(300), :, draws.integers(0, 8, 300)] = 1
    x ^= draws.random(x.shape) < 0.05
    splits = {"train_x": x[:200], "val_x": x[200:250], "test_x": x[250:]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **splits)
    return path


def toy(row: Row, path: Path) -> Row:
    """A small model of the same kind on toy data, which lie in a file afterwards."""
    flags = {**row.flags, **TOY, "data": str(toy_data(path))}
    if row.flags.get("warmup_epochs") == 0:
        flags["warmup_epochs"] = 0.0
    if "levels" in row.flags:
        flags["levels"] = (1, 2)
    title = f"toy, {row.recipe}"
    return Row(title, row.recipe, flags, None, source="nothing", start=row.start)


def main() -> None:
    """Trains, evaluates, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--minutes", type=float, help="budget of training, all seeds together")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--samples", type=int, help="for each test image: 5000; 0 for the curve alone"
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/published"), help="run folders")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--toy", action="store_true", help="seconds, on toy data")
    parser.add_argument("--redraw", action="store_true", help="picture and table, from the CSVs")
    given = parser.parse_args()
    if given.toy and given.out == RESULTS:
        parser.error("Expected --out with --toy, whose figures are not worth keeping.")
    least = {"minutes": "above 0", "seeds": "of 1 or more", "samples": "of 0 or more"}
    for name, bound in least.items():
        value = getattr(given, name)
        if value is not None and not (value > 0 or (value == 0 and name == "samples")):
            parser.error(f"argument --{name}: expected a number {bound}; got {value}.")
    if given.redraw:
        redraw(given.out, given.row, ROWS[given.row])
        write_text(given.out / "published.md", table(given.out))
        return
    names, samples = lineage(given.row), 5000 if given.samples is None else given.samples
    rows = [ROWS[name] for name in names]
    if given.toy:
        rows = [toy(row, given.out / "toy.npz") for row in rows]
        given.runs, samples = given.out / "runs", min(samples, 20)
    try:
        _run(given, dict(zip(names, rows, strict=True)), samples)
    except (ConfigError, DataError, RunFolderError, Stopped) as error:
        raise SystemExit(str(error)) from error


def _run(given: argparse.Namespace, rows: Mapping[str, Row], samples: int) -> None:
    facts, records, histories = header(), [], {}
    row = rows[given.row]
    left: float | None = given.minutes
    for seed in range(given.seeds):
        # What one seed does not need is left to those after it.
        share = None if left is None else left / (given.seeds - seed)
        hours, run = 0.0, None
        for name, member in rows.items():
            configs = configurations(member, seed, given.data_root)
            data = pv.load_data(configs[0].data.source, root=configs[0].data.root)
            start, run = run, given.runs / f"{name}-{seed}"
            started = time.perf_counter()
            vae, history = trained(configs, data, run, share, start)
            spent = (time.perf_counter() - started) / 60
            left, share = (None if m is None else max(0.0, m - spent) for m in (left, share))
            hours += history.seconds / 3600
            print(f"{run}: {history.epochs} epochs, {WHY[history.stopped]}", flush=True)
            if history.stopped == "time":
                break
        if not history.records:
            print("The time budget ended within the first epoch. The same command goes on.")
            return
        if name != given.row:
            print(f"{given.row} starts from that run, once it has ended. The same command goes on.")
            return
        record = record_of(name, row, seed, history) | {"train_hours": hours}
        # Before the warm-up has ended no weights have been chosen.
        if samples and history.best_epoch is not None:
            record |= evaluated(vae, data, history, run, samples)
        records.append(record)
        histories[seed] = history
        write(given.out, f"published_{name}", records, facts)
        curve(given.out, name, histories, facts)
        redraw(given.out, name, row)
        write_text(given.out / "published.md", table(given.out))
    print(table(given.out))
    if any(history.stopped == "time" for history in histories.values()):
        print("The time budget cut the training: not the final figure. The same command goes on.")


if __name__ == "__main__":
    main()
