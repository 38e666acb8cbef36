"""Levels of latents as one event."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from registry import POSTERIORS, make_vae, scramble
from torch import nn

import pyro_vaes as pv
from pyro_vaes.distributions import Chain


class Linear(nn.Module):
    """p(z_1 | z_2) = N(w z_2, s^2), a link with closed forms."""

    latent_dim, event_shape = 1, (1,)

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, above):
        return dist.Normal(self.weight * above, self.scale).to_event(1)


def chain_vae(prior="chain", posterior="chain", **options):
    vae = make_vae(prior, posterior, "normal", latent_dim=3, **options)
    return scramble(vae).double()


def test_a_chain_of_normals_is_the_joint_normal():
    prior = pv.ChainPrior(pv.NormalPrior(1), Linear(2.0, 0.5)).double()
    covariance = torch.tensor([[1.0, 2.0], [2.0, 4.25]], dtype=torch.float64)
    joint = dist.MultivariateNormal(torch.zeros(2).double(), covariance)
    z = torch.randn(7, 5, 2).double()
    torch.testing.assert_close(prior().log_prob(z), joint.log_prob(z))
    torch.manual_seed(0)
    draws = prior().sample((200_000,))
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.05, rtol=0)


@pytest.mark.parametrize("posterior", ["chain", "chain_upward", "chain_given_prior"])
def test_own_draws_are_scored_without_running_a_network_again(posterior):
    vae = chain_vae(posterior=posterior)
    q = vae.q_z(torch.randn(5, 4).double())
    calls = []
    for link in vae.posterior.links:
        link.register_forward_hook(lambda *_: calls.append(1))
    z = q.rsample((2,))
    drawn = len(calls)
    own = q.log_prob(z)
    assert len(calls) == drawn > 0
    torch.testing.assert_close(q.log_prob(z.clone()), own)
    assert len(calls) > drawn
    with torch.no_grad():  # A draw that is changed in place is another value.
        z.add_(1.0)
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
    with torch.inference_mode():  # Where PyTorch does not count changes.
        z = q.rsample((2,))
        drawn = len(calls)
        own = q.log_prob(z)
        assert len(calls) == drawn
        z.add_(1.0)
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
        assert not torch.equal(q.log_prob(z), own)


@pytest.mark.parametrize("link", ["normal", "full_normal", "spline", "maf"])
@pytest.mark.parametrize("reverse", [False, True])
def test_noise_is_coloured_and_whitened_with_the_jacobian_of_autograd(link, reverse):
    part = scramble(POSTERIORS[link].build(2, (1,), 0)).double()
    first = dist.Normal(torch.ones(1).double(), 2.0).to_event(1)
    chain = Chain(first, [part], (1, 2), reverse=reverse)
    noise = torch.randn(5, 3).double()
    z, log_det = chain.colour(noise)
    assert log_det.shape == (5,)
    back, same = chain.whiten(z.clone())
    torch.testing.assert_close(back, noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, log_det, atol=1e-5, rtol=1e-5)
    slopes = torch.autograd.functional.jacobian(lambda e: chain.colour(e[None])[0][0], noise[0])
    torch.testing.assert_close(torch.linalg.slogdet(slopes).logabsdet, log_det[0])
    # Under p the noise of a level is standard, whatever the level above.
    level = chain.level_log_probs(z)[:, 0 if reverse else 1]
    of_noise = noise[:, :2] if reverse else noise[:, 1:]
    standard = dist.Normal(0.0, 1.0).log_prob(of_noise).sum(-1)
    torch.testing.assert_close(level + log_det, standard, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("grad", [True, False])
def test_the_score_of_a_draw_has_the_gradient_of_any_value(draw, grad):
    """Also where the draw has none: by it, score-function estimators train the links."""
    vae = chain_vae()
    q = vae.q_z(torch.randn(5, 4).double())
    with torch.set_grad_enabled(grad):
        z = getattr(q, draw)()
    own, other = (
        torch.autograd.grad(q.log_prob(value).sum(), vae.posterior.links.parameters())
        for value in (z.detach().requires_grad_() if z.requires_grad else z, z.detach().clone())
    )
    torch.testing.assert_close(own, other)


@pytest.mark.parametrize("ask", ["leaf", "retain_grad", "hook"])
def test_a_draw_whose_own_gradient_is_asked_for_is_scored_as_any_value(ask):
    """For Langevin steps from draws of a prior, say: its levels would not pass the gradient on."""
    p = chain_vae().p_z()
    slopes = []
    if ask == "leaf":
        z = p.sample((5,)).requires_grad_()
    else:
        z = p.rsample((5,))
        z.retain_grad() if ask == "retain_grad" else z.register_hook(slopes.append)
    (p.log_prob(z).sum() + 0.0 * z.sum()).backward()
    other = z.detach().clone().requires_grad_()
    (truth,) = torch.autograd.grad(p.log_prob(other).sum(), other)
    torch.testing.assert_close(slopes[0] if slopes else z.grad, truth)


@pytest.mark.parametrize("posterior", ["chain_given_prior", "chain_of_full_given_prior"])
def test_a_link_given_the_prior_starts_at_it(posterior):
    """Where the posterior's links say (0, 1), the levels below the top are those of the prior."""
    vae = chain_vae(posterior=posterior)
    for link in vae.posterior.links:
        for name, parameter in link.named_parameters():
            if not name.startswith("network"):
                nn.init.zeros_(parameter)
    q, p = vae.q_z(torch.randn(5, 4).double()), vae.posterior.prior()
    z = q.rsample((3,))
    torch.testing.assert_close(q.level_log_probs(z)[..., 1], p.level_log_probs(z)[..., 1])


