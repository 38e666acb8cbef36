"""A NaN in x is a value that was not seen: what is left is the marginal of what was."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from registry import LIKELIHOODS, NUM_LEVELS, POSTERIORS, cases, data, make_vae
from torch import nn

import pyro_vaes as pv
from pyro_vaes.distributions import Elements
from pyro_vaes.exact.linear_gaussian import LinearGaussian
from pyro_vaes.storage.weights import load, save

pytestmark = pytest.mark.usefixtures("float64")

GAPS = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]).bool()
taking = pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS, takes_gaps=True))


def labels(num_labels, n=5):
    return (torch.arange(n) % num_labels,) if num_labels else ()


@pytest.mark.parametrize(
    ("name", "num_labels"), cases(LIKELIHOODS, takes_gaps=True, independent=True)
)
def test_what_was_not_seen_is_left_out(name, num_labels):
    """Given z the elements are independent: the seen and the unseen make the whole."""
    likelihood = LIKELIHOODS[name].make(3, (4,), num_labels)
    d, x = likelihood(torch.randn(7, 5, 3), *labels(num_labels)), data(name, 5, 4)
    parts = [d.log_prob(x.masked_fill(gaps, torch.nan)) for gaps in (GAPS, ~GAPS)]
    torch.testing.assert_close(parts[0] + parts[1], d.log_prob(x))
    assert torch.equal(parts[0][:, 3], torch.zeros(7))
    wide = d.expand((2, 7, 5)).log_prob(x.masked_fill(GAPS, torch.nan))
    torch.testing.assert_close(wide, parts[0].expand(2, 7, 5))


@pytest.mark.parametrize(
    ("name", "num_labels"), cases(LIKELIHOODS, takes_gaps=True, support="levels")
)
def test_it_is_summed_out(name, num_labels):
    d = LIKELIHOODS[name].make(3, (4,), num_labels)(torch.randn(5, 3), *labels(num_labels))
    x = data(name, 5, 4)
    whole = []
    for level in range(NUM_LEVELS):
        x[:, 2] = level
        whole.append(d.log_prob(x))
    x[:, 2] = torch.nan
    torch.testing.assert_close(d.log_prob(x), torch.stack(whole).logsumexp(0))


@pytest.mark.parametrize(
    ("name", "num_labels"), cases(LIKELIHOODS, takes_gaps=True, independent=False)
)
def test_what_was_not_seen_of_correlated_elements_is_integrated_out(name, num_labels):
    """Over a grid of the one element that was not seen of each row."""
    likelihood = LIKELIHOODS[name].make(3, (4,), num_labels)
    d, x = likelihood(0.3 * torch.randn(2, 4, 3), *labels(num_labels, 4)), data(name, 4, 4)
    gaps, half = torch.eye(4).bool(), 400.0
    u = torch.linspace(-math.asinh(half), math.asinh(half), 4001)
    grid = u.sinh()[:, None, None]
    whole = d.expand((4001, 2, 4)).log_prob(torch.where(gaps, grid, x).unsqueeze(1))
    summed = (whole + u.cosh().log()[:, None, None]).logsumexp(0) + (u[1] - u[0]).log()
    torch.testing.assert_close(
        d.log_prob(x.masked_fill(gaps, torch.nan)), summed, atol=1e-3, rtol=0
    )
    nothing = d.log_prob(torch.full((4, 4), torch.nan))
    torch.testing.assert_close(nothing, torch.zeros(2, 4))
    complete = copy.copy(x)
    complete[1:, 0] = torch.nan  # A row without gaps among rows with them.
    torch.testing.assert_close(d.log_prob(complete)[:, 0], d.log_prob(x)[:, 0])
    wide = d.expand((3, 2, 4)).log_prob(complete)
    torch.testing.assert_close(wide, d.log_prob(complete).expand(3, 2, 4))


@taking
def test_no_gradient_is_nan(name, num_labels):
    likelihood = LIKELIHOODS[name].make(3, (4,), num_labels)
    z = torch.randn(5, 3, requires_grad=True)
    x = data(name, 5, 4).masked_fill(GAPS, torch.nan)
    likelihood(z, *labels(num_labels)).log_prob(x).sum().backward()
    assert z.grad.isfinite().all() and not z.grad[3].any()
    assert all(p.grad.isfinite().all() for p in likelihood.parameters())


@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS, own=True))
def test_posteriors_see_zero_and_perhaps_a_mask(name, num_labels):
    posterior, y = POSTERIORS[name].make(2, (4,), num_labels), labels(num_labels)
    x = torch.randn(5, 4)
    found = []
    for rows in (x.masked_fill(GAPS, torch.nan), x.masked_fill(GAPS, 0.0)):
        torch.manual_seed(0)
        found.append(posterior(rows, *y).rsample())
    assert found[0].isfinite().all()
    same = (found[0] == found[1]).all(1)
    assert bool(same[2])  # Nothing is missing there.
    assert bool(same.all()) != (name == "masked_normal")


def test_a_mask_doubles_the_inputs():
    with pytest.raises(ValueError, match=r"in_features=8 .*and their mask.*got 4"):
        pv.NormalPosterior(pv.MLP(4, [8]), 2, (4,), mask=True)
    assert pv.NormalPosterior(pv.MLP(11, [8]), 2, num_labels=3, mask=True).event_shape == (4,)


# --- against the closed form ---------------------------------------------------------------------


class GivenSeen(nn.Module):
    """The exact p(z | x_seen) of a linear-Gaussian model."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def forward(self, x):
        w, b, psi = self.model[0].theta
        seen = (~x.isnan()).to(w)
        away = torch.where(x.isnan(), 0.0, x - b) / psi
        precision = torch.eye(w.shape[1]) + torch.einsum("dk,nd,dl->nkl", w, seen / psi, w)
        loc = torch.linalg.solve(precision, (away @ w).unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, precision_matrix=precision)


