"""What a page on a model shows: codes, reconstructions, paths through the code, scores."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes import plotting
from pyro_vaes.data.splits import Split
from pyro_vaes.evaluation.scores import Scores, score
from pyro_vaes.vae import VAE

__all__ = ["Contents", "Rows", "contents_of"]

# A unit is active if its posterior mean varies by more than this (Burda et al. 2016, section 5.2).
_ACTIVE = 0.01
# Data on a traversal and on a path between two rows; units and rows to go between, at most.
_WALK, _PATH, _UNITS, _ENDS = 7, 11, 16, 8
# Numbers in all traversals, at most: they bound the size of the page.
_NUMBERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that a page shows.

    Attributes:
        x: ``(n, *event_shape)``.
        y: labels ``(n,)`` or conditions ``(n, columns)`` for a conditional model, else None.
        classes: labels ``(n,)`` that the rows are coloured by, if there are any.
        names: of the rows.
        image_shape: ``(C, H, W)`` if a datum is an image.
        columns: writes data ``(n, *event_shape)`` as named columns.
        class_names: of the classes, in the order of their numbers; numbers if None.
    """

    x: Tensor
    y: Tensor | None
    classes: Tensor | None
    names: Sequence[str]
    image_shape: Sequence[int] | None
    columns: Callable[[Any], Mapping[str, Any]]
    class_names: Sequence[str] | None = None

    def some(self, count: int) -> Rows:
        """At most ``count`` rows, evenly spaced."""
        if len(self.x) <= count:
            return self
        index = torch.linspace(0, len(self.x) - 1, count).round().long()
        y, classes = (None if v is None else v[index] for v in (self.y, self.classes))
        names = [self.names[i] for i in index.tolist()]
        return dataclasses.replace(self, x=self.x[index], y=y, classes=classes, names=names)

    @property
    def labels(self) -> list[str]:
        """A word for the class of each row."""
        if self.classes is None:
            return ["all rows"] * len(self.x)
        names = self.class_names
        return [str(c) if names is None else str(names[c]) for c in self.classes.tolist()]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the page shows.

    Attributes:
        rows: the data.
        plane: their posterior means and the prior, in two dimensions.
        scores: log p(x) of each.
        means: their reconstructions, ``(n, *event_shape)``.
        units: the active units, those that vary most first.
        inactive: how many others there are.
        walked: the rows that have traversals.
        walks: those, ``(len(walked), len(units), steps, *event_shape)``.
        ends: the rows with paths between them.
        paths: from each of these to each later one, ``(pairs, steps, *event_shape)``.
    """

    rows: Rows
    plane: plotting.Plane
    scores: Scores
    means: Tensor
    units: list[int]
    inactive: int
    walked: list[int]
    walks: Tensor
    ends: list[int]
    paths: Tensor

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The ends of each path."""
        return list(itertools.combinations(self.ends, 2))


def contents_of(
    vae: VAE,
    rows: Rows,
    *,
    num_samples: int = 500,
    proposal: str = "auto",
    seed: int = 0,
    units: Sequence[int] | None = None,
) -> Contents:
    """Computes what a page shows.

    Args:
        vae: the model.
        rows: what it is looked at with.
        num_samples: draws per row for log p(x).
        proposal: what z is drawn from, as for :func:`.evaluate`.
        seed: seed of these draws.
        units: the active units; those whose posterior mean varies over these rows if None.

    Returns:
        The contents.
    """
    x, y = rows.x, rows.y
    codes = vae.encode(x, y)
    spread = codes.double().var(0)
    active = [int(i) for i in (spread > _ACTIVE).nonzero()] if units is None else list(units)
    shown = sorted(active, key=lambda unit: -float(spread[unit]))[:_UNITS]
    walked = _walked(rows, len(shown))
    ends = _ends(codes, rows.classes, y)
    pairs = list(itertools.combinations(ends, 2))
    firsts, lasts = ([pair[i] for pair in pairs] for i in (0, 1))
    return Contents(
        rows=rows,
        plane=plotting.plane_of(vae, Split(x, rows.classes if y is None else y), num=len(x)),
        scores=score(vae, x, y, num_samples=num_samples, proposal=proposal, seed=seed),
        means=vae.reconstruct(x, y),
        units=shown,
        inactive=codes.shape[1] - len(active),
        walked=walked,
        walks=vae.traverse(x[walked], shown, _WALK, None if y is None else y[walked])
        if shown
        else x.new_empty(len(walked), 0, _WALK, *x.shape[1:]),
        ends=ends,
        paths=vae.interpolate(x[firsts], x[lasts], _PATH, None if y is None else y[firsts])
        if pairs
        else x.new_empty(0, _PATH, *x.shape[1:]),
    )


def _walked(rows: Rows, units: int) -> list[int]:
    """Rows with traversals, evenly spaced: as many as the page has room for."""
    each = max(1, units) * _WALK * math.prod(rows.x.shape[1:])
    count = max(1, min(len(rows.x), _NUMBERS // each))
    return np.linspace(0, len(rows.x) - 1, count).round().astype(int).tolist()


def _ends(codes: Tensor, classes: Tensor | None, y: Tensor | None) -> list[int]:
    """Rows to go between: the most central of each class, or else some far from each other.

    A conditional model follows one label only, so that they are rows of the first.
    """
    if y is not None:
        inside = (y == y[0]).reshape(len(y), -1).all(1).nonzero().flatten()
        return sorted(inside[_far(codes[inside])].tolist())
    if classes is None or len(classes.unique()) < 2:
        return sorted(_far(codes))
    found = []
    for label in classes.unique()[:_ENDS]:
        inside = (classes == label).nonzero().flatten()
        center = codes[inside].median(0).values
        found.append(int(inside[(codes[inside] - center).norm(dim=1).argmin()]))
    return sorted(found)


def _far(codes: Tensor) -> list[int]:
    """Rows far from each other: each next one is the farthest from those before."""
    chosen = [0]
    while len(chosen) < min(_ENDS, len(codes)):
        distance = torch.cdist(codes, codes[chosen]).min(1).values
        if not float(distance.max()) > 0:
            break
        chosen.append(int(distance.argmax()))
    return chosen
