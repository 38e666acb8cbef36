"""Files are whole or refused in one line, and never executed."""

import json
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vaes as pv
from pyro_vaes.storage import files as folders
from pyro_vaes.storage import tensors
from pyro_vaes.storage import weights as checkpoints
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.storage.weights import load_record


def make_vae(seed=0):
    torch.manual_seed(seed)
    base = pv.NormalPosterior(pv.MLP(6, [8]), 2)
    prior = pv.VampPrior(base, torch.rand(3, 6))
    likelihood = pv.CategoricalLikelihood(pv.MLP(2, [8]), (6,), 4)
    return pv.VAE(prior, pv.FlowPosterior(base, pv.flows.iaf(2, 2)), likelihood)


def test_round_trip_keeps_outputs_and_sharing(tmp_path):
    vae = make_vae()
    pv.save(vae, tmp_path)
    other = pv.load(tmp_path)
    x = torch.randint(0, 4, (5, 6)).float()
    torch.manual_seed(1)
    expected = vae.eval().encode(x, num_samples=2)
    torch.manual_seed(1)
    assert torch.equal(other.encode(x, num_samples=2), expected)
    assert other.prior.posterior is other.posterior.base
    assert other.posterior.x_range == vae.posterior.x_range == (0.0, 3.0)


def test_equal_weights_give_equal_bytes(tmp_path):
    paths = [pv.save(make_vae(), tmp_path / name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert pv.save(make_vae(1), tmp_path / "c").read_bytes() != paths[0].read_bytes()


def test_double_precision_survives(tmp_path):
    vae = make_vae().double()
    pv.save(vae, tmp_path)
    assert pv.load(tmp_path).dtype == torch.float64


class OwnPosterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x):
        return dist.Normal(self.linear(x), 1.0).to_event(1)


def test_own_modules_load_into(tmp_path):
    def make():
        likelihood = pv.CategoricalLikelihood(pv.MLP(2, [8]), (6,), 4)
        return pv.VAE(pv.NormalPrior(2), OwnPosterior(), likelihood)

    vae, other = make(), make()
    pv.save(vae, tmp_path)
    with pytest.raises(RunFolderError, match="into=vae"):
        pv.load(tmp_path)
    assert pv.load(tmp_path, into=other) is other
    assert torch.equal(other.posterior.linear.weight, vae.posterior.linear.weight)
    with pytest.raises(RunFolderError, match="Expected the tensors of this VAE"):
        pv.load(tmp_path, into=make_vae())


def test_record_is_kept(tmp_path):
    pv.save(make_vae(), tmp_path, {"config": {"beta": 1}})
    assert load_record(tmp_path)["config"] == {"beta": 1}


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_folder_or_file(tmp_path):
    with pytest.raises(RunFolderError, match="found none") as error:
        pv.load(tmp_path / "nothing")
    one_line(error)


def test_every_truncation_is_refused(tmp_path):
    path = pv.save(make_vae(), tmp_path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RunFolderError) as error:
            pv.load(tmp_path)
        one_line(error)


def test_every_flipped_bit_is_refused(tmp_path):
    path = pv.save(make_vae(), tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(bytes(damaged))
        with pytest.raises(RunFolderError) as error:
            pv.load(tmp_path)
        one_line(error)


def test_a_pickle_is_not_executed(tmp_path):
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    path = tmp_path / checkpoints.WEIGHTS
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunFolderError, match="safetensors"):
        pv.load(tmp_path)
    torch.save({"bomb": Bomb()}, path)
    with pytest.raises(RunFolderError, match="safetensors"):
        pv.load(tmp_path)
    assert not marker.exists()


def test_a_foreign_class_is_not_built(tmp_path):
    record = {"architecture": {"class": "subprocess.Popen", "arguments": {"args": "true"}}}
    tensors.write_tensors(tmp_path / checkpoints.WEIGHTS, named_tensors(make_vae()), record)
    with pytest.raises(RunFolderError, match="Expected a class of pyro_vaes"):
        pv.load(tmp_path)


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_FORMAT", 2)
    pv.save(make_vae(), tmp_path)
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="another version"):
        pv.load(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = pv.save(make_vae(), tmp_path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left") as error:
        pv.save(make_vae(1), tmp_path)
    one_line(error)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_one_metadata_entry(tmp_path):
    path = pv.save(make_vae(), tmp_path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    assert list(header["__metadata__"]) == ["pyro_vaes"]
