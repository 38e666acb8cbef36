"""Sheets of images from trained models: what they rebuild, draw, and make of their latent space.

Rows have noise of their own, so that two models look alike only if they are. Each function returns
None if the data are no images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vaes.experiments.outcomes import Outcome
from pyro_vaes.experiments.panels import greek
from pyro_vaes.plotting import image_grid
from pyro_vaes.vae import VAE, evaluating

__all__ = [
    "drawn_means",
    "interpolated",
    "manifold",
    "neighbours",
    "picture",
    "rebuilt",
    "traversed",
]


def picture(
    o: Outcome,
    rows: Sequence[Tensor],
    names: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Figure | None:
    """Rows of images with names at the left and, if given, above the columns."""
    if o.data.image_shape is None:
        return None
    high = float((o.data.num_levels or 2) - 1)
    return image_grid(
        torch.cat([row.flatten(1) for row in rows]),
        o.data.image_shape,
        columns=len(rows[0]),
        row_labels=None if names is None else [greek(name) for name in names],
        column_labels=columns,
        value_range=None if o.data.kind == "real" else (0.0, high),
    )


def _labels(o: Outcome, vae: VAE, rows: slice) -> Tensor | None:
    y = o.data.test.y
    return y[rows] if vae.conditional and y is not None else None


def rebuilt(o: Outcome, labels: Sequence[str], num: int = 12) -> Figure | None:
    """Test images, and below them the mean of p(x | z) at the mean of z of each model."""
    x = o.data.test.frozen().x[:num]
    rows = [x]
    for label in labels:
        vae = o.vae(label)
        with evaluating(vae):
            rows.append(vae.reconstruct(x, _labels(o, vae, slice(num))))
    return picture(o, rows, ["data", *labels])


def drawn_means(o: Outcome, labels: Sequence[str], num: int = 12) -> Figure | None:
    """The means of p(x | z) at draws of z from the prior of each model."""
    rows = []
    for seed, label in enumerate(labels):
        vae = o.vae(label)
        with evaluating(vae):
            torch.manual_seed(seed)
            rows.append(vae.sample(num, mean=True))
    return picture(o, rows, labels)


def traversed(o: Outcome, label: str, units: Sequence[int], steps: int = 12) -> Figure | None:
    """A test image as each of some latent units runs through the bulk of the prior."""
    if o.data.image_shape is None:
        return None
    vae = o.vae(label)
    with evaluating(vae):
        walks = vae.traverse(o.data.test.frozen().x[:1], list(units), steps)[0]
    return picture(o, list(walks), [f"unit {unit}" for unit in units])


def interpolated(o: Outcome, labels: Sequence[str], pairs: int = 2) -> Figure | None:
    """Means on straight lines in the latent space between test images of different classes.

    Rows have the names of their models, or of their classes where there is one model.
    """
    if o.data.image_shape is None:
        return None
    test, rows, names = o.data.test.frozen(), [], []
    x = test.x
    for first, second in _pairs(test.y, len(x))[:pairs]:
        for label in labels:
            vae = o.vae(label)
            with evaluating(vae):
                a, b = x[first : first + 1], x[second : second + 1]
                rows.append(torch.cat([a, vae.interpolate(a, b, 10)[0], b]))
                by_class = None if len(labels) > 1 or test.y is None else test.y[[first, second]]
                names.append(label if by_class is None else "{} to {}".format(*by_class.tolist()))
    return picture(o, rows, names)


def _pairs(y: Tensor | None, count: int) -> list[tuple[int, int]]:
    """Pairs of rows in their order, of different classes where there are labels."""
    left, pairs = list(range(min(count, 100))), []
    while len(left) > 1:
        first = left.pop(0)
        second = next((i for i in left if y is None or y[i] != y[first]), left[0])
        left.remove(second)
        pairs.append((first, second))
    return pairs


def neighbours(o: Outcome, label: str, num: int = 12) -> Figure | None:
    """Draws of a model, as means, above the training images next to them by squared distance."""
    vae, known = o.vae(label), o.data.train.frozen().x
    with evaluating(vae):
        torch.manual_seed(0)
        means = vae.sample(num, mean=True)
    near = torch.cdist(means.flatten(1), known.flatten(1).to(means)).argmin(1)
    return picture(o, [means, known[near]], ["means", "nearest"])


def manifold(o: Outcome, label: str, side: int = 16) -> Figure | None:
    """The means of p(x | z) over a latent plane, at equal steps of the normal distribution."""
    vae = o.vae(label)
    if o.data.image_shape is None or vae.posterior.latent_dim != 2:
        return None
    steps = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    z = torch.stack(torch.meshgrid(steps, -steps, indexing="xy"), -1)
    with evaluating(vae):
        rows = [vae.decode(row) for row in z]
    return picture(o, rows)
