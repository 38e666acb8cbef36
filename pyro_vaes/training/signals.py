"""Signals that end training after a step, once the state is saved.

Clusters send SIGTERM or SIGUSR1 some time before they kill a job; a closed terminal sends SIGHUP.
Only a program handles signals (:func:`watched`); training checks for one (:func:`asked`) where its
state is consistent. Elsewhere signals keep their usual effect.
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
# Default handlers, which may be replaced; an ignored signal (as under nohup) stays ignored.
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)

_asked = ""
_looking = False


class EndedWithin(Exception):
    """Training ended within an epoch, with its state saved; the message says why."""


def asked() -> str:
    """The name of the signal that asks training to end; empty without one."""
    return _asked


@contextmanager
def signals_noted() -> Iterator[None]:
    """Inside, a first signal waits until training checks for it; a second one acts at once."""
    global _looking  # noqa: PLW0603
    _looking = True
    try:
        yield
    finally:
        _looking = False


@contextmanager
def watched() -> Iterator[None]:
    """Inside, signals wait for training (see :func:`signals_noted`) and end anything else at once.

    Raises:
        SignalStop: outside training.
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
