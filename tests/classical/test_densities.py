"""Classical densities: they integrate to one and follow units; validation chooses the best."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

import pyro_vaes as pv
from pyro_vaes.classical.comparison import compared, comparison_lines, gain_of, why_not
from pyro_vaes.classical.densities import best_density, candidates
from pyro_vaes.classical.student import StudentMixture
from pyro_vaes.data.splits import Split


def rows(n, d=2, seed=0):
    return np.random.default_rng(seed).standard_t(4, (n, d)) @ np.array([[1.0, 0.5], [0, 1]])


def test_every_candidate_integrates_to_one():
    axis = np.linspace(-60, 60, 1201)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    x = rows(200)
    found = dict(candidates(x / x.std(0), 0))
    kinds = ("normal", "Factor", "GaussianMixture, full", "GaussianMixture, diag", "t, f", "t's")
    for kind in kinds:
        name, model = next((n, m) for n, m in found.items() if kind in n)
        mass = np.exp(model.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
        assert mass == pytest.approx(1, abs=5e-3), name


def test_one_multivariate_t_is_that_of_scipy_and_finds_its_parameters():
    truth = stats.multivariate_t([1.0, -2.0], [[2.0, 0.6], [0.6, 1.0]], df=4, seed=0)
    x = truth.rvs(20_000)
    model = StudentMixture(1, floor=1e-6).fit(x)
    assert model.df == pytest.approx(4, rel=0.1)
    np.testing.assert_allclose(model.locs[0], truth.loc, atol=0.05)
    np.testing.assert_allclose(model.scatters[0], truth.shape, atol=0.06)
    own = stats.multivariate_t(model.locs[0], model.scatters[0], model.df)
    np.testing.assert_allclose(model.score_samples(x[:9]), own.logpdf(x[:9]))


def test_an_iteration_of_the_mixture_of_ts_never_lowers_the_likelihood():
    x = np.concatenate([rows(150), rows(150, seed=1) + 8])
    means = []
    for steps in range(1, 12):
        model = StudentMixture(2, floor=0.0, steps=steps, tolerance=-math.inf).fit(x)
        means.append(model.score_samples(x).mean())
    assert np.diff(means).min() > -1e-9
    assert np.sort(model.locs[:, 0])[1] == pytest.approx(8, abs=1)


def test_units_change_the_density_by_their_log():
    x = torch.as_tensor(rows(300))
    scale = torch.tensor([1e4, 1e-3], dtype=torch.float64)
    plain, scaled = (best_density(t[:200], t[200:]) for t in (x, scale * x + 3))
    assert plain.name == scaled.name
    torch.testing.assert_close(
        scaled.log_prob(scale * x + 3) + scale.log().sum(), plain.log_prob(x), atol=1e-3, rtol=0
    )


def test_heavy_tails_and_clusters_are_recognised():
    x = torch.as_tensor(rows(600))
    assert "t" in best_density(x[:400], x[400:]).name.split(",")[0]
    two = torch.cat([torch.randn(300, 2) * 0.2, torch.randn(300, 2) * 0.2 + 3])
    two = two[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert "ixture" in best_density(two[:400], two[400:]).name


def test_rows_with_gaps_and_unknown_names_are_refused():
    x = torch.randn(50, 2)
    with pytest.raises(ValueError, match="part of the name"):
        best_density(x, x, only="flow")
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="without gaps"):
        best_density(x, x)


def test_the_comparison_is_paired_and_says_why_there_is_none():
    x = torch.as_tensor(rows(300)).float()
    data = pv.load_data(x)
    best = best_density(data.train, data.val)

    class Result:
        given_label = False
        log_marginal = best.log_prob(data.test) + torch.arange(60) / 59 - 0.25

    found = compared(data, data.test, Result)
    assert found["classical"] == best.name
    assert found["above_classical"] == pytest.approx(0.25)
    error = float(torch.arange(60.0).std() / 59 / 60**0.5)
    assert found["above_classical_se"] == pytest.approx(error)
    lines = "\n".join(comparison_lines(found))
    assert best.name in lines and "+0.25" in lines
    labelled = type("Labelled", (Result,), {"given_label": True})
    assert "given their labels" in comparison_lines(compared(data, data.test, labelled))[0]
    x[3, 1] = torch.nan
    other = pv.load_data(x)
    nothing = compared(other, other.test, Result)
    assert nothing["classical"] is None
    assert comparison_lines(nothing) == [
        "no classical density to compare with: some values were not seen"
    ]
    assert comparison_lines({}) == []


def test_one_row_is_compared_without_standard_errors() -> None:
    data = pv.load_data(torch.as_tensor(rows(6)).float())
    one = Split(data.test.x[:1])

    class Result:
        given_label = False
        log_marginal = torch.zeros(1)

    found = compared(data, one, Result)
    assert found["classical_nll_se"] is found["above_classical_se"] is None
    assert found["above_classical_se_reason"] == "one datum has no standard error"
    json.dumps(found, allow_nan=False)
    assert "+-" not in "".join(comparison_lines(found)) and "nan" not in str(found)
    powers = pv.YeoJohnson.of(data.train.x)
    assert gain_of(dataclasses.replace(data, val=one), powers)[1] == math.inf
    assert why_not(dataclasses.replace(data, train=one)) == "one training row has no spread"


def test_the_name_says_that_some_rows_were_not_seen() -> None:
    x = torch.randn(5001, 2)
    assert best_density(x[:5000], x[:9], only="shrunk by 0.1").name == "normal, shrunk by 0.1"
    seen = best_density(x, x[:9], only="shrunk by 0.1").name
    assert seen == "normal, shrunk by 0.1, of 5000 rows"
