"""Torch's optimisers without the import of its compiler, and what their fused kernels need.

Their methods import ``torch._dynamo`` at the first call, 1.2 s of a core, only to keep the compiler
out of them. Nothing here compiles an optimiser's Python.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["lay_out", "without_compiler"]


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


def lay_out(params: Iterable[Tensor]) -> None:
    """Gives gradients the memory layout of their parameters.

    Fused optimisers read both as flat memory. ``backward`` sees to that; ``torch.autograd.grad``,
    hooks and compiled code may return a view, such as a column of a matrix.

    >>> from pyro_vaes.inference.optimizers import lay_out
    >>> weight = torch.zeros(2)
    >>> weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, 0]
    >>> lay_out([weight])
    >>> weight.grad, weight.grad.stride()
    (tensor([1., 3.]), (1,))
    """
    for param in params:
        grad = param.grad
        strided = grad is not None and grad.layout is param.layout is torch.strided
        if grad is not None and strided and grad.stride() != param.stride():
            param.grad = torch.empty_like(param).copy_(grad)
