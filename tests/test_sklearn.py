"""The estimator: scikit-learn's own checks, and a VAE's figures behind its methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyro_vaes as pv
from pyro_vaes.data.splits import batches
from pyro_vaes.sklearn import VAEEstimator

# Two epochs score poorly, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:log p.x. is not to be trusted")

QUICK = dict(hidden_dims=(8,), epochs=2, num_samples=50)
LONGER = dict(hidden_dims=(16,), epochs=120, batch_size=16, random_state=0)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    random = np.random.default_rng(0)
    z = random.normal(size=(150, 1))
    noise = 0.3 * random.normal(size=(150, 3))
    return (z * [1.0, -2.0, 0.5] + noise) * [1, 100, 0.01] + [0, 1000, 5]


@pytest.fixture(scope="module")
def model(rows: np.ndarray) -> VAEEstimator:
    return VAEEstimator(1, **LONGER).fit(rows)


@parametrize_with_checks([VAEEstimator(**QUICK, random_state=0)])
def test_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def test_a_start_at_a_factor_analysis_scores_at_once(rows):
    options = dict(likelihood="student_t", prior="mixture", learning_rate=1e-4, epochs=1)
    scores = {
        start: VAEEstimator(1, start=start, random_state=0, **options).fit(rows).score(rows)
        for start in ("random", "factors")
    }
    assert scores["factors"] > scores["random"] + 0.5


def test_codes_rows_and_scores_are_the_models(model, rows):
    x = torch.from_numpy(rows)
    np.testing.assert_array_equal(model.transform(rows), model.vae_.encode(x))
    z = model.transform(rows)
    np.testing.assert_array_equal(model.inverse_transform(z), model.vae_.decode(torch.tensor(z)))
    np.testing.assert_allclose(model.inverse_transform(z).std(0), rows.std(0), rtol=0.3)
    scores = model.score_samples(rows)
    trusted = pv.score(model.vae_, x, num_samples=1000)
    assert not trusted.unreliable.any()
    # Both are estimates, of 200 and 1000 draws.
    assert np.abs(scores - trusted.log_p.numpy()).mean() < 0.1
    assert model.score(rows) == pytest.approx(scores.mean())


def test_a_rows_score_does_not_depend_on_what_stands_next_to_it(model, rows):
    together = model.score_samples(rows)
    alone = [model.score_samples(rows[i : i + 1])[0] for i in (0, 70, 149)]
    np.testing.assert_allclose(together[[0, 70, 149]], alone, rtol=1e-12)


def test_scores_by_another_proposal_are_those_of_score(model, rows):
    other = clone(model).set_params(proposal="refined", num_samples=30)
    other.vae_, other._seed, other.n_features_in_ = model.vae_, model._seed, 3
    expected = pv.score(model.vae_, rows[:5], num_samples=30, proposal="refined", seed=model._seed)
    np.testing.assert_array_equal(other.score_samples(rows[:5]), expected.log_p)


def test_units_do_not_matter(rows):
    scaled = rows * [8.0, 0.5, 1024.0]
    a, b = (VAEEstimator(1, **QUICK, random_state=0).fit(x) for x in (rows, scaled))
    np.testing.assert_allclose(a.transform(rows), b.transform(scaled), rtol=1e-5)
    shift = np.log([8.0, 0.5, 1024.0]).sum()
    np.testing.assert_allclose(a.score_samples(rows), b.score_samples(scaled) + shift, rtol=1e-5)


def test_samples_are_rows_in_the_units_of_the_data(model, rows):
    drawn = model.sample(4000, random_state=1)
    assert drawn.shape == (4000, 3)
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), rtol=0.1, atol=0.3)
    np.testing.assert_allclose(drawn.std(0), rows.std(0), rtol=0.25)
    np.testing.assert_array_equal(model.sample(3, random_state=1), model.sample(3, random_state=1))
    state = torch.get_rng_state()
    assert not np.array_equal(model.sample(3), model.sample(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_says_when_scores_are_not_to_be_trusted(rows):
    with pytest.warns(UserWarning, match="not to be trusted for"):
        VAEEstimator(2, **QUICK | {"num_samples": 25}, random_state=0).fit(rows).score_samples(
            rows * 3
        )


def test_whole_weights_are_repeated_rows_to_the_last_bit(rows):
    times = np.random.default_rng(1).integers(0, 4, len(rows))
    weighted = VAEEstimator(1, **QUICK, random_state=0).fit(rows, sample_weight=times)
    repeated = VAEEstimator(1, **QUICK, random_state=0).fit(rows.repeat(times, 0)[::-1])
    plain = VAEEstimator(1, **QUICK, random_state=0).fit(rows)
    np.testing.assert_array_equal(weighted.score_samples(rows), repeated.score_samples(rows))
    assert not np.allclose(weighted.transform(rows), plain.transform(rows))
    losses = [[e["val_loss"] for e in m.history_.records] for m in (weighted, repeated)]
    assert losses[0] == losses[1]


def test_training_draws_rows_by_their_weights(rows, monkeypatch):
    weights = np.where(rows[:, 0] > 0, 0.9, 0.1)
    seen = []
    monkeypatch.setattr("pyro_vaes.sklearn.train", lambda vae, data, config, **_: seen.append(data))
    VAEEstimator(1, **QUICK, random_state=0).fit(rows, sample_weight=weights)
    (data,) = seen
    for split in (data.train, data.val):  # Each row has its own weight still.
        expected = torch.where(split.x[:, 0] > 0, 0.9, 0.1).double()
        torch.testing.assert_close(split.weights, expected)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([x for _ in range(100) for x, _ in batches(data.train, 64, generator)])
    share = (drawn[:, 0] > 0).double().mean()
    expected = data.train.weights[data.train.x[:, 0] > 0].sum() / data.train.weights.sum()
    assert share == pytest.approx(float(expected), abs=0.02)


def test_rows_without_weight_have_no_effect(rows):
    wild = np.concatenate([rows, [[1e9, -1e9, 1e9]]])
    for weights in (np.ones(len(rows)), np.linspace(0.5, 1.5, len(rows))):
        fits = [
            VAEEstimator(1, **QUICK, random_state=0).fit(x, sample_weight=np.append(weights, w))
            for x, w in ((wild, 0.0), (rows, []))
        ]
        np.testing.assert_array_equal(*(f.transform(rows) for f in fits))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([-1.0] + [1.0] * 149, "finite weights of 0 or more; got -1"),
        ([np.nan] + [1.0] * 149, "finite weights of 0 or more; got nan"),
        ([0.0] * 150, "one is above 0; all weights are zero"),
        ([1.0] * 149, "weight for each of 150 rows"),
        ([2.0] + [0.0] * 149, "at least 3 rows that count; got 2"),
        ([0.5] + [0.0] * 149, "at least 3 rows that count; got 1"),
        (["a"] * 150, "weights that are numbers"),
    ],
)
def test_weights_that_are_none_are_refused(rows, weights, words):
    with pytest.raises(ValueError, match=words) as caught:
        VAEEstimator(1, **QUICK).fit(rows, sample_weight=weights)
    assert "\n" not in str(caught.value)


def test_lives_in_a_pipeline_with_names(rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"]).assign(word="x")
    y = (rows[:, 0] > 0).astype(int)
    columns = ColumnTransformer([("numbers", StandardScaler(), ["a", "b", "c"])])
    codes = VAEEstimator(1, **LONGER)
    pipeline = make_pipeline(columns, codes, LogisticRegression())
    pipeline.set_output(transform="pandas")
    assert pipeline.fit(frame, y).score(frame, y) > 0.8
    assert list(pipeline[:-1].transform(frame).columns) == ["vaeestimator0"]


def test_lives_in_a_grid_search(rows):
    search = GridSearchCV(
        VAEEstimator(**QUICK, random_state=0),
        {"latent_dim": np.array([1, 2]), "prior": ["standard", "mixture"]},
        cv=2,
    ).fit(rows)
    assert set(search.best_params_) == {"latent_dim", "prior"}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"prior": "nothing"}, "prior"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"likelihood": "bernoulli"}, "likelihood"),
    ],
)
def test_parameters_are_checked_by_fit(rows, wrong, words):
    with pytest.raises(ValueError, match=words):
        VAEEstimator(**QUICK | wrong).fit(rows)


def test_gaps_are_filled_from_what_was_seen(model, rows):
    gaps = rows[:60].copy()
    gaps[:, 1] = np.nan
    filled = model.impute(gaps)
    np.testing.assert_array_equal(filled[:, [0, 2]], gaps[:, [0, 2]])
    error = ((filled[:, 1] - rows[:60, 1]) ** 2).mean() ** 0.5
    assert error < 0.7 * rows[:, 1].std()
    np.testing.assert_array_equal(model.impute(rows), rows)
    assert np.isfinite(model.transform(gaps)).all() and np.isfinite(model.score(gaps))


def test_learns_from_rows_with_gaps(model, rows):
    gaps = np.where(np.random.default_rng(1).random(rows.shape) < 0.2, np.nan, rows)
    other = VAEEstimator(1, **LONGER).fit(gaps)
    assert other.score(rows) > model.score(rows) - 1
