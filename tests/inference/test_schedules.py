"""Schedules of the KL weight and its capacity, and the weights of three parts of the KL."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from registry import data, make_vae
from torch import Tensor

import pyro_vaes as pv
from pyro_vaes.exact import LinearGaussian
from pyro_vaes.inference.elbo import bound_terms
from pyro_vaes.inference.info import aggregated
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.training.validation import validate

pytestmark = pytest.mark.usefixtures("float64")


def traces(vae: Any, x: Tensor, seed: int = 3) -> tuple[Any, Any]:
    pyro.set_rng_seed(seed)
    pair: tuple[Any, Any] = pv.ELBO()._get_trace(vae.model, vae.guide, (x,), {})
    return pair


def loss_of(objective: Any, vae: Any, x: Tensor, seed: int = 3) -> Tensor:
    pyro.set_rng_seed(seed)
    found: Tensor = objective.tensor_loss(vae.model, vae.guide, x)
    return found


# --- schedules ----------------------------------------------------------------------------------


def test_a_cycle_rises_stays_and_begins_anew() -> None:
    schedule = pv.CyclicalWeight(epochs=8, rise=0.25)
    assert [schedule(e) for e in (0, 1, 2, 7.99, 8, 9)] == [0, 0.5, 1, 1, 0, 0.5]
    ramp = pv.CapacityRamp(20.0, epochs=40)
    assert [ramp(e) for e in (0, 10, 40, 100, math.inf)] == [0, 5, 20, 20, 20]
    assert pv.CapacityRamp(3.0, epochs=0)(0) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pv.CyclicalWeight(0), "epochs of a cycle above 0; got 0"),
        (lambda: pv.CyclicalWeight(4, 1.5), "rise above 0 and at most 1; got 1.5"),
        (lambda: pv.CapacityRamp(-1.0, 3), "end of at least 0; got -1"),
        (lambda: pv.ELBO(capacity=lambda epoch: -epoch), "finite at each epoch; got -inf at inf"),
        (lambda: pv.ELBO(schedule=lambda epoch: math.nan), "got nan at 0"),
        (lambda: pv.ELBO(capacity=2.0, free_bits=1.0), "free bits or a capacity; got both"),
        (lambda: pv.BetaTCELBO(capacity=2.0), "Expected neither free bits, a capacity"),
        (lambda: pv.BetaTCELBO(gradient="path"), "Expected neither free bits, a capacity"),
        (lambda: pv.BetaTCELBO(-1.0), "beta of at least 0; got -1"),
        (lambda: pv.BetaTCELBO(num_data=0), "num_data"),
    ],
)
def test_invalid_ones_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("capacity", [0.0, 1.0, 50.0])
def test_the_loss_is_the_distance_of_the_kl_from_its_capacity(capacity: float) -> None:
    vae, x = make_vae(), data("categorical", 7, 4)
    terms = bound_terms(*traces(vae, x))
    objective = pv.BetaELBO(3.0, capacity=capacity)
    expected = 3.0 * (terms.kl - 7 * capacity).abs() - terms.log_likelihood
    assert loss_of(objective, vae, x).item() == pytest.approx(expected.item(), abs=1e-10)
    grads = torch.autograd.grad(loss_of(objective, vae, x), list(vae.parameters()))
    others = torch.autograd.grad(expected, list(vae.parameters()))
    for a, b in zip(grads, others, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_validation_has_the_full_weight_and_the_last_capacity() -> None:
    vae, x = make_vae(), pv.Split(data("categorical", 20, 4))
    ramped = pv.ELBO(capacity=pv.CapacityRamp(5.0, 10), schedule=pv.CyclicalWeight(4))
    ramped.set_epoch(1.0)
    assert (ramped.kl_goal.item(), ramped.warmup.item()) == (0.5, 0.5)
    found = validate(vae, ramped, x, seed=1)
    assert found == validate(vae, pv.ELBO(capacity=5.0), x, seed=1)
    assert (ramped.kl_goal.item(), ramped.warmup.item()) == (0.5, 0.5)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_training_follows_the_schedules_step_by_step(mode: Any) -> None:
    x, seen = data("categorical", 12, 4), []
    objective = pv.ELBO(capacity=pv.CapacityRamp(6.0, 3), schedule=lambda e: min(1.0, e / 2))

    def note(record: Any, vae: Any) -> None:
        seen.append((objective.warmup.item(), objective.kl_goal.item()))

    options: dict[str, Any] = {"epochs": 3, "batch_size": 4, "mode": mode, "on_step": note}
    history = pv.fit(make_vae(), x, objective=objective, **options)
    expected = [(min(1.0, step / 6), 2.0 * step / 3) for step in range(9)]
    assert torch.allclose(torch.tensor(seen), torch.tensor(expected))
    assert history.records[-1]["kl_weight"] == 1.0
    assert history.records[-1]["capacity"] == pytest.approx(16 / 3)


def test_a_recorded_step_is_an_eager_one_under_a_schedule() -> None:
    x, weights = data("categorical", 12, 4), []
    for mode in ("eager", "traced"):
        torch.manual_seed(0)
        vae = make_vae()
        objective = pv.ELBO(capacity=pv.CapacityRamp(6.0, 3), schedule=pv.CyclicalWeight(2))
        pv.fit(vae, x, epochs=3, batch_size=4, objective=objective, mode=mode)  # type: ignore[arg-type]
        weights.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert torch.allclose(*weights, atol=1e-8)


def test_a_run_resumes_under_its_own_schedule_only(tmp_path: Any) -> None:
    x = data("categorical", 12, 4)

    def run(epochs: int, out: Any, schedule: Any, resume: bool = False) -> Any:
        torch.manual_seed(0)
        vae = make_vae()
        objective = pv.ELBO(schedule=schedule, capacity=pv.CapacityRamp(2.0, 4))
        options: dict[str, Any] = {"epochs": epochs, "batch_size": 5, "resume": resume}
        pv.fit(vae, x, objective=objective, out=out, **options)
        return named_tensors(vae)

    whole = run(4, tmp_path / "a", lambda e: e % 2 / 2)
    run(2, tmp_path / "b", lambda e: e % 2 / 2)
    resumed = run(4, tmp_path / "b", lambda e: e % 2 / 2, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(RunFolderError, match="Expected the objective"):
        run(5, tmp_path / "b", lambda e: e % 3 / 3, resume=True)


def test_schedules_are_refused_where_they_would_be_ignored() -> None:
    x = data("categorical", 12, 4)
    with pytest.raises(ValueError, match="a KL warm-up or an objective with a schedule"):
        pv.fit(make_vae(), x, objective=pv.ELBO(schedule=pv.CyclicalWeight(2)), warmup_epochs=1)
    for objective in (
        pv.ELBO(schedule=pv.CyclicalWeight(2)),
        pv.ELBO(capacity=1.0),
        pv.BetaTCELBO(),
    ):
        with pytest.raises(ValueError, match="Use fit"):
            pv.fit_many([make_vae(), make_vae()], x, objectives=[objective] * 2)


# --- three parts of the KL ----------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["normal", "vamp", "realnvp"])
@pytest.mark.parametrize("posterior", ["normal", "full_normal"])
def test_with_all_weights_one_it_is_the_elbo(prior: str, posterior: str) -> None:
    vae, x = make_vae(prior, posterior), data("categorical", 7, 4)
    objective = pv.BetaTCELBO(1.0, num_data=30)
    pair = traces(vae, x)
    parts = objective.kl_parts(*pair)
    assert sum(parts).item() == pytest.approx(bound_terms(*pair).kl.item(), abs=1e-8)
    expected = loss_of(pv.ELBO(), vae, x)
    assert loss_of(objective, vae, x).item() == pytest.approx(expected.item(), abs=1e-8)
    grads = torch.autograd.grad(loss_of(objective, vae, x), list(vae.parameters()))
    for a, b in zip(grads, torch.autograd.grad(expected, list(vae.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


def test_each_weight_multiplies_its_part_and_the_warmup_all() -> None:
    vae, x = make_vae(), data("categorical", 7, 4)
    pair = traces(vae, x)
    objective = pv.BetaTCELBO(6.0, alpha=0.5, gamma=2.0, num_data=30, schedule=lambda e: 0.25)
    objective.set_epoch(0.0)
    information, correlation, dimensions = objective.kl_parts(*pair)
    expected = 0.25 * (0.5 * information + 6.0 * correlation + 2.0 * dimensions)
    expected = expected - bound_terms(*pair).log_likelihood
    assert objective.trace_loss(*pair).item() == pytest.approx(expected.item(), abs=1e-9)


def test_particles_are_samples_of_q_by_themselves() -> None:
    vae, x = make_vae("normal", "full_normal"), data("categorical", 7, 4)
    objective = pv.BetaTCELBO(
        5.0, num_data=30, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    )
    pyro.set_rng_seed(1)
    pair = next(iter(objective._get_traces(vae.model, vae.guide, (x,), {})))
    found = objective.kl_parts(*pair)
    q, z = pair[1].nodes["z"]["fn"], pair[1].nodes["z"]["value"]
    joint = sum(aggregated(vae.q_z(x), one, 30)[0].sum() for one in z)
    expected = pair[1].nodes["z"]["unscaled_log_prob"].sum() - joint
    assert q.batch_shape == (3, 7)
    assert found.information.item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.parametrize("posterior", ["normal", "full_normal"])
def test_the_estimate_of_q_of_z_has_no_bias(posterior: str) -> None:
    """Averaged over all batches that hold a datum, it is q(z), for the joint one and each z_d."""
    vae, x = make_vae("normal", posterior), data("categorical", 6, 4)
    q, z = vae.q_z(x), vae.q_z(x).sample()
    whole, each = aggregated(q, z, 6)
    normal = (
        q
        if posterior == "normal"
        else torch.distributions.MultivariateNormal(
            q.loc.unsqueeze(0), scale_tril=q.scale_tril.unsqueeze(0)
        )
    )
    exact = normal.log_prob(z.unsqueeze(1)).logsumexp(-1) - math.log(6)
    assert torch.allclose(whole, exact, atol=1e-9)
    others = [
        aggregated(vae.q_z(x[[0, i, j]]), z[[0, i, j]], 6)[0][0].exp()
        for i in range(1, 6)
        for j in range(1, 6)
        if i < j
    ]
    assert torch.stack(others).mean().item() == pytest.approx(whole[0].exp().item(), rel=1e-9)
    loc, scale = q.mean, q.stddev
    marginal = torch.distributions.Normal(loc, scale).log_prob(z.unsqueeze(1)).logsumexp(1)
    assert torch.allclose(each, (marginal - math.log(6)).sum(-1), atol=1e-9)


def test_the_parts_agree_with_a_linear_gaussian_model_whose_q_of_z_is_known() -> None:
    """With the exact posterior of many data, q(z) is p(z): no total correlation is left."""
    torch.manual_seed(0)
    model = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0)
    x = model.vae.sample(600)
    pair = traces(model.vae, x)
    parts = [part.item() / 600 for part in pv.BetaTCELBO(num_data=600).kl_parts(*pair)]
    assert parts[1] == pytest.approx(0.0, abs=0.05)
    assert parts[2] == pytest.approx(0.0, abs=0.05)
    assert parts[0] == pytest.approx(bound_terms(*pair).kl.item() / 600, abs=0.05)


@pytest.mark.parametrize("posterior", ["iaf", "planar", "chain"])
def test_posteriors_without_known_marginals_are_refused(posterior: str) -> None:
    vae, x = make_vae("normal", posterior), data("categorical", 7, 4)
    with pytest.raises(ValueError, match=r"Expected q\(z \| x\) to be a normal for beta-TC"):
        loss_of(pv.BetaTCELBO(num_data=9), vae, x)


def test_it_needs_the_number_of_data_which_fit_knows(tmp_path: Any) -> None:
    vae, x = make_vae(), data("categorical", 7, 4)
    with pytest.raises(ValueError, match="Expected num_data"):
        loss_of(pv.BetaTCELBO(), vae, x)
    with pytest.raises(ValueError, match="Expected num_data"):
        loss_of(pv.BetaTCELBO(num_data=6), vae, x)
    with pytest.raises(ValueError, match="at least 2 data in a batch for BetaTCELBO; got 1"):
        pv.fit(vae, x, objective=pv.BetaTCELBO(), batch_size=6)
    objective = pv.BetaTCELBO(4.0)
    options: dict[str, Any] = {"batch_size": 4, "out": tmp_path, "resume": True}
    rows = data("categorical", 8, 4)
    pv.fit(vae, rows, x, objective=objective, epochs=2, **options)
    pv.fit(make_vae(), data("categorical", 14, 4), x, objective=objective, epochs=2, batch_size=7)
    assert objective.num_data is None
    other = pv.BetaTCELBO(5.0)
    with pytest.raises(RunFolderError, match="Expected the objective"):
        pv.fit(vae, rows, x, objective=other, epochs=3, **options)
