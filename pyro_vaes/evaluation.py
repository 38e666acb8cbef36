"""How good a VAE is on data it has not seen: bounds and likelihoods, each with its standard error.

One pass of S posterior draws for each datum gives everything: with log w = log p(x | z) + log p(z)
- log q(z | x), the mean of log w is the ELBO and the log of the mean of w is the importance-weighted
estimate of log p(x) (Burda et al. 2016), which lies above the ELBO and below log p(x) on average.

Draws come in blocks of fixed size, each with a seed of its own: no figure depends on how the work is
cut into chunks. Evaluation changes nothing: not the parameters, not the state of any generator.
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

from pyro_vaes.data import as_split
from pyro_vaes.networks import positive
from pyro_vaes.vae import VAE

__all__ = ["Evaluation", "evaluate", "log_marginal"]

# A block is the unit in which noise is drawn: (samples, data). It never changes with chunk_size.
_BLOCK_SAMPLES = 128
_BLOCK_DATA = 64


@dataclasses.dataclass(frozen=True)
class LogWeights:
    """The terms of log w for one block of draws, each ``(samples, data)`` in nats, float64."""

    rows: slice
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def log_weight(self) -> Tensor:
        return self.log_likelihood + self.log_prior - self.log_posterior


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


def importance_draws(
    vae: VAE, x: Tensor, y: Tensor | None, num_samples: int, seed: int, chunk_size: int
) -> Iterator[LogWeights]:
    """Draws S posterior samples for each datum and scores them, block by block.

    The encoder runs once for each datum and an unconditional prior is made once. Call inside
    :func:`untouched`.

    Args:
        vae: the model.
        x: ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.
        num_samples: S.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once (rounded to whole rows of a block).

    Yields:
        The blocks, all samples of one set of rows before the next.
    """
    prior = None if vae.prior_is_conditional else vae.p_z()
    for row in range(0, len(x), _BLOCK_DATA):
        rows = slice(row, min(row + _BLOCK_DATA, len(x)))
        x_rows, y_rows = x[rows], None if y is None else y[rows]
        posterior = vae.q_z(x_rows, y_rows)
        prior_rows = vae.p_z(y_rows) if prior is None else prior
        step = max(1, chunk_size // len(x_rows))
        for first in range(0, num_samples, _BLOCK_SAMPLES):
            torch.manual_seed(_block_seed(seed, row, first))
            # A block is always drawn whole, so that S = 200 begins with the draws of S = 100.
            z = posterior.rsample((_BLOCK_SAMPLES,))
            log_q = posterior.log_prob(z)
            count = min(_BLOCK_SAMPLES, num_samples - first)
            z, log_q = z[:count], log_q[:count]
            log_x, log_z = [], []
            for start in range(0, count, step):
                part = z[start : start + step]
                log_x.append(vae.p_x(part, y_rows).log_prob(x_rows).double())
                log_z.append(prior_rows.log_prob(part).double())
            yield LogWeights(rows, torch.cat(log_x), torch.cat(log_z), log_q.double())


def _block_seed(seed: int, row: int, first: int) -> int:
    # Blocks of one evaluation, and evaluations with neighbouring seeds, must not share draws.
    place = f"{int(seed)}/{row}/{first}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=7).digest(), "big")


@dataclasses.dataclass
class Bounds:
    """Sums over the draws of each datum, from which ELBO, its terms and log p(x) follow."""

    log_mean_weight: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each datum, the mean of log w, in nats."""
        return self.log_likelihood + self.kl.neg()

    @property
    def kl(self) -> Tensor:
        """The KL of each datum, the mean of log q(z | x) - log p(z), in nats."""
        return self.log_posterior - self.log_prior


