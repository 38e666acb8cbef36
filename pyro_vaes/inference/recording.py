"""Records tensor operations once, to replay them without the Python code behind them.

:class:`Program` records any function of tensors; :class:`TracedStep` and :class:`GraphStep` are a
whole step of training.
"""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor

from pyro_vaes.inference.guarding import (
    Guard,
    NotRecordableError,
    Reads,
    alike,
    other_noise_unused,
    preserved,
    unvalidated,
)
from pyro_vaes.inference.watching import Watch

__all__ = [
    "GraphStep",
    "Program",
    "TracedStep",
    "UnknownParameterError",
    "cleared",
]


_ROUNDING = 1e-2  # Kernels that add in any order differ by less.
_COMPILERS = ("g++", "clang++", "c++")


class Program:
    """A function of tensors, its operations recorded once and replayed, perhaps compiled.

    Tensors that the function refers to (parameters, weights of an objective) are read anew at each
    call. Recording and compiling draw no randomness from the caller's generators.

    Args:
        function: takes the tensors, returns a tuple of tensors; may differentiate inside.
        tensors: an example of its arguments; others must have their shapes.
        compiled: compile the recording with Inductor.
        params: tensors it refers to whose values change from call to call.

    Raises:
        NotRecordableError: if Python reads results that depend on the data.
        RuntimeError: if there is no compiler.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        tensors: Sequence[Tensor],
        compiled: bool = False,
        params: Sequence[Tensor] = (),
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # Slow to import, rarely needed.

        self._guard = Guard([*tensors, *params])
        found: list[Tensor] = []

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            found[:] = values = function(*inputs)
            return cast("tuple[Tensor, ...]", values)

        # Validation reads values, which a recording cannot.
        with torch.random.fork_rng(), other_noise_unused(), unvalidated():
            try:
                with torch.random.fork_rng(), self._guard, Reads():
                    graph = make_fx(step)(*tensors)
                    found, state = [v.detach().clone() for v in found], torch.get_rng_state()
            finally:
                self._guard.restore()
            self.constants = _lift(graph)
            self._run: Any = graph
            if not any(value.is_cuda for value in found):
                self._compare(tensors, found, state)
            if compiled:
                if sys.platform != "win32" and compiler() is None:
                    raise RuntimeError("no C++ compiler was found")
                self._run = _compile(graph, [*tensors, *self.constants])

    def _compare(self, tensors: Sequence[Tensor], found: Sequence[Tensor], state: Tensor) -> None:
        """Replays once on the noise of the recording, and refuses another result than its own.

        As of a step that sets the generator's state, or of a layer whose gradient fails.
        """
        try:
            with preserved(t for t in (*tensors, *self.constants) if not t.requires_grad):
                again = self(*tensors)
        except RuntimeError as error:
            text = str(error).split("\n")[0]
            raise NotRecordableError(f"a replay of its layers fails: {text}") from None
        if not alike(again, found, _ROUNDING) or not torch.equal(torch.get_rng_state(), state):
            raise NotRecordableError("a replay differs, since the step sets the state of its noise")

    @property
    def outdated(self) -> bool:
        """Whether it depends on a tensor's value that has changed since."""
        return self._guard.outdated()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return cast("tuple[Tensor, ...]", self._run(*tensors, *self.constants))


def compiler() -> str | None:
    """The path of a C++ compiler with which steps can be compiled; None without one."""
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _compile(graph: torch.fx.GraphModule, tensors: list[Any]) -> Callable[..., Any]:
    """Compiles a recording with Inductor, without its front end.

    Compiled at once, so that a failure is raised where there is a fallback. Random numbers are
    torch's own, the same noise as in the other modes.
    """
    from torch import _inductor

    with torch.no_grad(), warnings.catch_warnings():
        # Advice on compiling (coarser products, split reductions) that does not apply here.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
        run = None
        while run is None:
            try:
                run = _inductor.compile(graph, tensors, options={"fallback_random": True})
            except Exception as error:
                _remove_half_written(error)
        with torch.random.fork_rng(), preserved(t for t in tensors if not t.requires_grad):
            run(*tensors)
    return cast("Callable[..., Any]", run)


