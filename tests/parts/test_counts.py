"""Likelihoods of counts against SciPy, with exposures, and from their training data."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from registry import scramble
from scipy import stats

import pyro_vaes as pv
from pyro_vaes.core.looking import mean_of
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.counts import NegativeBinomialLikelihood, PoissonLikelihood

pytestmark = pytest.mark.usefixtures("float64")
KINDS = [PoissonLikelihood, NegativeBinomialLikelihood]


def scored(likelihood, x, mean):
    """SciPy's score of counts with these means."""
    if isinstance(likelihood, PoissonLikelihood):
        score = stats.poisson.logpmf(x, mean)
    else:
        r = likelihood.total_count.detach().numpy()
        score = stats.nbinom.logpmf(x, r, r / (r + mean.numpy()))
    return torch.as_tensor(score)


@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_scipy(kind, inflated):
    likelihood = scramble(kind(MLP(2, [8]), (3,), zero_inflated=inflated))
    x, z = torch.tensor([0.0, 4.0, 300.0]), torch.randn(5, 2)
    with torch.no_grad():
        d = likelihood(z)
        outputs = likelihood.head(likelihood.network(z)).reshape(5, 3, -1)
    expected = scored(likelihood, x, outputs[..., 0].exp())
    if inflated:
        gate = (outputs[..., 1] - 2).sigmoid()
        expected = torch.where(
            x == 0, (gate + (1 - gate) * expected.exp()).log(), torch.log1p(-gate) + expected
        )
    torch.testing.assert_close(d.log_prob(x), expected.sum(-1))


@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exposure_multiplies_the_rates_and_is_not_scored(kind, inflated):
    likelihood = scramble(kind(MLP(2, [8]), (4,), zero_inflated=inflated, exposure=True))
    torch.manual_seed(1)
    plain = kind(MLP(2, [8]), (3,), zero_inflated=inflated)
    plain.load_state_dict(
        {k: v for k, v in likelihood.state_dict().items() if k in plain.state_dict()}
        | {k: plain.state_dict()[k] for k in ("center", "spread")}
    )
    x, e, z = torch.poisson(torch.full((5, 3), 4.0)), torch.rand(5, 1) * 10, torch.randn(5, 2)
    found = likelihood(z).log_prob(torch.cat([x, e], -1))
    plain.log_mean = torch.zeros(5, 3) + e.log()
    torch.testing.assert_close(found, plain(z).log_prob(x))
    x[2, 1] = torch.nan
    gap = likelihood(z).log_prob(torch.cat([x, e], -1))
    torch.testing.assert_close(gap, plain(z).log_prob(x))
    assert gap[2] > found[2] and gap.isfinite().all()


