"""Builds data, parts and objective from a configuration."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyro.infer
import torch
from pyro.infer import RenyiELBO

from pyro_vaes.classical.comparison import on_scale
from pyro_vaes.classical.start import start_at_factors, start_at_student_t
from pyro_vaes.core.errors import DataError
from pyro_vaes.core.labels import Conditions
from pyro_vaes.data.dataset import NAMES, DataSet
from pyro_vaes.data.mixed.conditions import sizes
from pyro_vaes.inference.elbo import BetaELBO, CapacityRamp, CyclicalWeight
from pyro_vaes.inference.info import BetaTCELBO, InfoELBO
from pyro_vaes.inference.many_samples import ManySamples
from pyro_vaes.parts.chains import ChainPosterior, ChainPrior
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.powers import PowerLikelihood, PowerPosterior
from pyro_vaes.runs.builders import Plan, base_posterior, flow_of, power_transform
from pyro_vaes.runs.data_source import load_for
from pyro_vaes.runs.options import ConfigError, text
from pyro_vaes.runs.registry import REGISTRY, builder_of
from pyro_vaes.runs.resolve import idle
from pyro_vaes.runs.schema import RunConfig
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.weights import load
from pyro_vaes.training.checkpoint import CHECKPOINT
from pyro_vaes.training.options import device_of
from pyro_vaes.vae import VAE

__all__ = ["build", "build_objective", "data_of", "device_of_flag", "frozen_tensors"]


_STARTS = {"factors": start_at_factors, "student_t": start_at_student_t}
# This many labels are always accepted.
_FEW_LABELS = 20


def device_of_flag(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        ConfigError: if this machine has no such device.
    """
    try:
        return device_of(name)
    except ValueError as error:
        raise ConfigError(f"Invalid value for '--device': {error}") from error


