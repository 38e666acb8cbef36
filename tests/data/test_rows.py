"""Rows that do not fit into memory lie in a mapped file; nothing else differs."""

import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyro_vaes as pv
from pyro_vaes.data import DataError, files, rows
from pyro_vaes.data.splits import as_split, pseudo_inputs
from pyro_vaes.data.tables import filled
from pyro_vaes.storage.tensors import named_tensors


class Items(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def table(dtype=np.float32):
    random = np.random.default_rng(0)
    return random.normal(3.0, 2.0, (2500, 5)).astype(dtype)


def images():
    return np.random.default_rng(0).integers(0, 9, (2100, 4, 5, 3)).astype(np.uint8)


def file(folder, array, mode="r"):
    np.save(folder / "rows.npy", array)
    return np.load(folder / "rows.npy", mmap_mode=mode)


def packed(folder, **arrays):
    np.savez_compressed(folder / "rows.npz", **arrays)
    return folder / "rows.npz"


def sparse(_):
    from scipy.sparse import csr_matrix

    return csr_matrix(np.where(table() > 4, table(), 0.0))


def gappy(folder):
    x = table()
    x[::7, 2] = np.nan
    return file(folder, x)


SOURCES = {
    "an array": lambda folder: table(),
    "whole numbers": lambda folder: np.random.default_rng(0).poisson(200.0, (2500, 5)),
    "nearly whole numbers": lambda folder: np.round(np.abs(table(np.float64)) * 9) + 1e-7,
    "a mapped file": lambda folder: file(folder, table()),
    "a mapped file in double precision": lambda folder: file(folder, table(np.float64)),
    "a mapped file open for writing": lambda folder: file(folder, table(), "r+"),
    "a mapped file of Fortran's order": lambda folder: file(folder, np.asfortranarray(table())),
    "a path": lambda folder: (file(folder, table(np.float64)), folder / "rows.npy")[1],
    "gaps": gappy,
    "pictures, channels last": lambda folder: images(),
    "an archive": lambda folder: packed(folder, x=table(), y=np.arange(2500) % 3),
    "a data set": lambda folder: Items(table()),
    "a data set of tensors": lambda folder: TensorDataset(torch.from_numpy(table())),
    "a loader": lambda folder: DataLoader(Items(table()), 64, shuffle=True),
    "a sparse matrix": sparse,
}


@pytest.fixture
def little_memory(monkeypatch):
    """Call it to have everything beyond some kilobytes in files."""
    made = []
    whole = rows._in_file

    def counted(parts):
        made.append(1)
        return whole(parts)

    def start(size=2**13):
        monkeypatch.setattr(rows, "_IN_MEMORY", size)
        monkeypatch.setattr(rows, "_in_file", counted)
        return made

    return start


@pytest.mark.parametrize("name", SOURCES)
def test_data_sets_are_the_same_in_memory_and_in_files(name, tmp_path, little_memory):
    usual = pv.load_data(SOURCES[name](tmp_path), seed=3)
    made = little_memory()
    mapped = pv.load_data(SOURCES[name](tmp_path), seed=3)
    assert len(made) >= 3  # A file for each split.
    assert mapped.describe() == usual.describe()
    assert mapped.digest == usual.digest
    for split in ("train", "val", "test"):
        one, other = getattr(mapped, split), getattr(usual, split)
        assert torch.equal(one.x.nan_to_num(-9.0), other.x.nan_to_num(-9.0))
        assert one.x.dtype == other.x.dtype
        assert one.y is other.y is None or torch.equal(one.y, other.y)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: Items(x), marks=pytest.mark.slow, id="dataset"),
        pytest.param(lambda x: DataLoader(Items(x), 100), id="loader"),
    ],
)
def test_a_data_set_in_a_file_is_trained_resumed_and_evaluated_alike(make, tmp_path, little_memory):
    x = table()[:600]

    def build():
        torch.manual_seed(0)
        likelihood = pv.NormalLikelihood(pv.MLP(2, [8]), (5,))
        likelihood.initialize_from(as_split(make(x)))
        return pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(5, [8]), 2), likelihood)

    usual = build()
    pv.fit(usual, make(x), make(x[:90]), epochs=3, progress=False)
    figures = pv.log_marginal(usual, make(x), 5)
    made = little_memory(2**12)
    for epochs in (2, 3):
        vae = build()
        pv.fit(
            vae,
            make(x),
            make(x[:90]),
            epochs=epochs,
            out=tmp_path / "run",
            resume=True,
            progress=False,
        )
    assert made
    weights = named_tensors(vae)
    assert all(torch.equal(weights[name], value) for name, value in named_tensors(usual).items())
    assert torch.equal(pv.log_marginal(vae, make(x), 5), figures)


