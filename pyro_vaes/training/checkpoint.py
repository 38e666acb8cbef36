"""Training state: the contents of a checkpoint, and how training resumes from it.

A checkpoint is one file, ``checkpoint/state.safetensors``: everything that an epoch changes, in
groups of tensors, and a record of the run's options and data, so that no other run resumes from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_vaes.core.described import SpecError, describe
from pyro_vaes.data.splits import Split, batches
from pyro_vaes.inference.info import BetaTCELBO
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.older import writer
from pyro_vaes.storage.tensors import (
    Groups,
    copied,
    fill,
    named_tensors,
    optimizer_tensors,
    read_groups,
    restore_optimizer,
)
from pyro_vaes.storage.weights import WEIGHTS
from pyro_vaes.training.history import History
from pyro_vaes.training.options import FitOptions
from pyro_vaes.vae import VAE

__all__ = [
    "CHECKPOINT",
    "RunState",
    "Saved",
    "check_same",
    "identity_of",
    "read_checkpoint",
    "settings_of",
]


CHECKPOINT = Path("checkpoint") / "state.safetensors"

# An argument of Pyro's losses that their first step sets.
_GUESSED = ("max_plate_nesting",)

# What checkpoints of old leave unsaid.
_UNSAID = ("validation data", "transform of the data", "settings of the objective")

Saved = tuple[Groups, dict[str, Any]]
"""The contents of a checkpoint: groups of tensors, and its record."""


@dataclasses.dataclass
class Within:
    """The progress within an epoch: the additional contents of a checkpoint inside it.

    Attributes:
        order: state of the generator of the data's order at the start of the epoch.
        good: the weights at its start, restored after a loss that is not finite.
        total: the sum of the losses of its steps so far.
        steps: the number of these steps.
        seconds: the time they took.
    """

    order: Tensor
    good: dict[str, Tensor]
    total: Tensor
    steps: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class RunState:
    """Everything that an epoch of training changes.

    Attributes:
        vae: the model, with the weights of the last step.
        objective: a divergence in it may have a critic, which learns too.
        history: the record of the epochs so far.
        order: the generator of the data's order.
        best: the weights with the best validation, if any.
        average: the moving average of the weights, if one is kept.
        optimizer: of the weights; None before training starts.
        within: the progress within the current epoch; None between epochs.
    """

    vae: VAE
    objective: Any
    history: History
    order: torch.Generator
    best: dict[str, Tensor] | None = None
    average: dict[str, Tensor] | None = None
    optimizer: Optimizer | None = None
    within: Within | None = None
    _pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def follow(self, decay: float) -> None:
        """Updates the moving average, if one is kept, after a step."""
        if self.average is None:
            return
        if self._pairs is None:
            now = named_tensors(self.vae)
            # Looked up once: the tensors are shared with the weights, and one call updates all.
            names = [name for name, tensor in self.average.items() if tensor.is_floating_point()]
            self._pairs = [self.average[n] for n in names], [now[n] for n in names]
        get_ema_multi_avg_fn(decay)(*self._pairs, None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the VAE has the averaged weights, if an average is kept."""
        if self.average is None:
            yield
            return
        own = copied(named_tensors(self.vae))
        fill(self.vae, self.average)
        try:
            yield
        finally:
            fill(self.vae, own)

    def candidate(self) -> dict[str, Tensor]:
        """A copy of the weights to keep if training ended now."""
        return copied(self.average or named_tensors(self.vae))

    def keep(self) -> None:
        """Gives the VAE the best weights, or the average if none were chosen."""
        if self.best is not None or self.average is not None:
            fill(self.vae, cast("dict[str, Tensor]", self.best or self.average))

    def epoch(self) -> Within:
        """The progress within the current epoch, which starts now unless a checkpoint had it."""
        if self.within is None:
            now = named_tensors(self.vae)
            total = torch.zeros((), device=self.vae.device)
            self.within = Within(self.order.get_state(), copied(now), total)
        return self.within

    def batches(self, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The remaining batches of the current epoch."""
        within = self.epoch()
        found = batches(split, size, self.order)
        if within.steps:
            # Earlier batches are drawn again, for order and transforms; the noise is restored.
            with torch.random.fork_rng():
                self.order.set_state(within.order)
                for _ in itertools.islice(found, within.steps):
                    pass
        return found

    def groups(self) -> Groups:
        """A copy of the state, as groups of tensors."""
        assert self.optimizer is not None
        generators = {"order": self.order.get_state(), "cpu": torch.get_rng_state()}
        if self.vae.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.vae.device)
        groups = {
            "model": copied(named_tensors(self.vae)),
            # Never changed in place, only replaced: no copy needed.
            "best": self.best or {},
            "average": copied(self.average or {}),
            "optimizer": copied(optimizer_tensors(self.optimizer)),
            "generator": generators,
        }
        if self.within is not None:
            generators["order"] = self.within.order
            groups["within"] = {"total": self.within.total.clone()}
            groups["good"] = self.within.good
        divergence = getattr(self.objective, "divergence", None)
        if divergence is not None:
            groups["divergence"] = copied(named_tensors(divergence))
            if divergence.optimizer is not None:
                groups["divergence_optimizer"] = copied(optimizer_tensors(divergence.optimizer))
        return groups

    def record(self, options: FitOptions, identity: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a checkpoint."""
        return {
            "options": dataclasses.asdict(options),
            "identity": identity,
            "history": dataclasses.asdict(self.history),
            **({} if self.within is None else {"within": self._counted()}),
        }

    def _counted(self) -> dict[str, Any]:
        assert self.within is not None
        return {"steps": self.within.steps, "seconds": self.within.seconds}

    def take_up(self, saved: Saved, path: Path) -> None:
        """Restores a saved state.

        Raises:
            RunFolderError: if it is of another run; names ``path``.
        """
        try:
            self._take_up(*saved, path)
        except RunFolderError:
            raise
        # An intact file that is no checkpoint of this run: made by hand or by another version.
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"Expected a checkpoint of this run at {path}; got another "
                f"({type(error).__name__}: {error})."
            ) from error

    def _take_up(self, groups: Groups, record: Mapping[str, Any], path: Path) -> None:
        assert self.optimizer is not None
        device = self.vae.device
        fill(self.vae, groups["model"], path)
        self.best, self.average = (
            {name: tensor.to(device) for name, tensor in groups.get(key, {}).items()} or None
            for key in ("best", "average")
        )
        self._pairs = None
        restore_optimizer(self.optimizer, groups.get("optimizer", {}))
        divergence = getattr(self.objective, "divergence", None)
        if divergence is not None:
            fill(divergence, groups.get("divergence", {}), path)
            if divergence.optimizer is not None:
                restore_optimizer(divergence.optimizer, groups.get("divergence_optimizer", {}))
        self.order.set_state(groups["generator"]["order"])
        torch.set_rng_state(groups["generator"]["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(groups["generator"]["cuda"], device)
        self.history = History(**record["history"])
        self.within = None
        if "within" in record:
            good = {name: tensor.to(device) for name, tensor in groups["good"].items()}
            total = groups["within"]["total"].to(device)
            self.within = Within(groups["generator"]["order"], good, total, **record["within"])


def read_checkpoint(out: Path) -> Saved | None:
    """Reads the checkpoint of a run; None if it has none yet.

    Raises:
        RunFolderError: if the checkpoint is damaged, or missing where there are weights, which a
            new run would overwrite.
    """
    if (out / CHECKPOINT).exists():
        return read_groups(out / CHECKPOINT)
    if (out / WEIGHTS).exists():
        raise RunFolderError(
            f"Expected {CHECKPOINT} next to the weights in {out}, to resume from; found none."
        )
    return None


def identity_of(
    vae: VAE, objective: Any, train: Split, val: Split | None, record: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Facts, other than options, that a resumed run must share with the original."""
    try:
        architecture = describe(vae)
    except SpecError:
        architecture = None
    weights = ("kl_weight", "divergence_weight", "free_bits", "num_particles", "alpha")
    given: dict[str, Any] = {
        n: float(getattr(objective, n)) for n in weights if hasattr(objective, n)
    }
    # What checkpoints of old leave unsaid is left out where it is as then.
    if getattr(objective, "gradient", "total") != "total":
        given["gradient"] = objective.gradient
    for name in ("kl_schedule", "kl_capacity"):
        if getattr(objective, name, None) is not None:
            given[name] = _known_by(getattr(objective, name))
    if isinstance(objective, BetaTCELBO):
        given["weights"] = objective.weights.tolist()
    divergence = type(getattr(objective, "divergence", None)).__name__
    return {
        "data": _digest(train),
        "validation data": None if val is None else _digest(val),
        "transform of the data": _known_by_rows(train),
        "configuration": (record or {}).get("digest"),
        "architecture": architecture,
        "objective": {"name": type(objective).__name__, "divergence": divergence, **given},
    }


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    split.digest(digest)
    if split.y is not None:
        digest.update(split.y.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _known_by_rows(split: Split) -> str | None:
    """The digest of what a transform makes of a few rows; None without a transform."""
    if split.transform is None:
        return None
    rows = split.numbers(split.x[:4])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _digest(Split(split.transform(rows, torch.Generator()).cpu()))


def settings_of(objective: Any) -> dict[str, Any]:
    """The plain arguments of an objective, and of its divergence, that are kept under their names.

    Others, such as what it counts in training, are no settings.
    """
    found: dict[str, Any] = {}
    for role, part in (("", objective), ("divergence.", getattr(objective, "divergence", None))):
        names = () if part is None else inspect.signature(type(part)).parameters
        values = {name: getattr(part, name, None) for name in names if name not in _GUESSED}
        found |= {f"{role}{name}": value for name, value in values.items() if _is_plain(value)}
    return cast("dict[str, Any]", json.loads(json.dumps(found)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def _known_by(schedule: Callable[[float], float]) -> str:
    """The digest of a schedule's values in the first thousand epochs: a function has no name."""
    values = [float(schedule(quarter / 4)) for quarter in range(4001)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def check_same(
    record: Mapping[str, Any], options: FitOptions, identity: Mapping[str, Any], out: Path
) -> None:
    """Refuses to resume a run of other options, data or architecture.

    Args:
        record: of the checkpoint.
        options: of the run that resumes.
        identity: see :func:`identity_of`.
        out: the run folder, for the message.

    Raises:
        RunFolderError: if it is another run.
    """
    if not {"options", "identity", "history"} <= record.keys():
        raise RunFolderError(f"Expected a checkpoint at {out}; got a file without its parts.")
    changed = options.changed_since(record["options"])
    if changed:
        raise RunFolderError(
            f"Expected the options that the run in {out} was started with; got another "
            f"{', '.join(changed)}."
        )
    older = "" if "version" in record else f" (It was started by {writer(record)}.)"
    known = record["identity"]
    for name, value in identity.items():
        if name in _UNSAID and name not in known:
            continue
        if known.get(name) != value:
            raise RunFolderError(
                f"Expected the {name} that the run in {out} was started with; got another.{older}"
            )
