"""The program ``pyro-vaes``: collects the commands, and ends each failure in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from pyro_vaes._version import __version__
from pyro_vaes.cli.course import report_command, reproduce, study_command
from pyro_vaes.cli.evaluate import evaluate_command, parts_command, sample_command
from pyro_vaes.cli.train import train_command
from pyro_vaes.core.errors import InputError, RunError
from pyro_vaes.runs.memory import keep_freed_memory

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyro-vaes")
def cli() -> None:
    """Trains, evaluates and samples variational autoencoders on Pyro."""


for command in (
    train_command,
    evaluate_command,
    sample_command,
    study_command,
    reproduce,
    report_command,
    parts_command,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; bad input ends with one line and status 2."""
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


def _die(message: str, status: int) -> None:
    # Under torchrun the first process speaks for all.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        click.echo(f"pyro-vaes: {' '.join(message.split())}", err=True)
    sys.exit(status)
