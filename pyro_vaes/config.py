"""The options of a run: one tree, from which flags, YAML files and run folders all come.

Each field of a section is an option. Its flat name (the field's own unless ``name`` says otherwise)
is its key in a YAML file and, with dashes, its flag: adding an option is adding one field. Flags
stand before a file, a file before a recipe, a recipe before the fields' defaults (:func:`resolve`).

Neither this module nor :mod:`pyro_vaes.options` imports others, so that any may read it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast, get_type_hints

import click
import yaml

from pyro_vaes.options import (
    ConfigError,
    Flag,
    Option,
    Section,
    load_yaml,
    option,
    options_of,
    shown,
    text,
)

__all__ = [
    "DEFAULT_RECIPE",
    "OPTIONS",
    "RECIPES",
    "ConfigError",
    "RunConfig",
    "check",
    "check_resume",
    "differences",
    "digest",
    "flatten",
    "from_values",
    "from_yaml",
    "options",
    "recipe_values",
    "resolve",
    "to_yaml",
    "unflatten",
]

# The names that flags know: a part is entered here, or a registry's keys put in a tuple's place.
LEVEL_LIKELIHOODS = ("categorical", "ordinal", "beta_binomial", "discretized_logistic")
LIKELIHOODS = ("auto", "bernoulli", *LEVEL_LIKELIHOODS, "normal")
COMPONENT_PRIORS = ("mixture", "vamp")
FLOW_PRIORS = ("realnvp", "maf", "spline")
PRIORS = ("standard", *COMPONENT_PRIORS, "gtm", *FLOW_PRIORS)
FLOW_POSTERIORS = ("planar", "iaf", "sylvester", "spline")
POSTERIORS = ("normal", "full_normal", *FLOW_POSTERIORS)
NETWORKS = ("mlp", "gated", "conv")
ACTIVATIONS = ("elu", "gelu", "leaky_relu", "relu", "silu", "softplus", "tanh")
OPTIMIZERS = ("adam", "adamw", "adamax")
SCHEDULES = ("constant", "cosine", "linear")
DEVICES = ("auto", "cpu", "cuda", "mps")
MODES = ("auto", "eager", "traced", "compiled", "cuda_graph")
PRECISIONS = ("float32", "tf32", "bf16")
DIVERGENCES = ("none", "mmd", "adversarial")
KERNELS = ("imq", "rbf")


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """What is modelled."""

    source: str = option(
        "digits", "digits, mnist, fashion_mnist, or a .npy, .npz or .csv file.", name="data"
    )
    root: str = option("data", "Folder for downloaded data.", name="data_root")
    binarization: str = option(
        "auto",
        "Of MNIST and its kin; auto: dynamic for these, none for others.",
        choices=("auto", "dynamic", "threshold", "grey"),
    )
    conditional: bool = option(
        False, "Model p(x given label): posterior and likelihood see labels."
    )
    augment: float = option(
        1.6,
        "Moves of training images: 0 for none, 1 for about half a pixel and 8 degrees.",
        least=0,
    )
    conditional_prior: bool = option(False, "Give each label a prior of its own, p(z given label).")


@dataclasses.dataclass(frozen=True)
class PartsConfig(Section):
    """Likelihood, prior and posterior."""

    likelihood: str = option("auto", "p(x given z); auto follows the values.", choices=LIKELIHOODS)
    sharpness: bool = option(
        False,
        "Let the network set each element's sharpness.",
        only_with=("likelihood", ("ordinal",)),
    )
    prior: str = option("mixture", "p(z).", choices=PRIORS)
    prior_components: int = option(
        50,
        "Components of a mixture, pseudo-inputs of a VampPrior, points of a GTM's square grid.",
        least=1,
        only_with=("prior", (*COMPONENT_PRIORS, "gtm")),
    )
    prior_weights: str = option(
        "auto",
        "Weights of the components; auto: learned in a mixture, uniform in a VampPrior.",
        choices=("auto", "learned", "uniform"),
        only_with=("prior", COMPONENT_PRIORS),
    )
    prior_flows: int = option(
        4, "Layers of a flow prior.", least=1, only_with=("prior", FLOW_PRIORS)
    )
    pseudo_inputs: str = option(
        "data",
        "Where pseudo-inputs start: training data, their mean plus noise, or at random; or gtm, a "
        "grid pushed through a network.",
        choices=("data", "mean", "random", "gtm"),
        only_with=("prior", ("vamp",)),
    )
    pseudo_input_bounds: bool = option(
        False, "Keep pseudo-inputs within the range of the data.", only_with=("prior", ("vamp",))
    )
    posterior: str = option("normal", "q(z given x).", choices=POSTERIORS)
    posterior_flows: int = option(
        4, "Layers of a flow posterior.", least=1, only_with=("posterior", FLOW_POSTERIORS)
    )


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Section):
    """The networks of posterior and likelihood, and the code between them."""

    latent_dim: int = option(16, "Size of z.", least=1)
    kind: str = option("mlp", "Kind of network.", name="network", choices=NETWORKS)
    hidden_dims: tuple[int, ...] = option(
        (256, 256), "Hidden layers of the encoder; reversed in the decoder."
    )
    channels: tuple[int, ...] = option(
        (32, 64),
        "Of the encoder's convolutions; reversed in the decoder.",
        only_with=("network", ("conv",)),
    )
    activation: str = option("silu", "Between the layers.", choices=ACTIVATIONS)
    input_scaling: str = option(
        "auto",
        "What the encoder sees; auto: the data scaled to about [-1, 1], none: as they are.",
        choices=("auto", "none"),
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """What is minimised."""

    beta: float = option(1.0, "Weight of the KL.", least=0)
    free_bits: float = option(0.0, "Nats of KL per datum that cost nothing.", least=0)
    warmup_epochs: float = option(100.0, "Epochs over which the KL weight rises from 0.", least=0)
    warmup_steps: int = option(0, "The same in steps; give one of the two.", least=0)
    alpha: float = option(0.0, "InfoVAE: weight of the information of z on x, at most 1.")
    lambda_: float = option(
        1.0, "InfoVAE: weight of the divergence of q(z) from p(z).", name="lambda", least=0
    )
    divergence: str = option(
        "none", "InfoVAE: with weight alpha + lambda - 1.", choices=DIVERGENCES
    )
    divergence_kernel: str = option(
        "imq", "Kernel of the MMD.", choices=KERNELS, only_with=("divergence", ("mmd",))
    )
    train_samples: int = option(
        1, "Draws of z per datum in the bound to train on: 1 the ELBO, more IWAE's.", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs and self.warmup_steps:
            raise ConfigError(
                "Invalid value for '--warmup-steps': expected 0 beside --warmup-epochs "
                f"{self.warmup_epochs:g}; got {self.warmup_steps}."
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """How it is minimised."""

    epochs: int = option(350, "Most passes over the training data.", least=1)
    patience: int = option(50, "Stop after this many epochs without a better validation.", least=1)
    batch_size: int = option(64, "Data in a step.", least=1)
    learning_rate: float = option(1e-3, "Step size of the optimiser.", above=0)
    optimizer: str = option("adam", "Optimiser.", choices=OPTIMIZERS)
    weight_decay: float = option(0.0, "Weight decay of the optimiser.", least=0)
    schedule: str = option("constant", "Of the learning rate, over all epochs.", choices=SCHEDULES)
    clip_norm: float = option(0.0, "Largest norm of a gradient; 0 for no limit.", least=0)
    ema_decay: float = option(
        0.995, "Decay of a moving average of the weights; 0 for none.", least=0, below=1
    )
    seed: int = option(0, "Of weights, data order and noise.", least=0)
    device: str = option("auto", "Where to compute; auto: CUDA if there is one.", choices=DEVICES)
    mode: str = option("auto", "How steps are run; auto goes by their number.", choices=MODES)
    precision: str = option(
        "float32", "Of the matrix products in training; its effect is reported.", choices=PRECISIONS
    )
    threads: int = option(
        0, "CPU threads to train with; 0: one for small data, else as many as torch takes.", least=0
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All options of a run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    parts: PartsConfig = dataclasses.field(default_factory=PartsConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


_SECTIONS: dict[str, type[Section]] = get_type_hints(RunConfig)
OPTIONS: dict[str, Option] = {
    option.name: dataclasses.replace(option, section=section)
    for section, kind in _SECTIONS.items()
    for option in options_of(kind)
}


class Recipe(NamedTuple):
    """A named set of defaults, by flat name, which any flag or file overrides."""

    description: str
    values: Mapping[str, Any]


RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        "an MLP with ordered levels, a joint mixture prior, a moving average of its weights and "
        "images moved a little",
        {},  # the options' own defaults
    ),
    "digits-conv": Recipe(
        "the same with convolutions, 100 components and a sharpness for each pixel",
        dict(
            network="conv",
            hidden_dims=(256,),
            prior_components=100,
            sharpness=True,
            ema_decay=0.998,
            epochs=500,
        ),
    ),
    "course": Recipe(
        "what the course's notebook does: MLP 64-256-256, latent 16, categorical, standard prior",
        dict(
            likelihood="categorical",
            prior="standard",
            posterior="normal",
            latent_dim=16,
            network="mlp",
            hidden_dims=(256, 256),
            activation="leaky_relu",
            input_scaling="none",  # the notebook feeds raw levels
            epochs=1000,
            patience=20,
            batch_size=64,
            learning_rate=1e-3,
            optimizer="adamax",
            augment=0.0,
            ema_decay=0.0,
            warmup_epochs=0.0,
        ),
    ),
}
DEFAULT_RECIPE = "default"

_WARMUPS = ("warmup_epochs", "warmup_steps")


# --- the tree and its flat form -------------------------------------------------------------------


def flatten(config: RunConfig) -> dict[str, Any]:
    """Returns the options by flat name, as plain values, in the order of the tree."""
    values = {o.name: getattr(getattr(config, o.section), o.field) for o in OPTIONS.values()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def unflatten(values: Mapping[str, Any], where: str = "the configuration") -> RunConfig:
    """Inverts :func:`flatten`: takes every option, and no other.

    Raises:
        ConfigError: for an unknown, missing or wrong option.
    """
    checked = _known(values, where)
    for name in OPTIONS:
        if name not in checked:
            raise ConfigError(f"Expected every option in {where}; got none called {name!r}.")
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, value in checked.items():
        sections[OPTIONS[name].section][OPTIONS[name].field] = value
    return RunConfig(**{name: cast(Any, _SECTIONS[name])(**sections[name]) for name in sections})


def from_values(values: Mapping[str, Any]) -> RunConfig:
    """Puts some flat values over the fields' defaults; ``recipe`` is passed over.

    Raises:
        ConfigError: for an unknown name or a value that makes no sense.
    """
    some = {name: value for name, value in values.items() if name != "recipe"}
    return unflatten(_over(flatten(RunConfig()), some))


def to_yaml(config: RunConfig) -> str:
    """Writes the options as a flat YAML file, in the order of the tree."""
    plain = flatten(config)
    # A width without end keeps each option on its line; only the lists in it are in flow style.
    style: dict[str, Any] = {"default_flow_style": None, "allow_unicode": True, "width": 10**6}
    written: str = yaml.safe_dump(plain, sort_keys=False, **style)
    return written


def from_yaml(source: str, where: str = "the configuration") -> dict[str, Any]:
    """Reads the options that a YAML file gives, by flat name; ``recipe`` may be among them.

    Some options are for :func:`resolve`; all of them, as in a run folder, for :func:`unflatten`.

    Raises:
        ConfigError: for anything but a flat mapping of known options to values that they take.
    """
    values = load_yaml(source, where)
    recipe = {"recipe": values.pop("recipe")} if "recipe" in values else {}
    for name in recipe.values():
        recipe_values(name, f"'recipe' in {where}")
    return recipe | _known(values, where)


def _known(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The values, each read by its option."""
    for name in values:
        if name not in OPTIONS:
            raise ConfigError(f"Expected options of pyro-vaes in {where}; got {shown(name)}.")
    return {name: OPTIONS[name].read(v, f"{name!r} in {where}") for name, v in values.items()}


