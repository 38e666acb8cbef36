"""Whatever goes wrong ends in one line, before anything is written that could have waited."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from commands import run

import pyro_vaes as pv
from pyro_vaes.cli.app import cli, main
from pyro_vaes.cli.flags import Real, Whole
from pyro_vaes.storage import files
from pyro_vaes.storage.files import RunFolderError, locked
from pyro_vaes.storage.tensors import read_tensors, write_tensors
from pyro_vaes.storage.weights import WEIGHTS

LONG = "x" * 300
SMALL = ["--hidden-dims", "4", "--latent-dim", "2", "--mode", "eager", "--prior", "standard"]
SMALL += ["--proposal", "encoder"]


def ends(capsys: Any, status: int, *arguments: Any) -> str:
    """Checks that a command ends with a status and one line, which is returned."""
    capsys.readouterr()
    assert run(*arguments) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    # A bar of progress may stand before it.
    assert sum(line.startswith("pyro-vaes: ") for line in lines) == 1
    return str(lines[-1])


def program(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyro_vaes", *map(str, arguments)]
    return subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "levels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 4, (60, 5)))
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run("train", *SMALL, "--data", data, "--epochs", 2, "--out", out) == 0
    return out


@pytest.fixture
def mine(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "mine"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- before the first write -----------------------------------------------------------------------


def test_a_refused_resume_leaves_the_folder_as_it_was(capsys, tmp_path, monkeypatch):
    own = tmp_path / "own.npy"
    np.save(own, np.random.default_rng(0).normal(size=(60, 4)))
    out = tmp_path / "run"
    assert run("train", *SMALL, "--data", own, "--epochs", 2, "--out", out) == 0
    before, kept = bytes_of(out), own.read_bytes()
    np.save(own, np.random.default_rng(1).normal(size=(60, 4)))
    line = ends(capsys, 2, "train", "--resume", "--epochs", 3, "--out", out)
    assert "data that the run" in line
    assert bytes_of(out) == before
    own.write_bytes(kept)
    assert run("evaluate", out, "--samples", 5, "--no-diagnostics") == 0
    assert pv.load(out)


def test_what_is_refused_at_the_first_step_leaves_no_folder(capsys, data, tmp_path, monkeypatch):
    def refused(*_: Any) -> Any:
        raise RunFolderError("Expected something else.")

    monkeypatch.setattr("pyro_vaes.training.trainer.Trainer._check_processes", refused)
    monkeypatch.chdir(tmp_path)
    for out in (["--out", "here/run"], []):
        ends(capsys, 2, "train", *SMALL, "--data", data, *out)
    assert not list(tmp_path.rglob("*/*"))


def test_a_backend_of_matplotlib_that_does_not_exist_is_found_before_training(data, tmp_path):
    out, environment = tmp_path / "run", {**os.environ, "MPLBACKEND": "nonsense"}
    for command in (["train", *SMALL, "--data", data, "--out", out], ["study", "vae"], ["report"]):
        ended = program(*command, env=environment, cwd=tmp_path)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert "MPLBACKEND" in line and "nonsense" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_output_that_cannot_be_written_is_found_before_training(data, tmp_path):
    out = tmp_path / "run"
    with open("/dev/full", "w") as full:
        ended = program("train", *SMALL, "--data", data, "--out", out, stdout=full)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and "No space left" in line
    assert not out.exists()


def test_nothing_to_resume_is_said(capsys, data, tmp_path):
    out = tmp_path / "typo"
    arguments = ["train", *SMALL, "--data", data, "--epochs", 1, "--resume", "--out", out]
    assert run(*arguments) == 0
    assert f"Nothing to resume in {out}: a new run starts there." in capsys.readouterr().out
    assert run(*arguments) == 0
    assert "Nothing to resume" not in capsys.readouterr().out


def test_trainings_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    from pyro_vaes.cli import train

    monkeypatch.chdir(tmp_path)
    assert len({train._new_folder() for _ in range(20)}) == 20
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("runs").write_text("mine")
    with pytest.raises(RunFolderError, match="runs"):
        train._new_folder()
    Path("runs").unlink()
    Path("runs").symlink_to("nowhere")
    with pytest.raises(RunFolderError, match="runs"):
        train._new_folder()


def test_a_folder_made_for_nothing_is_taken_away(tmp_path):
    with locked(tmp_path / "made"):
        pass
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "file").write_text("a")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "used"}


# --- one line for every failure -------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", LONG],
        ["train", "--out", "a", "--resume", "--config", LONG],
        ["train", "--data", f"{LONG}.csv", "--out", "a"],
        ["evaluate", LONG],
        ["sample", LONG],
        ["sample", "{run}", "--out", f"{LONG}.npy"],
        ["report", "--results", LONG],
        ["report", "--out", LONG, "--results", "{run}"],
        ["report", "--notebooks", LONG, "--results", "{run}"],
        ["study", "vae", "--quick", "--runs", LONG],
        ["study", "vae", "--quick", "--out", LONG],
        ["study", "vae", "--quick", "--out", "{file}"],
        ["study", "vae", "--quick", "--runs", "{file}"],
        ["study", "vae", "--seeds", 10**9],
        ["train", "--out", ""],
        ["evaluate", ""],
        ["study", "vae", "--runs", ""],
        ["report", "--results", ""],
        ["sample", "{run}", "--seed", 2**64],
        ["evaluate", "{run}", "--seed", 2**64],
        ["train", "--augment", 1e300, "--out", "a"],
        ["train", "--epochs", "1_0", "--out", "a"],
        ["train", "--learning-rate", "1_0", "--out", "a"],
        ["train", "--minutes", "1_0", "--out", "a"],
        ["train", "--evaluation-minutes", "nan", "--out", "a"],
        ["evaluate", "{run}", "--minutes", "nan"],
        ["doctor", "--seconds", "nan"],
        ["train", "--samples", "\u0663", "--out", "a"],
        ["train", "--image-shape", "1_0,2", "--data", "{file}", "--out", "a"],
        ["sample", "{run}", "--num", "1_0", "--out", "b.npy"],
        ["study", "vae", "--seeds", "1_0", "--out", "a"],
        ["train", "--epochs", "\u0661", "--out", "a"],
        ["search", "--num", "1_0", "--latent-dim", "2,3"],
        ["search", "--latent-dim", "1_0,3"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments))[:40],
)
def test_bad_input_is_one_line(arguments, capsys, finished, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"{run}": finished, "{file}": data}
    line = ends(capsys, 2, *(places.get(word, word) for word in arguments))
    assert len(line) < 500
    assert not list(tmp_path.iterdir())


def test_numbers_of_all_commands_are_read_as_written():
    types = [p.type for command in cli.commands.values() for p in command.params]
    numbers = [
        t for t in types if isinstance(t, (click.types.IntParamType, click.types.FloatParamType))
    ]
    assert len(numbers) > 20
    assert all(isinstance(number, (Whole, Real)) for number in numbers)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["train", "--latent-dim", 10**9], 1),
        (["train", "--latent-dim", 2**31 - 1, "--hidden-dims", 2**31 - 1], 1),
        (["sample", "{run}", "--num", 10**12], 1),
        (["sample", "{run}", "--num", 2**62], 1),
    ],
)
def test_out_of_memory_is_one_line(arguments, status, capsys, finished, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**35, before[1]))
    try:
        line = ends(capsys, status, *({"{run}": finished}.get(word, word) for word in arguments))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "Out of memory" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        PermissionError(13, "no", "a" * 500),
    ],
)
def test_what_comes_from_anywhere_is_one_line(error, capsys, finished, monkeypatch):
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("pyro_vaes.evaluation.evaluator.evaluate", failing)
    line = ends(capsys, 2 if isinstance(error, OSError) else 1, "evaluate", finished)
    assert len(line) < 300


def test_a_fault_of_our_own_is_not_hidden(finished, monkeypatch):
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("pyro_vaes.evaluation.evaluator.evaluate", failing)
    with pytest.raises(RuntimeError, match="multiplied"):
        main(["evaluate", str(finished)])


@pytest.mark.parametrize("name", [WEIGHTS, "config.yaml"])
def test_what_may_not_be_read_is_said_to_be_so(name, capsys, mine, monkeypatch):
    """Not that it is damaged, or not there. (Whoever runs the tests may read anything.)"""
    opened = Path.open

    def forbidden(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(files.Path, "open", forbidden)
    line = ends(capsys, 2, "evaluate", mine)
    assert "Could not read" in line and "Permission denied" in line and name in line


NONSENSE = [
    "[" * 100_000,
    "[]",
    "5",
    "null",
    '"text"',
    '{"figures": 3}',
    '{"figures": {"num_samples": 20}, "measures": {}}',
]


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: text[:20])
def test_a_summary_that_is_nonsense_is_written_anew(text, capsys, mine):
    summary = mine / "summary.json"
    expected = json.loads(summary.read_text())
    summary.write_text(text)
    assert run("train", "--resume", "--proposal", "encoder", "--out", mine) == 0
    assert json.loads(summary.read_text())["nll"] == expected["nll"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_seconds", "x"),
        ("stopped", {}),
        ("stopped", 3),
        ("nll", "x"),
        ("best_epoch", []),
        ("processes", "2"),
        ("precision_shift", "x"),
        ("elbo_se", [1]),
        ("epochs", None),
    ],
)
def test_a_summary_of_other_types_is_written_anew(key, value, capsys, mine):
    summary = mine / "summary.json"
    expected = json.loads(summary.read_text())
    summary.write_text(json.dumps({**expected, key: value}))
    assert run("train", "--resume", "--proposal", "encoder", "--out", mine) == 0
    assert json.loads(summary.read_text())[key] == expected[key]


@pytest.mark.parametrize(
    "spoilt",
    [
        None,
        5,
        {},
        [],
        {"image_shape": "x"},
        {"image_shape": [10**5, 10**5, 3]},
        {"image_shape": [1, 5]},
        {"image_shape": [1, -1, -5]},
        {"num_labels": "x"},
        {"num_labels": 0},
        {"digest": 3},
        {"event_shape": None},
        {"event_shape": [6]},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_records_that_are_nonsense(spoilt, command, capsys, mine):
    tensors, record = read_tensors(mine / WEIGHTS)
    some = spoilt and isinstance(spoilt, dict)
    record["data"] = {**record["data"], **spoilt} if some else spoilt
    write_tensors(mine / WEIGHTS, tensors, record)
    assert "weights that a training run wrote" in ends(capsys, 2, command, mine)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_weights_that_are_not_finite_are_said_to_be_so(value, command, capsys, mine):
    tensors, record = read_tensors(mine / WEIGHTS)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name][0, 0] = value
    write_tensors(mine / WEIGHTS, tensors, record)
    assert name in ends(capsys, 1, command, mine)


def test_weights_in_half_precision_are_evaluated(capsys, mine):
    tensors, record = read_tensors(mine / WEIGHTS)
    write_tensors(mine / WEIGHTS, {name: t.half() for name, t in tensors.items()}, record)
    assert run("evaluate", mine, "--samples", 5, "--no-diagnostics", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nll"] > 0


def test_a_name_in_capitals_names_the_same_kind_of_file(mine, tmp_path):
    out = tmp_path / "samples.NPY"
    assert run("sample", mine, "--num", 3, "--out", out) == 0
    assert np.load(out).shape[0] == 3
