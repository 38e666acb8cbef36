"""Facts about Pyro and PyTorch that this library works round.

Each test holds as long as the fact does. One that fails is good news: something was mended, and the
detour named in the test can go.
"""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from helpers import jacobian
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from pyro.optim import Adam
from torch import nn

from pyro_vaes.inference.elbo import ELBO


def test_scale_refuses_zero():
    """So beta = 0 is a weight of our objectives, not a ``poutine.scale``."""
    with pytest.raises(ValueError, match="scale"):
        poutine.scale(scale=0.0)


@pytest.mark.parametrize(
    "make",
    [
        T.Planar,
        T.Radial,
        T.Sylvester,
        lambda d: T.Polynomial(AutoRegressiveNN(d, [8], [4]), d, 1, 2),
    ],
    ids=["Planar", "Radial", "Sylvester", "Polynomial"],
)
def test_flows_without_an_inverse_score_only_the_object_they_made(make):
    """So layers declare ``scores``, and FlowDistribution passes full-shaped values on untouched."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [make(2)])
    z = flow.rsample()
    assert flow.log_prob(z).isfinite()
    with pytest.raises((KeyError, NotImplementedError)):
        flow.log_prob(z.clone())


def test_sylvester_tells_a_wrong_log_determinant():
    """So it is not used as it is."""
    errors = []
    for _ in range(10):
        flow = T.Sylvester(3, 2)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.normal_(0.0, 0.9)
        z = torch.randn(20, 3)
        told = flow.log_abs_det_jacobian(z, flow(z))
        exact = torch.linalg.slogdet(jacobian(flow, z))[1]
        errors.append((told - exact).abs().max())
    assert max(errors) > 0.1


def test_autoregressive_inverse_breaks_in_float64():
    """So ``flows._AffineAutoregressive`` brings its own inverse."""
    flow = T.AffineAutoregressive(AutoRegressiveNN(3, [8])).double()
    y = torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="dtype"):
        flow.inv(y)


def test_inverse_of_a_transform_is_no_module():
    """So ``MAFLayer`` holds the network and inverts what it makes of it."""
    assert not isinstance(T.AffineAutoregressive(AutoRegressiveNN(3, [8])).inv, nn.Module)


def test_autoregressive_network_warns_at_one_dimension():
    """So ``IAFLayer`` silences it: the laws are checked at latent_dim 1."""
    with pytest.warns(UserWarning, match="input_dim = 1"):
        AutoRegressiveNN(1, [4])


def test_conditional_network_does_not_broadcast_its_context():
    """So ``FlowDistribution`` spells values out before it scores them."""
    network = ConditionalAutoRegressiveNN(2, 3, [8])
    with pytest.raises(RuntimeError, match="expand"):
        network(torch.randn(2), context=torch.randn(5, 3))


def test_a_second_module_under_one_name_is_not_trained():
    """So every VAE, copies included, announces its parameters under a name of its own."""

    def train(module):
        def model(x):
            pyro.module("net", module)
            pyro.sample("x", dist.Normal(module(x), 1.0).to_event(2), obs=x + 1)

        before = copy.deepcopy(module.state_dict())
        SVI(model, lambda x: None, Adam({"lr": 0.1}), Trace_ELBO()).step(torch.ones(3, 1))
        return any(not torch.equal(before[key], p) for key, p in module.state_dict().items())

    assert train(nn.Linear(1, 1))
    assert not train(nn.Linear(1, 1)), "its optimiser holds the first one's tensors"


def test_module_warns_of_frozen_parameters_and_leaves_them():
    """So ``VAE`` announces only parameters that are to be trained."""
    module = nn.Linear(1, 1)
    module.weight.requires_grad_(False)
    with pytest.warns(UserWarning, match="not registered in the param store because requires_grad"):
        pyro.module("net", module)
    assert list(pyro.get_param_store().keys()) == ["net$$$bias"]


def test_the_mean_of_a_flow_cannot_be_told():
    """So ``mean_of`` averages fixed draws."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(NotImplementedError):
        _ = dist.TransformedDistribution(base, [T.Planar(2)]).mean


def test_a_categorical_has_no_mean():
    """So levels have ``CategoricalLevels``: PyTorch answers with NaN."""
    assert dist.Categorical(logits=torch.zeros(3)).mean.isnan()


def test_a_zero_inflated_distribution_that_has_drawn_cannot_be_expanded():
    """So counts have ``ZeroInflated``: Pyro keeps the gate next to its logits."""
    inflated = dist.ZeroInflatedPoisson(torch.ones(3), gate_logits=torch.zeros(3))
    inflated.sample()
    with pytest.raises(ValueError, match="but not both"):
        inflated.expand((2, 3))


def test_trace_elbo_reads_its_loss_on_the_host():
    """So ``ELBO.tensor_loss`` sums log densities instead: a recording stops at ``.item()``."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x, 1.0))

    with pyro.validation_enabled(False):
        with pytest.raises(RuntimeError):
            make_fx(lambda x: Trace_ELBO().differentiable_loss(model, guide, x))(torch.ones(()))
        make_fx(lambda x: ELBO(max_plate_nesting=0).tensor_loss(model, guide, x))(torch.ones(()))


def test_renyi_scales_inside_its_logsumexp():
    """So a weighted KL has no meaning there: a scaled site changes a bound of one particle only."""

    def make(scale):
        def model():
            with poutine.scale(scale=scale):
                pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

        def guide():
            with poutine.scale(scale=scale):
                pyro.sample("z", dist.Normal(1.0, 1.0))

        return model, guide

    def bound(scale, particles):
        pyro.set_rng_seed(0)
        renyi = RenyiELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
        return renyi.loss(*make(scale))

    exact = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    assert bound(1.0, 20_000) == pytest.approx(exact, abs=0.05)
    # Weighted by two, the same many-sample bound estimates another number altogether.
    assert abs(bound(2.0, 20_000) - exact) > 0.1


def test_a_batch_of_cholesky_factors_has_no_jacobian():
    affine = T.LowerCholeskyAffine(torch.zeros(5, 2), torch.eye(2).expand(5, 2, 2))
    x = torch.randn(5, 2)
    with pytest.raises(RuntimeError, match="diag"):
        affine.log_abs_det_jacobian(x, affine(x))


def test_fused_optimisers_read_a_gradient_as_flat_memory():
    """So ``lay_out`` copies one that is a column, say."""

    def stepped(**options):
        weight = torch.zeros(2, requires_grad=True)
        weight.grad = torch.tensor([[1.0, -1.0], [1.0, -1.0]])[:, 0]
        torch.optim.SGD([weight], lr=1.0, **options).step()
        return weight.tolist()

    assert stepped(fused=False) == [-1.0, -1.0]
    assert stepped(fused=True) == [-1.0, 1.0]
