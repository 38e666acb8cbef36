"""The commands that use a trained model: ``pyro-vaes evaluate``, ``sample`` and ``parts``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_vaes.cli.flags import PLACE, SEED, check_drawing
from pyro_vaes.core.choices import PROPOSALS
from pyro_vaes.core.errors import RunError
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import DEVICES, read_config
from pyro_vaes.storage.files import RunFolderError, write_bytes

if TYPE_CHECKING:
    from pyro_vaes.vae import VAE

__all__ = ["evaluate_command", "parts_command", "sample_command"]


@click.command("evaluate")
@click.argument("run", type=PLACE)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    help="Posterior draws for each datum.",
)
@click.option(
    "--proposal",
    type=click.Choice(PROPOSALS),
    default="auto",
    show_default=True,
    help="What z is drawn from to estimate log p(x): the encoder, a fit per datum, or annealing.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which rows.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the draws.")
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
@click.option(
    "--gaps",
    is_flag=True,
    help="Split log p(x) - ELBO into the gaps of the posterior's family and of its network.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one flat JSON object.")
def evaluate_command(
    run: Path,
    samples: int,
    proposal: str,
    split: str,
    seed: int,
    chunk_size: int | None,
    device: str,
    diagnostics: bool,
    gaps: bool,
    as_json: bool,
) -> None:
    """Evaluates the VAE in a run folder."""
    from pyro_vaes.evaluation.evaluator import evaluate
    from pyro_vaes.runs.build import data_of, device_of_flag
    from pyro_vaes.storage.older import writer

    place = device_of_flag(device)
    vae, record = _open(run)
    data = data_of(read_config(run), f"Expected the data that {run} was trained on")
    if data.digest != record["data"]["digest"]:
        raise RunFolderError(
            f"Expected the data that {run} was trained on; got others, as they are read now. "
            f"(It was written by {writer(record)}.)"
        )
    result = evaluate(
        vae.to(place),
        getattr(data, split),
        num_samples=samples,
        proposal=proposal,
        seed=seed,
        chunk_size=chunk_size,
        diagnostics=diagnostics,
        gaps=gaps,
        train=data.train,
    )
    if as_json:
        figures = {**result.to_dict(), "split": split, "seed": seed}
        click.echo(json.dumps(figures, allow_nan=False))
    else:
        click.echo(f"{run}, {split} split: {result}")
    if not (math.isfinite(result.nll) and math.isfinite(result.elbo)):
        raise RunError(f"Expected finite figures of {run}; got {result.nll} for -log p(x).")


@click.command("sample")
@click.argument("run", type=PLACE)
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="How many.")
@click.option("--label", help="The label of all samples of a conditional model, or its name.")
@click.option("--mean", is_flag=True, help="Means of p(x given z) instead of draws from it.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed.")
@click.option(
    "--out",
    type=PLACE,
    help="Where to; .npy for an array.  [default: samples.png or samples.npy in RUN]",
)
def sample_command(
    run: Path, num: int, label: str | None, mean: bool, seed: int, out: Path | None
) -> None:
    """Samples the VAE in a run folder: a picture of images, an array of anything else."""
    import torch

    vae, record = _open(run)
    image_shape, num_labels = record["data"]["image_shape"], record["data"]["num_labels"]
    out = out or run / ("samples.png" if image_shape else "samples.npy")
    suffix = out.suffix.lower()
    if suffix not in ((".npy", ".png", ".svg", ".pdf") if image_shape else (".npy",)):
        what = ".png, .svg, .pdf or .npy" if image_shape else ".npy (the data are no images)"
        raise ConfigError(
            f"Invalid value for '--out': expected a file ending in {what}; got {out}."
        )
    if suffix != ".npy":
        check_drawing()
    labels = _labels_to_sample(record["data"], num, label)
    torch.manual_seed(seed)
    samples = vae.sample(num, labels, mean=mean)
    if suffix == ".npy":
        import io

        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, samples.numpy(), allow_pickle=False)
        write_bytes(out, buffer.getvalue())
    else:
        from pyro_vaes import plotting

        kinds = len(record["data"].get("labels") or range(num_labels or 0))
        columns = min(num, kinds) if num_labels and label is None else None
        plotting.save_figure(plotting.image_grid(samples, image_shape, columns=columns), out)
    click.echo(f"{num} samples: {out}")


def _labels_to_sample(data: dict[str, Any], num: int, label: str | None) -> Any:
    """The labels of samples: the given one, or in turn those of the training rows."""
    import torch

    num_labels, names = data["num_labels"], data.get("label_names")
    if not num_labels:
        if label is None:
            return None
        raise ConfigError(
            f"Invalid value for '--label': expected a conditional model; got {label} for one "
            "without labels."
        )
    if label is None:
        # A class without training rows was not learned.
        there = torch.tensor(data.get("labels") or range(num_labels))
        return there[torch.arange(num) % len(there)]
    known = names or [str(i) for i in range(num_labels)]
    if label not in known:
        expected = f"one of {', '.join(names)}" if names else f"0 to {num_labels - 1}"
        raise ConfigError(f"Invalid value for '--label': expected {expected}; got {label}.")
    return known.index(label)


@click.command("parts")
def parts_command() -> None:
    """Lists the parts that flags can name, with their papers."""
    from pyro_vaes.runs.registry import catalogue

    click.echo(catalogue())


def _open(run: Path) -> tuple[VAE, dict[str, Any]]:
    """The VAE and record of a run folder, both checked."""
    from pyro_vaes.storage.weights import load, load_record

    if not run.is_dir():
        raise RunFolderError(f"Expected a run folder; found none at {run}.")
    read_config(run)
    record = load_record(run)
    vae = load(run)
    if not _is_record(record, getattr(vae.likelihood, "event_shape", None)):
        raise RunFolderError(f"Expected weights that a training run wrote in {run}; got others.")
    for name, tensor in vae.named_parameters():
        if not tensor.isfinite().all():
            raise RunError(f"Expected finite weights in {run}; got NaN or infinity in {name!r}.")
    return vae, record


def _is_record(record: dict[str, Any], event_shape: tuple[int, ...] | None) -> bool:
    """Whether a value is the record of a training run: a file may hold anything."""
    data = record.get("data")
    if not {"config", "digest"} <= record.keys() or not isinstance(data, dict):
        return False
    image, labels = data.get("image_shape"), data.get("num_labels")
    return (
        isinstance(data.get("digest"), str)
        and (labels is None or _is_size(labels))
        and (image is None or (_is_shape(image) and len(image) == 3))
        and _is_shape(data.get("event_shape"))
        and (event_shape is None or tuple(data["event_shape"]) == tuple(event_shape))
        and (image is None or math.prod(image) == math.prod(data["event_shape"]))
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
