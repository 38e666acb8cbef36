"""Bytes are the numbers they stand for, and a mapped file what it holds: only memory differs."""

import numpy as np
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes import vae as heart
from pyro_vaes.data.splits import Split, as_split, batches
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.storage.tensors import named_tensors

LEVELS = 5
KINDS = ("ordinal", "categorical", "normal", "vamp")


def images(n=90):
    return torch.randint(0, LEVELS, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0))


def build(kind, x):
    torch.manual_seed(0)
    posterior, network, shape = (
        pv.NormalPosterior(MLP(16, [8]), 2, (1, 4, 4)),
        MLP(2, [8]),
        x[0].shape,
    )
    prior = pv.VampPrior(posterior, pv.pseudo_inputs(x, 5)) if kind == "vamp" else pv.NormalPrior(2)
    if kind == "normal":
        likelihood = pv.NormalLikelihood(network, shape)
        likelihood.initialize_from(x)
    elif kind == "categorical":
        likelihood = pv.CategoricalLikelihood(network, shape, LEVELS)
    else:
        likelihood = pv.OrdinalLikelihood(network, shape, LEVELS)
        likelihood.initialize_from(x)
    return pv.VAE(prior, posterior, likelihood)


def forms(tmp_path):
    """The same images as floats, as bytes, and mapped from files of both."""
    x = images()
    mapped = []
    for name, dtype in (("bytes", np.uint8), ("floats", np.float32)):
        np.save(tmp_path / f"{name}.npy", x.numpy().astype(dtype))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    return [x.float(), x.to(torch.uint8), *mapped]


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_training_and_evaluation_do_not_see_the_difference(kind, tmp_path):
    found = []
    for i, x in enumerate(forms(tmp_path)):
        vae = build(kind, as_split(x).x)
        out = tmp_path / str(i)
        for epochs in (2, 3):  # Resumed, too.
            history = pv.fit(
                vae, x, x, epochs=epochs, batch_size=32, out=out, resume=True, progress=False
            )
        log_p = pv.log_marginal(vae, x, 20)
        looked = [vae.encode(x), vae.reconstruct(x), log_p]
        found.append((named_tensors(vae), history.records[-1]["val_loss"], looked))
    for tensors, loss, looked in found[1:]:
        assert all(torch.equal(tensors[name], value) for name, value in found[0][0].items())
        assert loss == found[0][1]
        assert all(map(torch.equal, looked, found[0][2]))


def test_a_run_is_resumed_with_bytes_for_floats(tmp_path):
    floats, small, *_ = forms(tmp_path)
    pv.fit(build("ordinal", floats), floats, epochs=2, out=tmp_path / "run", progress=False)
    vae = build("ordinal", floats)
    pv.fit(vae, small, epochs=3, out=tmp_path / "run", resume=True, progress=False)
    whole = build("ordinal", floats)
    pv.fit(whole, floats, epochs=3, progress=False)
    for name, value in named_tensors(whole).items():
        assert torch.equal(named_tensors(vae)[name], value)


def test_loading_keeps_bytes_and_their_digest():
    x, y = images(), torch.arange(90) % 3
    small, large = (
        pv.load_data((x.to(torch.uint8), y)),
        pv.load_data((x.float(), y), image_shape=(1, 4, 4)),
    )
    assert small.train.x.dtype == torch.uint8
    assert small.digest == large.digest
    assert (small.kind, small.num_levels) == (large.kind, large.num_levels) == ("levels", LEVELS)
    moved = [data.augmented(max_shift=1.0).train for data in (small, large)]
    first, second = (list(batches(s, 16, torch.Generator().manual_seed(1))) for s in moved)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert torch.equal(moved[0].frozen().x, moved[1].frozen().x)


def test_what_is_mapped_is_not_copied(tmp_path):
    *_, mapped, floats = forms(tmp_path)
    for file in (mapped, floats):
        x = as_split(file).x
        assert x.data_ptr() == file.ctypes.data
        assert torch.equal(Split(x).x.float(), images().float())
    copied = np.array(mapped)
    assert as_split(copied).x.data_ptr() != copied.ctypes.data  # It may change later.


def test_plain_pyro_takes_bytes(tmp_path):
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    losses = []
    for x in forms(tmp_path)[:2]:
        vae = build("ordinal", x)
        torch.manual_seed(1)
        losses.append(SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO()).step(x))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("init", ["data", "mean", "random"])
def test_pseudo_inputs_of_bytes_are_those_of_their_numbers(init):
    x = images(6)
    first, second = (
        pv.pseudo_inputs(x.to(dtype), 20, init, torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.uint8)
    )
    torch.testing.assert_close(first, second)


def test_looking_goes_by_pieces(monkeypatch):
    x, y = images(), torch.arange(90) % 3
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(MLP(19, [8]), 2, (1, 4, 4), 3)
    likelihood = pv.CategoricalLikelihood(MLP(5, [8]), (1, 4, 4), LEVELS, 3)
    vae = pv.VAE(pv.NormalPrior(2, 3), posterior, likelihood)
    whole = vae.encode(x, y), vae.reconstruct(x.numpy(), y), vae.decode(vae.encode(x, 1), 1)
    monkeypatch.setattr(heart, "_PIECE", 32)
    pieces = vae.encode(x, y), vae.reconstruct(x.numpy(), y), vae.decode(vae.encode(x, 1), 1)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other)
    assert vae.sample(70, y[:70]).shape == (70, 1, 4, 4)
    assert vae.sample(70, 1, mean=True).shape == (70, 1, 4, 4)
    with pytest.raises(ValueError, match="labels y of shape"):
        vae.sample(70, y[:60])
