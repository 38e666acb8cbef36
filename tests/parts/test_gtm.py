"""Pseudo-inputs within bounds, grids pushed through networks, and normals of full covariance."""

from __future__ import annotations

import copy
import json
import math

import pyro.distributions as dist
import pytest
import torch
from registry import POSTERIORS, scramble
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vaes import flows
from pyro_vaes.core.described import describe, rebuild
from pyro_vaes.distributions import mixtures as distributions
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.gtm import GTMPrior, GTMPseudoInputs
from pyro_vaes.parts.posteriors import FlowPosterior, FullNormalPosterior, NormalPosterior
from pyro_vaes.parts.priors import MixturePrior, VampPrior

pytestmark = pytest.mark.usefixtures("float64")


def normal(num_labels=0, event_shape=None):
    return NormalPosterior(MLP(4 + num_labels, [8]), 2, event_shape, num_labels, x_range=(0, 16))


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            # A view takes no memory, whatever its shape.
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 8)
        return out


# --- FullNormalPosterior ------------------------------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_a_full_normal_starts_as_the_diagonal_one(latent_dim):
    network = MLP(4, [8])
    diagonal = NormalPosterior(network, latent_dim)
    full = FullNormalPosterior(network, latent_dim)
    full.head.load_state_dict(diagonal.head.state_dict())
    x, z = torch.randn(7, 4), torch.randn(7, latent_dim)
    torch.testing.assert_close(full(x).log_prob(z), diagonal(x).log_prob(z))


def test_the_covariance_of_a_full_normal():
    """Each row's own, with every pair correlated, and the density of that covariance."""
    posterior = scramble(FullNormalPosterior(MLP(4, [8]), 3))
    q, z = posterior(torch.randn(5, 4)), torch.randn(5, 3)
    cov = q.covariance_matrix
    solved = torch.linalg.solve(cov, (z - q.mean).unsqueeze(-1)).squeeze(-1)
    exact = -0.5 * (((z - q.mean) * solved).sum(-1) + torch.logdet(cov) + 3 * math.log(2 * math.pi))
    torch.testing.assert_close(q.log_prob(z), exact)
    deviation = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = cov / deviation.unsqueeze(-1) / deviation.unsqueeze(-2)
    rows, columns = torch.tril_indices(3, 3, -1)
    assert (correlation[:, rows, columns].abs() > 1e-3).all()
    assert not torch.allclose(correlation[0], correlation[1])


def test_a_full_normal_is_exact_for_a_linear_gaussian_model():
    """p(x, z) / q(z | x) is p(x) for every z: the bound is tight and has no variance."""
    torch.manual_seed(0)
    loadings, noise = torch.randn(4, 3), 0.5
    precision = torch.eye(3) + loadings.T @ loadings / noise**2
    cov = torch.linalg.inv(precision)
    factor = torch.linalg.cholesky(cov)
    scale = factor.diagonal()
    posterior = FullNormalPosterior(nn.Linear(4, 4), 3)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.zero_()
        posterior.network.weight.copy_(torch.eye(4))
        posterior.head.weight[:3] = cov @ loadings.T / noise**2
        posterior.head.bias[3:] = 2 * scale.log()
        rows, columns = torch.tril_indices(3, 3, -1)
        posterior.below.bias.copy_((factor / scale.unsqueeze(-1))[rows, columns])
    x = torch.randn(6, 4)
    marginal = dist.MultivariateNormal(
        torch.zeros(4), loadings @ loadings.T + noise**2 * torch.eye(4)
    ).log_prob(x)
    q = posterior(x)
    z = q.sample((50,))
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    joint = joint + dist.Normal(z @ loadings.T, noise).log_prob(x).sum(-1)
    torch.testing.assert_close(joint - q.log_prob(z), marginal.expand(50, 6))


def test_a_mixture_of_full_normals_takes_the_memory_of_its_scores():
    """Scoring n values under K components takes (n, K, D), and not a copy of K factors for each."""
    n, components, dim = 300, 40, 12
    prior = VampPrior(scramble(FullNormalPosterior(MLP(4, [8]), dim)), torch.randn(components, 4))
    p, z = prior(), torch.randn(n, dim)
    each = torch.stack([prior.posterior(u).log_prob(z) for u in prior.pseudo_inputs])
    torch.testing.assert_close(p.log_prob(z), each.logsumexp(0) - math.log(components))
    with Largest() as largest, torch.no_grad():
        p.log_prob(z)
        p.expand((n,)).log_prob(z)
    assert largest.numel <= n * components * dim


