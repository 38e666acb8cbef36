"""What a training run is made of: what its checkpoint holds, and how a run is taken up again.

A checkpoint is one file, ``checkpoint/state.safetensors``: all that an epoch changes, in groups of
tensors, and a record of what the run was started with, so that another is not gone on with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vaes.core.described import SpecError, describe
from pyro_vaes.data.splits import Split, batches
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

__all__ = ["CHECKPOINT", "RunState", "Saved", "check_same", "identity_of", "read_checkpoint"]


CHECKPOINT = Path("checkpoint") / "state.safetensors"

Saved = tuple[Groups, dict[str, Any]]
"""What a checkpoint holds: groups of tensors, and its record."""


@dataclasses.dataclass
class Within:
    """How far an epoch has come: what a checkpoint within it holds besides.

    Attributes:
        order: state of the generator of the data's order as the epoch began.
        good: the weights as it began, which a loss that is not finite gives back.
        total: the sum of the losses of its steps so far.
        steps: how many these are.
        seconds: what they took.
    """

    order: Tensor
    good: dict[str, Tensor]
    total: Tensor
    steps: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class RunState:
    """All that an epoch of training changes.

    Attributes:
        vae: the model, with the weights of the last step.
        objective: may learn too: a divergence with a critic.
        history: what happened so far.
        order: draws the order of the data.
        best: the weights that validated best, if any have.
        average: the weights' moving average, if one is kept.
        optimizer: of the weights, once there is one.
        within: how far the epoch under way has come; None between two.
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
        """Takes the average, if one is kept, a step after the weights."""
        if self.average is None:
            return
        if self._pairs is None:
            now = named_tensors(self.vae)
            # Looked up once: these views follow the weights, and one call updates them all.
            names = [name for name, tensor in self.average.items() if tensor.is_floating_point()]
            self._pairs = [self.average[n] for n in names], [now[n] for n in names]
        torch._foreach_lerp_(*self._pairs, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Lends the VAE the average, if one is kept."""
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
        """A copy of the weights that would be kept now."""
        return copied(self.average or named_tensors(self.vae))

    def keep(self) -> None:
        """Leaves the VAE with the best weights, or the average if none have been chosen."""
        if self.best is not None or self.average is not None:
            fill(self.vae, cast("dict[str, Tensor]", self.best or self.average))

    def epoch(self) -> Within:
        """The epoch under way, which begins now unless a checkpoint stood within it."""
        if self.within is None:
            now = named_tensors(self.vae)
            total = torch.zeros((), device=self.vae.device)
            self.within = Within(self.order.get_state(), copied(now), total)
        return self.within

    def batches(self, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of the epoch under way that are still to come."""
        within = self.epoch()
        found = batches(split, size, self.order)
        if within.steps:
            # Those of before are drawn again, for their order and transforms; the noise is not.
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
        """What stands beside the groups."""
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
        """Goes back to a saved state.

        Raises:
            RunFolderError: if it is not one of this run; ``path`` is named.
        """
        try:
            self._take_up(*saved, path)
        except RunFolderError:
            raise
        # A whole file of ours that is no checkpoint of this run: made by hand, or by a version that
        # kept other things.
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
    """What a run is to go on from; None if it has not come as far.

    Raises:
        RunFolderError: if it is damaged, or gone from beside the weights, which a run that begins
            anew would write over.
    """
    if (out / CHECKPOINT).exists():
        return read_groups(out / CHECKPOINT)
    if (out / WEIGHTS).exists():
        raise RunFolderError(
            f"Expected {CHECKPOINT} beside the weights in {out}, to go on from; found none."
        )
    return None


def identity_of(
    vae: VAE, objective: Any, train: Split, record: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a resumed run must share with the one it goes on with, beside its options."""
    digest = hashlib.sha256()
    train.digest(digest)
    if train.y is not None:
        digest.update(train.y.cpu().contiguous().numpy().data)
    try:
        architecture = describe(vae)
    except SpecError:
        architecture = None
    weights = ("kl_weight", "divergence_weight", "free_bits", "num_particles", "alpha")
    given = {name: float(getattr(objective, name)) for name in weights if hasattr(objective, name)}
    divergence = type(getattr(objective, "divergence", None)).__name__
    return {
        "data": digest.hexdigest(),
        "configuration": (record or {}).get("digest"),
        "architecture": architecture,
        "objective": {"name": type(objective).__name__, "divergence": divergence, **given},
    }


def check_same(
    record: Mapping[str, Any], options: FitOptions, identity: Mapping[str, Any], out: Path
) -> None:
    """Refuses to go on with a run of other options, data or architecture.

    Args:
        record: of the checkpoint.
        options: of the run that would go on.
        identity: see :func:`identity_of`.
        out: the run folder, to be named.

    Raises:
        RunFolderError: if it is another run.
    """
    if not {"options", "identity", "history"} <= record.keys():
        raise RunFolderError(
            f"Expected a checkpoint at {out}; got a file that lacks what one holds."
        )
    changed = options.changed_since(record["options"])
    if changed:
        raise RunFolderError(
            f"Expected the options that the run in {out} was started with; got another "
            f"{', '.join(changed)}."
        )
    older = "" if "version" in record else f" (It was started by {writer(record)}.)"
    for name, value in identity.items():
        if record["identity"].get(name) != value:
            raise RunFolderError(
                f"Expected the {name} that the run in {out} was started with; got another.{older}"
            )