def marginals(model, x):
    """Log p(x_seen) of each row."""
    p, found = model.marginal, []
    for row in x:
        seen = ~row.isnan()
        if not seen.any():
            found.append(torch.zeros(()))
            continue
        part = dist.MultivariateNormal(p.mean[seen], p.covariance_matrix[seen][:, seen])
        found.append(part.log_prob(row[seen]))
    return torch.stack(found)


def linear():
    torch.manual_seed(3)
    model = LinearGaussian(torch.randn(4, 2), torch.randn(4), 0.5)
    x = model.marginal.sample((40,)).masked_fill(torch.rand(40, 4) < 0.3, torch.nan)
    return model, torch.cat([x, torch.full((1, 4), torch.nan)])


def test_the_elbo_of_the_exact_posterior_is_the_marginal_of_what_was_seen():
    model, x = linear()
    vae = pv.VAE(model.vae.prior, GivenSeen(model), model.likelihood)
    z = vae.q_z(x).rsample((7,))
    elbo = vae.p_x(z).log_prob(x) + vae.p_z().log_prob(z) - vae.q_z(x).log_prob(z)
    torch.testing.assert_close(elbo, marginals(model, x).expand(7, -1), atol=1e-9, rtol=0)
    loss = Trace_ELBO().loss(vae.model, vae.guide, x)
    assert loss == pytest.approx(-marginals(model, x).sum().item(), abs=1e-8)


@pytest.mark.parametrize("mask", [False, True])
def test_log_marginal_is_the_marginal_of_what_was_seen(mask):
    """By the trusted proposals, whatever the encoder makes of gaps: here it knows nothing."""
    model, x = linear()
    network = pv.MLP(8 if mask else 4, [8])
    vae = pv.VAE(
        model.vae.prior, pv.NormalPosterior(network, 2, (4,), mask=mask).double(), model.likelihood
    )
    found = pv.evaluate(vae, x, num_samples=1000)
    truth = marginals(model, x)
    assert (found.log_marginal - truth).abs().max() < 0.1
    assert (found.log_marginal - truth).mean().abs() < 0.02
    assert found.trusted and found.num_gaps == int(x.isnan().sum())
    assert "were not seen" in str(found) and found.to_dict()["nll_bpd"] is None
    assert "not seen" in found.to_dict()["nll_bpd_reason"]


