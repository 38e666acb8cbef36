"""Priors p(z): modules whose ``forward(y=None)`` returns a Pyro distribution over z.

Without labels the distribution has an empty batch shape; a conditional prior p(z | y) has that of
y. The event shape is ``(latent_dim,)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.core.bounds import held_bounds, hold_bounds
from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import (
    append_labels,
    are_inputs,
    as_labels,
    batch_of,
    by_label,
    takes_labels,
    with_labels,
)
from pyro_vaes.data.rows import thinned
from pyro_vaes.data.tables import filled
from pyro_vaes.distributions.mixtures import Mixture, VampDistribution
from pyro_vaes.distributions.transformed import FlowDistribution
from pyro_vaes.flows.recipes import FlowRecipe
from pyro_vaes.parts.units import InUnits

__all__ = ["FlowPrior", "MixturePrior", "NormalPrior", "VampPrior"]


def _labels(y: Tensor | None, num_labels: int) -> Tensor:
    if y is None:
        raise ValueError(
            f"Expected labels y in 0..{num_labels - 1} for a conditional prior; got none."
        )
    return y if are_inputs(y, num_labels) else as_labels(y)


class NormalPrior(Described):
    """The standard normal N(0, I); with labels, a learned diagonal normal for each label.

    >>> pv.NormalPrior(16)().sample((10,)).shape
    torch.Size([10, 16])
    >>> pv.NormalPrior(16, num_labels=3)(torch.tensor([0, 2])).batch_shape
    torch.Size([2])

    Args:
        latent_dim: size of z.
        num_labels: number of labels of a conditional prior p(z | y); 0 for none.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: int, num_labels: int = 0) -> None:
        super().__init__()
        positive(latent_dim=latent_dim)
        self.latent_dim, self.num_labels = latent_dim, num_labels
        if num_labels:
            self.loc = nn.Parameter(torch.randn(num_labels, latent_dim) * 0.1)
            self.log_scale = nn.Parameter(torch.zeros(num_labels, latent_dim))
        else:
            self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
            self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self, y: Tensor | None = None) -> Any:
        if not self.num_labels:
            return dist.Normal(self.zero, self.one).to_event(1)
        y = _labels(y, self.num_labels)
        loc, log_scale = (by_label(table, y) for table in (self.loc, self.log_scale))
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class MixturePrior(Described):
    """A mixture of K diagonal Gaussians with learned weights, means and scales.

    The mixture is joint over z: log sum_k w_k prod_d N(z_d | mu_kd, sigma_kd), not a product of
    one mixture for each dimension.

    >>> prior = pv.MixturePrior(16, num_components=50)
    >>> prior().log_prob(torch.zeros(10, 16)).shape
    torch.Size([10])

    Args:
        latent_dim: size of z.
        num_components: number of components K.
        num_labels: number of labels, each with its own mixture; 0 for none.
        learn_weights: False keeps the weights uniform.
    """

    loc: Tensor
    log_scale: Tensor
    logits: Tensor

    def __init__(
        self,
        latent_dim: int,
        num_components: int,
        num_labels: int = 0,
        learn_weights: bool = True,
    ) -> None:
        super().__init__()
        positive(latent_dim=latent_dim, num_components=num_components)
        self.latent_dim, self.num_labels = latent_dim, num_labels
        self.num_components = num_components
        batch = (num_labels,) if num_labels else ()
        self.loc = nn.Parameter(torch.randn(*batch, num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(*batch, num_components, latent_dim))
        logits = torch.zeros(*batch, num_components)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self, y: Tensor | None = None) -> Any:
        loc, log_scale = self.loc, self.log_scale
        logits = self.logits
        if self.num_labels:
            y = _labels(y, self.num_labels)
            loc, log_scale, logits = (by_label(table, y) for table in (loc, log_scale, logits))
        return Mixture(
            dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1)
        )


