"""Whether the latent code is alive: the aggregated posterior, active units, generated data.

The aggregated posterior q(z) = 1/N sum_n q(z | x_n) is the exact mixture over all the data it is
asked about. In a conditional model everything is said given the label: q(z | y) is the mixture over
the data with that label, and the split of the KL reads

    E KL(q(z | x, y) || p(z | y)) = I_q(x; z | y) + E_y KL(q(z | y) || p(z | y)),

which without labels is Hoffman and Johnson, "ELBO surgery" (2016).

Figures come as one value for each datum, whose mean is the quantity: their spread over the data
gives its standard error, for a fixed encoder and to first order in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from pyro_vaes.distributions import (
    Mixture,
    diagonal_normal,
    diagonal_normal_log_prob,
    normal_marginals,
)
from pyro_vaes.importance import BLOCK_SAMPLES, seed_of
from pyro_vaes.vae import VAE

__all__ = [
    "AggregatedPosterior",
    "Unavailable",
    "aggregate_plan",
    "class_accuracy",
    "classifier",
    "closed_forms",
    "generate",
    "latent_mmd2",
    "log_sizes",
    "mmd2_terms",
    "prior_marginals",
    "slope",
    "unit_variances",
]

# Numbers computed for the aggregated posterior of normals, and pairs (draw, datum) for any other,
# which may cost a pass of a flow's network for each: seconds on one core.
_NORMAL_BUDGET = 3e7
_PAIR_BUDGET = 2e5
_MIN_DRAWS = 500

# Numbers in a chunk of the aggregated posterior for each decoder evaluation in a chunk: far fewer
# than a decoder needs, since what fits into a cache is done twice as fast.
_NUMBERS_PER_DECODING = 16

OWN_DRAWS_ONLY = "the posterior scores its own draws only, so q(z) cannot be had"

_MMD_DATA = 1000
_CLASSIFIER_ROWS = 10_000


class Unavailable(Exception):
    """A quantity that cannot be had, with the reason."""


def closed_forms(posterior: Any, prior: Any, count: int) -> dict[str, Tensor]:
    """Mean and entropy of q and its KL to the prior for each datum, where a closed form is known.

    Args:
        posterior: batch shape ``(count,)``.
        prior: batch shape ``()`` or ``(count,)``.
        count: number of data.

    Returns:
        ``closed_mean`` ``(count, D)``, ``closed_entropy`` and ``closed_kl``, each ``(count,)``, in
        nats, as far as they are known.
    """
    forms: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
        "mean": (lambda: posterior.mean, (count, *posterior.event_shape)),
        "entropy": (posterior.entropy, (count,)),
        "kl": (lambda: torch.distributions.kl_divergence(posterior, prior), (count,)),
    }
    figures = {}
    for name, (form, shape) in forms.items():
        with suppress(NotImplementedError):
            figures[f"closed_{name}"] = form().double().expand(shape)
    return figures


def aggregate_plan(
    posterior: Any, num_data: int, num_samples: int, seed: int
) -> tuple[int, Tensor]:
    """How many draws of each of which data stand for q(z) where it is scored against itself.

    The mixture is over all data whatever the plan: only the outer expectation is sampled.

    Returns:
        Draws of each datum, and the indices of the data: all, or a random part of very many.
    """
    per_datum = min(num_samples, BLOCK_SAMPLES)
    if diagonal_normal(posterior) is not None:
        budget = _NORMAL_BUDGET / (num_data * math.prod(posterior.event_shape))
    else:
        budget = _PAIR_BUDGET / num_data
    total = max(_MIN_DRAWS, int(budget))
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
        self._labels = labels
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
        else:  # May be as dear as a decoder's.
            size = self._chunk_size // max(self._sizes)
        try:
            scores = [self._components(*part).logsumexp(-1) for part in _chunks(z, y, size)]
        except (NotImplementedError, KeyError) as error:  # what flows without inverse raise
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
            # Spelled out to full shape: an autoregressive inverse cannot broadcast its context.
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
    """Parameters of blocks of distributions as one, None if those of a block are not known."""
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


def slope(values: Tensor, noise: Tensor) -> float:
    """The slope of the regression of values on noise: how much of it they have in them.

    Args:
        values: ``(n,)``.
        noise: ``(n,)``; where it is nothing but rounding, the slope is zero.
    """
    centred = noise - noise.mean()
    square = centred.square().sum().item()
    if not square > torch.finfo(noise.dtype).eps * (1 + values.square().sum().item()):
        return 0.0
    return (values * centred).sum().item() / square


def log_sizes(labels: Tensor | None, count: int) -> float:
    """Log of the number of data (with the same label), averaged: the most that I_q(x; z) can be."""
    if labels is None:
        return math.log(count)
    sizes = labels.unique(return_counts=True)[1].double()
    return (sizes * sizes.log()).sum().item() / count


def unit_variances(mean: Tensor, noise: Tensor | None, labels: Tensor | None) -> Tensor:
    """The variance over the data of each unit's posterior mean.

    Burda et al., "Importance weighted autoencoders" (2016), section 5.2: a unit is active if it
    exceeds 0.01. In a conditional model the variance is within labels: what the label alone tells
    is no information about x.

    Args:
        mean: posterior means ``(n, D)``, or their estimates.
        noise: variances of those estimates ``(n, D)``, which would otherwise count as activity;
            None for exact means.
        labels: ``(n,)`` or None.

    Returns:
        ``(D,)``.

    Raises:
        Unavailable: for too few data or draws.
    """
    groups = torch.zeros(len(mean), device=mean.device).long() if labels is None else labels
    _, groups = groups.unique(return_inverse=True)
    counts = groups.bincount()
    freedom = len(mean) - len(counts)
    if freedom < 1:
        raise Unavailable("a variance needs two data (with the same label, if there are labels)")
    sums = mean.new_zeros(len(counts), mean.shape[-1]).index_add(0, groups, mean)
    centred = mean - (sums / counts.unsqueeze(-1))[groups]
    variance = centred.square().sum(0) / freedom
    if noise is not None:
        if not bool(noise.isfinite().all()):
            raise Unavailable(
                "the posterior's mean is known from draws only, of which there is one"
            )
        shares = (1 - 1 / counts)[groups].unsqueeze(-1)
        variance = variance - (noise * shares).sum(0) / freedom
    return variance


def latent_mmd2(vae: VAE, z: Tensor, y: Tensor | None, seed: int) -> tuple[float, float]:
    """The squared MMD between aggregated posterior and prior, and its standard error.

    The unbiased estimator (:func:`mmd2_terms`) from one posterior draw for each datum, a thousand
    data at most, and as many draws of the prior; given labels, its mean over them.

    Args:
        vae: the model.
        z: one draw for each datum, ``(n, D)``.
        y: labels ``(n,)`` or None.
        seed: seed of the prior's draws.

    Raises:
        Unavailable: without two data (with the same label).
    """
    generator = torch.Generator().manual_seed(seed_of(int(seed), "mmd"))
    some = torch.randperm(len(z), generator=generator)[:_MMD_DATA].sort().values.to(z.device)
    z, y = z[some], None if y is None else y[some]
    torch.manual_seed(seed_of(int(seed), "prior"))
    groups = [torch.arange(len(z))] if y is None else [(y == i).nonzero()[:, 0] for i in y.unique()]
    values, weights, errors = [], [], []
    for index in groups:
        if len(index) < 2:
            continue
        prior = vae.p_z(None if y is None else y[index])
        other = prior.sample(() if prior.batch_shape else (len(index),))
        terms = mmd2_terms(z[index], other)
        values.append(terms.mean().item())
        # The variance of a U-statistic of order two (Hoeffding 1948), first order.
        errors.append(2 * terms.std().item() / math.sqrt(len(terms)))
        weights.append(len(index))
    if not values:
        raise Unavailable("MMD needs two data (with the same label, if there are labels)")
    total = sum(weights)
    mean = sum(w * value for w, value in zip(weights, values, strict=True)) / total
    variance = sum((w / total * error) ** 2 for w, error in zip(weights, errors, strict=True))
    return mean, math.sqrt(variance)


def mmd2_terms(x: Tensor, y: Tensor) -> Tensor:
    """The terms whose mean is ``divergences.mmd2(x, y, paired=True)``, one for each pair of rows.

    Their spread tells the standard error, which that function, made for training, does not.

    Args:
        x: ``(n, D)``.
        y: ``(n, D)``.

    Returns:
        ``(n,)``, float64.
    """
    width = 2.0 * x.shape[-1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a.double(), b.double()).square()
        return (width / (width + squares)).fill_diagonal_(0)

    across = kernel(x, y)
    pairs = kernel(x, x) + kernel(y, y) - across - across.mT
    return pairs.sum(-1) / (len(x) - 1)


def classifier(x: Tensor, y: Tensor) -> Any:
    """A support vector classifier of the flattened data, of ten thousand rows at most."""
    from sklearn.svm import SVC

    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(x), generator=generator)[:_CLASSIFIER_ROWS].sort().values
    if len(y[rows].unique()) < 2:
        raise Unavailable("a classifier needs training data with at least two labels")
    return SVC().fit(x[rows].flatten(1).cpu().numpy(), y[rows].cpu().numpy())


def generate(vae: VAE, y: Tensor, seed: int) -> Tensor:
    """One datum x ~ p(x | y) for each label, for ten thousand of them at most."""
    made = []
    for place, labels in enumerate(y[:_CLASSIFIER_ROWS].split(BLOCK_SAMPLES)):
        torch.manual_seed(seed_of(int(seed), "generate", place))
        made.append(vae.sample(len(labels), labels))
    return torch.cat(made)


def class_accuracy(model: Any, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The share of data that a classifier gives their label, with its standard error."""
    right = model.predict(x.flatten(1).cpu().numpy()) == y.cpu().numpy()
    share = float(right.mean())
    return share, math.sqrt(share * (1 - share) / max(1, len(right) - 1))