def test_a_mixture_draws_many_samples_of_other_components_in_pieces(monkeypatch):
    prior = VampPrior(FullNormalPosterior(MLP(4, [8]), 3), torch.randn(500, 4))
    monkeypatch.setattr(distributions, "_PIECE", 2**16)
    with Largest() as largest:
        z = prior().sample((20, 100))
    assert z.shape == (20, 100, 3)
    assert (z[0] != z[1]).all()
    # PyTorch copies the factor, three times the size of a draw, for every draw of a full normal.
    assert largest.numel <= 3 * 2**16 < 20 * 100 * 500 * 3 / 10


# --- bounds -------------------------------------------------------------------------------------

LEVELS = torch.tensor([[0.0, 16.0, 0.0, 16.0], [3.0, 0.1, 15.9, 8.0]], dtype=torch.float64)


def test_pseudo_inputs_start_exactly_where_they_are_told():
    prior = VampPrior(normal(), LEVELS, bounds=(0, 16))
    assert torch.equal(prior.pseudo_inputs, LEVELS)
    assert torch.equal(prior().component_distribution.mean, prior.posterior(LEVELS).mean)
    # Bounds that binary numbers miss, in single precision.
    ends = torch.tensor([[0.1, 0.7, 0.1, 0.7]], dtype=torch.float32)
    prior = VampPrior(normal(), ends, bounds=(0.1, ends.max().item()))
    torch.testing.assert_close(prior.pseudo_inputs, ends.double(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e6])
def test_pseudo_inputs_stay_within_bounds(size):
    prior = VampPrior(normal(), LEVELS, bounds=(0, 16))
    with torch.no_grad():
        prior.inputs.copy_(size * torch.randn(2, 4))
    u = prior.pseudo_inputs
    assert u.min() >= 0 and u.max() <= 16
    torch.testing.assert_close(prior().component_distribution.mean, prior.posterior(u).mean)


def test_the_gradient_of_a_bounded_pseudo_input_is_true_and_never_vanishes():
    prior = VampPrior(normal(), LEVELS, bounds=(0, 16))
    for values in (LEVELS, torch.tensor([[-3.0, 17.0, -40.0, 33.0], [-0.1, 16.1, 32.5, -16.5]])):
        with torch.no_grad():
            prior.inputs.copy_(values)
        (slope,) = torch.autograd.grad(prior.pseudo_inputs.sum(), prior.inputs)
        assert (slope.abs() == 1).all()
        with torch.no_grad():
            before = prior.pseudo_inputs.clone()
            # Inwards, where a bound has two sides.
            step = 1e-6 * torch.where(values == 16, -1.0, 1.0)
            prior.inputs.add_(step)
            change = (prior.pseudo_inputs - before) / step
        torch.testing.assert_close(change, slope, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_pseudo_input_that_is_pushed_out_stays_at_the_bound_and_comes_back(optimizer):
    """A clamp would hold it for ever once it has overstepped."""
    prior = VampPrior(normal(), LEVELS, bounds=(0, 16))
    clamped = nn.Parameter(LEVELS.clone())
    values = {prior.inputs: lambda: prior.pseudo_inputs, clamped: lambda: clamped.clamp(0, 16)}
    outwards = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    tools = {parameter: optimizer([parameter], lr=0.05) for parameter in values}

    def pull(goal):
        for _ in range(200):
            for parameter, value in values.items():
                tools[parameter].zero_grad()
                (value()[0] - goal).square().sum().backward()
                tools[parameter].step()

    pull(LEVELS[0] + outwards)
    torch.testing.assert_close(prior.pseudo_inputs[0], LEVELS[0], rtol=0, atol=0.1)
    pull(LEVELS[0] - outwards)
    torch.testing.assert_close(prior.pseudo_inputs[0], LEVELS[0] - outwards, rtol=0, atol=0.1)
    assert torch.equal(clamped.clamp(0, 16)[0], LEVELS[0]), "a clamp that is not stuck would do"


@pytest.mark.parametrize("bounds", [(1, 1), (2, 0), (0, math.inf), (math.nan, 1)])
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="low < high, both finite"):
        VampPrior(normal(), torch.ones(3, 4), bounds=bounds)
    with pytest.raises(ValueError, match="low < high, both finite"):
        GTMPseudoInputs(MLP(2, [8]), (4,), bounds=bounds)


