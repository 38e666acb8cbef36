"""Models whose exact answers are known, to hold every estimate against.

================ ========================== =====================================
model            latent variable            exact by
================ ========================== =====================================
`LinearGaussian` normal, of any size        algebra (probabilistic PCA)
`Discrete`       one of K states            enumeration
`Quadrature`     of any VAE, size 1 or 2    integration on a grid that is refined
================ ========================== =====================================

Each has a ``.vae`` of ordinary parts, at which any estimator can be pointed, and knows

- ``log_prob``: the evidence log p(x), and ``true_posterior``, p(z | x);
- the ELBO, and ``gap``, by which it misses the evidence: KL(q(z | x) || p(z | x));
- ``mutual_information`` I_q(x; z) and ``marginal_kl`` KL(q(z) || p(z)), whose sum is the average
  of KL(q(z | x) || p(z)), with q(z) the aggregated posterior.

All in nats. Equation numbers are those of the assignment.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.distributions import VampDistribution, diagonal_normal
from pyro_vaes.likelihoods import CategoricalLikelihood, NormalLikelihood
from pyro_vaes.posteriors import NormalPosterior
from pyro_vaes.priors import NormalPrior
from pyro_vaes.spec import Described
from pyro_vaes.vae import VAE

__all__ = [
    "Discrete",
    "Identity",
    "LinearGaussian",
    "LinearPosterior",
    "Quadrature",
    "diagonal_posterior",
    "full_posterior",
]

# --- linear and Gaussian ------------------------------------------------------------------------


class Identity(Described):
    """The network that does nothing: beneath it, the heads of the parts are linear in their input."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = in_features

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class LinearPosterior(Described):
    """The normal q(z | x) = N(A x + c, S) with a full covariance; see :func:`full_posterior`."""

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = latent_dim, (data_dim,)
        self.mean = nn.Linear(data_dim, latent_dim)
        # S = L L', with the logarithm of L's diagonal on the diagonal: free to be trained.
        self.factor = nn.Parameter(torch.zeros(latent_dim, latent_dim))

    def forward(self, x: Tensor) -> Any:
        scale_tril = self.factor.tril(-1) + self.factor.diagonal().exp().diag()
        return dist.MultivariateNormal(self.mean(x), scale_tril=scale_tril)


@torch.no_grad()
def full_posterior(weight: Tensor, bias: Tensor, covariance: Tensor) -> LinearPosterior:
    """The posterior N(A x + c, S), from A ``(d, D)``, c ``(d,)`` and S ``(d, d)``."""
    posterior = LinearPosterior(weight.shape[1], weight.shape[0]).to(weight.dtype)
    posterior.mean.weight.copy_(weight)
    posterior.mean.bias.copy_(bias)
    factor = torch.linalg.cholesky(covariance)
    posterior.factor.copy_(factor.tril(-1) + factor.diagonal().log().diag())
    return posterior


@torch.no_grad()
def diagonal_posterior(weight: Tensor, bias: Tensor, scale: Tensor) -> NormalPosterior:
    """The library's own N(A x + c, diag(s^2)), from A ``(d, D)``, c ``(d,)`` and s ``(d,)``."""
    posterior = NormalPosterior(Identity(weight.shape[1]), len(weight)).to(weight.dtype)
    posterior.head.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
    posterior.head.bias.copy_(torch.cat([bias, 2 * scale.log()]))
    return posterior


