"""How a part is described in plain data, and rebuilt from that description.

A saved model must be readable without running code from the file. So every module of this
library remembers the arguments it was built with; :func:`describe` turns a tree of modules into
JSON-ready data and :func:`rebuild` calls the constructors again. Only classes of this library can
be named in a description, and tensors are described by their shape: their values travel with the
weights.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

__all__ = [
    "CLASSES",
    "Described",
    "SpecError",
    "describe",
    "plain",
    "rebuild",
    "remembers_arguments",
]


# The classes that a file may name, by module: these and no others are imported on demand. Files
# hold bare names, so a class may move to another module; no two may share a name.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "core.labels": ("Conditions",),
    "exact.discrete": ("_Table",),
    "exact.linear_gaussian": ("Identity", "LinearPosterior"),
    "flows.recipes": ("FlowRecipe",),
    "networks.convolutions": ("ConvDecoder", "ConvEncoder"),
    "networks.mlp": ("GatedMLP", "MLP", "SkipMLP"),
    "networks.columns": ("OneHotColumns",),
    "networks.residual": ("ResDecoder", "ResEncoder", "ResMLP"),
    "parts.columns": ("TableLikelihood",),
    "parts.correlated": (
        "AutoregressiveNormalLikelihood",
        "CorrelatedLikelihood",
        "LowRankNormalLikelihood",
        "StudentTLikelihood",
    ),
    "parts.counts": ("CountLikelihood", "NegativeBinomialLikelihood", "PoissonLikelihood"),
    "parts.chains": ("ChainPosterior", "ChainPrior"),
    "parts.gtm": ("GTMPrior", "GTMPseudoInputs", "Grid"),
    "parts.likelihoods": (
        "AutoregressiveLikelihood",
        "BernoulliLikelihood",
        "BetaBinomialLikelihood",
        "CategoricalLikelihood",
        "DiscretizedLogisticLikelihood",
        "LevelLikelihood",
        "Likelihood",
        "NormalLikelihood",
        "OrdinalLikelihood",
    ),
    "parts.posteriors": (
        "FlowPosterior",
        "FullNormalPosterior",
        "NormalPosterior",
        "Posterior",
        "_Scaled",
    ),
    "parts.powers": ("PowerLikelihood", "PowerPosterior", "YeoJohnson"),
    "parts.units": ("ElementUnits", "InUnits"),
    "parts.priors": ("FlowPrior", "MixturePrior", "NormalPrior", "VampPrior"),
    "vae": ("VAE",),
}


class SpecError(ValueError):
    """A description that cannot be written or rebuilt."""


def table_of(modules: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Class name to module.

    Raises:
        SpecError: for a name entered twice.
    """
    table: dict[str, str] = {}
    for module, names in modules.items():
        for name in names:
            if name in table:
                raise SpecError(f"Expected {name!r} once; got it in {table[name]} and {module}.")
            table[name] = module
    return table


#: Every class that can be rebuilt, its bare name to its module within ``pyro_vaes``.
CLASSES: Mapping[str, str] = table_of(_MODULES)


def plain(value: Any) -> Any:
    """Replaces NumPy's and torch's numbers by Python's, also within lists and mappings.

    A size from ``y.max() + 1`` or a scale from ``x.std()`` is meant as a number: only numbers can
    be compared, written to JSON and read again. A row of NumPy integers is a list of sizes; any
    other array becomes a tensor.

    >>> plain({"scale": np.float32(0.5), "sizes": np.array([8, 4])})
    {'scale': 0.5, 'sizes': [8, 4]}
    """
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        # A named tuple takes its items one by one.
        return type(value)(*items) if hasattr(value, "_fields") else _sequence(value)(items)
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if not value.ndim:
            return value.item()
        if value.ndim == 1 and value.dtype.kind in "iu":
            return value.tolist()
        return torch.from_numpy(np.array(value)) if value.dtype.kind in "biuf" else value
    if isinstance(value, torch.Tensor) and not value.dim() and not isinstance(value, nn.Parameter):
        return value.item()
    return value


def _sequence(value: Any) -> type:
    return list if isinstance(value, list) else tuple


