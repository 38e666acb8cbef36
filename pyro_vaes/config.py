"""One tree of options: command-line flags, YAML files and run folders all come from it.

A field of a section is an option. Its flag is its name in the metadata, else its own; a YAML file has
the same names with underscores, flat. Adding an option is adding a field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast, get_type_hints

import click
import yaml

__all__ = [
    "RECIPES",
    "ConfigError",
    "RunConfig",
    "check",
    "differences",
    "flatten",
    "from_values",
    "from_yaml",
    "options",
    "recipe_values",
    "to_yaml",
    "unflatten",
]

LIKELIHOODS = ("auto", "bernoulli", "categorical", "normal")
PRIORS = ("standard", "mixture", "vamp", "realnvp", "maf")
POSTERIORS = ("normal", "planar", "iaf")
NETWORKS = ("mlp",)
ACTIVATIONS = ("elu", "gelu", "leaky_relu", "relu", "silu", "softplus", "tanh")


class ConfigError(ValueError):
    """An option that makes no sense; the message is one line."""


def option(
    default: Any,
    help: str,  # noqa: A002 - click's own word
    *,
    name: str | None = None,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is also an option."""
    metadata = dict(
        help=help, name=name, choices=choices, least=least, above=above, below=below
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is modelled."""

    source: str = option(
        "digits", "digits, mnist, fashion_mnist, or a .npy, .npz or .csv file.", name="data"
    )
    root: str = option("data", "Folder for downloaded data.", name="data_root")
    binarization: str = option(
        "dynamic", "Of MNIST and its kin.", choices=("dynamic", "threshold", "grey")
    )
    conditional: bool = option(False, "Model p(x given label): posterior and likelihood see labels.")
    conditional_prior: bool = option(False, "Give each label a prior of its own, p(z given label).")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The networks of posterior and likelihood."""

    kind: str = option("mlp", "Kind of network.", name="network", choices=NETWORKS)
    hidden_dims: tuple[int, ...] = option((256, 256), "Hidden layers of the encoder; reversed in the decoder.")
    activation: str = option("leaky_relu", "Activation.", choices=ACTIVATIONS)
    latent_dim: int = option(16, "Size of z.", least=1)


@dataclasses.dataclass(frozen=True)
class PartsConfig:
    """Likelihood, prior and posterior."""

    likelihood: str = option("auto", "p(x given z); auto follows the values.", choices=LIKELIHOODS)
    prior: str = option("standard", "p(z).", choices=PRIORS)
    prior_components: int = option(50, "Components of a mixture, pseudo-inputs of a VampPrior.", least=1)
    prior_weights: str = option(
        "auto", "Weights of the components; auto: learned in a mixture, uniform in a VampPrior.",
        choices=("auto", "learned", "uniform"),
    )
    prior_flows: int = option(4, "Layers of a flow prior.", least=1)
    pseudo_inputs: str = option("data", "Where pseudo-inputs start.", choices=("data", "mean", "random"))
    posterior: str = option("normal", "q(z given x).", choices=POSTERIORS)
    posterior_flows: int = option(4, "Layers of a flow posterior.", least=1)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    beta: float = option(1.0, "Weight of the KL.", least=0)
    free_bits: float = option(0.0, "Nats of KL per datum that cost nothing.", least=0)
    warmup_epochs: float = option(0.0, "Epochs over which the KL weight rises from 0.", least=0)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How it is minimised."""

    epochs: int = option(1000, "Most passes over the training data.", least=1)
    patience: int = option(20, "Stop after this many epochs without a better validation.", least=1)
    batch_size: int = option(64, "Data in a step.", least=1)
    learning_rate: float = option(1e-3, "Learning rate.", above=0)
    optimizer: str = option("adamax", "Optimiser.", choices=("adam", "adamw", "adamax"))
    weight_decay: float = option(0.0, "Weight decay.", least=0)
    schedule: str = option("constant", "Of the learning rate.", choices=("constant", "cosine", "linear"))
    clip_norm: float = option(0.0, "Largest norm of a gradient; 0 for no limit.", least=0)
    ema_decay: float = option(0.0, "Decay of a moving average of the weights; 0 for none.", least=0, below=1)
    seed: int = option(0, "Seed of weights, data order and noise.", least=0)
    device: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda", "mps"))
    mode: str = option(
        "auto", "How steps are run.", choices=("auto", "eager", "traced", "compiled", "cuda_graph")
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All options of a run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    parts: PartsConfig = dataclasses.field(default_factory=PartsConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


# Named sets of defaults; any flag or file overrides them.
RECIPES: dict[str, dict[str, Any]] = {
    "course": dict(
        network="mlp",
        hidden_dims=(256, 256),
        activation="leaky_relu",
        latent_dim=16,
        likelihood="auto",
        prior="standard",
        posterior="normal",
        optimizer="adamax",
        learning_rate=1e-3,
        batch_size=64,
        epochs=1000,
        patience=20,
    ),
}
DEFAULT_RECIPE = "course"

# What may change between a run and its resumption: it may be longer, and be told so.
_MAY_GROW = "epochs"


# --- the tree and its flat form --------------------------------------------------------------------


def _fields() -> Iterable[tuple[str, str, Any, Any]]:
    """Every option as (flat name, section, field, type)."""
    for section, section_type in get_type_hints(RunConfig).items():
        hints = get_type_hints(section_type)
        for field in dataclasses.fields(section_type):
            yield field.metadata["name"] or field.name, section, field, hints[field.name]


def flatten(config: RunConfig) -> dict[str, Any]:
    """The options by flat name, as plain values."""
    flat = {}
    for name, section, field, _ in _fields():
        value = getattr(getattr(config, section), field.name)
        flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def unflatten(values: Mapping[str, Any]) -> RunConfig:
    """The tree of checked flat values; :func:`from_values` checks them first."""
    sections: dict[str, dict[str, Any]] = {}
    for name, section, field, _ in _fields():
        value = values[name]
        sections.setdefault(section, {})[field.name] = (
            tuple(value) if isinstance(value, (list, tuple)) else value
        )
    types = get_type_hints(RunConfig)
    return RunConfig(**{name: types[name](**given) for name, given in sections.items()})


def differences(config: RunConfig, earlier: RunConfig) -> list[str]:
    """Flat names of options that keep ``config`` from going on with an ``earlier`` run."""
    now, then = flatten(config), flatten(earlier)
    return [name for name in now if name != _MAY_GROW and now[name] != then[name]]


# --- YAML ------------------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} is given twice")
            seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


def to_yaml(config: RunConfig) -> str:
    """The options as a flat YAML file, in the order of the tree."""
    return cast(str, yaml.safe_dump(flatten(config), sort_keys=False))


def from_yaml(text: str, where: str = "the configuration") -> dict[str, Any]:
    """The flat values of a YAML file; names are checked here, values by :func:`from_values`.

    Raises:
        ConfigError: for anything but a flat mapping of known options.
    """
    try:
        values = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Expected a YAML file of options in {where}; {reason}.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"Expected lines 'option: value' in {where}; got {type(values).__name__}.")
    known = [name for name, *_ in _fields()]
    for name in values:
        if name not in known and name != "recipe":
            raise ConfigError(f"Expected options of pyro-vaes in {where}; got {name!r}.")
    return values


# --- click -----------------------------------------------------------------------------------------


class _Number(click.ParamType):
    """A finite number within its bounds, whole if ``whole``."""

    def __init__(self, whole: bool, bounds: Mapping[str, Any]) -> None:
        self.name = "integer" if whole else "number"
        self.whole = whole
        self.bounds = bounds

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        least, above, below = (self.bounds[key] for key in ("least", "above", "below"))
        limits = [
            f"{word} {bound:g}"
            for word, bound in (("at least", least), ("above", above), ("below", below))
            if bound is not None
        ]
        expected = f"a {'whole ' if self.whole else ''}number {' and '.join(limits)}".strip()
        try:
            number = int(str(value)) if self.whole else float(str(value))
        except ValueError:
            number = math.nan
        ok = (
            math.isfinite(number)
            and (least is None or number >= least)
            and (above is None or number > above)
            and (below is None or number < below)
        )
        if not ok:
            self.fail(f"expected {expected}; got {value!r}.", param, ctx)
        return number


class _Sizes(click.ParamType):
    """Whole numbers of at least 1, with commas between them."""

    name = "sizes"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        try:
            sizes = tuple(int(str(item)) for item in items)
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"expected sizes such as 256,256; got {value!r}.", param, ctx)
        return sizes


class _Choice(click.Choice):  # type: ignore[type-arg]
    """A choice whose message names the value and what was expected, like all others."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if str(value) not in self.choices:
            self.fail(f"expected one of {', '.join(self.choices)}; got {str(value)!r}.", param, ctx)
        return str(value)


class _Truth(click.ParamType):
    """true or false."""

    name = "true|false"

    def convert(self, value: Any, param: Any, ctx: Any) -> bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            self.fail(f"expected true or false; got {value!r}.", param, ctx)
        return words[str(value).lower()]


def _click_type(field: Any, kind: Any) -> Any:
    if field.metadata["choices"]:
        return _Choice(field.metadata["choices"])
    if kind is bool:
        return _Truth()
    if kind in (int, float):
        return _Number(kind is int, field.metadata)
    return click.STRING if kind is str else _Sizes()


def options() -> list[click.Parameter]:
    """A click option for each field of the tree."""
    result: list[click.Parameter] = []
    for name, _, field, kind in _fields():
        default = field.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        result.append(
            click.Option(
                [f"--{name.replace('_', '-')}", name],
                type=_click_type(field, kind),
                default=default,
                show_default=shown.lower() if isinstance(default, bool) else shown,
                help=field.metadata["help"],
            )
        )
    return result


def recipe_values(name: str) -> dict[str, Any]:
    """The flat values of a recipe.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in RECIPES:
        raise ConfigError(
            f"Invalid value for '--recipe': expected one of {', '.join(RECIPES)}; got {name!r}."
        )
    return dict(RECIPES[name])


def from_values(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of flat values (over the fields' defaults), checked like flags.

    Raises:
        ConfigError: for a value that makes no sense.
    """
    command = click.Command("config", params=options())
    given = {name: value for name, value in values.items() if name != "recipe"}
    try:
        context = command.make_context("config", [], default_map=given)
    except click.ClickException as error:
        raise ConfigError(error.format_message()) from error
    return unflatten(context.params)


def check(config: RunConfig, explicit: Iterable[str] = ()) -> tuple[RunConfig, list[str]]:
    """Checks options against each other.

    Args:
        config: the options.
        explicit: names that were asked for by flag or file, not by a recipe.

    Returns:
        The options, those of a recipe perhaps adjusted, and a remark for each adjustment.

    Raises:
        ConfigError: for explicit options that contradict each other.
    """
    remarks = []
    warmup, epochs = config.objective.warmup_epochs, config.training.epochs
    if warmup >= epochs:
        if "warmup_epochs" in explicit:
            raise ConfigError(
                f"Invalid value for '--warmup-epochs': expected fewer than the {epochs} epochs of "
                f"training; got {warmup:g}."
            )
        shorter = epochs / 2
        remarks.append(
            f"The recipe's KL warm-up of {warmup:g} epochs is shortened to {shorter:g}: training has "
            f"{epochs}."
        )
        objective = dataclasses.replace(config.objective, warmup_epochs=shorter)
        config = dataclasses.replace(config, objective=objective)
    if config.data.conditional_prior and not config.data.conditional:
        raise ConfigError(
            "Invalid value for '--conditional-prior': expected --conditional true beside it; got false."
        )
    return config, remarks
