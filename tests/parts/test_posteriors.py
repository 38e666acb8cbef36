"""Posteriors: what they refuse, what their network sees, and how flows sit on them."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from registry import POSTERIORS, OwnPosterior, cases, scramble
from torch import nn

from pyro_vaes import flows
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior, Posterior

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalPosterior(MLP(4, [8]), 0), "Expected latent_dim .*; got 0"),
        (
            lambda: NormalPosterior(MLP(4, [8]), 2, (5,)),
            r"in_features=5 \(data of .*\(5,\)\); got 4",
        ),
        (lambda: NormalPosterior(MLP(4, [8]), 2, (4,), 3), "in_features=7 .*and 3 labels.*; got 4"),
        (lambda: NormalPosterior(MLP(4, [8]), 2, x_range=(1, 1)), "x_range with low < high"),
        (lambda: NormalPosterior(MLP(4, [8]), 2, x_range=(0, math.inf)), "both finite"),
        (
            lambda: FlowPosterior(NormalPosterior(MLP(4, [8]), 2), flows.iaf(3, 1)),
            r"latent_dim=2; got flows\.iaf\(3, 1\)",
        ),
        (
            lambda: FlowPosterior(OwnPosterior(2, (4,)), flows.iaf(2, 1)),
            "Expected event_shape for a base without one; got none",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_flow_that_cannot_sample_is_refused(monkeypatch):
    monkeypatch.setattr(flows.LAYERS["iaf"], "samples", False)
    with pytest.raises(ValueError, match=r"Expected a flow that can sample; got flows\.iaf"):
        FlowPosterior(NormalPosterior(MLP(4, [8]), 2), flows.iaf(2, 1))


@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS, labels=(3,)))
def test_a_conditional_posterior_asks_for_labels(name, num_labels):
    with pytest.raises(ValueError, match=r"Expected labels y in 0\.\.2 .*; got none"):
        POSTERIORS[name].make(2, (4,), num_labels)(torch.randn(5, 4))


@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS, own=True))
def test_data_of_another_shape_are_refused(name, num_labels):
    posterior = POSTERIORS[name].make(2, (2, 3), num_labels)
    y = (torch.zeros(5).long(),) if num_labels else ()
    with pytest.raises(ValueError, match=r"Expected data of shape \(\.\.\., 2, 3\); got \(5, 6\)"):
        posterior(torch.randn(5, 6), *y)


@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS))
def test_every_parameter_learns(name, num_labels):
    posterior = POSTERIORS[name].make(3, (4,), num_labels)
    y = (torch.arange(5) % num_labels,) if num_labels else ()
    d = posterior(torch.randn(5, 4), *y)
    z = d.rsample()
    (d.log_prob(z) + z.square().sum(-1)).sum().backward()
    for key, p in posterior.named_parameters():
        # The top of a prior that is given is no part of the posterior.
        assert key.startswith("prior.top.") or (p.grad is not None and p.grad.abs().max() > 0)


@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS))
def test_scores_says_whether_foreign_values_can_be_scored(name, num_labels):
    posterior = POSTERIORS[name].make(2, (4,), num_labels)
    assert getattr(posterior, "scores", True) == POSTERIORS[name].scores
    y = (torch.zeros(5).long(),) if num_labels else ()
    d = posterior(torch.randn(5, 4), *y)
    if POSTERIORS[name].scores:
        assert d.log_prob(torch.randn(5, 2)).isfinite().all()
    else:
        with pytest.raises((KeyError, NotImplementedError)):
            d.log_prob(torch.randn(5, 2))


def test_the_network_sees_the_range_as_minus_one_to_one():
    seen = []
    posterior = NormalPosterior(MLP(3, [8]), 2, x_range=(0, 16))
    posterior.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    posterior(torch.tensor([0.0, 8.0, 16.0]))
    torch.testing.assert_close(seen[0], torch.tensor([-1.0, 0.0, 1.0]))
    assert posterior.x_range == (0.0, 16.0)
    # Without one, x is seen as it is.
    plain = NormalPosterior(MLP(3, [8]), 2)
    assert plain.x_range is None
    plain.load_state_dict(
        {**posterior.state_dict(), "center": plain.center, "half_range": plain.half_range}
    )
    x = torch.randn(5, 3)
    torch.testing.assert_close(plain(x).mean, posterior(8 + 8 * x).mean)


def test_the_scaling_is_saved_with_the_weights():
    trained, fresh = (NormalPosterior(MLP(3, [8]), 2) for _ in range(2))
    trained.set_x_range(0, 16)
    fresh.load_state_dict(trained.state_dict())
    x = torch.rand(5, 3) * 16
    assert torch.equal(fresh(x).mean, trained(x).mean)


def test_a_flow_passes_the_range_to_its_base():
    posterior = FlowPosterior(NormalPosterior(MLP(3, [8]), 2), flows.iaf(2, 1))
    assert posterior.x_range is None
    posterior.set_x_range(0, 16)
    assert posterior.x_range == posterior.base.x_range == (0.0, 16.0)
    own = FlowPosterior(OwnPosterior(2, (3,)), flows.iaf(2, 1), (3,))
    own.set_x_range(0, 16)
    assert own.x_range == (0.0, 16.0)  # the flow itself sees x


def test_whole_numbers_of_any_dtype_are_seen():
    posterior = NormalPosterior(MLP(3, [8]), 2)
    x = torch.randint(0, 16, (5, 3))
    assert torch.equal(posterior(x).mean, posterior(x.double()).mean)
    assert torch.equal(posterior(x.to(torch.uint8)).mean, posterior(x.double()).mean)


def test_one_pass_of_the_network_serves_base_and_flow():
    base = NormalPosterior(MLP(4, [8]), 2)
    calls = []
    base.network.register_forward_hook(lambda *_: calls.append(1))
    posterior = FlowPosterior(FlowPosterior(base, flows.iaf(2, 2)), flows.planar(2, 2))
    posterior(torch.randn(5, 4))
    assert len(calls) == 1
    assert posterior.base.base is base


def test_a_flow_on_a_flow_on_a_base_of_ones_own():
    inner = FlowPosterior(OwnPosterior(2, (4,)), flows.iaf(2, 1), (4,))
    d = FlowPosterior(inner, flows.planar(2, 1))(torch.randn(5, 4))
    z = d.rsample()
    assert d.log_prob(z).shape == (5,)


@pytest.mark.parametrize("name", ["planar", "iaf", "maf", "realnvp"])
def test_a_flow_is_the_change_of_variables_of_its_base(name):
    """log q(z) is the base's log density at its own draw, less the log-determinants in between."""
    base = NormalPosterior(MLP(4, [8]), 3)
    posterior = scramble(FlowPosterior(base, getattr(flows, name)(3, 2)))
    x = torch.randn(5, 4)
    d = posterior(x)
    torch.manual_seed(1)
    z = d.rsample()
    torch.manual_seed(1)
    point = base(x).rsample()
    score = base(x).log_prob(point)
    for transform in posterior.flow(base.features(x)):
        image = transform(point)
        score = score - transform.log_abs_det_jacobian(point, image)
        point = image
    torch.testing.assert_close(z, point)
    torch.testing.assert_close(d.log_prob(z), score)


class LabelledBase(nn.Module):
    """A conditional base of a user's own, which says so by the argument of its ``forward`` only."""

    def forward(self, x, y):
        return dist.Normal(x[..., :2] + y.unsqueeze(-1), 1.0).to_event(1)


def test_a_flow_passes_labels_to_a_base_that_takes_them():
    posterior = FlowPosterior(LabelledBase(), flows.planar(2, 1), (4,))
    d = posterior(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(d.base_dist.mean[:, 0], torch.tensor([0.0, 1.0, 2.0]))


def test_a_posterior_of_ones_own_is_a_head():
    class Correlated(Posterior):
        def __init__(self, network, latent_dim):
            super().__init__(network, latent_dim)
            self.head = nn.Linear(self.out_features, latent_dim)

        def from_features(self, features):
            loc = self.head(features)
            return dist.MultivariateNormal(loc, torch.eye(self.latent_dim).to(loc))

    posterior = FlowPosterior(Correlated(MLP(4, [8]), 2), flows.iaf(2, 1))
    assert posterior(torch.randn(5, 4)).batch_shape == (5,)
    with pytest.raises(NotImplementedError):
        Posterior(MLP(4, [8]), 2)(torch.randn(4))
