"""The command ``pyro-vaes train``."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import click

from pyro_vaes.cli.flags import ConfigCommand, given, options
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.recipes import DEFAULT_RECIPE, RECIPES
from pyro_vaes.runs.resolve import check, check_resume, from_yaml, resolve
from pyro_vaes.runs.schema import RunConfig, read_config, to_yaml
from pyro_vaes.storage.files import CONFIG, RunFolderError, contents, locked, write_text

_CUT = {"interrupted": "the user", "time": "--minutes"}


# --- train ----------------------------------------------------------------------------------------


_train_options: list[click.Parameter] = [
    click.Option(
        ["--config", "file"],
        type=click.Path(path_type=Path),
        help="A YAML file of options; flags override it.",
    ),
    click.Option(
        ["--recipe"],
        help=f"A named set of defaults: {', '.join(RECIPES)}.  [default: {DEFAULT_RECIPE}]",
    ),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path),
        help="The run folder.  [default: runs/, and in it a folder named by the time]",
    ),
    click.Option(["--resume"], is_flag=True, help="Go on with the run in --out."),
    click.Option(
        ["--minutes"],
        type=click.FloatRange(min=0, min_open=True),
        help="Stop after the epoch in which so many minutes of training have passed; --resume "
        "goes on.",
    ),
    click.Option(
        ["--samples"],
        type=click.IntRange(min=1),
        default=1000,
        show_default=True,
        help="Draws per test row in the evaluation at the end.",
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
    **_flags: Any,
) -> None:
    """Trains a VAE and writes a run folder.

    With no option at all, trains on the embedded digits and prints test figures. Under torchrun,
    its processes share each batch.
    """
    import torch  # Help and mistyped flags do not wait for it.

    from pyro_vaes.runs.build import build, data_of
    from pyro_vaes.runs.run import train
    from pyro_vaes.runs.summary import finished, report_text, summarise
    from pyro_vaes.training.checkpoint import read_checkpoint
    from pyro_vaes.training.distributed import join

    processes = join()
    if minutes is not None and math.isnan(minutes):
        raise ConfigError("Invalid value for '--minutes': expected a number above 0; got nan.")
    if out is None:
        if resume:
            raise ConfigError("Invalid value for '--resume': expected --out with the run's folder.")
        out = Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    out = Path(processes.agree(str(out)))
    with processes.together():
        started = _started(out, resume)
        file_values = None if file is None else from_yaml(_read(file), str(file))
        flags = given(click.get_current_context())
        config, explicit = resolve(recipe, file_values, flags, started)
        config, remarks = check(config, explicit)
        if started is not None:
            check_resume(config, started)
            read_checkpoint(out)  # Refused here or not at all.
    with processes.together():
        data = processes.in_turn(lambda: data_of(config, "Invalid value for '--data'"))
        steps = math.ceil(len(data.train) / config.training.batch_size)
        config, more = check(config, explicit, steps)
        torch.manual_seed(config.training.seed)
        vae, choices = build(config, data)
    if processes.rank:
        train(vae, data, config, out=out, resume=True, minutes=minutes)
        return
    for remark in dict.fromkeys((data.describe(), *remarks, *more, *choices)):
        click.echo(remark)
    # All that can be refused has been: from here on the folder is written.
    with locked(out):
        if _started(out, resume) != started:
            raise RunFolderError(f"Expected {out} as it was just now; another process wrote there.")
        if started != config:
            write_text(out / CONFIG, to_yaml(config))
        history = train(vae, data, config, out=out, resume=True, minutes=minutes)
        if history.stopped in _CUT:
            # The test rows are for what training ends with.
            epochs = f"{history.epochs} epoch{'s' * (history.epochs != 1)}"
            click.echo(f"Stopped by {_CUT[history.stopped]} after {epochs}.")
            click.echo(f"To go on: pyro-vaes train --resume --out {out}")
            return
        summary = finished(out, history)
        if summary is None:
            summary = summarise(vae, data, config, history, out, samples)
    click.echo(report_text(summary, out))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Invalid value for '--config': expected a readable YAML file; got {str(path)!r}."
        ) from error


def _started(out: Path, resume: bool) -> RunConfig | None:
    """The options of the run in a folder that is to be gone on with; None for a new run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"Invalid value for '--out': expected a folder; got the file {out}.")
    if not contents(out):
        return None
    if not resume:
        raise ConfigError(
            f"Invalid value for '--out': expected a new or empty folder; got {out}, which holds "
            "another run (--resume goes on with it)."
        )
    return read_config(out)


train_command = ConfigCommand("train", callback=_train, params=_train_options, help=_train.__doc__)
