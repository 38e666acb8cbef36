"""A start at a factor analysis: exact where the model is one, and the same in any units."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from torch import nn

import pyro_vaes as pv
from pyro_vaes.classical.start import Factors
from pyro_vaes.parts.correlated import LowRankNormalLikelihood, StudentTLikelihood
from pyro_vaes.parts.likelihoods import NormalLikelihood

pytestmark = pytest.mark.usefixtures("float64")

D, L = 5, 2


def rows(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, noise = (torch.randn(n, k, generator=generator) for k in (L, D))
    loadings = torch.randn(L, D, generator=torch.Generator().manual_seed(9))
    return z @ loadings + noise * torch.linspace(0.2, 0.8, D) + torch.arange(D)


def build(x, prior=None, likelihood=NormalLikelihood, latent_dim=L, **options):
    torch.manual_seed(1)
    p_x = likelihood(pv.SkipMLP(latent_dim, [8]), (D,), **options)
    p_x.initialize_from(x)
    q = pv.NormalPosterior(pv.SkipMLP(D, [8]), latent_dim)
    return pv.VAE(pv.NormalPrior(latent_dim) if prior is None else prior, q, p_x)


def without_corrections(vae):
    """Only the linear parts: what the networks' own layers add is small, and not exact."""
    with torch.no_grad():
        for part in (vae.likelihood, vae.posterior):
            part.head.weight[:, part.network.in_features :] = 0
    return vae


def bound(vae, x):
    q = vae.q_z(x)
    z = q.sample((3,))
    return vae.p_x(z).log_prob(x) + vae.p_z().log_prob(z) - q.log_prob(z)


@pytest.mark.parametrize("latent_dim", [L, D + 2])
def test_the_bound_is_the_log_likelihood_of_factor_analysis_for_every_draw(latent_dim):
    x = rows()
    vae = build(x, latent_dim=latent_dim)
    pv.start_at_factors(vae, x)
    center, spread = vae.likelihood.units
    model = FactorAnalysis(min(latent_dim, D - 1)).fit(((x - center) / spread).numpy())
    assert (model.noise_variance_ > 1e-4).all()  # No floor is at work.
    expected = torch.tensor(model.score_samples(((x - center) / spread).numpy()))
    with torch.no_grad():
        found = bound(without_corrections(vae), x)
    torch.testing.assert_close(found, (expected - spread.log().sum()).expand(3, -1))


def test_a_posterior_that_sees_other_units_is_exact_too():
    x = rows()
    vae = build(x)
    other = pv.NormalPosterior(pv.SkipMLP(D, [8]), L, x_range=[x.amin(0) - 1, x.amax(0)])
    vae = pv.VAE(vae.prior, other, vae.likelihood)
    pv.start_at_factors(vae, x)
    with torch.no_grad():
        found = bound(without_corrections(vae), x)
    torch.testing.assert_close(found[0], found[1])


def test_the_mixture_prior_is_one_of_the_scores():
    torch.manual_seed(0)
    z = torch.cat([torch.randn(200, 1) * 0.1 - 1, torch.randn(200, 1) * 0.1 + 1])
    x = (z + torch.zeros(D)) * torch.linspace(1, 2, D) + 0.3 * torch.randn(400, D)
    vae = without_corrections(build(x, pv.MixturePrior(L, 7)))
    pv.start_at_factors(vae, x[::2], x[1::2])
    without_corrections(vae)
    plain = without_corrections(build(x))
    pv.start_at_factors(plain, x[::2])
    without_corrections(plain)
    estimates = [pv.log_marginal(v, x, 2000, proposal="encoder") for v in (vae, plain)]
    assert estimates[0].mean() > estimates[1].mean() + 0.3
    # Copies of components share their weights: they are as many as are asked for.
    found = vae.prior.loc[:, :1].round(decimals=3).unique()
    assert len(found) in (2, 3, 5)
    torch.testing.assert_close(vae.prior.logits.exp().sum(), torch.tensor(1.0))