def remembers_arguments(cls: type) -> type:
    """Makes instances of ``cls`` remember the arguments of their outermost constructor.

    Numbers are passed on as :func:`plain` ones.
    """
    original: Callable[..., None] = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = tuple(map(plain, args)), {key: plain(kwargs[key]) for key in kwargs}
        # A subclass calls its parent's constructor: the first (outermost) record stands.
        if "_arguments" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            bound.arguments.pop("self", None)
            self.__dict__["_arguments"] = dict(bound.arguments)
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


class Described(nn.Module):
    """An ``nn.Module`` whose constructor arguments are recorded, see :func:`describe`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            remembers_arguments(cls)


def describe(value: Any) -> Any:
    """Describes a tree of this library's modules as JSON-ready data.

    A module that occurs twice (a VampPrior's posterior, say) is described once and then referred
    to, so that sharing survives the round trip.

    Raises:
        SpecError: for a module or value that this library cannot rebuild.
    """
    return _describe(value, {})


def _describe(value: Any, seen: dict[int, int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [_describe(item, seen) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {str(key): _describe(item, seen) for key, item in value.items()}}
    name = type(value).__name__
    # A user's subclass may do anything in its constructor: only our own classes can be rebuilt.
    if type(value).__module__ != f"pyro_vaes.{CLASSES.get(name)}":
        raise SpecError(
            f"Expected parts and arguments of pyro_vaes' own; got {type(value).__qualname__}, "
            "which cannot be rebuilt from a file: load its weights with into=vae."
        )
    if id(value) in seen:
        return {"ref": seen[id(value)]}
    # By name, in both directions: a file may keep the arguments in another order.
    arguments = {
        key: _describe(item, seen) for key, item in sorted(cast(Any, value)._arguments.items())
    }
    # Numbered after its arguments, the order in which rebuild() finishes them.
    seen[id(value)] = len(seen)
    return {"class": name, "arguments": arguments}


def rebuild(description: Any) -> Any:
    """Builds what :func:`describe` described, with tensors of the right shape but no values.

    Until the weights are loaded they hold NaN (integers: zeros): placeholders that pass range
    checks and would show in any result.

    Raises:
        SpecError: if the description is not one that :func:`describe` writes.
    """
    try:
        return _rebuild(description, [])
    except SpecError:
        raise
    except Exception as error:  # With arbitrary arguments a constructor may raise anything.
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise SpecError(
            f"Expected a description of a model; got a damaged one ({said})."
        ) from error


def _rebuild(description: Any, built: list[Any]) -> Any:
    if isinstance(description, list):
        return [_rebuild(item, built) for item in description]
    if not isinstance(description, dict):
        return description
    if "tensor" in description:
        dtype = getattr(torch, description["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise SpecError(f"Expected a tensor type; got {description['dtype']!r}.")
        unknown = torch.nan if dtype.is_floating_point else 0
        return torch.full(description["tensor"], unknown, dtype=dtype)
    if "dict" in description:
        return {key: _rebuild(item, built) for key, item in description["dict"].items()}
    if "ref" in description:
        return built[description["ref"]]
    cls = _class_named(description["class"])
    given = sorted(description["arguments"].items())
    arguments = {key: _rebuild(item, built) for key, item in given}
    value = _constructed(cls, arguments)
    built.append(value)
    return value


def _constructed(cls: Any, arguments: dict[str, Any]) -> Any:
    """Calls a constructor with arguments by name; those like ``*links`` are passed by place."""
    signature = inspect.signature(cls)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return cls(**arguments)
    if not arguments.keys() <= signature.parameters.keys():
        raise SpecError(f"Expected arguments of {cls.__name__}; got {', '.join(arguments)}.")
    bound = inspect.BoundArguments(signature, cast(Any, arguments))
    return cls(*bound.args, **bound.kwargs)


def _class_named(name: Any) -> Any:
    if name not in CLASSES:
        raise SpecError(f"Expected a class of pyro_vaes; got {name!r}.")
    return getattr(importlib.import_module(f"pyro_vaes.{CLASSES[name]}"), name)
