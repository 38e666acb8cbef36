"""Distributions over levels: they sum to one, draw what they score, and stay finite."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from pyro_vaes.distributions.levels import (
    CategoricalLevels,
    DiscretizedLogisticLevels,
    OrdinalLevels,
)


def categorical(location: Tensor, width: Tensor, levels: int) -> CategoricalLevels:
    level = torch.linspace(-4, 4, levels, dtype=location.dtype)
    return CategoricalLevels(logits=-(level - location.unsqueeze(-1)).abs() / width.unsqueeze(-1))


def ordinal(location: Tensor, width: Tensor, levels: int) -> OrdinalLevels:
    shape = torch.Size([*location.shape[-1:], levels - 1])
    gaps = torch.arange(shape.numel(), dtype=torch.float64).sin().reshape(shape) + 1.2
    thresholds = 8 * gaps.cumsum(-1) / gaps.sum(-1, keepdim=True) - 4
    return OrdinalLevels(location, thresholds.float().to(location.dtype), width.reciprocal())


def logistic(location: Tensor, width: Tensor, levels: int) -> DiscretizedLogisticLevels:
    unit = (levels - 1) / 8
    return DiscretizedLogisticLevels(unit * (location + 4), unit * width, levels)


ORDERED = {"ordinal": ordinal, "logistic": logistic}
MAKERS = {"categorical": categorical, **ORDERED}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
ordered = pytest.mark.parametrize("make", ORDERED.values(), ids=ORDERED)


def parameters(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Locations about the middle of the levels, in units of an eighth of their range; widths."""
    generator = torch.Generator().manual_seed(1)
    location = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    width = torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.2
    return location.to(dtype), width.to(dtype)


