"""The options of a run: one dataclass tree, the source of flags, YAML and run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml

from pyro_vaes.core.choices import (
    ACTIVATIONS,
    DEVICES,
    FREEZABLE,
    GRADIENTS,
    KERNELS,
    MODES,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
)
from pyro_vaes.runs.options import (
    ConfigError,
    Option,
    Section,
    Values,
    load_yaml,
    option,
    options_of,
    shown,
)
from pyro_vaes.runs.registry import REGISTRY, values_with
from pyro_vaes.storage.files import CONFIG, MAY_DIFFER, config_text

__all__ = [
    "CONFIG",
    "MAY_DIFFER",
    "OPTIONS",
    "WARMUPS",
    "RunConfig",
    "digest",
    "flatten",
    "from_values",
    "merged",
    "read_config",
    "to_yaml",
    "unflatten",
    "validated",
]


GREY_IMAGES = ("mnist", "fashion_mnist", "omniglot")


def _only(flag: str, option: str) -> tuple[str, tuple[str, ...]]:
    """A flag, and the values of it with which an option has an effect."""
    return flag, values_with(flag, option)


# How the KL weight rises: the options for it, with the value for none.
WARMUPS: Mapping[str, float] = {"warmup_epochs": 0.0, "warmup_steps": 0, "cycle_epochs": 0.0}


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """What is modelled."""

    source: str = option(
        "digits",
        "digits, mnist, fashion_mnist, omniglot, cifar10; or own data: .csv, .tsv, .parquet, .npy, "
        ".npz, .h5ad, or a folder of pictures.",
        name="data",
    )
    root: str = option("data", "Folder for downloaded data.", name="data_root")
    binarization: str = option(
        "auto",
        "Of MNIST and its kin; auto: dynamic for these, none for others.",
        choices=("auto", "dynamic", "static", "threshold", "grey"),
        only_with=("data", GREY_IMAGES),
    )
    data_kind: str = option(
        "auto",
        "What the values are; auto: as they look.",
        name="kind",
        choices=("auto", "binary", "levels", "counts", "real", "table"),
    )
    num_levels: int = option(
        0, "Number of levels, 0 included; 0: the highest level and one.", least=0
    )
    image_shape: str = option(
        "auto", "C,H,W of rows that are images, none for rows that are not; auto: bytes may be."
    )
    header: str = option(
        "auto",
        "Whether the first row of a table names its columns; auto: as it looks.",
        choices=("auto", "first-row", "none"),
    )
    label_column: str = option(
        "auto",
        "Name of a table's column of labels, or none; several are conditions, categories or reals.",
        repeat="--label",
    )
    drop: str = option("none", "Names of a table's columns to leave out: id,date.")
    types: str = option(
        "auto", "Kinds of a table's columns: grade=ordinal,visits=count; auto: as they look."
    )
    missing: str = option(
        "keep",
        "Blank, NA and NaN values: keep, left out of log p(x), or refuse.",
        choices=("keep", "refuse"),
    )
    dependent: str = option(
        "keep",
        "Real columns that never vary or are linear functions of others: keep, drop or refuse.",
        choices=("keep", "drop", "refuse"),
    )
    group: str = option("none", "Name of a column whose rows of equal value share one split.")
    weights: str = option(
        "none", "Name of a column by which rows count in training and validation."
    )
    split_by: str = option(
        "random",
        "How own rows are split; time: in their order.",
        name="split",
        choices=("random", "time"),
    )
    val_fraction: float = option(0.2, "Share of own rows for validation.", above=0, below=1)
    test_fraction: float = option(0.2, "Share of own rows for testing.", above=0, below=1)
    split_seed: int = option(0, "Seed of the split of own rows.", least=0)
    conditional: bool = option(
        False, "Model p(x given label): posterior and likelihood see labels."
    )
    augment: float = option(
        1.6,
        "Moves of training images: 0 for none, 1 for about half a pixel and 8 degrees.",
        least=0,
        below=20,
    )
    conditional_prior: bool = option(False, "Give each label a prior of its own, p(z given label).")


@dataclasses.dataclass(frozen=True)
class PartsConfig(Section):
    """Likelihood, prior and posterior."""

    likelihood: str = option(
        "auto", "p(x given z); auto follows the values.", choices=("auto", *REGISTRY["likelihood"])
    )
    sharpness: bool = option(
        False,
        "Let the network set each element's sharpness.",
        only_with=_only("likelihood", "sharpness"),
    )
    noise_order: int = option(
        1, "Lags of noise over time.", least=1, only_with=_only("likelihood", "noise_order")
    )
    exposure: bool = option(
        False,
        "The last column is each row's exposure (library size), given and not modelled.",
        only_with=_only("likelihood", "exposure"),
    )
    transform: str = option(
        "none",
        "Scale of real elements: yeo_johnson, a power transform of each; auto: where the "
        "validation rows want it.",
        choices=("none", "auto", "yeo_johnson"),
    )
    prior: str = option("mixture", "p(z).", choices=tuple(REGISTRY["prior"]))
    prior_components: int = option(
        50,
        "Components of a mixture, pseudo-inputs of a VampPrior, points of a GTM's square grid.",
        least=1,
        only_with=_only("prior", "prior_components"),
    )
    prior_weights: str = option(
        "auto",
        "Weights of the components; auto: learned in a mixture, uniform in a VampPrior.",
        choices=("auto", "learned", "uniform"),
        only_with=_only("prior", "prior_weights"),
    )
    prior_flows: int = option(
        4, "Layers of a flow prior.", least=1, only_with=_only("prior", "prior_flows")
    )
    prior_normalise: bool = option(
        False,
        "Follow each layer of a flow prior by an activation normalisation, for deep ones.",
        only_with=_only("prior", "prior_normalise"),
    )
    pseudo_inputs: str = option(
        "data",
        "Where pseudo-inputs start: training data, their mean plus noise, or at random; or gtm, a "
        "grid pushed through a network.",
        choices=("data", "mean", "random", "gtm"),
        only_with=_only("prior", "pseudo_inputs"),
    )
    pseudo_input_bounds: bool = option(
        False,
        "Keep pseudo-inputs within the range of the data.",
        only_with=_only("prior", "pseudo_input_bounds"),
    )
    posterior: str = option("normal", "q(z given x).", choices=tuple(REGISTRY["posterior"]))
    posterior_flows: int = option(
        4, "Layers of a flow posterior.", least=1, only_with=_only("posterior", "posterior_flows")
    )


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Section):
    """The networks of posterior and likelihood, and the code between them."""

    latent_dim: int = option(16, "Size of z, of all its levels together.", least=1)
    levels: tuple[int, ...] = option(
        (),
        "Sizes of the levels of z, top first; --prior is that of the top, and each other level has "
        "p(z_l given z_>l), normal. none: one level.",
    )
    kind: str = option(
        "mlp", "Kind of network.", name="network", choices=tuple(REGISTRY["network"])
    )
    hidden_dims: tuple[int, ...] = option(
        (256, 256), "Hidden layers of the encoder; reversed in the decoder."
    )
    channels: tuple[int, ...] = option(
        (32, 64),
        "Of the encoder's convolutions; reversed in the decoder.",
        only_with=_only("network", "channels"),
    )
    blocks: int = option(
        1,
        "Residual blocks of each size of image.",
        least=1,
        only_with=_only("network", "blocks"),
    )
    activation: str = option(
        "silu",
        "Between the layers.",
        choices=tuple(ACTIVATIONS),
        only_with=_only("network", "activation"),
    )
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
    cycle_epochs: float = option(
        0.0, "Length of a cycle in which the KL weight rises anew, in half of it; 0: none.", least=0
    )
    capacity: float = option(
        0.0, "Nats of KL per datum to aim at, by --beta |KL - capacity|; 0: none.", least=0
    )
    capacity_epochs: float = option(0.0, "Epochs in which the capacity rises from 0.", least=0)
    tc_weight: float = option(
        1.0, "Weight of the total correlation of z within the KL; 1: the ELBO.", least=0
    )
    alpha: float = option(0.0, "InfoVAE: weight of the information of z on x, at most 1.")
    lambda_: float = option(
        1.0, "InfoVAE: weight of the divergence of q(z) from p(z).", name="lambda", least=0
    )
    divergence: str = option(
        "none",
        "InfoVAE: with weight alpha + lambda - 1.",
        choices=("none", *REGISTRY["divergence"]),
    )
    divergence_kernel: str = option(
        "imq",
        "Kernel of the MMD.",
        choices=KERNELS,
        only_with=_only("divergence", "divergence_kernel"),
    )
    train_samples: int = option(
        1, "Draws of z per datum in the bound to train on: 1 the ELBO, more IWAE's.", least=1
    )
    gradient: str = option(
        "total",
        "Of q(z given x); path: without its score, so less noise near p(z given x).",
        choices=GRADIENTS,
    )

    def check(self) -> None:
        """Refuses more than one way in which the KL weight rises."""
        given = [(f"--{n.replace('_', '-')}", getattr(self, n)) for n in WARMUPS]
        rising = [(flag, length) for flag, length in given if length]
        if len(rising) > 1:
            (first, usual), (flag, length) = rising[:2]
            raise ConfigError(
                f"Invalid value for '{flag}': expected 0 with {first} {usual:g}; got {length:g}."
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """How it is minimised."""

    epochs: int = option(350, "Most passes over the training data.", least=1)
    patience: int = option(50, "Stop after this many epochs without a better validation.", least=1)
    batch_size: int = option(64, "Data in a step.", least=1)
    learning_rate: float = option(1e-3, "Step size of the optimiser.", above=0)
    optimizer: str = option("adam", "Optimiser.", choices=tuple(OPTIMIZERS))
    weight_decay: float = option(0.0, "Weight decay of the optimiser.", least=0)
    schedule: str = option("constant", "Of the learning rate.", choices=tuple(SCHEDULES))
    clip_norm: float = option(0.0, "Largest norm of a gradient; 0 for no limit.", least=0)
    ema_decay: float = option(
        0.995, "Decay of a moving average of the weights; 0 for none.", least=0, below=1
    )
    start: str = option(
        "random",
        "Weights at the start: random, or those of a factor analysis or t of real numbers.",
        choices=("random", "factors", "student_t"),
        only_with=("network", ("skip",)),
    )
    init: str = option("none", "A run folder whose weights training starts from, or none.")
    freeze: str = option(
        "none",
        "Parts that keep the weights of --init while the others are trained anew: "
        "posterior,likelihood to refit a prior.",
        choices=FREEZABLE,
    )
    seed: int = option(0, "Of weights, data order and noise.", least=0)
    device: str = option("auto", "Where to compute; auto: CUDA if there is one.", choices=DEVICES)
    mode: str = option("auto", "How steps are run; auto goes by device and number.", choices=MODES)
    precision: str = option(
        "float32", "Of the matrix products in training; its effect is reported.", choices=PRECISIONS
    )
    threads: int = option(
        0, "CPU threads to train with; 0: one for small data, else as many as torch takes.", least=0
    )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the parts that are not trained."""
        return () if self.freeze == "none" else tuple(self.freeze.split(","))


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


