"""Pictures: each answers one question, in one shared style.

Functions return a ``matplotlib`` figure that belongs to no window: save it, or let a notebook show
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vaes.data import Split
from pyro_vaes.evaluation import untouched
from pyro_vaes.vae import VAE

__all__ = [
    "image_grid",
    "latent_space",
    "learning_curves",
    "reconstructions",
    "save_figure",
    "style",
]

# A colour-blind safe palette (Okabe and Ito); ten labels need three further greys and browns.
_PALETTE = sns.color_palette("colorblind", 10)
_WIDTH = 6.0  # inches, a text column


@contextmanager
def style() -> Iterator[None]:
    """The shared style of all figures."""
    settings = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "figure.dpi": 110,
        "font.size": 10,
        "legend.frameon": False,
        "savefig.bbox": "tight",
    }
    with mpl.rc_context(cast(Any, {**sns.axes_style("ticks"), **settings})):
        yield


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure whole or not at all; the suffix says the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    FigureCanvasAgg(figure)
    with style():
        figure.savefig(temporary)
    temporary.replace(path)
    return path


def image_grid(
    images: Tensor,
    image_shape: Sequence[int],
    *,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """A grid of images, dark on white.

    Args:
        images: ``(n, ...)``, each of ``image_shape``'s number of elements.
        image_shape: ``(channels, height, width)``.
        columns: images in a row; a square grid if None.
        row_labels: words beside the rows.
        value_range: values of white and black; those of the images if None.
    """
    channels, height, width = image_shape
    pictures = images.detach().cpu().float().reshape(-1, channels, height, width)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    low, high = value_range or (pictures.min().item(), pictures.max().item())
    scaled = ((pictures - low) / max(high - low, 1e-12)).clamp(0, 1)
    if channels == 1:
        scaled = 1 - scaled  # ink on paper
    gap = max(1, height // 8)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for i, picture in enumerate(scaled.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    with style():
        scale = _WIDTH / sheet.shape[1]
        figure = Figure(figsize=(_WIDTH, max(0.6, scale * sheet.shape[0])))
        axes = figure.add_subplot()
        axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        for row, text in enumerate(row_labels or ()):
            y = row * (height + gap) + height / 2 - 0.5
            axes.text(-gap, y, text, ha="right", va="center", fontsize=9)
    return figure


def reconstructions(vae: VAE, split: Split, image_shape: Sequence[int], *, num: int = 12) -> Figure:
    """Data in the upper row of each pair, their reconstructions (means) in the lower."""
    with untouched(vae):
        x = split.x[:num].to(vae.device, vae.dtype)
        y = None if split.y is None or not vae.conditional else split.y[:num].to(vae.device)
        rebuilt = vae.reconstruct(x, y)
    value_range = (x.min().item(), x.max().item())
    return image_grid(
        torch.cat([x, rebuilt]),
        image_shape,
        columns=len(x),
        row_labels=["data", "model"],
        value_range=value_range,
    )


def learning_curves(records: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> Figure:
    """Training and validation loss by epoch, the kept epoch marked."""
    with style():
        figure = Figure(figsize=(_WIDTH, 0.6 * _WIDTH))
        axes = figure.add_subplot()
        epochs = [record["epoch"] for record in records]
        shown = []
        for name, key, color in (
            ("training", "train_loss", _PALETTE[0]),
            ("validation", "val_loss", _PALETTE[1]),
        ):
            if records and key in records[0]:
                values = [record[key] for record in records]
                axes.plot(epochs, values, color=color)
                axes.text(epochs[-1], values[-1], f" {name}", color=color, va="center")
                shown += values
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.6", linewidth=0.8, linestyle=":")
            axes.text(
                best_epoch,
                1.0,
                "kept ",
                color="0.4",
                ha="right",
                va="top",
                transform=axes.get_xaxis_transform(),
                fontsize=9,
            )
        if shown:
            # The first epochs tower over all that matters.
            low, high = min(shown), float(np.quantile(shown, 0.9))
            axes.set_ylim(low - 0.05 * (high - low + 1), high + 0.6 * (high - low) + 1)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats per datum)")
    return figure


def latent_space(vae: VAE, split: Split, *, num: int = 1000) -> Figure:
    """Posterior means in two dimensions, over the prior's density there.

    Beyond two latent dimensions the picture shows the plane of the means' first two principal
    components, and the prior's density in it is that of its own draws, projected.
    """
    with untouched(vae):
        torch.manual_seed(0)
        x = split.x[:num].to(vae.device, vae.dtype)
        y = None if split.y is None else split.y[:num].to(vae.device)
        means = vae.encode(x, y if vae.conditional else None).float()
        center = means.mean(0)
        axes_ = torch.linalg.svd(means - center, full_matrices=False).Vh[:2]
        if means.shape[1] <= 2:
            center, axes_ = torch.zeros_like(center), torch.eye(means.shape[1], device=x.device)
        draws = 4000
        labels = None
        if vae.prior_is_conditional and y is not None:
            labels = y[torch.randint(len(y), (draws,), device=x.device)]
        prior = vae.p_z(labels)
        z = prior.sample(() if prior.batch_shape else (draws,)).float()
        points, ground = (((v - center) @ axes_.mT).cpu().numpy() for v in (means, z))
    if points.shape[1] == 1:
        points, ground = (np.column_stack([v, np.zeros_like(v)]) for v in (points, ground))
    with style():
        figure = Figure(figsize=(_WIDTH, 0.85 * _WIDTH))
        axes = figure.add_subplot()
        if ground[:, 1].std() > 0:
            sns.kdeplot(
                x=ground[:, 0],
                y=ground[:, 1],
                fill=True,
                cmap="Greys",
                alpha=0.6,
                levels=8,
                thresh=0.02,
                gridsize=80,  # The default's 200 take a second and look the same.
                ax=axes,
            )
        if y is None:
            axes.scatter(points[:, 0], points[:, 1], s=6, color=_PALETTE[0], linewidths=0)
        else:
            classes = y.cpu().numpy()
            for label in np.unique(classes):
                here = points[classes == label]
                color = _PALETTE[int(label) % len(_PALETTE)]
                axes.scatter(here[:, 0], here[:, 1], s=8, color=color, linewidths=0, alpha=0.8)
                x0, y0 = np.median(here, axis=0)
                axes.text(
                    x0,
                    y0,
                    str(label),
                    color="black",
                    weight="bold",
                    ha="center",
                    va="center",
                    fontsize=11,
                    bbox={
                        "boxstyle": "circle,pad=0.15",
                        "facecolor": "white",
                        "edgecolor": color,
                        "alpha": 0.85,
                    },
                )
        what = "principal component" if means.shape[1] > 2 else "dimension"
        axes.set_xlabel(f"first {what} of z")
        axes.set_ylabel(f"second {what} of z")
    return figure
