"""Training: ``fit`` takes a VAE and data, and gives back the weights that validate best.

One loop for every combination of parts and every objective, over
:class:`~pyro_vaes.inference.svi.FastSVI`. All state of the loop (weights, their average, optimiser,
generators, best weights, history) is kept in one checkpoint, written whole, so that a run that was
killed goes on exactly where its last checkpoint stood; ``run_folder`` writes it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_vaes.core.choices import OPTIMIZERS, SCHEDULES, Mode
from pyro_vaes.data.splits import Split, as_split, batches
from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.inference.svi import FastSVI
from pyro_vaes.storage.files import locked
from pyro_vaes.storage.tensors import copied, fill, named_tensors
from pyro_vaes.training.checkpoint import CHECKPOINT, RunState, Saved, Within, identity_of
from pyro_vaes.training.distributed import Processes, join_processes
from pyro_vaes.training.history import History, NonFiniteError
from pyro_vaes.training.options import (
    FitOptions,
    auto_mode,
    check_objective,
    computed_in,
    device_of,
    json_ready,
    set_rate,
    training_state,
)
from pyro_vaes.training.run_folder import RunFolder
from pyro_vaes.training.signals import EndedWithin, asked, signals_noted
from pyro_vaes.training.stopping import EarlyStopping
from pyro_vaes.training.validation import (
    advice,
    arguments,
    check_batches,
    check_trainable,
    check_units,
    check_warmup,
    divergence_of,
    first_not_finite,
    on_device,
    validate,
)
from pyro_vaes.vae import VAE, check_data

__all__ = ["fit"]


def fit(
    vae: VAE,
    train: Any,
    val: Any = None,
    *,
    epochs: int = 100,
    objective: Any = None,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    schedule: str = "constant",
    clip_norm: float | None = None,
    warmup_epochs: float = 0,
    warmup_steps: int = 0,
    patience: int | None = None,
    ema_decay: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "auto",
    mode: Mode = "auto",
    precision: str = "float32",
    out: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    record: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> History:
    """Trains a VAE in place and leaves it with the weights that validated best.

    The seed governs the order of the data and all noise; the generators of the caller are left
    as they were. (The initial weights were drawn when the parts were built: seed before that.)

    Under ``torchrun`` the processes share each batch and take the steps of one process, to float
    rounding; all get the result, the first one writes. See :mod:`pyro_vaes.training.distributed`.

    >>> pv.fit(vae, torch.randn(100, 4), torch.randn(50, 4), epochs=5, progress=False).epochs
    5

    Args:
        vae: the model; moved to the device.
        train: a split, tensor, array, ``Dataset`` or ``DataLoader``.
        val: the same, for choosing; without it the last weights are kept.
        epochs: most passes over the training data.
        objective: one of :mod:`pyro_vaes.inference.elbo` or a Pyro loss; ``ELBO()`` if None.
        batch_size: data in a step.
        learning_rate: of the optimiser.
        optimizer: ``adam``, ``adamw`` or ``adamax``.
        weight_decay: of the optimiser.
        schedule: ``constant``, ``cosine`` or ``linear`` decay of the learning rate over ``epochs``.
        clip_norm: largest global norm of a step's gradient; None for no limit.
        warmup_epochs: epochs over which the KL weight rises linearly from 0 to its full value.
        warmup_steps: the same in steps; give one of the two. Early stopping and the choice of the
            best weights begin after the warm-up.
        patience: stop after this many epochs without a better validation; None to go on.
        ema_decay: decay of an exponential moving average of the weights, which is then what is
            validated, kept and saved; 0 for none.
        seed: see above.
        device: ``auto`` (CUDA if there is one, else the CPU), ``cpu``, ``cuda``, ``mps``; one of
            several as ``cuda:1``; or a ``torch.device``.
        mode: how steps are run; ``auto`` decides from device and number of steps (on CUDA a graph,
            unless there are few), never from a timing.
        precision: of the matrix products in training: ``float32``, ``tf32`` (on CUDA) or ``bf16``.
            Validation is in float32; what the precision does to the bound is in the history.
        out: a run folder for weights, metrics and checkpoints; none if None.
        resume: go on with the run in ``out``; an absent or empty folder starts one, a finished run
            is left as it is.
        minutes: stop after the epoch in which so many have passed since the call; None to go on. A
            run that was stopped so is gone on with, bit for bit, by ``resume``.
        record: JSON-ready facts to keep beside the weights. A ``digest`` among them is that of a
            configuration: only a run with the same one is gone on with.
        progress: show a progress bar, if there is a terminal or notebook to show it.

    Returns:
        The history.

    Raises:
        ValueError: for options that make no sense, a warm-up as long as the training among them;
            for data that the parts cannot take.
        RunFolderError: if ``out`` holds another run, or one with other options; if another process
            is at work in it, or it cannot be written to.
        NonFiniteError: if the loss is not finite; the weights of the last good epoch are kept.
        PeerError: if another process was lost.
    """
    given = dict(locals())
    if minutes is not None and not minutes > 0:
        raise ValueError(f"Expected minutes above 0; got {minutes}.")
    end = None if minutes is None else time.monotonic() + 60 * minutes
    processes = join_processes()
    with torch.inference_mode(False):
        objective = ELBO() if objective is None else objective
    check_objective(objective)
    options = FitOptions.of(given)
    alone = nullcontext() if out is None or processes.rank else locked(Path(out))
    with training_state(device_of(options.device)):
        trainer = _Trainer(
            vae,
            as_split(train),
            None if val is None else as_split(val).frozen(),
            objective,
            options,
            None if out is None else Path(out),
            json_ready(record),
            processes,
        )
        # The caller's generators and Pyro's store are the caller's: given back as they were.
        with alone, processes.at_work(objective):  # noqa: SIM117
            with torch.random.fork_rng(), pyro.get_param_store().scope():
                trainer.start(resume)
                return trainer.run(progress and not processes.rank, end)


class _Trainer:
    """The state of one training run and the loop over it."""

    def __init__(
        self,
        vae: VAE,
        train: Split,
        val: Split | None,
        objective: Any,
        options: FitOptions,
        out: Path | None,
        record: Mapping[str, Any] | None,
        processes: Processes,
    ) -> None:
        options.check(val is not None)
        self.vae, self.objective, self.options = vae, objective, options
        self.processes = processes
        self.device = device_of(options.device)
        self.steps_per_epoch = math.ceil(len(train) / options.batch_size)
        self.warmup_steps = options.warmup(self.steps_per_epoch)
        check_warmup(objective, self.warmup_steps)
        self.stopping = EarlyStopping(options.patience, self.warmup_steps, self.steps_per_epoch)
        divergence = divergence_of(objective)
        processes.check(options.mode, options.batch_size, self.device.type, divergence)
        processes.check_modules(vae)
        check_batches(objective, train, options.batch_size)
        if val is not None:
            check_batches(objective, val)
        check_trainable(vae, train, options.batch_size)
        vae.to(self.device)
        if not vae.training:  # Loaded or looked at; a part alone in that mode is so on purpose.
            vae.train()
        self.train = on_device(train, vae)
        self.val = None if val is None else on_device(val, vae)
        for split in filter(None, (self.train, self.val)):
            rows: tuple[Tensor, Tensor | None] = split.x, split.y
            if split.transform is not None:  # What is drawn anew for each batch, in one of them.
                rows = next(batches(split, options.batch_size, torch.Generator()))
            check_data(vae, *rows)
        check_units(vae, self.train.x)
        history = History(device=self.device.type)
        self.state = RunState(vae, objective, history, torch.Generator())
        self.folder = RunFolder(
            out, options, record, lambda: identity_of(vae, objective, self.train, record)
        )

    # --- state ---------------------------------------------------------------------------------

    def start(self, resume: bool) -> None:
        """Sets up a new run, or takes up the one in the folder."""
        options = self.options
        torch.manual_seed(options.seed)
        self.state.order.manual_seed(options.seed)
        if isinstance(self.objective, ELBO):
            self.objective.to(self.device)
        with self.processes.together():
            saved = self.folder.saved(resume)
        self._check_processes(saved)
        self.state.history.mode = mode = self._mode(saved)
        kind = getattr(torch.optim, OPTIMIZERS[options.optimizer])
        model, guide = self.processes.sharing(self.vae.model, self.vae.guide)
        self.svi = FastSVI(
            model,
            guide,
            pyro.optim.PyroOptim(
                kind, {"lr": options.learning_rate, "weight_decay": options.weight_decay}
            ),
            loss=self.objective,
            mode=cast(Mode, mode),
            clip_norm=options.clip_norm,
            combine=self.processes.combine if self.processes.size > 1 else None,
        )
        # A generator of its own: the rows are drawn as in training, the run's order is untouched.
        first = next(batches(self.train, min(2, len(self.train)), torch.Generator()))
        batch = self.processes.part(arguments(self.vae, *first))
        try:
            self.state.optimizer = self.svi.prepare(*batch)
        except ValueError as error:  # Pyro's validation, which shows tensors and names no site.
            culprit = first_not_finite(self.vae, batch)
            if "site" not in culprit:
                raise
            raise NonFiniteError(
                f"Training stopped before its first step: {culprit}. "
                + advice(
                    self.vae,
                    self.train.x,
                    "Are the data of a size that the posterior's network can take?",
                )
            ) from error
        if options.ema_decay:
            self.state.average = copied(named_tensors(self.vae))
        if saved is not None:
            assert self.folder.path is not None
            self.state.take_up(saved, self.folder.path / CHECKPOINT)
        if self.processes.rank:
            self.folder.path = None  # Read, but written by the first process alone.

    def _check_processes(self, saved: Saved | None) -> None:
        """Sees to it that all processes are about to do the same, with the same weights."""
        if self.processes.size == 1:
            return
        tensors = named_tensors(self.vae)
        epochs = 0 if saved is None else len(saved[1]["history"]["records"])
        facts = {
            **self.folder.identity,
            "options": dataclasses.asdict(self.options),
            "weights": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "validation data": None if self.val is None else list(self.val.x.shape),
            "run folder (on a disk that all see)": epochs,
        }
        self.processes.check_same(facts)
        self.processes.broadcast(tensors)

    def _mode(self, saved: Saved | None) -> str:
        """How steps are run: as asked, as before a resumption, or by device and number."""
        if self.options.mode != "auto":
            return self.options.mode
        # Recording runs the step once more, which averages over batches would remember.
        averages = any(isinstance(m, _BatchNorm) for m in self.vae.modules())
        return auto_mode(
            steps=self.options.epochs * self.steps_per_epoch,
            recordable=getattr(self.objective, "recordable", True) and not averages,
            captures=self.device.type == "cuda" and self.processes.size == 1,
            before=None if saved is None else saved[1]["history"]["mode"],
        )

    # --- the loop ------------------------------------------------------------------------------

    def run(self, progress: bool, end: float | None) -> History:
        """Trains until the epochs, the patience or the time run out, or the user stops it."""
        options, history = self.options, self.state.history
        if history.stopped == "patience" or history.epochs >= options.epochs:
            self._finish()
            return history
        self.folder.begin(self.state)
        history.stopped, history.threads = "epochs", torch.get_num_threads()
        bar = tqdm(
            total=options.epochs,
            initial=history.epochs,
            desc="training",
            unit="epoch",
            disable=None if progress else True,
            dynamic_ncols=True,
        )
        try:
            with bar, self.folder.open(), signals_noted():
                ended = False
                while not ended:
                    record = self._epoch(history.epochs)
                    history.records.append(record)
                    improved = self.val is not None and self.stopping.improved(history, record)
                    if improved:
                        self.state.best = self.state.candidate()
                    ended = history.epochs == options.epochs
                    if self.stopping.out_of_patience(history):
                        history.stopped, ended = "patience", True
                    elif not ended and self._out_of_time(end):
                        history.stopped, ended = "time", True
                    elif not ended and self._asked():
                        history.stopped, ended = asked(), True
                    self.folder.log(record)
                    self.folder.write(self.state, improved, ended)
                    bar.update()
                    shown = {"loss": record["train_loss"], "val": record.get("val_loss")}
                    bar.set_postfix({k: f"{v:.2f}" for k, v in shown.items() if v is not None})
        except (EndedWithin, KeyboardInterrupt):
            # After the latter, what came after the last checkpoint is repeated by a resumed run.
            history.stopped = asked() or "interrupted"
        except NonFiniteError:
            if history.epochs:
                self.folder.keep(self.vae)
            raise
        self._finish()
        return history

    def _finish(self) -> None:
        """Leaves the weights to keep in the VAE and the folder; in a finished run they are there.

        They are not if a kill came after the last checkpoint and before them.
        """
        self.state.keep()
        self._note_precision()
        if self.state.history.epochs:
            self.folder.keep(self.vae)

    def _note_precision(self) -> None:
        """Notes what the precision of training does to the bound."""
        precision = self.options.precision
        if self.val is None or precision == "float32":
            return
        with computed_in(precision, self.device):
            here = self._validate(self.val)
        there = self._validate(self.val)
        self.state.history.precision_shift = here["val_elbo"] - there["val_elbo"]

    def _epoch(self, epoch: int) -> dict[str, Any]:
        options, within = self.options, self.state.epoch()
        # Kept until the epoch has ended well: what a NaN must not take with it.
        good, total = within.good, within.total
        started = time.perf_counter() - within.seconds
        for x, y in self.state.batches(self.train, options.batch_size):
            rate = self._schedule(epoch * self.steps_per_epoch + within.steps)
            with computed_in(options.precision, self.device):
                batch = self.processes.part(arguments(self.vae, x, y))
                loss = self.svi.update(*batch)
            total += loss
            # On the CPU a look costs nothing; a GPU would have to be waited for.
            if self.device.type == "cpu" and not math.isfinite(loss):
                self._fail(epoch, good, first_not_finite(self.vae, arguments(self.vae, x, y)))
            self.state.follow(options.ema_decay)
            within.steps += 1
            self._save_within(within, started)
        self.state.within = None
        if not math.isfinite(total):
            self._fail(epoch, good, first_not_finite(self.vae, arguments(self.vae, x, y)))
        # The last step may have spoilt what its loss does not show.
        for name, tensor in named_tensors(self.vae).items():
            if not torch.isfinite(tensor).all():
                self._fail(epoch, good, f"the parameter {name!r} is not finite")
        self.state.history.mode = self.svi.mode  # It may have fallen back.
        record: dict[str, Any] = {"epoch": epoch + 1, "train_loss": total.item() / len(self.train)}
        culprit = None
        with self.state.averaged():
            if self.val is not None:
                record |= self._validate(self.val)
                if not all(map(math.isfinite, record.values())):
                    rows = arguments(self.vae, self.val.x, self.val.y)
                    culprit = f"in validation, {first_not_finite(self.vae, rows)}"
        if culprit is not None:
            self._fail(epoch, good, culprit)
        if isinstance(self.objective, ELBO):
            record["kl_weight"] = float(self.objective.kl_weight * self.objective.warmup)
        return record | {"learning_rate": rate, "seconds": round(time.perf_counter() - started, 4)}

    def _save_within(self, within: Within, started: float) -> None:
        """Writes a checkpoint within an epoch, if one is due or the training is to end."""
        if within.steps == self.steps_per_epoch:
            return  # The epoch's own follows.
        ends = self._asked()
        if ends or self.folder.due:
            within.seconds = time.perf_counter() - started
            self.folder.write(self.state, False, True)
        if ends:
            raise EndedWithin

    def _asked(self) -> bool:
        """Whether a signal asks to end; several processes agree on that in their own way."""
        return self.processes.size == 1 and bool(asked())

    def _validate(self, val: Split) -> dict[str, float]:
        return validate(self.vae, self.objective, val, self.options.seed, self.processes)

    def _schedule(self, step: int) -> float:
        """Sets the learning rate and the KL weight of a step."""
        options = self.options
        fraction = step / (options.epochs * self.steps_per_epoch)
        rate = options.learning_rate * SCHEDULES[options.schedule](fraction)
        set_rate(cast(Optimizer, self.state.optimizer), rate)
        if isinstance(self.objective, ELBO):
            self.objective.warmup.fill_(
                min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
            )
        return rate

    def _out_of_time(self, end: float | None) -> bool:
        """Whether it is past the end in any of the processes: then in all."""
        return end is not None and self.processes.figures(time.monotonic() >= end)[0] > 0

    def _fail(self, epoch: int, good: dict[str, Tensor], culprit: str) -> None:
        """Puts the last good weights back, and stops."""
        fill(self.vae, self.state.best or good)
        raise NonFiniteError(
            f"Training stopped in epoch {epoch + 1}: {culprit}. The weights of the last good epoch "
            f"are kept. {advice(self.vae, self.train.x)}"
        )
