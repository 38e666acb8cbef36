"""What is known before a training: ``pyro-vaes train --dry-run``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vaes.data.dataset import DataSet
    from pyro_vaes.runs.schema import RunConfig
    from pyro_vaes.training.loop import Trainer
    from pyro_vaes.vae import VAE

__all__ = ["plan_text", "size_text"]

# The steps that are timed, at most, and the seconds for them after the first.
_STEPS, _SECONDS = 60, 5.0
# From this length on a time is said in minutes or hours.
_MINUTE, _HOUR = 90.0, 5400.0


def plan_text(trainer: Trainer, data: DataSet, config: RunConfig) -> str:
    """What a training would build, its memory and its time, measured on a few steps.

    The steps change the weights of the trainer's VAE. Nothing is written.
    """
    lines = ["", "A rehearsal (--dry-run): nothing is written.", *_parts_lines(trainer)]
    lines += _memory_lines(trainer)
    lines += _time_lines(trainer, data, config)
    return "\n".join(lines)


def _parts_lines(trainer: Trainer) -> Iterator[str]:
    from pyro_vaes.training.validation import arguments

    vae, train = trainer.vae, trainer.train
    own: set[int] = set()
    # A VampPrior holds its posterior: each parameter counts once, for the part that made it.
    for name in ("posterior", "prior", "likelihood"):
        part = getattr(vae, name)
        new = {id(p): p.numel() for p in part.parameters() if id(p) not in own}
        own |= new.keys()
        yield f"  {name:<10} {type(part).__name__}, {sum(new.values()):,} parameters"
    total = sum(p.numel() for p in vae.parameters())
    units = vae.encode(*arguments(vae, train.x[:1], None if train.y is None else train.y[:1]))
    yield f"  in all     {total:,} parameters, {units.shape[-1]} units of z"


def _memory_lines(trainer: Trainer) -> Iterator[str]:
    weights = _bytes(*trainer.vae.parameters())
    # Weights, gradients, two moments, the best weights, and perhaps their average.
    copies = 5 + bool(trainer.options.ema_decay)
    rows = [t for split in (trainer.train, trainer.val) if split for t in (split.x, split.y)]
    held = _bytes(*(t for t in rows if hasattr(t, "element_size")))
    batch = _saved_bytes(trainer)
    total = copies * weights + held + batch
    whole, kept = size_text(total), size_text(copies * weights)
    yield (
        f"  memory     about {whole} without PyTorch itself: {kept} for weights, gradients and the "
        f"optimiser, {size_text(held)} of data, {size_text(batch)} a batch"
    )


def _bytes(*tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _saved_bytes(trainer: Trainer) -> int:
    """The bytes that one batch keeps for its gradients."""
    import pyro
    import torch

    from pyro_vaes.data.splits import batches
    from pyro_vaes.training.validation import arguments

    vae, size = trainer.vae, min(trainer.options.batch_size, len(trainer.train))
    weights = {p.untyped_storage().data_ptr() for p in vae.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = next(batches(trainer.train, size, torch.Generator()))
    with (
        torch.random.fork_rng(),
        pyro.get_param_store().scope(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        trainer.objective.loss_and_grads(vae.model, vae.guide, *arguments(vae, *batch))
    vae.zero_grad()
    return sum(size for place, size in kept.items() if place not in weights)


def _time_lines(trainer: Trainer, data: DataSet, config: RunConfig) -> Iterator[str]:
    from pyro_vaes.runs.run import threads

    epochs, patience = config.training.epochs, config.training.patience
    steps, compiles = trainer.steps_per_epoch, _compiles(trainer)
    with threads(config, data.event_shape):
        history, each = _timed(trainer)
        validation = _validation_seconds(trainer)
    epoch = steps * each + validation
    mode = history.mode + ", compiled ones may be faster" * compiles
    yield (
        f"  an epoch   about {_duration(epoch)}: {steps} steps of {_duration(each)} and "
        f"{_duration(validation)} of validation, measured on {history.device}; steps are {mode}"
    )
    sooner = f"; --patience {patience} may end it earlier" * (epochs > patience)
    yield f"  training   at most {_duration(epochs * epoch)}, {epochs} epochs{sooner}"


def _compiles(trainer: Trainer) -> bool:
    """Whether the run would compile its steps, which takes longer than a rehearsal."""
    from pyro_vaes.training.options import COMPILE_FROM_STEPS

    options = trainer.options
    long = options.epochs * trainer.steps_per_epoch >= COMPILE_FROM_STEPS
    compiled = options.mode == "compiled" or (options.mode == "auto" and long)
    return compiled and trainer.device.type == "cpu"


def _timed(trainer: Trainer) -> tuple[Any, float]:
    """Takes some steps; returns their history and the median seconds of one."""
    import statistics

    times: list[float] = []

    def enough(record: Any, vae: VAE) -> bool:
        float(record["train_loss"])  # waits for a GPU
        times.append(time.perf_counter())
        return len(times) > 1 and (len(times) >= _STEPS or times[-1] - times[1] > _SECONDS)

    if _compiles(trainer):
        trainer.options = dataclasses.replace(trainer.options, mode="traced")
    started = time.perf_counter()
    history = trainer.run(None, progress=False, on_step=enough)
    gaps = [b - a for a, b in zip([started, *times], times, strict=False)]
    return history, statistics.median(gaps[1:] or gaps)


def _validation_seconds(trainer: Trainer) -> float:
    from pyro_vaes.training.validation import validate

    if trainer.val is None:
        return 0.0
    started = time.perf_counter()
    validate(trainer.vae, trainer.objective, trainer.val, trainer.options.seed, trainer.processes)
    return time.perf_counter() - started


def size_text(count: float) -> str:
    """A number of bytes in a unit that suits it."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < _MINUTE:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < _HOUR else f"{seconds / 3600:.3g} h"
