"""Limits on memory and operations while a model is built, checked before memory is allocated."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["BoundError", "Bounded"]


# Results of at most this many elements are computed before their size is checked.
_SMALL = 2**22


class BoundError(ValueError):
    """Building exceeds its limits."""


class Bounded(TorchFunctionMode):
    """Limits the memory and the number of the tensor operations in a context.

    An operation whose result could be large first runs on the meta device, which computes shapes
    and holds no values.

    Args:
        size: bytes that all results may take together.
        operations: largest number of operations.

    Raises:
        BoundError: in the context, before the operation that exceeds a limit.
    """

    def __init__(self, size: int, operations: int) -> None:
        super().__init__()
        self.size, self.operations = size, operations

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operations -= 1
        asked = _expected(func, args, kwargs)
        if asked > self.size or self.operations < 0:
            raise BoundError("it asks for far more than the file holds")
        result = func(*args, **kwargs)
        self.size -= _new_bytes(result, (args, kwargs))
        return result


def _expected(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """The bytes of an operation's result; 0 if they are few or depend on values."""
    leaves = tree_leaves((args, kwargs))
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    sizes = [leaf for leaf in leaves if isinstance(leaf, (int, float)) and leaf > 1]
    # No result is larger than the product of the given sizes.
    if math.prod([max(1, tensor.numel()) for tensor in given]) * math.prod(sizes) <= _SMALL:
        return 0
    if len(given) == 1 and not sizes:
        return 8 * given[0].numel()
    if given and "device" not in kwargs:
        return _shaped(func, args, kwargs)
    plain = {name: value for name, value in kwargs.items() if name != "generator"}
    return _shaped(func, args, {**plain, "device": "meta"})


def _shaped(func: Any, args: Any, on_meta: dict[str, Any]) -> int:
    """The bytes of the result of an operation on the meta device."""
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, on_meta))
    try:
        return _new_bytes(func(*shapes[0], **shapes[1]), ())
    except (RuntimeError, NotImplementedError):
        return 0  # The operation raises its own error, or needs values, which exist by then.


def _new_bytes(results: Any, given: Any) -> int:
    """The bytes of tensors whose memory is not that of the given ones."""
    old = {_storage(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    new = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
    return sum(t.untyped_storage().nbytes() for t in new if not old or _storage(t) not in old)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