@pytest.mark.filterwarnings("ignore::Warning")  # Of anndata's own calls.
@pytest.mark.parametrize("form", ["array", "csr_matrix", "csc_matrix"])
def test_h5ad_files_are_read_by_parts(form, tmp_path, little_memory):
    # Not among the requirements: it needs older versions of pandas than ours may be.
    anndata = pytest.importorskip("anndata")
    import scipy.sparse

    if hasattr(anndata.settings, "allow_write_nullable_strings"):
        anndata.settings.allow_write_nullable_strings = True
    x = np.random.default_rng(0).poisson(0.3, (1500, 7)).astype(np.float32)
    x[0, 0] = 300
    matrix = x if form == "array" else getattr(scipy.sparse, form)(x)
    anndata.AnnData(matrix).write_h5ad(tmp_path / "cells.h5ad")
    expected = pv.load_data(x)
    assert expected.kind == "counts"
    assert pv.load_data(tmp_path / "cells.h5ad").digest == expected.digest
    made = little_memory()
    assert pv.load_data(tmp_path / "cells.h5ad").digest == expected.digest
    assert len(made) >= 4


def test_pseudo_inputs_and_gaps_do_not_need_the_rows_in_memory(little_memory, tmp_path):
    x = as_split(gappy(tmp_path)).x
    expected = filled(x), pseudo_inputs(x, 4, generator=torch.Generator().manual_seed(0))
    made = little_memory()
    found = filled(x), pseudo_inputs(x, 4, generator=torch.Generator().manual_seed(0))
    assert made
    assert all(map(torch.equal, found, expected))


def test_a_file_goes_with_its_tensor_and_can_be_written_to(little_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    little_memory(8)
    x = rows.gathered(torch.arange(12.0).reshape(6, 2).split(2))
    assert not list(tmp_path.iterdir())
    x[0] = 7.0
    assert x.tolist() == [[7, 7], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_what_cannot_go_to_a_file_is_refused(little_memory, tmp_path, monkeypatch):
    little_memory(8)
    with pytest.raises(DataError, match=r"one type of number; got torch\.float32 and torch\.int64"):
        rows.gathered([torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"larger than memory in .*none; got .*TMPDIR"):
        rows.gathered([torch.zeros(3, 2)])


def test_tables_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    np.savetxt(path, table(), delimiter=",")
    monkeypatch.setattr(files, "_memory", lambda: path.stat().st_size * 1.5)
    with pytest.raises(DataError, match=r"at most half the memory.*numpy\.save"):
        pv.load_data(path)
    np.save(tmp_path / "rows.npy", table())
    assert pv.load_data(tmp_path / "rows.npy").event_shape == (5,)


def test_what_an_archive_holds_in_vain_is_not_unpacked(tmp_path, monkeypatch):
    path = packed(tmp_path, x=table(), other=np.zeros(2**24))
    read = np.lib.npyio.NpzFile.__getitem__
    unpacked = []
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda self, k: (unpacked.append(k), read(self, k))[1]
    )
    with pytest.raises(DataError, match="got also other"):
        pv.load_data(path)
    assert unpacked == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit that mapped files do not count for")
@pytest.mark.slow
def test_a_process_loads_and_trains_on_more_than_it_may_allocate(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((200_000, 128), np.float32))
    program = """
        import resource, sys
        from pathlib import Path

        import torch

        import pyro_vaes as pv
        from pyro_vaes.data import rows

        rows._IN_MEMORY = int(sys.argv[2])

        def trained(source):
            data = pv.load_data(source, kind="real")
            torch.manual_seed(0)
            likelihood = pv.NormalLikelihood(pv.MLP(2, [8]), data.event_shape)
            likelihood.initialize_from(data.train)
            posterior = pv.NormalPosterior(pv.MLP(128, [8]), 2)
            vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
            fit = dict(batch_size=4096, mode="eager", progress=False)
            pv.fit(vae, data.train, data.val, epochs=1, **fit)
            return pv.log_marginal(vae, data.test, 1, proposal="encoder")

        trained(torch.rand(9000, 128))  # What is loaded at first use.
        lines = Path("/proc/self/status").read_text().splitlines()
        held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + 80_000_000,) * 2)
        assert trained(sys.argv[1]).isfinite().all()
    """

    def run(size):
        arguments = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "rows.npy")]
        return subprocess.run([*arguments, str(size)], capture_output=True, text=True, check=False)

    assert run(2**40).returncode  # 100 MB do not go into 80.
    found = run(2**23)
    assert not found.returncode, found.stderr
