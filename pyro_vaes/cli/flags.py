"""Command-line flags made from the options of a run, and how a command reads them."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from pyro_vaes.runs.options import ConfigError, Option, text
from pyro_vaes.runs.resolve import resolve
from pyro_vaes.runs.schema import OPTIONS, flatten

__all__ = ["ConfigCommand", "Flag", "given", "options"]


# --- click ----------------------------------------------------------------------------------------


class _Type(click.ParamType):  # type: ignore[type-arg]
    """The click type of an option."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.metavar

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self.option.read(value, f"'{self.option.flag}'")
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from error


class Flag(click.Option):
    """The flag of an option, with its default shown in the help."""

    def __init__(self, option: Option, default: Any) -> None:
        super().__init__(
            [option.flag, option.name],
            type=_Type(option),
            default=text(default),
            show_default=True,
            metavar=option.metavar,
            help=option.help + (f" {option.bounds.capitalize()}." if option.bounds else ""),
        )
        self.section = option.section


def given(context: click.Context) -> dict[str, Any]:
    """The options that stand on the command line, by flat name; not those left at a default."""
    return {
        flag.name: context.params[flag.name]
        for flag in context.command.params
        if isinstance(flag, Flag)
        and context.get_parameter_source(flag.name) is ParameterSource.COMMANDLINE
    }


class ConfigCommand(click.Command):
    """A command whose help lists its own options first and then the flags by section."""

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
    """Makes a flag for each option; the defaults are those of the default recipe."""
    defaults = flatten(resolve()[0])
    return [Flag(option, defaults[option.name]) for option in OPTIONS.values()]
