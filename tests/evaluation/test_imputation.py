"""Filled gaps are those of the closed form where there is one, and are marked where not trusted."""

from __future__ import annotations

from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from registry import LIKELIHOODS, cases, data, make_vae, scramble
from scipy import stats
from torch import nn

import pyro_vaes as pv
from pyro_vaes.distributions import SharedStudentT
from pyro_vaes.exact.linear_gaussian import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")


def linear(n=24):
    """A linear-Gaussian model under an encoder that knows nothing, and data with gaps."""
    torch.manual_seed(3)
    model = LinearGaussian(torch.randn(4, 2), torch.randn(4), 0.5)
    x = model.marginal.sample((n,)).masked_fill(torch.rand(n, 4) < 0.4, torch.nan)
    posterior = scramble(pv.NormalPosterior(pv.MLP(4, [8]), 2))
    return model, pv.VAE(model.vae.prior, posterior, model.likelihood), x


def conditional(model, row):
    """Mean and covariance of what was not seen of a row, given what was."""
    mean, covariance = model.marginal.mean, model.marginal.covariance_matrix
    gap = row.isnan()
    to = torch.linalg.solve(covariance[~gap][:, ~gap], covariance[~gap][:, gap]).mT
    given = mean[gap] + to @ (row[~gap] - mean[~gap])
    return given, covariance[gap][:, gap] - to @ covariance[~gap][:, gap]


@pytest.mark.parametrize("proposal", ["auto", "refined"])
def test_means_and_draws_are_those_of_the_closed_form(proposal):
    model, vae, x = linear()
    found = pv.impute(vae, x, 4000, num_draws=4000, proposal=proposal)
    assert not found.unreliable.any()
    scores = []
    for row, mean, draws in zip(x, found.x, found.draws.unbind(1), strict=True):
        gap = row.isnan()
        assert torch.equal(mean[~gap], row[~gap])
        assert torch.equal(draws[:, ~gap], row[~gap].expand(4000, -1))
        if not gap.any():
            continue
        given, covariance = conditional(model, row)
        spread = covariance.diagonal().sqrt()
        assert ((mean[gap] - given) / spread).abs().max() < 0.12
        torch.testing.assert_close(draws[:, gap].std(0) / spread, torch.ones_like(spread), **LOOSE)
        if len(spread) > 1:
            made = draws[:, gap].T.cov() / spread / spread.unsqueeze(-1)
            assert (made - covariance / spread / spread.unsqueeze(-1)).abs().max() < 0.15
        scores.append(((draws[:, gap] - given) / spread).mean(0))
    assert torch.cat(scores).mean().abs() < 0.02


LOOSE = {"atol": 0.08, "rtol": 0.0}


def test_a_row_of_gaps_alone_has_the_marginal():
    model, vae, _ = linear()
    found = pv.impute(vae, torch.full((1, 4), torch.nan), 8000, num_draws=8000)
    sd = model.marginal.variance.sqrt()
    assert ((found.x[0] - model.marginal.mean) / sd).abs().max() < 0.08
    torch.testing.assert_close(found.draws[:, 0].std(0) / sd, torch.ones(4), **LOOSE)


def test_a_poor_encoder_alone_is_marked():
    _, vae, x = linear()
    with torch.no_grad():
        vae.posterior.head.weight.zero_()
        vae.posterior.head.bias.copy_(torch.tensor([3.0, 3.0, -6.0, -6.0]))
    rows = x.isnan().any(1) & ~x.isnan().all(1)
    assert pv.impute(vae, x, 300, proposal="encoder").unreliable[rows].double().mean() > 0.9
    assert not pv.impute(vae, x, 300).unreliable.any()


@pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS, takes_gaps=True))
def test_every_likelihood_that_takes_gaps(name, num_labels):
    vae = make_vae(likelihood=name, num_labels=num_labels)
    x = data(name, 6, 4).masked_fill(torch.rand(6, 4) < 0.4, torch.nan)
    y = torch.arange(6) % num_labels if num_labels else None
    found = pv.impute(vae, x, 30, num_draws=3, y=y, proposal="encoder")
    for filled in (found.x, *found.draws):
        assert filled.isfinite().all()
        assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    vae.p_x(torch.zeros(3, 6, 2), y).log_prob(found.draws)  # Draws are values of the support.


def test_the_same_at_any_chunk_size_and_leaves_all_as_it_was():
    _, vae, x = linear(80)
    before = torch.random.get_rng_state()
    found = [pv.impute(vae, x, 200, num_draws=2, chunk_size=size) for size in (64, 5000)]
    assert torch.equal(before, torch.random.get_rng_state())
    torch.testing.assert_close(found[0].x, found[1].x, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[0].draws, found[1].draws, rtol=0, atol=1e-10)
    other = pv.impute(vae, x, 200, seed=1)
    assert not torch.equal(other.x, found[0].x)


