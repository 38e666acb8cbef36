"""The command ``pyro-vaes train``."""

from __future__ import annotations

import datetime
import itertools
import math
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pyro_vaes.cli.flags import PLACE, ConfigCommand, Real, Whole, check_drawing, given, options
from pyro_vaes.cli.rehearsal import plan_text
from pyro_vaes.core.choices import PROPOSALS
from pyro_vaes.core.errors import SignalStop
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.recipes import DEFAULT_RECIPE, RECIPES
from pyro_vaes.runs.resolve import (
    check_combination,
    check_conditional,
    check_resume,
    check_warmup_steps,
    from_yaml,
    resolve,
)
from pyro_vaes.runs.schema import RunConfig, read_config, to_yaml
from pyro_vaes.storage.files import CONFIG, RunFolderError, contents, locked

__all__ = ["read_file", "train_command"]

if TYPE_CHECKING:
    from pyro_vaes.data.dataset import DataSet
    from pyro_vaes.training.history import History


# --- train ----------------------------------------------------------------------------------------


_train_options: list[click.Parameter] = [
    click.Option(
        ["--config", "file"], type=PLACE, help="A YAML file of options; flags override it."
    ),
    click.Option(
        ["--recipe"],
        help=f"A named set of defaults: {', '.join(RECIPES)}.  [default: {DEFAULT_RECIPE}]",
    ),
    click.Option(
        ["--out"],
        type=PLACE,
        help="The run folder.  [default: runs/, and in it a folder named by the time]",
    ),
    click.Option(["--resume"], is_flag=True, help="Resume the run in --out."),
    click.Option(
        ["--minutes"],
        type=Real(min=0, min_open=True),
        help="Time limit for training, checked after each epoch, in long ones each minute; "
        "--resume continues the run.",
    ),
    click.Option(
        ["--samples"],
        type=Whole(min=1),
        default=1000,
        show_default=True,
        help="Draws per test row in the evaluation at the end.",
    ),
    click.Option(
        ["--proposal"],
        type=click.Choice(PROPOSALS),
        default="auto",
        show_default=True,
        help="What that evaluation draws z from: the encoder, a fit per datum, or annealing.",
    ),
    click.Option(
        ["--evaluation-minutes"],
        type=Real(min=0, min_open=True),
        help="Time limit for that evaluation: if not all test rows fit, some at random.",
    ),
    click.Option(
        ["--dry-run"],
        is_flag=True,
        help="Print what would be built, its memory and its time; train and write nothing.",
    ),
    click.Option(
        ["--print-config"],
        is_flag=True,
        help="Print all options as YAML, as --config takes them; do nothing else.",
    ),
    *options(),
]


def _train(
    file: Path | None,
    recipe: str | None,
    out: Path | None,
    resume: bool,
    minutes: float | None,
    samples: int,
    proposal: str,
    evaluation_minutes: float | None,
    dry_run: bool,
    print_config: bool,
    **_flags: Any,
) -> None:
    """Trains a VAE and writes a run folder.

    With no option at all, trains on the embedded digits and prints test figures. Under torchrun,
    its processes share each batch. SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C save and end it: --resume
    repeats the run that was not stopped.
    """
    if print_config:
        _print_config(file, recipe, out, resume)
        return
    import torch  # Imported here, so that help and mistyped flags answer at once.

    from pyro_vaes.runs.build import build, data_of
    from pyro_vaes.runs.run import busy, threads, trainer_of
    from pyro_vaes.runs.summary import finished, report_text, summarise
    from pyro_vaes.training.distributed import join_processes, refuse_tasks
    from pyro_vaes.training.signals import watched

    refuse_tasks()
    processes = join_processes()
    if resume and out is None:
        raise ConfigError("Invalid value for '--resume': expected --out with the run's folder.")
    with processes.together():
        config, explicit, remarks, started = _configured(file, recipe, out, resume)
        before = None if started is None or out is None else (out / CONFIG).read_bytes()
        check_drawing()
    with processes.together():
        data = processes.in_turn(lambda: data_of(config, "Invalid value for '--data'"))
        steps = math.ceil(len(data.train) / config.training.batch_size)
        config, more = check_warmup_steps(config, explicit, steps)
        config, given = check_conditional(config, explicit, data.condition_names)
        more += given
        torch.manual_seed(config.training.seed)
        vae, choices = build(config, data, out)
        trainer = trainer_of(vae, data, config)
    if dry_run:
        plan = plan_text(trainer, data, config)
        for line in () if processes.rank else _said(data, remarks, more, choices, (plan,)):
            click.echo(line)
        return
    fresh = out is None
    with processes.together():
        # Runs that start in the same second get separate folders.
        out = _new_folder() if out is None and not processes.rank else out
    out = Path(processes.agree(str(out)))
    if processes.rank:
        with watched(), threads(config, data.event_shape):
            trainer.run(out, resume=True, minutes=minutes)
        return
    if resume and started is None:
        click.echo(f"Nothing to resume in {out}: a new run starts there.")
    for remark in _said(data, remarks, more, choices, busy(config, data.event_shape)):
        click.echo(remark)
    # Everything that can be refused before the first step has been, and nothing is written yet.
    with locked(out, made=fresh), watched():
        now = (out / CONFIG).read_bytes() if contents(out) else None
        if now != before:
            raise RunFolderError(f"Expected {out} as it was just now; another process wrote there.")
        with threads(config, data.event_shape):
            history = trainer.run(out, resume=True, minutes=minutes)
        if history.stopped not in ("epochs", "patience"):
            _say_stopped(history, out)
            return
        summary = finished(out, history, **_asked_again())
        if summary is None:
            options: dict[str, Any] = {"proposal": proposal, "minutes": evaluation_minutes}
            summary = summarise(vae, data, config, history, out, samples, **options)
    click.echo(report_text(summary, out))


