"""Levels of latents, schedules of the KL and a weight of the total correlation, by flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.evaluation.results import level_lines
from pyro_vaes.experiments.schedule import _batches
from pyro_vaes.parts.chains import ChainPosterior, ChainPrior
from pyro_vaes.runs.build import build, build_objective
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.recipes import recipe_values
from pyro_vaes.runs.registry import REGISTRY
from pyro_vaes.runs.resolve import check_combination, resolve
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import (
    OPTIONS,
    RunConfig,
    digest,
    flatten,
    from_values,
    read_config,
    to_yaml,
)
from pyro_vaes.runs.summary import moved, report_text
from pyro_vaes.storage.tensors import named_tensors

SMALL: dict[str, Any] = {"hidden_dims": "8", "epochs": 4, "augment": 0, "batch_size": 250}


def configured(**flags: Any) -> RunConfig:
    config, explicit = resolve(None, None, {**SMALL, **flags})
    return check_combination(config, explicit)[0]


def remarks_on(**flags: Any) -> list[str]:
    config, explicit = resolve(None, None, {**SMALL, **flags})
    return check_combination(config, explicit)[1]


# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", REGISTRY["prior"])
@pytest.mark.parametrize("posterior", ["normal", "full_normal", "planar"])
def test_any_prior_is_the_top_of_levels(prior: str, posterior: str) -> None:
    data = pv.load_data("digits")
    flags = {"prior": prior, "posterior": posterior, "prior_components": 4}
    config = configured(levels="2,3,4", **flags)
    assert config.network.latent_dim == 9
    vae, _ = build(config, data)
    assert isinstance(vae.prior, ChainPrior) and isinstance(vae.posterior, ChainPosterior)
    assert vae.prior.level_dims == vae.posterior.level_dims == (2, 3, 4)
    assert (vae.posterior.prior is vae.prior) == (posterior != "planar")
    single = build(configured(latent_dim=2, **flags), data)[0].prior
    assert type(vae.prior.top) is type(single)
    assert isinstance(vae.p_z(), Chain)
    loss = pv.ELBO().differentiable_loss(vae.model, vae.guide, data.train.x[:20])
    loss.backward()
    assert torch.isfinite(loss)
    assert vae.sample(3).shape == (3, 64)


@pytest.mark.parametrize("network", REGISTRY["network"])
def test_levels_go_with_every_network(network: str) -> None:
    data = pv.load_data("digits")
    vae, _ = build(configured(levels="2,3", network=network, channels="4,4"), data)
    assert torch.isfinite(pv.ELBO().differentiable_loss(vae.model, vae.guide, data.train.x[:9]))
    kind = type(vae.posterior.links[0].network).__name__  # type: ignore[union-attr,index]
    assert kind == {"gated": "GatedMLP", "skip": "SkipMLP", "residual": "ResMLP"}.get(
        network, "MLP"
    )


def test_levels_take_labels() -> None:
    data = pv.load_data("digits")
    vae, _ = build(configured(levels="2,3", conditional=True, conditional_prior=True), data)
    assert vae.prior_is_conditional
    y = torch.tensor([1, 2, 2])
    assert vae.sample(3, y).shape == (3, 64)
    assert torch.isfinite(
        pv.ELBO().loss(vae.model, vae.guide, data.train.x[:3], y) * torch.ones(())
    )


def test_a_run_with_levels_resumes_bit_for_bit(tmp_path: Path) -> None:
    data = pv.load_data("digits")
    flags = {"levels": "2,3", "prior": "vamp", "prior_components": 4, "warmup_epochs": 1}

    def run(out: Path, epochs: int) -> dict[str, torch.Tensor]:
        config = configured(**{**flags, "epochs": epochs})
        torch.manual_seed(0)
        vae, _ = build(config, data, out)
        train(vae, data, config, out=out, resume=True, progress=False)
        return named_tensors(vae)

    whole = run(tmp_path / "a", 4)
    run(tmp_path / "b", 2)
    parts = run(tmp_path / "b", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    loaded = pv.load(tmp_path / "b")
    found = pv.evaluate(loaded, data.test.x[:40], num_samples=20, diagnostics=True)
    assert found.level_kls is not None and len(found.level_kls) == 2
    first, second = level_lines(found.to_dict())
    assert first.startswith("KL of each level, top first: ")
    assert second.startswith("active units of each level: ")
    ended = {"epochs": 4, "train_seconds": 1.0, "stopped": "epochs", "mode": "eager"}
    summary = {**found.to_dict(), **ended, "device": "cpu", "best_epoch": 4}
    assert first in report_text(summary, tmp_path)
    distance = moved(loaded, data)  # Of the pseudo-inputs of the top.
    assert distance is not None and distance > 0
    assert not list(level_lines(pv.evaluate(built_single(data), data.test.x[:9]).to_dict()))


def built_single(data: Any) -> Any:
    return build(configured(latent_dim=2), data)[0]


@pytest.mark.parametrize("posterior", ["normal", "full_normal"])
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_the_top_is_refitted_with_the_other_parts_frozen(
    posterior: str, prior: str, tmp_path: Path
) -> None:
    """The links of the prior stay where the posterior shares them, and learn where it does not."""
    data, first = pv.load_data("digits"), tmp_path / "first"
    flags = {"levels": "2,3", "posterior": posterior, "warmup_epochs": 0, "epochs": 2}
    config = configured(**flags, prior="standard")
    train(build(config, data)[0], data, config, out=first, progress=False)
    flags |= {"init": str(first), "freeze": "posterior,likelihood", "prior_components": 4}
    config = configured(**flags, prior=prior)
    vae, _ = build(config, data)
    start = {name: value.clone() for name, value in named_tensors(vae).items()}
    train(vae, data, config, progress=False)
    moved = {name for name, value in named_tensors(vae).items() if not value.equal(start[name])}
    kinds = ("prior.top.", *(("prior.links.",) if posterior == "full_normal" else ()))
    assert moved and all(name.startswith(kinds) for name in moved)
    assert any(name.startswith("prior.top.") for name in moved)
    old, new = pv.load(first).state_dict(), vae.state_dict()
    kept = [name for name in old if name.startswith(("posterior.first", "posterior.l", "likeli"))]
    assert kept and all(torch.equal(old[name], new[name]) for name in kept)
    # A posterior whose links stand alone is another one.
    other = configured(**{**flags, "posterior": "iaf"}, prior=prior)
    with pytest.raises(ConfigError, match="a run with the posterior of these options"):
        build(other, data)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"levels": "4,0"}, "none or whole numbers of at least 1 such as 256,256; got '4,0'"),
        ({"levels": "4,8", "latent_dim": 16}, "sizes that sum to --latent-dim 16; got 4,8"),
        (
            {"levels": "4,8", "network": "skip", "start": "factors"},
            "'--start': expected random with --levels 4,8, since a factor analysis or t has one",
        ),
    ],
)
def test_levels_that_mean_nothing_are_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(**flags)


@pytest.mark.parametrize("recipe", ["table", "signal"])
def test_levels_say_that_they_leave_out_a_recipes_start(recipe: str) -> None:
    config, remarks = check_combination(*resolve(recipe, None, {"levels": "2,4"}))
    (said,) = remarks
    start = recipe_values(recipe)["start"]
    assert said.startswith(f"The recipe's --start {start} is left out: ") and "2,4 has 2" in said
    assert config.training.start == "random"
    assert not check_combination(*resolve(recipe, None, {"levels": "4"}))[1]
    assert not check_combination(*resolve(None, None, {"levels": "2,4"}, config))[1]


def test_sizes_that_do_not_sum_are_refused_before_anything_is_built() -> None:
    config = from_values({"levels": [4, 8], "latent_dim": 16})
    with pytest.raises(ConfigError, match="sizes that sum to --latent-dim 16; got 4,8"):
        build(config, pv.load_data("digits"))


def test_one_level_is_the_usual_model() -> None:
    data = pv.load_data("digits")
    torch.manual_seed(0)
    one = named_tensors(build(configured(levels="3"), data)[0])
    torch.manual_seed(0)
    usual = named_tensors(build(configured(latent_dim=3), data)[0])
    assert all(torch.equal(one[name], usual[name]) for name in usual) and one.keys() == usual.keys()


def test_a_flow_that_needs_two_units_is_refused_at_a_level_of_one() -> None:
    with pytest.raises(ConfigError, match="'--prior'"):
        build(configured(levels="1,3", prior="realnvp"), pv.load_data("digits"))


@pytest.mark.parametrize(
    "flags",
    [
        {"network": "residual", "hidden_dims": "8,1"},
        {"network": "residual", "hidden_dims": "8,2", "levels": "2,3"},
        {"network": "residual_conv", "channels": "1,1,1"},
    ],
)
def test_residual_networks_that_would_see_nothing_are_refused(flags: dict[str, Any]) -> None:
    """Over one number there is nothing to normalise: the encoder put out the same for all."""
    flag = "hidden-dims" if "hidden_dims" in flags else "channels"
    with pytest.raises(ConfigError, match=f"'--{flag}': Expected .* normalise"):
        build(configured(**flags), pv.load_data("digits"))


def test_no_levels_are_written_and_read_as_none(tmp_path: Path) -> None:
    for levels in ((), (4, 12)):
        config = configured(levels=levels or "none")
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert read_config(tmp_path) == config
        assert config.network.levels == levels
    assert digest(from_values({})) == digest(from_values({"levels": "none"}))
    assert flatten(RunConfig())["levels"] == []
    assert OPTIONS["levels"].read("none") == ()


# --- deep flow priors ---------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["realnvp", "spline"])
def test_flow_priors_are_normalised_on_request(prior: str) -> None:
    data = pv.load_data("digits")
    flags = {"prior": prior, "latent_dim": 4}
    for normalise in (False, True):
        vae, _ = build(configured(prior_normalise=normalise, **flags), data)
        names = [type(module).__name__ for module in vae.modules()]
        assert ("ActivationNorm" in names) == normalise
    said = remarks_on(prior="maf", prior_normalise=True)
    assert "--prior-normalise has no effect with --prior maf." in said


# --- objectives ---------------------------------------------------------------------------------


def test_flags_make_the_objectives() -> None:
    objective: Any = build_objective(configured(tc_weight=6, warmup_epochs=1))
    assert isinstance(objective, pv.BetaTCELBO)
    assert objective.weights.tolist() == [1.0, 6.0, 1.0]
    assert objective.kl_schedule is None
    objective = build_objective(configured(capacity=20, capacity_epochs=3, beta=5))
    assert objective.kl_weight == 5 and objective.kl_capacity == pv.CapacityRamp(20.0, 3.0)
    config = configured(cycle_epochs=2)
    assert config.objective.warmup_epochs == 0  # The recipe's warm-up is replaced.
    assert build_objective(config).kl_schedule == pv.CyclicalWeight(2.0)
    assert build_objective(configured(cycle_epochs=2, tc_weight=0)).kl_schedule is not None
    objective = build_objective(configured())
    assert type(objective) is pv.BetaELBO
    assert objective.kl_schedule is objective.kl_capacity is None
    assert remarks_on(capacity_epochs=3) == [
        *remarks_on(),
        "--capacity-epochs has no effect without --capacity.",
    ]


def test_what_rises_for_longer_than_training_lasts_is_said() -> None:
    (said,) = remarks_on(cycle_epochs=10, epochs=4)
    assert "KL weight does not reach its full size: --cycle-epochs 10 lets it rise for 5" in said
    (said,) = remarks_on(capacity=3, capacity_epochs=5, epochs=4, warmup_epochs=0)
    assert "capacity does not reach its full size: --capacity-epochs 5 lets it rise for 5" in said
    assert not remarks_on(cycle_epochs=8, epochs=4)
    assert not remarks_on(capacity=3, capacity_epochs=4, epochs=4, warmup_epochs=0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"tc_weight": 2, "levels": "2,3"}, "'--levels': expected none with --tc-weight 2"),
        ({"tc_weight": 2, "posterior": "iaf"}, "'--posterior': expected normal or full_normal"),
        ({"tc_weight": 2, "beta": 3}, "'--beta': expected 1 with --tc-weight 2; got 3"),
        ({"tc_weight": 2, "gradient": "path"}, "'--gradient': expected total with --tc-weight"),
        ({"tc_weight": 2, "free_bits": 1}, "'--free-bits': expected 0 with --tc-weight"),
        (
            {"tc_weight": 2, "conditional": True, "conditional_prior": True},
            "'--conditional-prior': expected false with --tc-weight 2",
        ),
        ({"tc_weight": 2, "train_samples": 5}, "'--tc-weight': expected 1 with --train-samples"),
        ({"capacity": 2, "train_samples": 5}, "'--capacity': expected 0 with --train-samples"),
        ({"capacity": 2, "free_bits": 1}, "'--free-bits': expected 0 with --capacity"),
        (
            {"cycle_epochs": 2, "train_samples": 5},
            "'--cycle-epochs': expected 0 with --train-samples 5",
        ),
        (
            {"cycle_epochs": 2, "warmup_steps": 5},
            "'--cycle-epochs': expected 0 with --warmup-steps 5; got 2",
        ),
        ({"tc_weight": -1}, "'tc_weight' in the configuration: expected a finite number"),
    ],
)
def test_objectives_that_mean_nothing_are_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(**flags)


@pytest.mark.parametrize(
    "flags", [{"tc_weight": 4}, {"capacity": 5, "capacity_epochs": 3}, {"cycle_epochs": 2}]
)
def test_runs_with_them_resume_bit_for_bit_and_do_not_join(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    data = pv.load_data("digits")
    plain = {"warmup_epochs": 0.0, "latent_dim": 2, "prior": "standard"}
    plain = {} if "cycle_epochs" in flags else plain

    def run(out: Path, epochs: int) -> dict[str, torch.Tensor]:
        config = configured(**{**plain, **flags, "epochs": epochs})
        assert not _batches(config) and _batches(configured(**plain))
        torch.manual_seed(0)
        vae, _ = build(config, data, out)
        train(vae, data, config, out=out, resume=True, progress=False)
        return named_tensors(vae)

    whole = run(tmp_path / "a", 4)
    run(tmp_path / "b", 3)
    parts = run(tmp_path / "b", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
