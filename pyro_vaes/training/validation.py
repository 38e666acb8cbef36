"""Validation, checks on data and model, and the search for values that are not finite."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vaes.core.described import SpecError, describe
from pyro_vaes.data.rows import ROWS, by_parts, in_single, thinned
from pyro_vaes.data.splits import Split, batches
from pyro_vaes.data.tables import filled
from pyro_vaes.data.units import units_of
from pyro_vaes.inference.elbo import ELBO, bound_terms
from pyro_vaes.inference.info import BetaTCELBO, InfoELBO
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.training.distributed import ALONE, UNSHAREABLE, Processes
from pyro_vaes.training.options import OptionError
from pyro_vaes.vae import VAE, evaluating

__all__ = [
    "advice",
    "arguments",
    "check_batches",
    "check_together",
    "check_trainable",
    "check_units",
    "check_warmup",
    "divergence_of",
    "first_not_finite",
    "on_device",
    "validate",
]


# Rows scored at once in validation, particles counted, and numbers in them.
_ROWS, _NUMBERS = 4096, 2**22


def arguments(vae: VAE, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments of model and guide: labels only if a part takes them."""
    return (x, y) if y is not None and vae.conditional else (x,)


def validate(
    vae: VAE, objective: Any, val: Split, seed: int, processes: Processes = ALONE
) -> dict[str, float]:
    """The validation figures, with the same noise at each call, so that epochs can be compared.

    Args:
        vae: the model.
        objective: the loss; evaluated at its full weights, whatever its warm-up.
        val: validation data.
        seed: seed of the noise.
        processes: those that share the rows; all get the figures of all rows.

    Returns:
        ``val_loss`` (the objective) and ``val_elbo``, ``val_reconstruction`` and ``val_kl`` (at
        beta = 1), in nats per datum.
    """
    ours = isinstance(objective, ELBO)
    estimator = objective if ours else ELBO()
    model, guide = processes.sharing(vae.model, vae.guide)
    log_likelihood = kl = loss = 0.0
    with evaluating(vae):
        torch.manual_seed(seed)
        for x, y in batches(val, _rows(objective, val)):
            batch = processes.part(arguments(vae, x, y))
            weight = processes.weight
            traces = estimator._get_trace(model, guide, batch, {})
            terms = bound_terms(*traces)
            log_likelihood += weight * float(terms.log_likelihood)
            kl += weight * float(terms.kl)
            if ours:
                with objective.full_weights():
                    loss += weight * float(objective.trace_loss(*traces))
            else:
                loss += weight * objective.loss(model, guide, *batch)
    log_likelihood, kl, loss = processes.figures(log_likelihood, kl, loss)
    n = len(val)
    return {
        "val_loss": loss / n,
        "val_elbo": (log_likelihood - kl) / n,
        "val_reconstruction": log_likelihood / n,
        "val_kl": kl / n,
    }