class LinearGaussian:
    """Probabilistic PCA: z ~ N(0, I), x = W z + b + noise. Everything is normal, so all is algebra.

    Tipping and Bishop, "Probabilistic principal component analysis" (1999):

        p(x)     = N(b, C)                               with C = W W' + Psi
        p(z | x) = N(P^-1 W' Psi^-1 (x - b), P^-1)       with P = I + W' Psi^-1 W

    where the covariance Psi of the noise is sigma^2 I. The figures are computed from the parameters
    of ``.vae``, whatever values training gives them (a Psi that is diagonal, say: factor analysis),
    and can be differentiated.

    Args:
        weight: W, ``(D, d)``.
        bias: b, ``(D,)``.
        scale: sigma.
        posterior: a part that returns normals, diagonal or full; p(z | x) itself if None.

    Raises:
        ValueError: for shapes that do not fit or a scale that is not positive.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, scale: float, posterior: nn.Module | None = None
    ) -> None:
        if weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(
                "Expected weight of shape (D, d) and bias of shape (D,); "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}."
            )
        if not 0 < scale < math.inf:
            raise ValueError(f"Expected scale above 0; got {scale}.")
        data_dim, latent_dim = weight.shape
        floor = min(1e-3, scale / 2)
        self.likelihood = NormalLikelihood(
            Identity(latent_dim), (data_dim,), initial_scale=scale, min_scale=floor
        ).to(weight.dtype)
        self._head = cast(nn.Linear, self.likelihood.head)
        with torch.no_grad():
            self._head.weight.copy_(weight)
            self._head.bias.copy_(bias)
            self.likelihood.log_scale.fill_(math.log(scale - floor))
            if posterior is None:
                at_zero = self.true_posterior(bias.new_zeros(data_dim))
                posterior = full_posterior(
                    self._to_mean(), at_zero.mean, at_zero.covariance_matrix
                )
        self.vae = VAE(NormalPrior(latent_dim).to(weight.dtype), posterior, self.likelihood)

    @classmethod
    def random(
        cls, data_dim: int, latent_dim: int, scale: float = 0.5, seed: int = 0
    ) -> LinearGaussian:
        """A model with standard normal W and b, float64, and its exact posterior."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(data_dim, latent_dim + 1, generator=generator, dtype=torch.float64)
        return cls(draw[:, 1:], draw[:, 0], scale)

    def with_posterior(self, posterior: nn.Module) -> LinearGaussian:
        """The same model beside another posterior."""
        new = copy.copy(self)
        new.vae = VAE(self.vae.prior, posterior, self.likelihood)
        return new

    def mean_field(self) -> NormalPosterior:
        """The best diagonal posterior: the true mean, and the variances 1 / diag(P)."""
        at_zero = self.true_posterior(torch.zeros_like(self.bias))
        return diagonal_posterior(self._to_mean(), at_zero.mean, self.precision.diagonal().rsqrt())

    @property
    def weight(self) -> Tensor:
        """W, ``(D, d)``."""
        return self._head.weight

    @property
    def bias(self) -> Tensor:
        """The mean b of x, ``(D,)``."""
        return self._head.bias

    @property
    def noise(self) -> Tensor:
        """The diagonal of Psi, ``(D,)``."""
        return (self.likelihood.min_scale + self.likelihood.log_scale.exp()).square()

    @property
    def covariance(self) -> Tensor:
        """That of x, C = W W' + Psi, ``(D, D)``."""
        return self.weight @ self.weight.mT + self.noise.diag()

    @property
    def precision(self) -> Tensor:
        """That of z given x, P = I + W' Psi^-1 W, ``(d, d)``."""
        information = self.weight.mT @ (self.weight / self.noise.unsqueeze(-1))
        return information + torch.eye(len(information)).to(information)

    def _to_mean(self) -> Tensor:
        """P^-1 W' Psi^-1, which takes x - b to the mean of p(z | x), ``(d, D)``."""
        return torch.linalg.solve(self.precision, self.weight.mT / self.noise)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), ``(n,)``."""
        return dist.MultivariateNormal(self.bias, self.covariance).log_prob(x)

    def true_posterior(self, x: Tensor) -> Any:
        """The distribution p(z | x)."""
        mean = (x - self.bias) @ self._to_mean().mT
        return dist.MultivariateNormal(mean, precision_matrix=self.precision)

    def elbo(self, x: Tensor) -> Tensor:
        """The ELBO in its form (3), both terms in closed form, ``(n,)``."""
        mean, covariance = _moments(self.vae.q_z(x))
        at_mean = dist.Normal(mean @ self.weight.mT + self.bias, self.noise.sqrt()).log_prob(x)
        information = self.precision - torch.eye(len(self.precision)).to(mean)
        reconstruction = at_mean.sum(-1) - 0.5 * (information * covariance).sum((-2, -1))
        return reconstruction - _kl_to_standard(mean, covariance)

    def gap(self, x: Tensor) -> Tensor:
        """KL(q(z | x) || p(z | x)), ``(n,)``."""
        q = dist.MultivariateNormal(*_moments(self.vae.q_z(x)))
        return torch.distributions.kl_divergence(q, self.true_posterior(x))

    def aggregated(self, x: Tensor | None = None) -> Any:
        """The aggregated posterior q(z).

        Args:
            x: the data, ``(n, D)``, over which q(z) is a mixture of n normals. If None, all that the
                model can generate: then q(z) = N(A b + c, A C A' + S), for a posterior N(A x + c, S).
        """
        if x is not None:
            return VampDistribution(self.vae.q_z(x))
        weight, bias, covariance = self._linear()
        return dist.MultivariateNormal(
            weight @ self.bias + bias, weight @ self.covariance @ weight.mT + covariance
        )

    def marginal_kl(self) -> Tensor:
        """KL(q(z) || p(z)) over all that the model can generate."""
        q = self.aggregated()
        return _kl_to_standard(q.mean, q.covariance_matrix)

    def mutual_information(self) -> Tensor:
        """I_q(x; z) = H(q(z)) - H(q(z | x)) over all that the model can generate."""
        _, _, within = self._linear()
        return 0.5 * (self.aggregated().covariance_matrix.logdet() - within.logdet())

    def _linear(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, c and S of a posterior N(A x + c, S), read off its answers at 0 and the unit vectors."""
        data_dim = len(self.bias)
        unit = torch.eye(data_dim).to(self.bias)
        points = torch.cat([torch.zeros_like(unit[:1]), unit, 1 - 2 * unit])
        mean, covariance = _moments(self.vae.q_z(points))
        bias, weight = mean[0], (mean[1 : data_dim + 1] - mean[0]).mT
        if not (
            torch.allclose(mean, points @ weight.mT + bias, rtol=1e-4, atol=1e-5)
            and torch.allclose(covariance, covariance[:1], rtol=1e-4, atol=1e-5)
        ):
            raise ValueError(
                "Expected a posterior N(A x + c, S) for the closed form of q(z); got one that is "
                "not linear in x. Quadrature takes any."
            )
        return weight, bias, covariance[0]


def _moments(q: Any) -> tuple[Tensor, Tensor]:
    """Mean ``(n, d)`` and covariance ``(n, d, d)`` of a normal, diagonal or full."""
    normal = diagonal_normal(q)
    if normal is not None:
        return normal[0], normal[1].square().diag_embed()
    if isinstance(q, torch.distributions.MultivariateNormal):
        return q.loc, q.covariance_matrix
    raise ValueError(f"Expected a posterior that returns normals; got {type(q).__name__}.")


def _kl_to_standard(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(mean, covariance) || N(0, I))."""
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * (trace + mean.square().sum(-1) - mean.shape[-1] - covariance.logdet())


# --- discrete -----------------------------------------------------------------------------------