def test_draws_and_means_have_a_typical_exposure():
    likelihood = PoissonLikelihood(MLP(2, [8]), (3,), exposure=True)
    exposure = torch.tensor([[1.0], [10.0], [100.0]]).repeat(20, 1)
    x = torch.cat([torch.poisson(exposure * torch.tensor([0.5, 4.0])), exposure], -1)
    likelihood.initialize_from(x)
    with torch.no_grad():
        likelihood.head.weight.zero_()
        likelihood.head.bias.zero_()
        d = likelihood(torch.zeros(2000, 2))
        draws = d.expand((3, 2000)).sample((2,))
    assert draws.shape == (2, 3, 2000, 3) and (draws[..., 2] == 10).all()
    torch.testing.assert_close(mean_of(d)[0], torch.tensor([5.0, 40.0, 10.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(draws.mean((0, 1, 2)), mean_of(d)[0], rtol=0.02, atol=0)
    assert not torch.equal(draws[0, 0], draws[0, 1])


@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_seen_is_filled_at_the_exposure_of_its_row(kind, inflated):
    likelihood = kind(MLP(2, [8]), (3,), zero_inflated=inflated, exposure=True)
    exposure = torch.tensor([[1.0], [100.0]]).repeat(20, 1)
    x = torch.cat([torch.poisson(exposure * torch.tensor([0.5, 4.0])), exposure], -1)
    likelihood.initialize_from(x)
    vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(MLP(3, [8]), 2), likelihood)
    gappy = x[:2].clone()
    gappy[:, 0] = torch.nan
    found = pv.impute(vae, gappy, 200, num_draws=200)
    low, high = found.x[:, 0]
    assert high > 30 * low
    assert found.draws[:, 1, 0].mean() > 20 * found.draws[:, 0, 0].mean()
    assert (found.draws[..., 2] == gappy[:, 2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rates_start_at_those_of_the_data(kind):
    x = torch.poisson(torch.tensor([0.2, 5.0, 900.0]).expand(500, 3))
    x[::3, 1] = torch.nan
    likelihood = kind(MLP(2, [8]), (3,))
    likelihood.initialize_from(x)
    seen = [column[~column.isnan()].mean() for column in x.unbind(1)]
    torch.testing.assert_close(likelihood.log_mean.exp(), torch.stack(seen), rtol=0.02, atol=0)
    if kind is NegativeBinomialLikelihood:
        assert (likelihood.total_count[1:] > 20).all()


def test_dispersion_starts_by_moments():
    r = torch.tensor([0.5, 2.0, 10.0])
    d = torch.distributions.NegativeBinomial(r, logits=(20 / r).log())
    likelihood = NegativeBinomialLikelihood(MLP(2, [8]), (3,))
    likelihood.initialize_from(d.sample((20_000,)))
    torch.testing.assert_close(likelihood.total_count.detach(), r, rtol=0.1, atol=0)


def test_what_is_no_count_is_refused():
    vae = pv.VAE(
        pv.NormalPrior(2), pv.NormalPosterior(MLP(3, [8]), 2), PoissonLikelihood(MLP(2, [8]), (3,))
    )
    for wrong in (0.5, -1.0):
        with pytest.raises(ValueError, match=r"whole numbers from 0; got .* in row 4"):
            pv.fit(vae, torch.ones(6, 3).index_fill(0, torch.tensor(4), wrong), epochs=1)
    with pytest.raises(ValueError, match=r"Expected event_shape \(D \+ 1,\).*; got \(2, 2\)"):
        PoissonLikelihood(MLP(2, [8]), (2, 2), exposure=True)
    exposed = PoissonLikelihood(MLP(2, [8]), (3,), exposure=True)
    vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(MLP(3, [8]), 2), exposed)
    for place, wrong, why in (
        (2, 0.0, "an exposure above 0 as the last element"),
        (2, math.nan, "an exposure above 0 as the last element"),
        (1, -1.0, "counts, whole numbers from 0; got values from -1 to 1"),
    ):
        x = torch.ones(6, 3)
        x[4, place] = wrong
        with pytest.raises(ValueError, match=f"{why}.* row 4"):
            pv.fit(vae, x, epochs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_fits_and_loads_in_a_fresh_process(kind, tmp_path):
    torch.manual_seed(0)
    scale = torch.rand(80, 1) * 20 + 1
    x = torch.cat([torch.poisson(scale * torch.rand(80, 4) * 5), scale], -1)
    likelihood = kind(MLP(2, [8]), (5,), zero_inflated=True, exposure=True)
    likelihood.initialize_from(x)
    vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(MLP(5, [8]), 2), likelihood)
    torch.testing.assert_close(vae.posterior.center, x.mean(0))
    pv.fit(vae, x[:60], x[60:], epochs=5, progress=False)
    value = pv.log_marginal(vae, x, 20, proposal="encoder").sum().item()
    pv.save(vae, tmp_path)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import torch, pyro_vaes as pv; torch.set_default_dtype(torch.float64); "
        f"x = torch.load({str(tmp_path / 'x.pt')!r}); vae = pv.load({str(tmp_path)!r}); "
        "print(pv.log_marginal(vae, x, 20, proposal='encoder').sum().item())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, pv.TableLikelihood])
def test_single_precision_keeps_the_score_of_a_million(kind):
    """The logs of the factorials that cancel there have no digit left for it."""
    x = torch.tensor([[1e6, 1e7], [1.001e6, 0.999e7]])
    shape = {"a": "count", "b": "count"} if kind is pv.TableLikelihood else (2,)
    likelihood = kind(MLP(2, [8]), shape)
    likelihood.initialize_from(x)
    with torch.no_grad():
        likelihood.head.weight.mul_(1e-3)
        likelihood.head.bias.zero_()
    z = torch.randn(2, 2)
    exact = likelihood(z).log_prob(x)
    single = likelihood.float()(z.float()).log_prob(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=0.01)
