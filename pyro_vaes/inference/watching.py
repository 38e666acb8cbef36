"""Detects changes in the places that a recording read by reference.

A model reads more than its arguments: attributes of its modules, variables of the functions around
it, globals. A replay sees the current values of tensors among them, but not that another tensor has
replaced one, nor that a plain number has changed. :class:`Watch` checks all these places.
"""

from __future__ import annotations

import copy
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["PLAIN", "Watch"]


PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MISSING = object()
# Attributes of a module that are internal to torch and Pyro.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_LIBRARIES = frozenset(
    {"torch", "pyro", "numpy", "builtins", "tqdm", "pyro_vaes", *sys.stdlib_module_names}
)
# More places than any model has, which ends a walk that goes astray.
_MOST = 5000


class Watch:
    """The places that functions read, and their values.

    Args:
        **roots: functions, modules and objects by name, from which all else is reached.

    Attributes:
        opaque: names of values that may change unnoticed (arrays, iterators, generators).
    """

    def __init__(self, **roots: Any) -> None:
        self._places: list[tuple[Callable[[Any, Any], Any], Any, Any]] = []
        self._names: list[str] = []
        self._sizes: list[tuple[Any, Any, str]] = []  # Containers, with copies of them.
        self._seen: dict[int, Any] = {}
        self.opaque: list[str] = []
        for name, value in roots.items():
            self._visit(value, name)

    def changed(self) -> str | None:
        """The name of a place that has changed; None if there is none."""
        for i, (get, key, value) in enumerate(self._places):
            now = get(key, _MISSING)
            if now is not value and not _equal(now, value):
                return self._names[i]
        for container, before, name in self._sizes:
            if len(container) != len(before):
                return name
        return None

    def put_back(self) -> str | None:
        """Restores all places; returns the name of one that had changed."""
        name = self.changed()
        if name is None:
            return None
        for container, before, _ in self._sizes:
            if isinstance(container, list):
                container[:] = before
            elif len(container) != len(before):
                container.clear()
                container.update(before)
        for get, key, value in self._places:
            if get(key, _MISSING) is not value and value is not _MISSING:
                _put(get, key, value)
        return name

    def _look(self, get: Callable[[Any, Any], Any], key: Any, name: str) -> None:
        value = get(key, _MISSING)
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            return
        self._places.append((get, key, value))
        self._names.append(name)
        self._visit(value, name)

    def _look_at(self, mapping: Mapping[Any, Any], name: str, only: Any = None) -> None:
        for key in list(mapping) if only is None else only:
            self._look(mapping.get, key, f"{name}.{key}" if isinstance(key, str) else name)

    def _visit(self, value: Any, name: str) -> None:
        if isinstance(value, (*PLAIN, Tensor)) or value is _MISSING or id(value) in self._seen:
            return
        if len(self._places) > _MOST:
            return
        self._seen[id(value)] = value  # Kept, so that its id stays its own.
        if isinstance(value, nn.Module):
            self._module(value, name)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self._function(value, name)
        elif isinstance(value, (dict, list, tuple, set, frozenset)):
            self._container(value, name)
        elif isinstance(value, (type, types.ModuleType)):
            return
        elif _is_opaque(value):
            self.opaque.append(name)
        elif isinstance(value, Messenger) or not _of_library(type(value)):
            self._look_at(getattr(value, "__dict__", {}), name)
            self._methods(type(value), name)

    def _module(self, module: nn.Module, name: str) -> None:
        for kind in (module._parameters, module._buffers, module._modules):
            self._look_at(kind, name)
            self._sizes.append((kind, copy.copy(kind), name))
        own = vars(module)
        # Pyro's own modules keep results of the last call.
        private = type(module).__module__.split(".")[0] in ("torch", "pyro")
        keys = [k for k in own if k not in _INTERNAL and not k.startswith("_pyro")]
        self._look_at(own, name, [k for k in keys if k == "training" or not private])
        if private:
            for key in ("model", "_model", "guide"):
                self._visit(own.get(key), f"{name}.{key}")
        self._methods(type(module), name)

    def _container(self, value: Any, name: str) -> None:
        if isinstance(value, dict):
            self._look_at(value, name)
        elif isinstance(value, (list, tuple)):
            get = functools.partial(_item, value)
            for i in range(min(len(value), 256)):
                self._look(get, i, f"{name}[{i}]")
        if type(value) in (list, dict, set):
            self._sizes.append((value, copy.copy(value), name))

    def _function(self, function: Any, name: str) -> None:
        if isinstance(function, functools.partial):
            self._visit(function.func, name)
            self._visit(function.args, name)
            self._visit(function.keywords, name)
            return
        if isinstance(function, types.MethodType):
            self._visit(function.__self__, "self")
            function = function.__func__
        if not isinstance(function, types.FunctionType):
            return
        for free, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            self._look(functools.partial(_content, cell), None, free)
        if _of_library(function):
            return
        self._visit(function.__defaults__, name)
        self._visit(function.__kwdefaults__, name)
        inner = {g for g in _globals_of(function.__code__) if g in function.__globals__}
        for key in sorted(inner):
            self._look(function.__globals__.get, key, key)

    def _methods(self, kind: type, name: str) -> None:
        """The globals and closures that a user's class reads."""
        for base in kind.__mro__:
            if not _of_library(base):
                for member in vars(base).values():
                    self._visit(getattr(member, "__func__", getattr(member, "fget", member)), name)


def _equal(one: Any, other: Any) -> bool:
    """Whether plain values are equal, since identity is not enough."""
    return type(one) is type(other) and isinstance(one, PLAIN) and one == other


def _item(items: Any, index: int, default: Any) -> Any:
    return items[index] if index < len(items) else default


def _content(cell: Any, _: Any, default: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet.
        return default


def _put(get: Any, key: Any, value: Any) -> None:
    """Puts a value back into its place."""
    place = get.args[0] if isinstance(get, functools.partial) else get.__self__
    if isinstance(place, types.CellType):
        place.cell_contents = value
    elif not isinstance(place, tuple):
        place[key] = value


def _of_library(value: Any) -> bool:
    root = (getattr(value, "__module__", None) or "builtins").split(".")[0]
    return root in _LIBRARIES and root != "__main__"


def _is_opaque(value: Any) -> bool:
    """Whether changes cannot be detected: of arrays, generators and iterators."""
    root = (type(value).__module__ or "").split(".")[0]
    if isinstance(value, (np.dtype, np.generic, np.ufunc)):
        return False
    drawn = isinstance(value, (torch.Generator, Iterator))
    return (
        drawn
        or isinstance(value, np.ndarray)
        or root in ("pandas", "random")
        or (root == "numpy" and "random" in type(value).__module__)
    )


@functools.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> frozenset[str]:
    """Names of the globals that a function, and those defined in it, read."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return frozenset(names)