def _asked_again() -> dict[str, Any]:
    """How test figures must have been made, by what was given on the command line."""
    context = click.get_current_context()
    return {
        name: context.params[name]
        for name in ("samples", "proposal")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _configured(
    file: Path | None, recipe: str | None, out: Path | None, resume: bool
) -> tuple[RunConfig, frozenset[str], list[str], RunConfig | None]:
    """The options by file, recipe and flags; names given, remarks, those of a run to resume."""
    started = None if out is None else _started(out, resume)
    file_values = None if file is None else from_yaml(read_file(file), str(file))
    flags = given(click.get_current_context())
    config, explicit = resolve(recipe, file_values, flags, started)
    config, remarks = check_combination(config, explicit)
    if started is not None:
        check_resume(config, started)
    return config, explicit, remarks, started


def _print_config(file: Path | None, recipe: str | None, out: Path | None, resume: bool) -> None:
    config, _, remarks, _ = _configured(file, recipe, out, resume)
    for remark in remarks:
        click.echo(remark, err=True)
    click.echo(to_yaml(config), nl=False)


def _said(data: DataSet, *remarks: Iterable[str]) -> dict[str, None]:
    """What is assumed about the data, and remarks, each once."""
    return dict.fromkeys((data.describe(), *itertools.chain(*remarks)))


def _say_stopped(history: History, out: Path) -> None:
    """Prints how to resume; after a signal it ends the command.

    A run that was stopped is not evaluated on the test rows.
    """
    after = f"after {history.epochs} epoch{'s' * (history.epochs != 1)}"
    resume = f"pyro-vaes train --resume --out {shlex.quote(str(out))}"
    if history.stopped == "time":
        click.echo(f"Stopped by --minutes {after}.\nTo resume: {resume}")
        return
    name = "SIGINT" if history.stopped == "interrupted" else history.stopped
    who = "the user" if name == "SIGINT" else name
    raise SignalStop(name, f"stopped by {who} {after}; to resume: {resume}")


def _new_folder() -> Path:
    """Makes a folder in ``runs/``, named by the time and, if need be, a number."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for number in itertools.count(1):
        out = Path("runs", now if number == 1 else f"{now}-{number}")
        try:
            out.mkdir(parents=True)
            return out
        except FileExistsError:
            if not os.path.lexists(out):  # "runs" itself exists and is no folder.
                break
        except OSError as error:
            raise RunFolderError(f"Could not make {out}: {error.strerror or error}.") from error
    raise RunFolderError("Expected runs to be a folder; got something else of that name.")


def read_file(path: Path) -> str:
    """The text of a file of options."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Invalid value for '--config': expected a readable YAML file; got {str(path)!r}."
        ) from error


def _started(out: Path, resume: bool) -> RunConfig | None:
    """The options of the run to resume in a folder; None for a new run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"Invalid value for '--out': expected a folder; got the file {out}.")
    if not contents(out):
        return None
    if not resume:
        raise ConfigError(
            f"Invalid value for '--out': expected a new or empty folder; got {out}, which holds "
            "files, perhaps of another run (--resume continues a run)."
        )
    return read_config(out)


train_command = ConfigCommand("train", callback=_train, params=_train_options, help=_train.__doc__)
