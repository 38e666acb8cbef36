"""Reads and writes a training run's folder.

Metrics are appended after each epoch. The checkpoint, then weights that are better than those on
disk, are written atomically by a thread while training continues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pyro_vaes.storage.files import (
    CONFIG,
    BackgroundWriter,
    RunFolderError,
    append_text,
    contents,
    write_text,
)
from pyro_vaes.storage.tensors import write_groups, write_tensors
from pyro_vaes.storage.weights import WEIGHTS, save
from pyro_vaes.training.checkpoint import (
    CHECKPOINT,
    RunState,
    Saved,
    check_same,
    read_checkpoint,
)
from pyro_vaes.training.history import metrics_line
from pyro_vaes.training.options import FitOptions
from pyro_vaes.vae import VAE

__all__ = ["METRICS", "RunFolder"]


METRICS = "metrics.jsonl"

# Least time between two checkpoints, which is the most that a kill loses.
_CHECKPOINT_SECONDS = 2.0
# Most time between two, however long an epoch is.
_WITHIN_SECONDS = 60.0


class RunFolder:
    """Saves a run; without a path, nothing is saved.

    Args:
        path: of the folder.
        options: of the run.
        record: the caller's facts to save with the weights.
        identity: returns the facts that a resumed run must share with this one. It reads all data,
            so it is called at most once, when needed.

    Attributes:
        path: set to None in a process that only reads.
    """

    def __init__(
        self,
        path: Path | None,
        options: FitOptions,
        record: Mapping[str, Any] | None,
        identity: Callable[[], dict[str, Any]],
    ) -> None:
        self.path, self.options, self.record = path, options, record
        self._identity = identity
        self._writer = BackgroundWriter()
        self._board: Any = None
        self._better = False  # Whether the best weights are newer than their file.
        self._next_write = -math.inf
        self._next_within = math.inf
        self._place: tuple[int, int] | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Facts, other than options, that a resumed run must share with this one."""
        return self._identity()

    def saved(self, resume: bool) -> Saved | None:
        """The checkpoint to resume from; None for a new run.

        Raises:
            RunFolderError: if the folder holds another run, or files that are in the way.
        """
        if self.path is None:
            return None
        saved = read_checkpoint(self.path) if resume else None
        if saved is not None:
            check_same(saved[1], self.options, self.identity, self.path)
            return saved
        # A caller may have put its configuration there for this very run.
        if not resume and contents(self.path) - {CONFIG}:
            raise RunFolderError(
                f"Expected an empty or new folder for out; got {self.path}, which holds files "
                "(resume to continue the run in it)."
            )
        return None

    def begin(self, state: RunState) -> None:
        """Brings all files to the state of the run: a kill may have come between two writes."""
        if self.path is None:
            return
        self._configure(self.path)
        self._place = _place(self.path)
        records = state.history.records
        if records or (self.path / METRICS).exists():
            write_text(self.path / METRICS, "".join(map(metrics_line, records)))
        if state.best is not None:
            # The facts saved with them may have changed as well.
            write_tensors(self.path / WEIGHTS, state.best, self._facts())

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, writes run in the background; leaving waits for the last."""
        self._next_within = time.monotonic() + _WITHIN_SECONDS
        self._board = tensorboard(self.path)
        try:
            with self._writer:
                yield
        finally:
            if self._board is not None:
                self._board.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends the record of an epoch."""
        if self.path is not None:
            self._check_place(self.path)
            append_text(self.path / METRICS, metrics_line(record))
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, record["epoch"])

    def write(self, state: RunState, improved: bool, ended: bool) -> None:
        """Writes the checkpoint, then better weights, while training continues.

        A kill in between costs nothing: the weights are also in the checkpoint. Epochs may be much
        shorter than a write, so those soon after a checkpoint get none.
        """
        self._better = self._better or improved
        if not (ended or time.monotonic() >= self._next_write):
            return
        self._next_write = time.monotonic() + _CHECKPOINT_SECONDS
        self._next_within = time.monotonic() + _WITHIN_SECONDS
        if self.path is None:
            return
        self._check_place(self.path)
        improved, self._better = self._better, False
        groups, record = state.groups(), state.record(self.options, self.identity)
        path, best, facts = self.path, state.best, self._facts()

        def write() -> None:
            self._check_place(path)
            try:
                write_groups(path / CHECKPOINT, groups, record)
                if improved and best is not None:
                    write_tensors(path / WEIGHTS, best, facts)
            except RunFolderError:
                self._check_place(path)  # It may have gone since.
                raise

        self._writer.submit(write)

    @property
    def due(self) -> bool:
        """Whether a checkpoint within the epoch is due."""
        return time.monotonic() >= self._next_within

    def _check_place(self, path: Path) -> None:
        """Raises if the folder was moved or deleted, as a new one would hold half a run."""
        if self._place is not None and _place(path) != self._place:
            raise RunFolderError(
                f"Expected {path} to stay where it is while its run trains; it was moved or "
                "deleted. Resume the run where its folder is now, from its last checkpoint."
            )

    def keep(self, vae: VAE) -> None:
        """Writes the current weights of a VAE."""
        if self.path is not None:
            self._check_place(self.path)
            self._configure(self.path)
            save(vae, self.path, self.record)

    def _configure(self, path: Path) -> None:
        """Writes the options of a run that has them, after all checks have passed."""
        options = (self.record or {}).get("config")
        if isinstance(options, str):
            write_text(path / CONFIG, options)

    def _facts(self) -> dict[str, Any]:
        """The facts saved with the weights."""
        return {**(self.record or {}), "architecture": self.identity["architecture"]}


def _place(path: Path) -> tuple[int, int] | None:
    """The identity of a folder, whatever its name; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def tensorboard(out: Path | None) -> Any:
    """A TensorBoard writer for a run folder; None without a folder or without TensorBoard."""
    if out is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