def _rows(objective: Any, val: Split) -> int:
    """Validation batch size: bounded with particles counted; leaves no last batch of one row."""
    n, most = len(val), min(_ROWS, _NUMBERS // val.x[0].numel())
    rows = max(2, most // getattr(objective, "num_particles", 1))
    while n % rows == 1 < n:
        rows += 1
    return rows


def check_batches(objective: Any, split: Split, batch_size: int | None = None) -> None:
    """Refuses batches with fewer data than the objective needs.

    Args:
        objective: the loss.
        split: training or validation data.
        batch_size: of training; None for validation, whose batch size is automatic.

    Raises:
        OptionError: naming the batch.
    """
    least = getattr(objective, "min_data", 1)
    last = len(split) if batch_size is None else len(split) % batch_size or batch_size
    if last < least:
        divergence = getattr(objective, "divergence", None)
        of = "of validation data" if batch_size is None else f"at batch_size={batch_size}"
        raise OptionError(
            "batch_size" if divergence is None else "divergence",
            f"Expected at least {least} data in a batch for "
            f"{type(divergence or objective).__name__}; got {last} in the last one of "
            f"{len(split)} {of}.",
        )


def check_warmup(objective: Any, steps: int) -> None:
    """Refuses a KL warm-up with an objective without a KL weight, or with one of its own."""
    if steps and getattr(objective, "kl_schedule", None) is not None:
        raise ValueError(
            "Expected a KL warm-up or an objective with a schedule of its KL weight; got both."
        )
    if steps and not isinstance(objective, ELBO):
        raise ValueError(
            "Expected an objective of pyro_vaes for a KL warm-up, for a many-sample bound has "
            f"no KL to weigh; got {type(objective).__name__}."
        )


def check_together(vaes: Sequence[VAE], objectives: Sequence[ELBO]) -> None:
    """Refuses models and objectives that cannot be trained as one program, see ``fit_many``.

    Raises:
        ValueError: for models that are not of one architecture or have a model or guide of their
            own, or objectives that are more than a weight of the KL.
    """
    if any(not isinstance(objective, ELBO) for objective in objectives):
        raise ValueError("Expected objectives that are ELBO or BetaELBO for a sweep. Use fit().")
    if not vaes:
        raise ValueError("Expected at least one model; got none.")
    for number, vae in enumerate(vaes):
        if not _is_alike(vae, vaes[0]):
            raise ValueError(
                f"Expected models of one architecture; got number {number} with other tensors, "
                "parts, options or frozen parameters than the first."
            )
    tensors = [id(tensor) for vae in vaes for tensor in vae.parameters()]
    if len(set(tensors)) < len(tensors):
        raise ValueError("Expected models that share no parts with each other; got some that do.")
    layers = (m for m in vaes[0].modules() if isinstance(m, UNSHAREABLE))
    if (layer := next(layers, None)) is not None:
        raise ValueError(
            "Expected layers that treat each row by itself, without draws, for a sweep; got "
            f"{type(layer).__name__}. Use fit()."
        )
    pairs = itertools.product(vaes, ("model", "guide"))
    if any(getattr(getattr(v, m), "__func__", None) is not getattr(VAE, m) for v, m in pairs):
        raise ValueError(
            "Expected the model and guide of VAE for a sweep, which joins the parts by itself; got "
            "others. Use fit()."
        )
    diverging = any(getattr(o, "divergence", None) is not None for o in objectives)
    if diverging or len({objective.free_bits for objective in objectives}) > 1:
        raise ValueError("Expected objectives without divergences and with equal free_bits.")
    if any(_is_special(o) or o.kl_schedule or o.kl_capacity for o in objectives):
        raise ValueError(
            "Expected objectives without schedule, capacity, weights of parts of the KL, several "
            "particles or a loss of their own for a sweep; got one with. Use fit()."
        )
    if any(objective.gradient != "total" for objective in objectives):
        raise ValueError('Expected objectives with gradient="total"; got "path". Use fit().')


def _is_alike(vae: VAE, first: VAE) -> bool:
    """Whether two models differ in nothing but the numbers in their tensors."""
    if _tensors(vae) != _tensors(first):
        return False
    with suppress(SpecError):  # For a user's own parts.
        if describe(vae) == describe(first):
            return True
    return _attributes(vae) == _attributes(first)


def _tensors(vae: VAE) -> dict[str, Any]:
    """Shapes and types of a model's tensors, and which of them learn."""
    learn = {name for name, p in vae.named_parameters() if p.requires_grad}
    return {n: (t.shape, t.dtype, n in learn) for n, t in named_tensors(vae).items()}


def _attributes(vae: VAE) -> list[Any]:
    """The class of each module, and what it has but for parameters, buffers and modules.

    Numbers, words and functions are compared; other things, tensors that are no buffers among them,
    are alike only if they are the same, since the first model's serve all.
    """
    torchs = {*vars(nn.Module()), "_arguments"}  # The latter are what `describe` shows.
    return [
        (type(m), {n: v if _is_plain(v) else id(v) for n, v in vars(m).items() if n not in torchs})
        for m in vae.modules()
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    kinds = (bool, int, float, str, torch.dtype, torch.device, FunctionType, BuiltinFunctionType)
    return value is None or isinstance(value, kinds)


def _is_special(objective: ELBO) -> bool:
    """Whether the loss is another function of the two terms of the bound, or of several draws."""
    usual = {
        "trace_loss": (ELBO.trace_loss, InfoELBO.trace_loss),
        "loss_of": (ELBO.loss_of,),
        "tensor_loss": (ELBO.tensor_loss,),
    }
    own = (getattr(type(objective), name) not in known for name, known in usual.items())
    return objective.num_particles > 1 or any(own)


def divergence_of(objective: Any) -> str:
    """The class name of what takes a whole batch in an objective, ``none`` without any."""
    if isinstance(objective, BetaTCELBO):
        return type(objective).__name__
    divergence = getattr(objective, "divergence", None)
    return "none" if divergence is None else type(divergence).__name__


def check_trainable(vae: VAE, split: Split, batch_size: int) -> None:
    """Refuses a VAE whose tensors take no gradient, or whose batch norms would get a single row.

    Raises:
        ValueError: naming the reason.
    """
    if any(tensor.is_inference() for tensor in vae.state_dict().values()):
        raise ValueError(
            "Expected a VAE that can be trained; got one made under torch.inference_mode(). "
            "Make it outside."
        )
    norms = [m for m in vae.modules() if isinstance(m, nn.BatchNorm1d) and m.training]
    if (norms and len(split) % batch_size == 1) or (norms and batch_size == 1):
        raise ValueError(
            f"Expected at least 2 data in a batch for {type(norms[0]).__name__}; got 1 in the last "
            f"one of {len(split)} at batch_size={batch_size}. Choose another, or leave a row out."
        )


def check_units(vae: VAE, x: Tensor) -> None:
    """Warns if real data lie far from the initial range of a likelihood without their units."""
    strange = _strange_units(vae, x)
    if strange is not None:
        warnings.warn(f"{strange} Before training, {_INITIALIZE}", stacklevel=5)


_INITIALIZE = "call likelihood.initialize_from(x) with the training data, or standardise them."
# A value more spreads than this from the centre is the likely cause of a failure.
_FAR_OUT = 1e4


def _strange_units(vae: VAE, x: Tensor) -> str | None:
    """Describes data far from the units of the likelihood; None if they are close."""
    units = getattr(vae.likelihood, "units", None)
    if units is None or units[0].any() or (units[1] != 1).any():
        return None
    center, spread = (t.flatten() for t in units_of(x, x.shape[1:]))
    odd = (center.abs() > 10 * spread.clamp(min=1.0)) | (spread > 100)
    rows = filled(x).flatten(1)
    odd |= (spread < 0.01) & (rows.amin(0) < rows.amax(0)).to(spread.device)
    if not bool(odd.any()):
        return None
    i = int(odd.nonzero()[0])
    return (
        f"Element {i} of the data has mean {center[i]:.4g} and standard deviation {spread[i]:.4g}, "
        "far from the 0 and 1 that the likelihood begins with."
    )


def advice(vae: VAE, x: Tensor, otherwise: str = "Try a lower learning_rate, or clip_norm.") -> str:
    """Advice on a loss that is not finite; an outlier in the data is checked for first."""
    rows = filled(x).flatten(1)
    sample = rows[thinned(rows)].double()
    middle = sample.median(0).values
    usual = (sample - middle).abs().median(0).values
    for first, part in zip(range(0, len(rows), ROWS), rows.split(ROWS), strict=True):
        far = torch.where(usual > 0, (part - middle).abs() / usual, 0.0)
        if far.max() > _FAR_OUT:
            row, element = divmod(int(far.argmax()), rows.shape[1])
            return (
                f"The value {part[row, element]:.4g} in row {first + row}, element {element} of "
                "the training data (counted from 0) lies far from all others, near "
                f"{middle[element]:.4g}: is it right?"
            )
    strange = _strange_units(vae, x)
    return otherwise if strange is None else f"{strange} {_INITIALIZE.capitalize()}"


def first_not_finite(vae: VAE, batch: tuple[Tensor, ...]) -> str:
    """Finds the first site with a value or log density that is not finite."""
    # A matrix of parameters that are not finite cannot be factorised.
    broken = suppress(RuntimeError)
    with torch.no_grad(), pyro.validation_enabled(False), broken:
        guide = poutine.trace(vae.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(*batch)
        for side, trace in (("guide", guide), ("model", model)):
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                    continue
                for what in ("value", "log_prob"):
                    if not torch.isfinite(cast(Tensor, site[what])).all():
                        return f"the {what} of site {name!r} in the {side} is not finite"
    return "the loss is not finite"


def on_device(split: Split, vae: VAE) -> Split:
    """The rows on the model's device and in its dtype; refused if values would collapse in it."""
    x = in_single(split.x) if vae.dtype == torch.float32 else split.x
    x = x.to(vae.device)
    if x.is_floating_point() and x.dtype != vae.dtype:  # Bytes are converted in their batch.
        x = by_parts(lambda part: part.to(vae.dtype), x)
    x = x.clone() if x.is_inference() else x
    y = None if split.y is None else split.y.to(vae.device)
    return dataclasses.replace(split, x=x, y=y, dtype=vae.dtype)
