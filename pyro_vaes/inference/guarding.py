"""Guards a recording against side effects and against results that depend on the data.

:class:`Guard` checks every tensor operation while a step is recorded. It refuses operations by
which Python reads results that depend on the data (``.item()``, the length of ``x[mask]``), since a
replay would repeat those of the first batch; and it restores buffers that the extra forward pass
has changed.
"""

from __future__ import annotations

import functools
import random
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "Guard",
    "Keeper",
    "NotRecordableError",
    "Reads",
    "alike",
    "other_noise_unused",
    "preserved",
    "reason_of",
    "unvalidated",
]


_MASKS = (torch.bool, torch.uint8)
_READ = "Python reads a tensor's value"
# By these Python reads values, or copies them, without an operation on tensors.
_READERS = frozenset(
    getattr(Tensor, name)
    for name in ("numpy", "tolist", "__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__")
)
_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)


class NotRecordableError(RuntimeError):
    """A step that cannot be replayed; the message is one line."""


class Keeper(TorchDispatchMode):
    """Remembers the values of tensors that are made outside the context and used inside.

    Args:
        inputs: tensors that are remembered from the start.
    """

    def __init__(self, inputs: Iterable[Tensor] = ()) -> None:
        super().__init__()
        # From each tensor to the outer ones it is computed from; None if it depends on the data.
        self._roots: Any = WeakTensorKeyDictionary()
        self._outer: dict[int, tuple[Tensor, Tensor]] = {}  # With copies of their values.
        for tensor in inputs:
            self._meet(tensor, None)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler, 1.2 s, to hide the next method from it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A part that the user has compiled has imported it.
        dispatch = _hidden() if "torch._dynamo" in sys.modules else Keeper._dispatch
        return dispatch(self, func, args, kwargs or {})

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = list(_tensors((args, kwargs)))
        for tensor in tensors:
            if tensor not in self._roots:
                self._meet(tensor, None if tensor.requires_grad else frozenset([id(tensor)]))
        self._check(func, args, tensors)
        result = func(*args, **kwargs)
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        roots = None if drawn else self._joined(tensors)
        for tensor in _tensors(result):
            self._roots[tensor] = roots
        return result

    def _meet(self, tensor: Tensor, roots: frozenset[int] | None) -> None:
        self._roots[tensor] = roots
        self._outer[id(tensor)] = tensor, tensor.detach().clone()

    def _joined(self, tensors: Iterable[Tensor]) -> frozenset[int] | None:
        joined: frozenset[int] = frozenset()
        for tensor in tensors:
            roots = self._roots[tensor]
            if roots is None:
                return None
            joined |= roots
        return joined

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        """Checks an operation before it runs."""

    def restore(self) -> list[Tensor]:
        """Restores tensors that were written to, and returns them."""
        outer, self._outer = self._outer, {}
        self._roots = None
        return [tensor for tensor, kept in outer.values() if _put_back(tensor, kept)]


@functools.cache
def _hidden() -> Any:
    return torch.compiler.disable(Keeper._dispatch)


class Guard(Keeper):
    """Checks the operations of a step while it is recorded.

    Args:
        inputs: the tensors that differ from call to call, parameters among them.

    Attributes:
        read: tensors that Python read, with copies of their values; see :meth:`outdated`.

    Raises:
        NotRecordableError: in the step, where Python reads results that depend on the data.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__(inputs)
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        name = func.__name__.split(".")[0].strip("_")
        if torch.Tag.data_dependent_output in func.tags:
            what = _READ
        elif torch.Tag.dynamic_output_shape in func.tags:
            if func is torch.ops.aten.index.Tensor:
                tensors = [i for i in args[1] if i is not None and i.dtype in _MASKS]
                name = "what a mask selects"
            what = f"the data decide the shape of {name}"
        else:
            return
        roots = self._joined(tensors)
        if roots is None:
            raise NotRecordableError(what)
        self.read |= {root: self._outer[root] for root in roots}

    def restore(self) -> list[Tensor]:
        written = super().restore()
        if any(id(tensor) in self.read for tensor in written):
            raise NotRecordableError("Python reads a tensor that each step changes")
        return written

    def outdated(self) -> bool:
        """Whether a tensor that Python read has another value now."""
        # Not by version: what is written through `.data` or NumPy leaves it as it was.
        return any(not alike([tensor], [kept], 0.0) for tensor, kept in self.read.values())


class Reads(TorchFunctionMode):
    """Shows :class:`Guard` what Python reads past the operations, by reading it once more.

    ``x.numpy()``, ``x.tolist()`` and ``torch.tensor([x.mean()])`` read a tensor's memory.

    Raises:
        NotRecordableError: for noise from a generator of the user's own, too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise NotRecordableError("it draws from a generator of its own")
        if func in _READERS:
            _read(args[:1])
        elif func in _MAKERS and not isinstance(args[0] if args else None, Tensor):
            _read((args, kwargs))
        return func(*args, **kwargs)


