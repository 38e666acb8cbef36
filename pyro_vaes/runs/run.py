"""Trains a model from its configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.runs.build import build_objective, frozen_tensors
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import MAY_DIFFER, RunConfig, digest, to_yaml
from pyro_vaes.training.history import History
from pyro_vaes.training.loop import Trainer
from pyro_vaes.training.options import FitOptions, OptionError, on_threads
from pyro_vaes.vae import VAE

__all__ = ["busy", "fit_options", "record_of", "threads", "train", "trainer_of"]

# Numbers in a datum for which one thread is as fast as two (measured on the digits).
_SMALL = 256
# The moves of --augment 1, for images of at least 8x8 pixels.
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
        vae: see :func:`~pyro_vaes.runs.build.build`.
        data: the data set.
        config: the options.
        out: the run folder, if one is wanted.
        resume: see :func:`~pyro_vaes.training.trainer.fit`.
        minutes: see :func:`~pyro_vaes.training.trainer.fit`.
        progress: show a progress bar.

    Returns:
        The history.
    """
    trainer = trainer_of(vae, data, config)
    with trainer.alone(out), threads(config, data.event_shape):
        return trainer.run(out, resume=resume, minutes=minutes, progress=progress)


def trainer_of(vae: VAE, data: DataSet, config: RunConfig) -> Trainer:
    """The training that a configuration describes, checked; its ``run`` trains and writes.

    Raises:
        ConfigError: for options that do not fit the data or the processes.
    """
    record, strength = record_of(config, data), config.data.augment
    for name in config.training.frozen:
        for tensor in frozen_tensors(vae, name).values():
            tensor.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in vae.parameters()):
        raise ConfigError(
            "Invalid value for '--freeze': expected a part left that learns; got "
            f"{config.training.freeze} with --prior {config.parts.prior}, which learns nothing."
        )
    if strength and data.image_shape is not None:
        data = data.augmented(**{name: strength * move for name, move in _MOVES.items()})
    try:
        return Trainer(
            vae,
            data.train,
            data.val,
            build_objective(config),
            fit_options(config),
            record,
            keep_start=config.training.start != "random",
        )
    except OptionError as error:
        flag = error.option.replace("_", "-")
        raise ConfigError(f"Invalid value for '--{flag}': {error}") from error


def fit_options(config: RunConfig) -> FitOptions:
    """The options of :func:`pyro_vaes.fit`, under the same names as here."""
    values = {**vars(config.objective), **vars(config.training)}
    return FitOptions.of({**values, "clip_norm": config.training.clip_norm or None})


def record_of(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """Facts saved with the weights: the options, and the data they are for."""
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
            "codec": data.codec and data.codec.plain(),
            "conditions": data.conditions and data.conditions.plain(),
            "digest": data.digest,
        },
    }


@contextmanager
def threads(config: RunConfig, event_shape: Sequence[int]) -> Iterator[None]:
    """Uses one thread for small data.

    More threads gain nothing there, and on a busy machine they mostly wait for each other.
    """
    with on_threads(_threads(config, event_shape)):
        yield


def _threads(config: RunConfig, event_shape: Sequence[int]) -> int:
    small = math.prod(event_shape) <= _SMALL
    return config.training.threads or (1 if small else torch.get_num_threads())


def busy(config: RunConfig, event_shape: Sequence[int]) -> list[str]:
    """A remark if more threads are to train than other work leaves cores for."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    free = max(1, cores - round(load))
    chosen = config.training.threads or config.training.device not in ("auto", "cpu")
    if chosen or torch.cuda.is_available() or _threads(config, event_shape) <= free:
        return []
    return [
        f"The machine does other work (load {load:.1f} on {cores} cores), during which the threads "
        f"of a training wait for each other: --threads {free} may be faster."
    ]
