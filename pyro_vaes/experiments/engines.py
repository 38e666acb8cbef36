"""Engines that run the tasks of a study: local worker processes, or a Ray cluster."""

from __future__ import annotations

import functools
import multiprocessing
import os
import platform
import signal
import socket
import threading
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

# After this many lost workers the task is the cause: nodes do not fail that often by chance.
_RETRIES = 10
# Seconds until a worker on a disconnected node has ended and released its run folder.
_PATIENCE = 120.0
# Seconds within which a cluster's address must answer.
_ANSWER = 10.0


def on_ray(
    do: Callable[[T], R], plan: Callable[[int], Sequence[T]], workers: int = 0
) -> Iterator[R]:
    """Runs tasks on a Ray cluster, one per core.

    The cluster is the one already connected to, that of the environment variable ``RAY_ADDRESS``,
    one running on this machine, or one started here for these tasks. A task runs in the current
    folder, which all nodes must have at the same path. An exception of a task ends all tasks, and
    so does closing the iterator. A task whose worker or node fails runs again elsewhere, so running
    it twice must do no harm.

    Args:
        do: runs a task; importable on every node.
        plan: the tasks for a number of workers, in the order in which they start.
        workers: tasks at a time; 0 for one per core of the cluster.

    Yields:
        The result of each task, once, in any order.

    Raises:
        ConfigError: if Ray is not installed, or there is no cluster at ``RAY_ADDRESS``.
        RunFolderError: if the workers of a task keep failing.
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
                        f"The Ray worker of a run failed {_RETRIES + 1} times (out of memory?). "
                        "Finished runs are kept; the same command continues the study."
                    ) from error
                yield result
        finally:
            for task in running:
                ray.cancel(task, force=True)


def _attempt(do: Callable[[T], R], task: T, folder: str) -> R:
    """Runs a task on a node, once an earlier worker has released its run folder."""
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
    """Raises an error if nothing listens at an address; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


@contextmanager
def _connection(workers: int) -> Iterator[Any]:
    """Inside, Ray is connected to a cluster; a connection made here is closed on leaving."""
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
            # A missing cluster is fine; one of another version is an error.
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
    """Sets up a worker, which ignores Ctrl-C: the study ends its workers, and they end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_study, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)


def _end_with_study() -> None:
    """Ends a worker whose study was killed, as the next call would find its run in use."""
    study = multiprocessing.parent_process()
    if study is not None:
        study.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _local(plan: Plan, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Runs tasks in processes of this machine, or in this one if one is enough."""
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
        # Their runs can be resumed from checkpoints.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunFolderError(
                "A process of the study was killed (out of memory?). Finished runs are kept; the "
                "same command continues the study."
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


ENGINES: dict[str, Engine] = {"local": _local, "ray": functools.partial(on_ray, perform)}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
