"""Signals, long epochs, and what happens to a run folder meanwhile: nothing is lost silently."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import make_vae

import pyro_vaes as pv
from pyro_vaes.core.errors import InputError, SignalStop
from pyro_vaes.data.splits import Split
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.training import distributed, run_folder, signals
from pyro_vaes.training.checkpoint import CHECKPOINT, read_checkpoint
from pyro_vaes.training.history import NonFiniteError
from pyro_vaes.training.run_folder import METRICS

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")]


def rows(augmented: bool = False) -> Split:
    x = torch.randint(0, 3, (64, 4), generator=torch.Generator().manual_seed(3)).float()

    def moved(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return batch.roll(int(torch.randint(4, (1,), generator=generator)), -1)

    return Split(x, None, moved if augmented else None)


def seeded(prior: str = "normal") -> pv.VAE:
    torch.manual_seed(1)
    return make_vae(prior=prior)


def fit(vae: pv.VAE, *, augmented: bool = False, val: bool = True, **options: Any) -> pv.History:
    settings = {"epochs": 4, "batch_size": 8, "progress": False, "mode": "eager", **options}
    return pv.fit(vae, rows(augmented), rows() if val else None, **settings)


def stopping_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """A signal comes during this step, counted over the whole training."""
    update, steps = pv.FastSVI.update, 0

    def counted(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), number)
        return update(self, *args)

    monkeypatch.setattr(pv.FastSVI, "update", counted)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = named_tensors(a), named_tensors(b)
    return all(torch.equal(one[name], two[name]) for name in one)


def untimed(history: pv.History) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


# The first step, one in the middle, the last of an epoch, the first of the next one.
@pytest.mark.parametrize("step", [1, 11, 16, 17])
@pytest.mark.parametrize(
    ("prior", "options"),
    [
        ("normal", {}),
        ("vamp", {"augmented": True, "ema_decay": 0.9, "optimizer": "adamw"}),
        ("normal", {"val": False, "warmup_epochs": 3, "schedule": "cosine"}),
        ("normal", {"mode": "traced"}),
    ],
)
def test_a_run_stopped_within_an_epoch_is_resumed_bit_for_bit(
    step, prior, options, tmp_path, monkeypatch
):
    whole = seeded(prior)
    expected = fit(whole, **options)
    stopping_at(monkeypatch, step)
    with signals.watched():
        stopped = fit(seeded(prior), out=tmp_path, **options)
    monkeypatch.undo()
    assert stopped.stopped == "SIGTERM" and stopped.epochs == step // 8
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert saved[1].get("within", {"steps": 0})["steps"] == step % 8
    again = seeded(prior)
    resumed = fit(again, out=tmp_path, resume=True, **options)
    assert equal(whole, again) and equal(again, pv.load(tmp_path))
    assert untimed(resumed) == untimed(expected)
    assert len((tmp_path / METRICS).read_text().splitlines()) == 4


def test_a_run_stopped_twice_in_one_epoch(tmp_path, monkeypatch):
    whole = seeded()
    fit(whole)
    for step in (3, 2, 1, 9):
        stopping_at(monkeypatch, step)
        with signals.watched():
            assert fit(seeded(), out=tmp_path, resume=True).stopped == "SIGTERM"
        monkeypatch.undo()
    again = seeded()
    fit(again, out=tmp_path, resume=True)
    assert equal(whole, again)


def test_long_epochs_have_checkpoints_of_their_own(tmp_path, monkeypatch):
    """A kill costs no more than the time between two of them."""
    whole = seeded()
    fit(whole)
    monkeypatch.setattr(run_folder, "_WITHIN_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    update, steps = pv.FastSVI.update, 0

    def killed(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 13:
            raise Killed
        return update(self, *args)

    monkeypatch.setattr(pv.FastSVI, "update", killed)
    with pytest.raises(Killed):
        fit(seeded(), out=tmp_path)
    monkeypatch.undo()
    saved = read_checkpoint(tmp_path)
    assert saved is not None and saved[1]["within"]["steps"] == 4
    again = seeded()
    fit(again, out=tmp_path, resume=True)
    assert equal(whole, again)


@pytest.mark.parametrize("folder", [True, False])
def test_a_time_limit_ends_long_epochs_too(folder, tmp_path, monkeypatch):
    whole = seeded()
    fit(whole)
    monkeypatch.setattr(run_folder, "_WITHIN_SECONDS", 0.0)
    out = {"out": tmp_path} if folder else {}
    history = fit(seeded(), minutes=1e-9, **out)
    assert history.stopped == "time" and history.epochs == 0
    monkeypatch.undo()
    if folder:
        saved = read_checkpoint(tmp_path)
        assert saved is not None and saved[1]["within"]["steps"] == 1
        again = seeded()
        fit(again, out=tmp_path, resume=True)
        assert equal(whole, again)


def test_a_loss_that_is_not_finite_gives_back_the_weights_of_before_the_epoch(
    tmp_path, monkeypatch
):
    """After a resumption within the epoch, too."""
    good = seeded()
    fit(good, epochs=1, val=False)
    stopping_at(monkeypatch, 12)
    with signals.watched():
        fit(seeded(), out=tmp_path, val=False)
    monkeypatch.undo()
    again = seeded()
    update = pv.FastSVI.update
    monkeypatch.setattr(pv.FastSVI, "update", lambda *args: update(*args) * torch.nan)
    with pytest.raises(NonFiniteError):
        fit(again, out=tmp_path, resume=True, val=False)
    assert equal(good, again)


# --- signals --------------------------------------------------------------------------------------


def test_a_program_that_watches_nothing_keeps_its_handlers():
    before = [signal.getsignal(number) for number in SIGNALS]
    fit(seeded())
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_ignored_stays_ignored():
    """As under nohup, or in the background of a shell."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.watched():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.asked() == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_outside_of_training_and_a_second_one_end_at_once():
    def alone() -> None:
        with signals.watched():
            os.kill(os.getpid(), signal.SIGTERM)

    def twice() -> None:
        with signals.watched(), signals.signals_noted():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked() == "SIGTERM"
            os.kill(os.getpid(), signal.SIGTERM)

    for end in (alone, twice):
        with pytest.raises(SignalStop) as caught:
            end()
        assert caught.value.status == 128 + signal.SIGTERM
    assert signals.asked() == ""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "levels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 4, (3000, 5)))
    return path


