"""Models with exact answers, to check estimates against.

- :class:`LinearGaussian`: probabilistic PCA, exact by algebra.
- :class:`~pyro_vaes.exact.discrete.Discrete`: finitely many z and x, exact by enumeration.
- :class:`~pyro_vaes.exact.quadrature.Quadrature`: any VAE with a latent size of 1 or 2, exact by
  integration on a grid.

Each has a ``.vae`` for any estimator, and computes the evidence log p(x) (``log_prob``), the true
posterior p(z | x), the ELBO, its ``gap`` KL(q(z | x) || p(z | x)) to the evidence, and both parts
of the average KL(q(z | x) || p(z)): the mutual information I_q(x; z) and the marginal
KL(q(z) || p(z)), with q(z) the aggregated posterior. All in nats. Numbers in parentheses are the
equations of the course.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.core.looking import diagonal_normal
from pyro_vaes.distributions.mixtures import VampDistribution
from pyro_vaes.parts.likelihoods import NormalLikelihood
from pyro_vaes.parts.posteriors import NormalPosterior
from pyro_vaes.parts.priors import NormalPrior
from pyro_vaes.vae import VAE

__all__ = ["LinearGaussian", "LinearPosterior", "diagonal_posterior"]


class Identity(Described):
    """The identity network, with which a part's head is linear in its input.

    >>> from pyro_vaes.exact import Identity
    >>> pv.NormalPosterior(Identity(4), latent_dim=2).head
    Linear(in_features=4, out_features=4, bias=True)
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = in_features

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class LinearPosterior(Described):
    """The normal q(z | x) = N(A x + c, L L') with a full covariance.

    >>> from pyro_vaes.exact import LinearPosterior
    >>> posterior = LinearPosterior(torch.ones(2, 4), torch.zeros(2), torch.eye(2))
    >>> posterior(torch.ones(1, 4)).mean.tolist()
    [[4.0, 4.0]]

    Args:
        weight: A, ``(d, D)``.
        bias: c, ``(d,)``.
        scale_tril: L, ``(d, d)``, lower triangular with a positive diagonal.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = weight.shape[0], (weight.shape[1],)
        # Contiguous, as after loading: another layout rounds differently.
        self.weight = nn.Parameter(weight.detach().contiguous().clone())
        self.bias = nn.Parameter(bias.detach().contiguous().clone())
        # With logarithms on its diagonal, so that it is unconstrained in training.
        self.factor = nn.Parameter(scale_tril.tril(-1) + scale_tril.diagonal().log().diag())

    def forward(self, x: Tensor) -> Any:
        scale_tril = self.factor.tril(-1) + self.factor.diagonal().exp().diag()
        mean = x.to(self.weight.dtype) @ self.weight.mT + self.bias
        return dist.MultivariateNormal(mean, scale_tril=scale_tril)


def diagonal_posterior(weight: Tensor, bias: Tensor, scale: Tensor) -> NormalPosterior:
    """The library's own N(A x + c, diag(s)^2), from A ``(d, D)``, c ``(d,)`` and s ``(d,)``.

    >>> from pyro_vaes.exact import diagonal_posterior
    >>> posterior = diagonal_posterior(torch.ones(2, 4), torch.zeros(2), torch.ones(2))
    >>> posterior(torch.ones(1, 4)).mean.tolist()
    [[4.0, 4.0]]
    """
    posterior = NormalPosterior(Identity(weight.shape[1]), len(weight)).to(weight.dtype)
    weights, biases = (weight, torch.zeros_like(weight)), (bias, 2 * scale.log())
    _fill(posterior.head, torch.cat(weights), torch.cat(biases))
    return posterior


class LinearGaussian:
    """Probabilistic PCA: z ~ N(0, I) and x = W z + b + noise; all is normal, so all is algebra.

    Tipping and Bishop, "Probabilistic principal component analysis" (1999), where the covariance
    Psi of the noise is sigma^2 I:

        p(x)     = N(b, W W' + Psi)
        p(z | x) = N(P^-1 W' Psi^-1 (x - b), P^-1),  P = I + W' Psi^-1 W

    Starts with p(z | x) as its posterior. Everything is computed from the current parameters: it
    stays exact while ``.vae`` is trained, and can be differentiated.

    >>> from pyro_vaes.exact import LinearGaussian
    >>> model = LinearGaussian(torch.tensor([[1.0], [2.0]]), torch.zeros(2), scale=0.5)
    >>> x = model.vae.sample(10)
    >>> torch.allclose(model.elbo(x), model.log_prob(x), atol=1e-4)
    True

    Args:
        weight: W, ``(D, d)``.
        bias: b, ``(D,)``.
        scale: sigma.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        (data_dim, latent_dim), floor = weight.shape, min(1e-3, scale / 2)
        self.likelihood = NormalLikelihood(
            Identity(latent_dim), (data_dim,), initial_scale=scale, min_scale=floor
        ).to(weight.dtype)
        _fill(self.likelihood.head, weight, bias)
        with torch.no_grad():
            self.likelihood.log_scale.fill_(math.log(scale - floor) / NormalLikelihood.PACE)
            to_mean, offset, covariance = _linear(self.true_posterior, bias)
        posterior = LinearPosterior(to_mean, offset, torch.linalg.cholesky(covariance))
        self.vae = VAE(NormalPrior(latent_dim).to(weight.dtype), posterior, self.likelihood)

    def with_posterior(self, posterior: nn.Module) -> LinearGaussian:
        """The same model with another posterior that returns normals, diagonal or full."""
        new = copy.copy(self)
        new.vae = VAE(self.vae.prior, posterior, self.likelihood)
        return new

    @torch.no_grad()
    def mean_field(self) -> NormalPosterior:
        """The best diagonal posterior: the true mean, and variances 1 / diag(P)."""
        to_mean, offset, covariance = _linear(self.true_posterior, self.theta[1])
        return diagonal_posterior(to_mean, offset, covariance.inverse().diagonal().rsqrt())

    @property
    def theta(self) -> tuple[Tensor, Tensor, Tensor]:
        """W ``(D, d)``, b ``(D,)`` and the diagonal of Psi ``(D,)``."""
        head = cast(nn.Linear, self.likelihood.head)
        center, spread = self.likelihood.units
        weight, bias = spread.unsqueeze(-1) * head.weight, center + spread * head.bias
        return weight, bias, self.likelihood.scale.square()

    @property
    def marginal(self) -> Any:
        """The distribution p(x)."""
        w, b, psi = self.theta
        return dist.MultivariateNormal(b, w @ w.mT + psi.diag())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), ``(n,)``."""
        return self.marginal.log_prob(x)

    def true_posterior(self, x: Tensor) -> Any:
        """The distribution p(z | x)."""
        w, b, psi = self.theta
        precision = torch.eye(w.shape[1]).to(w) + w.mT / psi @ w
        to_mean = torch.linalg.solve(precision, w.mT / psi)
        return dist.MultivariateNormal((x - b) @ to_mean.mT, precision_matrix=precision)

    def elbo(self, x: Tensor) -> Tensor:
        """The ELBO ``(n,)``, both terms of (3) in closed form."""
        w, b, psi = self.theta
        mean, covariance = _moments(self.vae.q_z(x))
        at_mean = dist.Normal(mean @ w.mT + b, psi.sqrt()).log_prob(x).sum(-1)
        spread = 0.5 * (w.mT / psi @ w * covariance).sum((-2, -1))
        return at_mean - spread - _kl_to_standard(mean, covariance)

    def gap(self, x: Tensor) -> Tensor:
        """KL(q(z | x) || p(z | x)), ``(n,)``."""
        q = dist.MultivariateNormal(*_moments(self.vae.q_z(x)))
        return torch.distributions.kl_divergence(q, self.true_posterior(x))

    def aggregated(self, x: Tensor | None = None) -> Any:
        """The aggregated posterior q(z) of the data x: a mixture of one normal for each.

        Without data that of all x ~ p(x), for a posterior N(A x + c, S): the normal
        N(A b + c, A (W W' + Psi) A' + S).
        """
        if x is not None:
            return VampDistribution(self.vae.q_z(x))
        p = self.marginal
        to_mean, offset, within = _linear(self.vae.q_z, p.mean)
        between = to_mean @ p.covariance_matrix @ to_mean.mT
        return dist.MultivariateNormal(to_mean @ p.mean + offset, between + within)

    def marginal_kl(self) -> Tensor:
        """KL(q(z) || p(z)) over all x ~ p(x)."""
        q = self.aggregated()
        return _kl_to_standard(q.mean, q.covariance_matrix)

    def mutual_information(self) -> Tensor:
        """I_q(x; z) = H(q(z)) - H(q(z | x)) over all x ~ p(x)."""
        _, _, within = _linear(self.vae.q_z, self.marginal.mean)
        return 0.5 * (self.aggregated().covariance_matrix.logdet() - within.logdet())


def _moments(q: Any) -> tuple[Tensor, Tensor]:
    """Mean ``(n, d)`` and covariance ``(n, d, d)`` of a normal, diagonal or full."""
    normal = diagonal_normal(q)
    if normal is not None:
        return normal[0], normal[1].square().diag_embed()
    if isinstance(q, torch.distributions.MultivariateNormal):
        return q.mean, q.covariance_matrix
    raise ValueError(f"Expected a posterior that returns normals; got {type(q).__name__}.")


def _kl_to_standard(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(mean, covariance) || N(0, I))."""
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * (trace + mean.square().sum(-1) - mean.shape[-1] - covariance.logdet())


def _linear(posterior: Callable[[Tensor], Any], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, c and S of N(A x + c, S), from its values at 0 and at the unit vectors."""
    unit = torch.eye(len(like)).to(like)
    points = torch.cat([unit[:1] * 0, unit, 1 - 2 * unit])
    mean, covariance = _moments(posterior(points))
    offset, to_mean = mean[0], (mean[1 : len(like) + 1] - mean[0]).mT
    errors = mean - points @ to_mean.mT - offset, covariance - covariance[0]
    if max(error.abs().max().item() for error in errors) > 1e-4:
        raise ValueError("Expected a posterior N(A x + c, S); got one not linear in x.")
    return to_mean, offset, covariance[0]


@torch.no_grad()
def _fill(linear: Any, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
