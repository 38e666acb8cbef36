"""The state of an installation: ``pyro-vaes doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import click

from pyro_vaes.cli.flags import Real
from pyro_vaes.cli.rehearsal import size_text
from pyro_vaes.core.errors import RunError

__all__ = ["doctor_command"]


# What else can be installed: module, distribution, and what it is for.
_EXTRAS = (
    ("bokeh", "bokeh", "pyro-vaes explore"),
    ("ray", "ray", "--engine ray"),
    ("tensorboard", "tensorboard", "curves of training in TensorBoard"),
    ("pyarrow", "pyarrow", ".parquet files"),
    ("anndata", "anndata", ".h5ad files"),
)
_TEX = ("tectonic", "xelatex", "lualatex", "pdflatex")


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
    for line in (*_versions(), *_compiler(), *_devices(), *_optional()):
        click.echo(line)
    click.echo(_training(seconds))


def _versions() -> Iterator[str]:

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
        yield f"GPU: {found.name}, {size_text(found.total_memory)} (--device cuda:{index})"
    if not count:
        mps = torch.backends.mps.is_available()
        built = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        yield "GPU: mps (--device mps)" if mps else f"GPU: none that PyTorch can use{built}"


def _optional() -> Iterator[str]:

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