# --- GTM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_scale", [False, True])
@pytest.mark.parametrize("num_labels", [0, 3])
def test_a_gtm_prior_is_the_joint_mixture_of_its_grid(num_labels, shared_scale):
    prior = scramble(
        GTMPrior(MLP(2 + num_labels, [8]), 3, 4, num_labels, shared_scale=shared_scale)
    )
    y = (torch.tensor([2, 0, 2]),) if num_labels else ()
    z = torch.randn(3, 3)
    scored = prior(*y).log_prob(z)
    for i in range(3):
        each = []
        for k, point in enumerate(prior.points):
            one_hot = torch.eye(3)[y[0][i]] if num_labels else torch.zeros(0)
            features = prior.network(torch.cat([point, one_hot]))
            scale = prior.log_scale if shared_scale else prior.log_scale(features)
            component = dist.Normal(prior.loc(features), scale.exp()).to_event(1)
            logits = prior.logits[y[0][i]] if num_labels else prior.logits
            each.append(logits.log_softmax(0)[k] + component.log_prob(z[i]))
        torch.testing.assert_close(scored[i], torch.stack(each).logsumexp(0))


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("grid_size", [1, 2, 10])
def test_a_gtm_prior_starts_spread_like_the_standard_normal(grid_size, num_labels):
    prior = GTMPrior(MLP(2 + num_labels, [16]), 5, grid_size, num_labels)
    assert prior.num_components == grid_size**2
    assert prior.points.shape == (grid_size**2, 2)
    means = prior.loc(prior.features()).reshape(-1, 5)
    torch.testing.assert_close(means.mean(0), torch.zeros(5), rtol=0, atol=1e-9)
    if grid_size > 1:
        torch.testing.assert_close(means.std(0, correction=0), torch.ones(5))
        torch.testing.assert_close(prior.points.var(0, correction=0), torch.ones(2))


def test_neighbours_on_the_grid_are_neighbours_in_z():
    prior = GTMPrior(MLP(2, [16], "tanh"), 3, 10)
    means = prior.loc(prior.features()).reshape(10, 10, 3)
    near = means.diff(dim=0).norm(dim=-1).mean() + means.diff(dim=1).norm(dim=-1).mean()
    far = (means - means.flip(0, 1)).norm(dim=-1).mean()
    assert near / 2 < far / 3


def test_weights_of_a_gtm_prior_can_stay_uniform():
    assert "logits" in dict(GTMPrior(MLP(2, [8]), 3).named_parameters())
    uniform = GTMPrior(MLP(2, [8]), 3, 4, learn_weights=False)
    assert "logits" not in dict(uniform.named_parameters())
    torch.testing.assert_close(uniform().mixture_distribution.probs, torch.full((16,), 1 / 16))


def test_a_gtm_prior_learns_a_curve():
    """Points on a noisy circle: far denser than the best single normal."""
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(500)
    z = 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(500, 2)
    prior = GTMPrior(MLP(2, [32], "tanh"), 2, 8)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    for _ in range(250):
        loss = -prior().log_prob(z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gaussian = -dist.Normal(z.mean(0), z.std(0)).log_prob(z).sum(-1).mean()
    assert loss < gaussian - 0.8


@pytest.mark.parametrize("bounds", [None, (0, 16)])
@pytest.mark.parametrize("num_labels", [0, 3])
def test_a_grid_of_pseudo_inputs_makes_a_vamp_prior(bounds, num_labels):
    posterior = normal(num_labels, (1, 2, 2))
    grid = GTMPseudoInputs(MLP(2 + num_labels, [8]), (1, 2, 2), 3, bounds, num_labels)
    prior = VampPrior(posterior, grid)
    count = 9 * max(num_labels, 1)
    assert prior.num_components == count
    u = prior.pseudo_inputs
    assert u.shape == (count, 1, 2, 2)
    if bounds:
        assert u.min() > 0 and u.max() < 16
    y = torch.arange(3).repeat_interleave(9) if num_labels else None
    z = torch.randn(2)
    each = (posterior(u, y) if num_labels else posterior(u)).log_prob(z)
    torch.testing.assert_close(prior().log_prob(z), each.logsumexp(0) - math.log(count))
    if num_labels:
        given = prior(torch.tensor([1])).log_prob(z)
        torch.testing.assert_close(given, each[None, 9:18].logsumexp(1) - math.log(9))
    prior().log_prob(z).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.inputs.parameters())