def test_a_prior_whose_locations_a_network_gives_starts_as_it_is():
    x, prior = rows(), pv.GTMPrior(pv.MLP(2, [8]), L, grid_size=3)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    vae = build(x, prior)
    start = vae.likelihood.head.weight.clone()
    pv.start_at_factors(vae, x)
    assert all(torch.equal(prior.state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(vae.likelihood.head.weight, start)


def test_the_density_that_chooses_the_mixture_is_that_of_the_model():
    from sklearn.mixture import GaussianMixture

    x = rows()
    vae = build(x, pv.MixturePrior(L, 2))
    center, spread = vae.likelihood.units
    standard = (x - center) / spread
    factors = Factors.of(standard, L)
    mixture = GaussianMixture(2, covariance_type="diag", random_state=0)
    mixture.fit((standard @ factors.encoder.mT).numpy())
    pv.start_at_factors(vae, x)
    with torch.no_grad():
        vae.prior.loc.copy_(torch.as_tensor(mixture.means_))
        vae.prior.log_scale.copy_(0.5 * torch.as_tensor(mixture.covariances_).log())
        vae.prior.logits.copy_(torch.as_tensor(mixture.weights_).log())
    exact = factors.log_prob(standard[:20], mixture) - spread.log().sum()
    found = pv.log_marginal(without_corrections(vae), x[:20], 20_000, proposal="encoder")
    assert (found - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    ("likelihood", "options"),
    [
        (NormalLikelihood, {}),
        (StudentTLikelihood, {}),
        (StudentTLikelihood, {"full": False}),
        (LowRankNormalLikelihood, {"rank": None}),
    ],
)
def test_units_change_nothing_but_their_log(likelihood, options):
    x, scale = rows(), torch.tensor([0.3, 1e6, 1.0, 1e-4, 7.0])
    scores = []
    for data in (x, scale * x + 5):
        vae = build(data, pv.MixturePrior(L, 3), likelihood, **options)
        pv.start_at_factors(vae, data[:200], data[200:])
        scores.append(pv.log_marginal(vae, data, 50, proposal="encoder"))
    torch.testing.assert_close(scores[1] + scale.log().sum(), scores[0], atol=1e-6, rtol=0)


def test_labels_and_gaps_take_part_and_training_goes_up_from_there():
    x = rows()
    x[::7, 2] = torch.nan
    y = torch.arange(len(x)) % 3
    likelihood = NormalLikelihood(pv.SkipMLP(L + 3, [8]), (D,), 3)
    likelihood.initialize_from(x)
    posterior = pv.NormalPosterior(pv.SkipMLP(2 * D + 3, [8]), L, (D,), 3, mask=True)
    vae = pv.VAE(pv.MixturePrior(L, 4, num_labels=3), posterior, likelihood)
    train, val = (pv.Split(x[i], y[i]) for i in (slice(200), slice(200, None)))
    pv.start_at_factors(vae, train, val)
    before = pv.evaluate(vae, val, num_samples=100, proposal="encoder").nll
    pv.fit(vae, train, val, epochs=20, learning_rate=2e-3, keep_start=True, progress=False)
    assert pv.evaluate(vae, val, num_samples=100, proposal="encoder").nll < before + 0.05


def test_the_start_is_kept_if_no_epoch_validates_better(tmp_path):
    x = rows()
    vae = build(x)
    pv.start_at_factors(vae, x[:200], x[200:])
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    options = dict(epochs=4, learning_rate=3.0, ema_decay=0.5, patience=3, progress=False)
    history = pv.fit(vae, x[:200], x[200:], keep_start=True, out=tmp_path, **options)
    assert (history.best_epoch, history.epochs, history.stopped) == (0, 3, "patience")
    assert history.best_val_loss < min(r["val_loss"] for r in history.records)
    assert all(torch.equal(weights[name], tensor) for name, tensor in vae.state_dict().items())


def test_a_validated_start_changes_no_noise_and_a_resumed_run_is_exact(tmp_path):
    x, weights = rows(), {}
    options = dict(learning_rate=1e-3, ema_decay=0.5, progress=False)
    for name, keep in (("plain", False), ("kept", True), ("parts", True)):
        vae = build(x)
        pv.start_at_factors(vae, x[:200], x[200:])
        folder = tmp_path / name
        for epochs in (1, 4) if name == "parts" else (4,):
            history = pv.fit(
                vae,
                x[:200],
                x[200:],
                epochs=epochs,
                out=folder,
                resume=True,
                keep_start=keep,
                **options,
            )
        losses = [record["val_loss"] for record in history.records]
        weights[name] = losses, history.best_epoch, history.best_val_loss, vae.state_dict()
    assert weights["plain"][0] == weights["kept"][0] == weights["parts"][0]
    assert weights["kept"][1:3] == weights["parts"][1:3]
    assert all(torch.equal(weights["kept"][3][k], v) for k, v in weights["parts"][3].items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.likelihood.__dict__["_modules"].update(network=pv.MLP(L, [8])), "SkipMLP"),
        (lambda v: setattr(v, "posterior", nn.Identity()), "NormalPosterior"),
        (
            lambda v: setattr(v, "likelihood", pv.BernoulliLikelihood(pv.SkipMLP(L, [8]), (D,))),
            "real elements",
        ),
    ],
)
def test_other_parts_are_refused(change, message):
    vae = build(rows())
    change(vae)
    with pytest.raises(ValueError, match=message):
        pv.start_at_factors(vae, rows())


