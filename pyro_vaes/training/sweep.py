"""A sweep as one program: VAEs of one architecture trained together, with batched parameters.

Each model keeps its own seed, learning rate, KL weight, data order, noise and early stopping, and
takes the steps it would take alone in ``fit``. A stack of small matrices is multiplied in far less
time than one matrix after another.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_vaes.core.choices import OPTIMIZERS, SCHEDULES
from pyro_vaes.core.described import plain
from pyro_vaes.core.looking import in_evaluation_mode
from pyro_vaes.data.splits import Split, as_split
from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.inference.joint_optimizer import fused_options
from pyro_vaes.inference.noise import normals_drawn_by
from pyro_vaes.inference.optimizers import lay_out, without_compiler
from pyro_vaes.inference.recording import Program
from pyro_vaes.storage.tensors import fill, named_tensors
from pyro_vaes.training.history import History
from pyro_vaes.training.options import FitOptions, device_of, training_state
from pyro_vaes.training.stopping import EarlyStopping
from pyro_vaes.training.validation import check_together, on_device
from pyro_vaes.vae import VAE, check_data

__all__ = ["fit_many"]


def fit_many(
    vaes: Sequence[VAE],
    train: Any,
    val: Any = None,
    *,
    objectives: Sequence[ELBO] | None = None,
    learning_rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    schedule: str = "constant",
    clip_norm: float | None = None,
    warmup_epochs: float = 0,
    patience: int | None = None,
    ema_decay: float = 0.0,
    device: str = "auto",
    mode: str = "traced",
) -> list[History]:
    """Trains VAEs of one architecture together, each as ``fit`` would alone.

    >>> def build():
    ...     posterior = pv.NormalPosterior(pv.MLP(4, [8]), latent_dim=2)
    ...     likelihood = pv.NormalLikelihood(pv.MLP(2, [8]), event_shape=(4,))
    ...     return pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    >>> histories = pv.fit_many([build() for _ in range(3)], torch.randn(100, 4), epochs=2)
    >>> [history.epochs for history in histories]
    [2, 2, 2]

    Args:
        vaes: models with the same parts; posteriors must draw by way of a normal (all of this
            library's do).
        train: training data, for all.
        val: validation data, for all; without it the last weights are kept.
        objectives: one for each model: ELBO or beta-ELBO of one particle; ``ELBO()`` if None.
        learning_rates: one for each model; 1e-3 for all if None.
        seeds: one for each model, of its data order and noise; 0, 1, 2, ... if None.
        epochs: see ``fit``, as are the options that follow.
        batch_size: data in a step of each model.
        optimizer: for all models.
        weight_decay: for all models.
        schedule: for all models.
        clip_norm: of each model's gradient.
        warmup_epochs: for all models.
        patience: for each model separately.
        ema_decay: for all models.
        device: for all models.
        mode: ``traced`` or ``compiled``.

    Returns:
        One history for each model; the models have their best weights.

    Raises:
        ValueError: for models of different architectures, or objectives that cannot be batched;
            for layers that differ in training, as dropout; as ``fit`` for data and options.
    """
    own = {"learning_rate": 1e-3, "warmup_steps": 0, "seed": 0, "precision": "float32"}
    options, count = FitOptions.of({**locals(), **own}), len(vaes)
    options.check(val is not None)
    if any(getattr(split, "weights", None) is not None for split in (train, val)):
        raise ValueError("Expected rows without weights for a sweep; got some. Train one by one.")
    if mode not in ("traced", "compiled"):
        raise ValueError(f"Expected mode traced or compiled for a sweep; got {mode!r}.")
    objectives = objectives or [ELBO() for _ in vaes]
    for name, given in (
        ("objectives", objectives),
        ("learning_rates", learning_rates),
        ("seeds", seeds),
    ):
        if given is not None and len(given) != count:
            raise ValueError(f"Expected {name} for each of {count} models; got {len(given)}.")
    for rate in plain(list(() if learning_rates is None else learning_rates)):
        dataclasses.replace(options, learning_rate=rate).check(val is not None)
    with training_state(device_of(options.device)), torch.random.fork_rng():
        return _Sweep(
            list(vaes),
            as_split(train),
            None if val is None else as_split(val).frozen(),
            list(objectives),
            plain(list([1e-3] * count if learning_rates is None else learning_rates)),
            plain(list(range(count) if seeds is None else seeds)),
            options,
        ).run()


class _Terms(nn.Module):
    """The terms of the bound as one function of a VAE's tensors."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        posterior = self.vae.q_z(x, y)
        z = posterior.rsample()
        log_likelihood = self.vae.p_x(z, y).log_prob(x).sum()
        kl = (posterior.log_prob(z) - self.vae.p_z(y).log_prob(z)).sum()
        return log_likelihood, kl


@contextmanager
def _given_noise(noise: Tensor, sizes: Sequence[int]) -> Iterator[None]:
    """Makes normal distributions use ``noise`` for their next draws, a part of it for each level.

    PyTorch fills a tensor in place there, which a batched function must not do; and each model gets
    the noise of its own seed.
    """
    parts = iter(noise.split(list(sizes), -1))

    def given(shape: Any, dtype: Any, device: Any) -> Tensor:
        part = next(parts, None)
        if part is None or tuple(shape) != tuple(part.shape):
            raise ValueError(
                "Expected a posterior that draws the same noise at each step; got noise of shape "
                f"{tuple(shape)} instead of {None if part is None else tuple(part.shape)}."
            )
        return part

    with normals_drawn_by(given):
        yield


def _noise_sizes(vae: VAE, split: Split) -> list[int]:
    """The sizes of the normals that a posterior draws for a datum, in turn: one for each level."""
    sizes: list[int] = []

    def noted(shape: Any, dtype: Any, device: Any) -> Tensor:
        sizes.append(shape[-1])
        return torch.zeros(shape, dtype=dtype, device=device)

    with in_evaluation_mode(vae), normals_drawn_by(noted):
        vae.q_z(split.numbers(split.x[:1]), None if split.y is None else split.y[:1]).rsample()
    return sizes


class _Sweep:
    """The stacked state of all models and the loop over it."""

    def __init__(
        self,
        vaes: list[VAE],
        train: Split,
        val: Split | None,
        objectives: list[ELBO],
        learning_rates: list[float],
        seeds: list[int],
        options: FitOptions,
    ) -> None:
        check_together(vaes, objectives)
        self.vaes, self.options, self.seeds = vaes, options, seeds
        self.free_bits = objectives[0].free_bits
        self.device = device_of(options.device)
        for vae in vaes:
            vae.to(self.device)
        self.train = self._placed(train)
        self.val = None if val is None else self._placed(val)
        for split in filter(None, (self.train, self.val)):
            if split.transform is None:
                check_data(vaes[0], split.x, split.y)
        self.noise_sizes = _noise_sizes(vaes[0], self.train)
        self.module = _Terms(vaes[0])
        params, buffers = stack_module_state([_Terms(vae) for vae in vaes])
        self.params = {name: p.detach() for name, p in params.items() if p.requires_grad}
        fixed = {n: t for n, t in {**params, **buffers}.items() if n not in self.params}
        self.buffers = {name: tensor.detach() for name, tensor in fixed.items()}
        self.average = {n: p.clone() for n, p in self.params.items()} if options.ema_decay else None
        self.best: dict[str, Tensor] | None = None
        self.kl_weights = self._column([float(o.kl_weight) for o in objectives])
        self.rates = self._column(learning_rates)
        kind: Any = without_compiler(getattr(torch.optim, OPTIMIZERS[options.optimizer]))
        tensors = list(self.params.values())
        self.optimizer: torch.optim.Optimizer = kind(
            tensors, weight_decay=options.weight_decay, **fused_options(kind, tensors)
        )
        self.orders = [Generator().manual_seed(seed) for seed in seeds]
        self.noises = [Generator().manual_seed(seed) for seed in seeds]
        self.histories = [History(device=self.device.type, mode=options.mode) for _ in vaes]
        self.members = list(range(len(vaes)))  # Which model each row of the stacks belongs to.
        self.steps_per_epoch = math.ceil(len(train) / options.batch_size)
        self.warmup_steps = options.warmup(self.steps_per_epoch)
        self.stopping = EarlyStopping(options.patience, self.warmup_steps, self.steps_per_epoch)
        self._programs: dict[Any, Program] = {}

    def _placed(self, split: Split) -> Split:
        y = split.y if self.vaes[0].conditional else None
        return on_device(dataclasses.replace(split, y=y), self.vaes[0])

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self.vaes[0].dtype, device=self.device)

    # --- one step of all models ----------------------------------------------------------------

    def _loss(
        self, params: Any, buffers: Any, x: Tensor, y: Tensor | None, noise: Tensor, weight: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with _given_noise(noise, self.noise_sizes):
            # A part that occurs twice (a VampPrior's posterior) is one module under two names,
            # which PyTorch's weight tying would swap twice and restore wrongly.
            log_likelihood, kl = functional_call(
                self.module, (params, buffers), (x, y), tie_weights=False
            )
        weighed = kl.clamp(min=self.free_bits * x.shape[0]) if self.free_bits else kl
        return weight * weighed - log_likelihood, (log_likelihood, kl)

    def _program(self, kind: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs loss and gradients (``grad``), or the terms alone (``terms``), of all models."""
        names, buffer_names = list(self.params), list(self.buffers)
        tensors = [*self.params.values(), *self.buffers.values(), *inputs]
        if kind == "terms" and self.average is not None:
            tensors[: len(names)] = self.average.values()
        key = (kind, *(tuple(t.shape) for t in inputs))
        if key not in self._programs:
            conditional = len(inputs) == 4

            def one(params: Any, buffers: Any, *rest: Tensor) -> Any:
                x, *labels, noise, weight = rest
                y = labels[0] if conditional else None
                if kind == "terms":
                    return self._loss(params, buffers, x, y, noise, weight)
                grads, (loss, _) = grad_and_value(self._loss, has_aux=True)(
                    params, buffers, x, y, noise, weight
                )
                return loss, *grads.values()

            def every(*flat: Tensor) -> tuple[Tensor, ...]:
                n = len(names)
                params = dict(zip(names, flat[:n], strict=True))
                buffers = dict(zip(buffer_names, flat[n : n + len(buffer_names)], strict=True))
                out = vmap(one)(params, buffers, *flat[n + len(buffer_names) :])
                return (out[0], *out[1]) if kind == "terms" else out

            # Validation is rare: only the training step is worth compiling.
            compiled = self.options.mode == "compiled" and kind == "grad"
            self._programs[key] = Program(every, tensors, compiled)
        return self._programs[key](*tensors)

    def _noise(self, rows: int, generators: Sequence[Generator]) -> Tensor:
        dtype = self.vaes[0].dtype
        draws = [
            torch.cat([torch.randn(rows, n, generator=g, dtype=dtype) for n in self.noise_sizes], 1)
            for g in generators
        ]
        return torch.stack(draws).to(self.device)

    def _step(self, order: Tensor, weight: Tensor, rates: list[float]) -> Tensor:
        x = self.train.numbers(self.train.x[order])
        if self.train.transform is not None:
            transform = self.train.transform
            x = torch.stack([transform(a, g) for a, g in zip(x, self.orders, strict=True)])
        inputs = [x, self._noise(order.shape[1], self.noises), weight]
        if self.train.y is not None:
            inputs.insert(1, self.train.y[order])
        loss, *grads = self._program("grad", *inputs)
        if self.options.clip_norm is not None:
            norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
            shares = (self.options.clip_norm / (norms + 1e-6)).clamp(max=1.0)
            grads = [g * _beside(shares, g) for g in grads]
        for param, grad in zip(self.params.values(), grads, strict=True):
            param.grad = grad
        lay_out(self.params.values())
        self._move(rates)
        if self.average is not None:
            update = get_ema_multi_avg_fn(self.options.ema_decay)
            update(list(self.average.values()), list(self.params.values()), None)
        return loss

    def _move(self, rates: list[float]) -> None:
        """Takes the optimiser's step, each model at its own learning rate."""
        (group,) = self.optimizer.param_groups
        if len(set(rates)) == 1:
            group["lr"] = rates[0]
            self.optimizer.step()
            return
        # At a rate of one the step is the direction; each model takes its rate times that.
        group["lr"], column = 1.0, self._column(rates)
        before = [p.clone() for p in self.params.values()]
        self.optimizer.step()
        for param, old in zip(self.params.values(), before, strict=True):
            param.copy_(old.lerp_(param, _beside(column, old)))

    # --- the loop ------------------------------------------------------------------------------

    def run(self) -> list[History]:
        alive = [True] * len(self.vaes)
        for history in self.histories:
            history.stopped = "epochs"
        for epoch in range(self.options.epochs):
            started = time.perf_counter()
            records = self._epoch(epoch)
            if self.val is not None:
                for record, figures in zip(records, self._validate(self.val), strict=True):
                    record |= figures
            seconds = (time.perf_counter() - started) / sum(alive)
            improved = []
            for row, (index, record) in enumerate(zip(self.members, records, strict=True)):
                if not alive[index]:
                    continue
                history = self.histories[index]
                history.records.append({**record, "seconds": round(seconds, 4)})
                if self.val is None or self.stopping.improved(history, record):
                    improved.append(row)
                if self.stopping.out_of_patience(history):
                    history.stopped, alive[index] = "patience", False
            self._keep(improved)
            if not any(alive):
                break
            if 2 * sum(alive) <= len(self.members):
                self._drop([row for row, index in enumerate(self.members) if alive[index]])
        self._give_back()
        return self.histories

    def _drop(self, rows: list[int]) -> None:
        """Keeps some rows of the stacks, so that stopped models cost no more time."""
        kept = torch.tensor(rows, device=self.device)
        for tensor in (*self.params.values(), *self.buffers.values()):
            tensor.data = tensor[kept]
            tensor.grad = None  # Has another shape, which the compiler would check.
            for name, value in self.optimizer.state.get(tensor, {}).items():
                if value.dim():  # A count of steps is the same for all.
                    self.optimizer.state[tensor][name] = value[kept]
        if self.average is not None:
            self.average = {name: tensor[kept] for name, tensor in self.average.items()}
        self.kl_weights, self.rates = self.kl_weights[kept], self.rates[kept]
        self.members = [self.members[row] for row in rows]
        self.seeds = [self.seeds[row] for row in rows]
        self.orders = [self.orders[row] for row in rows]
        self.noises = [self.noises[row] for row in rows]
        self._programs.clear()

    def _epoch(self, epoch: int) -> list[dict[str, Any]]:
        n, size = len(self.train), self.options.batch_size
        order = torch.stack([torch.randperm(n, generator=g) for g in self.orders]).to(self.device)
        total = torch.zeros(len(self.members), dtype=self.vaes[0].dtype, device=self.device)
        steps = self.options.epochs * self.steps_per_epoch
        for index, start in enumerate(range(0, n, size)):
            step = epoch * self.steps_per_epoch + index
            warmup = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
            factor = SCHEDULES[self.options.schedule](step / steps)
            weight, rates = self.kl_weights * warmup, (self.rates * factor).tolist()
            total += self._step(order[:, start : start + size], weight, rates)
        losses, weights = (total / n).tolist(), weight.tolist()
        return [
            {"epoch": epoch + 1, "train_loss": loss, "kl_weight": weight, "learning_rate": rate}
            for loss, weight, rate in zip(losses, weights, rates, strict=True)
        ]

    def _validate(self, val: Split) -> list[dict[str, float]]:
        """Each model's validation figures, with the noise it would have alone."""
        generators = [Generator().manual_seed(seed) for seed in self.seeds]
        count, n = len(self.members), len(val)
        inputs = [
            val.numbers(val.x).expand(count, *val.x.shape),
            self._noise(n, generators),
            self.kl_weights,
        ]
        if val.y is not None:
            inputs.insert(1, val.y.expand(count, *val.y.shape))
        loss, log_likelihood, kl = (t / n for t in self._program("terms", *inputs))
        names = ("val_loss", "val_elbo", "val_reconstruction", "val_kl")
        columns = (loss, log_likelihood - kl, log_likelihood, kl)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _keep(self, improved: list[int]) -> None:
        """Copies the weights of the models, given by row, that have just validated best."""
        now = self.average or self.params
        if self.best is None:
            self.best = {name: tensor.clone() for name, tensor in now.items()}
        for row in improved:
            for name, tensor in self.best.items():
                tensor[self.members[row]] = now[name][row]

    def _give_back(self) -> None:
        """Writes each model's best weights into its VAE."""
        assert self.best is not None
        for index, vae in enumerate(self.vaes):
            tensors = {name: tensor.clone() for name, tensor in named_tensors(vae).items()}
            for name, stacked in self.best.items():
                own = name.removeprefix("vae.")
                if own in tensors:
                    tensors[own] = stacked[index]
            fill(vae, tensors)


def _beside(values: Tensor, like: Tensor) -> Tensor:
    """One value for each model, shaped to broadcast over the rest of a stack."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))
