"""Builders of parts, which the rows of :mod:`pyro_vaes.runs.registry` name.

Each is called with the class of its row and a :class:`Plan`. Those of priors are also given the
posterior, those of networks whether it is the decoder's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import nn

from pyro_vaes import flows
from pyro_vaes.classical.comparison import gain_of, why_not
from pyro_vaes.core.columns import Column
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.data.splits import Init, labelled_pseudo_inputs, pseudo_inputs
from pyro_vaes.data.tables import filled, num_gaps
from pyro_vaes.data.units import units_of
from pyro_vaes.inference.divergences import MMD, Adversarial
from pyro_vaes.networks.columns import OneHotColumns
from pyro_vaes.networks.convolutions import ConvDecoder
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.networks.residual import ResDecoder
from pyro_vaes.parts.columns import TableLikelihood
from pyro_vaes.parts.correlated import StudentTLikelihood
from pyro_vaes.parts.counts import CountLikelihood
from pyro_vaes.parts.gtm import GTMPseudoInputs
from pyro_vaes.parts.likelihoods import NormalLikelihood, OrdinalLikelihood
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.powers import YeoJohnson
from pyro_vaes.parts.priors import FlowPrior
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.registry import builder_of
from pyro_vaes.runs.schema import RunConfig

__all__ = ["Plan", "base_posterior", "flow_of", "power_transform"]

Kind = Callable[..., nn.Module]

# Training rows for each column from which on a full covariance is learned.
_ROWS_EACH = 5
# Networks that see images as such.
_CONVOLUTIONS = ("conv", "residual_conv")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The arguments of builders.

    Attributes:
        config: the options.
        data: determine shapes, levels and pseudo-inputs.
        labels: the number of labels that parts take, 0 for none.
        remarks: on choices made for the user; builders append to it.
    """

    config: RunConfig
    data: DataSet
    labels: int
    remarks: list[str]

    @property
    def latent_dim(self) -> int:
        """The size of z."""
        return self.config.network.latent_dim

    @property
    def event_shape(self) -> list[int]:
        """The shape of a datum."""
        return list(self.data.event_shape)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a table of several kinds; none of other data."""
        return () if self.data.codec is None else self.data.codec.columns

    @property
    def categories(self) -> list[int]:
        """Of each column of a table the number of categories, 0 of one that is a number."""
        return [column.size if column.kind == "category" else 0 for column in self.columns]

    @property
    def masked(self) -> bool:
        """Whether the encoder is given a mask: of data with gaps, with dense layers."""
        return self.config.network.kind not in _CONVOLUTIONS and num_gaps(self.data.train.x) > 0

    @property
    def prior_labels(self) -> int:
        """The number of labels that the prior takes."""
        return self.labels if self.config.data.conditional_prior else 0

    @property
    def pixels(self) -> bool:
        """Whether all values share one range."""
        return self.data.kind != "real" and self.data.image_shape is not None

    def network(self, decoder: bool) -> Any:
        """The network of the likelihood, or that of the posterior."""
        build, kind = builder_of("network", self.config.network.kind)
        return build(kind, self, decoder)

    def dense(self, inputs: int, hidden: list[int]) -> Any:
        """Dense layers of the kind of the networks, between levels of z."""
        network = self.config.network
        build, kind = builder_of("network", network.kind)
        if build is gated_mlp:
            return kind(inputs, hidden)
        with _fitting("--hidden-dims"):
            return (kind if build is mlp else MLP)(inputs, hidden, network.activation)

    def of_level(self, size: int) -> Plan:
        """The plan of a single level of this size."""
        network = dataclasses.replace(self.config.network, latent_dim=size, levels=())
        return dataclasses.replace(self, config=dataclasses.replace(self.config, network=network))

    def grid_network(self, labels: int) -> MLP:
        """The network that bends a grid into the space of a GTM."""
        network = self.config.network
        return MLP(2 + labels, list(network.hidden_dims), network.activation)

    def grid_size(self) -> int:
        """Points on a side of the square grid nearest to ``--prior-components`` points."""
        count = self.config.parts.prior_components
        side = max(1, round(math.sqrt(count)))
        if side * side != count:
            self.remarks.append(
                f"The grid of the GTM has {side} x {side} points, the square nearest {count}."
            )
        return side


# --- networks -------------------------------------------------------------------------------------


def mlp(kind: Kind, plan: Plan, decoder: bool) -> nn.Module:
    """Dense layers."""
    with _fitting("--hidden-dims"):
        return kind(*_sizes(plan, decoder), plan.config.network.activation)


@contextlib.contextmanager
def _fitting(flag: str) -> Iterator[None]:
    """Refuses sizes that a network does not take, naming their flag."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"Invalid value for '{flag}': {error}") from error