# --- the tree and its flat form -------------------------------------------------------------------


def flatten(config: RunConfig) -> Values:
    """Returns the options by flat name, as plain values, in the order of the tree."""
    values = {o.name: getattr(getattr(config, o.section), o.field) for o in OPTIONS.values()}
    return Values({name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})


def unflatten(values: Mapping[str, Any], where: str = "the configuration") -> RunConfig:
    """The inverse of :func:`flatten`; every option must be given, and no other.

    Raises:
        ConfigError: for an unknown, missing or wrong option.
    """
    checked = validated(values, where)
    for name in OPTIONS:
        if name not in checked:
            raise ConfigError(f"Expected every option in {where}; got none called {name!r}.")
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, value in checked.items():
        sections[OPTIONS[name].section][OPTIONS[name].field] = value
    return RunConfig(**{name: cast(Any, _SECTIONS[name].of(sections[name])) for name in sections})


def from_values(values: Mapping[str, Any]) -> RunConfig:
    """Puts some flat values over the fields' defaults; ``recipe`` is ignored.

    Raises:
        ConfigError: for an unknown name or an invalid value.
    """
    some = {name: value for name, value in values.items() if name != "recipe"}
    return unflatten(merged(flatten(RunConfig()), validated(some, "the configuration")))


def to_yaml(config: RunConfig) -> str:
    """Writes the options as a flat YAML file, in the order of the tree."""
    # An unlimited width keeps each option on one line; only lists are in flow style.
    style: dict[str, Any] = {"default_flow_style": None, "allow_unicode": True, "width": 10**6}
    written: str = yaml.safe_dump(dict(flatten(config)), sort_keys=False, **style)
    return written


