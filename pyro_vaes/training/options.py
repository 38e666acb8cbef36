"""The options of ``fit``: checks, and the meaning of their names."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from pyro_vaes.core.checks import positive
from pyro_vaes.core.choices import OPTIMIZERS, PRECISIONS, SCHEDULES
from pyro_vaes.core.described import plain

__all__ = [
    "COMPILE_FROM_STEPS",
    "TRACE_FROM_STEPS",
    "FitOptions",
    "OptionError",
    "auto_mode",
    "check_objective",
    "computed_in",
    "device_of",
    "json_ready",
    "on_threads",
    "set_rate",
    "training_state",
    "warn_of_schedule",
]


# From this many steps on, recording a step (one second) pays off.
TRACE_FROM_STEPS = 200
# From this many steps on, of one model or of all in a joint program, compiling (20 s) pays off.
COMPILE_FROM_STEPS = 30_000


class OptionError(ValueError):
    """A value that does not fit the data or the machine; ``option`` is the option's name."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The options that determine the result: two runs with equal options are equal."""

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str
    weight_decay: float
    schedule: str
    clip_norm: float | None
    warmup_epochs: float
    warmup_steps: int
    patience: int | None
    ema_decay: float
    seed: int
    device: str
    mode: str
    precision: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> FitOptions:
        """The options among the arguments of a function that takes them all."""
        return cls(**{field.name: arguments[field.name] for field in dataclasses.fields(cls)})

    def warmup(self, steps_per_epoch: int) -> int:
        """The steps over which the KL weight rises; refused if training is not longer."""
        steps = self.warmup_steps or round(self.warmup_epochs * steps_per_epoch)
        if steps >= self.epochs * steps_per_epoch:
            raise ValueError(
                f"Expected a warm-up shorter than the training; got {steps} steps of "
                f"{self.epochs * steps_per_epoch}."
            )
        return steps

    def check(self, has_val: bool) -> None:
        """Refuses invalid options."""
        positive(epochs=self.epochs, batch_size=self.batch_size)
        if self.patience is not None:
            positive(patience=self.patience)
            if not has_val:
                raise ValueError("Expected validation data for patience; got val=None.")
        for name in ("learning_rate", "weight_decay", "ema_decay", "warmup_epochs", "warmup_steps"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"Expected {name} to be a number; got {getattr(self, name)!r}.")
        if not isinstance(self.seed, int):
            raise ValueError(f"Expected seed to be a whole number; got {self.seed!r}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"Expected learning_rate above 0; got {self.learning_rate}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"Expected ema_decay in [0, 1); got {self.ema_decay}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"Expected clip_norm above 0; got {self.clip_norm}.")
        for name, value, choices in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in choices:
                raise ValueError(f"Expected {name} among {', '.join(choices)}; got {value!r}.")
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError("Expected warmup_epochs or warmup_steps; got both.")
        if self.warmup_epochs < 0 or self.warmup_steps < 0:
            raise ValueError("Expected a warm-up of at least 0; got a negative one.")

    def changed_since(self, earlier: Mapping[str, Any]) -> list[str]:
        """Names of options that differ from a run's; the number of epochs may grow."""
        now = dataclasses.asdict(self)
        changed = [name for name in now if name != "epochs" and now[name] != earlier.get(name)]
        return changed + ["epochs"] * (self.epochs < earlier.get("epochs", 0))


def auto_mode(*, steps: int, recordable: bool, captures: bool, before: str | None = None) -> str:
    """The mode that ``auto`` stands for: that before a resumption, or by steps and device.

    Args:
        steps: of the whole training.
        recordable: whether a step can be recorded.
        captures: whether a CUDA graph can hold it.
        before: the mode of the run that is resumed, perhaps started on another machine.
    """
    if before is not None:
        return "traced" if before == "cuda_graph" and not captures else before
    if steps < TRACE_FROM_STEPS or not recordable:
        return "eager"
    if captures:
        return "cuda_graph"
    return "compiled" if steps >= COMPILE_FROM_STEPS else "traced"


def warn_of_schedule(options: FitOptions, before: int) -> None:
    """Says that a resumed run of more epochs is not the run that asks for them from the start."""
    if options.schedule != "constant" and options.epochs != before:
        warnings.warn(
            f"The {options.schedule} schedule of the learning rate now ends after {options.epochs} "
            f"epochs, was {before}: the rate rises again where training resumes. A run that asks "
            f"for {options.epochs} from its start has another rate in the earlier ones.",
            stacklevel=2,
        )


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name (``cuda:1`` is the second); ``auto`` is CUDA if there, else the CPU.

    Raises:
        ValueError: for a device that this machine lacks, or that is not supported.
    """
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if name == "auto":
        return torch.device("cuda" if counts["cuda"] else "cpu")
    kind, _, index = str(name).partition(":")
    if kind not in counts or not (index or "0").isdecimal():
        raise ValueError(f"Expected device among auto, {', '.join(counts)}; got {str(name)!r}.")
    if int(index or 0) >= counts[kind]:
        raise ValueError(f"Expected a device that this machine has; got {str(name)!r}.")
    return torch.device(name)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # A CUDA graph reads it from this tensor.
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@contextmanager
def training_state(device: torch.device) -> Iterator[None]:
    """Torch's global state as training needs it, whatever the caller's settings.

    Under ``no_grad``, for example, nothing would be learned.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Inside, torch computes on this number of CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def computed_in(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, matrix products have this precision; densities and weights keep theirs."""
    if precision == "bf16":
        # No cache of cast weights: the step changes them inside.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        yield


def check_objective(objective: Any) -> None:
    """Refuses an objective that cannot be minimised, such as a class."""
    if isinstance(objective, type) or not callable(getattr(objective, "loss", None)):
        named = isinstance(objective, type)
        got = f"the class {objective.__name__} (call it)" if named else f"{objective!r:.60}"
        raise ValueError(
            "Expected objective to be one of pyro_vaes.objectives or a Pyro loss, such as ELBO(); "
            f"got {got}."
        )
    if any(isinstance(v, torch.Tensor) and v.is_inference() for v in vars(objective).values()):
        raise ValueError(
            "Expected an objective whose weights can be scheduled; got one made under "
            "torch.inference_mode(). Make it outside."
        )


def json_ready(record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Facts with plain numbers; refused before training if JSON cannot hold them."""
    facts = None if record is None else cast("dict[str, Any]", plain(dict(record)))
    try:
        json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected record of facts that JSON can hold; got {error}.") from error
    return facts
