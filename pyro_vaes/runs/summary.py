"""The report of a finished run: printed figures and ``summary.json``."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vaes._version import __version__
from pyro_vaes.classical.comparison import compared, comparison_lines, with_error
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.data.rows import taken
from pyro_vaes.data.splits import Split
from pyro_vaes.evaluation.evaluator import evaluate
from pyro_vaes.evaluation.reliability import is_trusted
from pyro_vaes.evaluation.results import Evaluation, bound_lines, level_lines
from pyro_vaes.parts.chains import ChainPrior
from pyro_vaes.parts.priors import VampPrior
from pyro_vaes.runs.schema import RunConfig
from pyro_vaes.storage.files import RunFolderError, read_json, write_text
from pyro_vaes.storage.weights import load
from pyro_vaes.training.distributed import join_processes
from pyro_vaes.training.history import History
from pyro_vaes.vae import VAE

__all__ = [
    "VERSIONS",
    "finished",
    "moved",
    "report_text",
    "rows_said",
    "rows_within",
    "summarise",
    "versions",
]

_SUMMARY = "summary.json"
#: Names of the versions recorded with each run.
VERSIONS = ("pyro_vaes", "torch", "pyro", "python")
# Rows that are evaluated first, to see how many fit into a time limit.
_FIRST = 32
_FIGURES = ("nll", "elbo", "reconstruction", "kl")
_RUN = ("epochs", "train_seconds", "stopped", "mode", "device", "best_epoch", "num_samples")
_ALSO = ("nll_bpd", "nll_bpd_se", "elbo_bpd", "elbo_bpd_se", "encoder_nll", "encoder_nll_se")
_OPTIONAL = ("best_epoch", "processes", "precision_shift", *_ALSO)
_REPORTED = {*_RUN, *(f"{key}{end}" for key in _FIGURES for end in ("", "_se"))}


def finished(
    out: Path, history: History, samples: int | None = None, proposal: str | None = None
) -> dict[str, Any] | None:
    """The summary of a run that had already ended, which stays as it is; None without one.

    Args:
        out: the run folder.
        history: of its training.
        samples: draws that its figures must be made of; None for any number.
        proposal: that they must be asked of; None for any, as in files that do not say.
    """
    summary = read_json(out / _SUMMARY)
    if not _is_summary(summary) or summary["epochs"] != history.epochs:
        return None
    made = summary["num_samples"], summary.get("asked_proposal", proposal)
    asked = samples or made[0], proposal or made[1]
    return summary if made == asked else None


def _is_summary(summary: Any) -> bool:
    """Whether a value is a summary of :func:`summarise`: a file may hold anything."""
    if not isinstance(summary, dict) or not summary.keys() >= _REPORTED:
        return False
    words = {"stopped", "mode", "device"}
    may_lack = {*_OPTIONAL, *(name for name in _REPORTED if name not in _RUN)}
    return all(
        isinstance(value, str)
        if name in words
        else (value is None and name in may_lack) or _is_number(value)
        for name, value in summary.items()
        if name in {*_REPORTED, *_OPTIONAL}
    )


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def summarise(
    vae: VAE,
    data: DataSet,
    config: RunConfig,
    history: History,
    out: Path,
    samples: int,
    proposal: str = "auto",
    minutes: float | None = None,
) -> dict[str, Any]:
    """Draws the figures of a finished run, evaluates it, and writes ``summary.json``."""
    from pyro_vaes import plotting

    figures = {
        "learning_curves": plotting.learning_curves(history.records, history.best_epoch),
        "latent_space": plotting.latent_space(vae, data.test),
    }
    if data.image_shape is not None:
        torch.manual_seed(config.training.seed)
        labels = None
        if vae.conditional:
            there = torch.tensor(data.labels)
            if data.train.y is not None and vae.conditions is not None:
                there = data.train.y[:10]  # Conditions of some rows, ten draws each.
            labels = there[torch.arange(100) // 10 % len(there)]
        figures["samples"] = plotting.image_grid(
            vae.sample(100, labels), data.image_shape, columns=10
        )
        figures["reconstructions"] = plotting.reconstructions(vae, data.test, data.image_shape)
    for name, figure in figures.items():
        plotting.save_figure(figure, out / "figures" / f"{name}.png")
    options: dict[str, Any] = {
        "num_samples": samples,
        "seed": config.training.seed,
        "proposal": proposal,
    }
    rows = rows_within(minutes, vae, data.test, **options)
    result = evaluate(vae, rows, **options)
    summary = {
        **result.to_dict(),
        "split": "test",
        "asked_proposal": proposal,
        "num_rows": len(data.test),
        **(compared(data, rows, result, vae.likelihood) if _compares(config) else {}),
        **_before(config, rows, result, **options),
        "pseudo_inputs_moved": moved(vae, data),
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "stopped": history.stopped,
        "mode": history.mode,
        "precision_shift": history.precision_shift,
        "device": history.device,
        "processes": join_processes().size,
        "train_seconds": round(history.seconds, 3),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "versions": versions(),
    }
    write_text(out / _SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def rows_within(minutes: float | None, vae: VAE, split: Split, **options: Any) -> Split:
    """The rows whose evaluation takes about the given time: all, or some at random.

    First a few are evaluated, whose figures are thrown away, then four times as many, until the
    time for each row is known well enough: together at most a fifth of the limit.

    Args:
        minutes: the limit; None for none.
        vae: the model.
        split: the rows.
        **options: of :func:`.evaluate`.
    """
    if minutes is None:
        return split
    split, end, size = split.frozen(), time.monotonic() + 60 * minutes, _FIRST
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    while size < len(split):
        began = time.monotonic()
        evaluate(vae, _part(split, order[:size]), **options)
        each = (time.monotonic() - began) / size
        fitting = int((end - time.monotonic()) / each)
        if fitting < 32 * size:  # The next would take more than an eighth of the time.
            fitting = max(fitting, _FIRST)
            return split if fitting >= len(split) else _part(split, order[:fitting])
        size *= 4
    return split


def _part(split: Split, rows: Tensor) -> Split:
    """Some rows of a split, in their order there."""
    rows = rows.sort().values
    y = None if split.y is None else split.y[rows]
    weights = None if split.weights is None else split.weights[rows]
    return dataclasses.replace(split, x=taken(split.x, rows), y=y, weights=weights)


def rows_said(count: int, total: int) -> str:
    """That a time limit left out some of the rows; empty if it did not."""
    return "" if count == total else f"; of {total:,} rows at random {count:,}, for want of time"


def _compares(config: RunConfig) -> bool:
    """Whether a run is compared with a classical density: where it starts at one."""
    return config.training.start != "random"


def _before(config: RunConfig, rows: Split, result: Evaluation, **options: Any) -> dict[str, Any]:
    """Figures of the run whose prior was refitted, on the same rows; none where none was."""
    if {*config.training.frozen} != {"posterior", "likelihood"}:
        return {}
    names = ("before_nll", "before_nll_se", "before_num_unreliable", "gain", "gain_se")
    try:
        source = load(Path(config.training.init).expanduser())
    except RunFolderError as error:
        return {**dict.fromkeys(names), "before_reason": str(error)}
    device = None if result.log_marginal is None else result.log_marginal.device
    before = evaluate(source.to(device), rows, diagnostics=False, **options)
    if before.log_marginal is None or result.log_marginal is None:
        return {**dict.fromkeys(names), "before_reason": "log p(x) of the rows is not known"}
    gain = (result.log_marginal - before.log_marginal).double()
    spread = (gain.std() / math.sqrt(len(gain))).item() if len(gain) > 1 else None
    values = (before.nll, before.nll_se, before.num_unreliable, gain.mean().item(), spread)
    return {**dict(zip(names, values, strict=True)), "before": config.training.init}


def _before_lines(summary: Mapping[str, Any]) -> list[str]:
    """What another prior changed, in words; no lines if it is no refitted one."""
    if "before_reason" in summary:
        return [f"before, with the prior of --init: not known: {summary['before_reason']}"]
    if "before" not in summary:
        return []
    share = summary["before_num_unreliable"]
    known = "unknown" if share is None else f"too high for {share} of {summary['num_data']}"
    return [
        f"before, with the prior of {summary['before']}: -log p(x) "
        f"{with_error(summary, 'before_nll')} (k-hat {known})",
        f"  log p(x) is now above that by {with_error(summary, 'gain', '+')} (paired)",
    ]


def moved(vae: VAE, data: DataSet) -> float | None:
    """The median distance that pseudo-inputs moved; None without them or their start."""
    top = vae.prior.top if isinstance(vae.prior, ChainPrior) else vae.prior
    distances = top.moved(data.train.x) if isinstance(top, VampPrior) else None
    return None if distances is None else distances.median().item()


def versions() -> dict[str, str]:
    """The versions in use, by the names in :data:`VERSIONS`."""
    import pyro

    found = __version__, torch.__version__, pyro.__version__, platform.python_version()
    return dict(zip(VERSIONS, map(str, found), strict=True))


def _reason(summary: Mapping[str, Any], name: str) -> str:
    return str(summary.get(f"{name}_reason", "not recorded"))


def _kept(epoch: int | None) -> str:
    return "the weights it started from" if epoch == 0 else f"epoch {epoch}"


def report_text(summary: Mapping[str, Any], out: Path) -> str:
    """The lines printed after training: how it ended, test figures and run folder."""
    why = {"patience": "no better validation", "epochs": "all epochs done"}
    processes = summary.get("processes", 1)
    shared = f", {processes} processes" if processes > 1 else ""
    lines = [
        f"\nTrained {summary['epochs']} epochs in {summary['train_seconds']:.1f} s "
        f"({why.get(summary['stopped'], summary['stopped'])}; {summary['mode']} steps on "
        f"{summary['device']}{shared}); kept {_kept(summary['best_epoch'])}."
    ]
    if summary.get("precision_shift") is not None:
        lines.append(
            "In the precision of training the validation ELBO is "
            f"{summary['precision_shift']:+.3f} nats off that in float32."
        )
    part = rows_said(
        summary.get("num_data", 0), summary.get("num_rows", summary.get("num_data", 0))
    )
    lines.append(f"\nTest figures, nats per datum ({summary['num_samples']} samples each{part})")
    lines += [f"  {line}" for line in bound_lines(summary, lambda name: _reason(summary, name))]
    lines += [f"  {line}" for line in level_lines(summary)]
    lines += [f"  {line}" for line in [*_before_lines(summary), *comparison_lines(summary)]]
    # A run from before k-hat was recorded stays as it is.
    if "share_unreliable" in summary and is_trusted(summary) is False:
        remedy = "--samples 5000 or --proposal annealed"
        lines.append(
            f"    For a better figure: pyro-vaes evaluate {shlex.quote(str(out))} with {remedy}"
        )
    if summary.get("pseudo_inputs_moved") is not None:
        lines.append(
            f"  The median pseudo-input moved {summary['pseudo_inputs_moved']:.2f} standard "
            "deviations (of each element of the data)."
        )
    lines.append(f"\nRun folder: {out}")
    return "\n".join(lines)