def digest(config: RunConfig) -> str:
    """SHA-256 of all options, in hexadecimal."""
    return hashlib.sha256(json.dumps(flatten(config), sort_keys=True).encode()).hexdigest()


# --- from recipe, file and flags to a configuration -----------------------------------------------


def recipe_values(name: Any, label: str = "'--recipe'") -> dict[str, Any]:
    """Returns the flat values of a recipe.

    Raises:
        ConfigError: for an unknown name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(
            f"Invalid value for {label}: expected one of {', '.join(RECIPES)}; got {shown(name)}."
        )
    return dict(RECIPES[name].values)


def resolve(
    recipe: str | None = None,
    file_values: Mapping[str, Any] | None = None,
    flag_values: Mapping[str, Any] | None = None,
    started: RunConfig | None = None,
) -> tuple[RunConfig, frozenset[str]]:
    """Makes the configuration that recipe, file and flags ask for.

    Args:
        recipe: its name; if None, the file's ``recipe``, else the default recipe.
        file_values: what :func:`from_yaml` read.
        flag_values: what was :func:`~pyro_vaes.options.given` on the command line.
        started: the options of a run to go on with. They stand in the defaults' place, so that
            nothing has to be said twice; what is said must agree, see :func:`check_resume`.

    Returns:
        The configuration, and the names that flags or the file asked for.

    Raises:
        ConfigError: for an unknown name or a value that makes no sense.
    """
    from_file = dict(file_values or {})
    in_file = from_file.pop("recipe", None)
    asked = from_file | dict(flag_values or {})
    name = in_file if recipe is None else recipe
    if name is None and started is None:
        name = DEFAULT_RECIPE
    base = flatten(started or RunConfig())
    defaults = {} if name is None else recipe_values(name)
    if started is not None:  # The recipe's may have been shortened when the run was started.
        defaults |= {unit: base[unit] for unit in _WARMUPS}
    return unflatten(_over(_over(base, defaults), asked)), frozenset(asked)


def _over(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Some values over others; a warm-up in one unit takes the place of one in the other."""
    none = dict.fromkeys(_WARMUPS, 0) if others.keys() & set(_WARMUPS) else {}
    return {**values, **none, **others}


