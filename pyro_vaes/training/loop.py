"""The training loop: checks, state, steps and epochs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
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
from pyro_vaes.inference.optimizers import without_compiler
from pyro_vaes.inference.svi import FastSVI
from pyro_vaes.storage.files import locked
from pyro_vaes.storage.tensors import copied, fill, named_tensors
from pyro_vaes.training.callbacks import Callback, Callbacks
from pyro_vaes.training.checkpoint import (
    CHECKPOINT,
    RunState,
    Saved,
    Within,
    identity_of,
    settings_of,
)
from pyro_vaes.training.distributed import join_processes
from pyro_vaes.training.history import History, NonFiniteError
from pyro_vaes.training.options import (
    FitOptions,
    auto_mode,
    check_objective,
    computed_in,
    device_of,
    json_ready,
    on_threads,
    set_rate,
    training_state,
    warn_of_schedule,
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

__all__ = ["Trainer"]


class Trainer:
    """One training: :func:`pyro_vaes.fit` in two steps, the checks and the run.

    Making it checks all that can be checked before the run folder is read, and writes nothing.

    Args:
        vae: see :func:`~pyro_vaes.fit`, as are the others.
        train: training data.
        val: validation data.
        objective: the loss.
        options: the options that determine the result.
        record: JSON-ready facts to keep with the weights.
        keep_start: whether the weights before the first step may validate best.

    Raises:
        ValueError: see :func:`~pyro_vaes.fit`.
        OptionError: a ValueError about one option.
    """

    def __init__(
        self,
        vae: VAE,
        train: Any,
        val: Any,
        objective: Any,
        options: FitOptions,
        record: Mapping[str, Any] | None = None,
        keep_start: bool = False,
    ) -> None:
        check_objective(objective)
        self.keep_start = keep_start
        self.vae, self.objective, self.options = vae, objective, options
        self.processes = join_processes()
        self.device = device_of(options.device)
        self.record = json_ready(record)
        with training_state(self.device):
            self._prepare(as_split(train), None if val is None else as_split(val).frozen())

    def _prepare(self, train: Split, val: Split | None) -> None:
        vae, objective, options = self.vae, self.objective, self.options
        options.check(val is not None)
        self.steps_per_epoch = math.ceil(len(train) / options.batch_size)
        self.warmup_steps = options.warmup(self.steps_per_epoch)
        check_warmup(objective, self.warmup_steps)
        self.stopping = EarlyStopping(options.patience, self.warmup_steps, self.steps_per_epoch)
        divergence = divergence_of(objective)
        self.processes.check(options.mode, options.batch_size, self.device.type, divergence)
        self.processes.check_modules(vae)
        check_batches(objective, train, options.batch_size)
        if val is not None:
            check_batches(objective, val)
        check_trainable(vae, train, options.batch_size)
        vae.to(self.device)
        if not vae.training:  # Loaded or evaluated; a single part in that mode is so on purpose.
            vae.train()
        self.train = on_device(train, vae)
        self.val = None if val is None else on_device(val, vae)
        for split in filter(None, (self.train, self.val)):
            rows: tuple[Tensor, Tensor | None] = split.x, split.y
            if split.transform is not None:  # The transform changes each batch: check one.
                rows = next(batches(split, options.batch_size, torch.Generator()))
            check_data(vae, *rows)
        check_units(vae, self.train.x)
        history = History(device=self.device.type)
        self.state = RunState(vae, objective, history, torch.Generator())

    def alone(self, out: str | Path | None) -> AbstractContextManager[None]:
        """The lock of the run folder, for the process that writes in it."""
        return nullcontext() if out is None or self.processes.rank else locked(Path(out))

    def run(
        self,
        out: str | Path | None,
        *,
        resume: bool = False,
        minutes: float | None = None,
        progress: bool = True,
        on_epoch: Callback | None = None,
        on_step: Callback | None = None,
    ) -> History:
        """Trains, once, while the caller holds the lock of ``out``; see :func:`~pyro_vaes.fit`."""
        self.end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.callbacks = Callbacks(on_epoch, on_step, self.processes)
        settings = {"settings of the objective": settings_of(self.objective)}  # Before any step.
        self.folder = RunFolder(
            None if out is None else Path(out),
            self.options,
            self.record,
            lambda: {
                **identity_of(self.vae, self.objective, self.train, self.val, self.record),
                **settings,
            },
        )
        # The caller's generators and Pyro's store are restored on leaving.
        with training_state(self.device), self.processes.at_work(self.objective, self._asks):  # noqa: SIM117
            with torch.random.fork_rng(), pyro.get_param_store().scope():
                self._start(resume)
                self.callbacks.begin()
                with on_threads(self._threads()):
                    return self._train(progress and not self.processes.rank)

    # --- state ---------------------------------------------------------------------------------

    def _start(self, resume: bool) -> None:
        """Sets up a new run, or resumes the one in the folder."""
        options = self.options
        torch.manual_seed(options.seed)
        self.state.order.manual_seed(options.seed)
        if isinstance(self.objective, ELBO):
            self.objective.to(self.device)
            self.objective.begin(len(self.train))
        with self.processes.together():
            saved = self.folder.saved(resume)
        self._check_processes(saved)
        self.state.history.mode = mode = self._mode(saved)
        kind = without_compiler(getattr(torch.optim, OPTIMIZERS[options.optimizer]))
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
        # A separate generator: rows are drawn as in training, and the run's order stays the same.
        first = next(batches(self.train, min(2, len(self.train)), torch.Generator()))
        batch = self.processes.part(arguments(self.vae, *first))
        try:
            self.state.optimizer = self.svi.prepare(*batch)
        except ValueError as error:  # From Pyro's validation, whose message names no site.
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
            warn_of_schedule(options, saved[1]["options"]["epochs"])
        if self.processes.rank:
            self.folder.path = None  # Only the first process writes.

    def _check_processes(self, saved: Saved | None) -> None:
        """Checks that all processes have the same run, and gives them the same weights."""
        if self.processes.size == 1:
            return
        tensors = named_tensors(self.vae)
        record = {} if saved is None else saved[1]
        epochs = len(record.get("history", {}).get("records", ()))
        facts = {
            **self.folder.identity,
            "options": dataclasses.asdict(self.options),
            "weights": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "run folder (on a disk that all see)": [epochs, record.get("within", {}).get("steps")],
        }
        self.processes.check_same(facts)
        self.processes.broadcast(tensors)

    def _mode(self, saved: Saved | None) -> str:
        """The mode of the steps: as given, as before a resumption, or by device and number."""
        if self.options.mode != "auto":
            return self.options.mode
        # Recording runs the step once more, which would change running averages over batches.
        averages = any(isinstance(m, _BatchNorm) for m in self.vae.modules())
        return auto_mode(
            steps=self.options.epochs * self.steps_per_epoch,
            recordable=getattr(self.objective, "recordable", True) and not averages,
            captures=self.device.type == "cuda" and self.processes.size == 1,
            before=None if saved is None else saved[1]["history"]["mode"],
        )

    def _threads(self) -> int:
        """The number of threads: as before a resumption, since rounding depends on it."""
        before = self.state.history.threads if self.processes.size == 1 else 0
        return before or torch.get_num_threads()

    # --- the loop ------------------------------------------------------------------------------

    def _train(self, progress: bool) -> History:
        """Trains until the end of epochs, patience or time, or until interrupted."""
        options, history = self.options, self.state.history
        if history.stopped == "patience" or history.epochs >= options.epochs:
            self._finish()
            return history
        self.folder.begin(self.state)
        self._consider_start()
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
                    with self.state.averaged():
                        self.callbacks.epoch(record, self.vae)
                    ended = history.epochs == options.epochs
                    if self.stopping.out_of_patience(history):
                        history.stopped, ended = "patience", True
                    elif not ended and self._ends():
                        history.stopped, ended = self._ends(), True
                    elif not ended and self._out_of_time():
                        history.stopped, ended = "time", True
                    self.folder.log(record)
                    self.folder.write(self.state, improved, ended)
                    bar.update()
                    shown = {"loss": record["train_loss"], "val": record.get("val_loss")}
                    bar.set_postfix({k: f"{v:.2f}" for k, v in shown.items() if v is not None})
        except EndedWithin as end:
            history.stopped = str(end)
        except KeyboardInterrupt:
            # A resumed run repeats the steps since the last checkpoint.
            history.stopped = asked() or "interrupted"
        except NonFiniteError:
            if history.epochs:
                self.folder.keep(self.vae)
            raise
        self._finish()
        return history

    def _consider_start(self) -> None:
        """Validates the weights before the first step, which may turn out the best."""
        history = self.state.history
        if not self.keep_start or self.val is None or history.epochs or self.state.within:
            return
        with torch.random.fork_rng():
            record = {"epoch": 0, **self._validate(self.val)}
        if self.stopping.improved(history, record):
            self.state.best = self.state.candidate()

    def _finish(self) -> None:
        """Puts the weights to keep into the VAE and the folder.

        A finished run may lack them if it was killed just after its last checkpoint.
        """
        self.state.keep()
        self._note_precision()
        if self.state.history.epochs:
            self.folder.keep(self.vae)

    def _note_precision(self) -> None:
        """Records the effect of the precision of training on the bound."""
        precision = self.options.precision
        if self.val is None or precision == "float32":
            return
        with computed_in(precision, self.device):
            here = self._validate(self.val)
        there = self._validate(self.val)
        self.state.history.precision_shift = here["val_elbo"] - there["val_elbo"]

    def _epoch(self, epoch: int) -> dict[str, Any]:
        options, within = self.options, self.state.epoch()
        # Kept until the end of the epoch, to be restored after a NaN.
        good, total = within.good, within.total
        started = time.perf_counter() - within.seconds
        for x, y in self.state.batches(self.train, options.batch_size):
            rate = self._schedule(epoch * self.steps_per_epoch + within.steps)
            with computed_in(options.precision, self.device):
                batch = self.processes.part(arguments(self.vae, x, y))
                try:
                    loss = self.svi.update(*batch)
                except RuntimeError:  # Parameters that are not finite make no covariance, say.
                    self._check_parameters(epoch, good)
                    raise
            total += loss
            # On the CPU this check costs nothing; on a GPU it would synchronise.
            if self.device.type == "cpu" and not math.isfinite(loss):
                self._fail(epoch, good, first_not_finite(self.vae, arguments(self.vae, x, y)))
            self.state.follow(options.ema_decay)
            within.steps += 1
            if self.callbacks.steps:
                self._show_step(epoch, within.steps, loss / len(x), rate)
            self._save_within(within, started)
        self.state.within = None
        if not math.isfinite(total):
            self._fail(epoch, good, first_not_finite(self.vae, arguments(self.vae, x, y)))
        # The last step may have made a parameter infinite, which its loss does not show.
        self._check_parameters(epoch, good)
        self.state.history.mode = self.svi.mode  # It may have changed to a fallback.
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
            if self.objective.kl_capacity is not None:
                record["capacity"] = float(self.objective.kl_goal)
        return record | {"learning_rate": rate, "seconds": round(time.perf_counter() - started, 4)}

    def _show_step(self, epoch: int, steps: int, loss: Any, rate: float) -> None:
        step = epoch * self.steps_per_epoch + steps
        record = {"epoch": epoch + 1, "step": step, "train_loss": loss, "learning_rate": rate}
        self.callbacks.step(record, self.vae)

    def _save_within(self, within: Within, started: float) -> None:
        """Writes a checkpoint within an epoch, if one is due or a signal has come."""
        if within.steps == self.steps_per_epoch:
            return  # The checkpoint of the epoch follows.
        ends = self._ends()
        if ends or self.folder.due:
            within.seconds = time.perf_counter() - started
            self.folder.write(self.state, False, True)
        if ends:
            raise EndedWithin(ends)

    def _ends(self) -> str:
        """Why training is to end now: a signal's name, ``time``, ``callback``, or empty."""
        if self.callbacks.enough:
            return "callback"
        return self._asks() if self.processes.size == 1 else self.processes.ends

    def _asks(self) -> str:
        """Why this process is to end; several agree on it in ``combine``.

        An epoch is cut for the time limit only where it is long enough to have checkpoints in it.
        """
        late = self.folder.due and time.monotonic() >= self.end
        return asked() or ("time" if late else "")

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
            self.objective.set_epoch(step / self.steps_per_epoch)
        return rate

    def _out_of_time(self) -> bool:
        """Whether the time limit has passed in any of the processes."""
        limited = self.end < math.inf
        return limited and self.processes.figures(time.monotonic() >= self.end)[0] > 0

    def _check_parameters(self, epoch: int, good: dict[str, Tensor]) -> None:
        for name, tensor in named_tensors(self.vae).items():
            if not torch.isfinite(tensor).all():
                self._fail(epoch, good, f"the parameter {name!r} is not finite")

    def _fail(self, epoch: int, good: dict[str, Tensor], culprit: str) -> None:
        """Restores the last good weights and raises."""
        fill(self.vae, self.state.best or good)
        raise NonFiniteError(
            f"Training stopped in epoch {epoch + 1}: {culprit}. The weights of the last good epoch "
            f"are kept. {advice(self.vae, self.train.x)}"
        )
