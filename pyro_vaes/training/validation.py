"""What training watches: its history, its validation figures, and losses that are not finite."""

from __future__ import annotations

from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vaes.data.splits import Split, batches
from pyro_vaes.inference.elbo import ELBO, bound_terms
from pyro_vaes.training.distributed import ALONE, Processes
from pyro_vaes.vae import VAE, untouched

__all__ = ["arguments", "check_batches", "first_not_finite", "validate"]


# Rows scored at once in validation, particles counted.
_ROWS = 4096


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
