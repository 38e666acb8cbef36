"""Objectives: Pyro's own estimate, its weights, and the identities it must obey."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from registry import LIKELIHOODS, POSTERIORS, PRIORS, data, make_vae
from torch import nn

from pyro_vaes.inference.elbo import ELBO, BetaELBO, NotReparameterizedError
from pyro_vaes.parts.priors import NormalPrior
from pyro_vaes.vae import VAE

pytestmark = pytest.mark.usefixtures("float64")


def seeded(function, *args):
    torch.manual_seed(7)
    return function(*args)


def terms(vae, x, y=None):
    """log p(x | z), log p(z) and log q(z | x) of one draw for each datum, written by hand."""
    q = vae.q_z(x, y)
    z = q.rsample()
    return vae.p_x(z, y).log_prob(x), vae.p_z(y).log_prob(z), q.log_prob(z)


def grads(loss, vae):
    """The gradient of a loss for each parameter, zeros where it has none."""
    found = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
    pairs = zip(found, vae.parameters(), strict=True)
    return [torch.zeros_like(p) if g is None else g for g, p in pairs]


def example(prior="mixture", posterior="iaf", likelihood="categorical", labels=0, **options):
    vae = make_vae(prior, posterior, likelihood, num_labels=labels, scale=0.5, **options)
    y = (torch.arange(6) % labels,) if labels else ()
    return vae, data(likelihood, 6, 4), y


COMBINATIONS = [
    *[(name, "normal", "categorical", 0) for name in PRIORS],
    *[("mixture", name, "categorical", 0) for name in POSTERIORS],
    *[("normal", "normal", name, 3) for name in LIKELIHOODS],
    ("vamp", "planar", "bernoulli", 3),
    ("realnvp", "iaf", "normal", 3),
]


@pytest.mark.parametrize(
    ("prior", "posterior", "likelihood", "labels"), COMBINATIONS, ids=lambda v: str(v)
)
def test_three_ways_to_one_number(prior, posterior, likelihood, labels):
    """Trace_ELBO, our ELBO and an estimate by hand, at one seed: values and gradients."""
    vae, x, y = example(prior, posterior, likelihood, labels)
    log_x, log_z, log_q = seeded(terms, vae, x, *y)
    by_hand = -(log_x + log_z - log_q).sum()
    exact = grads(by_hand, vae)
    for loss in (Trace_ELBO(), ELBO(), BetaELBO(1.0)):
        assert seeded(loss.loss, vae.model, vae.guide, x, *y) == pytest.approx(
            by_hand.item(), abs=1e-6
        )
        value = seeded(loss.differentiable_loss, vae.model, vae.guide, x, *y)
        for ours, theirs in zip(grads(value, vae), exact, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        # And by the entry point that SVI uses.
        vae.zero_grad()
        value = seeded(loss.loss_and_grads, vae.model, vae.guide, x, *y)
        assert value == pytest.approx(by_hand.item(), abs=1e-6)
        for p, theirs in zip(vae.parameters(), exact, strict=True):
            torch.testing.assert_close(
                torch.zeros_like(p) if p.grad is None else p.grad, theirs, rtol=0, atol=1e-6
            )


def test_the_three_textbook_forms_agree():
    """E[log p(x, z) - log q]; reconstruction less the KL; joint plus the entropy: within noise."""
    vae, x, _ = example("normal", "normal")
    draws = 20_000
    with torch.no_grad():
        q, p = vae.q_z(x), vae.p_z()
        z = q.sample((draws,))
        log_x, log_z, log_q = vae.p_x(z).log_prob(x), p.log_prob(z), q.log_prob(z)
        kl = torch.distributions.kl_divergence(q, p.expand(q.batch_shape))
        forms = [log_x + log_z - log_q, log_x - kl, log_x + log_z + q.entropy()]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        gap = (forms[a] - forms[b]).sum(-1)
        assert gap.abs().max() > 0
        assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(draws)


def test_pyros_closed_form_loss_agrees():
    vae, x, _ = example("normal", "normal")
    options = {"num_particles": 5000, "vectorize_particles": True, "max_plate_nesting": 1}
    losses = [loss(**options).loss(vae.model, vae.guide, x) for loss in (ELBO, TraceMeanField_ELBO)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


class LinearLikelihood(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 2))

    def forward(self, z):
        return dist.Normal(z @ self.weight.mT, 0.7).to_event(1)


class ExactPosterior(nn.Module):
    def __init__(self, likelihood):
        super().__init__()
        w = likelihood.weight.detach()
        self.covariance = torch.linalg.inv(torch.eye(2) + w.mT @ w / 0.49)
        self.map = self.covariance @ w.mT / 0.49

    def forward(self, x):
        return dist.MultivariateNormal(x @ self.map.mT, self.covariance)


def test_the_bound_is_tight_without_variance_at_the_exact_posterior():
    likelihood = LinearLikelihood()
    vae = VAE(NormalPrior(2), ExactPosterior(likelihood), likelihood)
    w = likelihood.weight.detach()
    marginal = dist.MultivariateNormal(torch.zeros(5), w @ w.mT + 0.49 * torch.eye(5))
    x = marginal.sample((20,))
    exact = -marginal.log_prob(x).sum().item()
    for loss in (Trace_ELBO(), ELBO(), RenyiELBO(num_particles=3, max_plate_nesting=1)):
        for _ in range(3):
            assert loss.loss(vae.model, vae.guide, x) == pytest.approx(exact, abs=1e-8)


def test_many_samples_tighten_the_bound():
    vae, x, _ = example("mixture", "planar")
    losses = [
        RenyiELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=1).loss(
            vae.model, vae.guide, x
        )
        for n in (1, 2000)
    ]
    average = ELBO(num_particles=2000, vectorize_particles=True).loss(vae.model, vae.guide, x)
    assert losses[1] < average
    assert losses[0] == pytest.approx(average, abs=30)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("kind", [BetaELBO, ELBO])
def test_beta_weighs_the_kl_only(kind, beta):
    vae, x, _ = example()
    log_x, log_z, log_q = seeded(terms, vae, x)
    by_hand = (beta * (log_q - log_z) - log_x).sum()
    value = seeded(kind(beta).differentiable_loss, vae.model, vae.guide, x)
    torch.testing.assert_close(value, by_hand)
    for ours, theirs in zip(grads(value, vae), grads(by_hand, vae), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_at_beta_zero_nothing_pulls_on_the_prior():
    """The gradient of the KL is absent: the posterior follows the data alone."""
    vae, x, _ = example("mixture", "normal")
    seeded(BetaELBO(0.0).loss_and_grads, vae.model, vae.guide, x)
    assert all(p.grad is None or not p.grad.any() for p in vae.prior.parameters())
    log_x, _, _ = seeded(terms, vae, x)
    exact = torch.autograd.grad(-log_x.sum(), list(vae.posterior.parameters()))
    for p, grad in zip(vae.posterior.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_the_warmup_is_a_factor_on_the_weight():
    vae, x, _ = example()
    objective = ELBO(2.0)
    assert objective.warmup == 1
    full = seeded(objective.loss, vae.model, vae.guide, x)
    objective.warmup.fill_(0.25)
    assert seeded(objective.loss, vae.model, vae.guide, x) == pytest.approx(
        seeded(BetaELBO(0.5).loss, vae.model, vae.guide, x)
    )
    with objective.full_weights():
        assert seeded(objective.loss, vae.model, vae.guide, x) == full
    assert objective.warmup == 0.25
    with pytest.raises(RuntimeError), objective.full_weights():
        raise RuntimeError
    assert objective.warmup == 0.25
    objective.warmup.fill_(0.0)
    assert seeded(objective.loss, vae.model, vae.guide, x) == pytest.approx(
        seeded(BetaELBO(0.0).loss, vae.model, vae.guide, x)
    )


def test_a_schedule_keeps_the_same_tensors():
    objective = ELBO()
    weight, warmup = objective.kl_weight, objective.warmup
    with objective.full_weights():
        pass
    assert objective.kl_weight is weight and objective.warmup is warmup
    assert objective.to("cpu") is objective and objective.warmup is warmup


def test_free_bits_cost_nothing_and_pull_nothing():
    vae, x, _ = example()
    log_x, log_z, log_q = seeded(terms, vae, x)
    kl = (log_q - log_z).mean().item()
    assert kl > 0.1
    below, above = ELBO(free_bits=0.5 * kl), ELBO(free_bits=2 * kl)
    plain = seeded(ELBO().loss, vae.model, vae.guide, x)
    assert seeded(below.loss, vae.model, vae.guide, x) == pytest.approx(plain)
    value = seeded(above.differentiable_loss, vae.model, vae.guide, x)
    torch.testing.assert_close(value, len(x) * 2 * kl - log_x.sum())
    for ours, theirs in zip(grads(value, vae), grads(-log_x.sum(), vae), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_free_bits_are_weighted_like_the_kl():
    vae, x, _ = example()
    log_x, _, _ = seeded(terms, vae, x)
    value = seeded(ELBO(3.0, free_bits=100.0).loss, vae.model, vae.guide, x)
    assert value == pytest.approx(3 * 100 * len(x) - log_x.sum().item())


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("posterior", ["normal", "planar", "iaf"])
def test_particles_are_averaged(posterior, vectorized):
    vae, x, _ = example("vamp", posterior)
    options = {"num_particles": 3, "vectorize_particles": vectorized, "max_plate_nesting": 1}
    ours, pyros = (
        seeded(loss(**options).loss, vae.model, vae.guide, x) for loss in (ELBO, Trace_ELBO)
    )
    assert ours == pytest.approx(pyros, abs=1e-6)
    if vectorized:
        torch.manual_seed(7)
        with torch.no_grad():
            q = vae.q_z(x).expand((3, 6))
            z = q.rsample()
            total = vae.p_x(z).log_prob(x) + vae.p_z().log_prob(z) - q.log_prob(z)
        assert ours == pytest.approx(-total.sum().item() / 3, abs=1e-6)
    bits = seeded(ELBO(free_bits=50.0, **options).loss, vae.model, vae.guide, x)
    nothing = seeded(BetaELBO(0.0, **options).loss, vae.model, vae.guide, x)
    assert bits - nothing == pytest.approx(50 * len(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaELBO(-1.0), r"Expected beta of at least 0; got -1\.0"),
        (lambda: BetaELBO(math.inf), "Expected beta of at least 0; got inf"),
        (lambda: BetaELBO(math.nan), "Expected beta of at least 0; got nan"),
        (lambda: ELBO(-0.1), r"Expected kl_weight of at least 0; got -0\.1"),
        (lambda: ELBO(free_bits=-1.0), r"Expected free_bits of at least 0; got -1\.0"),
        (lambda: ELBO(free_bits=math.nan), "Expected free_bits of at least 0; got nan"),
    ],
)
def test_bad_weights_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- any model and guide ------------------------------------------------------------------------


def test_a_discrete_guide_is_refused_with_its_site():
    def model():
        with pyro.plate("data", 3):
            coin = pyro.sample("coin", dist.Bernoulli(torch.full((3,), 0.5)))
            pyro.sample("x", dist.Normal(coin, 1.0), obs=torch.zeros(3))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("coin", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(3))))

    svi = SVI(model, guide, Adam({"lr": 0.1}), ELBO())
    with pytest.raises(NotReparameterizedError, match="site 'coin' with Bernoulli"):
        svi.step()
    assert issubclass(NotReparameterizedError, ValueError)


def test_a_model_that_is_no_vae():
    """Global and local latents, a subsampled plate: the estimate is Pyro's own."""
    x = torch.randn(10)

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    def guide():
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.zeros(())), 0.3))
        with pyro.plate("data", 10, subsample_size=4):
            pyro.sample("z", dist.Normal(pyro.param("l", torch.zeros(())), 0.5))

    ours, pyros = (seeded(loss().loss, model, guide) for loss in (ELBO, Trace_ELBO))
    assert ours == pytest.approx(pyros, abs=1e-9)


