"""Adapts a user's loss, arguments and parameters to :class:`.FastSVI`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.inference.many_samples import ManySamples

__all__ = ["MetParameters", "argument_of", "as_objective", "name_of"]


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


class MetParameters(Messenger):
    """Collects the parameters used inside in ``params``; cheaper than a trace at every step."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_post_param(self, msg: Any) -> None:
        # The last of a name counts: an autoguide sets itself up in its first call and replaces the
        # parameters that it announced there.
        self.params[msg["name"]] = msg["value"].unconstrained()
