"""The command line as tests call it."""

from __future__ import annotations

from typing import Any

from pyro_vaes.cli.app import main


def run(*arguments: Any) -> int:
    """The exit status of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: Any, *arguments: Any) -> str:
    """Checks that a command ends with status 2 and one line, which is returned."""
    capsys.readouterr()
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return str(line)