class VampPrior(InUnits):
    """The mixture of variational posteriors at K pseudo-inputs, p(z) = sum_k w_k q(z | u_k).

    Tomczak and Welling, "VAE with a VampPrior" (2018), equation 9. The prior shares the parameters
    of the posterior that it is given.

    Bounds reflect a pseudo-input: the free parameter moves anywhere and is mirrored at the bounds.
    So it may start exactly at a bound, where data often are, and its gradient never vanishes, as
    that of a clamp does outside and that of a sigmoid at the bounds. Pushed outwards, it stays at
    the bound, since the gradient changes sign with the reflection.

    Pseudo-inputs are learned in units of the data, see :class:`.InUnits`, so that they move at the
    step size of weights; :meth:`moved` measures how far.

    >>> data = pv.load_data("digits")
    >>> posterior = pv.NormalPosterior(pv.MLP(64, [128]), latent_dim=16)
    >>> prior = pv.VampPrior(posterior, pv.pseudo_inputs(data.train, 50), bounds=(0, 16))
    >>> prior().sample((10,)).shape
    torch.Size([10, 16])

    Args:
        posterior: a posterior that scores any z.
        pseudo_inputs: where the u_k start, ``(K, *event_shape)`` in the units of the data; see
            :func:`.pseudo_inputs`. They are learned. Or a module whose call returns them,
            such as :class:`pyro_vaes.parts.gtm.GTMPseudoInputs`, which is learned instead.
        bounds: ``(low, high)`` to keep the pseudo-inputs within (to rounding), two numbers or two
            tensors of the shape of a datum; unbounded if None.
            A module of pseudo-inputs has its own.
        labels: one label for each pseudo-input, ``(K,)``, for a conditional posterior. The prior is
            then p(z | y), the mixture over the pseudo-inputs with that label, or over all of them
            when called without y. A module may have them as its ``labels``.
        learn_weights: False (as in the paper) keeps the weights uniform.

    Raises:
        ValueError: if the posterior scores only its own draws, shapes do not fit, a pseudo-input
            lies outside the bounds, or a label is missing.
    """

    # Each pseudo-input has one label; rows of inputs cannot stand in its place.
    labels_alone: ClassVar[bool] = True

    inputs: Any
    logits: Tensor
    labels: Tensor | None
    start: Tensor | None

    optional_buffers = (*InUnits.optional_buffers, "start")

    def __init__(
        self,
        posterior: nn.Module,
        pseudo_inputs: Tensor | nn.Module,
        bounds: Sequence[Any] | None = None,
        labels: Tensor | None = None,
        learn_weights: bool = False,
    ) -> None:
        super().__init__()
        if not getattr(posterior, "scores", True):
            remedy = "Give the prior posterior.base instead." if hasattr(posterior, "base") else ""
            raise ValueError(
                "Expected a posterior that scores any z for a VampPrior; got one that scores only "
                f"its own draws. {remedy}".rstrip()
            )
        made = isinstance(pseudo_inputs, nn.Module)
        if made and bounds is not None:
            raise ValueError(
                "Expected bounds for a tensor of pseudo-inputs; got them with a module. Give "
                "them to the module."
            )
        if not isinstance(pseudo_inputs, nn.Module):
            pseudo_inputs = torch.as_tensor(pseudo_inputs)
        with torch.no_grad():
            values = pseudo_inputs() if isinstance(pseudo_inputs, nn.Module) else pseudo_inputs
        event_shape = getattr(posterior, "event_shape", tuple(values.shape[1:]))
        if values.dim() < 2 or tuple(values.shape[1:]) != tuple(event_shape):
            raise ValueError(
                f"Expected pseudo_inputs of shape (K, {', '.join(map(str, event_shape))}); "
                f"got {tuple(values.shape)}."
            )
        if not len(values):
            raise ValueError("Expected at least one pseudo-input; got none.")
        if bool(values.isnan().any()) and not bool(values.isnan().all()):  # All: not yet loaded.
            raise ValueError(
                "Expected pseudo-inputs without gaps; got NaN in some. pseudo_inputs() fills them."
            )
        self.posterior = posterior
        self.latent_dim: int | None = getattr(posterior, "latent_dim", None)
        self.num_components = len(values)
        # None: the posterior takes labels of an unknown number.
        unknown = None if takes_labels(posterior) else 0
        self.num_labels: int | None = getattr(posterior, "num_labels", unknown)
        hold_bounds(self, bounds)
        if self.bounds is not None:
            low, high = self.bounds
            if bool(((values < low) | (values > high)).any()):
                shown = self.bounds if isinstance(low, float) else "of each element"
                raise ValueError(
                    f"Expected pseudo-inputs within bounds {shown}; got values from "
                    f"{values.min():.4g} to {values.max():.4g}."
                )
        self.inputs = (
            pseudo_inputs
            if isinstance(pseudo_inputs, nn.Module)
            else nn.Parameter(values.detach().clone().to(torch.get_default_dtype()))
        )
        logits = torch.zeros(self.num_components)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)
        self._start_units()
        # Initial values, for moved(); a module of pseudo-inputs may be initialised later.
        self.register_buffer("start", None if made else self.inputs.detach().clone())
        self._set_labels(getattr(pseudo_inputs, "labels", None) if labels is None else labels)

    @property
    def bounds(self) -> tuple[Any, Any] | None:
        """The bounds of the pseudo-inputs, numbers or one for each element; None if unbounded."""
        return held_bounds(self)

    @torch.no_grad()
    def set_units(self, center: Any, spread: Any) -> None:
        """Learns the pseudo-inputs in these units, from their current values.

        A step of an optimiser then moves an element in microns as far as one in metres, and a level
        as far as a weight. ``VAE`` calls this with the units that its likelihood knows.

        Args:
            center: a number, or one for each element: a tensor of the shape of a datum.
            spread: the same.
        """
        inputs: Any = self.inputs
        if isinstance(self.inputs, nn.Module):
            if hasattr(inputs, "set_units"):
                inputs.set_units(center, spread)
            return
        values = self._to_data(inputs)
        if self._hold_units(center, spread, values):
            inputs.copy_(self._from_data(values))

    @torch.no_grad()
    def moved(self, x: Any) -> Tensor | None:
        """How far each pseudo-input is from its start, ``(K,)``.

        The median over its elements of the distance, each in units of the element's standard
        deviation over the data. (A mean would be that of the few elements that hardly vary.)

        Args:
            x: data to take the standard deviations from, ``(n, *event_shape)``.

        Returns:
            One value for each pseudo-input; None for a module of pseudo-inputs, and for a file
            without their starts.
        """
        if self.start is None:
            return None
        given = torch.as_tensor(x)
        deviation = filled(given[thinned(given)]).to(self.start).std(0, correction=0)
        shift = (self.pseudo_inputs - self.start).abs()[:, deviation > 0]
        return (shift / deviation[deviation > 0]).median(-1).values

    def _set_labels(self, labels: Tensor | None) -> None:
        if self.num_labels == 0:
            self.register_buffer("labels", None)
            return
        labels = None if labels is None else as_labels(labels)
        if labels is None or labels.shape != (self.num_components,):
            raise ValueError(
                f"Expected one label for each of {self.num_components} pseudo-inputs of a "
                f"conditional posterior; got {None if labels is None else tuple(labels.shape)}."
            )
        self.register_buffer("labels", labels.detach().clone().long())

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs ``(K, *event_shape)`` in the units of the data, within the bounds."""
        if isinstance(self.inputs, nn.Module):
            return cast(Tensor, self.inputs())
        values, bounds = self._to_data(self.inputs), self.bounds
        return values if bounds is None else _reflected(values, *bounds)

    def forward(self, y: Tensor | None = None) -> Any:
        logits, labels = self.logits, self.labels
        if labels is not None and y is not None:
            # Pseudo-inputs of other labels get weight zero; all rows share the components.
            logits = logits.masked_fill(labels != as_labels(y).unsqueeze(-1), -torch.inf)
        return VampDistribution(with_labels(self.posterior, labels, self.pseudo_inputs), logits)


def _reflected(values: Tensor, low: Any, high: Any) -> Tensor:
    """Values reflected into [low, high]; those inside, bounds included, are unchanged."""
    width = high - low
    if isinstance(width, Tensor):
        # An element that never varies stays; dividing by its width would make gradients NaN.
        still = width <= 0
        moved = _reflected_within(values, low, torch.where(still, 1.0, width), high)
        return torch.where(still, low, moved)
    return _reflected_within(values, low, width, high)


def _reflected_within(values: Tensor, low: Any, width: Any, high: Any) -> Tensor:
    turns = (values - low).remainder(2 * width)
    image = low + torch.where(turns < width, turns, 2 * width - turns)
    return torch.where((values >= low) & (values <= high), values, image)


class FlowPrior(Described):
    """A standard normal pushed through a flow that scores any value.

    >>> prior = pv.FlowPrior(16, pv.flows.realnvp(16, 4))
    >>> prior().log_prob(torch.zeros(10, 16)).shape
    torch.Size([10])

    Args:
        latent_dim: size of z.
        transforms: a recipe such as ``flows.realnvp(latent_dim, 4)``.
        num_labels: number of labels of a conditional prior, whose flow sees the one-hot label.

    Raises:
        ValueError: if the flow cannot score any value, or its size is not ``latent_dim``.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: int, transforms: FlowRecipe, num_labels: int = 0) -> None:
        super().__init__()
        positive(latent_dim=latent_dim)
        if transforms.dim != latent_dim:
            raise ValueError(f"Expected a flow over latent_dim={latent_dim}; got {transforms!r}.")
        if not transforms.scores:
            raise ValueError(
                f"Expected a flow that scores any z for a prior; got {transforms!r}, which scores "
                "only its own draws and serves posteriors."
            )
        self.latent_dim, self.num_labels = latent_dim, num_labels
        self.flow = transforms.build(context_dim=num_labels)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def initialize_from(self, z: Tensor, y: Tensor | None = None) -> None:
        """Starts a flow with ``normalise=True`` from codes: each layer's output is then standard.

        >>> prior = pv.FlowPrior(4, pv.flows.realnvp(4, 20, normalise=True))
        >>> prior.initialize_from(5 + 3 * torch.randn(1000, 4))
        >>> round(prior().sample((10_000,)).mean().item())
        5

        Args:
            z: ``(n, latent_dim)``, such as ``vae.encode(x)``.
            y: labels ``(n,)`` of a conditional prior.

        Raises:
            ValueError: for a flow without layers that depend on data.
        """
        self.flow.initialize_from(z, self._context(y)[0])

    def _context(self, y: Tensor | None) -> tuple[Tensor | None, Sequence[int]]:
        """The context of the flow and its batch shape."""
        if not self.num_labels:
            return None, ()
        y = _labels(y, self.num_labels)
        batch = batch_of(y, self.num_labels)
        return append_labels(self.zero.new_empty(*batch, 0), y, self.num_labels), batch

    def forward(self, y: Tensor | None = None) -> Any:
        context, batch = self._context(y)
        zero = self.zero
        base = dist.Normal(zero, self.one).expand([*batch, self.latent_dim]).to_event(1)
        return FlowDistribution(base, self.flow(context))
