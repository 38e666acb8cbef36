"""The command ``pyro-vaes search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_vaes.cli.flags import FOLDER, PLACE, ConfigCommand, Flag, Whole, check_drawing, given
from pyro_vaes.cli.train import read_file
from pyro_vaes.core.choices import PROPOSALS
from pyro_vaes.runs.options import ConfigError, Option
from pyro_vaes.runs.resolve import from_yaml, resolve
from pyro_vaes.runs.schema import OPTIONS

if TYPE_CHECKING:
    from pyro_vaes.experiments.searching.points import Axis

__all__ = ["search_command"]

# Sections of which an option may vary; rows of other data do not compare.
_VARYING = ("parts", "network", "objective", "training")
_FIXED = ("init", "seed", "device", "mode", "threads")
_MOST = 10_000


def _varies(option: Option) -> bool:
    return option.name == "augment" or (option.section in _VARYING and option.name not in _FIXED)


class _Axis(click.ParamType):  # type: ignore[type-arg]
    """The values of an option: one, several with commas between, or a range LOW..HIGH."""

    def __init__(self, option: Option, metavar: str) -> None:
        self.option, self.name = option, metavar

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if isinstance(value, tuple) else (value,)


def _options() -> list[click.Parameter]:
    """The flags of ``train``, most of which take several values."""
    config, _ = resolve()
    found: list[click.Parameter] = []
    for option in OPTIONS.values():
        flag = Flag(option, getattr(getattr(config, option.section), option.field))
        if _varies(option):
            flag.type = _Axis(option, f"{option.metavar},...")
            flag.metavar = flag.type.name
        found.append(flag)
    return found


def _axis(option: Option, value: str) -> Axis:
    """Reads the values of an option.

    Raises:
        ConfigError: naming the flag and the value.
    """
    from pyro_vaes.experiments.searching.points import Range

    label = f"'{option.flag}'"
    low, dots, high = value.partition("..")
    if dots and option.kind in (int, float):
        limits = [option.read(text, label) for text in (low, high)]
        if not limits[0] < limits[1]:
            raise ConfigError(
                f"Invalid value for {label}: expected a range LOW..HIGH with LOW below HIGH; got "
                f"{value}."
            )
        return Range(limits[0], limits[1], option.kind is int)
    # A size such as 256,256 has commas of its own.
    sizes = option.kind not in (int, float, bool, str)
    words = value.split("/" if sizes else ",")
    values = tuple(option.read(word.strip(), label) for word in words)
    if len(set(values)) < len(values):
        raise ConfigError(f"Invalid value for {label}: expected each value once; got {value}.")
    return values


_search_options: list[click.Parameter] = [
    click.Option(["--config", "file"], type=PLACE, help="A YAML file of options for all."),
    click.Option(["--recipe"], help="A named set of defaults for all, as for train."),
    click.Option(
        ["--num"],
        type=Whole(2, _MOST),
        help="How many random configurations.  [default: the whole grid]",
    ),
    click.Option(
        ["--factor"],
        type=Whole(1, 100),
        default=3,
        show_default=True,
        help="Successive halving keeps the best of each FACTOR; 1: all train to the end.",
    ),
    click.Option(
        ["--samples"],
        type=Whole(min=1),
        default=1000,
        show_default=True,
        help="Draws per row for log p(x) of the last ones.",
    ),
    click.Option(
        ["--proposal"],
        type=click.Choice(PROPOSALS),
        default="auto",
        show_default=True,
        help="What z is drawn from to estimate log p(x).",
    ),
    click.Option(
        ["--out"],
        type=FOLDER,
        default="search",
        show_default=True,
        help="Folder of the table, the picture and the best run.",
    ),
    click.Option(
        ["--runs"],
        type=FOLDER,
        default="runs/search",
        show_default=True,
        help="Folder of all runs; finished ones are reused.",
    ),
    click.Option(
        ["--workers"],
        type=Whole(min=0),
        default=0,
        show_default=True,
        help="Processes; 0: one per core, of the cluster if there is one.",
    ),
    click.Option(
        ["--engine"],
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where to run: on this machine, or on a Ray cluster, as for study.",
    ),
    *_options(),
]


def _search(file: Path | None, recipe: str | None, **own: Any) -> None:
    """Searches over options by validation, and evaluates the best run on the test rows, once.

    Options of parts, network, objective and training take several values: --prior standard,vamp
    --latent-dim 8,16. Sizes go between slashes: --hidden-dims 256/256,256. With --num a number may
    be a range: --learning-rate 1e-4..1e-2. The same command continues a search that was stopped.
    """
    fixed, axes = {}, {}
    for name, values in given(click.get_current_context()).items():
        if not _varies(OPTIONS[name]):
            fixed[name] = values
        elif isinstance(axis := _axis(OPTIONS[name], values[0]), tuple) and len(axis) == 1:
            fixed[name] = axis[0]
        else:
            axes[name] = axis
    check_drawing()
    from pyro_vaes.experiments.searching.points import Search
    from pyro_vaes.experiments.searching.search import search

    values = None if file is None else from_yaml(read_file(file), str(file))
    settings = {name: value for name, value in own.items() if name not in OPTIONS}
    page = search(Search(axes, fixed, recipe=recipe, file=values, **settings), click.echo)
    click.echo(f"\n{page.read_text(encoding='utf-8')}\n{page}")


search_command = ConfigCommand(
    "search", callback=_search, params=_search_options, help=_search.__doc__
)
