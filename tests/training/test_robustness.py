"""What may go wrong outside: disks, folders, other processes, kills; numbers at their limits."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run
from filelock import FileLock, Timeout

import pyro_vaes as pv
from pyro_vaes.storage import files as folders
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import read_tensors
from pyro_vaes.storage.weights import WEIGHTS, load_record
from pyro_vaes.training import run_folder
from pyro_vaes.training import trainer as training
from pyro_vaes.training.checkpoint import CHECKPOINT
from pyro_vaes.training.history import NonFiniteError

ROOT = Path(__file__).resolve().parents[2]
# Steps are few: to record them would take longer.
SMALL = ["--recipe", "course", "--hidden-dims", "4", "--latent-dim", "2", "--mode", "eager"]
SMALL += ["--proposal", "encoder"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows of four levels."""
    path = tmp_path_factory.mktemp("data") / "levels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 4, (60, 5)))
    return path


@pytest.fixture(scope="module")
def train(data: Path) -> Callable[..., list[Any]]:
    """Arguments of a training that takes a moment."""

    def arguments(out: Path, *more: Any, epochs: int = 2) -> list[Any]:
        return [
            "train",
            *SMALL,
            "--data",
            data,
            "--epochs",
            epochs,
            "--samples",
            20,
            "--out",
            out,
            *more,
        ]

    return arguments


