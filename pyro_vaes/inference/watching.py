"""Detects changes in the places that a recording read by reference.

A model reads more than its arguments: attributes of its modules and classes, variables of the
functions around it, globals, those of the user's other files. A replay sees the current values of
tensors among them, but not that another tensor has replaced one, nor that a plain number has
changed. :class:`Watch` checks all these places.
"""

from __future__ import annotations

import collections
import dis
import functools
import operator
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["PLAIN", "Watch"]


PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MISSING = object()
# Attributes of a module that are internal to torch and Pyro.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LIBRARIES = frozenset(
    {"torch", "pyro", "numpy", "builtins", "tqdm", "pyro_vaes", *sys.stdlib_module_names}
)
# Classes of the standard library that hold what the user puts into them: namespaces, user dicts.
_HOLDERS = ("types", "argparse", "collections")
_SETTINGS = (*PLAIN, tuple, type, types.FunctionType, types.BuiltinFunctionType)
# What a function may be wrapped in.
_WRAPPED = ("__func__", "__wrapped__", "fget", "func")
# A longer container is compared as a whole, and its items are not searched.
_LONG = 256
# More places than any model has: a walk that goes astray.
_MOST = 10_000

Get = Callable[[Any, Any], Any]


class _Names(NamedTuple):
    """What a function's code names."""

    globals: frozenset[str]
    attributes: frozenset[str]


class Watch:
    """The places that functions read, and their values.

    Args:
        **roots: functions, modules and objects by name, from which all else is reached.

    Attributes:
        opaque: names of values that may change unnoticed (arrays, iterators, generators).
    """

    def __init__(self, **roots: Any) -> None:
        self._places: list[tuple[Get, Any, Any]] = []
        self._names: list[str] = []
        self._contents: list[tuple[Any, Any, str]] = []  # Containers, with copies of them.
        self._hooks: list[Any] = []  # Dictionaries of hooks, which are mostly empty.
        self._seen: dict[Any, Any] = {}
        self.opaque: list[str] = []
        for name, value in roots.items():
            self._visit(value, name)
        self._num_hooks = sum(map(len, self._hooks))

    def changed(self) -> str | None:
        """The name of a place that has changed; None if there is none."""
        for i, (get, key, value) in enumerate(self._places):
            now = get(key, _MISSING)
            if now is not value and not _equal(now, value):
                return self._names[i]
        for container, before, name in self._contents:
            if len(container) != len(before) or _differ(container, before):
                return _named(container, before, name)
        return "a hook" if sum(map(len, self._hooks)) != self._num_hooks else None

    def put_back(self) -> str | None:
        """Restores all places; returns the name of one that had changed."""
        name = self.changed()
        if name is None:
            return None
        for container, before, _ in self._contents:
            if len(container) != len(before) or _differ(container, before):
                container.clear()
                (container.extend if hasattr(container, "extend") else container.update)(before)
        for get, key, value in self._places:
            if get(key, _MISSING) is not value and value is not _MISSING:
                _put(get, key, value)
        return name

    def _look(self, get: Get, key: Any, name: str) -> None:
        value = get(key, _MISSING)
        if isinstance(value, types.ModuleType):
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
        self._seen[id(value)] = value  # Kept, so that its id stays its own.
        if _is_opaque(value) or len(self._places) > _MOST:
            self.opaque.append(name)
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, nn.Module):
            self._module(value, name)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self._function(value, name)
        elif isinstance(value, (dict, list, tuple, set, frozenset, collections.deque, os._Environ)):
            self._container(value, name)
        elif isinstance(value, Distribution):  # Those of a leading underscore are caches.
            self._look_at(vars(value), name, [k for k in vars(value) if k[0] != "_"])
        elif isinstance(value, Messenger) or not _of_library(type(value), _HOLDERS):
            self._object(value, name)
        else:
            self._unwrap(value, name)

    def _object(self, value: Any, name: str) -> None:
        self._unwrap(value, name)
        self._attributes(value, name)
        for base in type(value).__mro__:
            slots = vars(base).get("__slots__", ())
            for key in (slots,) if isinstance(slots, str) else slots:
                if not key.startswith("__"):
                    self._look(functools.partial(getattr, value), key, f"{name}.{key}")
        self._visit(type(value), name)

    def _attributes(self, value: Any, name: str) -> None:
        """All attributes, and that none is added."""
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._look_at(own, name)
            self._contents.append((own, dict(own), name))

    def _unwrap(self, value: Any, name: str) -> None:
        """Visits the function in a property, a method of a class, or a cache."""
        for key in _WRAPPED:
            inner = getattr(value, key, None)
            if isinstance(inner, types.FunctionType):
                self._visit(inner, name)

    def _class(self, kind: type, name: str) -> None:
        """What a user's class holds, and what its methods read."""
        for base in kind.__mro__:
            if not _of_library(base) and (base is kind or id(base) not in self._seen):
                self._seen[id(base)] = base
                own = vars(base)
                keys = [k for k, v in own.items() if k[:2] != "__" or callable(v)]
                self._look_at(own, name, [k for k in keys if k != "__class__"])

    def _module(self, module: nn.Module, name: str) -> None:
        for kind in (module._parameters, module._buffers, module._modules):
            self._look_at(kind, name)
            self._contents.append((kind, dict(kind), name))
        own = vars(module)
        for key in _HOOKS:
            self._hooks.append(own[key])
            self._look_at(own[key], name)
        # Pyro's own modules keep results of the last call.
        private = type(module).__module__.split(".")[0] in ("torch", "pyro")
        keys = [k for k in own if k not in _INTERNAL and not k.startswith("_pyro")]
        if private:
            keys = [k for k in keys if k[0] != "_" and isinstance(own[k], _SETTINGS)]
            for key in ("model", "_model", "guide"):
                self._visit(own.get(key), f"{name}.{key}")
        self._look_at(own, name, {*keys, "training", "forward"})
        if not private:
            self._contents.append((own, dict(own), name))
        self._visit(type(module), name)

    def _container(self, value: Any, name: str) -> None:
        if len(value) <= _LONG:
            if isinstance(value, (list, tuple, collections.deque)):
                get = functools.partial(_item, value)
                for i in range(len(value)):
                    self._look(get, i, f"{name}[{i}]")
            elif isinstance(value, Mapping):
                self._look_at(value, name)
        if not isinstance(value, (tuple, frozenset)):
            self._contents.append((value, _copied(value), name))

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
        self._attributes(function, name)
        names = _names_of(function.__code__)
        self._globals(function.__globals__, names.globals, names)

    def _globals(self, variables: dict[str, Any], keys: Iterable[str], names: _Names) -> None:
        """Variables of a user's file, and of the files that it imports."""
        for key in sorted(keys & variables.keys()):
            place, value = (id(variables), key), variables[key]
            if isinstance(value, types.ModuleType):
                self._imported(value, names)
            elif place not in self._seen:
                self._seen[place] = variables
                self._look(variables.get, key, key)

    def _imported(self, module: types.ModuleType, names: _Names) -> None:
        if module is os and names.attributes & {"environ", "getenv"}:
            self._visit(os.environ, "os.environ")
        if module.__name__.split(".")[0] not in _LIBRARIES:
            # A library of others may hold thousands: only what the code names.
            self._globals(vars(module), names.attributes, names)


