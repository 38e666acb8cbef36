"""Callbacks see every epoch and step, may end training, and change nothing."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.training import run_folder
from pyro_vaes.training.callbacks import Callbacks
from pyro_vaes.training.validation import validate


def rows(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (n, 6), generator=generator).float()


TRAIN, VAL = rows(50, 1), rows(30, 2)


def make_vae(prior="standard", seed=0):
    torch.manual_seed(seed)
    posterior = pv.NormalPosterior(pv.MLP(6, [16]), 2)
    vamp = prior == "vamp"
    prior = pv.VampPrior(posterior, torch.rand(3, 6)) if vamp else pv.NormalPrior(2)
    return pv.VAE(prior, posterior, pv.CategoricalLikelihood(pv.MLP(2, [16]), (6,), 4))


def fit(vae, **options):
    usual = {"epochs": 6, "batch_size": 16, "progress": False, "mode": "traced"}
    return pv.fit(vae, TRAIN, VAL, **{**usual, **options})


def tensors_equal(a, b):
    a, b = named_tensors(a), named_tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def busy(record, vae):
    """Draws, and puts the modules into another mode."""
    vae.sample(3)
    torch.rand(7)
    vae.train(not vae.training)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"mode": "eager"}])
def test_a_run_that_is_watched_takes_the_same_steps(options):
    alone, watched = make_vae("vamp"), make_vae("vamp")
    expected = fit(alone, **options)
    history = fit(watched, on_epoch=busy, on_step=busy, **options)
    assert tensors_equal(alone, watched)
    assert [r["val_loss"] for r in history.records] == [r["val_loss"] for r in expected.records]
    assert watched.training is alone.training


def test_each_epoch_and_each_step_is_shown_once():
    epochs, steps = [], []
    history = fit(
        make_vae(),
        on_epoch=lambda record, vae: epochs.append(record),
        on_step=lambda record, vae: steps.append(record),
    )
    assert epochs == history.records
    assert epochs[0] is not history.records[0]
    assert [record["step"] for record in steps] == list(range(1, 6 * 4 + 1))
    assert [record["epoch"] for record in steps] == [1 + i // 4 for i in range(24)]
    # 50 rows in batches of 16: the mean of an epoch's steps, weighed by rows, is its loss.
    last = [float(record["train_loss"]) for record in steps[-4:]]
    mean = np.average(last, weights=[16, 16, 16, 2])
    assert mean == pytest.approx(epochs[-1]["train_loss"], rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_model_shown_is_the_one_validated(decay):
    def check(record, vae):
        assert not vae.training and not torch.is_grad_enabled()
        found = validate(vae, pv.ELBO(), pv.Split(VAL), seed=0)
        assert found["val_loss"] == record["val_loss"]

    assert fit(make_vae(), on_epoch=check, ema_decay=decay).epochs == 6


@pytest.mark.parametrize("name", ["on_epoch", "on_step"])
def test_true_ends_training_and_a_resumed_run_is_the_whole_run(tmp_path, name):
    whole = make_vae()
    fit(whole, epochs=4)

    def enough(record, vae):
        return np.bool_(record.get("step", 4 * record["epoch"]) >= 6)

    stopped = make_vae()
    history = fit(stopped, epochs=4, out=tmp_path, **{name: enough})
    assert history.stopped == "callback"
    assert history.epochs == {"on_epoch": 2, "on_step": 1}[name]
    assert tensors_equal(stopped, pv.load(tmp_path))
    seen = []
    resumed = make_vae(seed=9)
    again = fit(
        resumed,
        epochs=4,
        out=tmp_path,
        resume=True,
        on_step=lambda record, vae: seen.append(record["step"]),
    )
    assert again.stopped == "epochs" and tensors_equal(whole, resumed)
    assert seen == list(range({"on_epoch": 9, "on_step": 7}[name], 17))


def test_true_at_the_last_step_of_an_epoch_ends_after_its_validation():
    history = fit(make_vae(), on_step=lambda record, vae: record["step"] == 8)
    assert (history.stopped, history.epochs) == ("callback", 2)
    assert "val_loss" in history.records[-1]


def test_an_exception_ends_training_and_the_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_CHECKPOINT_SECONDS", 0.0)
    whole, vae, resumed = make_vae(), make_vae(), make_vae(seed=9)
    fit(whole, epochs=4)

    def fail(record, vae):
        if record["epoch"] == 3:
            raise LookupError("pruned")

    with pytest.raises(LookupError, match="pruned"):
        fit(vae, epochs=4, out=tmp_path, on_epoch=fail)
    seen = []
    watch = {"on_epoch": lambda record, vae: seen.append(record["epoch"])}
    fit(resumed, epochs=4, out=tmp_path, resume=True, **watch)
    assert seen == [3, 4] and tensors_equal(whole, resumed)


def test_what_is_no_callback_or_no_answer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected on_epoch to be a function"):
        fit(make_vae(), on_epoch="print", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="None, or True to end training; got 3"):
        fit(make_vae(), on_epoch=lambda record, vae: 3)


class Peers:
    """Two processes in turn: what the first one agrees to is what the second one gets."""

    def __init__(self, rank, said):
        self.rank, self.said = rank, said

    def agree(self, value):
        if not self.rank:
            self.said.append(value)
            return value
        return self.said.pop(0)

    def together(self):
        return nullcontext()


def test_the_first_process_calls_and_all_know_the_answer():
    said, called = [], []
    vae = make_vae()

    def callback(record, vae):
        called.append(record)
        return True

    for rank, given in ((0, callback), (1, None)):  # The second may lack it.
        callbacks = Callbacks(given, None, Peers(rank, said))
        callbacks.begin()
        callbacks.epoch({"epoch": 1}, vae)
        assert callbacks.enough and not callbacks.steps
    assert called == [{"epoch": 1}] and not said