@pytest.mark.parametrize("num_labels", [0, 2])
def test_a_grid_of_pseudo_inputs_is_laid_on_the_plane_of_the_data(num_labels):
    torch.manual_seed(0)
    plane = torch.randn(2, 6)
    y = torch.arange(400) % 2
    x = 5 + (1 + 2 * y.unsqueeze(-1)) + torch.randn(400, 2) @ plane
    x = x.reshape(400, 2, 3)
    grid = GTMPseudoInputs(MLP(2 + num_labels, [64]), (2, 3), 4, num_labels=num_labels)
    grid.initialize(x, y)
    u = grid().reshape(-1, 16, 6)
    for label in range(num_labels or 1):
        own = x[y == label].flatten(1) if num_labels else x.flatten(1)
        deviations = u[label] - own.mean(0)
        assert torch.linalg.matrix_rank(deviations.detach(), atol=1e-6) == 2
        torch.testing.assert_close(deviations.mean(0), torch.zeros(6), rtol=0, atol=1e-6)
        axes = torch.linalg.svd(own - own.mean(0), full_matrices=False)
        spread = axes.S[:2].square().sum() / len(own)
        assert deviations.square().sum(-1).mean().item() == pytest.approx(spread.item(), rel=1e-3)


def test_a_bounded_grid_begins_within_its_bounds_near_the_data():
    x = torch.randint(0, 17, (100, 4)).double()
    x[:, 0] = 0
    grid = GTMPseudoInputs(MLP(2, [64]), (4,), 4, bounds=(0, 16))
    grid.initialize(x)
    u = grid()
    assert u.min() > 0 and u.max() < 16
    assert (u.mean(0) - x.mean(0)).abs().max() < 1


def test_grids_of_one_dimension_or_one_datum_can_be_laid():
    for x in (torch.randn(20, 1), torch.randn(1, 4)):
        grid = GTMPseudoInputs(MLP(2, [8]), x.shape[1:], 2)
        grid.initialize(x)
        assert grid().isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GTMPrior(MLP(3, [8]), 2), r"in_features=2 \(two coordinates\); got 3"),
        (lambda: GTMPrior(MLP(2, [8]), 2, 4, 3), "in_features=5 .* 3 labels.*; got 2"),
        (lambda: GTMPrior(MLP(2, [8]), 0), "Expected latent_dim .*; got 0"),
        (lambda: GTMPrior(MLP(2, [8]), 2, 0), "Expected grid_size .*; got 0"),
        (
            lambda: VampPrior(normal(), GTMPseudoInputs(MLP(2, [8]), (4,)), bounds=(0, 16)),
            "them with a module. Give them to the module",
        ),
        (lambda: VampPrior(normal(), GTMPseudoInputs(MLP(2, [8]), (5,))), r"\(K, 4\); got"),
        (lambda: VampPrior(normal(3), GTMPseudoInputs(MLP(2, [8]), (4,))), "got None"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GTMPrior(MLP(2, [8]), 2, 3, shared_scale=True),
        lambda: VampPrior(normal(3), GTMPseudoInputs(MLP(5, [8]), [4], 2, (0, 16), 3)),
        lambda: VampPrior(normal(), LEVELS, bounds=(0, 16)),
        lambda: VampPrior(FullNormalPosterior(MLP(4, [8]), 2), LEVELS),
    ],
)
def test_priors_come_back_from_their_description(make):
    prior = scramble(make())
    restored = rebuild(json.loads(json.dumps(describe(prior))))
    restored.load_state_dict(prior.state_dict())
    z = torch.randn(5, 2)
    assert torch.equal(restored().log_prob(z), prior().log_prob(z))
    assert torch.equal(copy.deepcopy(prior)().log_prob(z), prior().log_prob(z))


def test_a_full_normal_carries_a_flow_and_a_mixture():
    base = FullNormalPosterior(MLP(4, [8]), 2)
    posterior = FlowPosterior(base, flows.sylvester(2, 1))
    assert posterior(torch.randn(5, 4)).rsample().shape == (5, 2)
    assert VampPrior(posterior.base, LEVELS)().batch_shape == ()
    assert POSTERIORS["full_normal"].scores
    assert MixturePrior(2, 3)().log_prob(torch.randn(5, 2)).shape == (5,)
