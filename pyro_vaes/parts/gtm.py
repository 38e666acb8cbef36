"""Priors on a grid: generative topographic mapping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.core.bounds import held_bounds, hold_bounds
from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import append_labels, by_label, flat
from pyro_vaes.data.rows import thinned
from pyro_vaes.data.tables import filled
from pyro_vaes.distributions.mixtures import Mixture
from pyro_vaes.networks.mlp import Network, check_network, shape_of
from pyro_vaes.parts.priors import _labels
from pyro_vaes.parts.units import InUnits

__all__ = ["GTMPrior", "GTMPseudoInputs", "Grid"]


class Grid(Described):
    """A network's features of a regular grid over the plane, of unit variance; one per label.

    Args:
        network: maps the two coordinates of a point, and its one-hot label, to features.
        grid_size: points on each side; K is its square.
        num_labels: number of labels; 0 for none.

    Raises:
        ValueError: for a size below one or a network of another number of inputs.
    """

    points: Tensor

    def __init__(self, network: Network, grid_size: int, num_labels: int) -> None:
        super().__init__()
        positive(grid_size=grid_size)
        check_network(network)
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
        points = self.points
        labels = torch.arange(self.num_labels, device=points.device).unsqueeze(-1)
        return cast(Tensor, self.network(append_labels(points, labels, self.num_labels)))


class GTMPseudoInputs(Grid, InUnits):
    """Pseudo-inputs for a ``VampPrior``: a grid pushed through a network into the data space.

    The GTM-VampPrior of Tomczak, "Deep generative modeling" (2022), chapter 4: neighbours on the
    grid become similar pseudo-inputs. :meth:`initialize` starts them near given data.

    >>> data = pv.load_data("digits")
    >>> inputs = pv.GTMPseudoInputs(pv.MLP(2, [64]), (64,), grid_size=5, bounds=(0, 16))
    >>> inputs.initialize(data.train.x)
    >>> prior = pv.VampPrior(pv.NormalPosterior(pv.MLP(64, [128]), 16), inputs)
    >>> prior.pseudo_inputs.shape
    torch.Size([25, 64])

    Args:
        network: maps the two coordinates of a grid point (and the one-hot label) to features.
        event_shape: shape of one datum.
        grid_size: points on each side of the grid.
        bounds: ``(low, high)`` to keep the pseudo-inputs within, by a sigmoid, two numbers or two
            tensors of the shape of a datum; unbounded if None.
        num_labels: number of labels of a conditional posterior; each has its own grid.

    Raises:
        ValueError: for sizes below one, bounds in the wrong order, or a network of another number
            of inputs.
    """

    def __init__(
        self,
        network: Network,
        event_shape: Sequence[int],
        grid_size: int = 10,
        bounds: Sequence[Any] | None = None,
        num_labels: int = 0,
    ) -> None:
        super().__init__(network, grid_size, num_labels)
        self.event_shape = shape_of(event_shape)
        hold_bounds(self, bounds)
        self.head = nn.Linear(self.out_features, math.prod(self.event_shape))
        self._start_units()
        self._laid = False

    @property
    def bounds(self) -> tuple[Any, Any] | None:
        """The bounds, numbers or one for each element; None if unbounded."""
        return held_bounds(self)

    @torch.no_grad()
    def set_units(self, center: Any, spread: Any) -> None:
        """Makes the network work in these units, unless there are bounds.

        A grid that :meth:`initialize` has placed does not move.

        Args:
            center: a number, or one for each element: a tensor of the shape of a datum.
            spread: the same.
        """
        if self.bounds is not None:
            return
        old_center, old_spread = self._units
        if self._hold_units(center, spread, self.head.bias) and self._laid:
            center, spread = self._units
            flat_of = self.head.bias.new_zeros(self.event_shape)
            ratio, shift = (
                (flat_of + value).flatten()
                for value in (old_spread / spread, (old_center - center) / spread)
            )
            self.head.weight.mul_(ratio.unsqueeze(-1))
            self.head.bias.mul_(ratio).add_(shift)

    @property
    def labels(self) -> Tensor | None:
        """The label of each pseudo-input, None without labels."""
        if not self.num_labels:
            return None
        labels = torch.arange(self.num_labels, device=self.points.device)
        return labels.repeat_interleave(self.num_components)

    def forward(self) -> Tensor:
        u = self.head(self.features()).reshape(-1, *self.event_shape)
        if self.bounds is None:
            return self._to_data(cast(Tensor, u))
        low, high = self.bounds
        return low + (high - low) * u.sigmoid()

    def _frame(self, x: Tensor) -> tuple[Any, Any]:
        """Origin and width of the network's units, flat, in the units of the data."""
        if self.bounds is None:
            center, spread = (v.flatten() if isinstance(v, Tensor) else v for v in self._units)
            return center, spread
        low, high = (torch.as_tensor(bound).flatten() for bound in self.bounds)
        width = high - low
        return low.to(x.device), torch.where(width > 0, width, 1.0).to(x.device)

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Places the grid on the plane of the data's first two principal components, as in GTM.

        Args:
            x: data ``(n, *event_shape)``.
            y: their labels ``(n,)``; each label's grid is placed on the plane of its own data.
        """
        points = self.points
        # Components in the network's units, so that the units of the data do not matter.
        low, width = self._frame(x)
        x, y = x[thinned(x)], None if y is None else y[thinned(x)]
        rows = ((flat(filled(x), self.event_shape).double() - low) / width).to(points)
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
            # The sigmoid is flat at the bounds.
            target = target.clamp(0.02, 0.98).logit()
        features = self.features().flatten(0, -2)
        design = torch.cat([features, torch.ones_like(features[:, :1])], dim=-1)
        solution = torch.linalg.lstsq(design.cpu(), target.cpu(), driver="gelsd").solution.to(
            target
        )
        self.head.weight.copy_(solution[:-1].mT)
        self.head.bias.copy_(solution[-1])
        self._laid = True


class GTMPrior(Grid):
    """A mixture of diagonal Gaussians whose means are a grid pushed through a network into z.

    Bishop et al., "GTM: the generative topographic mapping" (1998), section 2, with a network
    instead of basis functions; as a prior in Tomczak, "Deep generative modeling" (2022),
    chapter 4. The mixture is joint over z: log sum_k w_k prod_d N(z_d | mu_d(g_k), sigma_kd).

    >>> prior = pv.GTMPrior(pv.MLP(2, [64]), latent_dim=16, grid_size=10)
    >>> prior().sample((10,)).shape
    torch.Size([10, 16])

    Args:
        network: maps the two coordinates of a grid point (and the one-hot label) to features.
        latent_dim: size of z.
        grid_size: points on each side of the grid; its square is the number of components.
        num_labels: number of labels of a conditional prior p(z | y); 0 for none.
        learn_weights: False (as in the paper) keeps the weights uniform, so that components between
            two clusters keep their density too.
        shared_scale: True (as in the paper, there one for all dimensions) gives all components the
            same scales; otherwise the network computes one for each.

    Raises:
        ValueError: for sizes below one or a network of another number of inputs.
    """

    logits: Tensor

    def __init__(
        self,
        network: Network,
        latent_dim: int,
        grid_size: int = 10,
        num_labels: int = 0,
        learn_weights: bool = True,
        shared_scale: bool = False,
    ) -> None:
        super().__init__(network, grid_size, num_labels)
        positive(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.loc = nn.Linear(self.out_features, latent_dim)
        with torch.no_grad():
            # An untrained network maps all points close together: start with unit variance.
            features = self.features().flatten(0, -2)
            center = features.mean(0)
            spread = self.loc(features - center).std(0, correction=0)
            self.loc.weight.div_(spread.clamp(min=1e-3).unsqueeze(-1))
            self.loc.bias.copy_(-self.loc.weight @ center)
        self.log_scale: nn.Linear | nn.Parameter
        if shared_scale:
            self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        else:
            self.log_scale = nn.Linear(self.out_features, latent_dim)
            nn.init.zeros_(self.log_scale.weight)
            nn.init.zeros_(self.log_scale.bias)
        logits = torch.zeros(*([num_labels] if num_labels else []), self.num_components)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self, y: Tensor | None = None) -> Any:
        features, logits = self.features(), self.logits
        loc = self.loc(features)
        head = self.log_scale
        log_scale = head(features) if isinstance(head, nn.Module) else head.expand(loc.shape)
        if self.num_labels:
            y = _labels(y, self.num_labels)
            loc, log_scale, logits = (by_label(table, y) for table in (loc, log_scale, logits))
        return Mixture(
            dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1)
        )
