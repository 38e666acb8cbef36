"""Log-likelihoods by quadrature over one- and two-dimensional z."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vaes.vae import VAE

__all__ = ["Quadrature"]


_CHUNK = 2**19  # numbers that quadrature scores at once


class Quadrature:
    """Any VAE with a latent size of 1 or 2: integrals over z by the trapezoid rule, in float64.

    Points are even in t, with z = mean + spread * sinh(t): dense where prior and posterior draw,
    and reaching far beyond. Steps are halved until no figure changes by more than the tolerance.
    With smooth networks (``tanh``) many more digits are exact then; networks with kinks (``relu``)
    need a much finer grid.

    >>> from pyro_vaes.exact import LinearGaussian, Quadrature
    >>> model = LinearGaussian(torch.tensor([[1.0], [2.0]]), torch.zeros(2), scale=0.5)
    >>> x = model.vae.sample(10)
    >>> torch.allclose(Quadrature(model.vae).log_prob(x).float(), model.log_prob(x), atol=1e-3)
    True

    Args:
        vae: the VAE, of which a copy is kept.
        tolerance: in nats.
        max_points: the largest grid.

    Raises:
        ValueError: from each method, for another latent size.
        RuntimeError: from each method, if the largest grid is too coarse.
    """

    def __init__(self, vae: VAE, tolerance: float = 1e-3, max_points: int = 2**20) -> None:
        self.vae = copy.deepcopy(vae).double().eval()
        self.tolerance, self.max_points = tolerance, max_points

    def log_joint(self, z: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Log p(x, z) of every z ``(m, d)`` with every datum ``(n, *event_shape)``, ``(m, n)``."""
        rows = z.unsqueeze(1)
        return self.vae.p_z(y).log_prob(rows) + self.vae.p_x(rows, y).log_prob(x.double())

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Log p(x), ``(n,)``."""
        return self._integrate(x, y)

    def true_posterior(self, z: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Log p(z | x) of every z ``(m, d)`` given every datum, ``(m, n)``."""
        return self.log_joint(z, x, y) - self.log_prob(x, y)

    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The ELBO in its form (1), ``(n,)``."""
        return self._integrate(x, y, lambda z, log_q: self.log_joint(z, x, y) - log_q)

    def gap(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """KL(q(z | x) || p(z | x)), ``(n,)``."""
        return self.log_prob(x, y) - self.elbo(x, y)

    def mutual_information(self, x: Tensor) -> Tensor:
        """I_q(x; z) over the data x, of a VAE without labels."""
        return self._integrate(x, None, lambda z, log_q: log_q - _aggregate(log_q)).mean()

    def marginal_kl(self, x: Tensor) -> Tensor:
        """KL(q(z) || p(z)) with q(z) over the data x, of a VAE without labels."""
        log_prior = self.vae.p_z().log_prob
        return self._integrate(
            x, None, lambda z, log_q: _aggregate(log_q) - log_prior(z).unsqueeze(-1)
        ).mean()

    @torch.no_grad()
    def _integrate(
        self, x: Tensor, y: Tensor | None, value: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Tensor:
        """E_q[value(z, log q(z | x))] of each datum, or log p(x) without a value."""
        prior, posterior = self.vae.p_z(y), self.vae.q_z(x.double(), y)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draws = [part.sample((1000,)).flatten(0, -2) for part in (prior, posterior)]
        places = torch.cat(draws)
        mean, spread, dim = places.mean(0), places.std(0), places.shape[-1]
        if dim > 2:
            raise ValueError(f"Expected a latent size of 1 or 2 for quadrature; got {dim}.")
        now, per_side = torch.tensor(math.inf), round(2 ** (14 / dim))
        while per_side**dim <= self.max_points:
            t = torch.linspace(-4, 4, per_side, dtype=places.dtype, device=places.device)
            t = t.unsqueeze(-1)
            axes, steps = mean + spread * t.sinh(), (spread * t.cosh() * (t[1] - t[0])).log()
            grid = torch.cartesian_prod(*axes.mT).reshape(-1, dim)
            log_dz = torch.cartesian_prod(*steps.mT).reshape(-1, dim).sum(-1, keepdim=True)
            before, sums = now, []
            size = max(1, _CHUNK // x.numel())
            for z, log_step in zip(grid.split(size), log_dz.split(size), strict=True):
                if value is None:
                    sums.append((self.log_joint(z, x, y) + log_step).logsumexp(0))
                else:
                    log_q = posterior.log_prob(z.unsqueeze(1))
                    mass = (log_q + log_step).exp()
                    sums.append(torch.where(mass > 0, mass * value(z, log_q), 0.0).sum(0))
            total = torch.stack(sums)
            now = total.logsumexp(0) if value is None else total.sum(0)
            if (now - before).abs().max() <= self.tolerance:
                return now
            per_side *= 2
        raise RuntimeError(
            f"Expected integrals that settle within {self.tolerance} nats on at most "
            f"{self.max_points} points; they have not. Allow more points, or a larger tolerance."
        )


def _aggregate(log_q: Tensor) -> Tensor:
    """Log q(z) from log q(z | x_n) in the last dimension, which is kept."""
    return log_q.logsumexp(-1, keepdim=True) - math.log(log_q.shape[-1])
