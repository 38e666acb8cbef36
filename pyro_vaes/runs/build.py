"""Builds data, parts and objective from a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyro.infer
import torch
from pyro.infer import RenyiELBO
from torch import nn

from pyro_vaes import flows
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import NAMES, DataSet
from pyro_vaes.data.splits import Init, labelled_pseudo_inputs, pseudo_inputs
from pyro_vaes.data.units import units_of
from pyro_vaes.inference.divergences import MMD, Adversarial, Divergence
from pyro_vaes.inference.elbo import BetaELBO
from pyro_vaes.inference.info import InfoELBO
from pyro_vaes.networks.convolutions import ConvDecoder, ConvEncoder
from pyro_vaes.networks.mlp import MLP, GatedMLP
from pyro_vaes.parts.counts import NegativeBinomialLikelihood, PoissonLikelihood
from pyro_vaes.parts.gtm import GTMPrior, GTMPseudoInputs
from pyro_vaes.parts.likelihoods import (
    AutoregressiveLikelihood,
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    NormalLikelihood,
    OrdinalLikelihood,
)
from pyro_vaes.parts.posteriors import FlowPosterior, FullNormalPosterior, NormalPosterior
from pyro_vaes.parts.priors import FlowPrior, MixturePrior, NormalPrior, VampPrior
from pyro_vaes.runs.data_source import load_for
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import RunConfig
from pyro_vaes.training.distributed import SharingError, join_processes
from pyro_vaes.training.options import device_of
from pyro_vaes.training.validation import check_batches
from pyro_vaes.vae import VAE

__all__ = ["build", "build_objective", "data_of"]


# Likelihoods over levels take their number beside the shape.
_LEVELS: dict[str, Any] = {
    "autoregressive": AutoregressiveLikelihood,
    "beta_binomial": BetaBinomialLikelihood,
    "categorical": CategoricalLikelihood,
    "discretized_logistic": DiscretizedLogisticLikelihood,
    "ordinal": OrdinalLikelihood,
}
# So many labels are never too many.
_FEW_LABELS = 20
# Likelihoods of counts, and whether of those with other zeros than their own.
_COUNTS: dict[str, tuple[Any, bool]] = {
    "poisson": (PoissonLikelihood, False),
    "negative_binomial": (NegativeBinomialLikelihood, False),
    "zero_inflated_poisson": (PoissonLikelihood, True),
    "zero_inflated_negative_binomial": (NegativeBinomialLikelihood, True),
}
_NEEDS = {
    "bernoulli": ("binary",),
    "normal": ("binary", "levels", "counts", "real"),
    **dict.fromkeys(_COUNTS, ("binary", "levels", "counts")),
}


def device_of_flag(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        ConfigError: if this machine has none of it.
    """
    try:
        return device_of(name)
    except ValueError as error:
        raise ConfigError(f"Invalid value for '--device': {error}") from error