def check(
    config: RunConfig, explicit: Iterable[str] = (), steps_per_epoch: int | None = None
) -> tuple[RunConfig, list[str]]:
    """Checks options against each other.

    Args:
        config: the options.
        explicit: names that were asked for by flag or file, not by a recipe.
        steps_per_epoch: once the data are known; without it a warm-up in steps is not looked at.

    Returns:
        The options, a recipe's warm-up shortened if need be, and remarks to print: on that, and on
        each explicit option that has no effect.

    Raises:
        ConfigError: for explicit options that contradict each other.
    """
    explicit, flat = frozenset(explicit), flatten(config)
    remarks = []
    samples = flat["train_samples"]
    for name in _WARMUPS:
        if samples > 1 and flat[name] and name not in explicit:
            flat[name] = 0
            remarks.append(
                f"The recipe's KL warm-up is left out: the bound of --train-samples {samples} has "
                "no KL to weigh."
            )
    for name, per_epoch in zip(_WARMUPS, (1, steps_per_epoch), strict=True):
        length, unit = flat[name], name.removeprefix("warmup_")
        if per_epoch is None or length < (training := flat["epochs"] * per_epoch):
            continue
        if name in explicit:
            raise ConfigError(
                f"Invalid value for '{OPTIONS[name].flag}': expected fewer than the "
                f"{training} {unit} of training; got {length:g}."
            )
        flat[name] = training // 2
        remarks.append(
            f"The recipe's KL warm-up of {length:g} {unit} is shortened to {flat[name]}: "
            f"training has {training}."
        )
    if flat["conditional_prior"] and not flat["conditional"]:
        raise ConfigError(
            "Invalid value for '--conditional-prior': "
            "expected --conditional true beside it; got true without."
        )
    _check_objective(flat)
    if "divergence" in explicit and flat["divergence"] != "none" and not _info_weight(flat):
        remarks.append(
            "--divergence has no effect with --alpha + --lambda = 1, its weight being 0."
        )
    defaults = flatten(RunConfig())
    for name, one in OPTIONS.items():
        other, values = one.only_with or (name, (flat[name],))
        if name in explicit and flat[other] not in values and flat[name] != defaults[name]:
            remarks.append(f"{one.flag} has no effect with {OPTIONS[other].flag} {flat[other]}.")
    return unflatten(flat), remarks