# A shell starts what runs in the background with Ctrl-C ignored; so may what runs the tests.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "[signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)];"
    "from pyro_vaes.cli import main; main()"
)


def started(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, "train", "--mode", "eager", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes)


def until(holds: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_command_saves_and_ends_in_one_line(number, data, tmp_path):
    out = tmp_path / "run"
    # An epoch of 100 000 batches: it never ends by itself.
    np.save(data, np.random.default_rng(0).integers(0, 4, (142_900, 5)))
    process = started("--data", data, "--batch-size", 1, "--out", out)
    until((out / "config.yaml").exists, process)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    last = said.strip().splitlines()[-1]
    assert "Traceback" not in said and last.startswith("pyro-vaes: stopped by ")
    assert f"pyro-vaes train --resume --out {out}" in last
    assert (out / CHECKPOINT).exists()
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_run_folder_that_goes_is_noticed(how, data, tmp_path):
    out, away = tmp_path / "run", tmp_path / "away"
    process = started("--data", data, "--epochs", 5000, "--patience", 5000, "--out", out)
    until(lambda: (out / CHECKPOINT).exists(), process)
    shutil.move(out, away)
    if how == "deleted":
        shutil.rmtree(away, ignore_errors=True)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "moved or deleted" in said and "Traceback" not in said
    assert not out.exists()
    if how == "moved":
        assert not run_again(away, "--epochs", 5000, "--minutes", 1e-9)


def run_again(out: Path, *options: Any) -> int:
    command = [sys.executable, "-m", "pyro_vaes", "train", "--resume", "--out", out, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode


def test_a_folder_that_goes_within_fit_is_noticed(tmp_path, monkeypatch):
    out = tmp_path / "run"
    log = run_folder.RunFolder.log

    def moved(self: Any, record: Any) -> None:
        if record["epoch"] == 2:
            out.rename(tmp_path / "away")
        log(self, record)

    monkeypatch.setattr(run_folder.RunFolder, "log", moved)
    with pytest.raises(RunFolderError, match="moved or deleted"):
        fit(seeded(), out=out)
    assert not out.exists()


def test_a_folder_that_goes_before_a_checkpoint_is_written_is_noticed(tmp_path, monkeypatch):
    out = tmp_path / "run"
    submit = run_folder.BackgroundWriter.submit

    def moved(self: Any, write: Any) -> None:
        out.rename(tmp_path / "away")
        submit(self, write)

    monkeypatch.setattr(run_folder.BackgroundWriter, "submit", moved)
    with pytest.raises(RunFolderError, match="moved or deleted"):
        fit(seeded(), out=out, epochs=1)
    assert not out.exists()


# --- processes that nobody joins ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "rank", "refuse"),
    [
        ("WORLD_SIZE", "RANK", distributed.join_processes),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", distributed.refuse_tasks),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", distributed.refuse_tasks),
    ],
)
def test_one_of_several_tasks_does_not_train_alone(size, rank, refuse, monkeypatch):
    monkeypatch.setenv(rank, "0")
    monkeypatch.setenv(size, "2")
    with pytest.raises(InputError, match=f"torchrun; got {size}=2"):
        refuse()
    monkeypatch.setenv(size, "1")
    refuse()
