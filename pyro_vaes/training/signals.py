"""Signals that end a training: what has been done is saved first, at the end of a step.

Clusters send SIGTERM or SIGUSR1 some time before they kill a job, a closed terminal sends SIGHUP.
Only a program watches signals (:func:`watched`); a training within it looks whether one has come
(:func:`asked`) where its state is whole. In a program that does not, they do what they always do.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_vaes.core.errors import SignalStop

__all__ = ["EndedWithin", "asked", "signals_noted", "watched"]


_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
# Handlers that nobody has chosen; an ignored signal (as under nohup) stays ignored.
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)

_asked = ""
_looking = False


class EndedWithin(Exception):
    """A training has ended within an epoch, at the wish of a signal, and saved its state."""


def asked() -> str:
    """The name of the signal that asks the training to end, empty if none has come."""
    return _asked


@contextmanager
def signals_noted() -> Iterator[None]:
    """Inside, a signal waits until the training looks; a second one does not."""
    global _looking  # noqa: PLW0603
    _looking = True
    try:
        yield
    finally:
        _looking = False


@contextmanager
def watched() -> Iterator[None]:
    """Inside, signals are noted for a training that looks, and end anything else at once.

    Raises:
        SignalStop: where nothing looks.
    """
    global _asked  # noqa: PLW0603
    _asked = ""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in _DEFAULTS:
                before[number] = signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = ""


def _note(number: int, frame: Any) -> None:
    global _asked  # noqa: PLW0603
    waits = _looking and not _asked
    _asked = signal.Signals(number).name
    if not waits:
        raise SignalStop(_asked)
