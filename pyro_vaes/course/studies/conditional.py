"""A conditional generator."""

from __future__ import annotations

import math

import numpy as np
import torch

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, course_study
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, with_error
from pyro_vaes.experiments.panels import COLORS, Figures, axes_of, drawn
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import image_grid, style
from pyro_vaes.vae import evaluating

__all__ = ["STUDY"]


def grid(data: DataSet, quick: bool) -> list[Cell]:
    return [
        Cell("p(x)", {}),
        Cell("p(x|y)", {"conditional": True}),
        Cell("p(x|y), prior p(z|y)", {"conditional": True, "conditional_prior": True}),
    ]


def figures(o: Outcome) -> Figures:
    """Figures on the conditional generator."""
    label, count = o.labels[1], o.data.num_labels or 1
    grid = style_fixed = None
    if o.data.image_shape is not None:
        vae = o.vae(label)
        with evaluating(vae):
            torch.manual_seed(0)
            labels = torch.arange(count)
            draws = vae.sample(10 * count, labels.repeat(10))
            z = vae.p_z(labels[:1]).sample(() if vae.prior_is_conditional else (10,))
            same = vae.decode(z.repeat_interleave(count, 0), labels.repeat(len(z)))
        grid = image_grid(draws, o.data.image_shape, columns=count)
        style_fixed = image_grid(same, o.data.image_shape, columns=count)
    with style():
        accuracy, (ax,) = axes_of(2.8)
        for shift, name in zip((-0.15, 0.15), o.labels[1:], strict=False):
            by_class = np.array(
                [row for row in o.table.loc[o.table["label"] == name, "by_class"] if row]
            )
            mean = 100 * by_class.mean(0)
            color = COLORS[0 if shift < 0 else 1]
            ax.plot(np.arange(len(mean)) + shift, mean, "o", ms=5, color=color)
            height = 0.1 if shift < 0 else 0.02
            ax.text(0.99, height, name, color=color, ha="right", transform=ax.transAxes)
        real = 100 * o.values(label, "class_accuracy_real").mean()
        ax.axhline(real, color="0.5", lw=0.8, ls=":")
        ax.text(-0.4, real + 0.3, "real test data", color="0.4", fontsize=8)
        ax.set_xticks(range(count))
        ax.set_xlabel("label asked for")
        ax.set_ylabel("classifier agrees (%)")
    return drawn(
        [
            ("grid", grid, "Draws from p(x|y): a column for each label."),
            (
                "style",
                style_fixed,
                "Style held fixed: a row shares one z, the columns are the labels; means.",
            ),
            (
                "accuracy",
                accuracy,
                "How often a classifier trained on real data gives generated data (a thousand a "
                "class) the label asked for.",
            ),
        ]
    )


def findings(o: Outcome) -> list[str]:
    """Sentences on the conditional generator."""
    found = [
        f"{o.compared(label, 'p(x)')} (NLL of x given its label against NLL of x)."
        for label in o.labels[1:]
    ]
    for label in o.labels[1:]:
        gap = o.paired(label, "p(x)")
        most = math.log(o.data.num_labels or 1)
        found.append(
            f"{label}: knowing the label saves {with_error(-gap.mean, gap.error)} nats; stating it "
            f"would cost {most:.2f} (log {o.data.num_labels}). A classifier of real digits gives "
            f"{100 * o.mean(label, 'generated_accuracy')[0]:.1f}% of the generated ones the label "
            f"they were asked for, and {100 * o.mean(label, 'class_accuracy_real')[0]:.1f}% of the "
            "real test digits theirs."
        )
    return found


STUDY = course_study(
    "A conditional generator",
    "With the labels in posterior, likelihood and perhaps prior: does the generator obey the "
    "label, and what does knowing it save? (The labels are the digits 0 to 9; the assignment's "
    "0 to 16 are pixel levels.)",
    grid,
    figures,
    findings,
    {"generated_accuracy": "class accuracy", **KL_SPLIT, **ALIVE},
    ("generated_classes",),
    ("labels",),
    comparisons=(
        Comparison("p(x|y)", "p(x)"),
        Comparison("p(x|y), prior p(z|y)", "p(x)"),
        Comparison("p(x|y), prior p(z|y)", "p(x|y)"),
    ),
)
