"""The two kinds of failure that a command ends with in one line."""

from __future__ import annotations

__all__ = ["InputError", "RunError"]


class InputError(ValueError):
    """Something that was given cannot be used; the message is one line. Exit status 2."""


class RunError(RuntimeError):
    """A run that cannot continue; the message is one line. Exit status 1."""
