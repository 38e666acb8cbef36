"""Pseudo-inputs learn in units of the data: they move as weights do, and files know the units."""

from __future__ import annotations

import copy

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.gtm import GTMPseudoInputs
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import fill, named_tensors


def levels(num_levels, u, likelihood=True):
    torch.manual_seed(0)
    q = pv.NormalPosterior(MLP(4, [8]), 2, x_range=None if likelihood else (0, num_levels - 1))
    p = pv.VampPrior(q, u)
    if likelihood:
        return pv.VAE(
            p, q, pv.CategoricalLikelihood(MLP(2, [8]), event_shape=(4,), num_levels=num_levels)
        )
    return pv.VAE(p, q, pv.NormalLikelihood(MLP(2, [8]), (4,)))


def start(num_levels):
    return torch.linspace(0, 1, 12).reshape(3, 4).mul(num_levels - 1).round()


@pytest.mark.parametrize("num_levels", [2, 17, 257, 65537])
def test_levels_move_by_the_step_of_weights_in_units_of_their_range(num_levels):
    u = start(num_levels)
    vae = levels(num_levels, u)
    assert torch.equal(vae.prior.pseudo_inputs, u)
    before = vae.prior.inputs.detach().clone()
    assert before.abs().max() <= 1
    optimizer = torch.optim.Adam([vae.prior.inputs], lr=0.01)
    vae.prior().log_prob(torch.randn(30, 2)).sum().backward()
    optimizer.step()
    moved = (vae.prior.pseudo_inputs - u).abs() / ((num_levels - 1) / 2)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-2, atol=1e-5)


def test_training_is_the_same_at_any_number_of_levels_apart():
    """Data of levels 0..16 and the same data 16 times as far apart: one range, one path."""
    x = torch.randint(0, 17, (40, 4)).float()
    found = []
    for factor in (1, 16):
        torch.manual_seed(1)
        q = pv.NormalPosterior(MLP(4, [8]), 2)
        p = pv.VampPrior(q, factor * x[:3])
        likelihood = pv.BernoulliLikelihood(MLP(2, [8]), (4,))
        likelihood.x_range = (0.0, 16.0 * factor)
        vae = pv.VAE(p, q, likelihood)
        optimizer = torch.optim.Adam(vae.prior.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (-vae.p_z().log_prob(vae.q_z(factor * x).mean).mean()).backward()
            optimizer.step()
        found.append(vae.prior.pseudo_inputs.detach() / factor)
    assert torch.equal(*found)


def test_where_the_likelihood_knows_no_range_the_posterior_does():
    class Own(torch.nn.Module):
        def forward(self, z):
            return pv.NormalLikelihood(MLP(2, [8]), (4,))(z)

    q = pv.NormalPosterior(MLP(4, [8]), 2, x_range=(0, 64))
    prior = pv.VampPrior(q, start(65))
    pv.VAE(prior, q, Own())
    assert (prior.center, prior.spread) == (32, 32)
    assert torch.equal(prior.pseudo_inputs, start(65))


def test_a_second_vae_leaves_them_where_they_are():
    vae = levels(17, start(17))
    with torch.no_grad():
        vae.prior.inputs += 0.1 * torch.randn(3, 4)
    before = vae.prior.inputs.detach().clone()
    richer = pv.FlowPosterior(vae.posterior, pv.flows.iaf(2, 1))
    pv.VAE(vae.prior, richer, vae.likelihood)
    assert torch.equal(vae.prior.inputs, before)


def test_how_far_they_moved():
    x = torch.tensor([[0.0, 0, 0, 3], [2, 4, 8, 3]])  # Standard deviations 1, 2, 4 and none.
    vae = levels(17, start(17))
    assert torch.equal(vae.prior.moved(x), torch.zeros(3))
    with torch.no_grad():
        vae.prior.inputs[1] += torch.tensor([1.0, -2, 4, 9]) / 8
    torch.testing.assert_close(vae.prior.moved(x), torch.tensor([0.0, 1, 0]))
    grid = pv.VampPrior(vae.posterior, GTMPseudoInputs(MLP(2, [8]), (4,), 2))
    assert grid.moved(x) is None


def test_a_file_without_units_is_read_as_it_is(tmp_path):
    vae = levels(17, start(17))
    old = copy.deepcopy(vae)
    with torch.no_grad():
        old.prior.inputs.copy_(old.prior.pseudo_inputs)
    old.prior.center = old.prior.spread = old.prior.start = None
    pv.save(old, tmp_path / "old")
    pv.save(vae, tmp_path / "new")
    for name in ("old", "new"):
        again = pv.load(tmp_path / name)
        assert torch.equal(again.prior.pseudo_inputs, start(17))
        assert (again.prior.moved(start(17)) is None) == (name == "old")
    # One may be filled with the other, in both directions.
    into = pv.load(tmp_path / "old")
    pv.load(tmp_path / "new", into=into)
    assert torch.equal(into.prior.inputs, vae.prior.inputs)
    assert into.prior.center == 8


def test_a_file_that_is_refused_changes_nothing():
    vae = levels(17, start(17))
    tensors = {k: v for k, v in named_tensors(vae).items() if not k.startswith("prior.c")}
    del tensors["prior.inputs"]
    with pytest.raises(RunFolderError, match=r"others \('prior.inputs' is in one only\)"):
        fill(vae, tensors)
    assert vae.prior.center == 8


@pytest.mark.parametrize("laid", [False, True])
def test_a_grid_that_was_laid_stays_where_it_is(laid):
    x = torch.randint(0, 17, (50, 4)).float()
    q = pv.NormalPosterior(MLP(4, [8]), 2)
    grid = GTMPseudoInputs(MLP(2, [32]), (4,), 3)
    if laid:
        grid.initialize(x)
    before = grid()
    vae = pv.VAE(
        pv.VampPrior(q, grid), q, pv.CategoricalLikelihood(MLP(2, [8]), (4,), num_levels=17)
    )
    expected = before if laid else 8 + 8 * before
    torch.testing.assert_close(vae.prior.pseudo_inputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_copies_of_the_mean_part_in_the_default_recipe(tmp_path):
    from pyro_vaes.cli.app import main
    from pyro_vaes.experiments.measures import components_used, pseudo_inputs_moved

    data = pv.load_data("digits")
    for init in ("data", "mean"):
        out = tmp_path / init
        flags = ["--prior", "vamp", "--pseudo-inputs", init, "--samples", "30"]
        main(["train", *flags, "--out", str(out)])
        vae = pv.load(out)
        assert pseudo_inputs_moved(vae, data, 1)["pseudo_inputs_moved"] > 0.3
        assert components_used(vae, data, 1)["components_used"] > 5
