"""Figures in one shared style: samples, reconstructions, learning curves, the latent space.

Functions return a ``matplotlib`` figure without a window: save it, or let a notebook show it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.mlab import GaussianKDE
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional

from pyro_vaes.data.splits import Split
from pyro_vaes.storage.files import replacing
from pyro_vaes.vae import VAE, evaluating

__all__ = [
    "Plane",
    "apart",
    "image_grid",
    "latent_space",
    "learning_curves",
    "plane_of",
    "reconstructions",
    "save_figure",
    "style",
]


# A colour-blind safe palette (Okabe and Ito); ten labels need three further greys and browns.
_PALETTE = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"),
)
_INK = ".15"
_WIDTH = 6.0  # inches, a text column


@contextmanager
def style() -> Iterator[None]:
    """The shared style of all figures.

    >>> from pyro_vaes import plotting
    >>> from matplotlib.figure import Figure
    >>> with plotting.style():
    ...     figure = Figure(figsize=(6, 4))
    """
    settings = {
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), _INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "figure.dpi": 110,
        "font.size": 10,
        "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "sans-serif"],
        "legend.frameon": False,
        "lines.solid_capstyle": "round",
        "patch.edgecolor": "w",
        "patch.force_edgecolor": True,
        "savefig.bbox": "tight",
    }
    with mpl.rc_context(cast(Any, settings)):
        yield


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure whole or not at all, in the format of the suffix.

    >>> from pyro_vaes import plotting
    >>> figure = plotting.image_grid(pv.load_data("digits").test.x[:16], (1, 8, 8))
    >>> plotting.save_figure(figure, "digits.png").name
    'digits.png'

    Raises:
        RunFolderError: if it cannot be written.
    """
    path = Path(path)
    FigureCanvasAgg(figure)
    with style(), replacing(path) as temporary:
        figure.savefig(temporary)
    return path


