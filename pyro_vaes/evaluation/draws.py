"""Scored posterior draws, on which evaluation is based.

Draws come in blocks of fixed size, each with its own seed, so that no figure depends on how the
work is split into chunks. Only sums, the largest weights (of S draws, 3 sqrt(S)) and the curve of
the bound are kept, so that memory does not grow with the number of draws.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vaes.core.support import check_density, check_support, scored, singular
from pyro_vaes.vae import VAE, drawn

__all__ = [
    "Cost",
    "Draws",
    "RowBlock",
    "check_overrides",
    "chunk_of",
    "draws",
    "generator_of",
    "joined",
    "row_blocks",
    "seed_of",
]


# A block is the unit in which noise is drawn: (samples, data). It never changes with chunk_size.
BLOCK_SAMPLES = 128
BLOCK_DATA = 64
# Decoder evaluations at once on a CPU, whose caches they should fit; a GPU takes a block.
CPU_CHUNK = 1024


def chunk_of(device: torch.device, chunk_size: int | None) -> int:
    """Decoder evaluations at once: as given, or a default for the device."""
    if chunk_size is not None:
        return chunk_size
    return CPU_CHUNK if device.type == "cpu" else BLOCK_SAMPLES * BLOCK_DATA


@dataclasses.dataclass
class Cost:
    """Counts decoder evaluations, one per datum and draw of z.

    Attributes:
        evaluations: number so far.
        report: called with each increase, for a progress bar.
    """

    evaluations: int = 0
    report: Callable[[int], object] = lambda count: None

    def add(self, count: int) -> None:
        """Adds evaluations."""
        self.evaluations += count
        self.report(count)


def seed_of(*place: Any) -> int:
    """A seed for one place in the evaluation; neighbouring places and seeds share no draws."""
    text = "/".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


def generator_of(device: torch.device, *place: Any) -> torch.Generator:
    """A generator for one place in the evaluation."""
    return torch.Generator(device).manual_seed(seed_of(*place))


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """Some data with their posterior, made once, and their prior.

    Raises:
        ValueError: for distributions of other shapes, or with a mask.
    """

    first: int
    x: Tensor
    y: Tensor | None
    posterior: Any
    prior: Any

    def __post_init__(self) -> None:
        n, shape = len(self.x), self.posterior.event_shape
        check_density("posterior", self.posterior, [(n,)], None)
        check_density("prior", self.prior, [(), (n,)], shape)

    @property
    def singular(self) -> str | None:
        """Why the posterior has no density relative to the prior, if it has none."""
        return singular(self.posterior, self.prior)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws z ``(samples, data, D)`` and the terms of log w ``(samples, data)``, nats, float64."""

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def undefined(self) -> Tensor:
        """Which draws have a weight that is not a number, ``(samples, data)``."""
        return self._weight.isnan()

    @property
    def log_weight(self) -> Tensor:
        """Log p(x | z) + log p(z) - log q(z | x); minus infinity where that is not a number.

        One draw that no density can score must not spoil the mean of all data: its datum is marked.
        """
        return self._weight.masked_fill(self.undefined, -math.inf)

    @property
    def _weight(self) -> Tensor:
        return self.log_likelihood + self.log_prior - self.log_posterior

    def first(self, num: int) -> Draws:
        """The first few of them."""
        return Draws(*(getattr(self, field.name)[:num] for field in dataclasses.fields(self)))


def joined(some: Iterable[Draws]) -> Draws:
    """Draws that came in pieces, as one."""
    pieces = list(some)
    names = [field.name for field in dataclasses.fields(Draws)]
    return Draws(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in names))


def row_blocks(vae: VAE, x: Tensor, y: Tensor | None) -> Iterator[RowBlock]:
    """Iterates over blocks of data; each is encoded once, an unconditional prior made once."""
    prior = None if vae.prior_is_conditional else vae.p_z()
    for first in range(0, len(x), BLOCK_DATA):
        rows = slice(first, first + BLOCK_DATA)
        x_rows, y_rows = x[rows], None if y is None else y[rows]
        x_rows = x_rows if x_rows.is_floating_point() else x_rows.to(vae.dtype)
        yield RowBlock(
            first,
            x_rows,
            y_rows,
            posterior=vae.q_z(x_rows, y_rows),
            prior=vae.p_z(y_rows) if prior is None else prior,
        )


