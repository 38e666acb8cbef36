"""Likelihoods with correlated noise: against SciPy, in any units, saved and loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from registry import scramble
from scipy import stats

import pyro_vaes as pv
from pyro_vaes.distributions import SharedAutoregressiveNormal, SharedStudentT
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.correlated import (
    AutoregressiveNormalLikelihood,
    LowRankNormalLikelihood,
    StudentTLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")

KINDS = {
    "t": lambda **k: StudentTLikelihood(MLP(2, [8]), (3,), **k),
    "t_diagonal": lambda **k: StudentTLikelihood(MLP(2, [8]), (3,), full=False, **k),
    "low_rank": lambda **k: LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=1, **k),
    "full": lambda **k: LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=None, **k),
    "ar1": lambda **k: AutoregressiveNormalLikelihood(MLP(2, [8]), (3,), order=1, **k),
    "ar2": lambda **k: AutoregressiveNormalLikelihood(MLP(2, [8]), (3,), order=2, **k),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def stationary(partial, length):
    """The covariance of an autoregressive process with innovations of variance 1.

    It is summed from the responses to innovations of the far past, which needs no recursion for
    autocovariances, nor a stationary start.
    """
    weights = []
    for pi in partial.tolist():
        weights = [a - pi * b for a, b in zip(weights, weights[::-1], strict=True)] + [pi]
    responses = [1.0]
    for _ in range(4000):
        before = responses[: -len(weights) - 1 : -1]
        responses.append(sum(w * r for w, r in zip(weights, before, strict=False)))
    r = torch.tensor(responses)
    lags = [float(r[: len(r) - k] @ r[k:]) for k in range(length)]
    return torch.tensor([[lags[abs(i - j)] for j in range(length)] for i in range(length)])


def covariance(likelihood):
    if isinstance(likelihood, LowRankNormalLikelihood) and likelihood.rank is not None:
        unit = likelihood.below @ likelihood.below.mT + likelihood.scale.square().diag()
        return likelihood.spreads * unit * likelihood.spreads.unsqueeze(-1)
    if isinstance(likelihood, AutoregressiveNormalLikelihood):
        scale = likelihood.spreads * likelihood.scale
        return scale * stationary(likelihood.partial, 3) * scale.unsqueeze(-1)
    factor = likelihood.factor(likelihood.below)
    return factor @ factor.mT


@kinds
def test_scores_are_those_of_scipy_and_the_covariance_is_that_of_draws(kind):
    likelihood = scramble(KINDS[kind]())
    likelihood.initialize_from(torch.tensor([1.0, 50.0, -3.0]) * torch.randn(40, 3) + 7)
    if kind.startswith("ar"):  # A memory that is short, for the sum over it.
        likelihood.slant.data.copy_(torch.tensor([0.08, -0.05])[: likelihood.order])
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


@pytest.mark.slow
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


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_variances_that_single_precision_cannot_hold_are_refused(unit):
    likelihood = LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=1)
    likelihood.initialize_from(torch.randn(50, 3) * unit)  # Double precision can.
    with pytest.raises(ValueError, match=r"float32 can hold; got .* in element 0. Give them in"):
        likelihood.float().initialize_from(torch.randn(50, 3) * unit)


@pytest.mark.parametrize("make", [KINDS["t"], KINDS["t_diagonal"], None])
def test_single_precision_keeps_the_score_of_a_t_that_is_all_but_normal(make):
    """To which normal data drive the degrees of freedom; two logs of gammas cancel there."""
    columns = dict.fromkeys("abc", "real")
    likelihood = pv.TableLikelihood(MLP(2, [8]), columns) if make is None else make()
    part = likelihood.kinds[0] if make is None else likelihood
    with torch.no_grad():
        part.log_df.fill_(1.9)  # df = 1.8e8
    likelihood.float()
    single, x = likelihood(torch.randn(5, 2).float()), torch.randn(5, 3)
    loc, scale = single.mean.detach().numpy(), part.scale.detach().numpy()
    expected = torch.as_tensor(stats.norm.logpdf(x.numpy(), loc, scale)).sum(-1)
    score = single.log_prob(x.float())
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: StudentTLikelihood(MLP(2, [8]), (3,), initial_df=2.0),
            "initial_df above 2; got 2",
        ),
        (lambda: StudentTLikelihood(MLP(2, [8]), (3,), min_scale=0.0), "Expected 0 < min_scale"),
        (lambda: LowRankNormalLikelihood(MLP(2, [8]), (3,), rank=0), "rank .*; got 0"),
        (lambda: AutoregressiveNormalLikelihood(MLP(2, [8]), (3,), order=-1), "order .*; got -1"),
        (
            lambda: AutoregressiveNormalLikelihood(MLP(2, [8]), (9, 3), order=3),
            "order from 0 to below 3, the length of a series .*; got 3",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@kinds
@pytest.mark.slow
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


# --- autoregressive noise -------------------------------------------------------------------------


def series(order, channels, length):
    """Noise of some series, and the dense normal of the same covariance."""
    partial = torch.tensor([0.8, -0.5, 0.3])[:order]
    scale, loc = torch.rand(channels * length) + 0.5, torch.randn(4, channels * length)
    blocks = [stationary(partial, length)] * channels
    dense = scale * torch.block_diag(*blocks) * scale.unsqueeze(-1)
    ours = SharedAutoregressiveNormal(loc, scale, partial, length)
    return ours, torch.distributions.MultivariateNormal(loc, dense)


@pytest.mark.parametrize(
    ("order", "channels", "length"), [(0, 1, 2), (1, 1, 2), (1, 3, 5), (2, 1, 3), (3, 2, 9)]
)
def test_autoregressive_noise_is_a_dense_normal(order, channels, length):
    ours, dense = series(order, channels, length)
    x = torch.randn(7, 4, channels * length)
    torch.testing.assert_close(ours.log_prob(x), dense.log_prob(x))
    torch.testing.assert_close(ours.variance, dense.variance)
    # Draws, as a linear map of noise, have its covariance exactly.
    factor = ours._unbroadcasted_scale_tril
    torch.testing.assert_close(factor @ factor.mT, dense.covariance_matrix[0])
    draws = ours.rsample((20_000,))
    assert draws.shape == (20_000, 4, channels * length)
    torch.testing.assert_close(draws[:, 0].T.cov(), dense.covariance_matrix[0], atol=0.2, rtol=0)
    torch.testing.assert_close(draws.mean(0), ours.mean, atol=0.1, rtol=0)


def test_gaps_of_a_series_are_integrated_out():
    ours, dense = series(2, 2, 5)
    x = torch.randn(4, 10)
    x[0, 3], x[1, :4], x[2] = torch.nan, torch.nan, torch.nan
    covariance, found = dense.covariance_matrix[0], []
    for row, loc in zip(x, ours.loc, strict=True):
        i = (~row.isnan()).nonzero()[:, 0]
        if len(i) == 0:
            found.append(0.0)
            continue
        part = torch.distributions.MultivariateNormal(loc[i], covariance[i][:, i])
        found.append(part.log_prob(row[i]).item())
    torch.testing.assert_close(ours.log_prob(x), torch.tensor(found))
    i, j = torch.arange(4), torch.arange(4, 10)
    fill = covariance[i][:, j] @ torch.linalg.solve(covariance[j][:, j], (x - ours.loc)[1, j])
    torch.testing.assert_close(ours.given(x).mean[1, :4], ours.loc[1, :4] + fill)


def test_memory_and_time_are_those_of_the_numbers_alone():
    """A dense covariance of these would take 80 GB."""
    loc = torch.zeros(1, 100_000)
    normal = SharedAutoregressiveNormal(loc, torch.ones(100_000), torch.tensor([0.9, -0.2]))
    assert normal.log_prob(loc).isfinite().all()


@pytest.mark.slow
def test_autoregressive_noise_is_found():
    """A process of order 2 around no signal: its coefficients, and its exact density."""
    torch.manual_seed(0)
    partial = torch.tensor([0.7, -0.4])
    truth = SharedAutoregressiveNormal(torch.zeros(1, 30), torch.full((30,), 0.5), partial)
    x = truth.sample((400,))[:, 0]
    likelihood = AutoregressiveNormalLikelihood(MLP(1, [4]), (30,), order=2)
    likelihood.initialize_from(x)
    vae = pv.VAE(pv.NormalPrior(1), pv.NormalPosterior(MLP(30, [4]), 1), likelihood)
    pv.fit(vae, x, epochs=60, learning_rate=1e-2, progress=False)
    torch.testing.assert_close(likelihood.partial.detach(), partial, atol=0.05, rtol=0)
    missed = truth.log_prob(x).mean() - pv.log_marginal(vae, x, 50, proposal="encoder").mean()
    assert missed.abs() < 0.3


def test_noise_stays_stationary_at_its_bounds():
    likelihood = AutoregressiveNormalLikelihood(MLP(2, [8]), (3, 12), order=3)
    with torch.no_grad():
        likelihood.slant.fill_(1e3)
        d = likelihood(torch.zeros(2, 2))
        assert d.log_prob(d.sample()).isfinite().all() and d.variance.isfinite().all()
