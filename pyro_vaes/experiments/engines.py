"""Where the runs of a study are carried out: worker processes here, or a Ray cluster."""

from __future__ import annotations

import functools
import multiprocessing
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from pyro_vaes.experiments.runs import Task, perform
from pyro_vaes.runs.memory import keep_freed_memory
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.storage.files import FolderInUseError, RunFolderError

__all__ = ["ENGINES", "Engine", "on_ray"]


T = TypeVar("T")
R = TypeVar("R")

# A task that keeps killing its workers is the cause; this many nodes are not lost by chance.
_RETRIES = 10
# Seconds until a worker whose node was cut off has certainly ended and left its run folder.
_PATIENCE = 120.0
# Seconds in which a cluster's address must answer.
_ANSWER = 10.0


def on_ray(
    do: Callable[[T], R], plan: Callable[[int], Sequence[T]], workers: int = 0
) -> Iterator[R]:
    """Does tasks on a Ray cluster, one on each core.

    The cluster is the one that is connected to, or that of the environment variable
    ``RAY_ADDRESS``, or one that runs on this machine, or one that is started here and ends with the
    tasks. A task is done in the current folder, which all nodes must see by the same path; its
    exceptions end all tasks, and so does closing the iterator. A task whose worker or node is lost
    is done again elsewhere, so twice must be as good as once.

    Args:
        do: does a task; importable on every node.
        plan: the tasks for so many workers, in the order in which they begin.
        workers: tasks at a time; 0 for one on each core of the cluster.

    Yields:
        The result of each task, once, in any order.

    Raises:
        ConfigError: if Ray is not installed, or there is no cluster at ``RAY_ADDRESS``.
        RunFolderError: if a task is lost time and again.
    """
    with _connection(workers) as ray:
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        attempt = ray.remote(num_cpus=1, max_retries=_RETRIES)(_attempt)
        here = os.getcwd()
        waiting = list(reversed(plan(workers)))
        running: list[Any] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(attempt.remote(do, waiting.pop(), here))
                (done, *_), running = ray.wait(running, num_returns=1)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    raise RunFolderError(
                        f"A run was lost {_RETRIES + 1} times with its Ray worker (out of "
                        "memory?): what has finished is kept; the same command goes on."
                    ) from error
                yield result
        finally:
            for task in running:
                ray.cancel(task, force=True)


def _attempt(do: Callable[[T], R], task: T, folder: str) -> R:
    """Does a task on a node, once the worker that had it before has left its run folder."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise RunFolderError(
            f"Expected a folder that all nodes of the cluster see; got {folder}, which is not on "
            f"{platform.node()}."
        ) from error
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            return do(task)
        except FolderInUseError:
            if time.monotonic() > give_up:
                raise
            time.sleep(1)


def _reach(address: str) -> None:
    """Raises an error if nothing listens at an address, which Ray would wait for for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


@contextmanager
def _connection(workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster; a connection made here ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Nothing is sent anywhere.
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Invalid value for '--engine': expected Ray to be installed "
            "(pip install 'pyro_vaes[ray]'); got none."
        ) from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS", "auto")
    there = address != "local"
    if there:
        try:
            _reach(address)
            ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            # No cluster is no error, one of another version is.
            if address != "auto" or not isinstance(error, ConnectionError):
                raise ConfigError(
                    "Invalid value for '--engine': expected a Ray cluster to connect to; got "
                    f"{address} ({error})."
                ) from error
            there = False
    if not there:
        ray.init("local", num_cpus=workers or None, include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


Plan = Callable[[int], Sequence[Task]]
Engine = Callable[[Plan, int], Iterator["list[dict[str, Any]]"]]


# --- all tasks ------------------------------------------------------------------------------------


def _start(threads: int) -> None:
    """Sets up a worker: the terminal's Ctrl-C is for the study, which ends its workers itself."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(threads)


def _local(plan: Plan, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Over processes of this machine; over none of its own if one is enough."""
    workers = workers or _cores()
    tasks = plan(workers)
    if workers == 1 or len(tasks) == 1:
        yield from map(perform, tasks)
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")  # A fork would inherit torch's thread pool.
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(threads,))
    try:
        for future in as_completed([pool.submit(perform, task) for task in tasks]):
            yield future.result()
    except BaseException as error:
        # What the workers are doing goes on from its checkpoints.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunFolderError(
                "A process of the study was killed (out of memory?): what has finished is kept; "
                "the same command goes on."
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


ENGINES: dict[str, Engine] = {"local": _local, "ray": functools.partial(on_ray, perform)}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
