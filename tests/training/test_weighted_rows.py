"""Rows with weights: what is learned is what they say, resumed exactly, refused where unused."""

from __future__ import annotations

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.data.splits import batches
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.training.validation import validate

# Two kinds of rows, of which the second counts nine times as much.
X = torch.tensor([[-1.0], [1.0]]).repeat(40, 1)
WEIGHTS = torch.tensor([1.0, 9.0]).repeat(40)


def make_vae() -> pv.VAE:
    torch.manual_seed(0)
    likelihood = pv.NormalLikelihood(pv.MLP(1, [4]), (1,))
    return pv.VAE(pv.NormalPrior(1), pv.NormalPosterior(pv.MLP(1, [4]), 1), likelihood)


def fit(vae: pv.VAE, train: pv.Split, val: pv.Split | None = None, **options: object) -> pv.History:
    usual: dict = {"epochs": 30, "batch_size": 16, "learning_rate": 0.02, "progress": False}
    return pv.fit(vae, train, val, **{**usual, **options})


def test_the_model_learns_rows_by_their_weights():
    means = []
    for weights in (None, WEIGHTS):
        vae = make_vae()
        fit(vae, pv.Split(X, weights=weights))
        torch.manual_seed(1)
        means.append(vae.sample(2000).mean().item())
    assert abs(means[0]) < 0.3 and 0.5 < means[1] < 1.1


def test_a_validation_set_counts_its_rows_by_their_weights():
    vae, split = make_vae(), pv.Split(X, weights=WEIGHTS)
    rows, _ = next(batches(split, len(split)))
    assert abs((rows > 0).float().mean() - 0.9) < 0.06
    weighted, plain = (validate(vae, pv.ELBO(), some, seed=0) for some in (split, pv.Split(rows)))
    assert weighted == plain


def test_a_weighted_run_is_resumed_exactly_and_by_its_own_weights_alone(tmp_path):
    split = pv.Split(X, weights=WEIGHTS)
    whole, parts = make_vae(), make_vae()
    fit(whole, split, split, epochs=4, out=tmp_path / "whole")
    fit(parts, split, split, epochs=2, out=tmp_path / "parts")
    parts = make_vae()
    fit(parts, split, split, epochs=4, out=tmp_path / "parts", resume=True)
    a, b = named_tensors(whole), named_tensors(parts)
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = pv.Split(X, weights=WEIGHTS.flip(0))
    with pytest.raises(RunFolderError, match="data"):
        fit(make_vae(), other, split, epochs=5, out=tmp_path / "parts", resume=True)


def test_weights_are_refused_where_they_would_not_count():
    split = pv.Split(X, weights=WEIGHTS)
    with pytest.raises(ValueError, match="without weights"):
        pv.evaluate(make_vae(), split, num_samples=5, proposal="encoder")
    with pytest.raises(ValueError, match="without weights"):
        pv.fit_many([make_vae(), make_vae()], split, epochs=1)
    scores = pv.score(make_vae(), split, num_samples=5, proposal="encoder")
    assert len(scores) == len(split)
