"""Mixtures are joint, draw what they score, and cost no accuracy."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from helpers import Histogram
from torch import Tensor, nn

from pyro_vaes.core.looking import diagonal_normal
from pyro_vaes.distributions.levels import CategoricalLevels
from pyro_vaes.distributions.mixtures import Mixture, VampDistribution
from pyro_vaes.distributions.normals import (
    diagonal_normal_log_prob,
    full_normal_log_prob,
)
from pyro_vaes.distributions.transformed import FlowDistribution
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.posteriors import NormalPosterior
from pyro_vaes.parts.priors import MixturePrior, VampPrior

FALSE_ALARM = 1e-4


def normals(loc: Tensor, scale: Tensor | float = 1.0) -> dist.Independent:
    return dist.Normal(loc, scale).to_event(1)


def other_than_normal(loc: Tensor) -> dist.TransformedDistribution:
    """The same normals, in a form that the matrix products do not serve."""
    shift = T.AffineTransform(loc, torch.ones_like(loc), event_dim=1)
    return dist.TransformedDistribution(normals(torch.zeros_like(loc)), [shift])


# --- joint --------------------------------------------------------------------------------------

CENTERS = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])


class Shifted(nn.Module):
    """q(z | u) = N(u, 1)."""

    def forward(self, u: Tensor) -> dist.Independent:
        return normals(u)


def as_prior(centers: Tensor) -> MixturePrior:
    prior = MixturePrior(2, 2)
    prior.loc.data = centers
    return prior


@pytest.mark.parametrize(
    "mixture",
    [
        lambda: Mixture(dist.Categorical(torch.ones(2)), normals(CENTERS)),
        lambda: Mixture(dist.Categorical(torch.ones(2)), other_than_normal(CENTERS)),
        lambda: VampDistribution(normals(CENTERS)),
        lambda: as_prior(CENTERS)(),
        lambda: VampPrior(Shifted(), CENTERS)(),
    ],
    ids=["normal", "other", "vamp", "MixturePrior", "VampPrior"],
)
def test_mixtures_are_joint(mixture, float64):
    """A point between the components is far from both, but near in a mixture per dimension."""
    z = torch.tensor([3.0, -3.0])
    exact = -math.log(2 * math.pi) - 18
    per_dimension = -math.log(2 * math.pi) + 2 * math.log((1 + math.exp(-18)) / 2)
    assert (round(exact, 2), round(per_dimension, 2)) == (-19.84, -3.22)
    assert mixture().log_prob(z).item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_equals_pyros_mixture(batch, float64):
    weights = dist.Categorical(logits=torch.randn(*batch, 5))
    components = normals(torch.randn(*batch, 5, 3), torch.rand(*batch, 5, 3) + 0.1)
    ours, pyros = Mixture(weights, components), dist.MixtureSameFamily(weights, components)
    assert (ours.batch_shape, ours.event_shape) == (pyros.batch_shape, pyros.event_shape)
    for value in (torch.randn(3), torch.randn(*batch, 3), torch.randn(7, *batch, 3)):
        torch.testing.assert_close(ours.log_prob(value), pyros.log_prob(value))
    torch.testing.assert_close(ours.mean, pyros.mean)
    torch.testing.assert_close(ours.variance, pyros.variance)


def test_weights_may_have_a_batch_that_components_lack(float64):
    logits, components = torch.randn(4, 5), normals(torch.randn(5, 3))
    mixture = Mixture(dist.Categorical(logits=logits), components)
    assert mixture.batch_shape == (4,)
    z = torch.randn(7, 4, 3)
    for i in range(4):
        one = dist.MixtureSameFamily(dist.Categorical(logits=logits[i]), components)
        torch.testing.assert_close(mixture.log_prob(z)[:, i], one.log_prob(z[:, i]))


def test_other_components_score_as_normal_ones(float64):
    loc, weights = torch.randn(5, 3), dist.Categorical(logits=torch.randn(5))
    z = torch.randn(7, 3)
    assert diagonal_normal(other_than_normal(loc)) is None
    torch.testing.assert_close(
        Mixture(weights, other_than_normal(loc)).log_prob(z),
        Mixture(weights, normals(loc)).log_prob(z),
    )


@pytest.mark.parametrize("form", [normals, other_than_normal])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("expanded", [False, True])
def test_component_frequencies_match_the_weights(form, batch, expanded, float64):
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05]).expand(*batch, 4)
    if batch:
        weights = torch.stack([weights[0], weights[0].flip(-1)])
    centers = 100.0 * torch.arange(4.0).reshape(4, 1).expand(4, 2)
    mixture = Mixture(dist.Categorical(weights), form(centers))
    draws = (mixture.expand((3, *batch)) if expanded else mixture).sample((10_000,))
    component = (draws[..., 0] / 100).round().long()
    for place in [0] if not batch else [0, 1]:
        ours = component[..., place] if batch else component
        counts = torch.bincount(ours.flatten(), minlength=5).double()
        masses = torch.cat([weights[place] if batch else weights, torch.zeros(1)])
        assert Histogram(counts, masses, 0.0).p_value > FALSE_ALARM


def test_a_component_of_weight_zero_is_never_drawn_and_costs_no_gradient(float64):
    loc = torch.zeros(2, 1, requires_grad=True)
    logits = torch.zeros(2).masked_fill(torch.tensor([False, True]), -torch.inf)
    mixture = VampDistribution(normals(loc + torch.tensor([[0.0], [50.0]])), logits)
    assert mixture.sample((500,)).max() < 10
    mixture.log_prob(torch.ones(1)).backward()
    torch.testing.assert_close(loc.grad, torch.tensor([[1.0], [0.0]]))


def test_dtype_of_draws_and_scores_is_that_of_the_components():
    for dtype in (torch.float32, torch.float64):
        loc = torch.zeros(5, 3, dtype=dtype)
        for components in (normals(loc), other_than_normal(loc)):
            mixture = VampDistribution(components)
            z = mixture.sample((2,))
            assert z.dtype == mixture.log_prob(z).dtype == dtype


def test_pseudo_inputs_at_every_datum_give_the_aggregated_posterior(float64):
    posterior = NormalPosterior(MLP(4, [8]), 2)
    x, z = torch.randn(30, 4), torch.randn(11, 2)
    prior = VampPrior(posterior, x)()
    with torch.no_grad():
        rows = []
        for datum in x:
            q = posterior(datum)
            rows.append(dist.Normal(q.base_dist.loc, q.base_dist.scale).log_prob(z).sum(-1))
    aggregated = torch.stack(rows).exp().mean(0).log()
    torch.testing.assert_close(prior.log_prob(z), aggregated)


# --- the matrix products ------------------------------------------------------------------------


def broadcast(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The plain form in float64."""
    z, loc, scale = z.double(), loc.double(), scale.double()
    return dist.Normal(loc, scale).log_prob(z.unsqueeze(-2)).sum(-1)


