"""Priors: refusals, learned parameters, and a VampPrior with each posterior."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from registry import POSTERIORS, PRIORS, OwnPosterior, cases, make_vae, scramble

from pyro_vaes import flows
from pyro_vaes.core.looking import mean_of
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.priors import FlowPrior, MixturePrior, NormalPrior, VampPrior

pytestmark = pytest.mark.usefixtures("float64")


def normal(num_labels=0, event_shape=None):
    return NormalPosterior(MLP(4 + num_labels, [8]), 2, event_shape, num_labels)


def planar():
    return FlowPosterior(normal(), flows.planar(2, 1))


U = torch.rand(5, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalPrior(0), "Expected latent_dim .*; got 0"),
        (lambda: MixturePrior(2, 0), "Expected num_components .*; got 0"),
        (lambda: MixturePrior(2, -3), "Expected num_components .*; got -3"),
        (lambda: FlowPrior(3, flows.maf(2, 1)), r"latent_dim=3; got flows\.maf\(2, 1\)"),
        (
            lambda: FlowPrior(2, flows.planar(2, 1)),
            r"scores any z for a prior; got flows\.planar\(2, 1\), which scores only its own draws",
        ),
        (lambda: VampPrior(planar(), U), r"scores any z for a VampPrior.* posterior\.base"),
        (lambda: VampPrior(normal(), torch.rand(5, 3)), r"\(K, 4\); got \(5, 3\)"),
        (lambda: VampPrior(normal(), torch.rand(4)), r"\(K, 4\); got \(4,\)"),
        (lambda: VampPrior(normal(), torch.rand(0, 4)), "at least one pseudo-input; got none"),
        (lambda: VampPrior(normal(), 9 * U, bounds=(0, 1)), r"within bounds \(0\.0, 1\.0\); got"),
        (lambda: VampPrior(normal(), U, bounds=(1, 0)), "Expected .*bounds"),
        (lambda: VampPrior(normal(3), U), "one label for each of 5 pseudo-inputs .*; got None"),
        (
            lambda: VampPrior(normal(3), U, labels=torch.zeros(4)),
            r"one label for each of 5 pseudo-inputs .*; got \(4,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["normal", "mixture", "iaf", "maf", "realnvp"])
def test_a_conditional_prior_asks_for_labels(name):
    with pytest.raises(ValueError, match=r"Expected labels y in 0\.\.2 .*; got none"):
        PRIORS[name].make(2, num_labels=3)()


@pytest.mark.parametrize(("name", "num_labels"), cases(PRIORS))
def test_every_parameter_learns(name, num_labels):
    prior = PRIORS[name].make(3, num_labels=num_labels)
    y = (torch.arange(6) % num_labels,) if num_labels else ()
    z = torch.randn(6, 3, requires_grad=True)
    prior(*y).log_prob(z).sum().backward()
    lone = [n for n, p in prior.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not lone


def test_the_standard_normal():
    prior, z = NormalPrior(3), torch.randn(7, 3)
    assert not list(prior.parameters())
    torch.testing.assert_close(prior().log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(-1))


@pytest.mark.parametrize("num_labels", [0, 3])
def test_a_mixture_learns_its_weights_unless_told_not_to(num_labels):
    learned = MixturePrior(2, 4, num_labels)
    uniform = MixturePrior(2, 4, num_labels, learn_weights=False)
    assert set(dict(learned.named_parameters())) == {"loc", "log_scale", "logits"}
    assert set(dict(uniform.named_parameters())) == {"loc", "log_scale"}
    y = (torch.tensor([0, 2]),) if num_labels else ()
    weights = uniform(*y).mixture_distribution.probs
    torch.testing.assert_close(weights, torch.full_like(weights, 0.25))


def test_each_label_has_a_mixture_of_its_own():
    prior = scramble(MixturePrior(2, 4, num_labels=3))
    y, z = torch.tensor([2, 0]), torch.randn(2, 2)
    for i, label in enumerate(y):
        alone = dist.MixtureSameFamily(
            dist.Categorical(logits=prior.logits[label]),
            dist.Normal(prior.loc[label], prior.log_scale[label].exp()).to_event(1),
        )
        torch.testing.assert_close(prior(y).log_prob(z)[i], alone.log_prob(z[i]))


# --- VampPrior ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in POSTERIORS.items() if case.scores])
def test_vamp_mixes_any_posterior_that_scores(name):
    posterior = POSTERIORS[name].make(2, (4,))
    prior = VampPrior(posterior, U)()
    z = torch.randn(7, 2)
    each = torch.stack([posterior(u).log_prob(z) for u in U])
    torch.testing.assert_close(prior.log_prob(z), each.logsumexp(0) - torch.tensor(5.0).log())


@pytest.mark.parametrize("name", [name for name, case in POSTERIORS.items() if not case.scores])
def test_vamp_takes_the_base_of_a_posterior_that_does_not(name):
    posterior = POSTERIORS[name].make(2, (4,))
    with pytest.raises(ValueError, match="scores only its own draws") as refusal:
        VampPrior(posterior, U)
    assert ("posterior.base" in str(refusal.value)) == hasattr(posterior, "base")
    base = getattr(posterior, "base", None) or posterior.first
    assert VampPrior(base, U)().log_prob(torch.randn(7, base.latent_dim)).shape == (7,)


def test_vamp_shares_its_posterior():
    vae = make_vae("vamp")
    assert vae.prior.posterior is vae.posterior
    z = torch.randn(2)
    before = vae.p_z().log_prob(z)
    scramble(vae.posterior)
    assert vae.p_z().log_prob(z) != before


def test_pseudo_inputs_are_learned_copies_in_the_units_of_the_data():
    posterior = normal()
    posterior.set_x_range(0, 16)
    given = torch.randint(0, 17, (5, 4))
    prior = VampPrior(posterior, given)
    assert isinstance(prior.pseudo_inputs, torch.nn.Parameter)
    components = prior().component_distribution
    torch.testing.assert_close(components.mean, posterior(given).mean)
    with torch.no_grad():
        prior.pseudo_inputs.zero_()
    assert given.max() > 0


def test_bounds_hold_the_pseudo_inputs():
    posterior = normal()
    prior = VampPrior(posterior, U, bounds=(0, 1))
    with torch.no_grad():
        prior.pseudo_inputs.copy_(10 * torch.randn(5, 4))
    inside = prior.pseudo_inputs.clamp(0, 1)
    torch.testing.assert_close(prior().component_distribution.mean, posterior(inside).mean)
    unbounded = VampPrior(posterior, 10 * U)
    assert unbounded().component_distribution.mean.isfinite().all()


def test_vamp_weights_are_uniform_unless_learned():
    assert "logits" not in dict(VampPrior(normal(), U).named_parameters())
    prior = VampPrior(normal(), U, learn_weights=True)
    with torch.no_grad():
        prior.logits.copy_(torch.arange(5.0))
    torch.testing.assert_close(prior().mixture_distribution.probs, torch.arange(5.0).softmax(0))


def test_a_labelled_vamp_mixes_the_pseudo_inputs_of_the_label():
    posterior, labels = normal(3), torch.tensor([0, 1, 1, 2, 0])
    prior = VampPrior(posterior, U, labels=labels)
    z = torch.randn(3, 2)
    given = prior(torch.tensor([0, 1, 2])).log_prob(z)
    for label in range(3):
        own = labels == label
        each = posterior(U[own], labels[own]).log_prob(z[label])
        torch.testing.assert_close(given[label], each.exp().mean().log())
    # Without a label, all of them: the mixture of the labels by their number of pseudo-inputs.
    each = posterior(U, labels).log_prob(z[0])
    torch.testing.assert_close(prior().log_prob(z[0]), each.exp().mean().log())


def test_event_shapes_of_pseudo_inputs():
    posterior = normal(event_shape=(1, 2, 2))
    assert VampPrior(posterior, torch.rand(5, 1, 2, 2))().batch_shape == ()
    with pytest.raises(ValueError, match=r"\(K, 1, 2, 2\); got \(5, 4\)"):
        VampPrior(posterior, U)
    # A user's own posterior has no event_shape: the pseudo-inputs have one.
    assert VampPrior(OwnPosterior(2, (2, 2)), torch.rand(5, 2, 2))().batch_shape == ()


# --- FlowPrior ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iaf", "maf", "realnvp"])
def test_a_flow_prior_is_the_change_of_variables_of_the_standard_normal(name):
    prior = scramble(FlowPrior(3, getattr(flows, name)(3, 2)))
    torch.manual_seed(1)
    z = prior().sample((5,))
    torch.manual_seed(1)
    point = dist.Normal(torch.zeros(3), 1.0).expand([5, 3]).sample()
    score = dist.Normal(0.0, 1.0).log_prob(point).sum(-1)
    for transform in prior.flow():
        image = transform(point)
        score = score - transform.log_abs_det_jacobian(point, image)
        point = image
    torch.testing.assert_close(z, point)
    torch.testing.assert_close(prior().log_prob(z), score)
    assert mean_of(prior()).shape == (3,)