def build(config: RunConfig, data: DataSet) -> tuple[VAE, list[str]]:
    """Builds the VAE of a configuration; weights come from torch's global generator: seed first.

    Args:
        config: the options.
        data: what it will be trained on; gives shapes, levels, labels and pseudo-inputs.

    Returns:
        The VAE, and a remark for each choice that was made for the user.

    Raises:
        ConfigError: for options that do not go together, or not with the data.
    """
    remarks: list[str] = []
    device = device_of_flag(config.training.device)
    if config.training.mode == "cuda_graph" and device.type != "cuda":
        raise ConfigError(
            "Invalid value for '--mode': expected a CUDA device beside cuda_graph; "
            f"got {device.type}."
        )
    training, divergence = config.training, config.objective.divergence
    try:
        join_processes().check(training.mode, training.batch_size, device.type, divergence)
    except SharingError as error:
        flag = error.option.replace("_", "-")
        raise ConfigError(f"Invalid value for '--{flag}': {error}") from error
    if config.data.conditional and not data.num_labels:
        raise ConfigError(
            "Invalid value for '--conditional': expected data with labels; "
            f"got {data.name} without any."
        )
    if config.objective.divergence == "mmd":
        objective = build_objective(config)
        try:
            check_batches(objective, data.train, config.training.batch_size)
            check_batches(objective, data.val)
        except ValueError as error:
            raise ConfigError(f"Invalid value for '--divergence': {error}") from error
    labels = (data.num_labels or 0) if config.data.conditional else 0
    if labels > max(_FEW_LABELS, len(data.train) // 2):
        raise ConfigError(
            f"Invalid value for '--conditional': expected far fewer labels than the "
            f"{len(data.train)} training rows; got {labels}. Are they classes?"
        )
    posterior = _posterior(config, data, labels)
    prior = _prior(config, data, labels, posterior, remarks)
    likelihood = _likelihood(config, data, labels, remarks)
    _remark_on_images(config, data, remarks)
    return VAE(prior, posterior, likelihood), remarks


def _remark_on_images(config: RunConfig, data: DataSet, remarks: list[str]) -> None:
    augment = config.data.augment
    if data.image_shape is None:
        if augment not in (0, RunConfig().data.augment):  # Somebody asked for it.
            remarks.append("--augment has no effect: the data are no images.")
    elif augment and data.name not in NAMES:
        remarks.append(f"Training images are moved a little (--augment {augment:g}; 0 for none).")


def build_objective(config: RunConfig) -> pyro.infer.ELBO:
    """The objective of a configuration; a discriminator's weights come from torch's generator."""
    objective = config.objective
    if objective.train_samples > 1:
        # The bound of importance-weighted autoencoders is Renyi's at order 0.
        return RenyiELBO(
            alpha=0,
            num_particles=objective.train_samples,
            vectorize_particles=True,
            max_plate_nesting=1,
        )
    if (objective.alpha, objective.lambda_) == (0, 1):
        return BetaELBO(objective.beta, free_bits=objective.free_bits)
    divergences: dict[str, Callable[[], Divergence | None]] = {
        "none": lambda: None,
        "mmd": lambda: MMD(objective.divergence_kernel),
        "adversarial": lambda: Adversarial(config.network.latent_dim),
    }
    return InfoELBO(
        objective.alpha,
        objective.lambda_,
        divergences[objective.divergence](),
        free_bits=objective.free_bits,
    )


def _encoder(config: RunConfig, data: DataSet, labels: int) -> Any:
    network = config.network
    in_features = math.prod(data.event_shape) + labels
    if network.kind == "conv":
        shape = _images(data, "--network", "conv")
        out = network.hidden_dims[-1]
        return ConvEncoder(shape, list(network.channels), out, network.activation, labels)
    return _dense(config, in_features, network.hidden_dims)


def _decoder(config: RunConfig, data: DataSet, labels: int) -> Any:
    network = config.network
    in_features = network.latent_dim + labels
    if network.kind == "conv":
        shape = _images(data, "--network", "conv")
        channels = list(network.channels[::-1])
        return ConvDecoder(in_features, shape, channels, network.activation)
    return _dense(config, in_features, network.hidden_dims[::-1])


def _dense(config: RunConfig, in_features: int, hidden_dims: tuple[int, ...]) -> Any:
    if config.network.kind == "gated":
        return GatedMLP(in_features, list(hidden_dims))
    return MLP(in_features, list(hidden_dims), config.network.activation)


def _images(data: DataSet, flag: str, value: object) -> list[int]:
    """The shape of the data as images from 8x8 up, which an option needs."""
    if data.image_shape is None:
        raise ConfigError(
            f"Invalid value for '{flag}': expected images with it; got {value} for rows of shape "
            f"{data.event_shape}. If they are images, say how with --image-shape C,H,W."
        )
    if min(data.image_shape[1:]) < 8:
        raise ConfigError(
            f"Invalid value for '{flag}': expected images from 8x8 up beside it; "
            f"got {value} for data of shape {data.event_shape}."
        )
    return list(data.image_shape)


def _posterior(config: RunConfig, data: DataSet, labels: int) -> nn.Module:
    latent_dim = config.network.latent_dim
    network = _encoder(config, data, labels)
    x_range: list[Any] | None = None  # Likelihoods know the range or the units of their data.
    if config.network.input_scaling == "none":
        x_range = [-1.0, 1.0]
    elif data.kind == "levels" and data.image_shape is None:
        # Counts: each element has a size of its own, as pixels have not.
        center, spread = units_of(data.train, data.event_shape)
        x_range = [(center - spread).float(), (center + spread).float()]
    name = config.parts.posterior
    kind = FullNormalPosterior if name == "full_normal" else NormalPosterior
    base = kind(network, latent_dim, list(data.event_shape), labels, x_range)
    if name in ("normal", "full_normal"):
        return base
    return FlowPosterior(base, _flow(name, latent_dim, config.parts.posterior_flows, "posterior"))


def _prior(
    config: RunConfig, data: DataSet, labels: int, posterior: Any, remarks: list[str]
) -> nn.Module:
    parts, latent_dim = config.parts, config.network.latent_dim
    prior_labels = labels if config.data.conditional_prior else 0
    if parts.prior == "standard":
        return NormalPrior(latent_dim, prior_labels)
    if parts.prior == "mixture":
        learned = parts.prior_weights != "uniform"
        return MixturePrior(latent_dim, parts.prior_components, prior_labels, learned)
    if parts.prior == "vamp":
        if not posterior.scores:
            remarks.append(
                f"A {parts.posterior} posterior scores only its own draws: the VampPrior mixes its "
                "base (posterior.base) instead."
            )
            posterior = posterior.base
        return _vamp(config, data, labels, posterior, remarks)
    if parts.prior == "gtm":
        grid = _grid_size(parts.prior_components, remarks)
        network = MLP(2 + prior_labels, list(config.network.hidden_dims), config.network.activation)
        weighted = parts.prior_weights != "uniform"
        return GTMPrior(network, latent_dim, grid, prior_labels, learn_weights=weighted)
    flow = _flow(parts.prior, latent_dim, parts.prior_flows, "prior")
    return FlowPrior(latent_dim, flow, prior_labels)


def _vamp(
    config: RunConfig, data: DataSet, labels: int, posterior: Any, remarks: list[str]
) -> VampPrior:
    parts, count = config.parts, config.parts.prior_components
    learned = parts.prior_weights == "learned"
    x = data.train.x
    # One range for pixels, each element's own for anything else.
    of_pixels = data.kind != "real" and data.image_shape is not None
    found: list[Any] = [x.amin(0), x.amax(0)]
    if of_pixels:
        found = [x.min().item(), x.max().item()]
    bounds = found if parts.pseudo_input_bounds else None
    if parts.pseudo_inputs == "gtm":
        network = MLP(2 + labels, list(config.network.hidden_dims), config.network.activation)
        grid = GTMPseudoInputs(
            network,
            list(data.event_shape),
            _grid_size(count, remarks),
            found,
            labels,
        )
        return VampPrior(posterior, grid, learn_weights=learned)
    init = cast(Init, parts.pseudo_inputs)
    if not labels:
        u = pseudo_inputs(x, count, init)
        return VampPrior(posterior, u, bounds, learn_weights=learned)
    if count < labels:
        raise ConfigError(
            f"Invalid value for '--prior-components': expected at least {labels}, a pseudo-input "
            f"for each label; got {count}."
        )
    u, of_label = labelled_pseudo_inputs(data.train, count, init)
    return VampPrior(posterior, u, bounds, labels=of_label, learn_weights=learned)


def _grid_size(count: int, remarks: list[str]) -> int:
    """Points on a side of the square grid nearest to ``count`` points."""
    side = max(1, round(math.sqrt(count)))
    if side * side != count:
        remarks.append(
            f"The grid of the GTM has {side} x {side} points, the square nearest {count}."
        )
    return side


def _likelihood(config: RunConfig, data: DataSet, labels: int, remarks: list[str]) -> nn.Module:
    name = config.parts.likelihood
    if name == "auto":
        name = data.default_likelihood
        remarks.append(f"Likelihood: {name}, since the data hold {_values(data)}.")
    elif data.kind not in _NEEDS.get(name, ("binary", "levels")):
        raise ConfigError(
            f"Invalid value for '--likelihood': expected one for {_values(data)}, since "
            f"{data.reason}; got {name!r}."
        )
    network = _decoder(config, data, labels)
    shape = list(data.event_shape)
    if name == "ordinal":
        ordinal = OrdinalLikelihood(
            network, shape, data.num_levels or 2, labels, config.parts.sharpness
        )
        ordinal.initialize_from(data.train.x)
        return ordinal
    if name in _LEVELS:
        return _LEVELS[name](network, shape, data.num_levels, labels)  # type: ignore[no-any-return]
    if name in _COUNTS:
        kind, inflated = _COUNTS[name]
        counts = kind(network, shape, labels, inflated)
        counts.initialize_from(data.train)
        return counts  # type: ignore[no-any-return]
    if name == "bernoulli":
        return BernoulliLikelihood(network, shape, labels)
    normal = NormalLikelihood(network, shape, labels)
    of_pixels = data.kind != "real" and data.image_shape is not None
    normal.initialize_from(data.train.x, shared=of_pixels)
    return normal


def _values(data: DataSet) -> str:
    return {
        "binary": "binary values",
        "levels": f"levels 0..{(data.num_levels or 0) - 1}",
        "counts": "counts",
        "real": "real values",
    }[data.kind]


def _flow(name: str, latent_dim: int, depth: int, role: str) -> flows.FlowRecipe:
    make: Callable[[int, int], flows.FlowRecipe] = getattr(flows, name)
    try:
        return make(latent_dim, depth)
    except ValueError as error:
        raise ConfigError(f"Invalid value for '--{role}': {error}") from error


def data_of(config: RunConfig, complaint: str = "Invalid value for '--data'") -> DataSet:
    """The data that a configuration asks for.

    Raises:
        DataError: beginning with ``complaint``, if they cannot be had.
    """
    source = config.data.source
    try:
        return load_for(config)
    except DataError as error:
        reason = str(error).removeprefix(f"{Path(source).expanduser()}: ")
        raise DataError(f"{complaint} ({source}): {reason}") from error
