"""The base classes of flow layers and their transforms."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform, constraints

__all__ = ["ActivationNorm", "CachedTransform", "FlowLayer"]


class FlowLayer(nn.Module):
    """One layer of a flow; to add one, subclass it and enter the class in ``flows.LAYERS``.

    A subclass takes ``(dim, index, context_dim, **options)``, where ``index`` counts the layers of
    a flow from 0 (so that they can alternate), creates all its parameters in its constructor, and
    returns from ``forward(context)`` a list of new transforms over vectors of size ``dim``. The
    context is None, or a tensor ``(*batch, context_dim)``.

    Attributes:
        samples: whether draws can be made and scored together.
        scores: whether any value can be scored, so that the flow may serve as a prior.
        min_dim: the smallest ``dim`` that makes sense.
    """

    samples: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    min_dim: ClassVar[int] = 1

    def forward(self, context: Tensor | None) -> list[Transform]:
        raise NotImplementedError

    def initialize_from(self, z: Tensor) -> bool:
        """Starts from values ``(n, dim)`` that the layer is to put out; whether it depends on them.

        Called inside ``no_grad``.
        """
        return False


class ActivationNorm(nn.Module):
    """A shift and a scale of each component, which start such that given values are standard.

    Kingma and Dhariwal, "Glow" (2018), section 3.1. It keeps what passes a deep flow at unit scale,
    without statistics of the batch: the density stays one of z alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self) -> Transform:
        return AffineTransform(self.shift, self.log_scale.exp(), event_dim=1)

    def initialize_from(self, z: Tensor) -> None:
        """Sets mean and scale to those of values ``(n, dim)``.

        Raises:
            ValueError: for fewer than 2 values, which have no scale.
        """
        if len(z) < 2:
            raise ValueError(f"Expected at least 2 codes to start a flow from; got {len(z)}.")
        self.shift.copy_(z.mean(0))
        self.log_scale.copy_(z.std(0).clamp(min=1e-6).log())


def _near_identity(network: nn.Module) -> nn.Module:
    """Shrinks the last layer: by default couplings start thousands of nats away from the base."""
    last = cast(nn.Linear, cast(nn.ModuleList, network.layers)[-1])
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.mul_(0.1)
    return network


class CachedTransform(Transform):
    """A transform that keeps the log-determinant of the pair (x, y) that it computed last.

    A subclass defines :meth:`push` and, if it has an inverse, :meth:`pull`. Without an inverse it
    still scores its own draws: Pyro's cache finds the x of the same tensor y.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._log_det: Tensor | None = None

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image ``(*batch, D)`` of x and log abs det dy/dx ``(*batch)``."""
        raise NotImplementedError

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x ``(*batch, D)`` that y is the image of, and log abs det dy/dx ``(*batch)``."""
        raise NotImplementedError(
            f"Expected a value that this {type(self).__name__} drew itself, the same tensor; got "
            "another, and it has no inverse. Score it with a flow whose recipe says scores=True."
        )

    def _call(self, x: Tensor) -> Tensor:
        y, self._log_det = self.push(x)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, self._log_det = self.pull(y)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        known_x, known_y = self._cached_x_y
        if x is not known_x or y is not known_y:
            self(x)
        return cast(Tensor, self._log_det)