# --- through training, saving and refusals -------------------------------------------------------


@pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS, labels=(0,), own=True))
def test_a_recorded_step_of_every_likelihood_is_the_step(name, num_labels):
    x, losses = data(name, 12, 4), []
    if LIKELIHOODS[name].takes_gaps:
        x = x.masked_fill(torch.rand(12, 4) < 0.3, torch.nan)
    for mode in ("eager", "traced"):
        torch.manual_seed(0)
        vae = make_vae(likelihood=name)
        pyro.set_rng_seed(1)
        svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), pv.ELBO(), mode=mode)
        losses.append([svi.step(x) for _ in range(4)])
        assert svi.mode == mode
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_fast_svi_takes_the_steps_of_svi(mode):
    x = torch.randn(12, 4).masked_fill(torch.rand(12, 4) < 0.3, torch.nan)
    losses = []
    for fast in (False, True):
        torch.manual_seed(0)
        vae = make_vae("mixture", "masked_normal", "normal")
        pyro.set_rng_seed(1)
        if fast:
            svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), pv.ELBO(), mode=mode)
        else:
            svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
        losses.append([svi.step(x) for _ in range(5)])
        assert not fast or svi.mode == mode
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("likelihood", ["normal", "ordinal", "bernoulli"])
def test_fit_evaluate_and_reload(likelihood, tmp_path):
    x = data(likelihood, 40, 4).masked_fill(torch.rand(40, 4) < 0.3, torch.nan)
    vae = make_vae("vamp", "masked_normal", likelihood)
    if hasattr(vae.likelihood, "initialize_from"):
        vae.likelihood.initialize_from(x)
    history = pv.fit(vae, x[:30], x[30:], epochs=3, progress=False)
    assert math.isfinite(history.records[-1]["val_loss"])
    save(vae, tmp_path)
    again = load(tmp_path)
    scores = [pv.log_marginal(m, x, 20, proposal="encoder") for m in (vae, again)]
    assert scores[0].isfinite().all() and torch.equal(*scores)


@pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS, takes_gaps=False, labels=(0,)))
def test_what_cannot_leave_elements_out_refuses_gaps(name, num_labels):
    vae = make_vae(likelihood=name)
    x = data(name, 8, 4)
    x[3, 1] = torch.nan
    for use in (
        lambda: pv.fit(vae, x, epochs=1, progress=False),
        lambda: pv.evaluate(vae, x, num_samples=3),
        lambda: pv.log_marginal(vae, x, 3, proposal="encoder"),
    ):
        with pytest.raises(ValueError, match=r"data without gaps for \w+, .*NaN in row 3"):
            use()


def test_a_posterior_of_ones_own_that_makes_nan_of_gaps_is_refused():
    vae = make_vae(posterior="own", likelihood="normal")
    x = torch.randn(8, 4)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="posterior that takes gaps; got NaN codes of row 3"):
        pv.fit(vae, x, epochs=1, progress=False)


def test_ones_own_likelihood_takes_gaps_by_one_class():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 4)

        def forward(self, z):
            return Elements(dist.LogNormal(self.linear(z), 1.0), 1, stand_in=1.0)

    vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(4, [8]), 2), Own())
    x = torch.randn(9, 4).exp().masked_fill(torch.rand(9, 4) < 0.3, torch.nan)
    assert pv.log_marginal(vae, x, 50).isfinite().all()
    other = copy.deepcopy(vae)
    assert torch.equal(other.encode(x), vae.encode(x))
