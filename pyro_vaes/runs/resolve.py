"""Merges recipe, file and flags into one checked configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pyro_vaes.runs.options import ConfigError, Option, Values, load_yaml, text
from pyro_vaes.runs.recipes import DEFAULT_RECIPE, recipe_values
from pyro_vaes.runs.schema import (
    MAY_DIFFER,
    OPTIONS,
    WARMUPS,
    RunConfig,
    flatten,
    merged,
    unflatten,
    validated,
)

__all__ = [
    "check_combination",
    "check_conditional",
    "check_resume",
    "check_warmup_steps",
    "differences",
    "from_yaml",
    "idle",
    "resolve",
]


def from_yaml(source: str, where: str = "the configuration") -> Values:
    """Reads the options in a YAML file, by flat name; ``recipe`` may be among them.

    Raises:
        ConfigError: unless the file is a flat mapping of known options to valid values.
    """
    values = load_yaml(source, where)
    recipe = {"recipe": values.pop("recipe")} if "recipe" in values else {}
    for name in recipe.values():
        recipe_values(name, f"'recipe' in {where}")
    return Values({**recipe, **validated(values, where)})


def resolve(
    recipe: str | None = None,
    file_values: Mapping[str, Any] | None = None,
    flag_values: Mapping[str, Any] | None = None,
    started: RunConfig | None = None,
) -> tuple[RunConfig, frozenset[str]]:
    """Merges recipe, file and flags, each over the one before.

    Args:
        recipe: its name; if None, the file's ``recipe``, else the default recipe.
        file_values: the options of a file, see :func:`from_yaml`.
        flag_values: the flags :func:`~pyro_vaes.cli.flags.given` on the command line.
        started: the options of a run to resume, which replace the defaults. Flags need not be
            repeated; those given must agree, see :func:`check_resume`.

    Returns:
        The configuration, and the names given by flags or file.

    Raises:
        ConfigError: for an unknown name or an invalid value.
    """
    asked = Values()
    for given in (file_values or {}, flag_values or {}):
        asked.update(validated(given, "the configuration"))
    in_file = asked.pop("recipe", None)
    name = in_file if recipe is None else recipe
    if name is None and started is None:
        name = DEFAULT_RECIPE
    base = flatten(started or RunConfig())
    defaults = Values() if name is None else recipe_values(name)
    if started is not None:  # The recipe's may have been shortened when the run was started.
        defaults.update({unit: base[unit] for unit in WARMUPS})
    return unflatten(merged(merged(base, defaults), asked)), frozenset(asked)


def check_combination(
    config: RunConfig, explicit: Collection[str] = ()
) -> tuple[RunConfig, list[str]]:
    """Checks options against each other, before the data are known.

    Args:
        config: the options.
        explicit: names given by flag or file, not by a recipe.

    Returns:
        The options, with a recipe's warm-up shortened if need be; and remarks to print, on that and
        on each explicit option without effect.

    Raises:
        ConfigError: for explicit options that contradict each other.
    """
    flat = flatten(config)
    remarks = []
    samples = flat["train_samples"]
    for name, none in WARMUPS.items():
        if samples > 1 and flat[name] and name not in explicit:
            flat[name] = none
            remarks.append(
                f"The recipe's KL warm-up is left out: the bound of --train-samples {samples} has "
                "no KL to weigh."
            )
    remarks += _shorten(flat, "warmup_epochs", flat["epochs"], explicit)
    if flat["conditional_prior"] and not flat["conditional"]:
        raise ConfigError(
            "Invalid value for '--conditional-prior': "
            "expected --conditional true with it; got true without."
        )
    if flat["freeze"] != "none" and flat["init"] == "none":
        raise ConfigError(
            "Invalid value for '--freeze': "
            f"expected a run by --init with it; got {flat['freeze']} without."
        )
    _check_objective(flat)
    remarks += _check_levels(flat, explicit)
    if "capacity_epochs" in explicit and flat["capacity_epochs"] and not flat["capacity"]:
        remarks.append("--capacity-epochs has no effect without --capacity.")
    remarks += _unfinished(flat)
    if "divergence" in explicit and flat["divergence"] != "none" and not _info_weight(flat):
        remarks.append(
            "--divergence has no effect with --alpha + --lambda = 1, its weight being 0."
        )
    defaults = flatten(RunConfig())
    for name, one in OPTIONS.items():
        other, values = one.only_with or (name, (flat[name],))
        works = flat[other] == "auto" or flat[other] in values  # The data decide on auto.
        if name in explicit and not works and flat[name] != defaults[name]:
            remarks.append(_no_effect(one, flat[other]))
    return unflatten(flat), remarks


def idle(config: RunConfig, flag: str, value: str) -> list[str]:
    """Remarks on options, not at their defaults, that a value chosen for an ``auto`` ignores."""
    flat, defaults = flatten(config), flatten(RunConfig())
    return [
        _no_effect(one, value)
        for name, one in OPTIONS.items()
        if one.only_with and one.only_with[0] == flag and value not in one.only_with[1]
        if flat[name] != defaults[name]
    ]


def _no_effect(option: Option, value: Any) -> str:
    other = option.only_with[0] if option.only_with else ""
    return f"{option.flag} has no effect with {OPTIONS[other].flag} {value}."


def check_warmup_steps(
    config: RunConfig, explicit: Collection[str], steps_per_epoch: int
) -> tuple[RunConfig, list[str]]:
    """Checks a warm-up in steps, once the data are known; see :func:`check_combination`."""
    flat = flatten(config)
    remarks = _shorten(flat, "warmup_steps", flat["epochs"] * steps_per_epoch, explicit)
    return unflatten(flat), remarks


def check_conditional(
    config: RunConfig, explicit: Collection[str], conditions: Sequence[str]
) -> tuple[RunConfig, list[str]]:
    """Makes a model of data with conditions, which nothing else uses, a conditional one.

    Args:
        config: the options.
        explicit: names given by flag or file.
        conditions: the names of the conditions of the data; none without any.

    Returns:
        The options, and a remark if they changed, or if labels that were asked for go unseen.

    Raises:
        ConfigError: if an explicit option says otherwise.
    """
    column = config.data.label_column
    if not conditions and not config.data.conditional and column not in ("auto", "none"):
        return config, [
            f"The model does not see the labels, {column}: --conditional true trains p(x | label)."
        ]
    if not conditions or config.data.conditional:
        return config, []
    names = ", ".join(conditions)
    if "conditional" in explicit:
        raise ConfigError(
            f"Invalid value for '--conditional': expected true with conditions ({names}), which "
            "nothing else would use; got false. Leave them out by --drop."
        )
    flat = Values({**flatten(config), "conditional": True})
    return unflatten(flat), [f"The model is conditional, since the data have conditions: {names}."]


def _shorten(flat: Values, name: str, training: int, explicit: Collection[str]) -> list[str]:
    """Shortens, in place, a recipe's warm-up that is longer than training; returns remarks."""
    length, unit = flat[name], name.removeprefix("warmup_")
    if length < training:
        return []
    if name in explicit:
        raise ConfigError(
            f"Invalid value for '{OPTIONS[name].flag}': expected fewer than the "
            f"{training} {unit} of training; got {length:g}."
        )
    flat[name] = type(length)(training // 2)
    return [
        f"The recipe's KL warm-up of {length:g} {unit} is shortened to {training // 2}: "
        f"training has {training}."
    ]


def _unfinished(flat: Mapping[str, Any]) -> list[str]:
    """Remarks on what rises for longer than training lasts."""
    rising = {"cycle_epochs": ("KL weight", 0.5)}
    if flat["capacity"]:
        rising["capacity_epochs"] = ("capacity", 1.0)
    return [
        f"The {what} does not reach its full size: {OPTIONS[name].flag} {flat[name]:g} lets it "
        f"rise for {part * flat[name]:g} epochs, and training has at most {flat['epochs']}."
        for name, (what, part) in rising.items()
        if part * flat[name] > flat["epochs"]
    ]


def _info_weight(flat: Mapping[str, Any]) -> float:
    return round(flat["alpha"] + flat["lambda"] - 1, 12)


def _check_objective(flat: Mapping[str, Any]) -> None:
    """Refuses weights that make no objective."""

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
        f"mmd or adversarial with --alpha + --lambda above 1 (its weight is {weight:g})",
    )
    info = flat["alpha"] != 0 or flat["lambda"] != 1
    require(not info or flat["beta"] == 1, "beta", "1 with --alpha and --lambda")
    require(not flat["capacity"] or not flat["free_bits"], "free_bits", "0 with --capacity")
    _check_total_correlation(flat, require)
    if samples > 1:
        neutral = {"beta": 1, "free_bits": 0, "alpha": 0, "lambda": 1, "divergence": "none"}
        neutral |= {"capacity": 0, "tc_weight": 1}
        for name, value in {**neutral, **dict.fromkeys(WARMUPS, 0)}.items():
            require(
                flat[name] == value,
                name,
                f"{value} with --train-samples {samples}, a bound without a KL to weigh",
            )


