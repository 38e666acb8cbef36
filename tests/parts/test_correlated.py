"""Likelihoods with correlated noise: against SciPy, in any units, saved and loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from registry import scramble
from scipy import stats

import pyro_vaes as pv
from pyro_vaes.distributions import SharedStudentT
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.correlated import LowRankNormalLikelihood, StudentTLikelihood

pytestmark = pytest.mark.usefixtures("float64")

KINDS = {
    "t": lambda **k: StudentTLikelihood(MLP(2, [8]), (3,), **k),
    "t_diagonal": lambda **k: StudentTLikelihood(MLP(2, [8]), (3,), full=False, **k),
    "low_rank": lambda **k: LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=1, **k),
    "full": lambda **k: LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=None, **k),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def covariance(likelihood):
    if isinstance(likelihood, LowRankNormalLikelihood) and likelihood.rank is not None:
        unit = likelihood.below @ likelihood.below.mT + likelihood.scale.square().diag()
        return likelihood.spreads * unit * likelihood.spreads.unsqueeze(-1)
    factor = likelihood.factor(likelihood.below)
    return factor @ factor.mT


@kinds
def test_scores_are_those_of_scipy_and_the_covariance_is_that_of_draws(kind):
    likelihood = scramble(KINDS[kind]())
    likelihood.initialize_from(torch.tensor([1.0, 50.0, -3.0]) * torch.randn(40, 3) + 7)
    x, z = torch.randn(5, 3) * 20, torch.randn(5, 2)
    with torch.no_grad():
        d, c = likelihood(z), covariance(likelihood)
        if kind.startswith("t"):
            df = likelihood.df.item()
            shape = (df - 2) / df * c.numpy()
            expected = [
                stats.multivariate_t(m, shape, df).logpdf(row)
                for m, row in zip(d.mean, x, strict=True)
            ]
        else:
            expected = [
                stats.multivariate_normal(m, c.numpy()).logpdf(row)
                for m, row in zip(d.mean, x, strict=True)
            ]
        torch.testing.assert_close(d.log_prob(x), torch.tensor(expected))
        torch.testing.assert_close(d.variance[0], c.diagonal())
    if kind.startswith("t"):  # Tails whose fourth moment a sample can know.
        likelihood.log_df.data.fill_(0.4)
    with torch.no_grad():
        draws = likelihood(z).sample((40_000,))[:, 0]
        spread = c.diagonal().sqrt()
        found = draws.T.cov() / spread / spread.unsqueeze(-1)
    torch.testing.assert_close(found, c / spread / spread.unsqueeze(-1), atol=0.05, rtol=0)


@kinds
def test_units_change_the_density_by_their_log_alone(kind):
    x = torch.randn(30, 3) @ torch.randn(3, 3)
    scale, shift = torch.tensor([0.3, 1e6, 1e-9]), torch.tensor([1000.0, -3e6, 1e-7])
    scores = []
    for data in (x, scale * x + shift):
        torch.manual_seed(0)
        likelihood = KINDS[kind]()
        likelihood.initialize_from(data)
        vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(MLP(3, [8], "tanh"), 2), likelihood)
        pv.fit(vae, data, epochs=5, batch_size=10, learning_rate=1e-2, progress=False)
        scores.append(vae.p_x(torch.zeros(30, 2)).log_prob(data))
    torch.testing.assert_close(scores[1] + scale.log().sum(), scores[0], atol=1e-7, rtol=0)


@kinds
def test_a_floor_bounds_the_density(kind):
    likelihood = KINDS[kind](min_scale=0.1)
    with torch.no_grad():
        likelihood.log_scale.fill_(-1e3)
        top = likelihood(torch.zeros(1, 2))
        at_mean = top.log_prob(top.mean).item()
    assert at_mean < 3 * torch.tensor(10.0).log().item() + (1.0 if kind.startswith("t") else 0.0)


def test_correlated_noise_is_found():
    """Two columns that are off together: a full covariance knows it, a diagonal one cannot."""
    torch.manual_seed(0)
    noise = torch.randn(300, 1)
    x = torch.cat([noise, noise + 0.1 * torch.randn(300, 1)], -1)
    found = {}
    for rank in (None, 1):
        torch.manual_seed(1)
        likelihood = LowRankNormalLikelihood(MLP(1, [4]), (2,), rank=rank)
        likelihood.initialize_from(x)
        vae = pv.VAE(pv.NormalPrior(1), pv.NormalPosterior(MLP(2, [4]), 1), likelihood)
        pv.fit(vae, x, epochs=80, learning_rate=1e-2, progress=False)
        with torch.no_grad():
            found[rank] = vae.p_x(torch.zeros(1, 1)).log_prob(x).mean()
    truth = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()
    assert (truth - found[None]) < 0.3 and (truth - found[1]) < 0.6


def test_one_factor_serves_all_rows_as_pyros_does():
    loc, df = torch.randn(4, 5, 3), torch.tensor(4.0)
    tril = torch.randn(3, 3).tril(-1) + torch.eye(3)
    x = torch.randn(7, 1, 5, 3)
    import pyro.distributions as dist

    expected = dist.MultivariateStudentT(df, loc, tril).log_prob(x)
    torch.testing.assert_close(SharedStudentT(df, loc, tril).log_prob(x), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: StudentTLikelihood(MLP(2, [8]), (3,), initial_df=2.0),
            "initial_df above 2; got 2",
        ),
        (lambda: StudentTLikelihood(MLP(2, [8]), (3,), min_scale=0.0), "Expected 0 < min_scale"),
        (lambda: LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=0), "rank .*; got 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@kinds
def test_loads_in_a_fresh_process(kind, tmp_path):
    vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(MLP(3, [8]), 2), scramble(KINDS[kind]()))
    x = torch.linspace(-1, 1, 15).reshape(5, 3)
    pv.save(vae, tmp_path)
    code = (
        "import torch, pyro_vaes as pv; torch.set_default_dtype(torch.float64); "
        f"x = torch.linspace(-1, 1, 15).reshape(5, 3); vae = pv.load({str(tmp_path)!r}); "
        "print(pv.log_marginal(vae, x, 20, proposal='encoder').sum().item())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value = pv.log_marginal(vae, x, 20, proposal="encoder").sum().item()
    assert float(ended.stdout) == pytest.approx(value, rel=1e-12)