@pytest.fixture(scope="module")
def finished(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run(*train(out)) == 0
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files; those of a lock or half-written ones, too, as nothing of the kind may be left."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def same_weights(a: Path, b: Path) -> bool:
    return (a / WEIGHTS).read_bytes() == (b / WEIGHTS).read_bytes()


# --- full disks and folders that cannot be written ------------------------------------------------

FILES = ["config.yaml", "state.safetensors", WEIGHTS, "metrics.jsonl", "summary.json"]


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the disk is full for files of one name."""
    replace, opened = os.replace, Path.open

    def moved(source: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    def added_to(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.name == name and mode == "a":
            raise OSError(28, "No space left on device")
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(folders.os, "replace", moved)
    monkeypatch.setattr(Path, "open", added_to)


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    name: str, capsys: Any, tmp_path: Path, train: Any, finished: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "run"
    fill_disk(monkeypatch, name)
    line = refused(capsys, *train(out))
    monkeypatch.undo()
    assert name in line and "No space left on device" in line
    assert not list(out.rglob(".*"))
    assert run(*train(out, "--resume")) == 0
    assert same_weights(out, finished)


def test_a_limit_on_files_keeps_the_checkpoint_before(
    capsys: Any, tmp_path: Path, train: Any, finished: Path
) -> None:
    """The system itself says no: a limit on the size of files, less than a checkpoint takes."""
    resource = pytest.importorskip("resource")
    out, longer = tmp_path / "run", tmp_path / "longer"
    shutil.copytree(finished, out)
    before = bytes_of(out)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        line = refused(capsys, *train(out, "--resume", epochs=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "Could not write" in line
    after = bytes_of(out)
    assert after.keys() == before.keys()
    assert after[str(CHECKPOINT)] == before[str(CHECKPOINT)]
    assert run(*train(out, "--resume", epochs=4)) == 0
    assert run(*train(longer, epochs=4)) == 0
    assert same_weights(out, longer)


def test_a_figure_on_a_full_disk(
    capsys: Any, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def full(self: Figure, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    from pyro_vaes.plotting import save_figure

    (tmp_path / "a.png").write_bytes(b"the one before")
    with pytest.raises(RunFolderError, match=r"a\.png: No space left"):
        save_figure(Figure(), tmp_path / "a.png")
    assert bytes_of(tmp_path) == {"a.png": b"the one before"}


def test_places_that_cannot_be_written(
    capsys: Any, tmp_path: Path, train: Any, finished: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, *train(tmp_path / "file" / "run"))
    assert "file" in refused(capsys, "sample", finished, "--out", tmp_path / "file" / "a.npy")
    (tmp_path / "folder.npy").mkdir()
    assert "folder.npy" in refused(capsys, "sample", finished, "--out", tmp_path / "folder.npy")
    assert bytes_of(tmp_path) == {"file": b""}


def test_a_read_only_folder(
    capsys: Any, tmp_path: Path, train: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = bytes_of(out)

    def read_only(*args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system")

    opened = Path.open
    monkeypatch.setattr(FileLock, "acquire", read_only)
    monkeypatch.setattr(
        Path,
        "open",
        lambda p, mode="r", *a, **k: (opened if mode[0] == "r" else read_only)(p, mode),
    )
    monkeypatch.setattr(Path, "write_bytes", read_only)
    # A finished run may be read; one to resume must be written.
    assert run(*train(out, "--resume")) == 0
    assert "Read-only file system" in refused(capsys, *train(out, "--resume", epochs=4))
    monkeypatch.undo()
    assert bytes_of(out) == before


# --- two processes and kills ----------------------------------------------------------------------


def test_a_folder_that_another_process_writes_into(
    capsys: Any, tmp_path: Path, train: Any, finished: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"):  # Another file descriptor: as good as another process.
        line = refused(capsys, *train(out))
        with pytest.raises(RunFolderError, match="another one is writing"):
            pv.fit(small_vae(), torch.zeros(4, 3), epochs=1, out=out, progress=False)
    assert str(out) in line and "another one is writing" in line
    assert set(bytes_of(out)) <= {".lock"}
    assert run(*train(out)) == 0
    assert same_weights(out, finished)


def test_a_killed_process_leaves_no_lock_and_what_it_left_is_cleared(
    tmp_path: Path, train: Any, finished: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    wait = "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", f"{hold}; {wait}", str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError), folders.locked(out):
            pass
        process.send_signal(signal.SIGKILL)
    (out / ".partial-123-config.yaml").write_bytes(b"half")
    assert (out / ".lock").exists()
    assert run(*train(out)) == 0
    assert bytes_of(out).keys() == bytes_of(finished).keys()
    assert same_weights(out, finished)


def test_a_lock_may_be_asked_for_again_by_its_thread(tmp_path: Path) -> None:
    with folders.locked(tmp_path):
        with folders.locked(tmp_path / ".." / tmp_path.name):
            pass
        # Still ours after the inner one ended.
        with pytest.raises(Timeout), FileLock(tmp_path / ".lock", timeout=0):
            pass
    assert not list(tmp_path.iterdir())


# Before the first checkpoint, after it, before the last weights, before the summary.
@pytest.mark.parametrize("moment", ["metrics", "checkpoint", "last checkpoint", "weights"])
def test_a_kill_between_two_files(
    moment: str, tmp_path: Path, train: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    if moment == "metrics":
        monkeypatch.setattr(run_folder.RunFolder, "write", killed)
    elif moment == "checkpoint":
        monkeypatch.setattr(run_folder, "write_tensors", killed)
    elif moment == "last checkpoint":
        monkeypatch.setattr(training.Trainer, "_finish", killed)
    else:
        monkeypatch.setattr("pyro_vaes.runs.summary.summarise", killed)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(*train(out))
    monkeypatch.undo()
    assert run(*train(out, "--resume")) == 0
    expected, found = bytes_of(finished), bytes_of(out)
    assert found.keys() == expected.keys()
    same = [name for name in found if found[name] == expected[name]]
    clocks = {str(CHECKPOINT), "metrics.jsonl", "summary.json", "figures/learning_curves.png"}
    assert found.keys() - set(same) <= clocks
    lines = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


@pytest.mark.slow
def test_two_processes_with_one_folder(tmp_path: Path, train: Any, finished: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pyro_vaes", *map(str, train(out, "--resume", epochs=200))]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    # Unless the machine ran them one after the other, in which case the second found it finished.
    assert sorted(codes) in ([0, 2], [0, 0])
    for code, text in zip(codes, errors, strict=True):
        assert "Traceback" not in text
        if code:
            assert "process" in text.splitlines()[-1]
    assert run(*train(tmp_path / "alone", epochs=200)) == 0
    assert same_weights(out, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [("train", 5), ("study", 3)])
def test_killed_at_random_moments(
    what: str, number: int, tmp_path: Path, train: Any, data: Path, monkeypatch: Any
) -> None:
    """The short form of ``benchmarks/kill.py``, whose results are committed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    kill = importlib.import_module("kill")
    command = " ".join(map(str, train("{out}", "--resume", "--patience", 400, epochs=400)))
    if what == "study":
        command = f"{kill.STUDY.format(study='beta')} --data {data} --workers 1"
    events = list(kill.kills(command, tmp_path, number, 1))
    assert sum(isinstance(event, kill.Kill) for event in events) == number
    through = [event for event in events if not isinstance(event, kill.Kill)]
    assert through and all(files == [] for _, files in through)


# --- files of another run -------------------------------------------------------------------------

# No difference of these shows in the weights' names and shapes.
OTHER = {
    "seed": ["--seed", 1],
    "beta": ["--beta", 0.5],
    "epochs": ["--epochs", 3],
    "threads": ["--threads", 2],
}


@pytest.mark.parametrize("option", OTHER)
def test_weights_of_another_run_are_refused(
    option: str, capsys: Any, tmp_path: Path, train: Any, finished: Path
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    shutil.copytree(finished, mine)
    assert run(*train(other, *OTHER[option])) == 0
    shutil.copy(other / WEIGHTS, mine / WEIGHTS)
    for command in (["evaluate", mine], ["sample", mine, "--out", tmp_path / "a.npy"]):
        assert "other options" in refused(capsys, *command)
    for read in (pv.load, load_record):
        with pytest.raises(RunFolderError, match="other options"):
            read(mine)
    # A finished run is put right by what its own checkpoint holds.
    assert run(*train(mine, "--resume")) == 0
    assert same_weights(mine, finished)
    # The other run's checkpoint must not resume this one.
    shutil.copy(other / CHECKPOINT, mine / CHECKPOINT)
    line = refused(capsys, "train", "--resume", "--out", mine)
    assert "the run" in line
    assert same_weights(mine, finished)


def test_weights_and_checkpoints_do_not_stand_for_each_other(
    capsys: Any, tmp_path: Path, train: Any, finished: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(finished, mine)
    shutil.copy(finished / WEIGHTS, mine / CHECKPOINT)
    assert "checkpoint" in refused(capsys, *train(mine, "--resume", epochs=4))
    shutil.copy(finished / CHECKPOINT, mine / WEIGHTS)
    refused(capsys, "evaluate", mine)


def test_a_longer_run_can_be_evaluated_before_it_ends(
    tmp_path: Path, train: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the shorter run are the longer one's, until it has better ones."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)

    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    monkeypatch.setattr(training.Trainer, "_epoch", killed)
    with pytest.raises(Killed):
        run(*train(out, "--resume", epochs=4))
    assert run("sample", out, "--out", tmp_path / "a.npy") == 0


def test_a_shorter_run_is_no_continuation(tmp_path: Path) -> None:
    x = torch.arange(24.0).reshape(8, 3) % 4
    pv.fit(small_vae(), x, epochs=3, out=tmp_path, mode="eager", progress=False)
    with pytest.raises(RunFolderError, match="epochs"):
        pv.fit(small_vae(), x, epochs=2, out=tmp_path, progress=False, resume=True)


# --- numbers at their limits ----------------------------------------------------------------------


def small_vae(
    latent_dim: int = 2, components: int = 0, likelihood: str = "ordinal", shape: int = 3
) -> pv.VAE:
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(shape, [8]), latent_dim)
    prior: Any = pv.NormalPrior(latent_dim)
    if components:
        prior = pv.VampPrior(posterior, 3 * torch.rand(components, shape))
    network = pv.MLP(latent_dim, [8])
    kinds = {
        "ordinal": lambda: pv.OrdinalLikelihood(network, (shape,), 4),
        "categorical": lambda: pv.CategoricalLikelihood(network, (shape,), 4),
        "beta_binomial": lambda: pv.BetaBinomialLikelihood(network, (shape,), 4),
        "discretized_logistic": lambda: pv.DiscretizedLogisticLikelihood(network, (shape,), 4),
        "bernoulli": lambda: pv.BernoulliLikelihood(network, (shape,)),
        "normal": lambda: pv.NormalLikelihood(network, (shape,)),
    }
    return pv.VAE(prior, posterior, kinds[likelihood]())


def rows(n: int = 20, shape: int = 3) -> torch.Tensor:
    return torch.randint(0, 4, (n, shape), generator=torch.Generator().manual_seed(1)).float()


def finite(report: Any) -> bool:
    figures = ("nll", "nll_se", "elbo", "elbo_se", "reconstruction", "kl")
    return all(math.isfinite(getattr(report, name)) for name in figures)


@pytest.mark.parametrize("components", [0, 3])
def test_posterior_scales_of_a_millionth(components: int) -> None:
    vae, x = small_vae(components=components), rows()
    head = vae.posterior.head
    with torch.no_grad():
        head.bias[2:] = 2 * math.log(1e-6)
        head.weight[2:] = 0
    assert vae.posterior(x).base_dist.scale.max() < 1.1e-6
    assert finite(pv.evaluate(vae, x, num_samples=20))
    history = pv.fit(vae, x, x, epochs=2, mode="eager", progress=False)
    assert math.isfinite(history.best_val_loss)
    # The entropy of such a posterior dominates: 2 dimensions of log 1e6 each.
    assert pv.evaluate(vae, x, num_samples=20, proposal="encoder").kl > 20


@pytest.mark.parametrize(
    ("latent_dim", "components"),
    [
        (512, 3),
        (2, 2000),
        *(pytest.param(512, k, marks=pytest.mark.slow) for k in (0, 2000)),
    ],
)
def test_large_latents_and_many_components(latent_dim: int, components: int) -> None:
    vae, x = small_vae(latent_dim, components), rows()
    history = pv.fit(vae, x, x, epochs=2, mode="eager", progress=False)
    assert math.isfinite(history.best_val_loss)
    assert finite(pv.evaluate(vae, x, num_samples=5, diagnostics=False))
    assert vae.sample(3).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(
    "likelihood",
    ["ordinal", "categorical", "beta_binomial", "discretized_logistic", "bernoulli", "normal"],
)
def test_data_that_are_all_alike(likelihood: str, value: float) -> None:
    x = torch.full((20, 3), value)
    vae = small_vae(likelihood=likelihood, components=2)
    history = pv.fit(vae, x, x, epochs=20, mode="eager", learning_rate=0.05, progress=False)
    report = pv.evaluate(vae, x, num_samples=20)
    assert finite(report)
    assert history.records[-1]["val_loss"] < history.records[0]["val_loss"]
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("value", [0, 7, 0.5])
def test_files_of_data_that_are_all_alike(value: float, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.full((30, 4), value))
    likelihood = ["--likelihood", "auto"]
    out = tmp_path / "run"
    options = [*SMALL, *likelihood, "--data", tmp_path / "flat.npy", "--epochs", 3, "--out", out]
    assert run("train", *options) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert math.isfinite(summary["nll"])


@pytest.mark.parametrize("optimizer", ["adam", "adamax"])
@pytest.mark.parametrize("likelihood", ["ordinal", "categorical", "normal"])
def test_a_learning_rate_of_ten(likelihood: str, optimizer: str, tmp_path: Path) -> None:
    vae, x = small_vae(likelihood=likelihood, components=3), rows()
    options: dict[str, Any] = dict(learning_rate=10.0, optimizer=optimizer, epochs=60, mode="eager")
    try:
        history = pv.fit(vae, x, x, out=tmp_path, progress=False, **options)
    except NonFiniteError as stop:
        stopped = str(stop)
    else:
        stopped = "no site"
        assert all(math.isfinite(r[key]) for r in history.records for key in r)
    assert "site" in stopped or "parameter" in stopped
    # Stopped or not: what is kept is finite, in memory and on disk.
    assert all(p.isfinite().all() for p in vae.parameters())
    if (tmp_path / WEIGHTS).exists():
        assert all(t.isfinite().all() for t in read_tensors(tmp_path / WEIGHTS)[0].values())
        assert finite(pv.evaluate(pv.load(tmp_path), x, num_samples=5, diagnostics=False))


def test_the_last_good_weights_are_on_disk_when_training_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that waits for its time must not cost the best weights."""
    monkeypatch.setattr(run_folder, "_CHECKPOINT_SECONDS", 1e9)
    vae, x = small_vae(), rows()
    epoch = training.Trainer._epoch

    def spoilt(self: Any, number: int) -> Any:
        if number == 5:
            with torch.no_grad():
                self.vae.posterior.head.bias.fill_(math.inf)
        return epoch(self, number)

    monkeypatch.setattr(training.Trainer, "_epoch", spoilt)
    with pytest.raises(NonFiniteError, match=r"epoch 6.*site 'z'"):
        pv.fit(vae, x, x, epochs=9, mode="eager", learning_rate=0.02, out=tmp_path, progress=False)
    monkeypatch.undo()
    best = small_vae()
    pv.fit(best, x, x, epochs=5, mode="eager", learning_rate=0.02, progress=False)
    for kept in (vae, pv.load(tmp_path)):
        assert torch.equal(kept.posterior.head.weight, best.posterior.head.weight)


def test_what_only_validation_or_the_last_step_shows_stops_training() -> None:
    x = rows()
    vae = small_vae(likelihood="normal")
    with pytest.raises(NonFiniteError, match=r"in validation, the .* of site '"):
        pv.fit(vae, x, torch.full((4, 3), 1e30), epochs=3, mode="eager", progress=False)
    assert all(p.isfinite().all() for p in vae.parameters())
    vae = small_vae(likelihood="normal")
    with pytest.raises(NonFiniteError, match="parameter"):
        # One step: its loss is finite, what it leads to is not.
        pv.fit(vae, x, epochs=1, mode="eager", learning_rate=3e38, progress=False)
    assert all(p.isfinite().all() for p in vae.parameters())


# --- a long run -----------------------------------------------------------------------------------


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("steady")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's counters")
@pytest.mark.parametrize("way", ["FastSVI eager", "FastSVI traced", "fit eager", "fit traced"])
def test_memory_does_not_grow(way: str, steady: Any) -> None:
    """The short form of ``benchmarks/steady.py``, whose result is committed."""
    points = steady.in_fresh_process(steady.watch, way, 3000, 500)
    assert [point["steps"] for point in points] == list(range(500, 3001, 500))
    # 2 kB a step, an unfreed batch or graph, would show as 4 MB.
    assert points[-1]["megabytes"] - points[1]["megabytes"] < 3


def test_a_covariance_of_parameters_that_are_not_finite_ends_training_in_one_line() -> None:
    """Pyro has no such distribution, and torch says that a matrix cannot be factorised."""
    likelihood = pv.LowRankNormalLikelihood(pv.MLP(2, [8]), (3,), rank=1)
    posterior = pv.NormalPosterior(pv.MLP(3, [8]), 2)
    vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    x = 1e19 * torch.tensor([[1.0, 2.0, -3.0], [-1.0, 0.5, 2.0]])
    far = "far from the 0 and 1"
    with pytest.warns(UserWarning, match=far), pytest.raises(NonFiniteError, match=far):
        pv.fit(vae, x, x, epochs=2, batch_size=1, mode="eager", progress=False)
    assert all(p.isfinite().all() for p in vae.parameters())
