"""Atomic writes, locks and background writes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pyro_vaes.core.errors import InputError

__all__ = [
    "CONFIG",
    "MAY_DIFFER",
    "FolderInUseError",
    "RunFolderError",
    "append_text",
    "contents",
    "locked",
    "read_json",
    "replacing",
    "unreadable",
    "write_bytes",
    "write_text",
]


#: The options of a run folder.
CONFIG = "config.yaml"
#: Options that may change when a run is resumed: longer training, another folder of downloads.
MAY_DIFFER = ("data_root", "epochs")
_LOCK = ".lock"
_PARTIAL = ".partial-"


class RunFolderError(InputError):
    """A run folder, or a file in one, that cannot be used; the message is one line."""


class FolderInUseError(RunFolderError):
    """A run folder that another process writes to."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to a file, and moves what was written there over the file.

    Raises:
        RunFolderError: if it cannot be written; a previous file stays, and no temporary one.
    """
    temporary = path.with_name(f"{_PARTIAL}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; a file with the same content is not touched.

    Raises:
        RunFolderError: see :func:`replacing`.
    """
    with suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Like :func:`write_bytes`, for text."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Appends to a file, which is created if absent.

    Raises:
        RunFolderError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is absent or damaged in any way."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def contents(folder: Path) -> set[str]:
    """Names in a folder, without the lock and partial files of killed processes.

    Raises:
        RunFolderError: if it is no folder, or cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise RunFolderError(
            f"Expected a folder that can be read; got {folder} ({error.strerror or error})."
        ) from error
    return {name for name in names if not name.startswith((_LOCK, _PARTIAL))}


@contextmanager
def locked(folder: Path, name: str = "", made: bool = False) -> Iterator[None]:
    """Locks a run folder, created if absent, against writes by other processes.

    The system releases the lock when a process ends, however it ends. A thread that holds it may
    acquire it again. A folder that is created here and stays empty is removed.

    Args:
        folder: the folder.
        name: lock, and clear of partial files, only files whose names begin with this.
        made: whether the folder was just created for this; it is removed if it stays empty.

    Raises:
        RunFolderError: if the folder cannot be created.
        FolderInUseError: if another process writes to it.
    """
    made = made or not os.path.lexists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve() / (f"{_LOCK}-{name}" if name else _LOCK)
    except OSError as error:
        raise _unwritable(folder, error) from error
    lock = FileLock(place, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
            f"Expected a {'place' if name else 'run folder'} for this process alone; got "
            f"{folder / name}, which another one is writing into."
        ) from error
    except OSError:
        # Where no lock can be written, no file can: a finished run may still be read, and a write
        # fails at its first file.
        yield
        return
    try:
        if lock.lock_counter == 1:
            # Named files are in the folder itself; a run folder is cleared with its subfolders.
            find = folder.glob if name else folder.rglob
            for path in find(f"{_PARTIAL}*-{name}*"):
                with suppress(OSError):
                    path.unlink()
        yield
    finally:
        if lock.lock_counter == 1:
            # While the lock is held: a process that opened this file meanwhile sees it is gone.
            with suppress(OSError):
                place.unlink()
                if made:  # A refused run leaves nothing.
                    folder.rmdir()
        lock.release()


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"Could not write {path}: {error.strerror or error}.")


def unreadable(path: Path, error: OSError) -> RunFolderError:
    """The error for a file or folder that exists and cannot be read."""
    return RunFolderError(f"Could not read {path}: {error.strerror or error}.")


def config_text(folder: Path) -> str:
    """The text of the options of a run folder.

    Raises:
        RunFolderError: if the file is missing or cannot be read.
    """
    path = folder / CONFIG
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(
            f"Expected a run folder with {CONFIG}; found none in {folder}."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"Expected a text file {path}; got something else.") from error


class BackgroundWriter:
    """Runs one write at a time in a thread; leaving the context waits for the last.

    Hashing and writing release the interpreter, so that training continues meanwhile. A failed
    write is raised at the next one, or on leaving.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Starts a write, after the previous one has ended."""
        self.wait()

        def run() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        # Not a daemon: the interpreter waits for the whole file before it exits.
        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the current write, and raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *details: object) -> None:
        self.wait()
