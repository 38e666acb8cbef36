"""Options: how a value is read and checked, from a flag, a YAML file or Python.

An option is a field of a :class:`Section`, made with :func:`option`. The tree of sections is in
:mod:`pyro_vaes.runs.schema`, which imports this module.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_type_hints

import yaml

from pyro_vaes.core.errors import InputError
from pyro_vaes.core.yaml import UniqueKeyLoader

__all__ = [
    "ConfigError",
    "Option",
    "Section",
    "Values",
    "load_yaml",
    "option",
    "options_of",
    "shown",
    "text",
]

S = TypeVar("S", bound="Section")


_TRUTH = {"true": True, "yes": True, "on": True, "1": True}
_TRUTH |= {"false": False, "no": False, "off": False, "0": False}
_METAVARS: dict[Any, str] = {bool: "[true|false]", int: "N", float: "X", str: "NAME"}
# Integers from here on are too large to be sizes; torch would raise.
_TOO_LARGE = 2**31

_repr = reprlib.Repr()
_repr.maxstring, _repr.maxother, _repr.maxlevel = 100, 100, 2


class ConfigError(InputError):
    """An invalid option; the message is one line."""


class Values(dict[str, Any]):
    """Values by flat name that their options have read, so that they are not read again."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option: a field's default, help and limits; see :func:`option`."""

    default: Any
    help: str
    name: str = ""
    choices: Collection[str] | None = None
    least: float | None = None
    above: float | None = None
    below: float | None = None
    only_with: tuple[str, Collection[str]] | None = None
    repeat: str = ""
    field: str = ""
    section: str = ""
    kind: Any = str

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """The placeholder of the value in the help."""
        if self.choices:
            return f"[{'|'.join(self.choices)}]"
        return _METAVARS.get(self.kind, "N,N,...")

    @property
    def bounds(self) -> str:
        """The bounds in words, empty if there are none."""
        words = (("at least", self.least), ("above", self.above), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)

    @property
    def expected(self) -> str:
        """The condition on a value, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind in (bool, str):
            return "true or false" if self.kind is bool else "a name or a path"
        if self.kind not in (int, float):
            none = "" if self.default else "none or "
            return f"{none}whole numbers of at least 1 such as 256,256"
        of = " of " if self.bounds.startswith("at") else " "
        return f"a {'whole' if self.kind is int else 'finite'} number{of}{self.bounds}".strip()

    def read(self, value: Any, label: str | None = None) -> Any:
        """Reads a flag's text or a plain value into a typed value.

        Raises:
            ConfigError: naming the label (the flat name if None), the condition and the value.
        """
        try:
            return self._parse(value)
        except (TypeError, ValueError, OverflowError) as error:
            limit = isinstance(error, OverflowError) and self.kind is not float
            raise ConfigError(
                f"Invalid value for {label or repr(self.name)}: expected {self.expected}"
                f"{' and below 2**31' if limit else ''}; got {shown(value)}."
            ) from None

    def _parse(self, value: Any) -> Any:
        if self.kind in (int, float):
            number = _whole(value) if self.kind is int else _finite(value)
            _require(self.least is None or number >= self.least)
            _require(self.above is None or number > self.above)
            _require(self.below is None or number < self.below)
            return number
        if self.kind is bool:
            _require(isinstance(value, bool) or str.lower(value) in _TRUTH)
            return value if isinstance(value, bool) else _TRUTH[value.lower()]
        if self.kind is str:
            _require(isinstance(value, str) and value.strip() != "" and value.isprintable())
            _require(self.choices is None or value in self.choices)
            return value
        if not self.default and value in ("none", [], ()):
            return ()
        items = value.split(",") if isinstance(value, str) else value
        _require(isinstance(items, (list, tuple)) and len(items) > 0)
        sizes = tuple(_whole(item) for item in items)
        _require(min(sizes) >= 1)
        return sizes


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _whole(value: Any) -> int:
    _require(isinstance(value, (int, str)) and not isinstance(value, bool))
    number = int(_plain(value))
    if number >= _TOO_LARGE:
        raise OverflowError
    return number


def _plain(value: Any) -> Any:
    """A number, or its usual text: Python would also read 1_0 and digits of other scripts."""
    _require(not isinstance(value, str) or (value.isascii() and "_" not in value))
    return value


def _finite(value: Any) -> float:
    # A YAML file may hold text too: YAML 1.1 reads 1e-3, which has no dot, as a word.
    _require(isinstance(value, (int, float, str)) and not isinstance(value, bool))
    number = float(_plain(value))
    _require(math.isfinite(number))
    return number


def shown(value: Any) -> str:
    """The value for a message, shortened to one line."""
    try:
        return _repr.repr(value)
    except ValueError:  # Python does not print integers of over 4300 digits.
        return "a huge number"


def text(value: Any) -> str:
    """A value as it is written after its flag."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value)


# --- sections -------------------------------------------------------------------------------------


def option(
    default: Any,
    help: str,
    *,
    name: str = "",
    choices: Collection[str] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    only_with: tuple[str, Collection[str]] | None = None,
    repeat: str = "",
) -> Any:
    """Declares a field as an option.

    Args:
        default: the value when no flag, file or recipe gives one.
        help: one line for ``--help``.
        name: the flat name, if it differs from the field's.
        choices: the values allowed.
        least: the lowest number allowed.
        above: an exclusive lower bound.
        below: an exclusive upper bound.
        only_with: another option's flat name, and the values of it with which this has an effect.
        repeat: another flag for it; both may be given several times, for texts that are then joined
            by commas.
    """
    made = Option(default, help, name, choices, least, above, below, only_with, repeat)
    return dataclasses.field(default=default, metadata={"option": made})


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of options: a frozen dataclass that holds valid values only."""

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            value = getattr(self, option.field)
            if value is not option.default:  # A test reads the defaults.
                object.__setattr__(self, option.field, option.read(value))
        self.check()

    @classmethod
    def of(cls: type[S], read: Mapping[str, Any]) -> S:
        """The section of values, by field, that their options have read."""
        section = object.__new__(cls)
        for field, value in read.items():
            object.__setattr__(section, field, tuple(value) if isinstance(value, list) else value)
        section.check()
        return section

    def check(self) -> None:
        """Refuses options that contradict each other; most sections have none."""


def options_of(section: type[Section]) -> tuple[Option, ...]:
    """The options of a section class, in the order of its fields."""
    hints = get_type_hints(section)
    made = [(field.name, field.metadata["option"]) for field in dataclasses.fields(section)]
    return tuple(
        dataclasses.replace(option, name=option.name or field, field=field, kind=hints[field])
        for field, option in made
    )


# --- YAML -----------------------------------------------------------------------------------------


def load_yaml(source: str, where: str) -> dict[Any, Any]:
    """Reads a YAML mapping, an empty file as an empty mapping. Nothing in it is executed.

    Raises:
        ConfigError: for anything else, with the line if it is known.
    """
    try:
        values = yaml.load(source, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"Expected a YAML file of options in {where}; "
            f"got {' '.join(str(problem or error).split())}{line}."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"Expected lines 'option: value' in {where}; got {shown(values)}.")
    return values
