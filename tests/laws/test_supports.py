"""Parts that live on different sets: log p(x) is right or marked, and no garbage is scored.

Without Pyro's validation a distribution scores values outside of its support like any other.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import transforms

import pyro_vaes as pv
from pyro_vaes.evaluation.scores import score_alone

pytestmark = pytest.mark.usefixtures("float64")


class Part(nn.Module):
    """A user's part: a function that returns a distribution."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, *inputs):
        return self.make(*inputs)


def noisy(z):
    return dist.Normal(z, 0.5).to_event(1)


def near(x):
    return dist.Normal(0.8 * x, 0.5).to_event(1)


def moved(base, loc, scale):
    return dist.TransformedDistribution(base, [transforms.AffineTransform(loc, scale)])


def normal():
    return dist.Normal(torch.zeros(1), 1.0).to_event(1)


POSTERIORS = {
    "interval": lambda x: dist.Uniform(0.8 * x - 0.3, 0.8 * x + 0.3).to_event(1),
    "moved interval": lambda x: moved(
        dist.Uniform(torch.zeros_like(x), 1.0), 0.8 * x - 0.3, 0.6
    ).to_event(1),
    "half line": lambda x: dist.HalfNormal(torch.ones_like(x)).to_event(1),
    "positive": lambda x: dist.LogNormal(0.8 * x, 0.5).to_event(1),
    "unit interval": lambda x: dist.Beta(torch.full_like(x, 2.0), 2.0).to_event(1),
    "angle": lambda x: dist.VonMises(0.8 * x, torch.full_like(x, 5.0)).to_event(1),
    "point": lambda x: dist.Delta(0.8 * x).to_event(1),
    "discrete": lambda x: dist.Poisson(x.exp()).to_event(1),
}


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_posterior_on_less_than_the_priors_support_is_no_bias(posterior):
    """By default the estimate is right; that of the encoder's draws alone is marked."""
    x = normal().sample((60,)) * 1.25**0.5
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(x[:, 0])
    vae = pv.VAE(Part(normal), Part(POSTERIORS[posterior]), Part(noisy))
    report = pv.evaluate(vae, x, num_samples=200)
    assert report.proposal == "refined"
    assert report.trusted
    difference = report.log_marginal - truth
    assert abs(difference.mean()) < 0.02
    assert difference.abs().max() < 0.25
    assert report.encoder_num_unreliable >= 30
    alone = pv.evaluate(vae, x, num_samples=200, proposal="encoder")
    assert alone.trusted is False
    assert "posterior" in alone.warnings[0]
    scores = pv.score(vae, x, num_samples=200, proposal="encoder")
    assert scores.unreliable.sum() == alone.num_unreliable
    with pytest.warns(UserWarning, match="posterior"):
        pv.log_marginal(vae, x, 200, proposal="encoder")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-7, 1e-20])
def test_draws_that_coincide_are_marked(dtype, scale):
    """Their weights are all equal, as those of p(z | x) itself are, and tens of nats off."""
    torch.set_default_dtype(dtype)
    x = 1 + torch.rand(20, 1)
    vae = pv.VAE(Part(normal), Part(lambda x: dist.Normal(x, scale).to_event(1)), Part(noisy))
    report = pv.evaluate(vae, x, num_samples=400)
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(x[:, 0])
    assert (report.log_marginal - truth).abs().max() < 0.25
    alone = pv.evaluate(vae, x, num_samples=400, proposal="encoder")
    assert alone.trusted is False
    if scale < torch.finfo(dtype).eps:
        assert alone.num_unreliable == report.encoder_num_unreliable == len(x)
        with pytest.warns(UserWarning, match="coincide"):
            pv.log_marginal(vae, x, 400, proposal="encoder")
        each = score_alone(vae, x, num_samples=400)
        assert each.unreliable.all() and "coincide" in each.warnings[0]


def test_the_bound_of_a_point_is_no_number():
    vae = pv.VAE(Part(normal), Part(POSTERIORS["point"]), Part(noisy))
    report = pv.evaluate(vae, torch.randn(10, 1), num_samples=50)
    assert report.elbo == -math.inf
    assert math.isfinite(report.nll)
    assert "a point (Delta)" in report.warnings[0]
    assert report.to_dict()["elbo"] is None


