"""What training watches: its history, its validation figures, and losses that are not finite."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vaes.data import Split, batches
from pyro_vaes.distributed import ALONE, Processes
from pyro_vaes.evaluation import untouched
from pyro_vaes.objectives import ELBO, bound_terms
from pyro_vaes.vae import VAE

__all__ = [
    "History",
    "NonFiniteError",
    "arguments",
    "check_batches",
    "first_not_finite",
    "validate",
]

# Rows scored at once in validation, particles counted.
_ROWS = 4096


class NonFiniteError(RuntimeError):
    """Training met a loss that is not finite; the message names the site."""


@dataclasses.dataclass
class History:
    """What happened in training.

    Attributes:
        records: one dictionary an epoch: ``epoch``, ``train_loss`` (the objective, nats per datum),
            ``val_loss`` (the objective at its full weights), ``val_elbo``, ``val_reconstruction``
            and ``val_kl`` (at beta = 1 and without free bits), ``kl_weight``, ``learning_rate``,
            ``seconds``.
        best_epoch: the epoch whose weights were kept; None without validation data.
        best_val_loss: its ``val_loss``.
        stopped: why training ended: ``epochs``, ``patience``, ``time`` or
            ``interrupted``.
        mode: how steps were run, see :class:`~pyro_vaes.inference.FastSVI`.
        device: where they were run.
        threads: on how many threads of the processor, the last time.
        precision_shift: what the precision of training does to the bound: the validation ELBO in it
            minus that in float32, nats per datum, same weights and noise; None for float32.
    """

    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best_epoch: int | None = None
    best_val_loss: float = math.inf
    stopped: str = ""
    mode: str = ""
    device: str = ""
    threads: int = 0
    precision_shift: float | None = None

    @property
    def epochs(self) -> int:
        """Epochs trained, those before a resumption included."""
        return len(self.records)

    @property
    def seconds(self) -> float:
        """Seconds spent in epochs, validation included."""
        return sum(record["seconds"] for record in self.records)


def arguments(vae: VAE, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    """What model and guide are called with: labels only where a part takes them."""
    return (x, y) if y is not None and vae.conditional else (x,)


def validate(
    vae: VAE, objective: Any, val: Split, seed: int, processes: Processes = ALONE
) -> dict[str, float]:
    """The validation figures, from the same noise at each call, so that epochs compare.

    Args:
        vae: the model.
        objective: what is minimised; judged at its full weights, whatever its warm-up.
        val: validation data.
        seed: seed of the noise.
        processes: those that share the rows, and all get the figures of the whole.

    Returns:
        ``val_loss`` (the objective) and ``val_elbo``, ``val_reconstruction`` and ``val_kl`` (at
        beta = 1), in nats per datum.
    """
    ours = isinstance(objective, ELBO)
    estimator = objective if ours else ELBO()
    model, guide = processes.sharing(vae.model, vae.guide)
    log_likelihood = kl = loss = 0.0
    with untouched(vae):
        torch.manual_seed(seed)
        for x, y in batches(val, _rows(objective, len(val))):
            batch = processes.part(arguments(vae, x, y))
            weight = processes.weight
            traces = estimator._get_trace(model, guide, batch, {})
            terms = bound_terms(*traces)
            log_likelihood += weight * float(terms.log_likelihood)
            kl += weight * float(terms.kl)
            if ours:
                with objective.full_weights():
                    loss += weight * float(objective.trace_loss(*traces))
            else:
                loss += weight * objective.loss(model, guide, *batch)
    log_likelihood, kl, loss = processes.figures(log_likelihood, kl, loss)
    n = len(val)
    return {
        "val_loss": loss / n,
        "val_elbo": (log_likelihood - kl) / n,
        "val_reconstruction": log_likelihood / n,
        "val_kl": kl / n,
    }


def _rows(objective: Any, n: int) -> int:
    """Rows to score at once: bounded with their particles, no row left for a batch of its own."""
    rows = max(2, _ROWS // getattr(objective, "num_particles", 1))
    while n % rows == 1 < n:
        rows += 1
    return rows


def check_batches(objective: Any, split: Split, batch_size: int | None = None) -> None:
    """Refuses data that would leave fewer in a batch than the objective can be estimated from.

    Args:
        objective: what is minimised.
        split: training or validation data.
        batch_size: of training; None for validation, which chooses its own.

    Raises:
        ValueError: naming the batch.
    """
    least = getattr(objective, "min_data", 1)
    last = len(split) if batch_size is None else len(split) % batch_size or batch_size
    if last < least:
        of = "of validation data" if batch_size is None else f"at batch_size={batch_size}"
        raise ValueError(
            f"Expected at least {least} data in a batch for {type(objective.divergence).__name__}; "
            f"got {last} in the last one of {len(split)} {of}."
        )


def first_not_finite(vae: VAE, batch: tuple[Tensor, ...]) -> str:
    """Finds the first site with a value or log density that is not finite."""
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = poutine.trace(vae.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(*batch)
        for side, trace in (("guide", guide), ("model", model)):
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                    continue
                for what in ("value", "log_prob"):
                    if not torch.isfinite(cast(Tensor, site[what])).all():
                        return f"the {what} of site {name!r} in the {side} is not finite"
    return "the loss is not finite"


def metrics_line(record: Mapping[str, Any]) -> str:
    """One line of ``metrics.jsonl``."""
    return json.dumps(record, sort_keys=True) + "\n"


def tensorboard(out: Path | None) -> Any:
    """A TensorBoard writer for a run folder; None without a folder or without TensorBoard."""
    if out is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