def _read(value: Any) -> None:
    for tensor in _tensors(value):
        tensor.detach().reshape(-1)[:1].sum().item()


@contextmanager
def preserved(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restores the values of tensors afterwards."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, before in kept:
            _put_back(tensor, before)


def _put_back(tensor: Tensor, kept: Tensor) -> bool:
    """Restores a tensor; returns whether it had changed (NaN equals NaN)."""
    if alike([tensor], [kept], 0.0):
        return False
    with torch.no_grad():
        tensor.copy_(kept)
    return True


def alike(some: Iterable[Tensor], others: Iterable[Tensor], tolerance: float) -> bool:
    """Whether tensors are equal, to a part of their largest value (NaN equals NaN)."""
    for one, other in zip(some, others, strict=True):
        now = one.detach()
        if now.shape != other.shape:
            return False
        same = (now == other) | ((now != now) & (other != other))
        if tolerance and not same.all():
            same |= (now - other).abs() <= tolerance * other.abs().max()
        if not same.all():
            return False
    return True


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


@contextmanager
def unvalidated() -> Iterator[None]:
    """No checks of values, also by distributions made earlier, which have their own flag."""
    original = Distribution._validate_sample
    with pyro.validation_enabled(False):
        Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            Distribution._validate_sample = original  # type: ignore[method-assign]


@contextmanager
def other_noise_unused() -> Iterator[None]:
    """Restores Python's and NumPy's generators, and refuses a step that draws from them.

    Raises:
        NotRecordableError: if it does, since a replay would repeat the numbers.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with mock.patch.object(np.random, "default_rng", _seeded_in(threading.get_ident())):
            yield
    finally:
        now = np.random.get_state()  # noqa: NPY002
        used = random.getstate() != python or not _same(now, numpy)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
    if used:
        raise NotRecordableError("it draws from Python's or NumPy's random numbers")


def _seeded_in(thread: int) -> Callable[..., Any]:
    """NumPy's ``default_rng``, which needs a seed in a thread: a replay may repeat its numbers."""
    make = np.random.default_rng

    def seeded(seed: Any = None) -> Any:
        if seed is None and threading.get_ident() == thread:
            raise NotRecordableError("it draws from Python's or NumPy's random numbers")
        return make(seed)

    return seeded


def _same(one: Any, other: Any) -> bool:
    return one[2:] == other[2:] and bool((one[1] == other[1]).all())


# --- places of errors -----------------------------------------------------------------------------

_STANDARD = str(Path(sysconfig.get_paths()["stdlib"]).resolve())
_LIBRARIES = tuple(
    str(Path(root).resolve())
    for root in (torch.__path__[0], pyro.__path__[0], Path(__file__).parent, np.__path__[0])
)


def _is_users(path: str) -> bool:
    standard = path.startswith(_STANDARD) and "site-packages" not in path
    return not standard and not path.startswith((*_LIBRARIES, "<"))


def place_of(error: BaseException) -> str:
    """The line of the user's code that led to an error, and Pyro's site."""
    line = site = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        path = code.co_filename
        path = path if path.startswith("<") else str(Path(path).resolve())
        if path.endswith(("primitives.py", "trace_struct.py")) and "pyro" in path:
            name = frame.f_locals.get("name")
            site = name if isinstance(name, str) else site
        if _is_users(path):
            line = f"{Path(path).name}:{number}"
    where = ", ".join(filter(None, (line, f"site {site!r}" if site else "")))
    return f" at {where}" if where else ""


def reason_of(error: BaseException) -> str:
    """Why a step could not be recorded, in one line with the place."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    if "tracing tensor" in text or "data-dependent" in text:
        text = _READ  # Instead of advice on a tool that the user did not call.
    return f"{text.rstrip('.')}{place_of(error)}"
