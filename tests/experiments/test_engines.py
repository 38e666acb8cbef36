"""Studies over a Ray cluster: one that loses a worker and a node finds what one process finds."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaes.course.studies.base import course_study
from pyro_vaes.course.studies.table import STUDIES
from pyro_vaes.experiments import engines
from pyro_vaes.experiments.outcomes import Outcome
from pyro_vaes.experiments.pages import Settings, write_pages
from pyro_vaes.experiments.study import Cell
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.storage.files import FolderInUseError, RunFolderError


def test_workers_end_with_a_study_that_is_killed():
    program = """if True:
        import multiprocessing, os, time
        from concurrent.futures import ProcessPoolExecutor
        from pyro_vaes.experiments import engines
        if __name__ == "__main__":
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, spawn, initializer=engines._start, initargs=(1,))
            worker = pool.submit(os.getpid).result()
            pool.submit(time.sleep, 600)
            print(worker, flush=True)
            time.sleep(600)
    """
    study = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert study.stdout is not None
    worker = int(study.stdout.readline())
    study.kill()
    study.wait()
    study.stdout.close()
    until = time.monotonic() + 60
    while time.monotonic() < until and still_runs(worker):
        time.sleep(0.05)
    assert not still_runs(worker)


def still_runs(pid: int) -> bool:
    """Whether a process that is not a child of this one still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or ") Z " not in state.read_text()


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"'--engine': .* \(pip install 'pyro_vaes\[ray\]'\)"):
        list(engines.on_ray(str, range, 2))