@pytest.mark.parametrize("components", [1, 50, 1000])
@pytest.mark.parametrize("dim", [1, 16, 128])
@pytest.mark.parametrize("smallest", [1.0, 1e-3])
def test_matrix_products_equal_the_broadcast_form(components, dim, smallest):
    """Inputs in float32, means many scales from zero, values near some mean and far from others."""
    loc = 3 * torch.randn(components, dim)
    scale = smallest * (1 + torch.rand(components, dim))
    nearest = torch.randint(0, components, (20,))
    z = loc[nearest] + scale[nearest] * torch.randn(20, dim)
    exact = broadcast(z, loc, scale)
    ours = diagonal_normal_log_prob(z, loc, scale)
    assert ours.dtype == torch.float32
    # No worse than the exact number rounded to float32, to within a few of its last digits.
    torch.testing.assert_close(ours.double(), exact, rtol=3e-7, atol=1e-5)
    torch.testing.assert_close(
        ours.double().logsumexp(-1), exact.logsumexp(-1), rtol=3e-7, atol=1e-5
    )


def gradients(score, *parameters):
    return torch.autograd.grad(score(*parameters).logsumexp(-1).sum(), parameters)


def test_matrix_products_have_the_gradients_of_the_broadcast_form():
    loc = (3 * torch.randn(50, 8)).requires_grad_()
    scale = torch.exp(torch.rand(50, 8).log() - 3).requires_grad_()
    z = (loc[:10] + 0.01 * torch.randn(10, 8)).detach().requires_grad_()
    ours, exact = (gradients(f, z, loc, scale) for f in (diagonal_normal_log_prob, broadcast))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_matrix_products_take_batches_of_mixtures(batch, float64):
    loc, scale = torch.randn(*batch, 5, 3), torch.rand(*batch, 5, 3) + 0.1
    for shape in [(3,), (*batch, 3), (7, *batch, 3), (2, 7, *batch, 3)]:
        z = torch.randn(shape)
        torch.testing.assert_close(
            diagonal_normal_log_prob(z, loc, scale), broadcast(z, loc, scale)
        )