PRIORS = {
    "exponential": lambda: dist.Exponential(torch.ones(1)).to_event(1),
    "half line": lambda: dist.HalfNormal(torch.ones(1)).to_event(1),
    "positive": lambda: dist.LogNormal(torch.zeros(1), 0.5).to_event(1),
    "interval": lambda: dist.Uniform(-torch.ones(1), 1.0).to_event(1),
    "moved": lambda: moved(dist.Exponential(torch.ones(1)), -1.0, 1.0).to_event(1),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_draws_outside_of_the_priors_support_have_no_weight(prior):
    x = torch.linspace(-0.5, 1.5, 8).unsqueeze(-1)
    draws = PRIORS[prior]().sample((100_000,))
    truth = torch.stack([noisy(draws).log_prob(row).logsumexp(0) for row in x]) - math.log(100_000)
    vae = pv.VAE(Part(PRIORS[prior]), Part(lambda x: dist.Normal(x, 1.0).to_event(1)), Part(noisy))
    scores = pv.score(vae, x, num_samples=10_000)
    assert (scores.log_p - truth).abs().max() < 0.1
    assert not scores.unreliable.any()
    assert pv.evaluate(vae, x, num_samples=200).elbo == -math.inf


def test_a_model_without_latents_has_its_own_density():
    """Prior and posterior are the same point."""
    point = Part(lambda x=None: dist.Delta(torch.zeros(1 if x is None else x.shape)).to_event(1))
    x = torch.randn(20, 1)
    report = pv.evaluate(pv.VAE(point, point, Part(noisy)), x, num_samples=50)
    torch.testing.assert_close(report.log_marginal, noisy(torch.zeros(1)).log_prob(x))
    assert report.trusted


def test_data_that_the_likelihood_cannot_have_are_refused():
    waiting = Part(lambda z: dist.Exponential(z.exp()).to_event(1))
    vae = pv.VAE(Part(normal), Part(near), waiting)
    x = torch.tensor([[1.0], [-2.0], [3.0]])
    for work in (pv.evaluate, pv.score, pv.log_marginal):
        with pytest.raises(ValueError, match=r"Expected values in .* got -2 to -2 in row 1"):
            work(vae, x, num_samples=30)
    assert pv.evaluate(vae, x.abs(), num_samples=200).trusted


@pytest.mark.parametrize(
    "proposal", ["encoder", "auto", pytest.param("annealed", marks=pytest.mark.slow)]
)
def test_a_support_that_moves_with_z_weighs_as_it_should(proposal):
    """X above z: a Pareto distribution scores what lies below it as if it could."""
    shifted = Part(lambda z: moved(dist.Exponential(torch.ones_like(z)), z, 1.0).to_event(1))
    wide = Part(lambda x: dist.Normal(x - 1, 1.5).to_event(1))
    x = torch.linspace(-1.0, 2.0, 10).unsqueeze(-1)
    # The sum of a normal and an exponential.
    truth = 0.5 - x[:, 0] + dist.Normal(0.0, 1.0).cdf(x[:, 0] - 1).log()
    vae = pv.VAE(Part(normal), wide, shifted)
    scores = pv.score(vae, x, num_samples=4000, proposal=proposal)
    error = (scores.log_p - truth).abs()
    assert ((error < 0.1 + 4 * scores.log_p_se) | scores.unreliable).all()


@pytest.mark.parametrize("hidden", ["prior", "posterior"])
def test_a_mask_on_z_is_refused(hidden):
    parts = {"prior": normal, "posterior": near}
    of = parts[hidden]
    parts[hidden] = lambda *inputs: of(*inputs).mask(False)
    vae = pv.VAE(*map(Part, parts.values()), Part(noisy))
    with pytest.raises(ValueError, match=f"Expected a {hidden} that is a density; got one with a"):
        pv.evaluate(vae, torch.randn(5, 1), num_samples=30)


@pytest.mark.parametrize("proposal", ["encoder", "auto"])
@pytest.mark.parametrize("role", ["prior", "posterior", "likelihood"])
def test_a_part_that_declares_no_event_is_refused_in_a_line(role, proposal):
    parts = {"prior": normal, "posterior": near, "likelihood": noisy}
    of = parts[role]
    parts[role] = lambda *inputs: of(*inputs).base_dist
    vae = pv.VAE(*map(Part, parts.values()))
    with pytest.raises(ValueError, match=rf"Expected a {role} of batch shape .*\.to_event"):
        pv.evaluate(vae, torch.randn(5, 1), num_samples=30, proposal=proposal)


@pytest.mark.parametrize("role", ["prior", "posterior", "likelihood"])
def test_training_refuses_a_part_that_declares_no_event(role):
    """With one element Pyro broadcasts its plate against it, and sums n^2 terms for n data."""
    torch.set_default_dtype(torch.float32)
    parts = {"prior": normal, "posterior": near, "likelihood": noisy}
    of = parts[role]
    parts[role] = lambda *inputs: of(*inputs).base_dist
    vae = pv.VAE(*map(Part, parts.values()))
    vae.weight = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match=rf"Expected a {role} of batch shape .*\.to_event"):
        pv.fit(vae, torch.randn(5, 1), epochs=1, progress=False)


class Holed(dist.Normal):
    """Not a number far out, as a network's scale of 0 or infinity makes it."""

    def log_prob(self, value):
        return super().log_prob(value).masked_fill(value.abs() > 3, torch.nan)


@pytest.mark.parametrize("proposal", ["auto", "encoder"])
def test_a_draw_that_cannot_be_scored_is_marked_and_spoils_no_mean(proposal):
    posterior = Part(lambda x: dist.Independent(Holed(0.8 * x, 0.45), 1))
    vae = pv.VAE(Part(normal), posterior, Part(noisy))
    x = torch.linspace(-3.4, 3.4, 41).unsqueeze(-1)
    right = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)[:, 0]
    found = pv.evaluate(vae, x, num_samples=2000, proposal=proposal)
    marked = found.unreliable
    assert math.isfinite(found.nll) and 0 < marked.sum() < len(x)
    torch.testing.assert_close(found.log_marginal[~marked], right[~marked], atol=0.03, rtol=0)
    assert any("not a number" in warning for warning in found.warnings)
    with pytest.warns(UserWarning, match="not a number at some draws"):
        some = pv.log_marginal(vae, x, num_samples=2000, proposal=proposal)
    torch.testing.assert_close(some, found.log_marginal)


def test_without_a_draw_that_can_be_scored_log_p_is_unknown():
    vae = pv.VAE(
        Part(normal), Part(near), Part(lambda z: dist.Normal(z * torch.nan, 1).to_event(1))
    )
    with pytest.warns(UserWarning, match="not a number"):
        assert pv.log_marginal(vae, torch.zeros(2, 1), num_samples=30).isnan().all()
