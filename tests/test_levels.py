"""Distributions over levels: they sum to one, sample what they score, and stay finite."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vaes.levels import DiscretizedLogisticLevels, OrdinalLevels
from pyro_vaes.likelihoods import OrdinalLikelihood
from pyro_vaes.networks import MLP


def ordinal(location, levels, sharp=1.0):
    generator = torch.Generator().manual_seed(0)
    gaps = torch.rand(*location.shape[-1:], levels - 1, generator=generator, dtype=location.dtype)
    thresholds = gaps.cumsum(-1) - levels / 4
    return OrdinalLevels(location, thresholds, torch.full_like(location, sharp))


def logistic(location, levels, scale=2.0):
    return DiscretizedLogisticLevels(location, torch.full_like(location, scale), levels)


MAKERS = {"ordinal": ordinal, "logistic": logistic}


def locations(*shape, dtype=torch.float64):
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_levels_sum_to_one(make, levels):
    d = make(locations(5, 3), levels)
    pmf = d.log_pmf().exp()
    assert pmf.shape == (5, 3, levels)
    torch.testing.assert_close(pmf.sum(-1), torch.ones(5, 3, dtype=pmf.dtype), rtol=0, atol=1e-12)
    numbers = torch.arange(levels, dtype=pmf.dtype)
    torch.testing.assert_close(d.mean, (pmf * numbers).sum(-1))
    torch.testing.assert_close(d.variance, (pmf * (numbers - d.mean.unsqueeze(-1)) ** 2).sum(-1))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_scores_are_differences_of_sigmoids(make):
    d = make(locations(4, 3), 6)
    for level in range(6):
        value = torch.full((4, 3), level, dtype=torch.float64)
        lower, upper = d.cuts(value.long())
        low = torch.zeros(4, 3) if level == 0 else torch.sigmoid(lower)
        high = torch.ones(4, 3) if level == 5 else torch.sigmoid(upper)
        torch.testing.assert_close(d.log_prob(value), (high - low).log(), check_dtype=False)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_samples_follow_the_scores(make):
    d = make(locations(3), 17)
    draws = d.sample((40_000,))
    assert draws.shape == (40_000, 3)
    counts = torch.stack([(draws == level).double().mean(0) for level in range(17)], -1)
    pmf = d.log_pmf().exp()
    assert ((counts - pmf).abs() < 5 * (pmf * (1 - pmf) / 40_000).sqrt() + 1e-4).all()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_expand_and_leading_dimensions(make):
    d = make(locations(3), 5)
    wide = d.expand([4, 3])
    assert wide.batch_shape == (4, 3) and wide.sample((2,)).shape == (2, 4, 3)
    value = torch.randint(0, 5, (7, 4, 3))
    torch.testing.assert_close(wide.log_prob(value), d.log_prob(value))
    assert d.to_event(1).log_prob(torch.zeros(9, 3)).shape == (9,)
    assert d.enumerate_support().shape == (5, 3)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("place", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_extremes_are_finite_in_float32(make, levels, place):
    location = torch.full((levels,), place, requires_grad=True)
    d = make(location, levels)
    log_prob = d.log_prob(torch.arange(levels))
    assert torch.isfinite(log_prob).all() and (log_prob <= 0).all()
    (grad,) = torch.autograd.grad(log_prob.sum(), location)
    assert torch.isfinite(grad).all()


def test_float32_agrees_with_float64():
    value = torch.arange(256)
    for scale in (0.3, 3.0, 60.0):
        location = 40 * locations(256)
        wide = logistic(location, 256, scale).log_prob(value)
        narrow = logistic(location.float(), 256, scale).log_prob(value)
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)


def test_gradients():
    location = locations(3, 2).requires_grad_()
    thresholds = torch.randn(2, 4, dtype=torch.float64).sort(-1).values.requires_grad_()
    sharpness = torch.rand(3, 2, dtype=torch.float64).add(0.5).requires_grad_()
    value = torch.tensor([[0, 4], [1, 2], [3, 0]])

    def score(*parameters):
        return OrdinalLevels(*parameters, validate_args=False).log_prob(value)

    assert torch.autograd.gradcheck(score, (location, thresholds, sharpness))

    def score_logistic(location, scale):
        return DiscretizedLogisticLevels(location, scale, 5, validate_args=False).log_prob(value)

    assert torch.autograd.gradcheck(score_logistic, (location, sharpness))


def test_values_outside_are_refused():
    with pytest.raises(ValueError, match="within the support"):
        ordinal(locations(3), 5).log_prob(torch.full((3,), 5.0))


def test_thresholds_start_where_the_data_are():
    torch.manual_seed(0)
    likelihood = OrdinalLikelihood(MLP(2, [4]), (3,), 5).double()
    x = torch.randint(0, 5, (4000, 3)).double()
    x[:, 1] = (x[:, 1] > 2) * 4.0
    likelihood.initialize_from(x)
    at_zero = OrdinalLevels(torch.zeros(3, dtype=torch.float64), likelihood.thresholds)
    for level in range(5):
        frequency = (x == level).double().mean(0)
        assert (at_zero.log_pmf()[:, level].exp() - frequency).abs().max() < 0.02
    assert (likelihood.thresholds.diff(dim=-1) > 0).all()


def test_beta_binomial_of_pyro_is_right():
    """Used as it is: its mean, variance and normalisation are checked here."""
    d = dist.BetaBinomial(torch.tensor(0.7), torch.tensor(2.2), total_count=16)
    pmf = d.log_prob(d.enumerate_support()).exp().double()
    numbers = torch.arange(17).double()
    assert pmf.sum().item() == pytest.approx(1, abs=1e-5)
    mean = (pmf * numbers).sum().item()
    assert d.mean.item() == pytest.approx(mean, abs=1e-4)
    assert d.variance.item() == pytest.approx((pmf * (numbers - mean) ** 2).sum().item(), rel=1e-4)
    assert not math.isnan(mean)
