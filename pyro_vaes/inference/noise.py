"""The noise of reparameterised draws: from a function, or some rows of a whole batch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import lowrank_multivariate_normal, multivariate_normal, normal

__all__ = ["Rows", "drawing_rows", "normals_drawn_by"]


# Arguments: shape, dtype, device.
Draw = Callable[[Any, Any, Any], Tensor]

_PLACES: tuple[Any, ...] = (normal, multivariate_normal, lowrank_multivariate_normal)
_standard_normal: Draw = _PLACES[0]._standard_normal


class Rows(NamedTuple):
    """Some rows of a batch."""

    start: int
    stop: int
    total: int


@contextmanager
def normals_drawn_by(draw: Draw) -> Iterator[None]:
    """Makes the normal distributions take their standard normal noise from a function.

    PyTorch has no hook for this noise, so its private ``_standard_normal`` is replaced.
    """
    before = [place._standard_normal for place in _PLACES]
    for place in _PLACES:
        place._standard_normal = draw
    try:
        yield
    finally:
        for place, original in zip(_PLACES, before, strict=True):
            place._standard_normal = original


@contextmanager
def drawing_rows(rows: Rows, plate: str = "data") -> Iterator[None]:
    """Gives a guide that sees some rows of a batch the noise of these rows in the whole batch.

    At each site the noise of the whole batch is drawn, from the usual generator, and the rows are
    selected: a process that sees other rows, with an equal generator, uses the rest of the same
    noise and leaves its generator in the same state.

    Args:
        rows: those that the guide sees.
        plate: the plate of the rows.

    Raises:
        ValueError: in the guide, at a site outside the plate or whose draws do not come from normal
            noise.
    """
    sites = _Sites(rows, plate)
    with sites, normals_drawn_by(sites.draw):
        yield


class _Sites(Messenger):
    """Follows a guide from site to site, with the dimension of the rows in the noise of each."""

    def __init__(self, rows: Rows, plate: str) -> None:
        super().__init__()
        self.rows, self.plate = rows, plate
        self.dim: int | None = None
        self.drawn = False

    def draw(self, shape: Any, dtype: Any, device: Any) -> Tensor:
        if self.dim is None:
            return _standard_normal(shape, dtype, device)
        self.drawn = True
        whole = list(shape)
        whole[self.dim] = self.rows.total
        start, stop, _ = self.rows
        return _standard_normal(whole, dtype, device).narrow(self.dim, start, stop - start)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        frame = next((f for f in msg["cond_indep_stack"] if f.name == self.plate), None)
        if frame is None:
            raise ValueError(
                f"Expected every latent site in the plate {self.plate!r}, whose members the "
                f"processes share; got {msg['name']!r} outside."
            )
        self.dim, self.drawn = frame.dim - msg["fn"].event_dim, False

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.dim is None:
            return
        self.dim = None
        if not self.drawn:
            raise ValueError(
                "Expected a guide that draws from normals, whose noise the processes share; "
                f"got {type(msg['fn']).__name__} at site {msg['name']!r}."
            )
