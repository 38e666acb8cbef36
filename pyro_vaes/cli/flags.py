"""Command-line flags, made from the options of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pyro_vaes.runs.options import ConfigError, Option, Values, text
from pyro_vaes.runs.resolve import resolve
from pyro_vaes.runs.schema import OPTIONS

__all__ = [
    "FOLDER",
    "PLACE",
    "SEED",
    "ConfigCommand",
    "Flag",
    "Real",
    "Whole",
    "check_drawing",
    "given",
    "options",
    "with_options",
]


# --- click ----------------------------------------------------------------------------------------


class _Type(click.ParamType):  # type: ignore[type-arg]
    """The click type of an option; the text of its default is not read again."""

    def __init__(self, option: Option, default: Any) -> None:
        self.option, self.default = option, default
        self.name = option.metavar

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == text(self.default):
            return self.default
        try:
            return self.option.read(value, f"'{self.option.flag}'")
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from error


class _Place(click.ParamType):  # type: ignore[type-arg]
    """A path; an empty one, as from an unset shell variable, is refused."""

    def __init__(self, folder: bool = False) -> None:
        self.folder = folder
        self.name = "FOLDER" if folder else "PATH"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        named = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        path = Path(value)
        if not str(value).strip():
            raise ConfigError(
                f"Invalid value for {named!r}: expected a path; got an empty one. (Is a shell "
                "variable unset?)"
            )
        if self.folder and path.exists() and not path.is_dir():
            raise ConfigError(
                f"Invalid value for {named!r}: expected a folder; got the file {path}."
            )
        return path


class _AsWritten:
    """Refuses what Python takes for a number and people do not write: 1_0, or other digits."""

    name: str

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, str) and (not value.isascii() or "_" in value):
            raise click.BadParameter(f"{value!r} is not a valid {self.name}.", ctx, param)
        return super().convert(value, param, ctx)  # type: ignore[misc]


class Whole(_AsWritten, click.IntRange):
    """A whole number between bounds."""


class Real(_AsWritten, click.FloatRange):
    """A number between bounds, which NaN is not."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            raise click.BadParameter(f"{value!r} is not a number.", ctx, param)
        return number


PLACE, FOLDER = _Place(), _Place(folder=True)
"""The types of an option that is a path, and of one that is a folder, which need not exist."""
SEED = Whole(0, 2**63 - 1)
"""The type of a seed that torch takes."""


class Flag(click.Option):
    """The flag of an option, with its default shown in the help."""

    def __init__(self, option: Option, default: Any) -> None:
        several = bool(option.repeat)
        super().__init__(
            [option.flag, *filter(None, [option.repeat]), option.name],
            type=_Type(option, default),
            default=[text(default)] if several else text(default),
            multiple=several,
            show_default=True,
            metavar=option.metavar,
            help=option.help + (f" {option.bounds.capitalize()}." if option.bounds else ""),
        )
        self.section = option.section

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """The value; texts of a flag that was given several times as one, with commas between."""
        one = self.multiple and isinstance(value, str)  # As a map of defaults may give it.
        found = super().process_value(ctx, (value,) if one else value)
        return ",".join(found) if self.multiple else found


def given(context: click.Context) -> Values:
    """The options given on the command line, by flat name; not those left at a default."""
    return Values(
        {
            flag.name: context.params[flag.name]
            for flag in context.command.params
            if isinstance(flag, Flag)
            and context.get_parameter_source(flag.name) is ParameterSource.COMMANDLINE
        }
    )


class ConfigCommand(click.Command):
    """A command whose help lists its own options first, then the flags by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one block for each section."""
        blocks: dict[str, list[tuple[str, str]]] = {"options": []}
        for param in self.get_params(ctx):
            section = param.section if isinstance(param, Flag) else "options"
            record = param.get_help_record(ctx)
            if record is not None:
                blocks.setdefault(section, []).append(record)
        for section, records in blocks.items():
            with formatter.section(section.capitalize()):
                formatter.write_dl(records)


def options() -> list[click.Parameter]:
    """A flag for each option, with the default recipe's value as its default."""
    config, _ = resolve()
    return [Flag(o, getattr(getattr(config, o.section), o.field)) for o in OPTIONS.values()]


def check_drawing() -> None:
    """Refuses, before any training, a setting with which figures cannot be drawn.

    Raises:
        ConfigError: naming the environment variable of Matplotlib's backend.
    """
    try:
        import pyro_vaes.plotting  # noqa: F401 - importing it loads the backend
    except ValueError as error:
        raise ConfigError(
            "Expected a backend of Matplotlib in the environment variable MPLBACKEND, or none; got "
            f"{os.environ.get('MPLBACKEND')!r} ({error})."
        ) from error


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A decorator that gives a command several options, in the order of its help."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
