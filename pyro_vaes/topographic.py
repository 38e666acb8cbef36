"""A regular grid pushed through a network: the generative topographic mapping (GTM).

Bishop et al., "GTM: the generative topographic mapping" (1998). Into the latent space it makes a
prior (``priors.GTMPrior``), into the data space the pseudo-inputs of a VampPrior
(:class:`GTMPseudoInputs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_vaes.networks import Network, flat, join, positive
from pyro_vaes.spec import Described

__all__ = ["GTMPseudoInputs", "Grid", "check_bounds"]


class Grid(Described):
    """A regular grid over the plane, of unit variance, as a network sees it; with labels, for each.

    Args:
        network: sees the two coordinates of a point, and the one-hot label beside them.
        grid_size: points on each side; K is its square.
        num_labels: number of labels; 0 for none.

    Raises:
        ValueError: for a size below one or a network of another number of inputs.
    """

    def __init__(self, network: Network, grid_size: int, num_labels: int) -> None:
        super().__init__()
        positive(grid_size=grid_size)
        if network.in_features != 2 + num_labels:
            raise ValueError(
                f"Expected a network with in_features={2 + num_labels} (two coordinates"
                f"{f' and {num_labels} labels' if num_labels else ''}); got {network.in_features}."
            )
        self.network = cast(nn.Module, network)
        self.out_features = network.out_features
        self.num_labels, self.num_components = num_labels, grid_size**2
        ticks = torch.arange(grid_size) - (grid_size - 1) / 2
        ticks = ticks / (math.sqrt((grid_size**2 - 1) / 12) or 1.0)
        self.register_buffer("points", torch.cartesian_prod(ticks, ticks), persistent=False)

    def features(self) -> Tensor:
        """The network's features ``(K, out_features)``, or ``(num_labels, K, out_features)``."""
        points = cast(Tensor, self.points)
        labels = torch.arange(self.num_labels, device=points.device).unsqueeze(-1)
        return cast(Tensor, self.network(join(points, labels, self.num_labels)))


class GTMPseudoInputs(Grid):
    """Pseudo-inputs for a ``VampPrior``: a grid pushed through a network into the data space.

    The GTM-VampPrior of Tomczak, "Deep generative modeling" (2022), chapter 4: neighbours on the
    grid become similar pseudo-inputs. :meth:`initialize` starts them near given data.

    Args:
        network: maps the two coordinates of a grid point (and the one-hot label) to features.
        event_shape: shape of one datum.
        grid_size: points on each side of the grid.
        bounds: ``(low, high)`` to keep the pseudo-inputs within, by a sigmoid; unbounded if None.
        num_labels: number of labels of a conditional posterior; each then has a whole grid.

    Raises:
        ValueError: for sizes below one, bounds in the wrong order, or a network of another number
            of inputs.
    """

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        grid_size: int = 10,
        bounds: Sequence[float] | None = None,
        num_labels: int = 0,
    ) -> None:
        super().__init__(network, grid_size, num_labels)
        self.event_shape = tuple(event_shape)
        self.bounds = check_bounds(bounds)
        self.head = nn.Linear(self.out_features, math.prod(self.event_shape))

    @property
    def labels(self) -> Tensor | None:
        """The label of each pseudo-input, None without labels."""
        if not self.num_labels:
            return None
        labels = torch.arange(self.num_labels, device=cast(Tensor, self.points).device)
        return labels.repeat_interleave(self.num_components)

    def forward(self) -> Tensor:
        u = self.head(self.features()).reshape(-1, *self.event_shape)
        if self.bounds is None:
            return cast(Tensor, u)
        low, high = self.bounds
        return low + (high - low) * u.sigmoid()

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Lays the grid on the plane of the data's two principal components, as GTM begins.

        Args:
            x: data ``(n, *event_shape)``.
            y: their labels ``(n,)``; each label's grid is laid on the plane of its own data.
        """
        points = cast(Tensor, self.points)
        rows = flat(x, self.event_shape).to(points)
        planes = []
        for label in range(max(self.num_labels, 1)):
            own = rows if y is None or not self.num_labels else rows[y == label]
            center = (own if len(own) else rows).mean(0)
            _, deviations, axes = torch.pca_lowrank(
                own - center, q=min(2, *own.shape), center=False
            )
            scaled = axes * deviations / math.sqrt(max(len(own), 1))
            planes.append(center + points[:, : scaled.shape[1]] @ scaled.mT)
        target = torch.cat(planes)
        if self.bounds is not None:
            low, high = self.bounds
            # At the bound itself the sigmoid would be flat.
            target = ((target - low) / (high - low)).clamp(0.02, 0.98).logit()
        features = self.features().flatten(0, -2)
        design = torch.cat([features, torch.ones_like(features[:, :1])], dim=-1)
        solution = torch.linalg.lstsq(design.cpu(), target.cpu(), driver="gelsd").solution.to(
            target
        )
        self.head.weight.copy_(solution[:-1].mT)
        self.head.bias.copy_(solution[-1])


def check_bounds(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    """The bounds as floats, if they are two in order."""
    if bounds is None:
        return None
    low, high = map(float, bounds)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"Expected bounds with low < high, both finite; got ({low}, {high}).")
    return low, high
