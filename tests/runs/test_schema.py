"""The options of a run: one tree, and the same laws for each option in it."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
from collections.abc import Mapping
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from pyro_vaes.cli import flags
from pyro_vaes.cli.flags import ConfigCommand, given
from pyro_vaes.runs import recipes, registry
from pyro_vaes.runs import resolve as resolution
from pyro_vaes.runs import schema as cfg
from pyro_vaes.runs.options import ConfigError, Option
from pyro_vaes.runs.recipes import RECIPES
from pyro_vaes.runs.resolve import resolve
from pyro_vaes.runs.run import busy
from pyro_vaes.runs.schema import OPTIONS, RunConfig, flatten, from_values

DEFAULTS = flatten(RunConfig())


def other(option: Option) -> Any:
    """A value that the option takes and that is not its default, where there is one."""
    if option.choices:
        return next((c for c in option.choices if c != option.default), option.default)
    if option.kind is bool:
        return not option.default
    if option.kind is str:
        return "my data/größe: 1e5 #2.npy"
    if option.kind is int:
        return option.default + 1
    return (7, 300, 5) if option.kind not in (int, float) else option.default / 3 + 1e-5


def follow(option: Option) -> set[str]:
    """The options that change with one: the KL weight rises in one way."""
    rises = option.name in ("warmup_steps", "cycle_epochs")
    return {option.name, "warmup_epochs"} if rises else {option.name}


def wrong(option: Option) -> list[Any]:
    """Plain values that the option refuses, as a YAML file could hold them."""
    values: list[Any] = [None, [[1]], {"a": 1}, ""]
    values += [[]] if option.default != () else []  # No levels.
    if option.kind is str:
        values += [3, True, "a\nb", *(["nosuch"] if option.choices else [])]
    elif option.kind is bool:
        values += [2, 1.0, "maybe"]
    elif option.kind in (int, float):
        values += [True, "ten", math.nan, math.inf, "nan", "-inf", [1], 10**5000]
        values += [-1] if option.least is not None or option.above is not None else []
        values += [0] if option.least == 1 or option.above == 0 else []
        values += [1] if option.below == 1 else []
        values += [1.5, 2.0, 2**31] if option.kind is int else []
    else:
        values += [0, 16.0, "256,", "256;256", [0], [True], [1.5], (256, -1), [2**40]]
    return values


def abs_below(value: Any, bound: int) -> bool:
    return isinstance(value, (str, float)) or abs(value) < bound


def train(arguments: list[str]) -> Mapping[str, Any]:
    """What a command with the flags was given, or click's exception."""
    seen: dict[str, Any] = {}

    def callback(**values: Any) -> None:
        assert values.keys() == OPTIONS.keys()
        seen.update(given(click.get_current_context()))

    command = ConfigCommand("train", callback=callback, params=flags.options())
    command.main(arguments, prog_name="pyro-vaes", standalone_mode=False)
    return seen


def refusal(arguments: list[str]) -> str:
    with pytest.raises(click.UsageError) as caught:
        train(arguments)
    return caught.value.format_message()


def one_line(message: str) -> bool:
    return message.isprintable() and len(message) < 400


every_option = pytest.mark.parametrize("option", OPTIONS.values(), ids=list(OPTIONS))


def text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


# --- laws of every option -----------------------------------------------------------------------


@every_option
def test_a_value_survives_flag_yaml_and_flat_form(option: Option) -> None:
    value = other(option)
    by_flag, explicit = resolve(None, None, train([option.flag, text(value)]))
    assert explicit == {option.name}
    assert getattr(getattr(by_flag, option.section), option.field) == value
    changed = follow(option) if value != option.default else set()
    flat = flatten(by_flag)
    assert {name for name in flat if flat[name] != DEFAULTS[name]} == changed

    written = cfg.to_yaml(by_flag)
    assert cfg.unflatten(resolution.from_yaml(written)) == cfg.unflatten(flat) == by_flag
    assert len(written.splitlines()) == len(OPTIONS)
    assert cfg.to_yaml(cfg.unflatten(dict(reversed(flat.items())))) == written
    by_file, _ = resolve(None, resolution.from_yaml(f"{option.name}: {flat[option.name]!r}"))
    assert by_file == by_flag
    assert (cfg.digest(by_flag) != cfg.digest(RunConfig())) == bool(changed)