def image_grid(
    images: Tensor,
    image_shape: Sequence[int],
    *,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Figure:
    """A grid of images, dark on white.

    >>> from pyro_vaes import plotting
    >>> figure = plotting.image_grid(pv.load_data("digits").test.x[:16], (1, 8, 8), columns=8)

    Args:
        images: ``(n, ...)``, each with as many elements as ``image_shape``.
        image_shape: ``(channels, height, width)``.
        columns: images in a row; a square grid if None.
        row_labels: labels to the left of the rows.
        column_labels: labels above the columns.
        value_range: values of white and black; those of the images if None.
    """
    channels, height, width = image_shape
    pictures = images.detach().cpu().float().reshape(-1, channels, height, width)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    low, high = value_range or (pictures.min().item(), pictures.max().item())
    scaled = ((pictures - low) / max(high - low, 1e-12)).clamp(0, 1)
    if channels == 1:
        scaled = 1 - scaled  # ink on paper
    gap = max(1, height // 8)
    sheet = _tiled(scaled, columns, gap)
    with style():
        scale = _WIDTH / sheet.shape[1]
        figure = Figure(figsize=(_WIDTH, max(0.6, scale * sheet.shape[0])))
        axes = figure.add_subplot()
        axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        for row, text in enumerate(row_labels or ()):
            y = row * (height + gap) + height / 2 - 0.5
            axes.text(-gap, y, text, ha="right", va="center", fontsize=9)
        for column, text in enumerate(column_labels or ()):
            x = column * (width + gap) + width / 2 - 0.5
            axes.text(x, -gap, text, ha="center", va="bottom", fontsize=9)
    return figure


def _tiled(images: Tensor, columns: int, gap: int) -> Any:
    """Images ``(n, channels, height, width)`` in rows, white between: ``(.., .., channels)``."""
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    framed = functional.pad(torch.cat([images, blank]), (0, gap, 0, gap), value=1.0)
    rows = framed.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    return rows.flatten(2, 3).flatten(0, 1)[:-gap, :-gap].numpy()


def reconstructions(vae: VAE, split: Split, image_shape: Sequence[int], *, num: int = 12) -> Figure:
    """Data in the upper row of each pair, their reconstructions (means) in the lower.

    >>> from pyro_vaes import plotting
    >>> figure = plotting.reconstructions(vae, pv.Split(torch.randn(20, 4)), (1, 2, 2), num=5)
    """
    with evaluating(vae):
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
    """Training and validation loss by epoch, the kept epoch marked.

    >>> from pyro_vaes import plotting
    >>> records = [{"epoch": i, "train_loss": 9 / i, "val_loss": 10 / i} for i in (1, 2, 3)]
    >>> figure = plotting.learning_curves(records, best_epoch=3)
    """
    with style():
        figure = Figure(figsize=(_WIDTH, 0.6 * _WIDTH))
        axes = figure.add_subplot()
        epochs = [record["epoch"] for record in records]
        shown = []
        curves = [
            (name, [record[key] for record in records], color)
            for name, key, color in (
                ("training", "train_loss", _PALETTE[0]),
                ("validation", "val_loss", _PALETTE[1]),
            )
            if records and key in records[0]
        ]
        # Names above and below, in case the curves end close together.
        for (name, values, color), va in zip(
            sorted(curves, key=lambda curve: curve[1][-1]), ("top", "bottom"), strict=False
        ):
            axes.plot(epochs, values, color=color)
            axes.text(epochs[-1], values[-1], f" {name}", color=color, va=va)
            shown += values
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.6", linewidth=0.8, linestyle=":")
            axes.text(
                best_epoch,
                1.0,
                " kept ",
                color="0.4",
                ha="right" if 2 * best_epoch > len(records) else "left",
                va="top",
                transform=axes.get_xaxis_transform(),
                fontsize=9,
            )
        if shown:
            # The losses of the first epochs would hide the rest.
            low, high = min(shown), float(np.quantile(shown, 0.9))
            axes.set_ylim(low - 0.05 * (high - low + 1), high + 0.6 * (high - low) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats per datum)")
    return figure


class Plane(NamedTuple):
    """Posterior means and draws from the prior, projected; see :func:`plane_of`.

    >>> from pyro_vaes import plotting
    >>> plane = plotting.plane_of(vae, pv.Split(torch.randn(200, 4)))
    >>> plane.points.shape, plane.prior.shape, plane.latent_dim
    ((200, 2), (4000, 2), 2)
    """

    points: Any
    """Posterior means, ``(n, 2)``, or ``(n, 1)`` for one latent unit."""
    prior: Any
    """Draws from the prior, ``(4000, 2)`` or ``(4000, 1)``."""
    latent_dim: int
    """The number of latent units."""


def plane_of(vae: VAE, split: Split, *, num: int = 1000) -> Plane:
    """The two dimensions in which :func:`latent_space` shows posterior means and the prior.

    >>> from pyro_vaes import plotting
    >>> plotting.plane_of(vae, pv.Split(torch.randn(200, 4)), num=50).points.shape
    (50, 2)

    Args:
        vae: the model.
        split: the data.
        num: how many rows, at most.
    """
    with evaluating(vae):
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
    return Plane(points, ground, means.shape[1])


def latent_space(vae: VAE, split: Split, *, num: int = 1000) -> Figure:
    """Posterior means in two dimensions, over the prior's density there.

    Beyond two latent dimensions the figure shows the plane of the means' first two principal
    components, with the density of the prior's draws projected onto it. In one dimension the height
    is the prior's density, and the means of each label are on a line of their own.

    >>> from pyro_vaes import plotting
    >>> figure = plotting.latent_space(vae, pv.Split(torch.randn(200, 4), torch.arange(200) % 3))
    """
    points, ground, latent_dim = plane_of(vae, split, num=num)
    # Conditions that are a matrix are no classes.
    labels = None if split.y is None or split.y.dim() > 1 else split.y[:num]
    classes = None if labels is None else labels.cpu().numpy()
    with style():
        figure = Figure(figsize=(_WIDTH, 0.85 * _WIDTH))
        axes = figure.add_subplot()
        plane = points.shape[1] > 1
        if not plane:
            grid, density = _density(ground, 200)
            axes.fill_between(grid[0], density, color="0.6", alpha=0.25, linewidth=0)
            axes.set_ylim(bottom=0)
            lines = _lines(classes, len(points)) * axes.get_ylim()[1]
            points = np.column_stack([points, lines])
        else:
            (across, up), density = _density(ground, 80)
            levels = np.unique(_holding(density, np.linspace(0.02, 1, 8)))
            if len(levels) > 1:  # Outliers may leave all mass to one place of the grid.
                axes.contourf(across, up, density, levels=levels, cmap="Greys", alpha=0.6)
        if classes is None:
            axes.scatter(points[:, 0], points[:, 1], s=6, color=_PALETTE[0], linewidths=0)
        else:
            present = np.unique(classes)
            for label in present:
                here = points[classes == label]
                color = _PALETTE[int(label) % len(_PALETTE)]
                axes.scatter(here[:, 0], here[:, 1], s=8, color=color, linewidths=0, alpha=0.8)
            # Drawn last, over all points.
            medians = np.array([np.median(points[classes == label], axis=0) for label in present])
            for label, (x0, y0) in zip(present, _on_axes(medians, axes), strict=True):
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
                        "edgecolor": _PALETTE[int(label) % len(_PALETTE)],
                        "alpha": 0.85,
                    },
                )
        what = "principal component" if latent_dim > 2 else "dimension"
        axes.set_xlabel(f"first {what} of z")
        axes.set_ylabel(f"second {what} of z" if plane else "prior's density")
    return figure


