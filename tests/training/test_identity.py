"""A run is resumed with what it was started with, or refused."""

import json

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import read_groups, write_groups
from pyro_vaes.training.checkpoint import CHECKPOINT, settings_of

X, VAL = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))


def make_vae():
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(4, [8]), 2)
    return pv.VAE(pv.NormalPrior(2), posterior, pv.NormalLikelihood(pv.MLP(2, [8]), (4,)))


def train(out, x=X, val=VAL, epochs=2, **options):
    torch.manual_seed(0)  # The divergence's critic may be made in the call.
    return pv.fit(
        make_vae(), x, val, epochs=epochs, out=out, resume=True, progress=False, **options
    )


def info(divergence):
    return {"objective": pv.InfoELBO(0.0, 10.0, divergence)}


class Mine(pv.ELBO):
    """A user's objective, with a setting and a count of its own."""

    def __init__(self, strength):
        super().__init__()
        self.strength, self.calls = strength, 0

    def trace_loss(self, *traces):
        self.calls += 1
        return self.strength * super().trace_loss(*traces)


CHANGED = {
    "validation": ({}, {"val": VAL + 1}, "validation data"),
    "no validation": ({}, {"val": None}, "validation data"),
    "transform": ({}, {"x": pv.Split(X, transform=lambda x, _: x + 1)}, "transform of the data"),
    "kernel": (info(pv.MMD()), info(pv.MMD("rbf")), "settings of the objective"),
    "bandwidths": (
        info(pv.MMD(bandwidth=(1.0, 2.0))),
        info(pv.MMD(bandwidth=(1.0, 3.0))),
        "settings of the objective",
    ),
    "critic": (
        info(pv.Adversarial(2, [4])),
        info(pv.Adversarial(2, [4], steps=3)),
        "settings of the objective",
    ),
    "number of data": (
        {"objective": pv.BetaTCELBO()},
        {"objective": pv.BetaTCELBO(num_data=1000)},
        "settings of the objective",
    ),
    "own": ({"objective": Mine(1.0)}, {"objective": Mine(2.0)}, "settings of the objective"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_run_is_not_resumed_with_something_else(tmp_path, what):
    first, then, named = CHANGED[what]
    train(tmp_path, **first)
    with pytest.raises(RunFolderError, match=f"Expected the {named} that the run in"):
        train(tmp_path, epochs=4, **then)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "options",
    [
        lambda: info(pv.MMD(bandwidth=(1.0, 2.0))),
        lambda: {"objective": Mine(2.0)},
        lambda: {"x": pv.Split(X, transform=lambda x, _: x + torch.randn_like(x))},
        lambda: {"val": None},
    ],
)
def test_what_is_the_same_is_resumed(tmp_path, options):
    train(tmp_path, **options())
    assert train(tmp_path, epochs=4, **options()).epochs == 4


def test_checkpoints_that_do_not_say_are_resumed(tmp_path):
    train(tmp_path)
    groups, record = read_groups(tmp_path / CHECKPOINT)
    for name in ("validation data", "transform of the data", "settings of the objective"):
        del record["identity"][name]
    write_groups(tmp_path / CHECKPOINT, groups, record)
    assert train(tmp_path, epochs=4).epochs == 4


def test_settings_are_plain_arguments_and_not_what_training_counts():
    assert settings_of(Mine(2.0)) == {"strength": 2.0}
    assert settings_of(pv.InfoELBO(0.0, 10.0, pv.MMD(bandwidth=(1.0, 2.0)))) == {
        "free_bits": 0.0,
        "divergence.kernel": "imq",
        "divergence.bandwidth": [1.0, 2.0],
    }
    assert json.dumps(settings_of(pv.ManySamples(num_particles=3)))


def test_more_epochs_under_a_schedule_are_said_to_change_it(tmp_path):
    train(tmp_path, schedule="cosine")
    assert train(tmp_path, schedule="cosine").epochs == 2
    with pytest.warns(UserWarning, match="cosine schedule of the learning rate now ends after 4"):
        train(tmp_path, epochs=4, schedule="cosine")
