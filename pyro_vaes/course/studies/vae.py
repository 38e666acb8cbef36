"""The plain VAE."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, course_study
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.outcomes import Outcome, mean_text
from pyro_vaes.experiments.panels import COLORS, Figures, axes_of, drawn
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import image_grid, reconstructions, style
from pyro_vaes.vae import evaluating

__all__ = ["STUDY"]


def grid(data: DataSet, quick: bool) -> list[Cell]:
    return [Cell("VAE", {})]


def figures(o: Outcome) -> Figures:
    """Figures on the plain VAE."""
    label = o.labels[0]
    with style():
        curves, (ax,) = axes_of(3.2)
        for records in o.history(label):
            epochs = [r["epoch"] for r in records]
            for key, color in (("train_loss", COLORS[0]), ("val_loss", COLORS[1])):
                ax.plot(epochs, [r[key] for r in records], color=color, lw=1, alpha=0.8)
        last = max((records[-1] for records in o.history(label)), key=lambda r: r["epoch"])
        for key, name, color in (
            ("train_loss", "training", COLORS[0]),
            ("val_loss", "validation", COLORS[1]),
        ):
            ax.annotate(
                name, (last["epoch"], last[key]), (4, 0), textcoords="offset points", color=color
            )
        values = [r["val_loss"] for records in o.history(label) for r in records]
        low = min(r["train_loss"] for records in o.history(label) for r in records)
        ax.set_ylim(low - 3, float(np.quantile(values, 0.9)) + 6)
        ax.set_xlabel("epoch")
        ax.set_ylabel("-ELBO (nats per datum)")
    rebuilt = None
    if o.data.image_shape is not None:
        rebuilt = reconstructions(o.vae(label), o.data.test, o.data.image_shape)
    return drawn(
        [
            ("curves", curves, "Learning curves, one line a seed, up to early stopping."),
            (
                "samples",
                _plain_samples(o, label),
                "Test data, draws from the model, and the means p(x|z) behind those draws.",
            ),
            ("reconstructions", rebuilt, "Test data and the means of p(x|z) at the mean of z."),
        ]
    )


def _plain_samples(o: Outcome, label: str) -> Figure | None:
    if o.data.image_shape is None:
        return None
    vae = o.vae(label)
    with evaluating(vae):
        rows = [o.data.test.frozen().x[:10]]
        for mean in (False, True):
            torch.manual_seed(0)
            rows.append(vae.sample(10, mean=mean))
    return image_grid(
        torch.cat([row.flatten(1) for row in rows]),
        o.data.image_shape,
        columns=10,
        row_labels=["data", "draws", "means"],
    )


def findings(o: Outcome) -> list[str]:
    """Sentences on the plain VAE."""
    label = o.labels[0]
    return [
        f"NLL is {mean_text(o, label, 'nll')} nats per datum, the ELBO lies "
        f"{mean_text(o, label, 'gap')} nats below log p(x).",
        f"{mean_text(o, label, 'active_units', 1)} of {o.vae(label).posterior.latent_dim} latent "
        f"units are active; z carries {mean_text(o, label, 'mutual_information')} nats about x.",
    ]


STUDY = course_study(
    "The plain VAE",
    "What does the course's VAE reach on these data, and what do its samples and its "
    "reconstructions look like?",
    grid,
    figures,
    findings,
    {**KL_SPLIT, **ALIVE, "epochs": "epochs"},
)