def _remove_half_written(error: Exception) -> None:
    """Removes a library that cannot be loaded from the compiler's cache; raises any other error.

    A process that is killed while it compiles leaves half a file there, which PyTorch takes for
    whole ever after.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    found = re.search(r"ImportError: (\S+\.so): ", f"{type(error).__name__}: {error}")
    path = Path(found[1]) if found else None
    if path is None or not path.is_relative_to(cache_dir()) or not path.exists():
        raise error
    path.unlink()


def _lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Turns the tensors a recording refers to into further inputs, and returns them in order.

    A compiler may fold a constant into the program, but must read an input each time, so that
    changes of parameters and schedules take effect.
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


class UnknownParameterError(RuntimeError):
    """A step uses a parameter that it was not to be differentiated by."""


class TracedStep:
    """One step, recorded for one set of shapes: loss, gradients and the optimiser's step.

    Args:
        loss: of a batch, whose gradients are recorded with it.
        params: those to differentiate by.
        met: parameters by name, filled by ``loss``: those that the step updates.
        apply: takes the step from the gradients, and returns the loss.
        tensors: of an example batch.
        watch: the places that the loss reads.
        compiled: see :class:`Program`.

    Raises:
        NotRecordableError: see :class:`Program`.
        RuntimeError: see :class:`Program`.
        UnknownParameterError: if the loss uses a parameter that is not among ``params``.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: Sequence[Tensor],
        met: Mapping[str, Tensor],
        apply: Callable[[Tensor, Sequence[Tensor]], Tensor],
        tensors: Sequence[Tensor],
        watch: Watch,
        compiled: bool = False,
    ) -> None:
        self._apply, self._watch = apply, watch
        self._used: list[Tensor] = []
        self._others: list[Tensor] = []  # The user's own: their gradients add up, as under SVI.

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            value = loss(*inputs)
            wanted = [*params, *self._others]
            grads = torch.autograd.grad(value, wanted, allow_unused=True)
            # Parameters without a part in the loss have no gradient, as under SVI.
            pairs = [(p, g) for p, g in zip(wanted, grads, strict=True) if g is not None]
            self._used = [param for param, _ in pairs]
            return (value, *(grad for _, grad in pairs))

        if watch.opaque:
            raise NotRecordableError(
                f"{watch.opaque[0]!r} may change unseen; make it a tensor, or an argument"
            )
        try:
            with _without_hooks(params):
                self._program = Program(step, tensors, compiled, params)
                self._others = self._outside({id(p) for p in (*params, *met.values())})
                if self._others:
                    self._program = Program(step, tensors, compiled, [*params, *self._others])
                    del self._used[-len(self._others) :]
        finally:
            name = watch.put_back()
        if name is not None:
            raise NotRecordableError(f"the step changes {name!r}, which a replay would not")
        self._met = dict(met)
        self.params = list({id(p): p for p in met.values() if p.requires_grad}.values())
        if {id(p) for p in self.params} - {id(p) for p in params}:
            raise UnknownParameterError
        self._before = self._kinds()
        self._prepare(tensors)

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        """Further preparations before the first call."""

    def _outside(self, known: set[int]) -> list[Tensor]:
        """Tensors of the user's own whose gradients a step finds, too."""
        found = [t for t in self._program.constants if t.requires_grad and id(t) not in known]
        if any(not tensor.is_leaf for tensor in found):
            raise NotRecordableError("it uses a tensor that was computed outside, with gradient")
        return found

    def _kinds(self) -> list[Any]:
        return [(t.requires_grad, t.dtype, t.numel()) for t in self._program.constants]

    @property
    def stale(self) -> bool:
        """Whether a tensor has been frozen, unfrozen or converted, or one that was read changed."""
        return self._program.outdated or self._kinds() != self._before

    @property
    def changed(self) -> str | None:
        """The name of a place that has changed since recording; None if there is none."""
        return self._watch.changed()

    @property
    def at_hand(self) -> bool:
        """Whether the parameters are still those in Pyro's store, without gradients of others."""
        store = cast(Any, pyro.get_param_store().named_parameters()).mapping
        if any(store.get(name) is not param for name, param in self._met.items()):
            return False
        return all(is_clear(param.grad) for param in self._used)

    @property
    def hooked(self) -> bool:
        """Whether a gradient has hooks, which a replay calls and a graph cannot."""
        return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self._used)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        loss, *grads = self._program(*tensors)
        before = [param.grad for param in self._used]
        own, others = grads[: len(before)], grads[len(before) :]
        for param, grad in zip(self._used, own, strict=True):
            _give(param, grad)
        for param, grad in zip(self._others, others, strict=True):
            _give(param, grad, param.grad)
        loss = self._apply(loss, self.params)
        for param, earlier in zip(self._used, before, strict=True):
            param.grad = cleared(torch.zeros_like(param)) if earlier is None else earlier
        return loss


