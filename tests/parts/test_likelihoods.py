"""Likelihoods: what they refuse, and what each promises beyond the laws."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from registry import LIKELIHOODS, cases

from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    Likelihood,
    NormalLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CategoricalLikelihood(MLP(2, [8]), (4,), 0), "Expected num_levels .*; got 0"),
        (lambda: CategoricalLikelihood(MLP(2, [8]), (4,), 1), "num_levels of at least 2; got 1"),
        (lambda: BernoulliLikelihood(MLP(2, [8]), (4, 0)), r"Expected event_shape\[1\] .*; got 0"),
        (lambda: BernoulliLikelihood(MLP(3, [8]), (4,), 3), r"latent_dim \+ 3 labels; got 3"),
        (lambda: NormalLikelihood(MLP(2, [8]), (4,), min_scale=0.0), "Expected 0 < min_scale"),
        (lambda: NormalLikelihood(MLP(2, [8]), (4,), initial_scale=1e-4), "got 0.001 and 0.0001"),
        (lambda: NormalLikelihood(MLP(2, [8]), (4,), initial_scale=math.inf), "got 0.001 and inf"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS, labels=(3,), own=True))
def test_a_conditional_likelihood_asks_for_labels(name, num_labels):
    likelihood = LIKELIHOODS[name].make(2, (4,), num_labels)
    assert likelihood.latent_dim == 2
    with pytest.raises(ValueError, match=r"Expected labels y in 0\.\.2 .*; got none"):
        likelihood(torch.randn(5, 2))


@pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS, own=True))
def test_every_parameter_learns(name, num_labels):
    likelihood = LIKELIHOODS[name].make(2, (4,), num_labels)
    y = (torch.arange(5) % num_labels,) if num_labels else ()
    likelihood(torch.randn(5, 2), *y).log_prob(torch.ones(5, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in likelihood.parameters())


def test_range_of_the_data_is_told_where_it_is_known():
    assert BernoulliLikelihood(MLP(2, [8]), (4,)).x_range == (0.0, 1.0)
    assert CategoricalLikelihood(MLP(2, [8]), (4,), 17).x_range == (0.0, 16.0)
    assert NormalLikelihood(MLP(2, [8]), (4,)).x_range is None


@pytest.mark.parametrize(
    ("name", "value"), [("bernoulli", 0.5), ("categorical", 4.0), ("categorical", -1.0)]
)
def test_values_outside_the_support_are_refused(name, value):
    d = LIKELIHOODS[name].make(2, (4,))(torch.randn(5, 2))
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.full((5, 4), value))


def test_levels_may_be_held_in_float32_or_as_whole_numbers():
    d = CategoricalLikelihood(MLP(2, [8]), (4,), 17)(torch.randn(5, 2))
    x = torch.randint(0, 17, (5, 4))
    for same in (x.float(), x.double(), x.int()):
        torch.testing.assert_close(d.log_prob(same), d.log_prob(x))


def test_normal_scale_starts_where_told_and_has_a_floor():
    likelihood = NormalLikelihood(MLP(2, [8]), (1, 4), initial_scale=20.0, min_scale=0.5)
    z = torch.randn(5, 2)
    torch.testing.assert_close(likelihood(z).base_dist.scale, torch.full((5, 1, 4), 20.0))
    with torch.no_grad():
        likelihood.log_scale.fill_(-1e3)
    assert likelihood(z).base_dist.scale.min() == 0.5


def test_a_likelihood_of_ones_own_is_one_method():
    class Poisson(Likelihood):
        def elements(self, parameters):
            return dist.Poisson(parameters.squeeze(-1).exp())

    d = Poisson(MLP(2, [8]), (3, 2))(torch.randn(7, 5, 2))
    assert (d.batch_shape, d.event_shape) == ((7, 5), (3, 2))
    with pytest.raises(NotImplementedError):
        Likelihood(MLP(2, [8]), (3,))(torch.randn(2))