def validated(values: Mapping[Any, Any], where: str) -> Values:
    """The values, each read by its option unless that was done before."""
    if isinstance(values, Values):
        return values
    for name in values:
        if name not in OPTIONS:
            raise ConfigError(f"Expected options of pyro-vaes in {where}; got {shown(name)}.")
    read = {name: OPTIONS[name].read(v, f"{name!r} in {where}") for name, v in values.items()}
    return Values(read)


def digest(config: RunConfig, but: Collection[str] = ()) -> str:
    """SHA-256 of the options that are not at their defaults, but some, in hexadecimal.

    An option that a later version adds, at a default that does what was done before, leaves it.
    """
    usual = flatten(RunConfig())
    values = {k: v for k, v in flatten(config).items() if k not in but and v != usual[k]}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_config(folder: Path) -> RunConfig:
    """Reads the options of a run folder.

    Options that were added after the run's version have their defaults, under which the library
    behaves as before.

    Raises:
        RunFolderError: if the file is missing or cannot be read.
        ConfigError: if it holds anything but options.
    """
    where = str(folder / CONFIG)
    values = validated(load_yaml(config_text(folder), where), where)
    if "data" in values:
        values = Values({**flatten(RunConfig()), **values})
    return unflatten(values, where)


def merged(values: Values, others: Values) -> Values:
    """The others over the values; one way in which the KL weight rises replaces another."""
    none = WARMUPS if others.keys() & WARMUPS.keys() else {}
    return Values({**values, **none, **others})