def _give(param: Tensor, grad: Tensor, before: Tensor | None = None) -> None:
    """Sets a parameter's gradient, or adds to the one before, and calls its hooks."""
    for hook in (param._backward_hooks or {}).values():
        changed = hook(grad)
        grad = grad if changed is None else changed
    param.grad = grad if before is None else before + grad
    for hook in (param._post_accumulate_grad_hooks or {}).values():
        hook(param)


@contextmanager
def _without_hooks(params: Sequence[Tensor]) -> Iterator[None]:
    """Removes hooks during recording, in which there are no gradients yet."""
    hooks: list[tuple[Any, Any]] = [(p, p._backward_hooks) for p in params if p._backward_hooks]
    for param, _ in hooks:
        param._backward_hooks = None
    try:
        yield
    finally:
        for param, before in hooks:
            param._backward_hooks = before


def cleared(grad: Tensor) -> Tensor:
    """Marks a gradient of zeros, which holds until something writes to it."""
    grad._cleared_at = grad._version  # type: ignore[attr-defined]
    return grad


def is_clear(grad: Tensor | None) -> bool:
    """Whether there is no gradient, or one that :func:`cleared` has marked."""
    return grad is None or getattr(grad, "_cleared_at", -1) == grad._version


class GraphStep(TracedStep):
    """The same as one CUDA graph: a single asynchronous launch for the whole step.

    The noise of a replay follows the device's generator, whose state advances.
    """

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        if self._others:
            raise NotRecordableError("a tensor outside Pyro's store needs a gradient")
        # A graph reads and writes fixed addresses.
        self._inputs = [tensor.clone() for tensor in tensors]
        self._device = next(t.device for t in (*tensors, *self.params) if t.is_cuda)
        with torch.cuda.device(self._device):
            self._capture()

    def _capture(self) -> None:
        here = torch.cuda.current_device()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Libraries initialise themselves at first use, which a graph may not hold: use them before,
        # without a step. (The optimiser's state was made in an eager step, or restored.)
        buffers = [t for t in self._program.constants if not t.requires_grad]
        with torch.random.fork_rng(devices=[here]), torch.cuda.stream(stream), preserved(buffers):
            for _ in range(2):
                self._program(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for param in self._used:  # Made before the capture, outside the graph's memory.
            if param.grad is None:
                param.grad = cleared(torch.zeros_like(param))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), _no_waiting():
            self._loss = super().__call__(self._inputs)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        for place, tensor in zip(self._inputs, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._loss.clone()


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raises an error if the host is about to wait for the device.

    Waiting ends a capture, and leaves PyTorch's generator and allocator in an invalid state.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Not every wait is detected.
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