def _info_weight(flat: Mapping[str, Any]) -> float:
    return round(flat["alpha"] + flat["lambda"] - 1, 12)


def _check_objective(flat: Mapping[str, Any]) -> None:
    """Refuses objectives that are none."""

    def require(holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ConfigError(
                f"Invalid value for '{OPTIONS[name].flag}': expected {expected}; "
                f"got {text(flat[name])}."
            )

    weight, samples = _info_weight(flat), flat["train_samples"]
    require(flat["alpha"] <= 1, "alpha", "at most 1 (the KL's weight is 1 - alpha)")
    require(
        weight >= 0, "lambda", "at least 1 - alpha (the divergence's weight is alpha + lambda - 1)"
    )
    require(
        not weight or flat["divergence"] != "none",
        "divergence",
        f"mmd or adversarial beside --alpha + --lambda above 1 (its weight is {weight:g})",
    )
    info = flat["alpha"] != 0 or flat["lambda"] != 1
    require(not info or flat["beta"] == 1, "beta", "1 beside --alpha and --lambda")
    if samples > 1:
        neutral = {"beta": 1, "free_bits": 0, "alpha": 0, "lambda": 1, "divergence": "none"}
        for name, value in {**neutral, **dict.fromkeys(_WARMUPS, 0)}.items():
            require(
                flat[name] == value,
                name,
                f"{value} beside --train-samples {samples}, a bound that has no KL to weigh",
            )


def differences(config: RunConfig, earlier: RunConfig) -> list[str]:
    """Lists the flat names that keep ``config`` from going on with an ``earlier`` run.

    Training may grow longer, and downloads may lie elsewhere. All else must be the same, device and
    mode among them: a resumed run repeats the uninterrupted one bit for bit.
    """
    now, then = flatten(config), flatten(earlier)
    may_differ = {"data_root"} | ({"epochs"} if now["epochs"] > then["epochs"] else set())
    return [name for name in now if now[name] != then[name] and name not in may_differ]


def check_resume(config: RunConfig, earlier: RunConfig) -> None:
    """Refuses to go on with an ``earlier`` run under other options.

    Raises:
        ConfigError: naming the first option that differs.
    """
    now, then = flatten(config), flatten(earlier)
    for name in differences(config, earlier):
        least = "at least " if name == "epochs" else ""
        raise ConfigError(
            f"Invalid value for '{OPTIONS[name].flag}': expected {least}{text(then[name])}, which "
            f"the run to resume was started with; got {text(now[name])}."
        )


def options() -> list[click.Parameter]:
    """Makes a flag for each option; the defaults are those of the default recipe."""
    defaults = flatten(resolve()[0])
    return [Flag(option, defaults[option.name]) for option in OPTIONS.values()]
