"""Errors that end a command with a one-line message."""

from __future__ import annotations

import signal

__all__ = ["DataError", "InputError", "RunError", "SignalStop"]


class InputError(ValueError):
    """Input that cannot be used; the message is one line. Exit status 2."""


class DataError(InputError):
    """Data that cannot be used; one line that says what was expected and what to do."""


class RunError(RuntimeError):
    """A run that cannot continue; the message is one line. Exit status 1."""


class SignalStop(BaseException):
    """A signal that ends the program; the message is one line.

    Like ``KeyboardInterrupt`` it is no ``Exception``, so that error handlers let it pass.

    Attributes:
        status: the exit status of the program, 128 and the signal's number.
    """

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(message or f"stopped by {name}")
        self.status = 128 + int(signal.Signals[name])