@pytest.mark.parametrize("options", [{"free_bits": 5.0}, {"capacity": 5.0}])
@pytest.mark.parametrize("how", ["subsample", "scale", "scales", "mask"])
def test_nats_per_datum_are_counted_as_the_data_are(how, options):
    """A datum that counts for ten, or not at all, has ten times the free nats, or none."""
    counts = torch.tensor([0.0, 0.0, 1.0, 1.0]) if how == "mask" else torch.full((4,), 2.5)

    @contextmanager
    def data():
        size = 10 if how == "subsample" else 4
        with pyro.plate("data", size, subsample=torch.arange(4) if size == 10 else None):
            if how == "subsample":
                yield
            elif how == "mask":
                with poutine.mask(mask=counts > 0):
                    yield
            else:
                with poutine.scale(scale=2.5 if how == "scale" else counts):
                    yield

    def model():
        with data():
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))

    def guide():
        with data():
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))

    # The KL is zero, and each datum lacks five nats.
    assert ELBO(**options).loss(model, guide) == pytest.approx(5 * counts.sum().item())


def test_nan_is_told():
    vae, x, _ = example("normal", "normal")
    with torch.no_grad():
        vae.likelihood.head.bias.fill_(math.nan)
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(ELBO().loss(vae.model, vae.guide, x))