def test_levels_are_laid_out_top_first_whatever_is_drawn_first():
    first = dist.Normal(torch.full((1,), 9.0), 1e-3).to_event(1)
    link = lambda above: dist.Normal(-above.expand(*above.shape[:-1], 2), 1e-3).to_event(1)  # noqa: E731
    down, up = (Chain(first, [link], (1, 2), reverse=reverse) for reverse in (False, True))
    torch.testing.assert_close(down.sample().sign(), torch.tensor([1.0, -1, -1]))
    z = up.sample((4,))
    torch.testing.assert_close(z[0].sign(), torch.tensor([-1.0, -1, 1]))
    torch.testing.assert_close(up.log_prob(z), down.log_prob(z[:, [2, 0, 1]]))


def test_the_levels_share_the_kl_and_the_active_units():
    vae = make_vae("chain", "chain", "normal", latent_dim=3).double()
    found = pv.evaluate(vae, torch.randn(40, 4).double(), num_samples=500, proposal="encoder")
    assert sum(found.level_kls) == pytest.approx(found.kl, rel=0.1)
    assert sum(found.level_active_units) == found.active_units
    assert "KL of each level" in str(found)


def test_what_the_levels_of_other_models_share_has_a_reason():
    x = torch.randn(40, 4).double()
    for names in (("normal", "chain"), ("chain", "chain_upward")):
        report = pv.evaluate(chain_vae(*names), x, num_samples=20, proposal="encoder")
        found = report.to_dict()
        assert found["level_kls"] is None
        assert "levels" in found["level_kls_reason"]
        if names[0] == "chain":  # Which units are active is known whatever is drawn first.
            assert sum(found["level_active_units"]) == found["active_units"]
            assert f"unknown, since {found['level_kls_reason']}" in str(report)
        else:
            assert "no chain" in found["level_active_units_reason"]
            assert "of each level" not in str(report)


