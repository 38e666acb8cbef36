"""The plain VAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, class_in_code, course_study
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.diagnostics import class_accuracy, classifier
from pyro_vaes.experiments.outcomes import Outcome, with_error
from pyro_vaes.experiments.panels import COLORS, Figures, axes_of, drawn
from pyro_vaes.experiments.pictures import interpolated, neighbours, picture, rebuilt
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
from pyro_vaes.runs.build import build
from pyro_vaes.runs.run import trainer_of
from pyro_vaes.runs.schema import read_config
from pyro_vaes.vae import evaluating

__all__ = ["STUDY"]


def grid(data: DataSet, quick: bool) -> list[Cell]:
    return [Cell("VAE", {})]


def figures(o: Outcome) -> Figures:
    """Figures on the plain VAE."""
    label = o.labels[0]
    return drawn(
        [
            (
                "curves",
                _curves(o, label),
                "The terms of the ELBO over the epochs, first seed, each on training and on "
                "validation data with the same weights, the moving average that is kept; dotted: "
                "the best epoch by validation.",
            ),
            (
                "samples",
                _plain_samples(o, label),
                "Test data; draws from the model; and the means p(x|z) behind those draws.",
            ),
            (
                "reconstructions",
                rebuilt(o, [label], 10),
                "Test data and the means of p(x|z) at the mean of z.",
            ),
            (
                "neighbours",
                neighbours(o, label, 10),
                "Means behind new draws, and the nearest training image of each.",
            ),
            (
                "interpolations",
                interpolated(o, [label], 4),
                "Straight lines in the latent space between test images, which are at the ends.",
            ),
        ]
    )


def _curves(o: Outcome, label: str) -> Figure:
    validation = o.history(label)[0]
    training = _training_terms(o, label, len(validation))
    best = max(validation, key=lambda record: record["val_elbo"])["epoch"]
    terms = {"-ELBO": ("val_loss", 1), "-E log p(x|z)": ("val_reconstruction", -1)}
    with style():
        figure, axes = axes_of(2.6, 3)
        for ax, (name, (key, sign)) in zip(
            axes, {**terms, "KL": ("val_kl", 1)}.items(), strict=True
        ):
            low = []
            for records, color in ((training, COLORS[0]), (validation, COLORS[1])):
                values = [sign * record[key] for record in records]
                ax.plot([record["epoch"] for record in records], values, color=color, lw=1.2)
                low += sorted(values)[: int(0.85 * len(values)) + 1]
            ax.set(title=f"{name} (nats)", xlabel="epoch", ylim=(min(low) - 1, max(low) + 1))
            ax.axvline(best, color="0.5", lw=0.8, ls=":")
        for place, (name, color) in enumerate((("training", 0), ("validation", 1))):
            at = (0.95, 0.88 - 0.1 * place)
            axes[0].text(*at, name, color=COLORS[color], ha="right", transform=axes[0].transAxes)
    return figure


def _training_terms(o: Outcome, label: str, epochs: int) -> Sequence[Mapping[str, Any]]:
    """The first seed's training once more, with the training data in the place of validation.

    Validation has no effect on the steps, so the weights are those of the run.
    """
    config = read_config(o.folders[label, int(o.table["seed"].min())])
    training = dataclasses.replace(config.training, epochs=epochs, patience=epochs)
    config = dataclasses.replace(config, training=training)
    data = dataclasses.replace(o.data, val=o.data.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        vae, _ = build(config, data)
        return list(trainer_of(vae, data, config).run(None, progress=False).records)


def _plain_samples(o: Outcome, label: str) -> Figure | None:
    vae = o.vae(label)
    with evaluating(vae):
        rows = [o.data.test.frozen().x[:10]]
        for mean in (False, True):
            torch.manual_seed(0)
            rows.append(vae.sample(10, mean=mean))
    return picture(o, rows, ["data", "draws", "means"])


def findings(o: Outcome) -> list[str]:
    """What the plain VAE reaches, and why no more."""
    label = o.labels[0]
    cell = {head: o.cell(label, head) for head in o.shown[0][1:]}
    found = [
        f"The VAE reaches an NLL of {cell['NLL']} nats per image; its -ELBO of {cell['-ELBO']} "
        f"lies {cell['gap']} above, which is what inference misses. Of the KL of {cell['KL']} "
        f"nats, {cell['I(x; z)']} are information about the image and {cell['marginal KL']} are "
        "mismatch between q(z) and the prior.",
        f"Training stops by itself: validation is best after {cell['best epoch']} epochs. From "
        "there the reconstruction of training images improves and that of new images does not, "
        "while both pay a KL that grows. Training and validation are compared with the same "
        "weights, so the distance of the curves is over-fitting alone, and it lies in the "
        "reconstruction: the KL is almost the same on both.",
        "Reconstructions keep the digit and lose the handwriting: a blurred mean is the best "
        "guess where the code does not say where exactly a stroke ends. Draws look worse than "
        "their means, since each pixel draws its level by itself, given z; and both look worse "
        "than reconstructions where the prior puts z in a region that no training image is encoded "
        "to.",
    ]
    return found + _probe(o, label)


def _probe(o: Outcome, label: str) -> list[str]:
    """How well a classifier reads the class from the code, and from what z keeps of an image."""
    train, test, code = o.data.train.frozen(), o.data.test.frozen(), class_in_code(o, label)
    if train.y is None or test.y is None or code is None:
        return []
    of_pixels = classifier(train.x, train.y)
    vae = o.vae(label)
    with evaluating(vae):
        again = vae.reconstruct(test.x)
    pixels, kept = (100 * class_accuracy(of_pixels, x, test.y)[0] for x in (test.x, again))
    z = o.note("class read from the mean of z (%)", with_error(code.mean, code.error, 1))
    x = o.note("class read from the pixels (%)", f"{pixels:.1f}")
    kept_text = o.note("class read from the reconstruction, first seed (%)", f"{kept:.1f}")
    return [
        f"The code keeps the class: one and the same classifier is right for {z} % of the test "
        f"images from the mean of z, and for {x} % from the pixels. From the reconstruction it is "
        f"right for {kept_text} % (first seed): some images come back as another digit."
    ]


STUDY = course_study(
    "The plain VAE",
    "What does the course's VAE reach on these data, and what do its samples and its "
    "reconstructions look like?",
    grid,
    figures,
    findings,
    {"gap": "gap", **KL_SPLIT, **ALIVE, "best_epoch": "best epoch", "epochs": "epochs"},
)
