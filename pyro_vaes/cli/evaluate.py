"""The commands that use a trained model: ``pyro-vaes evaluate``, ``sample`` and ``parts``."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_vaes.cli.flags import PLACE, SEED, Real, Whole
from pyro_vaes.cli.outputs import PICTURES, TABLES, check_out, write_array, write_table
from pyro_vaes.core.choices import DEVICES, PROPOSALS
from pyro_vaes.core.errors import DataError, RunError
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import read_config
from pyro_vaes.storage.files import RunFolderError

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_vaes.data.splits import Split
    from pyro_vaes.vae import VAE

__all__ = [
    "LABEL_HELP",
    "evaluate_command",
    "label_given",
    "open_run",
    "parts_command",
    "sample_command",
]


LABEL_HELP = (
    "The label of all rows, or its name, for a conditional model; of several conditions a=x,b=3."
)


@click.command("evaluate")
@click.argument("run", type=PLACE)
@click.option(
    "--samples",
    type=Whole(min=1),
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
@click.option("--data", type=PLACE, help="A file of other rows, with the columns of the run's.")
@click.option("--label", help=f"{LABEL_HELP} With --data.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Which rows of the run's own data.  [default: test, without --data]",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the draws.")
@click.option(
    "--chunk-size",
    type=Whole(min=1),
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
@click.option(
    "--minutes",
    type=Real(min=0, min_open=True),
    help="Time limit: if not all rows fit, some at random.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one flat JSON object.")
def evaluate_command(
    run: Path,
    samples: int,
    proposal: str,
    data: Path | None,
    label: str | None,
    split: str | None,
    seed: int,
    chunk_size: int | None,
    device: str,
    diagnostics: bool,
    gaps: bool,
    minutes: float | None,
    as_json: bool,
) -> None:
    """Evaluates the VAE in a run folder."""
    from pyro_vaes.classical.comparison import compared, comparison_lines
    from pyro_vaes.evaluation.evaluator import evaluate
    from pyro_vaes.runs.build import device_of_flag
    from pyro_vaes.runs.new_data import own_data
    from pyro_vaes.runs.run import threads
    from pyro_vaes.runs.summary import rows_said, rows_within

    place = device_of_flag(device)
    vae, record = open_run(run)
    config = read_config(run)
    if data is not None:
        what: dict[str, Any] = {"split": None, "split_reason": "these are other rows"}
        rows, notes = _new_split(run, record, vae, data, split, label)
        own = train = None
    else:
        if label is not None:
            raise ConfigError(
                f"Invalid value for '--label': expected it with --data; got {label} for the run's "
                "own rows, which have theirs."
            )
        what = {"split": split or "test"}
        own, notes = own_data(config, run, record), ()
        # Figures are means over rows, whatever these counted in training.
        rows, train = (
            dataclasses.replace(rows, weights=None)
            for rows in (getattr(own, what["split"]), own.train)
        )
    options: dict[str, Any] = {
        "num_samples": samples,
        "proposal": proposal,
        "seed": seed,
        "chunk_size": chunk_size,
        "diagnostics": diagnostics,
        "gaps": gaps,
        "train": train,
    }
    with threads(config, record["data"]["event_shape"]):
        some = rows_within(minutes, vae.to(place), rows, **options)
        result = evaluate(vae, some, **options)
    what["num_rows"] = len(rows)
    if own is not None and config.training.start != "random":
        what |= compared(own, some, result, vae.cpu().likelihood)
    if as_json:
        figures = {**result.to_dict(), **what, "seed": seed}
        click.echo(json.dumps(figures, allow_nan=False))
    else:
        for note in notes:
            click.echo(note)
        which = f"{data or what['split'] + ' split'}{rows_said(len(some), len(rows))}"
        click.echo(f"{run}, {which}: {result}")
        for line in comparison_lines(what):
            click.echo(f"  {line}")
    if not (math.isfinite(result.nll) and math.isfinite(result.elbo)):
        raise RunError(f"Expected finite figures of {run}; got {result.nll} for -log p(x).")


def _new_split(
    run: Path, record: dict[str, Any], vae: VAE, data: Path, split: str | None, label: str | None
) -> tuple[Split, tuple[str, ...]]:
    """Rows that the run has not seen, and what there is to say of them."""
    from pyro_vaes.data.splits import Split
    from pyro_vaes.runs.new_data import checked, read_new

    if split is not None:
        raise ConfigError(f"Invalid value for '--split': expected none with --data; got {split}.")
    given = None if label is None else label_given(record["data"], label)
    new = checked(read_new(data, read_config(run), run, record, given), vae, data)
    return Split(new.x, new.y), new.notes


@click.command("sample")
@click.argument("run", type=PLACE)
@click.option("--num", type=Whole(min=1), default=64, show_default=True, help="How many.")
@click.option("--label", help=LABEL_HELP)
@click.option("--mean", is_flag=True, help="Means of p(x given z) instead of draws from it.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed.")
@click.option(
    "--distances", is_flag=True, help="How far each is from the nearest training row, in a table."
)
@click.option(
    "--out",
    type=PLACE,
    help="Where to: .csv or .tsv for a table, .npy for an array, .png, .svg or .pdf for a picture "
    "of images.  [default: samples.png or samples.npy in RUN]",
)
def sample_command(
    run: Path,
    num: int,
    label: str | None,
    mean: bool,
    seed: int,
    distances: bool,
    out: Path | None,
) -> None:
    """Samples the VAE in a run folder: rows of a table, an array, or a picture of images."""
    import torch

    vae, record = open_run(run)
    image_shape, num_labels = record["data"]["image_shape"], record["data"]["num_labels"]
    out = out or run / ("samples.png" if image_shape else "samples.npy")
    suffixes = (*TABLES, ".npy", *(PICTURES if image_shape else ()))
    suffix = check_out(out, suffixes, "" if image_shape else " (the data are no images)")
    if distances and suffix not in TABLES:
        raise ConfigError(
            f"Invalid value for '--distances': expected a table with it, .csv or .tsv; got {out}."
        )
    labels = _labels_to_sample(run, record, num, label, seed)
    near = _distances(run, record) if distances else None
    torch.manual_seed(seed)
    samples = vae.sample(num, labels, mean=mean)
    if suffix == ".npy":
        write_array(out, samples.numpy())
    elif suffix in TABLES:
        write_table(out, *_table(record["data"], samples, labels, mean, near))
    else:
        from pyro_vaes import plotting

        kinds = len(record["data"].get("labels") or range(num_labels or 0))
        columns = min(num, kinds) if num_labels and label is None else None
        plotting.save_figure(plotting.image_grid(samples, image_shape, columns=columns), out)
    click.echo(f"{num} samples: {out}")


def _table(
    facts: dict[str, Any], samples: Any, labels: Any, mean: bool, near: Any
) -> list[dict[str, Any]]:
    """The columns of samples: whole numbers where the data are, labels by name, distances."""
    import numpy as np

    from pyro_vaes.runs.new_data import condition_columns, element_columns

    values = samples.numpy()
    if not mean and facts.get("kind", "real") in ("binary", "levels", "counts"):
        values = values.astype(np.int64)
    parts = [element_columns(facts, values)]
    if labels is not None and facts.get("conditions"):
        parts.append(condition_columns(facts, labels.expand(len(values), -1).numpy()))
    elif labels is not None:
        numbers = np.broadcast_to(np.asarray(labels), (len(values),))
        names = facts.get("label_names")
        column = facts.get("label_column") or "label"
        parts.append({column: [names[i] for i in numbers] if names else numbers})
    if near is not None:
        parts.append({"nearest_distance": near(samples)})
    return parts


def _distances(run: Path, record: dict[str, Any]) -> Any:
    """Gives the distances of samples to training rows, and says what they compare with."""
    from pyro_vaes.evaluation.scores import nearest_rows
    from pyro_vaes.runs.new_data import own_data

    own = own_data(read_config(run), run, record)
    kinds = own.codec.columns if own.codec else ()
    options: dict[str, Any] = {
        "shared": bool(record["data"]["image_shape"]),
        "classes": [i for i, column in enumerate(kinds) if column.kind in ("category", "binary")],
    }

    def near(samples: Any) -> Any:
        found, held_out = (nearest_rows(x, own.train, **options)[0] for x in (samples, own.test))
        click.echo(
            "Distance to the nearest training row, in standard deviations of an element: "
            f"median {found.median():.3f}, least {found.min():.3f}; of the test rows "
            f"{held_out.median():.3f} and {held_out.min():.3f}."
        )
        return found.numpy()

    return near


def _labels_to_sample(
    run: Path, record: dict[str, Any], num: int, label: str | None, seed: int
) -> Any:
    """The labels of samples: the given one, or in turn those of the training rows.

    Conditions are those of training rows drawn at random.
    """
    import torch

    data = record["data"]
    num_labels = data["num_labels"]
    if label is None and data.get("conditions"):
        return _conditions_to_sample(run, record, num, seed)
    if label is None:
        if not num_labels:
            return None
        # A class without training rows was not learned.
        there = torch.tensor(data.get("labels") or range(num_labels))
        return there[torch.arange(num) % len(there)]
    return label_given(data, label)


def _conditions_to_sample(run: Path, record: dict[str, Any], num: int, seed: int) -> Tensor:
    """Conditions of training rows, drawn at random."""
    import torch

    from pyro_vaes.runs.new_data import own_data

    y = own_data(read_config(run), run, record).train.y
    assert y is not None
    click.echo("Conditions: those of training rows drawn at random. (For all the same: --label.)")
    return y[torch.randint(len(y), (num,), generator=torch.Generator().manual_seed(seed))]


def label_given(data: dict[str, Any], label: str) -> Tensor:
    """The number of a label of a conditional model, or a row of conditions ``(columns,)``.

    Raises:
        ConfigError: if it has none of it.
    """
    import torch

    from pyro_vaes.data.mixed.conditions import condition_row
    from pyro_vaes.runs.new_data import conditions_in

    conditions = conditions_in(data)
    if conditions is None:
        return torch.tensor(_label_number(data, label))
    try:
        return condition_row(conditions, label)
    except DataError as error:
        raise ConfigError(f"Invalid value for '--label': {error}") from error


def _label_number(data: dict[str, Any], label: str) -> int:
    num_labels, names = data["num_labels"], data.get("label_names")
    if not num_labels:
        raise ConfigError(
            f"Invalid value for '--label': expected a conditional model; got {label} for one "
            "without labels."
        )
    known: list[str] = names or [str(i) for i in range(num_labels)]
    if label not in known:
        expected = f"one of {', '.join(names)}" if names else f"0 to {num_labels - 1}"
        raise ConfigError(f"Invalid value for '--label': expected {expected}; got {label}.")
    return known.index(label)


@click.command("parts")
def parts_command() -> None:
    """Lists the parts that flags can name, with their papers."""
    from pyro_vaes.runs.registry import catalogue

    click.echo(catalogue())


def open_run(run: Path) -> tuple[VAE, dict[str, Any]]:
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
    columns = data.get("columns")
    return (
        isinstance(data.get("digest"), str)
        and (labels is None or _is_size(labels))
        and (image is None or (_is_shape(image) and len(image) == 3))
        and _is_shape(data.get("event_shape"))
        and (event_shape is None or tuple(data["event_shape"]) == tuple(event_shape))
        and (image is None or math.prod(image) == math.prod(data["event_shape"]))
        and (columns is None or (_is_words(columns) and [len(columns)] == data["event_shape"]))
        and isinstance(data.get("label_column"), (str, type(None)))
        and _is_codec(data.get("codec"), columns)
        and (not data.get("codec") or [len(data["codec"])] == data["event_shape"])
        and _is_codec(data.get("conditions"))
    )


def _is_codec(value: Any, columns: Any = None) -> bool:
    """Whether a value describes columns, of some names if these are given."""
    keys = {"column", "values", "decimals", "date"}
    return value is None or (
        isinstance(value, list)
        and all(isinstance(one, dict) and one.keys() == keys for one in value)
        and all(_is_column(one["column"]) for one in value)
        and columns in (None, [one["column"][0] for one in value])
    )


def _is_column(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and _is_words(value[:2])


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