# --- laws ---------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_levels_sum_to_one(make, levels):
    d = make(*parameters(5, 3), levels)
    number = d.enumerate_support().double()
    assert number.shape == (levels, 5, 3)
    pmf = d.log_prob(number).exp()
    torch.testing.assert_close(pmf.sum(0), torch.ones(5, 3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(d.log_pmf().exp(), pmf.movedim(0, -1))
    torch.testing.assert_close(d.mean, (pmf * number).sum(0))
    torch.testing.assert_close(d.variance, (pmf * (number - d.mean) ** 2).sum(0))


@every
@pytest.mark.parametrize("levels", [2, 17])
def test_draws_follow_the_scores(make, levels):
    torch.manual_seed(0)
    d = make(*parameters(3), levels)
    draws = d.sample((40_000,))
    assert draws.shape == (40_000, 3)
    pmf = d.log_pmf().exp()
    share = (draws.unsqueeze(-1) == torch.arange(levels)).double().mean(0)
    assert ((share - pmf).abs() < 4.5 * (pmf * (1 - pmf) / 40_000).sqrt() + 1e-4).all()


@every
def test_expand_and_leading_dimensions(make):
    d = make(*parameters(3), 5)
    wide = d.expand([4, 3])
    assert wide.batch_shape == (4, 3)
    assert wide.sample((2,)).shape == (2, 4, 3)
    assert wide.mean.shape == wide.variance.shape == (4, 3)
    assert wide.log_pmf().shape == (4, 3, 5)
    value = torch.randint(0, 5, (7, 4, 3))
    assert d.log_prob(value[0, 0]).shape == (3,)
    assert wide.log_prob(value[0, 0]).shape == (4, 3)
    for same in (value, value.int(), value.float(), value.double()):
        torch.testing.assert_close(wide.log_prob(same), d.log_prob(value))
    assert d.to_event(1).log_prob(torch.zeros(9, 3)).shape == (9,)


@every
def test_values_outside_are_refused(make):
    for value in (-1.0, 5.0, 0.5):
        with pytest.raises(ValueError, match="within the support"):
            make(*parameters(3), 5).log_prob(torch.full((3,), value))


@pytest.mark.parametrize("make", [logistic])
def test_widths_are_positive(make):
    with pytest.raises(ValueError, match="constraint"):
        make(torch.zeros(3), -torch.ones(3), 5)


# --- what they are ------------------------------------------------------------------------------


def test_ordinal_is_a_difference_of_sigmoids():
    location, width = parameters(4, 3)
    d = ordinal(location, width, 6)
    below = torch.sigmoid((d.thresholds - location.unsqueeze(-1)) / width.unsqueeze(-1))
    zero, one = torch.zeros_like(below[..., :1]), torch.ones_like(below[..., :1])
    expected = torch.cat([below, one], -1) - torch.cat([zero, below], -1)
    torch.testing.assert_close(d.log_pmf().exp(), expected)
    plain = OrdinalLevels(location, d.thresholds)
    sharp = OrdinalLevels(location, d.thresholds, torch.ones(()))
    torch.testing.assert_close(plain.log_pmf(), sharp.log_pmf())


def test_one_row_of_thresholds_serves_all_elements():
    location, _ = parameters(4, 3)
    row = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    shared = OrdinalLevels(location, row)
    assert shared.batch_shape == (4, 3)
    each = OrdinalLevels(location, row.expand(3, 3))
    torch.testing.assert_close(shared.log_pmf(), each.log_pmf())


def test_discretized_logistic_is_the_integral_of_the_density():
    """PixelCNN++, equation 2, with the integral by quadrature."""
    location, width = parameters(3)
    d = logistic(location, width, 6)
    edges = torch.linspace(-400, 400, 1_600_001, dtype=torch.float64)  # steps of 0.0005
    u = (edges.unsqueeze(-1) - d.location) / d.scale
    mass = torch.sigmoid(u) * torch.sigmoid(-u) / d.scale * (edges[1] - edges[0])
    for level, (low, high) in enumerate([(-400, 0.5), *[(i - 0.5, i + 0.5) for i in (1, 2, 3, 4)]]):
        inside = (edges > low) & (edges < high)
        expected = mass[inside].sum(0)
        score = d.log_prob(torch.full((3,), float(level))).exp()
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-3)


# --- numbers ------------------------------------------------------------------------------------


@ordered
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(make, levels, dtype):
    """Scores and gradients, for any location and width, at every level."""
    for place in (-1e10, -1e4, -100.0, 0.0, 100.0, 1e4, 1e10):
        for size in (1e-6, 1e-3, 1.0, 1e3, 1e6):
            location = torch.full((levels,), place, dtype=dtype, requires_grad=True)
            width = torch.full((levels,), size, dtype=dtype, requires_grad=True)
            log_prob = make(location, width, levels).log_prob(torch.arange(levels))
            assert log_prob.isfinite().all()
            assert (log_prob <= 1e-6).all()
            for gradient in torch.autograd.grad(log_prob.sum(), (location, width)):
                assert gradient.isfinite().all(), (place, size)


@ordered
@pytest.mark.parametrize("levels", [17, 256])
def test_float32_agrees_with_float64(make, levels):
    value = torch.arange(levels).reshape(-1, 1, 1)
    location, width = parameters(5, 3)
    for size in (1e-2, 1.0, 1e2):
        wide = make(location.float().double(), (size * width).float().double(), levels)
        narrow = make(location.float(), (size * width).float(), levels)
        torch.testing.assert_close(
            narrow.log_prob(value).double(), wide.log_prob(value), rtol=1e-4, atol=2e-4
        )


@ordered
def test_variance_of_what_hardly_varies_is_not_negative(make):
    d = make(torch.full((3,), 30.0), torch.full((3,), 1e-2), 256)
    assert (d.variance >= 0).all()
    assert (d.variance < 1e-3).all()


@ordered
def test_gradients(make):
    location, width = (p.requires_grad_() for p in parameters(3, 2))
    value = torch.tensor([[0, 4], [1, 2], [3, 0]])
    assert torch.autograd.gradcheck(lambda *p: make(*p, 5).log_prob(value), (location, width))


def test_gradients_of_thresholds():
    location, _ = parameters(3, 2)
    thresholds = torch.randn(2, 4, dtype=torch.float64).sort(-1).values.requires_grad_()
    value = torch.tensor([[0, 4], [1, 2], [3, 0]])
    assert torch.autograd.gradcheck(
        lambda row: OrdinalLevels(location, row, validate_args=False).log_prob(value), thresholds
    )


@ordered
def test_gradients_batch_under_vmap(make):
    """As in a sweep, which trains many models as one program."""
    location, width = parameters(6, 3)
    value = torch.randint(0, 5, (6, 3))
    dist.enable_validation(False)

    def score(location: Tensor, width: Tensor, value: Tensor) -> Tensor:
        return make(location, width, 5).log_prob(value).sum()

    together = vmap(grad(score))(location, width, value)
    for i in range(6):
        torch.testing.assert_close(together[i], grad(score)(location[i], width[i], value[i]))


def test_gradients_of_thresholds_batch_under_vmap():
    thresholds = torch.randn(6, 3, 4, dtype=torch.float64).sort(-1).values
    location, _ = parameters(6, 7, 3)
    value = torch.randint(0, 5, (6, 7, 3))
    dist.enable_validation(False)

    def score(thresholds: Tensor, location: Tensor, value: Tensor) -> Tensor:
        return OrdinalLevels(location, thresholds).log_prob(value).sum()

    together = vmap(grad(score))(thresholds, location, value)
    for i in range(6):
        torch.testing.assert_close(together[i], grad(score)(thresholds[i], location[i], value[i]))


@ordered
def test_scores_take_memory_of_the_elements_alone(make):
    """No tensor in the graph of a score holds a number for every level of every element."""
    location, width = (p.requires_grad_() for p in parameters(200, 3))
    held: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make(location, width, 64).log_prob(torch.zeros(200, 3))
    assert held
    assert max(held) <= 200 * 3
