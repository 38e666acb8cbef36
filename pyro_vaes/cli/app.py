"""The program ``pyro-vaes``: collects the commands, and reports each failure in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from pyro_vaes._version import __version__
from pyro_vaes.cli.apply import (
    encode_command,
    impute_command,
    reconstruct_command,
    score_command,
)
from pyro_vaes.cli.course import report_command, reproduce, study_command
from pyro_vaes.cli.doctor import doctor_command
from pyro_vaes.cli.evaluate import evaluate_command, parts_command, sample_command
from pyro_vaes.cli.explore import explore_command
from pyro_vaes.cli.paths import interpolate_command, traverse_command
from pyro_vaes.cli.search import search_command
from pyro_vaes.cli.train import train_command
from pyro_vaes.core.errors import InputError, RunError, SignalStop
from pyro_vaes.runs.memory import keep_freed_memory

__all__ = ["main"]

# The longest path shown in a message, in characters.
_LONGEST = 100
# Messages of torch's CPU and GPU allocators when memory has run out.
_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyro-vaes")
def cli() -> None:
    """Trains, evaluates and samples variational autoencoders on Pyro."""


for command in (
    train_command,
    evaluate_command,
    sample_command,
    score_command,
    encode_command,
    reconstruct_command,
    impute_command,
    interpolate_command,
    traverse_command,
    explore_command,
    search_command,
    study_command,
    reproduce,
    report_command,
    parts_command,
    doctor_command,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; every failure ends it with one line.

    Exit status: 0; 1 for a run that cannot continue; 2 for bad input; 128 and its number for a
    signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        keep_freed_memory()
        cli.main(args=words or ["--help"], prog_name="pyro-vaes", standalone_mode=False)
    except click.ClickException as error:
        _die(error.format_message(), 2)
    except InputError as error:
        _die(str(error), 2)
    except RunError as error:
        _die(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _die("interrupted", 130)
    except OSError as error:
        _die(f"Could not use {_place(error)}: {error.strerror or error}.", 2)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        _die(
            f"Out of memory: {str(error).splitlines()[0] if str(error) else 'none is left'}. "
            "Ask for smaller sizes, or for fewer at once.",
            1,
        )
    except SignalStop as error:
        _die(str(error), error.status)


def _die(message: str, status: int) -> None:
    # Under torchrun only the first process prints.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        click.echo(f"pyro-vaes: {' '.join(message.split())}", err=True)
    with suppress(OSError):
        sys.stdout.flush()
        sys.exit(status)
    # Otherwise the interpreter would try once more to write it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _place(error: OSError) -> str:
    name = "the path given" if error.filename is None else str(error.filename)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _is_memory(error: BaseException) -> bool:
    """Whether memory has run out or the request was too large, which torch reports in words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY)