def three_levels(labels):
    """Shared top to bottom: a VampPrior of the posterior's encoder, links relative to p's."""
    torch.manual_seed(0)

    def normal(seen, size):
        return pv.NormalPosterior(pv.MLP(seen + labels, [8]), size, (seen,), labels)

    encoder = normal(4, 2)
    top = pv.NormalPrior(2, labels) if labels else pv.VampPrior(encoder, torch.randn(5, 4))
    prior = pv.ChainPrior(top, normal(2, 1), normal(3, 3))
    posterior = pv.ChainPosterior(encoder, normal(10, 1), normal(11, 3), prior=prior)
    likelihood = pv.NormalLikelihood(pv.MLP(6 + labels, [8]), (4,), num_labels=labels)
    return pv.VAE(prior, posterior, likelihood).double()


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_recorded_steps_of_levels_are_those_of_svi(mode, labels):
    draws = torch.Generator().manual_seed(1)
    batches = [torch.randn(n, 4, generator=draws).double() for n in (8, 5, 8)]

    def trained(kind, **options):
        pyro.clear_param_store()
        vae = three_levels(labels)
        svi = kind(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO(), **options)
        torch.manual_seed(3)
        y = [(torch.arange(len(x)) % labels,) if labels else () for x in batches]
        losses = [svi.step(x, *label) for x, label in zip(batches, y, strict=True)]
        weights = torch.cat([p.detach().flatten() for p in vae.parameters()])
        return torch.tensor(losses, dtype=torch.float64), weights

    for ours, theirs in zip(trained(pv.FastSVI, mode=mode), trained(SVI), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("posterior", ["chain", "chain_given_prior", "chain_of_full_given_prior"])
def test_the_top_is_refitted_under_the_links_that_the_posterior_shares(posterior):
    vae = make_vae("chain", posterior, "normal", latent_dim=3).double()
    links = (vae.posterior.prior or vae.prior).links
    before = [p.clone() for p in [*vae.posterior.parameters(), *links.parameters()]]
    top = pv.MixturePrior(vae.prior.level_dims[0], 3).double()
    start = [p.clone() for p in top.parameters()]
    x = torch.randn(40, 4).double()
    better, _ = pv.refit_prior(vae, pv.ChainPrior(top, *links), x, epochs=1, progress=False)
    assert not any(map(torch.equal, top.parameters(), start))
    if posterior != "chain":
        after = [*vae.posterior.parameters(), *links.parameters()]
        assert all(map(torch.equal, after, before))
    assert len(pv.evaluate(better, x, num_samples=20, proposal="encoder").level_kls) == 2


def test_a_prior_of_a_mixture_is_drawn_without_gradients():
    prior = pv.ChainPrior(pv.MixturePrior(2, 3), pv.NormalPosterior(pv.MLP(2, [4]), 1))
    assert not prior().has_rsample
    assert prior().sample((3,)).shape == (3, 3)


def test_parts_that_do_not_fit_are_refused():
    link = pv.NormalPosterior(pv.MLP(2, [4]), 1)
    with pytest.raises(ValueError, match=r"event_shape \(3,\); got \(2,\)"):
        pv.ChainPrior(pv.NormalPrior(3), link)
    with pytest.raises(ValueError, match="at least one link"):
        pv.ChainPrior(pv.NormalPrior(3))
    with pytest.raises(ValueError, match="latent_dim, the size of its level; got Identity"):
        pv.ChainPrior(nn.Identity(), link)
    unsized = nn.Identity()
    unsized.latent_dim = 1
    with pytest.raises(ValueError, match=r"event_shape, \(2,\), the shape of what"):
        pv.ChainPrior(pv.NormalPrior(2), unsized)
    planar = pv.FlowPosterior(link, pv.flows.planar(1, 1))
    with pytest.raises(ValueError, match="scores only its own draws"):
        pv.ChainPrior(pv.NormalPrior(2), planar)
    prior = pv.ChainPrior(pv.NormalPrior(2), link)
    encoder = pv.NormalPosterior(pv.MLP(4, [8]), 2)
    with pytest.raises(ValueError, match="8 features and 2 latents"):
        pv.ChainPosterior(encoder, link)
    q_link = pv.NormalPosterior(pv.MLP(10, [8]), 1)
    with pytest.raises(ValueError, match="top down"):
        pv.ChainPosterior(encoder, q_link, upward=True, prior=prior)
    wide = pv.NormalPosterior(pv.MLP(10, [8]), 3)
    with pytest.raises(ValueError, match=r"levels \(2, 3\); got \(2, 1\)"):
        pv.ChainPosterior(encoder, wide, prior=prior)
    flow = pv.FlowPosterior(pv.NormalPosterior(pv.MLP(10, [8]), 1), pv.flows.iaf(1, 1))
    with pytest.raises(ValueError, match="those of the prior diagonal"):
        pv.ChainPosterior(encoder, flow, prior=prior)(torch.zeros(3, 4)).sample()


class Own(nn.Module):
    """A user's own part over a row: a distribution made of what a linear layer gives."""

    def __init__(self, seen, size, make, count=2):
        super().__init__()
        self.latent_dim, self.event_shape, self.out_features = size, (seen,), seen
        self.linear, self.make, self.count = nn.Linear(seen, count * size), make, count

    def features(self, x):
        return x

    def from_features(self, rows):
        return self.make(*self.linear(rows).chunk(self.count, -1))

    def forward(self, rows):
        return self.from_features(rows)


def normal_of(loc, log_scale):
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def mixture_of(left, right):
    loc = torch.stack([left, right], -2)
    equal = dist.Categorical(logits=torch.zeros_like(loc[..., 0]))
    return dist.MixtureSameFamily(equal, dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("levels", [False, True])
def test_a_first_posterior_of_ones_own_needs_no_units(levels):
    posterior = pv.ChainPosterior(Own(4, 2, normal_of), Own(6, 1, normal_of))
    likelihood = (
        pv.CategoricalLikelihood(pv.MLP(3, [4]), (4,), 3)
        if levels
        else pv.NormalLikelihood(pv.MLP(3, [4]), (4,))
    )
    prior = pv.ChainPrior(pv.NormalPrior(2), Own(2, 1, normal_of))
    vae = pv.VAE(prior, posterior, likelihood).double()
    assert vae.encode(torch.ones(5, 4)).shape == (5, 3)
    assert pv.fit(vae, torch.ones(8, 4), epochs=1, progress=False).epochs == 1


def test_a_flow_without_features_is_no_first_posterior():
    class Base(nn.Module):
        latent_dim, event_shape = 2, (4,)

        def forward(self, x):
            return dist.Normal(x[..., :2], 1.0).to_event(1)

    flow = pv.FlowPosterior(Base(), pv.flows.iaf(2, 1))
    with pytest.raises(ValueError, match="first posterior with features"):
        pv.ChainPosterior(flow, Own(6, 1, normal_of))


def test_a_link_that_ignores_the_levels_above_is_expanded():
    one = Own(1, 2, lambda loc, log_scale: normal_of(loc[0] * 0, log_scale[0] * 0))
    p = pv.ChainPrior(pv.NormalPrior(1), one).double()()
    z = p.sample((3, 4))
    assert z.shape == (3, 4, 3)
    torch.testing.assert_close(p.log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_a_link_of_another_shape_is_refused_in_a_line():
    flat = Own(1, 2, lambda loc, log_scale: dist.Normal(loc, log_scale.exp()))
    p = pv.ChainPrior(pv.NormalPrior(1), flat).double()()
    for use in (lambda: p.sample((3,)), lambda: p.log_prob(torch.zeros(3, 3).double())):
        with pytest.raises(ValueError, match=r"event shape \(2,\).*to_event.*event shape \(\)"):
            use()


def test_links_without_rsample_serve_where_draws_need_no_gradient():
    """A mixture as a link: of a prior for all, of a posterior in evaluation."""
    mixture = pv.ChainPrior(pv.NormalPrior(1), Own(1, 2, mixture_of))
    normal = pv.ChainPosterior(pv.NormalPosterior(pv.MLP(4, [4]), 1), Own(5, 2, normal_of))
    likelihood = pv.NormalLikelihood(pv.MLP(3, [4]), (4,))
    vae, x = pv.VAE(mixture, normal, likelihood).double(), torch.randn(20, 4).double()
    pv.fit(vae, x, epochs=1, objective=pv.InfoELBO(0.0, 3.0, pv.MMD()), progress=False)
    found = [
        pv.evaluate(vae, x, num_samples=2000, proposal=name).nll for name in ("auto", "encoder")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.05)
    mixed = pv.ChainPosterior(pv.NormalPosterior(pv.MLP(4, [4]), 1), Own(5, 2, mixture_of))
    vae = pv.VAE(mixture, mixed, likelihood).double()
    assert vae.encode(x, num_samples=2).shape == (2, 20, 3)
    assert pv.evaluate(vae, x, num_samples=50, proposal="encoder").nll > 0
    with pytest.raises(NotImplementedError, match="levels that are reparameterised; got Mixture"):
        pv.ELBO().loss(vae.model, vae.guide, x)


@pytest.mark.slow
def test_labels_of_a_link_alone_make_one_level_for_each():
    """The top is one for all labels; everything that draws from p(z | y) draws one for each."""
    top, link = pv.NormalPrior(1), pv.NormalPosterior(pv.MLP(1 + 3, [4]), 1, (1,), 3)
    posterior = pv.ChainPosterior(pv.NormalPosterior(pv.MLP(4, [4]), 1), Own(5, 1, normal_of))
    vae = pv.VAE(pv.ChainPrior(top, link), posterior, pv.NormalLikelihood(pv.MLP(2, [4]), (4,)))
    vae, x, y = vae.double(), torch.randn(6, 4).double(), torch.arange(6) % 3
    p = vae.p_z(y)
    assert p.batch_shape == (6,) and p.sample((2,)).shape == (2, 6, 2)
    z = torch.randn(2).double()
    each = torch.stack([vae.p_z(label).log_prob(z) for label in y])
    torch.testing.assert_close(p.log_prob(z), each)
    assert vae.traverse(x, y=y, steps=3).shape == (6, 2, 3, 4)
    grid = torch.linspace(-8, 8, 161).double()
    plane = torch.cartesian_prod(grid, grid)
    for name in ("auto", "annealed"):
        report = pv.evaluate(vae, pv.Split(x, y), num_samples=2000, proposal=name)
        for i, found in enumerate(report.log_marginal):
            terms = vae.p_z(y[i]).log_prob(plane) + vae.p_x(plane).log_prob(x[i])
            truth = terms.logsumexp(0) + 2 * (grid[1] - grid[0]).log()
            torch.testing.assert_close(found, truth.detach(), atol=0.05, rtol=0)


class Positive(nn.Module):
    """A top of one's own that lives on positive values."""

    latent_dim = 1

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([1.5]))

    def forward(self):
        return dist.Exponential(self.rate).to_event(1)


def lognormal_of(loc, log_scale):
    return dist.LogNormal(loc, log_scale.exp()).to_event(1)


def test_no_proposal_over_all_values_is_fitted_to_levels_that_are_positive():
    """PyTorch's exponential has a density below 0, too, where nobody validates."""
    prior = pv.ChainPrior(Positive(), Own(1, 1, normal_of))
    posterior = pv.ChainPosterior(Own(4, 1, lognormal_of), Own(5, 1, normal_of))
    for parameter in [*posterior.parameters(), *prior.links.parameters()]:
        nn.init.zeros_(parameter)  # A good proposal.
    vae = pv.VAE(prior, posterior, pv.NormalLikelihood(pv.MLP(2, [4]), (4,))).double()
    for chain in (vae.p_z(), vae.q_z(torch.zeros(2, 4).double())):
        value = torch.tensor([[-1.0, -1.0], [1.0, -1.0]]).double()
        assert chain.support.check(value).tolist() == [False, True]
    x = torch.randn(5, 4).double()
    report = pv.evaluate(vae, x, num_samples=4000)
    assert report.proposal == "encoder"
    assert "not in all of R^D" in " ".join([*report.warnings, *report.proposal_notes])
    grid = torch.linspace(-9, 9, 361).double()
    plane = torch.cartesian_prod(grid[grid > 0] - 0.025, grid)
    log_z = vae.p_z().log_prob(plane)
    for seen, found in zip(x, report.log_marginal, strict=True):
        terms = log_z + vae.p_x(plane).log_prob(seen)
        truth = terms.logsumexp(0) + 2 * (grid[1] - grid[0]).log()
        torch.testing.assert_close(found, truth.detach(), atol=0.1, rtol=0)


def levels_below(kind):
    """A model of two levels, the lower one of q(z | x) made by ``kind`` from two numbers."""
    posterior = pv.ChainPosterior(Own(4, 1, normal_of), Own(5, 1, kind))
    prior = pv.ChainPrior(pv.NormalPrior(1), Own(1, 1, normal_of))
    return pv.VAE(prior, posterior, pv.NormalLikelihood(pv.MLP(2, [4]), (4,))).double()


@pytest.mark.parametrize("proposal", ["auto", "encoder"])
def test_the_bound_of_a_level_that_is_a_point_is_no_number(proposal):
    vae = levels_below(lambda loc, _: dist.Delta(loc).to_event(1))
    report = pv.evaluate(vae, torch.randn(5, 4).double(), num_samples=50, proposal=proposal)
    assert report.elbo == -math.inf
    assert "a point (Delta)" in report.warnings[0]
    assert math.isfinite(report.nll) == (proposal == "auto")
    assert report.level_kls is None


def test_a_level_whose_density_is_hidden_is_refused():
    vae = levels_below(lambda loc, _: dist.Normal(loc, 1.0).mask(False).to_event(1))
    for work in (pv.evaluate, pv.fit):
        with pytest.raises(ValueError, match="posterior that is a density; got one with a mask"):
            work(vae, torch.randn(5, 4).double())


def test_the_support_of_usual_levels_is_all_of_r_d():
    for names in (("chain", "chain"), ("chain_of_vamp", "chain_upward")):
        vae = chain_vae(*names)
        for chain in (vae.p_z(), vae.q_z(torch.randn(5, 4).double())):
            state = torch.get_rng_state()
            assert chain.support is dist.constraints.real_vector
            assert torch.equal(state, torch.get_rng_state())
            with pytest.raises(ValueError, match=r"event shape \(3,\); got \(5, 2\)"):
                chain.log_prob(torch.zeros(5, 2).double())
