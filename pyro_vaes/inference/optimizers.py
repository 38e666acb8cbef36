"""Torch's optimisers without the import of its compiler.

Their methods import ``torch._dynamo`` at the first call, 1.2 s of a core, only to keep the compiler
out of them. Nothing here compiles an optimiser's Python.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

import torch

__all__ = ["without_compiler"]


# Those that torch guards, besides `step`.
_GUARDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


@functools.cache
def without_compiler(kind: type[Kind]) -> type[Kind]:
    """The class of optimisers whose methods are those of ``kind`` without torch's guards.

    A version of torch that guards them otherwise takes the same steps, after the import.

    >>> from pyro_vaes.inference.optimizers import without_compiler
    >>> weight = torch.ones(1, requires_grad=True)
    >>> weight.grad = torch.ones(1)
    >>> without_compiler(torch.optim.SGD)([weight], lr=0.25).step()
    >>> weight.item()
    0.75
    """
    original: Any = inspect.unwrap(kind.step)

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return original(self, closure)

    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _GUARDED}
    return type(kind.__name__, (kind,), {**methods, "step": step})
