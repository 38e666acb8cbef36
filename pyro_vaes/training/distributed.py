"""Data-parallel training: processes share each batch and take the steps of one process.

Under ``torchrun`` every process goes through the same batches in the same order, computes on its
own rows of each, with the noise that these rows have in one process, and sums gradients with the
others. A loss is a sum over data, so this is the gradient of the whole batch: weights and
optimisers stay equal, and the result does not depend on the number of processes.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_vaes.core.errors import InputError, RunError
from pyro_vaes.inference.noise import Rows, drawing_rows
from pyro_vaes.training.options import OptionError
from pyro_vaes.training.signals import asked

__all__ = ["ALONE", "PeerError", "Processes", "SharingError", "join_processes"]


T = TypeVar("T")

# Reading the stop flag synchronises a GPU, so it is read every 50 steps only.
_STEPS_BETWEEN_LOOKS = 50
# Layers whose rows depend on each other, or on separate draws in each process.
UNSHAREABLE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


class PeerError(RunError):
    """Another process of the run failed or ended; the message is one line."""


class SharingError(OptionError):
    """An option with which processes cannot share a batch; the message says why."""


class Processes:
    """The processes of a run; with a single one, all methods are trivial.

    All processes must call the same methods in the same order.

    Attributes:
        rank: the number of this process; process 0 writes and prints.
        size: the number of processes.
        ends: why all are to end after the step that they have just taken: a signal's name or
            ``interrupted``, ``time``, or empty.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._idle = self._stop = False
        self._steps = 0
        self._asks: Callable[[], str] = asked
        self.ends = ""

    # --- one batch -----------------------------------------------------------------------------

    def sharing(
        self, model: Callable[..., Any], guide: Callable[..., Any]
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Model and guide for this process's rows; they take the result of :meth:`part`."""
        if self.size == 1:
            return model, guide

        def shared_guide(*args: Any) -> Any:
            with drawing_rows(args[-1]):
                return guide(*args[:-1])

        return lambda *args: model(*args[:-1]), shared_guide

    def part(self, batch: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """This process's rows of a batch, and their indices.

        A process without rows computes on the first row with weight zero.
        """
        if self.size == 1:
            return batch
        total = len(batch[0])
        each, more = divmod(total, self.size)
        start = self.rank * each + min(self.rank, more)
        stop = start + each + (self.rank < more)
        self._idle = start == stop
        rows = Rows(0, 1, total) if self._idle else Rows(start, stop, total)
        # The indices are an argument: a recorded step is valid for them only.
        return *(tensor[rows.start : rows.stop] for tensor in batch), rows

    def combine(self, params: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Sums gradients over the processes, in place, and returns the summed loss.

        If one of them is to end, ``ends`` says so in all, for the same step.

        Raises:
            PeerError: if a process ended.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        flat = torch.cat([flat, loss.detach().reshape(1).to(flat), flat.new_zeros(2)])
        if self._idle:
            flat.zero_()
        why = "interrupted" if self._stop else self._asks()
        if why:
            flat[-1 if why == "time" else -2] = 1
        self._add_up(flat)
        self._steps += 1
        look = flat.device.type == "cpu" or self._steps % _STEPS_BETWEEN_LOOKS == 0
        if look and bool(flat[-2:].any()):
            told = why if why != "time" and why else "interrupted"
            self.ends = told if flat[-2] > 0 else "time"
        for param, total in zip(params, flat[:-3].split([g.numel() for g in grads]), strict=True):
            if param.grad is not None:
                param.grad = total.view_as(param).to(param.dtype)
        return flat[-3].to(loss.dtype)

    def total(self, term: Tensor) -> Tensor:
        """The sum of a term of the loss over the whole batch, as a recordable operation."""
        from torch.distributed._functional_collectives import all_reduce

        term = torch.zeros_like(term) if self._idle else term
        with self._linked():
            return all_reduce(term, "sum", cast(Any, dist.group.WORLD))

    def figures(self, *values: float) -> tuple[float, ...]:
        """Sums of figures over the processes."""
        if self.size == 1:
            return values
        sums = self._place.new_tensor(values, dtype=torch.float64)
        self._add_up(sums)
        return tuple(sums.tolist())

    @property
    def weight(self) -> float:
        """0 if this process had no rows at last, else 1."""
        return 0.0 if self._idle else 1.0

    def _add_up(self, tensor: Tensor) -> None:
        with self._linked():
            dist.all_reduce(tensor)

    # --- a run ---------------------------------------------------------------------------------

    def check(self, mode: str, batch_size: int, device: str, divergence: str) -> None:
        """Refuses options that several processes cannot share a batch with.

        Raises:
            SharingError: naming the option.
        """
        if self.size == 1:
            return
        for option, fits, expected, got in (
            (
                "mode",
                mode != "cuda_graph",
                "auto, eager, traced or compiled (a CUDA graph would hold gradients and optimiser, "
                "and gradients are summed between the two)",
                mode,
            ),
            ("batch_size", batch_size >= self.size, "at least a datum for each", str(batch_size)),
            ("device", device in ("cpu", "cuda"), "cpu or cuda", device),
            (
                "divergence",
                divergence == "none",
                "none (it compares all draws of a batch with each other)",
                divergence,
            ),
        ):
            if not fits:
                raise SharingError(
                    option,
                    f"Expected {option} {expected} with {self.size} processes; got {got}.",
                )

    def check_modules(self, module: nn.Module) -> None:
        """Refuses networks in which a row's output depends on other rows or on draws.

        Raises:
            ValueError: naming the layer.
        """
        for part in module.modules() if self.size > 1 else ():
            if isinstance(part, UNSHAREABLE):
                raise ValueError(
                    f"Expected layers that treat each row by itself with {self.size} processes; "
                    f"got {type(part).__name__}."
                )

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Refuses JSON-ready facts that differ between processes.

        Raises:
            ValueError: in all processes, naming the fact.
        """
        first, *others = [json.loads(text) for text in self._exchange(json.dumps(facts))]
        for number, other in enumerate(others, 1):
            for name in first:
                if other[name] != first[name]:
                    raise ValueError(
                        f"Expected the same {name} in all processes; got another in process "
                        f"{number}."
                    )

    def broadcast(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the first process's tensors to all others, in place."""
        if self.size > 1:
            with self._linked(), torch.no_grad():
                for tensor in tensors.values():
                    dist.broadcast(tensor, 0)

    def agree(self, value: T) -> T:
        """The first process's value, which must be JSON-ready."""
        return cast(T, json.loads(self._exchange(json.dumps(value))[0]))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, a failure of one process is raised in all.

        Raises:
            PeerError: in the processes that did not fail themselves.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        messages = self._exchange("" if failure is None else str(failure) or repr(failure))
        if failure is not None:
            raise failure
        for number, message in enumerate(messages):
            if message:
                raise PeerError(f"Process {number} failed: {message}")

    def in_turn(self, function: Callable[[], T]) -> T:
        """Calls a function in one process per machine, then in the others.

        So one process downloads a file and the others find it.
        """
        results = []
        for now in (self.local_rank == 0, self.local_rank > 0):
            with self.together():
                if now:
                    results.append(function())
        return results[0]

    @contextmanager
    def at_work(self, objective: Any, asks: Callable[[], str]) -> Iterator[None]:
        """Inside, processes train together; an interrupt of one stops all after the same step.

        An objective that weighs a sum over the batch gets the sum over all processes.

        Args:
            objective: the loss.
            asks: why this process is to end, if it is; see ``ends``.
        """
        if self.size == 1:
            yield
            return

        def stop(*_: Any) -> None:
            self._stop = True

        self._asks, self.ends = asks, ""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, stop) if main else None
        weighs = hasattr(objective, "total")
        if weighs:
            objective.total = self.total
        try:
            yield
        finally:
            if weighs:
                objective.total = None
            if main:
                signal.signal(signal.SIGINT, before)
            self._stop = False

    # --- between processes ---------------------------------------------------------------------

    def _exchange(self, text: str) -> list[str]:
        """The texts of all processes, in order. Sent as bytes: nothing received is executed."""
        if self.size == 1:
            return [text]
        data = text.encode()
        with self._linked():
            lengths = [self._place.new_zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, lengths[0] + len(data))
            longest = max(1, *(int(length) for length in lengths))
            own = self._place.new_zeros(longest, dtype=torch.uint8)
            own[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
            texts = [torch.zeros_like(own) for _ in range(self.size)]
            dist.all_gather(texts, own)
        pairs = zip(texts, lengths, strict=True)
        return [bytes(text[: int(length)].tolist()).decode() for text, length in pairs]

    @property
    def _place(self) -> Tensor:
        """A tensor on a device from which the group can send."""
        types = cast(Any, dist.group.WORLD)._device_types
        return torch.zeros((), device="cpu" if torch.device("cpu") in types else "cuda")

    @contextmanager
    def _linked(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise PeerError(
                f"Expected all {self.size} processes to continue; one ended. A run with a folder "
                "can be resumed from its last checkpoint, with any number of processes."
            ) from error


ALONE = Processes()


def join_processes() -> Processes:
    """The processes that share this run: those started by ``torchrun``, else this one alone.

    The first call connects them, over NCCL if each has its own GPU and over gloo otherwise. An
    existing default process group is used as it is.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            _refuse_ranks("WORLD_SIZE", "RANK")
            return ALONE
        if int(os.environ["WORLD_SIZE"]) == 1:
            return ALONE
        _connect(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    rank, size = dist.get_rank(), dist.get_world_size()
    return Processes(rank, size, int(os.environ.get("LOCAL_RANK", rank)))


def refuse_tasks() -> None:
    """Refuses to run as one of several identical tasks of a cluster.

    Raises:
        InputError: naming the environment variable that shows it.
    """
    if not (dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())):
        _refuse_ranks("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
        _refuse_ranks("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")


def _refuse_ranks(size: str, rank: str) -> None:
    tasks = os.environ.get(size, "1")
    if rank in os.environ and tasks != "1":
        raise InputError(
            f"Expected several processes to be started by torchrun; got {size}={tasks} without "
            f"it. For independent runs, unset {size}."
        )


def _connect(local_rank: int, here: int) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    # Its functions have the group of all processes as a default. If they were imported later, as by
    # recording and compiling, they would keep the group alive after it is destroyed, and one of its
    # threads that frees a tensor at exit aborts the process
    # (github.com/pytorch/pytorch/pull/179291).
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus >= here else "gloo")
    atexit.register(_disconnect)


def _disconnect() -> None:
    """Ends the group's threads; at exit, peers that have already ended are ignored."""
    with suppress(RuntimeError):
        if dist.is_initialized():
            dist.destroy_process_group()
