"""Posterior draws, scored: what evaluation is made of.

Draws come in blocks of fixed size, each with a seed of its own: no figure depends on how the work
is cut into chunks. What is kept of them does not grow with their number: sums, the largest weights
(of S draws, 3 sqrt(S)), and the curve of the bound.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vaes.pareto import MIN_SAMPLES, pareto_k, tail_size
from pyro_vaes.vae import VAE

__all__ = [
    "Curve",
    "Draws",
    "RowBlock",
    "Tally",
    "check_data",
    "check_labels",
    "chunk_of",
    "draws",
    "row_blocks",
    "seed_of",
    "untouched",
]

# A block is the unit in which noise is drawn: (samples, data). It never changes with chunk_size.
BLOCK_SAMPLES = 128
BLOCK_DATA = 64
# Decoder evaluations at once on a CPU, whose caches they should fit; a GPU takes a block.
CPU_CHUNK = 1024


def chunk_of(device: torch.device, chunk_size: int | None) -> int:
    """Decoder evaluations at once: as asked, or what suits the device."""
    if chunk_size is not None:
        return chunk_size
    return CPU_CHUNK if device.type == "cpu" else BLOCK_SAMPLES * BLOCK_DATA


@contextmanager
def untouched(vae: VAE) -> Iterator[None]:
    """Evaluation mode, no gradients, no validation; afterwards all is as it was, generators too."""
    modes = [(module, module.training) for module in vae.modules()]
    with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
        vae.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def check_data(vae: VAE, x: Tensor, y: Tensor | None = None) -> None:
    """Refuses data that the parts cannot take, before the work begins.

    Args:
        vae: the model.
        x: data ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.

    Raises:
        ValueError: for another event shape, for labels that are missing or out of range, or for
            values that are no levels of a likelihood over levels.
    """
    check_labels(vae, x, y)
    with untouched(vae):
        label = None if y is None else y[:1]
        check_support(vae.p_x(vae.q_z(x[:1], label).rsample(), label), x)


def check_labels(vae: VAE, x: Tensor, y: Tensor | None) -> None:
    """Refuses labels that are missing or out of range where a part takes them."""
    if vae.conditional:
        vae._check_labels(y, len(x))


def check_support(likelihood: Any, x: Tensor, first: int = 0) -> None:
    """Refuses values between or beyond the levels of a likelihood, rows counted from ``first``.

    Where validation is off, the probability of half a level would be a number like any other.
    """
    try:
        support = likelihood.support
    except (AttributeError, NotImplementedError):  # A user's own need not tell.
        return
    if not support.is_discrete:
        return
    wrong = ~support.check(x).reshape(-1, len(x)).all(0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        base = getattr(support, "base_constraint", support)
        top = getattr(base, "upper_bound", None)
        levels = f"{base}" if top is None else f"whole numbers up to {torch.as_tensor(top).max():g}"
        raise ValueError(
            f"Expected the likelihood's levels, {levels}; got values from {x[row].min():g} to "
            f"{x[row].max():g} in row {first + row} (counted from 0)."
        )


def seed_of(*place: Any) -> int:
    """A seed for a place in the work; neighbouring places and seeds share no draws."""
    text = "/".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """Some data with their posterior, made once, and their prior."""

    first: int
    x: Tensor
    y: Tensor | None
    posterior: Any
    prior: Any


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws z ``(samples, data, D)`` and the terms of log w ``(samples, data)``, nats, float64."""

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log p(x | z) + log p(z) - log q(z | x)."""
        return self.log_likelihood + self.log_prior - self.log_posterior


def row_blocks(vae: VAE, x: Tensor, y: Tensor | None) -> Iterator[RowBlock]:
    """Walks through the data: one encoding for each, one making of an unconditional prior."""
    prior = None if vae.prior_is_conditional else vae.p_z()
    for first in range(0, len(x), BLOCK_DATA):
        rows = slice(first, first + BLOCK_DATA)
        x_rows, y_rows = x[rows], None if y is None else y[rows]
        yield RowBlock(
            first,
            x_rows,
            y_rows,
            posterior=vae.q_z(x_rows, y_rows),
            prior=vae.p_z(y_rows) if prior is None else prior,
        )


def draws(
    vae: VAE, block: RowBlock, num_samples: int, seed: int, chunk_size: int
) -> Iterator[Draws]:
    """Draws S posterior samples for each datum of a block and scores them.

    Call inside :func:`untouched`.

    Args:
        vae: the model.
        block: the data.
        num_samples: S.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once (rounded to whole rows of a block).
    """
    step = max(1, chunk_size // len(block.x))
    for first in range(0, num_samples, BLOCK_SAMPLES):
        torch.manual_seed(seed_of(int(seed), block.first, first))
        # A block is always drawn whole, so that S = 200 begins with the draws of S = 100. It is
        # scored whole, too: some flows can tell the density of the very tensor they made only.
        z = block.posterior.rsample((BLOCK_SAMPLES,))
        log_q = block.posterior.log_prob(z)
        count = min(BLOCK_SAMPLES, num_samples - first)
        z, log_q = z[:count], log_q[:count]
        log_x: list[Tensor] = []
        log_z: list[Tensor] = []
        for part in z.split(step):
            likelihood = vae.p_x(part, block.y)
            if not first and not log_x:
                check_support(likelihood, block.x, block.first)
            log_x.append(likelihood.log_prob(block.x).double())
            log_z.append(block.prior.log_prob(part).double())
        yield Draws(z, torch.cat(log_x), torch.cat(log_z), log_q.double())


class Curve:
    """The bound with 1, 2, 4, ... samples, each from all draws.

    The bound with k samples is averaged over disjoint groups of k draws (what is left of them is
    dropped), so that every point is unbiased: Burda et al. (2016), equation 8. Log means of
    neighbouring groups are joined, so that only one open group is kept at each level.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._counts: list[int] = []
        self._open: list[Tensor] = []

    def add(self, log_weight: Tensor) -> None:
        """Takes more draws, ``(samples, data)``."""
        level, sums = 0, log_weight
        while len(sums):
            if level == len(self._sums):
                self._sums.append(torch.zeros_like(sums[0]))
                self._counts.append(0)
                self._open.append(sums[:0])
            self._sums[level] += sums.sum(0)
            self._counts[level] += len(sums)
            sums = torch.cat([self._open[level], sums])
            whole = len(sums) // 2 * 2
            self._open[level] = sums[whole:]
            sums = torch.logaddexp(sums[0:whole:2], sums[1:whole:2])
            level += 1

    def result(self) -> Tensor:
        """The bound of each datum with 2^j samples, ``(data, levels)``, in nats."""
        return torch.stack(
            [
                sums / count - level * math.log(2)
                for level, (sums, count) in enumerate(zip(self._sums, self._counts, strict=True))
            ],
            dim=-1,
        )