def gated_mlp(kind: Kind, plan: Plan, decoder: bool) -> nn.Module:
    """Dense layers with gates for an activation."""
    return kind(*_sizes(plan, decoder))


def _sizes(plan: Plan, decoder: bool) -> tuple[int, list[int]]:
    hidden = list(plan.config.network.hidden_dims)
    if decoder:
        return plan.latent_dim + plan.labels, hidden[::-1]
    mask = math.prod(plan.event_shape) if plan.masked else 0
    inputs = sum(size or 1 for size in plan.categories) or math.prod(plan.event_shape)
    return inputs + mask + plan.labels, hidden


def convolutions(kind: Kind, plan: Plan, decoder: bool) -> nn.Module:
    """Convolutions, transposed in the decoder."""
    network, shape = plan.config.network, _image_shape(plan)
    channels = list(network.channels)
    if decoder:
        features = plan.latent_dim + plan.labels
        return ConvDecoder(features, shape, channels[::-1], network.activation)
    out = network.hidden_dims[-1]
    return kind(shape, channels, out, network.activation, plan.labels)


def residual_convolutions(kind: Kind, plan: Plan, decoder: bool) -> nn.Module:
    """Residual blocks of convolutions, after upsampling in the decoder."""
    network, shape = plan.config.network, _image_shape(plan)
    channels, activation = list(network.channels), network.activation
    with _fitting("--channels"):
        if decoder:
            features = plan.latent_dim + plan.labels
            return ResDecoder(features, shape, channels[::-1], activation, network.blocks)
        out = network.hidden_dims[-1]
        return kind(shape, channels, out, activation, plan.labels, network.blocks)


def _image_shape(plan: Plan) -> list[int]:
    """The shape of the data as images of at least 8x8 pixels, as convolutions need."""
    data, kind = plan.data, plan.config.network.kind
    if data.image_shape is None:
        raise ConfigError(
            f"Invalid value for '--network': expected images with it; got {kind} for rows of shape "
            f"{data.event_shape}. If they are images, say how with --image-shape C,H,W."
        )
    if min(data.image_shape[1:]) < 8:
        raise ConfigError(
            f"Invalid value for '--network': expected images of at least 8x8 pixels with it; "
            f"got {kind} for data of shape {data.event_shape}."
        )
    return list(data.image_shape)


# --- posteriors -----------------------------------------------------------------------------------


def base_posterior(kind: Kind, plan: Plan) -> nn.Module:
    """A posterior whose network gives it all its parameters."""
    network, x_range = plan.network(decoder=False), _range_of_inputs(plan)
    if any(plan.categories):
        network = OneHotColumns(network, plan.categories)
    return kind(network, plan.latent_dim, plan.event_shape, plan.labels, x_range, plan.masked)


def _range_of_inputs(plan: Plan) -> list[Any] | None:
    if plan.config.network.input_scaling == "none":
        return [-1.0, 1.0]
    if plan.data.kind == "levels" and plan.data.image_shape is None:
        # Counts: each element has its own scale, unlike pixels.
        center, spread = units_of(plan.data.train, plan.data.event_shape)
        return [(center - spread).float(), (center + spread).float()]
    return None  # The likelihood provides the range or the units of its data.


def flow_posterior(kind: Kind, plan: Plan) -> nn.Module:
    """A normal posterior with a flow after it."""
    parts = plan.config.parts
    flow = flow_of("posterior", parts.posterior, plan.latent_dim, parts.posterior_flows)
    return FlowPosterior(base_posterior(NormalPosterior, plan), flow)


# --- priors ---------------------------------------------------------------------------------------


def standard_prior(kind: Kind, plan: Plan, posterior: Any) -> nn.Module:
    """A prior without options."""
    return kind(plan.latent_dim, plan.prior_labels)


def mixture_prior(kind: Kind, plan: Plan, posterior: Any) -> nn.Module:
    """A mixture, its weights learned unless asked otherwise."""
    parts = plan.config.parts
    learned = parts.prior_weights != "uniform"
    mixture = kind(plan.latent_dim, parts.prior_components, plan.prior_labels, learned)
    return mixture


