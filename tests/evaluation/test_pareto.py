"""The Pareto k-hat: the shape that was planted, the same as arviz, sound at the edges."""

import math
import warnings

import pytest
import torch

from pyro_vaes.evaluation.pareto import MIN_SAMPLES, pareto_k, tail_size
from pyro_vaes.evaluation.reliability import is_trusted, k_hat_lines


def largest(log_weights):
    """The tail of log weights ``(data, samples)``, as :func:`pareto_k` wants it."""
    return log_weights.topk(tail_size(log_weights.shape[-1]) + 1, dim=-1).values


@pytest.mark.parametrize("num_samples", [MIN_SAMPLES, 100, 1000, 5000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 20.0])
def test_agrees_with_arviz(num_samples, scale):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arviz, which announces its future
        arviz = pytest.importorskip("arviz")
        log_weights = torch.randn(30, num_samples, dtype=torch.float64) * scale
        expected = torch.as_tensor(arviz.psislw(log_weights.numpy())[1])
    torch.testing.assert_close(pareto_k(largest(log_weights)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.7, 1.0, 1.5])
def test_recovers_the_shape_of_a_pareto_tail(shape):
    u = torch.rand(40, 20_000, dtype=torch.float64)
    # Quantiles of the generalised Pareto distribution; far draws of it are again Pareto.
    log_weights = torch.log((u.pow(-shape) - 1) / shape)
    k = pareto_k(largest(log_weights))
    count = tail_size(20_000)
    shrunk = (count * shape + 5) / (count + 10)
    assert k.mean().item() == pytest.approx(shrunk, abs=0.04)


def test_a_factor_on_the_weights_changes_nothing():
    log_weights = torch.randn(10, 500, dtype=torch.float64)
    for shift in (-800.0, 800.0):
        torch.testing.assert_close(
            pareto_k(largest(log_weights + shift)),
            pareto_k(largest(log_weights)),
            rtol=0,
            atol=1e-9,
        )


def test_batch_dimensions_are_rows():
    log_weights = torch.randn(3, 4, 200, dtype=torch.float64)
    k = pareto_k(largest(log_weights))
    assert k.shape == (3, 4)
    torch.testing.assert_close(k[1, 2], pareto_k(largest(log_weights[1, 2])))


def test_equal_weights_have_no_tail():
    log_weights = -100 + torch.rand(5, 100, dtype=torch.float64) * 1e-11
    assert (pareto_k(largest(log_weights)) == -math.inf).all()


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_what_is_not_finite_is_not_to_be_trusted(value):
    assert (pareto_k(torch.full((3, 12), value)) == math.inf).all()


def test_one_weight_for_all_is_not_to_be_trusted():
    log_weights = torch.randn(5, 1000, dtype=torch.float64)
    log_weights[:, 0] = 2000.0
    assert (pareto_k(largest(log_weights)) == math.inf).all()


def test_ties_are_no_part_of_the_tail():
    log_weights = torch.zeros(1, 100, dtype=torch.float64)
    log_weights[0, :8] = torch.linspace(1, 2, 8)
    assert pareto_k(largest(log_weights)).isfinite().all()
    log_weights[0, 4:] = 0.0
    assert (pareto_k(largest(log_weights)) == math.inf).all()


@pytest.mark.parametrize(
    ("share", "trusted", "said"),
    [
        (0.05, True, "unreliable for 5 of 100 data (5.0%)"),
        (0.06, False, "NOT TO BE TRUSTED: unreliable for more than 5%"),
        (None, None, "whether -log p(x) can be trusted is unknown"),
    ],
)
def test_a_figure_with_too_many_unreliable_data_is_marked(share, trusted, said):
    figures = dict(
        proposal="mixed",
        share_unreliable=share,
        num_unreliable=None if share is None else round(100 * share),
        num_data=100,
        pareto_k_limit=0.67,
        pareto_k_median=0.3,
        pareto_k_max=0.9,
        encoder_num_unreliable=None,
    )
    assert is_trusted(figures) is trusted
    lines = "\n".join(k_hat_lines(figures, "too few samples"))
    assert said in lines
    assert ("NOT TO BE" in lines) == (trusted is False)
