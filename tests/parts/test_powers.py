"""Power transforms: SciPy's, onto the line, with the exact Jacobian, and learned with a VAE."""

from __future__ import annotations

import math

import pytest
import torch
from registry import LIKELIHOODS, POSTERIORS, make_vae
from scipy import stats

import pyro_vaes as pv
from pyro_vaes.distributions.powers import power, root, slope
from pyro_vaes.parts.powers import PowerLikelihood, PowerPosterior, YeoJohnson

pytestmark = pytest.mark.usefixtures("float64")

EXPONENTS = [0.0, 1e-3, 0.3, 1.0, 1.7, 2.0]
exponents = pytest.mark.parametrize("p", EXPONENTS)


def skewed(n=400):
    torch.manual_seed(0)
    z = torch.randn(n, 1)
    x = torch.cat([z, -z, 0.5 * z], 1) + 0.3 * torch.randn(n, 3)
    return torch.stack([x[:, 0].exp(), -(x[:, 1].exp()), x[:, 2]], 1) * torch.tensor([1e4, 1, 0.1])


@exponents
def test_the_transform_is_scipys_and_its_inverse_and_slope_are_exact(p):
    u = torch.cat([torch.linspace(-30, 30, 81), torch.tensor([0.0, 1e-12, -1e-12])])
    v = power(u, torch.tensor(p))
    torch.testing.assert_close(v, torch.as_tensor(stats.yeojohnson(u.numpy(), p)))
    torch.testing.assert_close(root(v, torch.tensor(p)), u, atol=1e-9, rtol=1e-9)
    u.requires_grad_()
    (derivative,) = torch.autograd.grad(power(u, torch.tensor(p)).sum(), u)
    away = u.detach() != 0
    torch.testing.assert_close(slope(u, torch.tensor(p))[away], derivative.log()[away])
    assert derivative[away].isfinite().all()


@exponents
def test_the_line_goes_onto_the_line(p):
    v = torch.tensor([-500.0, -20.0, 20.0, 500.0])
    back = power(root(v, torch.tensor(p)), torch.tensor(p))
    torch.testing.assert_close(back, v)


def test_exponents_are_the_most_likely_ones_between_0_and_2():
    x = skewed()
    found = YeoJohnson.of(x).exponent
    # On standardised values a lognormal wants less than 0, and is held there.
    assert found[0] == 0.0 and found[1] == 2.0
    assert abs(found[2] - 1) < 0.2
    center, spread = x.mean(0), x.std(0, correction=0)
    u = ((x - center) / spread)[:, 2].numpy()
    assert found[2] == pytest.approx(stats.yeojohnson_normmax(u), abs=1e-3)


def test_units_gaps_and_columns_that_never_vary_leave_exponents_as_they_are():
    x = skewed()
    plain = YeoJohnson.of(x)
    torch.testing.assert_close(
        YeoJohnson.of(1e-3 * x + 50).exponent, plain.exponent, atol=1e-4, rtol=0
    )
    gappy = torch.cat([x, torch.full((5, 3), torch.nan)])
    torch.testing.assert_close(YeoJohnson.of(gappy).exponent, plain.exponent)
    assert YeoJohnson.of(torch.full((9, 2), 7.0)).exponent.tolist() == [1.0, 1.0]


def test_log_p_is_that_of_transformed_data_and_the_slope():
    x = skewed()
    powers = YeoJohnson.of(x)
    base = pv.StudentTLikelihood(pv.MLP(2, [8]), (3,))
    likelihood = PowerLikelihood(base, powers)
    likelihood.initialize_from(x)
    z = torch.randn(len(x), 2)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(powers, row).slogdet()[1] for row in x[:20]]
    )
    torch.testing.assert_close(powers.log_slope(x[:20]), jacobian)
    expected = base(z[:20]).log_prob(powers(x[:20])) + jacobian
    torch.testing.assert_close(likelihood(z[:20]).log_prob(x[:20]), expected)
    draws = likelihood(z[:2]).sample((20_000,))
    medians, there = draws.median(0).values, likelihood(z[:2])
    centre = there.from_averages(there.averages)
    torch.testing.assert_close(powers(medians), powers(centre), atol=0.1, rtol=0)
    with pytest.raises(NotImplementedError):
        _ = there.mean


def test_a_vae_on_this_scale_learns_gains_and_comes_back(tmp_path):
    x = skewed()
    found = {}
    for powered in (False, True):
        torch.manual_seed(0)
        powers = YeoJohnson.of(x[:300])
        seen = powers.split(x[:300]) if powered else x[:300]
        base = pv.NormalLikelihood(pv.SkipMLP(1, [8]), (3,))
        base.initialize_from(seen)
        q = pv.NormalPosterior(pv.SkipMLP(3, [8]), 1)
        if powered:
            vae = pv.VAE(
                pv.NormalPrior(1), PowerPosterior(q, powers), PowerLikelihood(base, powers)
            )
        else:
            vae = pv.VAE(pv.NormalPrior(1), q, base)
        pv.start_at_factors(vae, x[:300], x[300:])
        pv.fit(vae, x[:300], x[300:], epochs=10, learning_rate=1e-3, progress=False)
        found[powered] = pv.evaluate(vae, x[300:], num_samples=200)
    assert found[True].nll < found[False].nll - 0.5
    assert found[True].trusted
    pv.save(vae, tmp_path)
    again = pv.load(tmp_path)
    assert again.likelihood.powers is again.posterior.powers
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))
    gappy = x[300:].clone()
    gappy[::2, 0] = torch.nan
    filled = pv.impute(vae, gappy, num_samples=200)
    assert filled.x.isfinite().all()
    wrong = (filled.x[::2, 0] - x[300::2, 0]).abs().median()
    assert wrong < 0.75 * (x[:, 0].median() - x[300::2, 0]).abs().median()


def test_the_start_on_this_scale_is_that_of_transformed_data():
    x = skewed()
    powers = YeoJohnson.of(x)
    bounds = []
    for powered in (False, True):
        torch.manual_seed(0)
        base = pv.NormalLikelihood(pv.SkipMLP(1, [8]), (3,))
        base.initialize_from(powers.split(x))
        q = pv.NormalPosterior(pv.SkipMLP(3, [8]), 1)
        if powered:
            vae = pv.VAE(
                pv.NormalPrior(1), PowerPosterior(q, powers), PowerLikelihood(base, powers)
            )
            pv.start_at_factors(vae, x)
            bounds.append(pv.log_marginal(vae, x, 20, proposal="encoder") - powers.log_slope(x))
        else:
            vae = pv.VAE(pv.NormalPrior(1), q, base)
            pv.start_at_factors(vae, powers(x))
            bounds.append(pv.log_marginal(vae, powers(x), 20, proposal="encoder"))
    torch.testing.assert_close(*bounds)


def test_labels_reach_the_base_and_other_shapes_are_refused():
    posterior = POSTERIORS["power_normal"].make(2, (4,), 3)
    with pytest.raises(ValueError, match="labels"):
        posterior(torch.randn(5, 4))
    assert not make_vae("normal", "power_normal", "power_normal").conditional
    assert make_vae("normal", "power_normal", "power_normal", num_labels=3).conditional
    for part in (LIKELIHOODS["normal"], POSTERIORS["normal"]):
        kind = PowerLikelihood if part is LIKELIHOODS["normal"] else PowerPosterior
        with pytest.raises(ValueError, match=r"data of shape \(4,\).*got one of \(3,\)"):
            kind(part.make(2, (4,)), YeoJohnson((3,)))
    assert math.isclose(float(YeoJohnson((3,)).log_slope(torch.randn(3))), 0.0)