@pytest.mark.parametrize("rank", [None, 2])
def test_correlated_noise_has_its_conditional_distribution(rank):
    """A linear decoder under correlated normal noise: all is one normal."""
    torch.manual_seed(4)
    likelihood = scramble(pv.LowRankNormalLikelihood(pv.SkipMLP(2, [4]), (4,), rank=rank))
    with torch.no_grad():
        likelihood.head.weight[:, 2:] = 0  # Those of the hidden layer.
        likelihood.head.weight[:, :2] = torch.randn(4, 2)
        noise = likelihood(torch.zeros(1, 2))
        to = torch.stack([likelihood(e[None]).mean[0] - noise.mean[0] for e in torch.eye(2)], 1)
        covariance = to @ to.mT + noise.covariance_matrix[0]
        exact = dist.MultivariateNormal(noise.mean[0], covariance)
    torch.testing.assert_close(likelihood(-torch.ones(1, 2)).mean[0], noise.mean[0] - to.sum(1))
    vae = pv.VAE(pv.NormalPrior(2), scramble(pv.NormalPosterior(pv.MLP(4, [8]), 2)), likelihood)
    x = exact.sample((12,)).masked_fill(torch.rand(12, 4) < 0.4, torch.nan)
    found = pv.impute(vae, x, 6000, num_draws=6000)
    assert not found.unreliable.any()
    model = SimpleNamespace(marginal=exact)
    for row, mean, draws in zip(x, found.x, found.draws.unbind(1), strict=True):
        gap = row.isnan()
        if not gap.any():
            continue
        given, covariance = conditional(model, row)
        spread = covariance.diagonal().sqrt()
        assert ((mean[gap] - given) / spread).abs().max() < 0.12
        made = draws[:, gap].T.cov() / spread / spread.unsqueeze(-1)
        assert (made - covariance / spread / spread.unsqueeze(-1)).abs().max() < 0.15


@pytest.mark.slow
def test_a_t_that_is_far_out_in_what_was_seen_is_uncertain_in_what_was_not():
    """The conditional of a multivariate t: its scale grows with the distance of what was seen."""
    torch.manual_seed(5)
    df, loc = torch.tensor(6.0), torch.tensor([1.0, -1.0, 2.0])
    tril = torch.randn(3, 3).tril(-1) + torch.eye(3)
    x = torch.tensor([[1.0, torch.nan, 2.0], [7.0, torch.nan, -5.0]])
    given = SharedStudentT(df, loc.expand(2, 3), tril).given(x)
    draws = given.sample((60_000,))
    assert torch.equal(draws[:, :, 0], x[:, 0].expand(60_000, 2))
    scatter, seen = tril @ tril.mT, torch.tensor([0, 2])
    for i in range(2):
        away = x[i, seen] - loc[seen]
        to = torch.linalg.solve(scatter[seen][:, seen], scatter[seen, 1])
        scale = scatter[1, 1] - to @ scatter[seen, 1]
        square = away @ torch.linalg.solve(scatter[seen][:, seen], away)
        expected = stats.t(
            6 + 2, (loc[1] + to @ away).item(), (scale * (6 + square) / (6 + 2)).sqrt().item()
        )
        assert given.mean[i, 1].item() == pytest.approx(expected.mean())
        assert stats.kstest(draws[:, i, 1].numpy(), expected.cdf).pvalue > 1e-3


def test_nothing_to_fill():
    _, vae, x = linear()
    x = x.nan_to_num(0.5)
    found = pv.impute(vae, x, num_draws=2)
    assert torch.equal(found.x, x) and torch.equal(found.draws[1], x)
    assert found.pareto_k.isnan().all() and not found.unreliable.any()


def test_refusals_and_a_fallback_that_is_said():
    _, vae, x = linear()
    with pytest.raises(ValueError, match="auto, encoder, refined; got 'annealed'"):
        pv.impute(vae, x, proposal="annealed")
    with pytest.raises(ValueError, match="without gaps for AutoregressiveLevels"):
        pv.impute(make_vae(likelihood="autoregressive"), data("autoregressive", 4, 4) + torch.nan)

    class Flat(nn.Module):
        def forward(self):
            return dist.Uniform(-torch.ones(2), 1.0).to_event(1)

    flat = pv.VAE(Flat(), vae.posterior, vae.likelihood)
    with pytest.warns(UserWarning, match="[Ll]og p.x. is estimated from the encoder's draws"):
        pv.impute(flat, x, 30)


@pytest.mark.parametrize("inflated", [False, True])
def test_counts_are_filled_at_the_exposure_of_their_row(inflated):
    """Two rows alike but for their exposures, under a decoder that ignores z."""
    torch.manual_seed(0)
    likelihood = pv.PoissonLikelihood(pv.MLP(2, [8]), (3,), zero_inflated=inflated, exposure=True)
    likelihood.initialize_from(torch.tensor([[1.0, 8.0, 10.0], [3.0, 12.0, 10.0]]))
    for parameter in likelihood.parameters():
        nn.init.zeros_(parameter)
    vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(3, [8]), 2), likelihood).double()
    x = torch.tensor([[2.0, torch.nan, 10.0], [2.0, torch.nan, 500.0]])
    found = pv.impute(vae, x, num_samples=50, num_draws=2000)
    kept = 1 - torch.sigmoid(torch.tensor(-2.0)) if inflated else torch.tensor(1.0)
    truth = kept * likelihood.log_mean.exp()[1] * x[:, 2]
    torch.testing.assert_close(found.x[:, 1], truth)
    torch.testing.assert_close(found.draws[..., 1].mean(0), truth, rtol=0.05, atol=0)
    assert found.draws[..., 2].unique(dim=0).tolist() == [[10.0, 500.0]]
