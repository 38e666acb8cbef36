"""Scores of rows: right with their errors, p-values that keep their level, and nearest rows."""

import dataclasses
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vaes as pv
from pyro_vaes.evaluation.scores import Scores, _distances, score_alone


class Decoder(nn.Module):
    """x = W z + noise, so that log p(x) is known."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, z):
        return dist.Normal(z @ self.weight.mT, self.scale).to_event(1)


class Encoder(nn.Module):
    """The exact posterior of :class:`Decoder`, or a wider one."""

    def __init__(self, decoder, wider=1.0):
        super().__init__()
        w = decoder.weight.detach()
        precision = torch.eye(w.shape[1], dtype=w.dtype) + w.mT @ w / decoder.scale**2
        self.covariance = torch.linalg.inv(precision)
        self.map = self.covariance @ w.mT / decoder.scale**2
        self.wider = wider

    def forward(self, x):
        return dist.MultivariateNormal(x @ self.map.mT, self.covariance * self.wider)


@pytest.fixture
def known():
    """A model, data of it and their log p(x)."""
    torch.manual_seed(0)
    decoder = Decoder(torch.randn(4, 2, dtype=torch.float64), 0.7)
    w = decoder.weight.detach()
    covariance = w @ w.mT + 0.49 * torch.eye(4, dtype=torch.float64)
    marginal = dist.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance)
    x = marginal.sample((150,))

    def model(wider):
        return pv.VAE(pv.NormalPrior(2).double(), Encoder(decoder, wider), decoder)

    return model, x, marginal.log_prob(x)


@pytest.mark.parametrize("proposal", ["encoder", "auto"])
def test_scores_are_log_marginal_with_errors_that_hold(known, proposal):
    model, x, exact = known
    vae = model(2.0)
    options = dict(num_samples=200, proposal=proposal)
    scores = pv.score(vae, x[:40], **options)
    torch.testing.assert_close(scores.log_p, pv.log_marginal(vae, x[:40], **options))
    away = (scores.log_p - exact[:40]) / scores.log_p_se
    # About standard normal: the mean square of 40 of them is within 1 +- 3 sqrt(2 / 40).
    assert 0.33 < away.square().mean() < 1.67
    assert len(scores) == 40 and not scores.unreliable.any()
    assert scores.pareto_k.shape == scores.unreliable.shape == (40,)


def test_an_exact_proposal_has_no_error(known):
    model, x, exact = known
    scores = pv.score(model(1.0), x, num_samples=30, proposal="encoder")
    torch.testing.assert_close(scores.log_p, exact)
    # Rounding of sums of squares: the root of some 1e-16.
    assert scores.log_p_se.max() < 1e-6


def test_the_error_is_that_of_repeated_estimates(known):
    model, x, _ = known
    vae = model(3.0)
    runs = [
        pv.score(vae, x[:20], num_samples=128, proposal="encoder", seed=seed) for seed in range(60)
    ]
    spread = torch.stack([run.log_p for run in runs]).std(0)
    told = torch.stack([run.log_p_se for run in runs]).mean(0)
    assert ((told / spread).log().abs() < 0.4).all()


def test_rows_that_are_not_to_be_trusted_are_marked(known):
    model, x, _ = known
    scores = pv.score(model(0.05), x[:30], num_samples=100, proposal="encoder")
    assert scores.unreliable.float().mean() > 0.5
    assert "not to be trusted" in scores.warnings[0]
    few = pv.score(model(2.0), x[:3], num_samples=5, proposal="encoder")
    assert few.unreliable is None and few.pareto_k is None and "at least 21" in few.warnings[0]
    assert pv.score(model(2.0), x[:2], num_samples=1, proposal="encoder").log_p_se.isnan().all()


@pytest.mark.slow
def test_annealed_scores_are_judged_by_their_bracket(known):
    model, x, exact = known
    scores = pv.score(model(2.0), x[:3], proposal="annealed", num_samples=50)
    assert scores.proposal == "annealed" and scores.pareto_k is None
    assert not scores.unreliable.any()
    assert ((scores.log_p - exact[:3]).abs() < 5 * scores.log_p_se + 0.1).all()


def test_labels_are_needed_where_they_are_and_none_else():
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(3 + 2, [4]), 2, event_shape=(3,), num_labels=2)
    likelihood = pv.NormalLikelihood(pv.MLP(2 + 2, [4]), (3,), num_labels=2)
    vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="Expected labels y"):
        pv.score(vae, x, num_samples=5, proposal="encoder")
    one, zero = (pv.score(vae, x, y, num_samples=5, proposal="encoder").log_p for y in (1, 0))
    pair = (x, torch.ones(4, dtype=torch.long))
    torch.testing.assert_close(one, pv.score(vae, pair, num_samples=5, proposal="encoder").log_p)
    assert not torch.equal(one, zero)


@pytest.mark.parametrize("posterior", ["exact", "full", "iaf", "planar"])
def test_a_row_scored_alone_has_the_score_that_it_has_among_others(known, posterior):
    model, x, exact = known
    vae = model(2.0)
    if posterior != "exact":
        torch.manual_seed(1)
        kind = pv.FullNormalPosterior if posterior == "full" else pv.NormalPosterior
        q = kind(pv.MLP(4, [8]), 2)
        if posterior != "full":
            q = pv.FlowPosterior(q, getattr(pv.flows, posterior)(2, 2))
        vae = pv.VAE(vae.prior, q.double(), vae.likelihood)
    scores = score_alone(vae, x, num_samples=200)
    assert scores.proposal == "encoder" and len(scores) == 150
    for row in (0, 63, 64, 149):
        alone = score_alone(vae, x[row : row + 1], num_samples=200)
        torch.testing.assert_close(scores.log_p[row], alone.log_p[0], rtol=1e-12, atol=0)
    if posterior == "exact":
        away = (scores.log_p - exact) / scores.log_p_se
        assert away.abs().max() < 5


def made(values, proposal="encoder"):
    values = torch.tensor(values, dtype=torch.float64)
    return Scores(
        log_p=values,
        log_p_se=values * 0,
        pareto_k=None,
        unreliable=None,
        gaps=torch.zeros(len(values), dtype=torch.bool),
        num_samples=10,
        proposal=proposal,
    )


def test_p_values_count_reference_rows_that_score_as_low():
    new, old = made([-9.0, -2.0, -1.5, 7.0, -math.inf]), made([-1.0, -2.0, -3.0, -2.0])
    assert new.p_values(old).tolist() == [0.2, 0.8, 0.8, 1.0, 0.2]
    with pytest.raises(ValueError, match="draws of the encoder proposal"):
        new.p_values(made([1.0], "refined"))


def test_a_row_without_a_score_has_no_p_value():
    new, old = made([math.nan, -2.0]), made([-1.0, -2.0, -3.0, -2.0])
    first, second = new.p_values(old).tolist()
    assert math.isnan(first) and second == 0.8
    # Nor does a training row without one count as high.
    assert new.p_values(made([-1.0, -2.0, -3.0, -2.0, math.nan]))[1] == 0.8


def test_scores_of_rows_with_gaps_do_not_compare():
    new, old = made([-9.0, -2.0]), made([-9.0, -2.0, -1.0])
    new = dataclasses.replace(new, gaps=torch.tensor([True, False]))
    old = dataclasses.replace(old, gaps=torch.tensor([True, False, False]))
    first, second = new.p_values(old).tolist()
    assert math.isnan(first) and second == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="without gaps"):
        new.p_values(dataclasses.replace(old, gaps=torch.ones(3, dtype=torch.bool)))


def test_p_values_of_like_rows_keep_their_level(known):
    model, x, _ = known
    vae = model(1.5)
    new, old = (
        pv.score(vae, some, num_samples=30, proposal="encoder") for some in (x[:75], x[75:])
    )
    p = new.p_values(old)
    # A share of 0.2 of 75 rows that are like the 75 others: at most 0.2 + 3 * sqrt(0.16 * 2 / 75).
    assert 0.0 < (p <= 0.2).double().mean() < 0.4


def test_nearest_rows_are_found_in_each_elements_own_unit():
    torch.manual_seed(0)
    train = torch.randn(600, 3) * torch.tensor([1.0, 1000.0, 1e-3])
    x = torch.cat([train[[7, 599]], train[:300] + 0.1 * train.std(0)])
    distance, row = pv.nearest_rows(x, train)
    assert distance[:2].tolist() == [0, 0] and row[:2].tolist() == [7, 599]
    units = train.double().std(0, correction=0)
    every = ((x.double()[:, None] - train.double()) / units).square().mean(-1).sqrt()
    torch.testing.assert_close(distance, every.min(1).values)
    assert torch.equal(row, every.min(1).indices)
    scaled, _ = pv.nearest_rows(x * 8, train * 8)
    torch.testing.assert_close(scaled, distance)
    with pytest.raises(ValueError, match="rows of shape"):
        pv.nearest_rows(x[:, :2], train)


def test_nearest_pictures_share_one_unit():
    train = torch.tensor([[[0, 200], [10, 0]], [[0, 100], [30, 0]]], dtype=torch.uint8)
    distance, _ = pv.nearest_rows(train[:1] + 1, train, shared=True)
    assert distance.item() == pytest.approx(1 / train.double().std(correction=0).item())


def test_gaps_count_like_what_was_seen_of_both_rows():
    gap = float("nan")
    a = torch.tensor([[0.0, gap, 3.0], [gap, 1.0, gap], [gap, gap, 2.0]])
    b = torch.tensor([[1.0, 5.0, 3.0], [0.0, gap, gap]])
    expected = torch.tensor([[1.5**0.5, 0.0], [48**0.5, math.inf], [3**0.5, math.inf]])
    torch.testing.assert_close(_distances(a, b, []), expected)
    whole = torch.randn(4, 3)
    torch.testing.assert_close(_distances(whole, b[:1], []), torch.cdist(whole, b[:1]))


def test_classes_are_alike_or_not():
    train = torch.tensor([[0.0, 0.0], [4.0, 0.0], [8.0, 1.0], [8.0, 3.0]])
    x = torch.tensor([[0.0, 3.0], [8.0, 2.0]])
    distance, row = pv.nearest_rows(x, train, classes=[1])
    # Half of the mean square of 0 and 1.
    assert distance.tolist() == pytest.approx([0.5**0.5] * 2) and row.tolist() == [0, 2]
    assert pv.nearest_rows(train, train, classes=[1])[0].tolist() == [0] * 4
