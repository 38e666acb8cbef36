"""Likelihoods of table rows: each kind of column against SciPy, starts, gaps, categories."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from registry import scramble
from scipy import integrate, stats

import pyro_vaes as pv
from pyro_vaes.core.columns import columns_of
from pyro_vaes.networks.columns import OneHotColumns
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.columns import TableLikelihood

pytestmark = pytest.mark.usefixtures("float64")

COLUMNS = {
    "mass": "real",
    "species": ("category", 3),
    "dose": "hurdle",
    "visits": "count",
    "price": "positive",
    "grade": ("ordinal", 4),
    "male": "binary",
    "length": "real",
}


def table(n=200, gaps=0.0):
    torch.manual_seed(7)
    z = torch.randn(n)
    x = torch.stack(
        [
            4000 + 500 * z + 100 * torch.randn(n),
            (torch.rand(n) * 1.5 + z.sigmoid()).floor().clamp(0, 2),
            torch.where(torch.rand(n) < 0.4, 0.0, 30 + 5 * torch.randn(n)),
            torch.poisson((2 + z).exp()),
            (z + 3 + 0.1 * torch.randn(n)).exp(),
            (2 + z).round().clamp(0, 3),
            (torch.rand(n) < z.sigmoid()).double(),
            1e-3 * (z + torch.randn(n)),
        ],
        -1,
    )
    return x.masked_fill(torch.rand(n, 8) < gaps, torch.nan)


def built(columns=COLUMNS, mask=False, labels=0):
    found = columns_of(columns)
    sizes = [c.size if c.kind == "category" else 0 for c in found]
    inner = MLP(sum(s or 1 for s in sizes) + (len(found) if mask else 0) + labels, [16])
    network = OneHotColumns(inner, sizes)
    posterior = pv.NormalPosterior(network, 2, (len(found),), labels, mask=mask)
    likelihood = TableLikelihood(MLP(2 + labels, [16]), columns, labels)
    return pv.VAE(pv.NormalPrior(2), posterior, likelihood)


def one(kind, x):
    """A likelihood of one column that has learned something, and its distribution."""
    likelihood = TableLikelihood(MLP(2, [8]), {"c": kind})
    likelihood.initialize_from(x.unsqueeze(-1))
    for p in likelihood.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return likelihood(torch.randn(1, 2)), likelihood.kinds[0]


def test_columns_of_real_and_positive_numbers_integrate_to_one_and_are_those_of_scipy():
    with torch.no_grad():
        d, kind = one("real", 1000 + 50 * torch.randn(100))
        df = 2 + (10 * kind.log_df).exp().item()
        sd = (kind.spread * kind.scale).item()
        t = stats.t(df, loc=d.mean.item(), scale=sd * ((df - 2) / df) ** 0.5)
        x = torch.tensor([[700.0], [1001.0], [1200.0]])
        torch.testing.assert_close(d.log_prob(x), torch.as_tensor(t.logpdf(x[:, 0])))
        assert t.std() == pytest.approx(sd)

        d, kind = one("positive", (3 + torch.randn(100)).exp())
        sigma = (kind.spread * kind.scale).item()
        normal = stats.lognorm(sigma, scale=d.mean.item() / torch.tensor(sigma**2 / 2).exp().item())
        x = torch.tensor([[0.1], [10.0], [400.0]])
        torch.testing.assert_close(d.log_prob(x), torch.as_tensor(normal.logpdf(x[:, 0])))


def test_a_hurdle_is_a_probability_at_zero_and_a_density_elsewhere():
    x = torch.where(torch.rand(300) < 0.4, 0.0, 30 + 5 * torch.randn(300))
    with torch.no_grad():
        d, _ = one("hurdle", x)
        at_zero = d.log_prob(torch.zeros(1, 1)).exp().item()
        density = lambda v: d.log_prob(torch.tensor([[v]])).exp().item()  # noqa: E731
        rest, _ = integrate.quad(density, -50, 120, points=[30.0], limit=200)
        draws = d.sample((20_000,))[:, 0, 0]
    assert at_zero + rest == pytest.approx(1, abs=1e-6)
    assert (draws == 0).double().mean().item() == pytest.approx(at_zero, abs=0.02)
    assert draws.mean().item() == pytest.approx(d.mean.item(), abs=0.4)


@pytest.mark.parametrize("kind", ["real", "positive", "hurdle", "count", "binary"])
def test_columns_start_at_what_training_rows_say(kind):
    x = table(2000)[:, list(COLUMNS).index({v: k for k, v in COLUMNS.items()}[kind])]
    x[::5] = torch.nan
    likelihood = TableLikelihood(MLP(2, [8]), {"c": kind})
    likelihood.initialize_from(x.unsqueeze(-1))
    with torch.no_grad():
        likelihood.head.weight.zero_()
        likelihood.head.bias.zero_()
        d = likelihood(torch.zeros(1, 2))
        draws = d.sample((20_000,))[:, 0, 0]
    seen = x[~x.isnan()]
    assert abs(draws.mean() - seen.mean()) < 0.12 * seen.std() + 0.02
    assert draws.std() == pytest.approx(seen.std().item(), rel=0.35)


@pytest.mark.parametrize("kind", [("category", 4), ("ordinal", 4)])
def test_frequencies_are_those_of_training_rows(kind):
    x = torch.tensor([0.0, 0, 0, 1, 3, 3, torch.nan, torch.nan]).repeat(200).unsqueeze(-1)
    likelihood = TableLikelihood(MLP(2, [8]), {"c": kind})
    likelihood.initialize_from(x)
    with torch.no_grad():
        likelihood.head.weight.zero_()
        likelihood.head.bias.zero_()
        p = likelihood(torch.zeros(1, 2)).log_prob(torch.arange(4.0).unsqueeze(-1)).exp()
    torch.testing.assert_close(p, torch.tensor([3, 1, 0, 2]) / 6, atol=0.02, rtol=0)


@pytest.mark.parametrize("labels", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_mixed_table_with_gaps_trains_scores_fills_and_reloads(labels, tmp_path):
    x, vae = table(gaps=0.1), built(mask=True, labels=labels)
    y = torch.arange(len(x)) % 2 if labels else None
    vae.likelihood.initialize_from(x)
    split = pv.Split(x, y)
    before = pv.evaluate(vae, split, num_samples=50, proposal="encoder").nll
    pv.fit(vae, split, epochs=40, learning_rate=5e-3, progress=False)
    assert pv.evaluate(vae, split, num_samples=50, proposal="encoder").nll < before - 1
    found = pv.impute(vae, x, 100, num_draws=2, y=y)
    made = vae.sample(50, None if y is None else y[:50])
    for rows in (found.x, found.draws[0], made):
        assert torch.equal(rows[:, 1], rows[:, 1].round())
    assert torch.equal(made[:, 6], made[:, 6].round())
    assert set(found.x[:, 1].tolist()) <= {0.0, 1.0, 2.0}
    pv.save(vae, tmp_path)
    torch.save((x, y), tmp_path / "x.pt")
    code = (
        "import torch, pyro_vaes as pv; torch.set_default_dtype(torch.float64); "
        f"x, y = torch.load({str(tmp_path / 'x.pt')!r}); vae = pv.load({str(tmp_path)!r}); "
        "print(pv.log_marginal(vae, x, 20, y=y, proposal='encoder').sum().item())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value = pv.log_marginal(vae, x, 20, y=y, proposal="encoder").sum().item()
    assert float(ended.stdout) == pytest.approx(value, rel=1e-12)


def test_a_category_is_filled_by_its_probabilities_not_by_the_mean_of_numbers():
    """Half of the draws say 0 and half say 2: the mean, 1, is the one that never is."""
    x = torch.tensor([[0.0], [2.0]]).repeat(50, 1)
    likelihood = TableLikelihood(MLP(1, [4]), {"c": ("category", 3)})
    likelihood.initialize_from(x)
    network = OneHotColumns(MLP(3, [4]), [3])
    vae = pv.VAE(pv.NormalPrior(1), pv.NormalPosterior(network, 1, (1,)), likelihood)
    found = pv.impute(vae, torch.full((4, 1), torch.nan), 200, num_draws=20, proposal="encoder")
    assert set(found.x.flatten().tolist()) <= {0.0, 2.0}
    assert not (found.draws == 1).double().mean() > 0.1


def test_posteriors_see_categories_one_hot_and_gaps_as_none():
    vae = built()
    vae.likelihood.initialize_from(table())
    seen = []
    vae.posterior.network.network.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    x = table()[:2]
    x[0, 1], x[1, 1] = 2, torch.nan
    vae.encode(x)
    assert seen[0].shape == (2, 10)
    assert seen[0][:, 1:4].tolist() == [[0, 0, 1], [0, 0, 0]]
    mass = table()[:, 0]
    torch.testing.assert_close(seen[0][0, 0], (x[0, 0] - mass.mean()) / mass.std(correction=0))


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        (1, 3.0, "species"),
        (3, 0.5, "visits"),
        (4, -1.0, "price"),
        (5, 4.0, "grade"),
        (6, 2.0, "male"),
    ],
)
def test_values_of_another_kind_are_refused_with_their_column(column, value, match):
    vae, x = built(), table()
    vae.likelihood.initialize_from(x)
    x[7, column] = value
    with pytest.raises(ValueError, match=f"column '{match}'; got .* in row 7"):
        pv.fit(vae, x, epochs=1, progress=False)
    with pytest.raises(ValueError, match=f"values in column '{match}'; got .* in row 7"):
        vae.likelihood.initialize_from(x)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"a": "word"}, "kind of column 'a' among real, .*; got 'word'"),
        ({"a": "category"}, "size of at least 2 for the category column 'a'; got 0"),
        ({"a": ("real", 3)}, "no size for the real column 'a'; got 3"),
        ([("a", "real"), ("a", "real")], "different names; got a, a"),
        ({}, "at least one column"),
    ],
)
def test_columns_that_make_no_sense_are_refused(columns, match):
    with pytest.raises(ValueError, match=match):
        TableLikelihood(MLP(2, [8]), columns)


def test_an_unscrambled_order_and_any_unit():
    """Columns come back where they stood; kilograms for grams change log p by the log of a unit."""
    x, scores = table(), []
    for factor in (1.0, 1000.0):
        torch.manual_seed(0)
        vae = scramble(built(), 0.3)
        rows = x * torch.tensor([factor, 1, factor, 1, factor, 1, 1, factor])
        vae.likelihood.initialize_from(rows)
        scores.append(vae.p_x(torch.zeros(200, 2)).log_prob(rows))
    hurdles = (x[:, 2] != 0).double()
    unit = torch.tensor(1000.0).log() * (3 + hurdles)
    torch.testing.assert_close(scores[1] + unit, scores[0], atol=1e-8, rtol=0)
    draws = vae.sample(2000)
    assert draws.median(0).values[0] > 1e5 and draws[:, 7].abs().median() < 100