def signal(n=240, seed=0):
    """Smooth rows with heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(n, D, generator=generator).cumsum(-1)
    return steps * torch.randn(n, 1, generator=generator).exp() + torch.arange(D)


def test_at_a_t_of_normal_rows_the_bound_is_its_log_likelihood_for_every_draw():
    x, val = rows(4000), rows(200, seed=1)
    vae = build(x, likelihood=StudentTLikelihood)
    pv.start_at_student_t(vae, x, val)
    t = pv.best_density(x, val, only="multivariate t")
    assert t.model.df > 100
    with torch.no_grad():
        found = bound(without_corrections(vae), val)
    # The sum of a normal and a t is nearly one if the t is nearly normal.
    assert (found - t.log_prob(val)).abs().mean() < 0.05


@pytest.mark.slow
def test_at_a_t_of_heavy_tails_the_model_is_close_to_it_and_z_in_use():
    x, val = signal(2000), signal(400, seed=1)
    vae = build(x, likelihood=StudentTLikelihood)
    pv.start_at_student_t(vae, x, val)
    expected = pv.best_density(x, val, only="multivariate t").log_prob(val)
    assert (pv.log_marginal(vae, val, num_samples=400) - expected).mean().abs() < 0.2
    assert pv.evaluate(vae, val, num_samples=50).kl > 0.5


def test_a_t_in_other_units_is_the_same_start():
    x, unit = signal(), torch.tensor([8.0, 0.5, 1.0, 2.0, 1024.0])
    scores = []
    for rows in (x, x * unit):
        vae = build(rows, likelihood=StudentTLikelihood)
        pv.start_at_student_t(vae, rows[:180], rows[180:])
        scores.append(pv.log_marginal(vae, rows[180:], num_samples=20, proposal="encoder"))
    torch.testing.assert_close(scores[0], scores[1] + unit.log().sum())


def test_a_t_on_the_scale_of_a_power_transform_is_one_there():
    x = signal().exp().clamp(max=1e3)
    powers = pv.YeoJohnson.of(x)
    likelihood = pv.PowerLikelihood(StudentTLikelihood(pv.SkipMLP(L, [8]), (D,)), powers)
    likelihood.initialize_from(x)
    posterior = pv.PowerPosterior(pv.NormalPosterior(pv.SkipMLP(D, [8]), L), powers)
    vae = pv.VAE(pv.NormalPrior(L), posterior, likelihood)
    pv.start_at_student_t(vae, x[:180], x[180:])
    moved = powers(x)
    classical = pv.best_density(moved[:180], moved[180:], only="multivariate t")
    expected = classical.log_prob(moved) + powers.log_slope(x)
    assert (pv.log_marginal(vae, x, num_samples=200) - expected).mean().abs() < 0.3


@pytest.mark.parametrize(
    ("likelihood", "options"),
    [(NormalLikelihood, {}), (StudentTLikelihood, {"full": False}), (LowRankNormalLikelihood, {})],
)
def test_parts_that_cannot_be_a_t_are_refused(likelihood, options):
    vae = build(signal(), likelihood=likelihood, **options)
    with pytest.raises(ValueError, match="StudentTLikelihood with full=True"):
        pv.start_at_student_t(vae, signal())
