"""Evaluation: exact where the answer is known, the same for any chunk, and leaving no trace."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vaes as pv


class LinearLikelihood(nn.Module):
    """x = W z + noise, so that log p(x) is known."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, z):
        return dist.Normal(z @ self.weight.mT, self.scale).to_event(1)


class LinearPosterior(nn.Module):
    """The exact posterior of :class:`LinearLikelihood`, or a wider one."""

    def __init__(self, likelihood, wider=1.0):
        super().__init__()
        w = likelihood.weight.detach()
        precision = torch.eye(w.shape[1], dtype=w.dtype) + w.mT @ w / likelihood.scale**2
        self.covariance = torch.linalg.inv(precision)
        self.map = self.covariance @ w.mT / likelihood.scale**2
        self.wider = wider

    def forward(self, x):
        return dist.MultivariateNormal(x @ self.map.mT, self.covariance * self.wider)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    likelihood = LinearLikelihood(torch.randn(5, 2, dtype=torch.float64), 0.7)
    prior = pv.NormalPrior(2).double()
    w = likelihood.weight.detach()
    marginal = dist.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64),
        w @ w.mT + 0.49 * torch.eye(5, dtype=torch.float64),
    )
    x = marginal.sample((200,))
    return prior, likelihood, x, marginal.log_prob(x)


def test_exact_posterior_gives_log_p_with_zero_variance(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood), likelihood)
    report = pv.evaluate(vae, x, num_samples=3)
    assert report.elbo == pytest.approx(exact.mean().item(), abs=1e-9)
    assert report.nll == pytest.approx(-exact.mean().item(), abs=1e-9)
    torch.testing.assert_close(pv.log_marginal(vae, x, 1), exact, rtol=0, atol=1e-9)


def test_importance_weighting_closes_the_gap(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood, wider=1.5), likelihood)
    report = pv.evaluate(vae, x, num_samples=3000)
    assert report.nll == pytest.approx(-exact.mean().item(), abs=0.02)
    # Two dimensions, covariance 1.5 times too wide: the gap is KL(q || p) in closed form.
    gap = 0.5 * 2 * (1.5 - 1 - math.log(1.5))
    assert exact.mean().item() - report.elbo == pytest.approx(gap, abs=0.02)
    assert report.elbo == pytest.approx(report.reconstruction - report.kl, abs=1e-9)
    assert report.elbo < -report.nll


def test_standard_errors_are_those_of_the_data(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood), likelihood)
    report = pv.evaluate(vae, x, num_samples=2)
    assert report.nll_se == pytest.approx(exact.std().item() / math.sqrt(200), rel=1e-6)


def make_vae(posterior="normal", prior="standard", conditional=False):
    torch.manual_seed(0)
    labels = 3 if conditional else 0
    base = pv.NormalPosterior(pv.MLP(6 + labels, [8]), 2, num_labels=labels)
    flows = {"planar": pv.flows.planar(2, 2), "iaf": pv.flows.iaf(2, 2)}
    q = pv.FlowPosterior(base, flows[posterior]) if posterior in flows else base
    p = pv.MixturePrior(2, 3, num_labels=labels) if prior == "mixture" else pv.NormalPrior(2)
    likelihood = pv.CategoricalLikelihood(pv.MLP(2 + labels, [8]), (6,), 4, num_labels=labels)
    return pv.VAE(p, q, likelihood).double()


def digits_like(n=150, labels=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4, (n, 6), generator=generator).double()
    y = torch.randint(0, 3, (n,), generator=generator) if labels else None
    return pv.Split(x, y)


@pytest.mark.parametrize("posterior", ["normal", "planar", "iaf"])
@pytest.mark.parametrize("conditional", [False, True])
def test_chunks_change_nothing(posterior, conditional):
    vae = make_vae(posterior, "mixture", conditional)
    split = digits_like(labels=conditional)
    reports = [pv.evaluate(vae, split, num_samples=300, chunk_size=size) for size in (1, 100, 8192)]
    for other in reports[1:]:
        torch.testing.assert_close(other.log_marginal, reports[0].log_marginal, rtol=0, atol=1e-10)
        for key, value in other.to_dict().items():
            assert value == pytest.approx(reports[0].to_dict()[key], abs=1e-10)


def test_more_samples_begin_with_the_same_draws():
    vae, split = make_vae(), digits_like(10)
    small = pv.log_marginal(vae, split, 1)
    torch.testing.assert_close(small, pv.log_marginal(vae, split, 1), rtol=0, atol=0)
    assert not torch.equal(small, pv.log_marginal(vae, split, 1, seed=1))


def test_exactly_s_decoder_evaluations_and_one_encoding_for_each_datum():
    vae, split = make_vae(), digits_like(100)
    counts = {"decoder": 0, "encoder": 0}

    def count(name):
        def hook(module, inputs, output):
            counts[name] += inputs[0].shape[:-1].numel()

        return hook

    vae.likelihood.network.register_forward_hook(count("decoder"))
    vae.posterior.network.register_forward_hook(count("encoder"))
    pv.evaluate(vae, split, num_samples=150, chunk_size=640)
    assert counts == {"decoder": 150 * 100, "encoder": 100}


def test_evaluation_leaves_no_trace():
    vae, split = make_vae(), digits_like(20)
    vae.train()
    pyro.param("stays", torch.ones(2))
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    state, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    pv.evaluate(vae, split, num_samples=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == store
    assert all(torch.equal(before[name], p) for name, p in vae.state_dict().items())
    assert vae.training and all(p.grad is None for p in vae.parameters())


def test_one_datum_and_one_sample():
    report = pv.evaluate(make_vae(), digits_like(1), num_samples=1)
    assert math.isfinite(report.nll) and math.isnan(report.nll_se)
    assert report.nll == pytest.approx(-report.elbo)


def test_prints_a_table():
    text = str(pv.evaluate(make_vae(), digits_like(20), num_samples=5))
    assert "importance weighted" in text and "+-" in text


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="Expected num_samples"):
        pv.evaluate(make_vae(), digits_like(3), num_samples=0)