def gtm_prior(kind: Kind, plan: Plan, posterior: Any) -> nn.Module:
    """A mixture on a grid, its weights learned unless asked otherwise."""
    labels, grid = plan.prior_labels, plan.grid_size()
    learned = plan.config.parts.prior_weights != "uniform"
    network = plan.grid_network(labels)
    return kind(network, plan.latent_dim, grid, labels, learn_weights=learned)


def flow_prior(kind: Kind, plan: Plan, posterior: Any, **options: Any) -> nn.Module:
    """A standard normal with a flow after it."""
    parts = plan.config.parts
    flow = flow_of("prior", parts.prior, plan.latent_dim, parts.prior_flows, **options)
    return FlowPrior(plan.latent_dim, flow, plan.prior_labels)


def coupling_prior(kind: Kind, plan: Plan, posterior: Any) -> nn.Module:
    """The same with coupling layers, perhaps normalised."""
    normalise = plan.config.parts.prior_normalise
    return flow_prior(kind, plan, posterior, **({"normalise": True} if normalise else {}))


def vamp_prior(kind: Kind, plan: Plan, posterior: Any) -> nn.Module:
    """The mixture of posteriors at pseudo-inputs, its weights uniform unless asked otherwise."""
    parts = plan.config.parts
    if not posterior.scores:
        plan.remarks.append(
            f"A {parts.posterior} posterior scores only its own draws: the VampPrior mixes its "
            "base (posterior.base) instead."
        )
        posterior = posterior.base
    inputs, options = _pseudo_inputs(plan)
    learned = parts.prior_weights == "learned"
    return kind(posterior, inputs, learn_weights=learned, **options)


def _pseudo_inputs(plan: Plan) -> tuple[Any, dict[str, Any]]:
    """Pseudo-inputs, and the options of a VampPrior that go with them."""
    parts, data, count = plan.config.parts, plan.data, plan.config.parts.prior_components
    x = filled(data.train.x)
    bounds: list[Any] = [x.amin(0), x.amax(0)]
    if plan.pixels:
        bounds = [x.min().item(), x.max().item()]
    if parts.pseudo_inputs == "gtm":
        network, grid = plan.grid_network(plan.labels), plan.grid_size()
        return GTMPseudoInputs(network, plan.event_shape, grid, bounds, plan.labels), {}
    options = {"bounds": bounds if parts.pseudo_input_bounds else None}
    init = cast(Init, parts.pseudo_inputs)
    if not plan.labels:
        return pseudo_inputs(x, count, init), options
    if count < plan.labels:
        raise ConfigError(
            f"Invalid value for '--prior-components': expected at least {plan.labels}, a "
            f"pseudo-input for each label; got {count}."
        )
    inputs, of_label = labelled_pseudo_inputs(data.train, count, init)
    return inputs, {**options, "labels": of_label}


def flow_of(role: str, name: str, latent_dim: int, depth: int, **options: Any) -> flows.FlowRecipe:
    """The recipe of a flow that a flag names."""
    make: Callable[..., flows.FlowRecipe] = getattr(flows, name)
    try:
        return make(latent_dim, depth, **options)
    except ValueError as error:
        raise ConfigError(f"Invalid value for '--{role}': {error}") from error


# --- likelihoods ----------------------------------------------------------------------------------


def binary_likelihood(kind: Kind, plan: Plan) -> nn.Module:
    """A likelihood of zeros and ones."""
    return kind(plan.network(decoder=True), plan.event_shape, plan.labels)


def level_likelihood(kind: Kind, plan: Plan) -> nn.Module:
    """A likelihood of levels, whose number it takes."""
    network, levels = plan.network(decoder=True), plan.data.num_levels or 2
    return kind(network, plan.event_shape, levels, plan.labels)


def ordinal_likelihood(kind: type[OrdinalLikelihood], plan: Plan) -> nn.Module:
    """A likelihood of levels with cut points, which start at the quantiles of the data."""
    network, levels = plan.network(decoder=True), plan.data.num_levels or 2
    sharpness = plan.config.parts.sharpness
    likelihood = kind(network, plan.event_shape, levels, plan.labels, sharpness)
    likelihood.initialize_from(plan.data.train.x)
    return likelihood


