"""The command line: ``pyro-vaes train``, ``evaluate`` and ``sample``."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from pyro_vaes._version import __version__
from pyro_vaes.allocator import keep_freed_memory
from pyro_vaes.assemble import build, device_of_flag, train
from pyro_vaes.catalogue import catalogue
from pyro_vaes.checkpoints import load, load_record
from pyro_vaes.config import (
    CONFIG,
    DEVICES,
    GREY_IMAGES,
    ConfigError,
    RunConfig,
    read_config,
    to_yaml,
)
from pyro_vaes.data import DataError, DataSet, load_data
from pyro_vaes.distributed import PeerError, join, silent
from pyro_vaes.evaluation import evaluate
from pyro_vaes.folders import RunFolderError, contents, locked, write_bytes, write_text
from pyro_vaes.monitoring import History, NonFiniteError
from pyro_vaes.options import ConfigCommand, given
from pyro_vaes.recipes import (
    DEFAULT_RECIPE,
    RECIPES,
    check,
    check_resume,
    from_yaml,
    options,
    resolve,
)
from pyro_vaes.report_command import report_command
from pyro_vaes.run_state import read_checkpoint
from pyro_vaes.study_commands import reproduce, study_command
from pyro_vaes.vae import VAE

__all__ = ["main"]

_SUMMARY = "summary.json"
# Figures of the test rows that the command prints, each with its sign.
_FIGURES = (
    ("-log p(x), importance weighted", "nll", 1),
    ("-ELBO", "elbo", -1),
    ("  reconstruction -E[log p(x|z)]", "reconstruction", -1),
    ("  KL(q(z|x) || p(z))", "kl", 1),
)
_RUN = ("epochs", "train_seconds", "stopped", "mode", "device", "best_epoch", "num_samples")
_CUT = {"interrupted": "the user", "time": "--minutes"}
_REPORTED = {*_RUN, *(f"{key}{end}" for _, key, _ in _FIGURES for end in ("", "_se"))}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyro-vaes")
def cli() -> None:
    """Trains, evaluates and samples variational autoencoders on Pyro."""


# --- train ----------------------------------------------------------------------------------------


_train_options: list[click.Parameter] = [
    click.Option(
        ["--config", "file"],
        type=click.Path(path_type=Path),
        help="A YAML file of options; flags override it.",
    ),
    click.Option(
        ["--recipe"],
        help=f"A named set of defaults: {', '.join(RECIPES)}.  [default: {DEFAULT_RECIPE}]",
    ),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path),
        help="The run folder.  [default: runs/, and in it a folder named by the time]",
    ),
    click.Option(["--resume"], is_flag=True, help="Go on with the run in --out."),
    click.Option(
        ["--minutes"],
        type=click.FloatRange(min=0, min_open=True),
        help="Stop after the epoch in which so many minutes of training have passed; --resume "
        "goes on.",
    ),
    *options(),
]


def _train(
    file: Path | None,
    recipe: str | None,
    out: Path | None,
    resume: bool,
    minutes: float | None,
    **_flags: Any,
) -> None:
    """Trains a VAE and writes a run folder.

    With no option at all, trains on the embedded digits and prints test figures. Under torchrun,
    its processes share each batch.
    """
    processes = join()
    if minutes is not None and math.isnan(minutes):
        raise ConfigError("Invalid value for '--minutes': expected a number above 0; got nan.")
    if out is None:
        if resume:
            raise ConfigError("Invalid value for '--resume': expected --out with the run's folder.")
        out = Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    out = Path(processes.agree(str(out)))
    with processes.together():
        started = _started(out, resume)
        file_values = None if file is None else from_yaml(_read(file), str(file))
        flags = given(click.get_current_context())
        config, explicit = resolve(recipe, file_values, flags, started)
        config, remarks = check(config, explicit)
        if started is not None:
            check_resume(config, started)
            read_checkpoint(out)  # Refused here or not at all.
    with processes.together():
        data = processes.in_turn(lambda: _data(config, "Invalid value for '--data'"))
        steps = math.ceil(len(data.train) / config.training.batch_size)
        config, more = check(config, explicit, steps)
        torch.manual_seed(config.training.seed)
        vae, choices = build(config, data)
    if processes.rank:
        train(vae, data, config, out=out, resume=True, minutes=minutes)
        return
    for remark in dict.fromkeys((data.describe(), *remarks, *more, *choices)):
        click.echo(remark)
    # All that can be refused has been: from here on the folder is written.
    with locked(out):
        if _started(out, resume) != started:
            raise RunFolderError(f"Expected {out} as it was just now; another process wrote there.")
        if started != config:
            write_text(out / CONFIG, to_yaml(config))
        history = train(vae, data, config, out=out, resume=True, minutes=minutes)
        if history.stopped in _CUT:
            # The test rows are for what training ends with.
            epochs = f"{history.epochs} epoch{'s' * (history.epochs != 1)}"
            click.echo(f"Stopped by {_CUT[history.stopped]} after {epochs}.")
            click.echo(f"To go on: pyro-vaes train --resume --out {out}")
            return
        summary = _finished(out, history)
        if summary is None:
            summary = _summarise(vae, data, config, history, out)
    _report(summary, out)


cli.add_command(ConfigCommand("train", callback=_train, params=_train_options, help=_train.__doc__))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Invalid value for '--config': expected a readable YAML file; got {str(path)!r}."
        ) from error


def _started(out: Path, resume: bool) -> RunConfig | None:
    """The options of the run in a folder that is to be gone on with; None for a new run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"Invalid value for '--out': expected a folder; got the file {out}.")
    if not contents(out):
        return None
    if not resume:
        raise ConfigError(
            f"Invalid value for '--out': expected a new or empty folder; got {out}, which holds "
            "another run (--resume goes on with it)."
        )
    return read_config(out)