def test_a_run_waits_until_a_lost_worker_has_left_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left: list[int] = []

    def do(task: str) -> str:
        left.append(1)
        if len(left) < 2:
            raise FolderInUseError("in use")
        return task

    assert engines._attempt(do, "done", str(tmp_path)) == "done"
    left.clear()
    monkeypatch.setattr(engines, "_PATIENCE", -1)
    with pytest.raises(FolderInUseError):
        engines._attempt(do, "done", str(tmp_path))


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(RunFolderError, match=r"that all nodes of the cluster see; got .*absent"):
        engines._attempt(str, 1, str(tmp_path / "absent"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_an_address_at_which_nothing_listens_is_known_at_once(address):
    with pytest.raises((ConnectionError, ValueError)):
        engines._reach(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_something_listens_is_left_to_ray(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        engines._reach(f"{scheme}127.0.0.1:{server.getsockname()[1]}")
    engines._reach("auto")


# --- a real cluster -----------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch) -> Settings:
    """A study of four runs, of some seconds each, on small data of one's own."""
    x = torch.randint(0, 4, (60, 4, 4)).numpy()
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(60) % 3)
    options = {"epochs": 800, "hidden_dims": (8,), "latent_dim": 2, "patience": 800}

    def grid(data: Any, quick: bool) -> list[Cell]:
        return [Cell("one", options, {}), Cell("two", {**options, "beta": 2.0}, {})]

    def findings(o: Outcome) -> list[str]:
        return [o.compared("one", "two")]

    tiny = course_study("Tiny", "What?", grid, lambda o: {}, findings, {}, ("training_rows",))
    monkeypatch.setitem(STUDIES, "tiny", tiny)
    return Settings(
        data=str(tmp_path / "own.npz"),
        seeds=2,
        samples=20,
        proposal="encoder",
        out=tmp_path / "local",
        runs=tmp_path / "local" / "runs",
        workers=1,
        progress=False,
    )


@pytest.fixture
def two_nodes(monkeypatch) -> Iterator[Any]:
    """Two nodes of one core each, on this machine."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
    finally:
        nodes.shutdown()


def noted(log: Path) -> Callable[[Any], list[dict[str, Any]]]:
    """Does a task and writes down who begins it, and each training and measuring that ends."""

    def do(task: Any) -> list[dict[str, Any]]:
        from pyro_vaes.experiments import runs as study_runs

        def note(what: str) -> None:
            line = json.dumps([what, task[0].folder.name, os.getpid()])
            with log.open("a") as file:
                file.write(f"{line}\n")

        def measure(*args: Any) -> Any:
            result = before(*args)
            note("measured")
            return result

        note("begun")
        before, study_runs._measure = study_runs._measure, measure
        try:
            return study_runs.perform(task)
        finally:
            study_runs._measure = before

    return do


def notes(log: Path, what: str) -> list[tuple[str, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(run, pid) for kind, run, pid in map(json.loads, lines) if kind == what]


def wait_for(found: Callable[[], Any], seconds: float = 240) -> Any:
    """What is found in the end."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if (what := found()) is not None:
            return what
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def in_training(log: Path, runs: Path, nodes: Any) -> Any:
    """A run amid its training, with a checkpoint, on these nodes: its name, process, metrics."""
    ended = {run for run, _ in notes(log, "measured")}
    for name, pid in dict(notes(log, "begun")).items():
        folder = runs / name
        if name in ended or not (folder / "checkpoint/state.safetensors").exists():
            continue
        metrics = (folder / "metrics.jsonl").read_text().splitlines()
        if 50 <= len(metrics) < 400 and parent(pid) in raylets(nodes):
            return name, pid, metrics
    return None


def parent(pid: int) -> int | None:
    """The process that started this one; None if this one has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    state, above = (re.search(rf"{key}:\s+(\w+)", status)[1] for key in ("State", "PPid"))
    return None if state == "Z" else int(above)


def raylets(nodes: Any) -> set[int]:
    return {one.process.pid for node in nodes for one in node.all_processes["raylet"]}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cluster_that_loses_a_worker_and_a_node_finds_what_one_process_finds(
    small, two_nodes, tmp_path, monkeypatch
):
    write_pages({"tiny": STUDIES["tiny"]}, small)
    log, far = tmp_path / "log", tmp_path / "far"
    engine = functools.partial(engines.on_ray, noted(log))
    collected = []

    def counted(plan: Any, workers: int) -> Iterator[Any]:
        assert workers == 0  # One on each core of the cluster, not of this machine.
        for found in engine(plan, workers):
            collected.extend(result["digest"] for result in found)
            yield found

    monkeypatch.setitem(engines.ENGINES, "ray", counted)
    lost: list[Any] = []

    def lose() -> None:
        nodes = two_nodes.list_all_nodes()
        name, pid, metrics = wait_for(lambda: in_training(log, far / "runs", nodes))
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: True if parent(pid) is None else None)  # Or it would be lost twice.
        lost.append((name, metrics))
        (other,) = two_nodes.worker_nodes
        name, _, metrics = wait_for(lambda: in_training(log, far / "runs", [other]))
        two_nodes.remove_node(other, allow_graceful=False)
        lost.append((name, metrics))

    loser = threading.Thread(target=lose, daemon=True)
    loser.start()
    write_pages(
        {"tiny": STUDIES["tiny"]},
        small._replace(out=far, runs=far / "runs", engine="ray", workers=0),
    )
    loser.join()
    # Each run was measured once and collected once; those that were lost began again.
    runs = {path.name for path in (far / "runs").iterdir()}
    assert len(runs) == 4
    assert Counter(run for run, _ in notes(log, "measured")) == dict.fromkeys(runs, 1)
    assert len(collected) == len(set(collected)) == 4
    begun = Counter(run for run, _ in notes(log, "begun"))
    assert len(lost) == 2
    assert begun == Counter(runs) + Counter(name for name, _ in lost)
    # They resumed: the seconds of an epoch show that it is from before the loss.
    for name, metrics in lost:
        assert (far / "runs" / name / "metrics.jsonl").read_text().splitlines()[0] == metrics[0]
    tables = [pd.read_csv(out / "tiny.csv") for out in (small.out, far)]
    timed = [c for c in tables[0] if "seconds" in c]
    pd.testing.assert_frame_equal(*(table.drop(columns=timed) for table in tables))


SCRIPT = """
import signal, sys, time
from pathlib import Path
from pyro_vaes.experiments.engines import on_ray

# The tests may have been started in the background, where a shell has Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def main(do, workers):
    if do == "square":
        print(sorted(on_ray(lambda i: i * i, lambda n: [n, 7, 8], workers)))
    elif do == "fail":
        list(on_ray(lambda i: int("seven"), range, workers))
    else:
        def wait(i):
            Path(f"begun{i}").touch()
            time.sleep(600)
            Path("ended").touch()
        list(on_ray(wait, range, workers))

main(sys.argv[1], int(sys.argv[2]))
"""


def script(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "script.py", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**environment, "RAY_ADDRESS": "local"},
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_local_cluster_is_started_where_there_is_none(tmp_path):
    pytest.importorskip("ray")
    out, error = script(tmp_path, "square", "2").communicate(timeout=300)
    assert out == "[4, 49, 64]\n", error


@pytest.mark.slow
def test_an_exception_of_a_task_is_the_callers(tmp_path):
    pytest.importorskip("ray")
    _, error = script(tmp_path, "fail", "1").communicate(timeout=300)
    assert error.splitlines()[-1] == "ValueError: invalid literal for int() with base 10: 'seven'"


@pytest.mark.slow
def test_ctrl_c_ends_all_tasks(tmp_path):
    pytest.importorskip("ray")
    process = script(tmp_path, "wait", "2")
    wait_for(lambda: True if len(list(tmp_path.glob("begun*"))) == 2 else None)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert not (tmp_path / "ended").exists()


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"a Ray cluster to connect to; got 127\.0\.0\.1:1"):
        list(engines.on_ray(str, range, 1))