@every_option
def test_a_wrong_flag_is_one_line_with_flag_value_and_what_was_expected(option: Option) -> None:
    plain = [v for v in wrong(option) if isinstance(v, (str, int, float)) and abs_below(v, 10**99)]
    refused = 0
    for value in map(str, plain):
        try:
            option.read(value)  # Some are refused for their type alone: as text they are fine.
        except ConfigError:
            message = refusal([option.flag, value])
            assert one_line(message)
            assert f"'{option.flag}'" in message
            assert option.expected in message
            assert repr(value) in message
            refused += 1
    assert refused >= 1
    assert option.flag in refusal([option.flag])


@every_option
def test_a_wrong_value_is_refused_wherever_it_comes_from(option: Option) -> None:
    for value in wrong(option):
        for put in (
            lambda v: cfg.unflatten(DEFAULTS | {option.name: v}),
            lambda v: resolve(None, {option.name: v}),
            lambda v: resolve(None, None, {option.name: v}),
            lambda v: dataclasses.replace(
                getattr(RunConfig(), option.section), **{option.field: v}
            ),
        ):
            with pytest.raises(ConfigError) as caught:
                put(value)
            assert one_line(str(caught.value))
            assert repr(option.name) in str(caught.value)
            assert option.expected in str(caught.value)


