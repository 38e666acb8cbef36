"""Failures that a command ends with in one line."""

from __future__ import annotations

__all__ = ["DataError", "InputError", "RunError"]


class InputError(ValueError):
    """Something that was given cannot be used; the message is one line. Exit status 2."""


class DataError(InputError):
    """Data that cannot be used; one line that says what was expected and what to do."""


class RunError(RuntimeError):
    """A run that cannot continue; the message is one line. Exit status 1."""
