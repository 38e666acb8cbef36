"""The folder of a run as its training sees it: what is taken up from it and written to it.

Metrics are appended after each epoch. The checkpoint, then weights that are better than those on
disk, are written whole by a thread beside the training.
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

# At least so long between two checkpoints: what a kill may cost.
_CHECKPOINT_SECONDS = 2.0
# At most so long between two, however long an epoch is.
_WITHIN_SECONDS = 60.0


class RunFolder:
    """Keeps a run; without a path, nothing is kept.

    Args:
        path: of the folder.
        options: of the run.
        record: what the caller keeps beside the weights.
        identity: gives what a run that goes on with this one must share with it; it reads all data,
            so that it is asked at most once and only if needed.

    Attributes:
        path: may be taken away from a process that only reads.
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
        """What a run that goes on with this one must share with it, beside the options."""
        return self._identity()

    def saved(self, resume: bool) -> Saved | None:
        """The checkpoint to go on with, None to begin.

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
                "(resume to go on with the run in it)."
            )
        return None

    def begin(self, state: RunState) -> None:
        """Brings the files to where the run is: a kill may have come between two of them."""
        if self.path is None:
            return
        self._configure(self.path)
        self._place = _place(self.path)
        records = state.history.records
        if records or (self.path / METRICS).exists():
            write_text(self.path / METRICS, "".join(map(metrics_line, records)))
        if state.best is not None:
            # What the file says of the run may have changed as well.
            write_tensors(self.path / WEIGHTS, state.best, self._facts())

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, the run trains; leaving waits for the last write."""
        self._next_within = time.monotonic() + _WITHIN_SECONDS
        self._board = tensorboard(self.path)
        try:
            with self._writer:
                yield
        finally:
            if self._board is not None:
                self._board.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends what an epoch came to."""
        if self.path is not None:
            self._check_place(self.path)
            append_text(self.path / METRICS, metrics_line(record))
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, record["epoch"])

    def write(self, state: RunState, improved: bool, ended: bool) -> None:
        """Writes the checkpoint, then better weights, while training goes on.

        A kill in between costs nothing: the weights are also in the checkpoint. Epochs may be much
        shorter than the writing: those that follow a checkpoint closely have none of their own.
        """
        self._better = self._better or improved
        if self.path is None or not (ended or time.monotonic() >= self._next_write):
            return
        self._check_place(self.path)
        self._next_write = time.monotonic() + _CHECKPOINT_SECONDS
        self._next_within = time.monotonic() + _WITHIN_SECONDS
        improved, self._better = self._better, False
        groups, record = state.groups(), state.record(self.options, self.identity)
        path, best, facts = self.path, state.best, self._facts()

        def write() -> None:
            write_groups(path / CHECKPOINT, groups, record)
            if improved and best is not None:
                write_tensors(path / WEIGHTS, best, facts)

        self._writer.submit(write)

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is so long ago that one is due within an epoch."""
        return self.path is not None and time.monotonic() >= self._next_within

    def _check_place(self, path: Path) -> None:
        """Notices that the folder was moved or deleted, where a new one would be half a run."""
        if self._place is not None and _place(path) != self._place:
            raise RunFolderError(
                f"Expected {path} to stay where it is while its run trains; it was moved or "
                "deleted. The run can be resumed where its folder now is, from its last checkpoint."
            )

    def keep(self, vae: VAE) -> None:
        """Writes the weights that a VAE has now."""
        if self.path is not None:
            self._check_place(self.path)
            self._configure(self.path)
            save(vae, self.path, self.record)

    def _configure(self, path: Path) -> None:
        """Writes the options of a run that has them, once nothing is left that could refuse it."""
        options = (self.record or {}).get("config")
        if isinstance(options, str):
            write_text(path / CONFIG, options)

    def _facts(self) -> dict[str, Any]:
        """What is kept beside the weights."""
        return {**(self.record or {}), "architecture": self.identity["architecture"]}


def _place(path: Path) -> tuple[int, int] | None:
    """What identifies a folder, whatever it is called; None without one."""
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
