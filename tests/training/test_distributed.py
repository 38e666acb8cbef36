"""Several processes: the steps, figures and checkpoints of one, to float rounding."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker as worker
import pytest
import torch

from pyro_vaes.storage.tensors import named_tensors, read_tensors
from pyro_vaes.training.checkpoint import CHECKPOINT
from pyro_vaes.training.distributed import ALONE, PeerError, Processes, SharingError, join_processes

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def torchrun(*arguments, start=subprocess.run):
    """Runs two processes with everything they print; the agent's own lines are among it."""
    command = [*TORCHRUN, *map(str, arguments)]
    return start(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **CLOSE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the cases."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_default_dtype(torch.float64)
    try:
        worker.compute(folder, worker.FITS)
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes make of them, and of a run that one process began."""
    folder = tmp_path_factory.mktemp("shared")
    torch.set_default_dtype(torch.float64)
    try:
        worker.fit(epochs=2, out=folder / "one")
    finally:
        torch.set_default_dtype(torch.float32)
    ended = torchrun(worker.__file__, folder)
    assert ended.returncode == 0, ended.stdout
    return folder


def outcome(folder, name):
    return read_tensors(folder / f"{name}.safetensors")


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("size", [1, 7])
def test_gradients_are_those_of_one_process(alone, shared, mode, size):
    ours, theirs = (outcome(folder, f"gradients {mode} {size}")[0] for folder in (shared, alone))
    same(ours, theirs)
    # Something was learned: the losses of three steps differ.
    assert len(set(ours["losses"].tolist())) == 3


@pytest.mark.parametrize("name", worker.FITS)
def test_weights_and_figures_are_those_of_one_process(alone, shared, name):
    (ours, told), (theirs, expected) = (outcome(folder, name) for folder in (shared, alone))
    same(ours, theirs)
    assert (told["mode"], told["stopped"]) == (expected["mode"], expected["stopped"])
    assert len(told["records"]) == len(expected["records"])
    for record, other in zip(told["records"], expected["records"], strict=True):
        assert record == pytest.approx(other, rel=1e-9)


def test_a_run_goes_on_with_another_number_of_processes(alone, shared, float64):
    whole, history = worker.fit(epochs=4)
    expected = named_tensors(whole)
    # One process began, two resume; two began, one resumes.
    same(outcome(shared / "one", "weights")[0], expected)
    resumed, after = worker.fit(epochs=4, out=shared / "many", resume=True)
    same(named_tensors(resumed), expected)
    assert after.epochs == history.epochs == 4
    lines = (shared / "one" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    assert (shared / "one" / CHECKPOINT).is_file()


def test_a_run_is_stopped_at_a_step_of_all_processes_and_resumed_bit_for_bit(shared):
    told = json.loads((shared / "stopped.json").read_text())
    assert told == {"stopped": "interrupted", "epochs": 1, "within": 2, "equal": True}


def test_what_cannot_be_shared_is_refused(shared):
    told = json.loads((shared / "refusals.json").read_text())
    assert "got MMD" in told["mmd"] and "divergence none" in told["mmd"]
    assert "SharingError: Expected batch_size at least a datum for each" in told["batch"]
    assert "got Dropout" in told["dropout"]
    assert told["data"] == (
        "ValueError: Expected the same data in all processes; got another in process 1."
    )
    assert "the same options" in told["seed"]
    assert told["fails"] == "PeerError: Process 1 failed: no such file"


def test_no_thread_of_the_group_outlives_it(shared):
    """One that lets a tensor go while the interpreter ends would abort the process."""
    threads = json.loads((shared / "threads.json").read_text())
    assert not [name for name in threads if "gloo" in name]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 5, 16, 17])
def test_parts_of_a_batch_are_the_batch(size, total):
    x = torch.arange(total)
    parts = []
    for rank in range(size):
        processes = Processes(rank, size)
        own, rows = processes.part((x,))
        assert torch.equal(own, x[rows.start : rows.stop]) and rows.total == total
        # A step over no row at all cannot be taken: it is taken over one, and counts nothing.
        assert len(own) >= 1
        if processes.weight:
            parts.append(own)
    assert torch.equal(torch.cat(parts), x)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_does_nothing_special():
    processes = join_processes()
    assert processes is ALONE and processes.size == 1
    batch = (torch.ones(3),)
    assert processes.part(batch) is batch
    assert processes.agree({"a": 1}) == {"a": 1} and processes.figures(1.0, 2.0) == (1.0, 2.0)
    processes.check("cuda_graph", 1, "mps", "mmd")
    with pytest.raises(ZeroDivisionError), processes.together():
        raise ZeroDivisionError
    assert processes.in_turn(lambda: 3) == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [("mode", "cuda_graph"), ("batch_size", 1), ("device", "mps"), ("divergence", "mmd")],
)
def test_options_for_one_process_only(option, value):
    fine = {"mode": "auto", "batch_size": 2, "device": "cuda", "divergence": "none"}
    processes = Processes(0, 2)
    processes.check(**fine)
    with pytest.raises(SharingError, match=f"Expected {option} .* 2 processes; got {value}") as e:
        processes.check(**{**fine, option: value})
    assert e.value.option == option


def test_a_lost_connection_is_one_line():
    with pytest.raises(PeerError, match="one ended") as error, Processes(0, 2)._linked():
        raise RuntimeError("Connection closed by peer\nstack")
    assert "\n" not in str(error.value)


# --- the command line, several minutes on a busy machine ------------------------------------------

QUICK = ["train", "--recipe", "course", "--hidden-dims", "16", "--latent-dim", "2"]
QUICK += ["--proposal", "encoder"]


@pytest.mark.slow
def test_compiled_steps_are_those_of_one_process(tmp_path):
    ended = torchrun(worker.__file__, tmp_path / "two", "--slow")
    assert ended.returncode == 0, ended.stdout
    one = [sys.executable, worker.__file__, str(tmp_path / "one"), "--slow"]
    subprocess.run(one, cwd=ROOT, check=True)
    for name in worker.SLOW_FITS:
        (ours, told), (theirs, _) = (outcome(tmp_path / n, name) for n in ("two", "one"))
        same(ours, theirs)
        assert told["mode"] == "compiled"


@pytest.mark.slow
def test_the_command_line_speaks_and_writes_once(tmp_path):
    out = tmp_path / "run"
    ended = torchrun("-m", "pyro_vaes", *QUICK, "--epochs", 2, "--out", out)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("Run folder:") == ended.stdout.count("digits: 1000 training") == 1
    assert "2 processes" in ended.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["epochs"] == 2 and summary["processes"] == 2
    again = torchrun("-m", "pyro_vaes", *QUICK, "--out", out)
    assert again.returncode != 0
    assert again.stdout.count("pyro-vaes: ") == 1 and "perhaps of another run" in again.stdout
    one = [sys.executable, "-m", "pyro_vaes", "train", "--resume", "--epochs", "3"]
    subprocess.run([*one, "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_all_processes_run_out_of_time_together(tmp_path):
    train = ["-m", "pyro_vaes", *QUICK, "--epochs", 3, "--out", tmp_path / "run"]
    ended = torchrun(*train, "--minutes", 1e-9)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("Stopped by --minutes after 1 epoch.") == 1
    ended = torchrun(*train, "--resume")
    assert ended.returncode == 0, ended.stdout
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def _processes_of(agent):
    """The workers of a torchrun, by rank: what a person would find with ps."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == agent.pid:
                values = (folder / "environ").read_bytes().split(b"\0")
                found |= {int(v[5:]): int(folder.name) for v in values if v.startswith(b"RANK=")}
        except (OSError, ValueError, IndexError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes by /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_loses_a_process_or_is_interrupted_can_go_on(tmp_path, how):
    out = tmp_path / "run"
    long = [*QUICK, "--epochs", 3000, "--mode", "traced", "--out", out]
    # The agent ends the others when it sees that one is gone: let it look later than they do.
    slowly = ["--monitor-interval", 10]
    agent = torchrun(*slowly, "-m", "pyro_vaes", *long, start=subprocess.Popen)
    try:
        deadline = time.monotonic() + 240
        while not (out / CHECKPOINT).is_file():
            assert time.monotonic() < deadline and agent.poll() is None
            time.sleep(0.1)
        # A stop of one stops both, after the same step.
        os.kill(_processes_of(agent)[1], how)
        text, _ = agent.communicate(timeout=120)
    finally:
        agent.kill()
    if how == signal.SIGKILL:
        assert agent.returncode != 0
        assert text.count("pyro-vaes: Expected all 2 processes to continue; one ended.") == 1
    else:
        # As the signal has it; torchrun's own status is that of a failure.
        assert agent.returncode != 0 and text.count("stopped by the user after") == 1
        assert "Traceback" not in text.split("torch/distributed")[0]
    resume = [sys.executable, "-c", _RESUME, str(out)]
    ended = subprocess.run(resume, cwd=ROOT, check=True, capture_output=True, text=True)
    before, after = map(int, ended.stdout.split()[-2:])
    assert after > before >= 1


# One process continues, and is interrupted after two more epochs.
_RESUME = """
import json, sys
from pathlib import Path
from pyro_vaes import cli
from pyro_vaes.training.run_folder import RunFolder

out, log, done = Path(sys.argv[1]), RunFolder.log, []

def log_and_stop(self, record):
    log(self, record)
    done.append(record["epoch"])
    if len(done) == 2:
        raise KeyboardInterrupt

RunFolder.log = log_and_stop
try:
    status = cli.main(["train", "--resume", "--out", str(out)])
except SystemExit as stop:
    status = stop.code
assert status == 130, status
print(done[0] - 1, done[-1])
"""