def signal_likelihood(kind: Kind, plan: Plan) -> nn.Module:
    """A likelihood of signals whose noise is autoregressive, in the units of the data."""
    order = plan.config.parts.noise_order
    if order >= plan.event_shape[-1]:
        raise ConfigError(
            f"Invalid value for '--noise-order': expected less than {plan.event_shape[-1]}, the "
            f"length of a series; got {order}."
        )
    return real_likelihood(cast(Any, functools.partial(kind, order=order)), plan)


def real_likelihood(kind: type[NormalLikelihood], plan: Plan) -> nn.Module:
    """A likelihood of real values, in the units of the data."""
    likelihood = kind(plan.network(decoder=True), plan.event_shape, plan.labels)
    likelihood.initialize_from(plan.data.train.x, shared=plan.pixels)
    return likelihood


def row_likelihood(kind: type[StudentTLikelihood], plan: Plan) -> nn.Module:
    """A likelihood of whole rows; its covariance is diagonal if rows are too few for a full one."""
    columns, rows = math.prod(plan.event_shape), len(plan.data.train)
    full = columns <= rows / _ROWS_EACH
    if not full:
        plan.remarks.append(
            f"Noise: a diagonal covariance, since {rows} training rows are few for a full one of "
            f"{columns} columns."
        )
    likelihood = kind(plan.network(decoder=True), plan.event_shape, plan.labels, full)
    likelihood.initialize_from(plan.data.train.x, shared=plan.pixels)
    return likelihood


def count_likelihood(kind: type[CountLikelihood], plan: Plan) -> nn.Module:
    """A likelihood of counts, whose rates start at those of the data."""
    return _of_counts(kind, plan, inflated=False)


def inflated_likelihood(kind: type[CountLikelihood], plan: Plan) -> nn.Module:
    """The same with other zeros than its own."""
    return _of_counts(kind, plan, inflated=True)


def _of_counts(kind: type[CountLikelihood], plan: Plan, inflated: bool) -> nn.Module:
    exposure = plan.config.parts.exposure
    if exposure:
        _check_exposure(plan.data)
    likelihood = kind(plan.network(decoder=True), plan.event_shape, plan.labels, inflated, exposure)
    likelihood.initialize_from(plan.data.train, shared=plan.pixels)
    return likelihood


def _check_exposure(data: DataSet) -> None:
    expected = "Invalid value for '--exposure': expected"
    if len(data.event_shape) != 1 or data.event_shape[0] < 2:
        shape = tuple(data.event_shape)
        raise ConfigError(f"{expected} rows of counts and their exposure; got shape {shape}.")
    for split in (data.train, data.val, data.test):
        if bool((wrong := ~(split.x[:, -1] > 0)).any()):
            got = float(split.x[wrong, -1][0])
            raise ConfigError(f"{expected} numbers above 0 in the last column; got {got:g}.")


def table_likelihood(kind: type[TableLikelihood], plan: Plan) -> nn.Module:
    """A likelihood of rows with columns of several kinds."""
    likelihood = kind(plan.network(decoder=True), plan.columns, plan.labels)
    likelihood.initialize_from(plan.data.train)
    return likelihood


# --- the scale of the data ------------------------------------------------------------------------


def power_transform(config: RunConfig, data: DataSet, remarks: list[str]) -> YeoJohnson | None:
    """The power transform of the data that ``--transform`` asks for; None for none."""
    asked = config.parts.transform
    if asked == "none":
        return None
    if asked == "yeo_johnson":
        if data.kind != "real":
            raise ConfigError(
                f"Invalid value for '--transform': expected real values with it; got {data.kind}."
            )
        return YeoJohnson.of(data.train)
    if data.kind != "real" or why_not(data) is not None:
        return None
    powers = YeoJohnson.of(data.train)
    gain, error = gain_of(data, powers)
    wanted = gain > error
    remarks.append(
        f"Transform: {'Yeo-Johnson of each column' if wanted else 'none'}, since a multivariate t "
        f"of the validation rows gains {gain:+.2f} +- {error:.2f} nats by Yeo-Johnson's."
    )
    return powers if wanted else None


# --- divergences ----------------------------------------------------------------------------------


def mmd(kind: type[MMD], config: RunConfig) -> MMD:
    """The maximum mean discrepancy."""
    return kind(config.objective.divergence_kernel)


def adversarial(kind: type[Adversarial], config: RunConfig) -> Adversarial:
    """The estimate of a discriminator, whose weights come from torch's generator."""
    return kind(config.network.latent_dim)
