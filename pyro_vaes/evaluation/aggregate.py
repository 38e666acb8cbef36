"""The aggregated posterior q(z) = E[q(z|x)] and distances from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pyro_vaes.core.looking import diagonal_normal, normal_marginals
from pyro_vaes.core.support import singular
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.distributions.mixtures import Mixture
from pyro_vaes.distributions.normals import (
    diagonal_normal_log_prob,
)
from pyro_vaes.evaluation.draws import BLOCK_SAMPLES, seed_of
from pyro_vaes.evaluation.results import Unavailable, shared
from pyro_vaes.vae import VAE

__all__ = [
    "AggregatedPosterior",
    "aggregate_plan",
    "level_kls",
    "level_units",
    "log_sizes",
    "prior_marginals",
]


# Numbers computed for the aggregated posterior of normals, and pairs (draw, datum) for any other,
# each of which may cost a pass of a flow's or level's network: seconds on one core. Of very many
# data it is more, for no fewer draws than these.
_NORMAL_BUDGET, _MIN_DRAWS = 3e7, 500
_PAIR_BUDGET, _MIN_PAIR_DRAWS = 2e5, 100

# Numbers in a chunk of the aggregated posterior per decoder evaluation in a chunk: far fewer than a
# decoder needs, since a chunk that fits into a cache is twice as fast.
_NUMBERS_PER_DECODING = 16

OWN_DRAWS_ONLY = "the posterior scores its own draws only, so q(z) is not available"


def aggregate_plan(
    posterior: Any, num_data: int, num_samples: int, seed: int
) -> tuple[int, Tensor]:
    """How many draws of which data represent q(z) where its own density is averaged over it.

    The mixture is always over all data: only the outer expectation is sampled.

    Returns:
        Draws of each datum, and the indices of the data: all, or a random subset of very many.
    """
    per_datum = min(num_samples, BLOCK_SAMPLES)
    if diagonal_normal(posterior) is not None:
        numbers = num_data * math.prod(posterior.event_shape)
        total = max(_MIN_DRAWS, int(_NORMAL_BUDGET / numbers))
    else:
        total = max(_MIN_PAIR_DRAWS, int(_PAIR_BUDGET / num_data))
    if total >= num_data:
        return min(per_datum, total // num_data), torch.arange(num_data)
    generator = torch.Generator().manual_seed(seed_of(int(seed), "aggregate"))
    return 1, torch.randperm(num_data, generator=generator)[:total].sort().values


class AggregatedPosterior:
    """The mixture of the posteriors at all data, q(z), or q(z | y) of those with the same label.

    Args:
        posteriors: distributions over blocks of the data, in order.
        labels: one for each datum, or None.
        chunk_size: bounds the memory, in decoder evaluations; changes no figure.
    """

    def __init__(self, posteriors: Sequence[Any], labels: Tensor | None, chunk_size: int) -> None:
        self._posteriors = posteriors
        self._labels = shared(labels)
        self._chunk_size = chunk_size
        self._normal = _joined(map(diagonal_normal, posteriors))
        self._marginals = _joined(map(normal_marginals, posteriors))
        self._sizes = [math.prod(posterior.batch_shape) for posterior in posteriors]

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Log q(z), or log q(z | y), of each row of z.

        Args:
            z: ``(m, D)``.
            y: labels ``(m,)`` if the mixture has them.

        Returns:
            ``(m,)`` in nats, float64.

        Raises:
            Unavailable: if the posterior cannot score z from another datum.
        """
        if self._normal is not None:
            size = self._chunk_size * _NUMBERS_PER_DECODING // sum(self._sizes)
        else:  # Scoring may cost as much as a decoder pass.
            size = self._chunk_size // max(self._sizes)
        try:
            scores = [self._components(*part).logsumexp(-1) for part in _chunks(z, y, size)]
        except (NotImplementedError, KeyError) as error:  # raised by flows without inverse
            raise Unavailable(OWN_DRAWS_ONLY) from error
        return torch.cat(scores)

    def marginals(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Log density of each coordinate of z under its own marginal, ``(m, D)``, float64.

        Raises:
            Unavailable: if the posterior is no normal.
        """
        if self._marginals is None:
            raise Unavailable("the marginals of this posterior are known for normals only")
        loc, scale = (parameter.double() for parameter in self._marginals)
        constant = scale.log() + 0.5 * math.log(2 * math.pi)
        size = self._chunk_size * _NUMBERS_PER_DECODING // loc.numel()
        scores = []
        for part, labels in _chunks(z, y, size):
            standard = (part.double().unsqueeze(-2) - loc) / scale
            log_prob = standard.square_().mul_(-0.5).sub_(constant)
            log_prob += self._log_weights(labels, loc[:, 0]).unsqueeze(-1)
            scores.append(log_prob.logsumexp(-2))
        return torch.cat(scores)

    def _components(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Log weight plus log density under every component, ``(m, n)``."""
        if self._normal is not None:
            loc, scale = self._normal
            scores = diagonal_normal_log_prob(z.double(), loc, scale)
        else:
            # Expanded to the full shape: an autoregressive inverse cannot broadcast its context.
            rows = z.unsqueeze(-2)
            scores = torch.cat(
                [
                    posterior.log_prob(rows.expand(len(z), size, z.shape[-1])).double()
                    for posterior, size in zip(self._posteriors, self._sizes, strict=True)
                ],
                dim=-1,
            )
        return scores + self._log_weights(y, scores[0])

    def _log_weights(self, y: Tensor | None, like: Tensor) -> Tensor:
        """Log weights of the components: ``(n,)`` as ``like``, or ``(m, n)`` given labels."""
        if self._labels is None or y is None:
            return torch.full_like(like, -math.log(len(like)))
        same = y.unsqueeze(-1) == self._labels
        uniform = -same.sum(-1, keepdim=True).double().log()
        return uniform.expand(same.shape).masked_fill(~same, -math.inf)


def _chunks(z: Tensor, y: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    size = max(1, size)
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        yield z[rows], None if y is None else y[rows]


def _joined(blocks: Iterable[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor] | None:
    """Parameters of blocks of distributions, concatenated; None if those of a block are unknown."""
    known = list(blocks)
    if any(block is None for block in known):
        return None
    loc, scale = zip(*cast("list[tuple[Tensor, Tensor]]", known), strict=True)
    return torch.cat(loc), torch.cat(scale)


def prior_marginals(vae: VAE, z: Tensor, y: Tensor | None, chunk_size: int) -> Tensor:
    """Log density of each coordinate of z under its own marginal of the prior.

    Args:
        vae: the model, whose prior is a normal or a mixture of them.
        z: ``(m, D)``.
        y: labels ``(m,)`` or None.
        chunk_size: bounds the memory, as for :class:`AggregatedPosterior`.

    Returns:
        ``(m, D)``, float64.

    Raises:
        Unavailable: for any other prior.
    """
    given = y is not None and vae.prior_is_conditional
    # Made once: a VampPrior encodes its pseudo-inputs each time.
    mixture = _as_mixture(vae.p_z(y[:1] if given and y is not None else None))
    size = max(1, chunk_size * _NUMBERS_PER_DECODING // mixture[1].shape[-2:].numel())
    scores = []
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        if given and y is not None:
            mixture = _as_mixture(vae.p_z(y[rows]))
        logits, loc, scale = mixture
        standard = (z[rows].double().unsqueeze(-2) - loc) / scale
        log_prob = -0.5 * standard.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        scores.append((logits.unsqueeze(-1) + log_prob).logsumexp(-2))
    return torch.cat(scores)


def _as_mixture(prior: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights ``(*batch, K)``, means and scales ``(*batch, K, D)``, float64."""
    normal = normal_marginals(prior)
    if normal is not None:
        loc, scale = (parameter.double().unsqueeze(-2) for parameter in normal)
        return torch.zeros_like(loc[..., 0]), loc, scale
    if isinstance(prior, Mixture):
        normal = normal_marginals(prior.component_distribution)
        if normal is not None:
            return prior.mixture_distribution.logits.double(), *(p.double() for p in normal)
    raise Unavailable("the marginals of this prior are known for (mixtures of) normals only")


def log_sizes(labels: Tensor | None, count: int) -> float:
    """Log of the number of data (with the same label), averaged: the most that I_q(x; z) can be."""
    if labels is None:
        return math.log(count)
    sizes = labels.unique(return_counts=True)[1].double()
    return (sizes * sizes.log()).sum().item() / count


def level_kls(
    vae: VAE, posteriors: Sequence[Any], labels: Tensor | None, z: Tensor
) -> dict[str, list[float]]:
    """``E KL(q(z_l | x, z_>l) || p(z_l | z_>l))`` of each level, top first.

    Args:
        vae: the model.
        posteriors: of the data, block by block.
        labels: of the data, or None.
        z: draws of each datum, ``(n, draws, latent_dim)``.

    Raises:
        Unavailable: if prior and posterior are not chains of the same levels, top first, or a level
            has no density relative to the prior's.
    """
    if not getattr(vae.posterior, "scores", True):
        raise Unavailable("the posterior scores only its own draws, all levels at once")
    if not isinstance(posteriors[0], Chain):
        raise Unavailable("the posterior is no chain of levels")
    found, start = [], 0
    for q in posteriors:
        stop = start + q.batch_shape[0]
        p = vae.p_z(None if labels is None else labels[start:stop])
        if not isinstance(p, Chain):
            raise Unavailable("the prior is no chain of levels")
        if q.sizes != p.sizes or q.reverse:
            raise Unavailable("the posterior does not draw the levels of the prior, top first")
        if (reason := singular(q, p)) is not None:
            raise Unavailable(reason)
        draws = z[start:stop].transpose(0, 1)
        found.append((q.level_log_probs(draws) - p.level_log_probs(draws)).mean(0))
        start = stop
    return {"level_kls": torch.cat(found).double().mean(0).tolist()}


def level_units(
    vae: VAE, labels: Tensor | None, active: Sequence[int] | None
) -> dict[str, list[int]]:
    """The number of active units of each level of the prior, top first.

    Args:
        vae: the model.
        labels: of the data, or None.
        active: indices of the active units, None if unknown.

    Raises:
        Unavailable: if the prior is no chain of levels, or the active units are unknown.
    """
    p = vae.p_z(None if labels is None else labels[:1])
    if not isinstance(p, Chain):
        raise Unavailable("the prior is no chain of levels")
    if active is None:
        raise Unavailable("the active units are unknown")
    ends = itertools.accumulate(p.sizes, initial=0)
    counts = [sum(low <= u < high for u in active) for low, high in itertools.pairwise(ends)]
    return {"level_active_units": counts}
