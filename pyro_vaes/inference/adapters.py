"""Adapts a user's loss, arguments and parameters to :class:`.FastSVI`."""

from __future__ import annotations

import enum
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.inference.guarding import NotRecordableError
from pyro_vaes.inference.many_samples import ManySamples
from pyro_vaes.inference.watching import PLAIN

__all__ = [
    "Arguments",
    "MetParameters",
    "argument_of",
    "arguments_of",
    "as_objective",
    "given_traces",
    "is_number",
    "name_of",
    "refusal_of",
]

# Immutable values.
_TEXTUAL = (*PLAIN, np.generic)
_FIXED = (*_TEXTUAL, torch.Size, enum.Enum, torch.dtype, torch.device, type)


def name_of(loss: Any) -> str:
    """The name of a loss: that of the function, or of its class."""
    return getattr(loss, "__name__", type(loss).__name__)


def argument_of(model: Any, args: Any, kwargs: Any, wanted: Callable[[Any], bool]) -> str:
    """The name of the argument that holds a value, as the model calls it."""
    try:
        named = inspect.signature(model).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # The model raises a better error.
        named = {str(i): value for i, value in enumerate(args)} | kwargs
    for name, value in named.items():
        if any(map(wanted, torch.utils._pytree.tree_leaves(value))):
            return repr(name)
    return "?"


def refusal_of(model: Any, arguments: Arguments, args: Any, kwargs: Any) -> str | None:
    """Why no step with such arguments can be recorded; None if one might."""
    if _PYRO_STACK:
        return f"it runs inside Pyro's {type(_PYRO_STACK[-1]).__name__}"
    if arguments.opaque is None:
        return None
    value = arguments.opaque
    name = argument_of(model, args, kwargs, lambda leaf: leaf is value)
    if isinstance(value, Tensor):
        return f"argument {name} is no plain tensor without gradient"
    return f"argument {name} is a {type(value).__name__}, which may change unseen: pass tensors"


def as_objective(loss: Any) -> ELBO | ManySamples | None:
    """The loss as an objective that can be recorded; None if it must run by itself."""
    if isinstance(loss, (ELBO, ManySamples)):
        return loss
    if type(loss) not in (Trace_ELBO, RenyiELBO):
        return None
    options = {
        "num_particles": loss.num_particles,
        "max_plate_nesting": loss.max_plate_nesting,
        "vectorize_particles": loss.vectorize_particles,
        "strict_enumeration_warning": loss.strict_enumeration_warning,
    }
    ours = ELBO(**options) if type(loss) is Trace_ELBO else ManySamples(loss.alpha, **options)
    ours.max_plate_nesting = loss.max_plate_nesting  # It includes the particles' plate already.
    return ours


@contextmanager
def given_traces(loss: Any, pairs: Iterable[Any]) -> Iterator[None]:
    """Makes a loss take these traces of model and guide instead of running them."""
    loss._get_traces = lambda *_: iter(pairs)  # Shadows the method.
    try:
        yield
    finally:
        del loss._get_traces


class MetParameters(Messenger):
    """Collects the parameters used inside in ``params``; cheaper than a trace at every step."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_post_param(self, msg: Any) -> None:
        # The last of a name counts: an autoguide sets itself up in its first call and replaces the
        # parameters that it announced there.
        self.params[msg["name"]] = msg["value"].unconstrained()


class Arguments(NamedTuple):
    """The arguments of a step, split into tensors and the rest.

    Attributes:
        tensors: the tensors, in lists and dictionaries too; each once.
        key: all else that a recording depends on, such as shapes, plain values and structure.
        fill: makes arguments from other tensors.
        numbers: whether there are plain numbers, which might change at each step.
        opaque: an argument that cannot be recorded, since it may change unnoticed or is no plain
            tensor; None if there is none.
    """

    tensors: list[Tensor]
    key: Any
    fill: Callable[[Sequence[Tensor]], tuple[Any, Any]]
    numbers: bool = False
    opaque: Any = None

    def call(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """Calls a function of two tuples of arguments, by place and by name.

        Raises:
            NotRecordableError: if it changes a list or dictionary among them.
        """
        filled = self.fill(inputs)
        flat, spec = torch.utils._pytree.tree_flatten(filled)
        result = function(*filled)
        now, spec_now = torch.utils._pytree.tree_flatten(filled)
        if spec_now != spec or any(map(operator.is_not, now, flat)):
            raise NotRecordableError(
                "the step changes an argument, a list or dictionary, which a replay would not"
            )
        return result


def arguments_of(args: Any, kwargs: Any) -> Arguments:
    """Splits the arguments of a step."""
    values = [*args, *kwargs.values()] if kwargs else list(args)
    if all(_is_input(value) for value in values) and _distinct(values):  # The usual case, fast.
        n, names = len(args), tuple(kwargs)

        def quickly(tensors: Sequence[Tensor]) -> tuple[Any, Any]:
            return tuple(tensors[:n]), dict(zip(names, tensors[n:], strict=True))

        return Arguments(values, (names, *map(_kind, values)), quickly)
    return _of_any_kind(args, kwargs)


def _of_any_kind(args: Any, kwargs: Any) -> Arguments:
    flat, spec = torch.utils._pytree.tree_flatten((args, kwargs))
    tensors: dict[int, Tensor] = {}
    places: list[int | None] = []
    key: list[Any] = [repr(spec)]
    numbers, opaque = False, None
    for value in flat:
        if _is_input(value):
            tensors.setdefault(id(value), value)
            places.append(list(tensors).index(id(value)))
            key.append((places[-1], _kind(value)))
            continue
        places.append(None)
        numbers |= is_number(value)
        if not isinstance(value, _FIXED):
            opaque, value = value, None
        # By type and text: True equals 1 equals 1.0, and NaN does not equal NaN.
        key.append((type(value), repr(value) if isinstance(value, _TEXTUAL) else value))

    def fill(given: Sequence[Tensor]) -> tuple[Any, Any]:
        pairs = zip(places, flat, strict=True)
        filled = [value if place is None else given[place] for place, value in pairs]
        return cast("tuple[Any, Any]", torch.utils._pytree.tree_unflatten(filled, spec))

    return Arguments(list(tensors.values()), tuple(key), fill, numbers, opaque)


def is_number(value: Any) -> bool:
    """Whether an argument is a plain number, which another may follow at the next step."""
    return type(value) in (int, float, complex) or isinstance(value, np.number)


def _is_input(value: Any) -> bool:
    if type(value) is not Tensor or value.layout is not torch.strided:
        return False
    return not (value.requires_grad or value.is_nested or value.is_conj() or value.is_neg())


def _distinct(values: Sequence[Any]) -> bool:
    return len(values) < 2 or len({id(value) for value in values}) == len(values)


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