def _equal(one: Any, other: Any) -> bool:
    """Whether plain values are equal, since identity is not enough."""
    return type(one) is type(other) and isinstance(one, PLAIN) and one == other


def _copied(container: Any) -> Any:
    kinds: tuple[Any, ...] = (set, list, dict)
    is_list = isinstance(container, (list, collections.deque))
    return kinds[is_list if is_list or isinstance(container, set) else 2](container)


def _differ(container: Any, before: Any) -> bool:
    """Whether a set, or a container too long to look at each item, has other items."""
    if isinstance(container, set):
        return bool(container != before)
    if len(before) <= _LONG:
        return False
    if isinstance(before, dict):
        container, before = container.values(), before.values()
    pairs = [*zip(container, before, strict=True)] if _moved(container, before) else []
    return not all(one is other or _equal(one, other) for one, other in pairs)


def _moved(items: Iterable[Any], before: Iterable[Any]) -> bool:
    return any(map(operator.is_not, items, before))


def _named(container: Any, before: Any, name: str) -> str:
    """The name with the key that has been added, if any."""
    new = container.keys() ^ before.keys() if isinstance(before, dict) else ()
    key = next(iter(new), None)
    return f"{name}.{key}" if isinstance(key, str) else name


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
    elif isinstance(place, (dict, list, collections.deque, os._Environ)):
        place[key] = value
    elif not isinstance(place, (tuple, types.MappingProxyType)):
        setattr(place, key, value)


def _of_library(value: Any, but: tuple[str, ...] = ()) -> bool:
    name = getattr(value, "__module__", None) or "builtins"
    root = name.split(".")[0]
    return root in _LIBRARIES and root != "__main__" and name not in but


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
def _names_of(code: types.CodeType) -> _Names:
    """Names that a function, and those defined in it, read or write."""
    kinds = ("LOAD_GLOBAL", "STORE_GLOBAL")
    variables = {i.argval for i in dis.get_instructions(code) if i.opname in kinds}
    attributes = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names_of(constant)
            variables |= inner.globals
            attributes |= inner.attributes
    return _Names(frozenset(variables), frozenset(attributes))
