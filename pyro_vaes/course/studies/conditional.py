"""A conditional generator."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vaes.course.studies.base import ALIVE, KL_SPLIT, course_study
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.diagnostics import classifier, generate
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, with_error
from pyro_vaes.experiments.panels import COLORS, Figures, axes_of, drawn
from pyro_vaes.experiments.pictures import picture
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
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
    label = o.labels[1]
    return drawn(
        [
            ("grid", _grid(o, label), "Means behind draws from p(x|y): a column for each label."),
            (
                "style",
                _style(o, label),
                "Style held fixed: a row shares one z, on the first principal component of the "
                "codes, and the columns are the labels; means.",
            ),
            ("accuracy", _accuracy(o), _ACCURACY),
            (
                "confusion",
                _confusion(o),
                "What a classifier of real digits says of a hundred images of each label, in per "
                "cent; first seed.",
            ),
        ]
    )


_ACCURACY = (
    "How often a classifier trained on real data gives generated data (a thousand a class) the "
    "label asked for: mean and standard error over the seeds."
)


def _names(o: Outcome) -> list[str]:
    return [str(label) for label in range(o.data.num_labels or 1)]


def _grid(o: Outcome, label: str, rows: int = 6) -> Figure | None:
    vae, labels = o.vae(label), torch.arange(o.data.num_labels or 1)
    with evaluating(vae):
        torch.manual_seed(0)
        return picture(
            o,
            [vae.sample(len(labels), labels, mean=True) for _ in range(rows)],
            columns=_names(o),
        )


def _style(o: Outcome, label: str, rows: int = 6) -> Figure | None:
    if o.data.train.y is None:
        return None
    vae, labels = o.vae(label), torch.arange(o.data.num_labels or 1)
    train = o.data.train.frozen()
    with evaluating(vae):
        z = vae.encode(train.x, train.y)
        center = z.mean(0)
        _, sizes, directions = torch.linalg.svd(z - center, full_matrices=False)
        width = sizes[0] / math.sqrt(len(z))
        steps = torch.linspace(-2, 2, rows).unsqueeze(-1) * width * directions[0]
        made = [vae.decode((center + s).expand(len(labels), -1), labels) for s in steps]
    return picture(o, made, columns=_names(o))


def _accuracy(o: Outcome) -> Figure:
    with style():
        figure, (ax,) = axes_of(2.8)
        for shift, name in zip((-0.15, 0.15), o.labels[1:], strict=False):
            rows = o.table.loc[o.table["label"] == name, "by_class"]
            by_class = 100 * np.array([row for row in rows if row])
            error = (
                by_class.std(0, ddof=1) / math.sqrt(len(by_class)) if len(by_class) > 1 else None
            )
            color = COLORS[0 if shift < 0 else 1]
            at = np.arange(by_class.shape[1]) + shift
            ax.errorbar(at, by_class.mean(0), yerr=error, fmt="o", ms=5, color=color)
            height = 0.1 if shift < 0 else 0.02
            ax.text(0.99, height, name, color=color, ha="right", transform=ax.transAxes)
        real = 100 * o.values(o.labels[1], "class_accuracy_real").mean()
        ax.axhline(real, color="0.5", lw=0.8, ls=":")
        ax.text(-0.4, real + 0.3, "real test data", color="0.4", fontsize=8)
        ax.set_xticks(range(o.data.num_labels or 1))
        ax.set_xlabel("label asked for")
        ax.set_ylabel("classifier agrees (%)")
    return figure


def _said(o: Outcome, name: str, per_class: int = 100) -> Any:
    """What the classifier says (columns) of images of each label (rows), in per cent."""
    train, count = o.data.train.frozen(), o.data.num_labels or 1
    labels = torch.arange(count).repeat_interleave(per_class)
    vae = o.vae(name)
    with torch.random.fork_rng(devices=[]), evaluating(vae):
        made = generate(vae, labels, seed=0).flatten(1).numpy()
    said = classifier(train.x, cast(torch.Tensor, train.y)).predict(made)
    found = np.zeros((count, count))
    np.add.at(found, (labels.numpy(), said), 100 / per_class)
    return found


def _confusion(o: Outcome) -> Figure:
    with style():
        figure, axes = axes_of(3.0, len(o.labels) - 1, sharey=True)
        for ax, name in zip(axes, o.labels[1:], strict=True):
            found = _said(o, name)
            ax.imshow(found, cmap="Blues", vmin=0, vmax=100)
            for (row, column), value in np.ndenumerate(found):
                if value >= 1:
                    color = "white" if value > 60 else "black"
                    at = {"ha": "center", "va": "center", "fontsize": 7, "color": color}
                    ax.text(column, row, f"{value:.0f}", **at)
            ticks = range(len(found))
            ax.set(title=name, xlabel="classifier says", xticks=ticks, yticks=ticks)
        axes[0].set_ylabel("label asked for")
    return figure


def findings(o: Outcome) -> list[str]:
    """Whether the generator follows the label, and what the label saves."""
    plain, cell = o.labels[0], o.cell
    most = o.note(f"log {o.data.num_labels}", f"{math.log(o.data.num_labels or 1):.2f}")
    found, joint = [], []
    for label in o.labels[1:]:
        gap = o.paired(label, plain)
        total = gap.mean + math.log(o.data.num_labels or 1)
        text = with_error(abs(total), gap.error)
        way = "worse" if total > 0 else "better"
        joint.append(f"{o.note(f'{label} p(y) against p(x)', text)} nats {way} with *{label}*")
    best = o.chosen(o.labels[1:]) or o.labels[-1]
    share = o.note(f"images with the label asked for, {best}", _percent(o, best, "generated"))
    real = o.note("test images with their label", _percent(o, best, "class", "_real"))
    found.append(
        f"The generator follows the label: a classifier of real digits gives {share} of the images "
        f"of *{best}* the label they were asked for, and {real} of real test images theirs. The "
        f"label saves likelihood: NLL is {cell(best, 'NLL')} given the label and "
        f"{cell(plain, 'NLL')} without."
    )
    found.append(
        "It saves less than it costs to state. As a joint model, p(x, y) = p(x|y) p(y) with "
        f"classes alike in number costs {most} nats for the label, and is {joined(joint)} "
        "than p(x) alone on x: z of the plain model had found most of what the label says."
    )
    pairs = _confused(o, best)
    if pairs:
        found.append(
            f"Where *{best}* misses the label, it draws a digit that shares most of its strokes: "
            f"{joined(pairs)} (first seed). A draw of z between two ways of writing one digit may "
            "be a way of writing another."
        )
    found.append(
        "With the label given to encoder and decoder, z is left to carry the style: "
        f"{cell(best, 'I(x; z)')} nats with *{best}*, {cell(plain, 'I(x; z)')} without labels. So "
        "one z makes all digits in one handwriting."
    )
    return found


def _percent(o: Outcome, label: str, start: str, end: str = "") -> str:
    return f"{100 * o.mean(label, f'{start}_accuracy{end}')[0]:.1f}%"


def _confused(o: Outcome, label: str, most: int = 3) -> list[str]:
    found = _said(o, label)
    np.fill_diagonal(found, 0)
    order = np.dstack(np.unravel_index(np.argsort(-found, axis=None), found.shape))[0]
    return [
        f"{a} read as {b} ({o.note(f'{a} read as {b}', f'{found[a, b]:.0f}%')})"
        for a, b in order[:most]
        if found[a, b] > 0
    ]


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