def _check_total_correlation(flat: Mapping[str, Any], require: Callable[..., None]) -> None:
    """Refuses what a weight of the total correlation has no meaning with."""
    if flat["tc_weight"] == 1:
        return
    because = f"with --tc-weight {flat['tc_weight']:g}"
    neutral: dict[str, Any] = {"beta": 1, "free_bits": 0, "capacity": 0, "alpha": 0, "lambda": 1}
    neutral |= {"divergence": "none", "gradient": "total"}
    for name, value in neutral.items():
        require(flat[name] == value, name, f"{value} {because}")
    known = ("normal", "full_normal")
    require(
        flat["posterior"] in known,
        "posterior",
        f"{' or '.join(known)} {because}, which needs q(z_d given x)",
    )
    require(len(flat["levels"]) < 2, "levels", f"none {because}, which needs q(z_d given x)")
    require(not flat["conditional_prior"], "conditional_prior", f"false {because}: p(z) is one")


def _check_levels(flat: Values, explicit: Collection[str]) -> list[str]:
    """Sets, in place, the size of z to that of its levels; refuses what these cannot be with.

    Returns remarks on what a recipe has and levels cannot have.
    """
    if not flat["levels"]:
        return []
    total, got = sum(flat["levels"]), text(flat["levels"])
    if "latent_dim" in explicit and flat["latent_dim"] != total:
        raise ConfigError(
            f"Invalid value for '--levels': expected sizes that sum to --latent-dim "
            f"{flat['latent_dim']}; got {got}."
        )
    flat["latent_dim"] = total
    if len(flat["levels"]) == 1 or flat["start"] == "random":
        return []
    if "start" in explicit:
        raise ConfigError(
            f"Invalid value for '--start': expected random with --levels {got}, since a factor "
            f"analysis or t has one level; got {flat['start']}."
        )
    left_out, flat["start"] = flat["start"], "random"
    return [
        f"The recipe's --start {left_out} is left out: a factor analysis or t has one level, and "
        f"--levels {got} has {len(flat['levels'])}. Training starts at random weights, and its "
        "figures are not compared with a classical density."
    ]


def differences(config: RunConfig, earlier: RunConfig) -> list[str]:
    """The flat names of options that keep ``config`` from resuming an ``earlier`` run.

    The number of epochs may grow, and the folder of downloads may change. All else must be equal,
    device and mode too: a resumed run repeats the uninterrupted one bit for bit.
    """
    now, then = flatten(config), flatten(earlier)
    shorter = ["epochs"] * (now["epochs"] < then["epochs"])
    return [n for n in now if now[n] != then[n] and n not in MAY_DIFFER] + shorter


def check_resume(config: RunConfig, earlier: RunConfig) -> None:
    """Refuses to resume an ``earlier`` run with other options.

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