def check_overrides(vae: VAE, x: Tensor, y: Tensor | None) -> None:
    """Refuses a subclass with another model or guide than that of its parts, which are evaluated.

    Call inside :func:`~pyro_vaes.vae.evaluating`.

    Raises:
        ValueError: naming the method.
    """
    methods = ("model", "guide")
    own = [m for m in methods if getattr(getattr(vae, m), "__func__", None) is not getattr(VAE, m)]
    if not own:
        return
    block = next(row_blocks(vae, x[:2], None if y is None else y[:2]))
    given = (block.x,) if y is None or not vae.conditional else (block.x, block.y)
    with pyro.get_param_store().scope():
        guide = poutine.trace(vae.guide).get_trace(*given)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(*given)
    if "z" in guide.nodes and _scores_alike(vae, block, model, guide):
        return
    raise ValueError(
        f"Expected a {' and '.join(own)} of {type(vae).__name__} that score what the parts do, "
        "p(z), q(z | x) and p(x | z), by which a VAE is evaluated; got others. Change the parts, "
        "or p_z, q_z and p_x."
    )


def _scores_alike(vae: VAE, block: RowBlock, model: Any, guide: Any) -> bool:
    """Whether traces of model and guide have the densities of the parts."""
    site = guide.nodes["z"]
    z = site["value"]
    log_x = vae.p_x(z, block.y).log_prob(block.x)
    try:
        log_q = block.posterior.log_prob(z)
    except (NotImplementedError, KeyError):  # A flow that scores its own draws only.
        log_q = site["fn"].log_prob(z)
    ours = torch.stack([(log_x + block.prior.log_prob(z)).sum(), log_q.sum()])
    theirs = torch.stack([torch.as_tensor(t.log_prob_sum()) for t in (model, guide)]).to(ours)
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def draws(
    vae: VAE,
    block: RowBlock,
    num_samples: int,
    seed: int,
    chunk_size: int,
    proposal: Any = None,
    cost: Cost | None = None,
) -> Iterator[Draws]:
    """Draws S samples of z for each datum of a block and scores them.

    Call inside :func:`~pyro_vaes.vae.evaluating`.

    Args:
        vae: the model.
        block: the data.
        num_samples: S.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once (rounded to whole rows of a block).
        proposal: has ``sample(num, generator)`` and ``log_prob(z)``; the block's posterior if None.
        cost: counts the decoder evaluations.
    """
    step = max(1, chunk_size // len(block.x))
    for first in range(0, num_samples, BLOCK_SAMPLES):
        # A block is always drawn whole, so that S = 200 begins with the draws of S = 100, and
        # scored whole: some flows can only score tensors they drew themselves.
        if proposal is None:
            torch.manual_seed(seed_of(int(seed), block.first, first))
            z = drawn(block.posterior, BLOCK_SAMPLES)
            log_q = block.posterior.log_prob(z)
            if block.singular:  # All its mass is where the prior has none.
                log_q = torch.full_like(log_q, math.inf)
        else:
            z = proposal.sample(
                BLOCK_SAMPLES,
                generator_of(block.x.device, int(seed), "proposal", block.first, first),
            )
            log_q = proposal.log_prob(z)
        count = min(BLOCK_SAMPLES, num_samples - first)
        z, log_q = z[:count], log_q[:count]
        log_x: list[Tensor] = []
        log_z: list[Tensor] = []
        for part in z.split(step):
            likelihood = vae.p_x(part, block.y)
            if not first and not log_x:
                check_density("likelihood", likelihood, [part.shape[:-1]], block.x.shape[1:])
                check_support(likelihood, block.x, block.first)
            log_x.append(scored(likelihood, block.x).double())
            log_z.append(scored(block.prior, part).double())
        if cost is not None:
            cost.add(count * len(block.x))
        yield Draws(z, torch.cat(log_x), torch.cat(log_z), log_q.double())