@every_option
def test_flags_stand_before_the_file_the_file_before_the_recipe(
    option: Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[Any, list[Any]] = {
        bool: [True, False, True],
        int: [11, 12, 13],
        float: [0.1, 0.2, 0.3],
        str: [*(option.choices or "abc")] * 3,
    }
    first, second, third = values.get(option.kind, [[1], [2], [3]])[:3]
    monkeypatch.setitem(RECIPES, "mine", recipes.Recipe("for this test", {option.name: first}))

    def got(**arguments: Any) -> Any:
        return flatten(resolve(**arguments)[0])[option.name]

    in_file, in_flag = {option.name: second}, {option.name: third}
    assert got() == DEFAULTS[option.name]
    assert got(recipe="mine") == got(file_values=resolution.from_yaml("recipe: mine")) == first
    assert got(recipe="mine", file_values=in_file) == second
    assert got(recipe="mine", file_values=in_file, flag_values=in_flag) == third
    assert got(recipe="mine", flag_values=in_flag) == third
    assert got(recipe="mine", file_values=resolution.from_yaml("recipe: course")) == first
    assert resolve("mine")[1] == frozenset()
    assert resolve("mine", in_file)[1] == resolve("mine", None, in_flag)[1] == {option.name}


@every_option
def test_a_resumed_run_may_not_change_an_option(option: Option) -> None:
    asked, explicit = resolve(flag_values={option.name: other(option)}, started=RunConfig())
    assert explicit == {option.name}
    if other(option) == option.default or option.name in ("epochs", "data_root"):
        resolution.check_resume(asked, RunConfig())
        return
    assert set(resolution.differences(asked, RunConfig())) == follow(option)
    with pytest.raises(ConfigError) as caught:
        resolution.check_resume(asked, RunConfig())
    named = OPTIONS[resolution.differences(asked, RunConfig())[0]]
    got = getattr(getattr(asked, named.section), named.field)
    for part in (f"'{named.flag}'", text(named.default), text(got)):
        assert part in str(caught.value)


# --- the tree -----------------------------------------------------------------------------------


def test_names_are_unique_and_defaults_are_values() -> None:
    sections = vars(RunConfig()).values()
    assert sum(len(dataclasses.fields(section)) for section in sections) == len(OPTIONS)
    for option in OPTIONS.values():
        assert option.read(option.default) == option.default
        assert option.only_with is None or option.only_with[0] in OPTIONS


def test_choices_are_those_of_the_modules_that_honour_them() -> None:
    from pyro_vaes import flows
    from pyro_vaes.inference import svi as inference
    from pyro_vaes.networks import mlp as networks
    from pyro_vaes.training import loop as training
    from pyro_vaes.training import options as fit_options

    assert set(cfg.ACTIVATIONS) == networks.ACTIVATIONS.keys()
    assert set(cfg.OPTIMIZERS) == training.OPTIMIZERS.keys()
    assert set(cfg.SCHEDULES) == training.SCHEDULES.keys()
    assert cfg.MODES == inference.MODES
    assert cfg.PRECISIONS == fit_options.PRECISIONS
    for flag in ("prior", "posterior"):
        for name in registry.values_with(flag, f"{flag}_flows"):
            assert callable(getattr(flows, name))


def test_a_row_names_options_and_a_builder_that_are_there() -> None:
    for flag, rows in registry.REGISTRY.items():
        for value, row in rows.items():
            assert set(row.options) <= OPTIONS.keys()
            for option in row.options:
                assert OPTIONS[option].only_with == (flag, registry.values_with(flag, option))
            if flag != "objective":
                assert all(map(callable, registry.builder_of(flag, value)))


def test_sections_are_frozen_hashable_and_normalise_what_they_take() -> None:
    network = cfg.NetworkConfig(hidden_dims=[32, 16])  # type: ignore[arg-type]
    assert network.hidden_dims == (32, 16)
    assert hash(RunConfig()) == hash(RunConfig())
    assert pickle.loads(pickle.dumps(RunConfig())) == RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().training.epochs = 3  # type: ignore[misc]


def test_unflatten_takes_every_option_and_no_other() -> None:
    with pytest.raises(ConfigError, match=r"every option in x.yaml; got none called 'beta'"):
        cfg.unflatten({k: v for k, v in DEFAULTS.items() if k != "beta"}, "x.yaml")
    with pytest.raises(ConfigError, match="got 'betta'"):
        cfg.unflatten({**DEFAULTS, "betta": 1})
    assert cfg.from_values({"recipe": "course", "beta": 2}).objective.beta == 2
    with pytest.raises(ConfigError, match="got 'betta'"):
        cfg.from_values({"betta": 1})


# --- YAML ---------------------------------------------------------------------------------------


def test_yaml_numbers_words_and_lists_are_read_as_meant() -> None:
    values = resolution.from_yaml(
        "learning_rate: 1e-3\nhidden_dims: 64,32\nconditional: yes\nbeta: 2\n"
    )
    assert values["learning_rate"] == 1e-3
    assert values["hidden_dims"] == (64, 32)
    assert values["conditional"] is True
    assert type(values["beta"]) is float
    assert resolution.from_yaml("") == resolution.from_yaml("# nothing") == {}


def test_a_recipe_may_stand_in_the_file() -> None:
    values = resolution.from_yaml("recipe: course\nepochs: 7\n")
    assert resolve(None, values) == resolve("course", None, {"epochs": 7})
    with pytest.raises(ConfigError, match=r"'recipe' in run.yaml: expected one of default"):
        resolution.from_yaml("recipe: [course]", "run.yaml")
    with pytest.raises(ConfigError, match=r"'--recipe': expected one of default.*; got 'nosuch'"):
        resolve("nosuch")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("epochs: 0", "'epochs' in run.yaml"),
        ("epochs: 3.0", "3.0"),
        ("epochs:", "None"),
        ("epoch: 3", "'epoch'"),
        ("1: 2", "got 1"),
        ("null: 2", "None"),
        ("prior-components: 3", "'prior-components'"),
        ("training: {epochs: 3}", "'training'"),
        ("epochs: 3\nbeta: 1\nepochs: 4", "'epochs' a second time in line 3"),
        ("- epochs", "option: value"),
        ("epochs", "option: value"),
        ("epochs: [1", "line 1"),
        ("{a: b}: 3", "unhashable"),
        ("[epochs]: 3", "unhashable"),
        ("epochs: 2001-99-99", "run.yaml"),
        ("a\x00b", "run.yaml"),
        ("epochs: 0x" + "f" * 5000, "a whole number"),
        ("epochs: " + "9" * 5000, "run.yaml"),
        ("[" * 3000, "run.yaml"),
        ("epochs: &a [*a]", "'epochs'"),
        ("epochs: 3\n--- \nepochs: 4", "run.yaml"),
        ("epochs: !!python/object/apply:os.system ['false']", "python/object"),
        (f"data: {'x' * 2000}\x07", "run.yaml"),
        ('data: "a\\0b"', "'data'"),
    ],
)
def test_a_bad_file_is_one_line(source: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolution.from_yaml(source, "run.yaml")
    assert one_line(str(caught.value))
    assert named in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_aliases_that_grow_without_end_are_refused_at_once() -> None:
    levels = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    with pytest.raises(ConfigError, match="'hidden_dims'") as caught:
        resolution.from_yaml(f"hidden_dims: [&a0 [1], {', '.join(levels)}]")
    assert one_line(str(caught.value))


# --- recipes, precedence, warm-up ---------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves_without_remark(name: str) -> None:
    config, explicit = resolve(name)
    assert resolution.check_combination(config, explicit) == (config, [])
    assert one_line(RECIPES[name].description)


@pytest.mark.parametrize("name", [None, *RECIPES])
def test_defaults_and_recipes_are_written_as_their_options_read_them(name: str | None) -> None:
    """Neither is read again when a run starts."""
    defaults = {option.name: option.default for option in OPTIONS.values()}
    for option, value in (defaults if name is None else RECIPES[name].values).items():
        read = OPTIONS[option].read(value)
        assert (type(read), read) == (type(value), value)


def test_the_course_recipe_is_what_the_notebook_does() -> None:
    config, _ = resolve("course")
    assert (config.network.hidden_dims, config.network.latent_dim) == ((256, 256), 16)
    assert config.network.activation == "leaky_relu"
    assert (config.parts.prior, config.parts.posterior) == ("standard", "normal")
    training = config.training
    assert (training.optimizer, training.learning_rate) == ("adamax", 1e-3)
    assert (training.batch_size, training.patience, training.epochs) == (64, 20, 1000)


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(RECIPES, "warm", recipes.Recipe("warms up", {"warmup_epochs": 30}))
    return "warm"


def test_a_recipes_warmup_is_shortened_and_said_so(warm: str) -> None:
    config, explicit = resolve(warm, None, {"epochs": 20})
    config, remarks = resolution.check_combination(config, explicit)
    assert config.objective.warmup_epochs == 10
    assert len(remarks) == 1
    assert "30" in remarks[0]
    assert "10" in remarks[0]
    assert resolution.check_combination(config, explicit) == (config, [])
    config, _ = resolution.check_combination(*resolve(warm, None, {"epochs": 1}))
    assert config.objective.warmup_epochs == 0


@pytest.mark.parametrize("source", ["file_values", "flag_values"])
def test_a_warmup_asked_for_must_be_shorter_than_training(warm: str, source: str) -> None:
    arguments: dict[str, Any] = {source: {"warmup_epochs": 20, "epochs": 20}}
    with pytest.raises(ConfigError, match="'--warmup-epochs': expected fewer than the 20 epochs"):
        resolution.check_combination(*resolve(warm, **arguments))
    steps: dict[str, Any] = {source: {"warmup_steps": 320, "epochs": 20}}
    config, explicit = resolve(warm, **steps)
    assert config.objective.warmup_epochs == 0
    assert resolution.check_combination(config, explicit) == (config, [])
    assert resolution.check_warmup_steps(config, explicit, 17) == (config, [])
    with pytest.raises(ConfigError, match="'--warmup-steps': expected fewer than the 320 steps"):
        resolution.check_warmup_steps(config, explicit, 16)
    with pytest.raises(ConfigError, match="'--warmup-steps': expected 0 with --warmup-epochs 2"):
        resolve(None, None, {"warmup_steps": 3, "warmup_epochs": 2})


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        ({"network": "gated", "activation": "relu"}, "--activation has no effect with --network"),
        ({"network": "conv", "activation": "relu"}, None),
        ({"network": "conv", "blocks": 2}, "--blocks has no effect with --network"),
        ({"network": "residual_conv", "blocks": 2}, None),
        ({"prior": "gtm", "prior_weights": "uniform"}, None),
        (
            {"prior": "maf", "prior_weights": "uniform"},
            "--prior-weights has no effect with --prior",
        ),
    ],
)
def test_the_row_of_a_value_decides_which_options_have_an_effect(
    values: dict[str, Any], remark: str | None
) -> None:
    remarks = resolution.check_combination(*resolve(None, None, values))[1]
    assert len(remarks) == (remark is not None)
    assert all(line.startswith(str(remark)) for line in remarks)