def _density(points: Any, size: int) -> tuple[list[Any], Any]:
    """A kernel estimate from points ``(n, d)``: a grid for each axis, and the density on it.

    The bandwidth is Scott's, and the grid reaches three of them beyond the points.
    """
    kernel: Any = GaussianKDE(points.T)
    reach = 3 * np.sqrt(kernel.covariance.diagonal())
    axes = np.linspace(points.min(0) - reach, points.max(0) + reach, size).T
    grid = np.meshgrid(*axes)
    density = kernel(np.stack([axis.ravel() for axis in grid])).reshape(grid[0].shape)
    return list(axes), density


def _holding(density: Any, shares: Any) -> Any:
    """Heights below which a density has these shares of its mass on the grid."""
    heights = np.sort(density, axis=None)
    mass = heights.cumsum() / heights.sum()
    return heights[np.minimum(mass.searchsorted(shares), len(mass) - 1)]


def _lines(classes: Any, n: int) -> Any:
    """The height of each datum: a line for each label, evenly over (0, 1)."""
    if classes is None:
        return np.full(n, 0.5)
    labels, index = np.unique(classes, return_inverse=True)
    return (index + 1) / (len(labels) + 1)


def apart(places: Any, least: float) -> Any:
    """Places of labels ``(n, d)``, moved until no two are closer than ``least``.

    >>> from pyro_vaes import plotting
    >>> plotting.apart([[0.0, 0.0], [0.0, 1.0]], least=2.0).tolist()
    [[0.0, -0.5], [0.0, 1.5]]
    """
    places = np.array(places, dtype=float)
    for _ in range(100):
        for i, j in itertools.combinations(range(len(places)), 2):
            way = places[j] - places[i]
            distance = np.linalg.norm(way)
            if distance < least:
                # At the same place any direction will do.
                way = way / distance if distance else np.cos(j + np.arange(way.size))
                push = way / np.linalg.norm(way) * (least - distance) / 2
                places[i], places[j] = places[i] - push, places[j] + push
    return places


def _on_axes(places: Any, axes: Any, least: float = 0.06) -> Any:
    """:func:`apart` by a share of the axes."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    corner, size = np.array([left, low]), np.array([right - left, high - low])
    return apart((places - corner) / size, least) * size + corner