class Tally:
    """What is kept of the draws for a block of data, in memory that does not grow with S.

    Args:
        block: the data.
        num_samples: S.
        keep: how many of the first draws to keep as they are.
        diagnostics: False leaves all but the log mean weight and its terms.
    """

    def __init__(
        self, block: RowBlock, num_samples: int, keep: int = 0, diagnostics: bool = False
    ) -> None:
        self._num_samples, self._keep, self._diagnostics = num_samples, keep, diagnostics
        n, device = len(block.x), block.x.device
        self._sums = torch.zeros(3, n, dtype=torch.float64, device=device)
        # Log sums of the weights and of their squares.
        self._totals = torch.full((2, n), -math.inf, dtype=torch.float64, device=device)
        self._range = (
            torch.tensor([math.inf, -math.inf], device=device).double()[:, None].repeat(1, n)
        )
        self._top = torch.zeros(0, n, dtype=torch.float64, device=device)
        self._z_sums: Tensor | None = None
        self._curve = Curve()
        self._kept: dict[str, Tensor] = {}

    def add(self, block: Draws) -> None:
        """Takes more draws."""
        weight = block.log_weight
        terms = (block.log_likelihood, block.log_prior, block.log_posterior)
        self._sums += torch.stack([term.sum(0) for term in terms])
        orders = torch.stack([weight.logsumexp(0), (2 * weight).logsumexp(0)])
        self._totals = torch.logaddexp(self._totals, orders)
        if not self._diagnostics:
            return
        self._curve.add(weight)
        size = tail_size(self._num_samples) + 1
        top = torch.cat([self._top, weight])
        self._top = top.topk(min(size, len(top)), dim=0).values
        low, high = block.log_likelihood.aminmax(dim=0)
        self._range = torch.stack([self._range[0].minimum(low), self._range[1].maximum(high)])
        z = block.z.double()
        sums = torch.stack([z.sum(0), z.square().sum(0)])
        self._z_sums = sums if self._z_sums is None else self._z_sums + sums
        if not self._kept and self._keep:
            self._kept = {
                "z": block.z[: self._keep].transpose(0, 1),
                "log_q": block.log_posterior[: self._keep].mT,
                "log_p": block.log_prior[: self._keep].mT,
            }

    def result(self) -> dict[str, Tensor]:
        """Figures of each datum, the data along the first dimension, in nats."""
        log_likelihood, log_prior, log_posterior = self._sums / self._num_samples
        figures = {
            "log_marginal": self._totals[0] - math.log(self._num_samples),
            "log_likelihood": log_likelihood,
            "log_prior": log_prior,
            "log_posterior": log_posterior,
        }
        if not self._diagnostics or self._z_sums is None:
            return figures
        size = (2 * self._totals[0] - self._totals[1]).exp()
        figures["effective_sample_size"] = size.nan_to_num(0.0)
        if self._num_samples >= MIN_SAMPLES:
            figures["pareto_k"] = pareto_k(self._top.mT)
        figures["bound"] = self._curve.result()
        figures["likelihood_range"] = self._range[1] - self._range[0]
        z_sum, z_squares = self._z_sums
        mean = z_sum / self._num_samples
        figures["z_mean"] = mean
        # The variance of a single draw is unknown: 0 / 0 is not a number, as it should be.
        figures["z_variance"] = (z_squares - z_sum * mean) / (self._num_samples - 1)
        return figures | self._kept