def test_an_option_without_effect_is_said() -> None:
    remarks = resolution.check_combination(
        *resolve(None, None, {"prior_flows": 8, "prior": "vamp"})
    )[1]
    assert remarks == ["--prior-flows has no effect with --prior vamp."]
    assert (
        resolution.check_combination(*resolve(None, None, {"prior_flows": 8, "prior": "maf"}))[1]
        == []
    )
    assert resolution.check_combination(*resolve(None, None, {"prior_flows": 4}))[1] == []
    # A run's own file, which holds every option, is no reason for remarks.
    assert (
        resolution.check_combination(
            *resolve(None, resolution.from_yaml(cfg.to_yaml(RunConfig())))
        )[1]
        == []
    )


def test_a_conditional_prior_needs_a_conditional_model() -> None:
    with pytest.raises(ConfigError, match="'--conditional-prior'"):
        resolution.check_combination(*resolve(None, None, {"conditional_prior": True}))
    resolution.check_combination(
        *resolve(None, None, {"conditional_prior": True, "conditional": True})
    )


def test_resuming_needs_nothing_said_twice(warm: str) -> None:
    started, _ = resolution.check_combination(*resolve(warm, None, {"epochs": 20, "latent_dim": 3}))
    assert resolve(started=started) == (started, frozenset())
    for given_flags in (
        {},
        {"epochs": 20},
        {"epochs": 90, "latent_dim": 3},
        {"data_root": "there"},
    ):
        for recipe in (None, warm):
            config, explicit = resolve(recipe, None, given_flags, started)
            config, _ = resolution.check_combination(config, explicit)
            resolution.check_resume(config, started)
            assert config.network.latent_dim == 3
    with pytest.raises(ConfigError, match=r"'--epochs': expected at least 20, .*; got 19"):
        resolution.check_resume(resolve(None, None, {"epochs": 19}, started)[0], started)