def _data(config: RunConfig, complaint: str) -> DataSet:
    source = config.data.source
    binarization: Any = config.data.binarization
    told = binarization != "auto" and source in GREY_IMAGES
    try:
        return load_data(source, root=config.data.root, binarization=binarization if told else None)
    except DataError as error:
        reason = str(error).removeprefix(f"{Path(source).expanduser()}: ")
        raise DataError(f"{complaint} ({source}): {reason}") from error


def _finished(out: Path, history: History) -> dict[str, Any] | None:
    """The summary of a run that had already ended, and so must stay as it is."""
    try:
        summary = json.loads((out / _SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(summary, dict) and summary.keys() >= _REPORTED
    return summary if whole and summary["epochs"] == history.epochs else None


def _summarise(
    vae: VAE, data: DataSet, config: RunConfig, history: History, out: Path
) -> dict[str, Any]:
    from pyro_vaes import plotting

    figures = {
        "learning_curves": plotting.learning_curves(history.records, history.best_epoch),
        "latent_space": plotting.latent_space(vae, data.test),
    }
    if data.image_shape is not None:
        torch.manual_seed(config.training.seed)
        labels = None
        if vae.conditional:
            labels = torch.arange(100) // 10 % (data.num_labels or 1)
        figures["samples"] = plotting.image_grid(
            vae.sample(100, labels), data.image_shape, columns=10
        )
        figures["reconstructions"] = plotting.reconstructions(vae, data.test, data.image_shape)
    for name, figure in figures.items():
        plotting.save_figure(figure, out / "figures" / f"{name}.png")
    result = evaluate(vae, data.test, num_samples=1000, seed=config.training.seed)
    summary = {
        **result.to_dict(),
        "split": "test",
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "stopped": history.stopped,
        "mode": history.mode,
        "precision_shift": history.precision_shift,
        "device": history.device,
        "processes": join().size,
        "train_seconds": round(history.seconds, 3),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "versions": _versions(),
    }
    write_text(out / _SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _versions() -> dict[str, str]:
    import pyro

    return {
        "pyro_vaes": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
    }


def _report(summary: dict[str, Any], out: Path) -> None:
    why = {"patience": "no better validation", "epochs": "all epochs done"}
    processes = summary.get("processes", 1)
    shared = f", {processes} processes" if processes > 1 else ""
    click.echo(
        f"\nTrained {summary['epochs']} epochs in {summary['train_seconds']:.1f} s "
        f"({why.get(summary['stopped'], summary['stopped'])}; {summary['mode']} steps on "
        f"{summary['device']}{shared}); kept epoch {summary['best_epoch']}."
    )
    if summary.get("precision_shift") is not None:
        click.echo(
            "In the precision of training the validation ELBO is "
            f"{summary['precision_shift']:+.3f} nats off that in float32."
        )
    click.echo(f"\nTest figures, nats per datum ({summary['num_samples']} samples each)")
    for title, key, sign in _FIGURES:
        value, error = summary[key], summary[f"{key}_se"]
        text = "n/a" if value is None else f"{sign * value:.2f}"
        click.echo(f"  {title:<34}{text:>9}" + ("" if error is None else f" +- {error:.2f}"))
    click.echo(f"\nRun folder: {out}")


# --- evaluate and sample --------------------------------------------------------------------------


@cli.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    help="Posterior draws for each datum.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which rows.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws."
)
@click.option(
    "--chunk-size",
    type=click.IntRange(min=1),
    help="Decoder evaluations at once: bounds the memory, changes no figure.  "
    "[default: 1024 on a CPU, 8192 elsewhere]",
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where to compute; auto: CUDA if there is one, else the CPU.",
)
@click.option(
    "--diagnostics/--no-diagnostics",
    default=True,
    show_default=True,
    help="Whether to look beyond the bounds: is the latent code alive, are they to be trusted?",
)
@click.option("--json", "as_json", is_flag=True, help="Print one flat JSON object.")
def _evaluate(
    run: Path,
    samples: int,
    split: str,
    seed: int,
    chunk_size: int | None,
    device: str,
    diagnostics: bool,
    as_json: bool,
) -> None:
    """Evaluates the VAE in a run folder."""
    place = device_of_flag(device)
    vae, record = _open(run)
    data = _data(read_config(run), f"Expected the data that {run} was trained on")
    if data.digest != record["data"]["digest"]:
        raise RunFolderError(f"Expected the data that {run} was trained on; got others.")
    result = evaluate(
        vae.to(place),
        getattr(data, split),
        num_samples=samples,
        seed=seed,
        chunk_size=chunk_size,
        diagnostics=diagnostics,
        train=data.train,
    )
    if as_json:
        figures = {**result.to_dict(), "split": split, "seed": seed}
        click.echo(json.dumps(figures, allow_nan=False))
    else:
        click.echo(f"{run}, {split} split: {result}")


@cli.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="How many.")
@click.option("--label", type=int, help="The label of all samples of a conditional model.")
@click.option("--mean", is_flag=True, help="Means of p(x given z) instead of draws from it.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where to; .npy for an array.  [default: samples.png or samples.npy in RUN]",
)
def _sample(
    run: Path, num: int, label: int | None, mean: bool, seed: int, out: Path | None
) -> None:
    """Samples the VAE in a run folder: a picture of images, an array of anything else."""
    vae, record = _open(run)
    image_shape, num_labels = record["data"]["image_shape"], record["data"]["num_labels"]
    out = out or run / ("samples.png" if image_shape else "samples.npy")
    if out.suffix not in ((".npy", ".png", ".svg", ".pdf") if image_shape else (".npy",)):
        what = ".png, .svg, .pdf or .npy" if image_shape else ".npy (the data are no images)"
        raise ConfigError(
            f"Invalid value for '--out': expected a file ending in {what}; got {out}."
        )
    labels: Any = label
    if num_labels:
        if label is None:
            labels = torch.arange(num) % num_labels
        elif not 0 <= label < num_labels:
            raise ConfigError(
                f"Invalid value for '--label': expected 0 to {num_labels - 1}; got {label}."
            )
    elif label is not None:
        raise ConfigError(
            f"Invalid value for '--label': expected a conditional model; got {label} for one "
            "without labels."
        )
    torch.manual_seed(seed)
    samples = vae.sample(num, labels, mean=mean)
    if out.suffix == ".npy":
        import io

        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, samples.numpy(), allow_pickle=False)
        write_bytes(out, buffer.getvalue())
    else:
        from pyro_vaes import plotting

        columns = min(num, num_labels) if num_labels and label is None else None
        plotting.save_figure(plotting.image_grid(samples, image_shape, columns=columns), out)
    click.echo(f"{num} samples: {out}")


cli.add_command(study_command)
cli.add_command(reproduce)
cli.add_command(report_command)


@cli.command("parts")
def _parts() -> None:
    """Lists every part a flag can name, with the paper it comes from."""
    click.echo(catalogue())


def _open(run: Path) -> tuple[VAE, dict[str, Any]]:
    """The VAE and record of a run folder, both checked."""
    if not run.is_dir():
        raise RunFolderError(f"Expected a run folder; found none at {run}.")
    read_config(run)
    record = load_record(run)
    if not {"config", "data", "digest"} <= record.keys():
        raise RunFolderError(f"Expected weights that a training run wrote in {run}; got others.")
    return load(run), record


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; bad input ends with one line and status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        keep_freed_memory()
        cli.main(args=words or ["--help"], prog_name="pyro-vaes", standalone_mode=False)
    except click.ClickException as error:
        _die(error.format_message(), 2)
    except (ConfigError, DataError, RunFolderError) as error:
        _die(str(error), 2)
    except (NonFiniteError, PeerError) as error:
        _die(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _die("interrupted", 130)


def _die(message: str, status: int) -> None:
    if not silent():
        click.echo(f"pyro-vaes: {' '.join(message.split())}", err=True)
    sys.exit(status)
