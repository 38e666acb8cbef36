"""Trains a model from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from pyro_vaes.core.choices import Mode
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.runs.build import build_objective
from pyro_vaes.runs.schema import MAY_DIFFER, RunConfig, digest, to_yaml
from pyro_vaes.training.history import History
from pyro_vaes.training.trainer import fit
from pyro_vaes.vae import VAE

__all__ = ["record_of", "train"]

# Numbers in a datum for which one thread is as fast as two (measured on the digits).
_SMALL = 256
# What --augment 1 means, for images from 8x8 up.
_MOVES = {"max_shift": 0.5, "max_rotate": 8.0, "max_scale": 0.05, "max_shear": 0.05}


def train(
    vae: VAE,
    data: DataSet,
    config: RunConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    progress: bool = True,
) -> History:
    """Trains a VAE as a configuration says.

    Args:
        vae: what :func:`build` built.
        data: the data set.
        config: the options.
        out: the run folder, if one is wanted.
        resume: see :func:`~pyro_vaes.training.trainer.fit`.
        minutes: see :func:`~pyro_vaes.training.trainer.fit`.
        progress: show a progress bar.

    Returns:
        The history.
    """
    training, objective = config.training, config.objective
    record = record_of(config, data)
    strength = config.data.augment
    if strength and data.image_shape is not None:
        data = data.augmented(**{name: strength * move for name, move in _MOVES.items()})
    with _threads(config, data):
        return fit(
            vae,
            data.train,
            data.val,
            epochs=training.epochs,
            objective=build_objective(config),
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            optimizer=training.optimizer,
            weight_decay=training.weight_decay,
            schedule=training.schedule,
            clip_norm=training.clip_norm or None,
            warmup_epochs=objective.warmup_epochs,
            warmup_steps=objective.warmup_steps,
            patience=training.patience,
            ema_decay=training.ema_decay,
            seed=training.seed,
            device=training.device,
            mode=cast(Mode, training.mode),
            precision=training.precision,
            out=out,
            resume=resume,
            minutes=minutes,
            record=record,
            progress=progress,
        )


def record_of(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """What a run folder keeps beside the weights: their options, and the data they are for."""
    return {
        "config": to_yaml(config),
        "digest": digest(config, MAY_DIFFER),
        "data": {
            "event_shape": list(data.event_shape),
            "image_shape": data.image_shape and list(data.image_shape),
            "num_labels": data.num_labels if config.data.conditional else None,
            "labels": list(data.labels) if config.data.conditional else None,
            "label_names": data.label_names and list(data.label_names),
            "kind": data.kind,
            "columns": data.columns and list(data.columns.names),
            "label_column": data.columns and data.columns.label,
            "digest": data.digest,
        },
    }


@contextmanager
def _threads(config: RunConfig, data: DataSet) -> Iterator[None]:
    """Trains small data on one thread.

    More gain nothing there, and on a busy machine they wait for each other most of the time.
    """
    before = torch.get_num_threads()
    small = math.prod(data.event_shape) <= _SMALL
    torch.set_num_threads(config.training.threads or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