def full_factors(components: int, dim: int, smallest: float) -> Tensor:
    """Factors as of a posterior: a scale for each row of a unit lower triangle."""
    scale = smallest * (1 + torch.rand(components, dim, 1))
    return scale * (torch.eye(dim) + torch.randn(components, dim, dim).tril(-1) / dim**0.5)


def solved(z: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """PyTorch's own form in float64."""
    normal = dist.MultivariateNormal(loc.double(), scale_tril=scale_tril.double())
    return normal.log_prob(z.double().unsqueeze(-2))


@pytest.mark.parametrize("components", [1, 200])
@pytest.mark.parametrize("dim", [1, 2, 40])
@pytest.mark.parametrize("smallest", [1.0, 1e-3])
def test_full_covariances_by_matrix_products(components, dim, smallest):
    loc, factor = 3 * torch.randn(components, dim), full_factors(components, dim, smallest)
    nearest = torch.randint(0, components, (20,))
    noise = (factor[nearest] @ torch.randn(20, dim, 1)).squeeze(-1)
    z = loc[nearest] + noise
    ours, exact = full_normal_log_prob(z, loc, factor), solved(z, loc, factor)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=3e-7, atol=1e-5)
    torch.testing.assert_close(full_normal_log_prob(z[None, :4], loc, factor), ours[None, :4])
    mixture = Mixture(
        dist.Categorical(logits=torch.zeros(components)),
        dist.MultivariateNormal(loc, scale_tril=factor),
    )
    torch.testing.assert_close(mixture.log_prob_components(z), ours)


def test_full_covariances_have_the_gradients_of_the_solved_form(float64):
    loc, factor = (3 * torch.randn(50, 8)).requires_grad_(), full_factors(50, 8, 0.1)
    z = (loc[:10] + 0.01 * torch.randn(10, 8)).detach().requires_grad_()
    ours, exact = (
        gradients(f, z, loc, factor.requires_grad_()) for f in (full_normal_log_prob, solved)
    )
    # PyTorch's form looks at the lower triangle alone.
    torch.testing.assert_close((*ours[:2], ours[2].tril()), (*exact[:2], exact[2].tril()))


# --- the others ---------------------------------------------------------------------------------


def test_levels_have_mean_and_variance(float64):
    d = CategoricalLevels(torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]).log())
    torch.testing.assert_close(d.mean, torch.tensor([1.3, 0.0]))
    torch.testing.assert_close(d.variance, torch.tensor([0.2 * 0 + 0.3 + 2.0 - 1.69, 0.0]))
    assert d.expand((4, 2)).mean.shape == (4, 2)


def test_flow_distribution_keeps_the_object_that_a_planar_flow_knows():
    d = FlowDistribution(normals(torch.zeros(5, 2)), [T.Planar(2)])
    z = d.rsample((3,))
    assert d.log_prob(z).shape == (3, 5)
    assert d.expand((3, 5)).log_prob(z).shape == (3, 5)
    with pytest.raises(RuntimeError):
        d.log_prob(torch.zeros(4, 2))
