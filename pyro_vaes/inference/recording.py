"""Recording tensor operations once, to replay them without the Python that made them.

:class:`Program` records any function of tensors; :class:`Recorded` and :class:`Captured` are a
whole step of training.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from torch import Tensor

__all__ = ["Captured", "Program", "Recorded", "signature", "split_tensors"]


Fill = Callable[[Sequence[Tensor]], tuple[Any, Any]]

_COMPILERS = ("g++", "clang++", "c++")


class Program:
    """A function of tensors, its operations recorded once and replayed, perhaps compiled.

    Tensors that the function refers to (parameters, weights of an objective) are read anew at each
    call. Recording and compiling draw no randomness from the caller's generators.

    Args:
        function: takes the tensors, returns a tuple of tensors; may differentiate inside.
        tensors: an example of its arguments; others must have their shapes.
        compiled: compile the recording with Inductor.

    Raises:
        RuntimeError: if the function looks at values, or there is no compiler.
    """

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], compiled: bool = False
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # Slow to import, seldom needed.

        # Validation looks at values, which a recording cannot.
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            graph = make_fx(function)(*tensors)
            self.constants = _lift(graph)
            self._run: Any = graph
            if compiled:
                if sys.platform != "win32" and not any(map(shutil.which, _COMPILERS)):
                    raise RuntimeError("no C++ compiler was found")
                self._run = _compile(graph, [*tensors, *self.constants])

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return cast("tuple[Tensor, ...]", self._run(*tensors, *self.constants))


def _compile(graph: torch.fx.GraphModule, tensors: list[Any]) -> Callable[..., Any]:
    """Compiles a recording with Inductor, without the front end that it does not need.

    Compiled at once, so that a failure is met by whoever can fall back. Random numbers stay
    torch's own: the noise is that of the other modes.
    """
    from torch import _inductor

    with torch.no_grad(), warnings.catch_warnings():
        # Advice on how it compiles (coarser products, split reductions) that nobody here can take.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
        run = _inductor.compile(graph, tensors, options={"fallback_random": True})
        with torch.random.fork_rng():
            run(*tensors)
    return cast("Callable[..., Any]", run)


def _lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Turns the tensors a recording refers to into further inputs, and returns them in order.

    A compiler may fold a constant into the program; an input it must read each time, so that
    parameters and schedules are seen as they are.
    """
    constants: dict[str, Tensor] = {}
    nodes = list(graph.graph.nodes)
    last = next((n for n in reversed(nodes) if n.op == "placeholder"), None)
    lifted: dict[str, Any] = {}
    for node in nodes:
        if node.op != "get_attr":
            continue
        name = cast(str, node.target)
        if name not in lifted:
            where = (
                graph.graph.inserting_after(last)
                if last
                else graph.graph.inserting_before(nodes[0])
            )
            with where:
                lifted[name] = last = graph.graph.placeholder(f"constant_{len(lifted)}")
            constants[name] = getattr(graph, name)
        node.replace_all_uses_with(lifted[name])
        graph.graph.erase_node(node)
    for name in constants:
        delattr(graph, name)
    graph.recompile()
    return list(constants.values())


# --- a step of training ---------------------------------------------------------------------------


class Recorded:
    """One step, recorded for one set of shapes: loss, gradients and the optimiser's step.

    Args:
        loss: of a batch, whose gradients are recorded with it.
        params: those to differentiate by.
        apply: takes the step once the gradients are there, and returns the loss.
        tensors: of an example of a batch.
        compiled: see :class:`Program`.

    Raises:
        RuntimeError: see :class:`Program`.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: Sequence[Tensor],
        apply: Callable[[Tensor], Tensor],
        tensors: Sequence[Tensor],
        compiled: bool = False,
    ) -> None:
        self.params = list(params)
        self._apply = apply

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            value = loss(*inputs)
            grads = torch.autograd.grad(value, self.params, allow_unused=True)
            pairs = zip(grads, self.params, strict=True)
            return (value, *(torch.zeros_like(p) if g is None else g for g, p in pairs))

        self._program = Program(step, tensors, compiled)
        self._flags = self._requires_grad()
        self._prepare(tensors)

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        """What else must be ready before the first call."""

    def _requires_grad(self) -> list[bool]:
        return [t.requires_grad for t in self._program.constants]

    @property
    def stale(self) -> bool:
        """Whether a parameter was frozen or thawed since."""
        return self._requires_grad() != self._flags

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        loss, *grads = self._program(*tensors)
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        return self._apply(loss)


class Captured(Recorded):
    """The same as one CUDA graph: a single launch for the whole step, and no wait for it.

    The noise of a replay follows the device's generator, which counts on from where it is.
    """

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        # A graph reads and writes fixed places.
        self._inputs = [tensor.clone() for tensor in tensors]
        here = torch.cuda.current_device()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Libraries set themselves up at first use, which a graph may not hold: use them before,
        # and take no step. (The optimiser's state was made in an eager step, or restored.)
        with torch.random.fork_rng(devices=[here]), torch.cuda.stream(stream):
            for _ in range(2):
                self._program(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), _no_waiting():
            self._loss = super().__call__(self._inputs)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        for place, tensor in zip(self._inputs, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Makes it an error if the host is about to wait for the device.

    To wait ends a capture, and leaves PyTorch's generator and allocator in the middle of one.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That not every wait is noticed.
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


# --- arguments ------------------------------------------------------------------------------------


def signature(value: Any) -> Any:
    """What a recording depends on: shapes and kinds of tensors, values of all else."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if isinstance(value, (tuple, list)):
        return tuple(map(signature, value))
    return value if value.__hash__ else repr(value)


def split_tensors(args: Any, kwargs: Any) -> tuple[list[Tensor], Fill]:
    """The tensors among the arguments, and a function that puts others in their places."""
    if not kwargs and all(isinstance(value, Tensor) for value in args):  # Mostly, and quickly.
        return list(args), lambda tensors: (tuple(tensors), {})
    flat, spec = torch.utils._pytree.tree_flatten((args, kwargs))
    places = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]

    def fill(tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        values = list(flat)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        return cast("tuple[Any, Any]", torch.utils._pytree.tree_unflatten(values, spec))

    return [flat[i] for i in places], fill