def bounds(
    vae: VAE, x: Tensor, y: Tensor | None, num_samples: int, seed: int, chunk_size: int
) -> Bounds:
    """Averages the draws of :func:`importance_draws` for each datum, in memory that ignores S."""
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    sums = [torch.zeros_like(total) for _ in range(3)]
    for block in importance_draws(vae, x, y, num_samples, seed, chunk_size):
        rows = block.rows
        total[rows] = torch.logaddexp(total[rows], block.log_weight.logsumexp(0))
        for sum_, term in zip(
            sums, (block.log_likelihood, block.log_prior, block.log_posterior), strict=True
        ):
            sum_[rows] += term.sum(0)
    return Bounds(total - math.log(num_samples), *(sum_ / num_samples for sum_ in sums))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of a VAE on a data set, in nats for each datum, with standard errors over the data.

    Attributes:
        num_data: number of data.
        num_samples: posterior draws for each datum.
        nll: minus the importance-weighted estimate of log p(x).
        nll_se: its standard error.
        elbo: the evidence lower bound.
        elbo_se: its standard error.
        reconstruction: E_q[log p(x | z)].
        reconstruction_se: its standard error.
        kl: E_q[log q(z | x) - log p(z)].
        kl_se: its standard error.
        log_marginal: the estimate of log p(x) for each datum, ``(num_data,)``.
    """

    num_data: int
    num_samples: int
    nll: float
    nll_se: float
    elbo: float
    elbo_se: float
    reconstruction: float
    reconstruction_se: float
    kl: float
    kl_se: float
    log_marginal: Tensor = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The scalar figures, ready for JSON."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.name != "log_marginal"}

    def __str__(self) -> str:
        rows = [
            ("-log p(x), importance weighted", self.nll, self.nll_se),
            ("-ELBO", -self.elbo, self.elbo_se),
            ("  reconstruction, -E[log p(x|z)]", -self.reconstruction, self.reconstruction_se),
            ("  KL(q(z|x) || p(z))", self.kl, self.kl_se),
        ]
        lines = [f"{self.num_data} data, {self.num_samples} samples each; nats per datum"]
        lines += [f"{name:<34}{value:>9.2f} +- {error:.2f}" for name, value, error in rows]
        return "\n".join(lines)


def evaluate(
    vae: VAE,
    data: Any,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    chunk_size: int = 8192,
) -> Evaluation:
    """Evaluates a VAE.

    Args:
        vae: the model.
        data: a split, tensor, array, ``Dataset`` or ``DataLoader``.
        num_samples: posterior draws S for each datum; exactly as many decoder evaluations.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once; bounds the memory and changes no figure.

    Returns:
        The figures, in nats.
    """
    positive(num_samples=num_samples, chunk_size=chunk_size)
    x, y = _on_device(vae, data)
    with untouched(vae):
        result = bounds(vae, x, y, num_samples, seed, chunk_size)
    return Evaluation(
        num_data=len(x),
        num_samples=num_samples,
        **_mean_and_error("nll", -result.log_mean_weight),
        **_mean_and_error("elbo", result.elbo),
        **_mean_and_error("reconstruction", result.log_likelihood),
        **_mean_and_error("kl", result.kl),
        log_marginal=result.log_mean_weight,
    )


def log_marginal(
    vae: VAE,
    x: Any,
    num_samples: int = 1000,
    *,
    y: Tensor | None = None,
    seed: int = 0,
    chunk_size: int = 8192,
) -> Tensor:
    """The importance-weighted estimate of log p(x), or of log p(x | y), for each datum.

    Burda et al., "Importance weighted autoencoders" (2016), equation 8.

    Args:
        vae: the model.
        x: data, as for :func:`evaluate`.
        num_samples: posterior draws S for each datum.
        y: labels ``(n,)``, if ``x`` does not bring them.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once; changes no figure.

    Returns:
        ``(n,)`` in nats, float64.
    """
    positive(num_samples=num_samples, chunk_size=chunk_size)
    x, labels = _on_device(vae, x)
    with untouched(vae):
        labels = labels if y is None else y.to(x.device)
        return bounds(vae, x, labels, num_samples, seed, chunk_size).log_mean_weight


def _on_device(vae: VAE, data: Any) -> tuple[Tensor, Tensor | None]:
    # A split that is drawn anew for each training batch is judged at one fixed draw.
    split = as_split(data).frozen()
    x = split.x.to(vae.device)
    if x.is_floating_point():
        x = x.to(vae.dtype)
    return x, None if split.y is None else split.y.to(vae.device)


def _mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    """Mean over the data and its standard error; one datum has none."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {name: values.mean().item(), f"{name}_se": error}
