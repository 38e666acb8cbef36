"""Training: ``fit`` trains a VAE and keeps the weights that validate best.

One loop for every combination of parts and every objective, over
:class:`~pyro_vaes.inference.svi.FastSVI`. All state of the loop (weights, their average, optimiser,
generators, best weights, history) is in one checkpoint, written atomically, so that a killed run
resumes exactly from its last checkpoint; ``run_folder`` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vaes.core.choices import Mode
from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.training.callbacks import Callback
from pyro_vaes.training.history import History
from pyro_vaes.training.loop import Trainer
from pyro_vaes.training.options import (
    FitOptions,
)
from pyro_vaes.vae import VAE

__all__ = ["fit", "refit_prior"]


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
    keep_start: bool = False,
    progress: bool = True,
    on_epoch: Callback | None = None,
    on_step: Callback | None = None,
) -> History:
    """Trains a VAE in place and leaves it with the weights that validated best.

    The seed determines the order of the data and all noise; the caller's generators keep their
    state. (The initial weights were drawn when the parts were built: seed before that.)

    Under ``torchrun`` the processes share each batch and take the steps of one process, to float
    rounding; all get the result, the first one writes. See :mod:`pyro_vaes.training.distributed`.

    >>> pv.fit(vae, torch.randn(100, 4), torch.randn(50, 4), epochs=5, progress=False).epochs
    5
    >>> enough = lambda record, vae: record["val_elbo"] > -1e9
    >>> pv.fit(vae, torch.randn(100, 4), torch.randn(50, 4), on_epoch=enough).stopped
    'callback'

    Args:
        vae: the model; moved to the device.
        train: a split, tensor, array, ``Dataset`` or ``DataLoader``.
        val: validation data; without them the last weights are kept.
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
        patience: stop after this many epochs without a better validation; None for no limit.
        ema_decay: decay of an exponential moving average of the weights, which is then validated,
            kept and saved; 0 for none.
        seed: see above.
        device: ``auto`` (CUDA if there is one, else the CPU), ``cpu``, ``cuda``, ``mps``; one of
            several as ``cuda:1``; or a ``torch.device``.
        mode: how steps are run; ``auto`` decides from device and number of steps (on CUDA a graph,
            unless there are few), never from a timing.
        precision: of the matrix products in training: ``float32``, ``tf32`` (on CUDA) or ``bf16``.
            Validation is in float32; the history has the effect of the precision on the bound.
        out: a run folder for weights, metrics and checkpoints; none if None.
        resume: continue the run in ``out``; an absent or empty folder starts one, a finished run
            stays as it is.
        minutes: time limit, checked after each epoch, and in a long one each minute; None for no
            limit. ``resume`` then continues the run bit for bit.
        record: JSON-ready facts to save with the weights. A ``digest`` among them is that of a
            configuration: only a run with the same one can be resumed.
        keep_start: whether the weights before the first step are kept if none validate better, as
            befits a start that is no random one; ``best_epoch`` is then 0.
        progress: show a progress bar in a terminal or notebook.
        on_epoch: called after each epoch with its record (see :class:`.History`) and the VAE, which
            has the weights that were validated and is in evaluation mode, without gradients.
            Returns None, or True to end training there (``stopped`` is then ``callback``; with
            ``out``, ``resume`` continues). It looks and changes nothing: its draws have generators
            of their own. After a kill, epochs since the last checkpoint are shown again. An
            exception ends training. Under ``torchrun`` the first process calls it.
        on_step: the same after each step, with ``epoch``, ``step``, ``train_loss`` (of the batch,
            nats per datum, a tensor, since reading a number from a GPU waits for it) and
            ``learning_rate``. The VAE has the weights of the step, not their average.

    Returns:
        The history.

    Raises:
        ValueError: for invalid options, such as a warm-up as long as training, or for data that the
            parts cannot take.
        RunFolderError: if ``out`` holds another run or one with other options, is in use by another
            process, or is not writable.
        NonFiniteError: if the loss is not finite; the weights of the last good epoch are kept.
        PeerError: if another process ended.
    """
    given = dict(locals())
    if minutes is not None and not minutes > 0:
        raise ValueError(f"Expected minutes above 0; got {minutes}.")
    with torch.inference_mode(False):
        objective = ELBO() if objective is None else objective
    trainer = Trainer(vae, train, val, objective, FitOptions.of(given), record, keep_start)
    with trainer.alone(out):
        return trainer.run(
            out,
            resume=resume,
            minutes=minutes,
            progress=progress,
            on_epoch=on_epoch,
            on_step=on_step,
        )


def refit_prior(
    vae: VAE, prior: nn.Module, train: Any, val: Any = None, **options: Any
) -> tuple[VAE, History]:
    """Fits another prior to the codes of a trained VAE, whose posterior and likelihood stay.

    The marginal KL(q(z) || p(z)) is what a prior loses; it is lowered without moving q(z | x) (Dai
    and Wipf, "Diagnosing and enhancing VAE models", 2019, for a second VAE as prior). Compare
    ``evaluate`` of both.

    >>> x = torch.randn(100, 4)
    >>> prior = pv.FlowPrior(vae.prior.latent_dim, pv.flows.realnvp(vae.prior.latent_dim, 2))
    >>> better, history = pv.refit_prior(vae, prior, x, epochs=3, progress=False)
    >>> better.posterior is vae.posterior, history.epochs
    (True, 3)

    Args:
        vae: the trained model; it stays as it is, but for its device.
        prior: trained in place.
        train: as for :func:`fit`.
        val: as for :func:`fit`.
        **options: those of :func:`fit`.

    Returns:
        The VAE of the new prior, which shares the other parts, and the history.

    Raises:
        ValueError: as :func:`fit`, or for a prior that does not fit the posterior.
    """
    joined = VAE(prior, vae.posterior, vae.likelihood, vae.conditions)
    with _fixed(vae.posterior, vae.likelihood):
        history = fit(joined, train, val, **options)
    return joined, history


@contextmanager
def _fixed(*parts: nn.Module) -> Iterator[None]:
    """Parts that do not learn: neither parameters nor, as in evaluation, what layers count."""
    learned = [p for part in parts for p in part.parameters() if p.requires_grad]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    for parameter in learned:
        parameter.requires_grad_(False)
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in learned:
            parameter.requires_grad_(True)