# --- click --------------------------------------------------------------------------------------


def test_only_what_stands_on_the_command_line_is_given() -> None:
    assert train([]) == {}
    flags = ["--epochs", "1000", "--conditional", "False", "--hidden-dims=9,8", "--beta", "1e-2"]
    expected = {"conditional": False, "hidden_dims": (9, 8), "beta": 0.01, "epochs": 1000}
    assert train(flags) == expected
    assert resolve(None, None, train(flags))[1] == expected.keys()
    assert "'-1'" in refusal(["--beta", "-1"])
    assert "--nosuch" in refusal(["--nosuch", "3"])


def test_a_default_map_is_read_like_flags_and_not_explicit() -> None:
    command = ConfigCommand("train", params=flags.options())
    context = command.make_context("train", ["--seed", "3"], default_map={"hidden_dims": [5]})
    assert context.params == {**dict(vars_of(RunConfig())), "hidden_dims": (5,), "seed": 3}
    assert given(context) == {"seed": 3}


def vars_of(config: RunConfig) -> dict[str, Any]:
    return {n: tuple(v) if isinstance(v, list) else v for n, v in flatten(config).items()}


def test_help_shows_every_flag_with_its_default_by_section() -> None:
    command = ConfigCommand("train", params=[*flags.options(), click.Option(["--out"])])
    result = CliRunner().invoke(command, ["--help"], terminal_width=200)
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    headings = ["Options:", "Data:", "Parts:", "Network:", "Objective:", "Training:"]
    positions = [result.output.index(f"\n{heading}\n") for heading in headings]
    assert positions == sorted(positions)
    for option in OPTIONS.values():
        flag = ", ".join(filter(None, (option.flag, option.repeat)))
        assert f"{flag} {option.metavar} {option.help}" in words
        assert f"[default: {text(option.default)}]" in words


def test_a_recipes_warmup_is_left_out_of_a_many_sample_bound(warm: str) -> None:
    config, explicit = resolve(warm, None, {"train_samples": 5})
    config, remarks = resolution.check_combination(config, explicit)
    assert config.objective.warmup_epochs == 0
    assert any("left out" in remark for remark in remarks)
    config, explicit = resolve(warm, None, {"train_samples": 5, "warmup_epochs": 3})
    with pytest.raises(ConfigError, match="'--warmup-epochs': expected 0"):
        resolution.check_combination(config, explicit)


def test_a_digest_is_of_the_options_that_are_not_at_their_defaults(monkeypatch):
    config = cfg.from_values({"latent_dim": 3})
    before, least = cfg.digest(config), cfg.digest(RunConfig())
    assert len({before, least, cfg.digest(cfg.from_values({"latent_dim": 4}))}) == 3
    assert cfg.digest(config, ("latent_dim",)) == least
    # A later version has one option more.
    monkeypatch.setattr(cfg, "flatten", lambda config: {**flatten(config), "later": "none"})
    assert cfg.digest(config) == before


def test_a_busy_machine_is_said_where_more_threads_would_train_than_cores_are_free(monkeypatch):
    def loaded(load: float, cores: int) -> None:
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    images, digits = (784,), (64,)
    loaded(1.6, 4)
    (remark,) = busy(from_values({}), images)
    assert "load 1.6 on 4 cores" in remark and "--threads 2 " in remark
    assert busy(from_values({}), digits) == busy(from_values({"threads": 4}), images) == []
    loaded(9.0, 4)
    assert "--threads 1 " in busy(from_values({}), images)[0]
    for load, cores in ((0.3, 4), (1.6, 64)):
        loaded(load, cores)
        assert busy(from_values({}), images) == []