def build(config: RunConfig, data: DataSet, out: str | Path | None = None) -> tuple[VAE, list[str]]:
    """Builds the VAE of a configuration, as its training starts.

    Weights are those of ``--init``, or come from torch's global generator: seed first.

    Args:
        config: the options.
        data: the training data, which determine shapes, levels, labels and pseudo-inputs.
        out: the run's folder; a checkpoint there has the weights, and ``--init`` is not read.

    Returns:
        The VAE, and a remark on each choice that was made for the user.

    Raises:
        ConfigError: for options that do not fit each other or the data.
    """
    remarks: list[str] = []
    device = device_of_flag(config.training.device)
    if config.training.mode == "cuda_graph" and device.type != "cuda":
        raise ConfigError(
            f"Invalid value for '--mode': expected a CUDA device for cuda_graph; got {device.type}."
        )
    conditions = _conditions(config, data)
    if config.data.conditional and not data.num_labels and conditions is None:
        raise ConfigError(
            "Invalid value for '--conditional': expected data with labels; "
            f"got {data.name} without any."
        )
    labels = (data.num_labels or 0) if config.data.conditional else 0
    labels = conditions.width if conditions is not None else labels
    if labels > max(_FEW_LABELS, len(data.train) // 2):
        raise ConfigError(
            f"Invalid value for '--conditional': expected far fewer labels than the "
            f"{len(data.train)} training rows; got {labels}. Are they classes?"
        )
    powers = power_transform(config, data, remarks)
    seen = data if powers is None else on_scale(data, powers)
    plan = Plan(config, seen, labels, remarks)
    prior, posterior = _latents(plan)
    if config.objective.gradient == "path" and not posterior.scores:
        raise ConfigError(
            "Invalid value for '--gradient': expected total with --posterior "
            f"{config.parts.posterior}, which scores only its own draws; got path."
        )
    likelihood = _part("likelihood", _likelihood(config, data, remarks), plan)
    _remark_on_images(config, data, remarks)
    if powers is not None:
        posterior, likelihood = (
            PowerPosterior(posterior, powers),
            PowerLikelihood(likelihood, powers),
        )
    vae = _joined(prior, posterior, likelihood, conditions)
    if vae.prior_is_conditional and not config.data.conditional_prior:
        remarks.append(
            "The prior is p(z given label), as with --conditional-prior true: each pseudo-input of "
            "the VampPrior has a label."
        )
    if config.training.start != "random":
        _start_at_classical(vae, config, data, remarks)
    if out is None or not (Path(out) / CHECKPOINT).exists():
        _start_from_init(vae, config)
    return vae, remarks


def _conditions(config: RunConfig, data: DataSet) -> Conditions | None:
    """What a matrix y holds, in the units of the training rows; None for labels."""
    if data.train.y is None or data.train.y.dim() < 2:
        return None
    if data.conditions is None:
        raise ConfigError(
            "Invalid value for '--data': expected conditions in columns of a table that --label "
            f"names; got a matrix y of shape {tuple(data.train.y.shape)}."
        )
    if not config.data.conditional:
        raise ConfigError(
            "Invalid value for '--conditional': expected true with conditions "
            f"({', '.join(data.condition_names)}), which nothing else would use; got false."
        )
    found = Conditions(sizes(data.conditions))
    found.initialize_from(data.train.y)
    return found


def _joined(prior: Any, posterior: Any, likelihood: Any, conditions: Conditions | None) -> VAE:
    """The VAE of some parts; refused if one of them takes labels alone."""
    try:
        return VAE(prior, posterior, likelihood, conditions)
    except ValueError as error:
        if conditions is None:
            raise
        raise ConfigError(f"Invalid value for '--label': {error}") from error


def _latents(plan: Plan) -> tuple[Any, Any]:
    """Prior and posterior."""
    if len(plan.config.network.levels) > 1:
        return _chains(plan)
    posterior = _part("posterior", plan.config.parts.posterior, plan)
    return _part("prior", plan.config.parts.prior, plan, posterior), posterior


def _chains(plan: Plan) -> tuple[Any, Any]:
    """Prior and posterior of the levels that ``--levels`` asks for.

    The top has the prior and the posterior of one level. Below, p(z_l | z_>l) is a normal, and
    q(z_l | x, z_>l) of the kind of ``--posterior``: a normal relative to the prior's (Vahdat and
    Kautz 2020), a flow by itself.
    """
    network, labels = plan.config.network, plan.prior_labels
    sizes, hidden = network.levels, list(network.hidden_dims)
    if sum(sizes) != plan.latent_dim:
        raise ConfigError(
            f"Invalid value for '--levels': expected sizes that sum to --latent-dim "
            f"{plan.latent_dim}; got {text(sizes)}."
        )
    top = plan.of_level(sizes[0])
    first = _part("posterior", plan.config.parts.posterior, top)
    above = list(zip(itertools.accumulate(sizes), sizes[1:], strict=False))
    prior = ChainPrior(
        _part("prior", plan.config.parts.prior, top, first),
        *(
            NormalPosterior(plan.dense(seen + labels, hidden[::-1]), size, [seen], labels)
            for seen, size in above
        ),
    )
    links = [_link(plan, first.out_features + seen, size) for seen, size in above]
    flow = any(isinstance(link, FlowPosterior) for link in links)
    return prior, ChainPosterior(first, *links, prior=None if flow else prior)


def _link(plan: Plan, seen: int, size: int) -> Any:
    """q(z_l | x, z_>l), of the features of x and the levels above together."""
    parts = plan.config.parts
    network = plan.dense(seen, [plan.config.network.hidden_dims[-1]])
    build, kind = builder_of("posterior", parts.posterior)
    if build is base_posterior:
        return kind(network, size, [seen])
    flow = flow_of("posterior", parts.posterior, size, parts.posterior_flows)
    return FlowPosterior(NormalPosterior(network, size, [seen]), flow)


def _part(flag: str, value: str, *args: Any) -> Any:
    """The part named by a value of a flag."""
    build, kind = builder_of(flag, value)
    return build(kind, *args)


def _likelihood(config: RunConfig, data: DataSet, remarks: list[str]) -> str:
    """The name of the likelihood, which must go with the values."""
    name = config.parts.likelihood
    if name == "auto":
        name = data.default_likelihood
        values = _values(data)
        if config.training.start != "random" and name == "normal":
            name = "student_t"  # A few rows far out decide a normal's.
        remarks.append(f"Likelihood: {name}, since the data hold {values}.")
        remarks += idle(config, "likelihood", name)
    elif data.kind not in REGISTRY["likelihood"][name].kinds:
        raise ConfigError(
            f"Invalid value for '--likelihood': expected one for {_values(data)}, since "
            f"{data.reason}; got {name!r}."
        )
    if config.parts.exposure and "exposure" not in REGISTRY["likelihood"][name].options:
        raise ConfigError(
            "Invalid value for '--exposure': expected a likelihood of counts with it "
            f"(--kind counts); got {name}."
        )
    return name


def _remark_on_images(config: RunConfig, data: DataSet, remarks: list[str]) -> None:
    augment = config.data.augment
    if data.image_shape is None:
        if augment not in (0, RunConfig().data.augment):  # It was asked for.
            remarks.append("--augment has no effect: the data are no images.")
    elif augment and data.name not in NAMES:
        remarks.append(f"Training images are moved a little (--augment {augment:g}; 0 for none).")


def _start_at_classical(vae: VAE, config: RunConfig, data: DataSet, remarks: list[str]) -> None:
    if data.kind != "real":
        remarks.append(
            f"Training starts at random weights: --start {config.training.start} is for real "
            f"values, and the data hold {_values(data)}."
        )
        return
    try:
        _STARTS[config.training.start](vae, data.train, data.val, config.training.seed)
    except ValueError as error:
        raise ConfigError(f"Invalid value for '--start': {error}") from error


def _start_from_init(vae: VAE, config: RunConfig) -> None:
    """Gives a VAE the weights of the run that ``--init`` names, units of the data included.

    With ``--freeze`` only the frozen parts, for the others may be of another kind.

    Raises:
        ConfigError: if there are none, or they are of another model.
    """
    if config.training.init == "none":
        return
    folder = Path(config.training.init).expanduser()
    try:
        if not config.training.frozen:
            load(folder, into=vae)
            return
        source = load(folder)
    except RunFolderError as error:
        raise ConfigError(f"Invalid value for '--init': {error}") from error
    for name in config.training.frozen:
        theirs = frozen_tensors(source, name)
        try:
            if frozen_tensors(vae, name).keys() != theirs.keys():
                raise RuntimeError("other parameters")
            getattr(vae, name).load_state_dict(theirs, strict=False)
        except RuntimeError:
            raise ConfigError(
                f"Invalid value for '--init': expected a run with the {name} of these options; got "
                f"another in {folder}."
            ) from None


def frozen_tensors(vae: VAE, role: str) -> dict[str, torch.Tensor]:
    """The parameters and buffers that ``--freeze`` keeps of a part, by their names in it.

    A posterior of levels shares the links of the prior, which are kept; the top of the prior is not
    its own.
    """
    part = getattr(vae, role)
    chains = [path for path, module in part.named_modules() if isinstance(module, ChainPrior)]
    tops = tuple(f"{path}.top." for path in chains if role != "prior")
    tensors = part.state_dict(keep_vars=True)
    return {name: value for name, value in tensors.items() if not name.startswith(tops)}


def build_objective(config: RunConfig) -> pyro.infer.ELBO:
    """The objective of a configuration; a discriminator's weights come from torch's generator."""
    objective = config.objective
    if objective.train_samples > 1:
        # The bound of importance-weighted autoencoders is Renyi's at order 0.
        draws = {"num_particles": objective.train_samples}
        if objective.gradient == "path":
            return ManySamples(**draws, gradient="path")
        return RenyiELBO(alpha=0, **draws, vectorize_particles=True, max_plate_nesting=1)
    cycle = objective.cycle_epochs
    common: dict[str, Any] = {"schedule": CyclicalWeight(cycle) if cycle else None}
    if objective.tc_weight != 1:
        return BetaTCELBO(objective.tc_weight, **common)
    common |= {"free_bits": objective.free_bits, "gradient": objective.gradient}
    if objective.capacity:
        common["capacity"] = CapacityRamp(objective.capacity, objective.capacity_epochs)
    if (objective.alpha, objective.lambda_) == (0, 1):
        return BetaELBO(objective.beta, **common)
    name = objective.divergence
    divergence = None if name == "none" else _part("divergence", name, config)
    return InfoELBO(objective.alpha, objective.lambda_, divergence, **common)


def _values(data: DataSet) -> str:
    return {
        "binary": "binary values",
        "levels": f"levels 0..{(data.num_levels or 0) - 1}",
        "counts": "counts",
        "real": "real values",
        "table": "columns of several kinds",
    }[data.kind]


def data_of(config: RunConfig, complaint: str = "Invalid value for '--data'") -> DataSet:
    """The data that a configuration asks for.

    Raises:
        DataError: beginning with ``complaint``, if they cannot be loaded.
    """
    source = config.data.source
    try:
        return load_for(config)
    except DataError as error:
        reason = str(error).removeprefix(f"{Path(source).expanduser()}: ")
        raise DataError(f"{complaint} ({source}): {reason}") from error
