"""What is known before a training: ``pyro-vaes train --dry-run``, and ``pyro-vaes doctor``."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pyro_vaes.cli.flags import Real
from pyro_vaes.core.errors import RunError

if TYPE_CHECKING:
    from pyro_vaes.data.dataset import DataSet
    from pyro_vaes.runs.schema import RunConfig
    from pyro_vaes.training.loop import Trainer
    from pyro_vaes.vae import VAE

__all__ = ["doctor_command", "plan_text"]

# The steps that are timed, at most, and the seconds for them after the first.
_STEPS, _SECONDS = 60, 5.0
# What else can be installed: module, distribution, and what it is for.
_EXTRAS = (
    ("bokeh", "bokeh", "pyro-vaes explore"),
    ("ray", "ray", "--engine ray"),
    ("tensorboard", "tensorboard", "curves of training in TensorBoard"),
    ("pyarrow", "pyarrow", ".parquet files"),
    ("anndata", "anndata", ".h5ad files"),
)
_TEX = ("tectonic", "xelatex", "lualatex", "pdflatex")
# From this length on a time is said in minutes or hours.
_MINUTE, _HOUR = 90.0, 5400.0


# --- a plan ---------------------------------------------------------------------------------------


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
    yield (
        f"  memory     about {_size(total)} without PyTorch itself: {_size(copies * weights)} for "
        f"weights, gradients and the optimiser, {_size(held)} of data, {_size(batch)} a batch"
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


def _size(count: float) -> str:
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


# --- doctor ---------------------------------------------------------------------------------------


@click.command("doctor")
@click.option(
    "--seconds",
    type=Real(min=0, min_open=True, max=600),
    default=10.0,
    show_default=True,
    help="How long to train for a check.",
)
def doctor_command(seconds: float) -> None:
    """Checks this installation: versions, compiler, devices, a short training, what is missing.

    Writes nothing. Exit status 1 if training does not work.
    """
    if math.isnan(seconds):
        raise click.BadParameter("expected a number above 0; got nan.", param_hint="'--seconds'")
    for line in (*_versions(), *_compiler(), *_devices(), *_optional()):
        click.echo(line)
    click.echo(_training(seconds))


def _versions() -> Iterator[str]:
    import platform

    from pyro_vaes.runs.summary import versions

    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    yield f"Versions: {found}; {platform.platform(terse=True)}"


def _compiler() -> Iterator[str]:
    from pyro_vaes.inference.recording import compiler

    found = compiler()
    yield (
        f"Compiler: {found}"
        if found
        else (
            "Compiler: none, so that long trainings take traced steps, not compiled ones. To get "
            "one: apt install g++, or conda install cxx-compiler"
        )
    )


def _devices() -> Iterator[str]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"CPU: {cores} cores, {torch.get_num_threads()} threads of torch"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        found = torch.cuda.get_device_properties(index)
        yield f"GPU: {found.name}, {_size(found.total_memory)} (--device cuda:{index})"
    if not count:
        mps = torch.backends.mps.is_available()
        built = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        yield "GPU: mps (--device mps)" if mps else f"GPU: none that PyTorch can use{built}"


def _optional() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    for module, name, purpose in _EXTRAS:
        if importlib.util.find_spec(module) is None:
            yield f"Missing: {name}, for {purpose}. To get it: pip install {name}"
            continue
        try:
            yield f"Found: {name} {version(name)}, for {purpose}"
        except PackageNotFoundError:
            yield f"Found: {name}, for {purpose}"
    tex = next(filter(shutil.which, _TEX), None)
    yield (
        f"Found: {tex}, for report.pdf"
        if tex
        else (
            "Missing: a TeX engine, for report.pdf. To get one: apt install texlive-xetex, or "
            "conda install tectonic"
        )
    )


def _training(seconds: float) -> str:
    """Trains on the digits for a while, and reports how it went.

    Raises:
        RunError: if the model did not get better.
    """
    import torch

    from pyro_vaes.runs.build import build, data_of
    from pyro_vaes.runs.resolve import resolve
    from pyro_vaes.runs.run import train

    # Few enough steps that none is compiled, which would take longer than the rest.
    config, _ = resolve(None, None, {"epochs": 1000, "patience": 1000})
    data = data_of(config)
    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        vae, _ = build(config, data)
        history = train(vae, data, config, minutes=seconds / 60, progress=False)
    first, last = (history.records[i]["val_elbo"] for i in (0, -1))
    what = (
        f"{history.epochs} epochs of the digits in {history.seconds:.1f} s on {history.device}, "
        f"{history.mode} steps; validation ELBO from {first:.1f} to {last:.1f} nats"
    )
    if history.epochs > 1 and not last > first:
        raise RunError(f"Training does not work here: {what}.")
    return f"Training: {what}"
