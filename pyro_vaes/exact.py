"""Models whose exact answers are known, to hold every estimate against.

- :class:`LinearGaussian`: probabilistic PCA, exact by algebra.
- :class:`Discrete`: finitely many z and x, exact by enumeration.
- :class:`Quadrature`: any VAE with a latent size of 1 or 2, exact by integration on a grid.

Each has a ``.vae``, at which any estimator can be pointed, and knows the evidence log p(x)
(``log_prob``), the true posterior p(z | x), the ELBO, its ``gap`` KL(q(z | x) || p(z | x)) to the
evidence, and the two halves of the average KL(q(z | x) || p(z)): the mutual information I_q(x; z)
and the marginal KL(q(z) || p(z)), with q(z) the aggregated posterior. All in nats. Numbers in
parentheses are those of the assignment's equations.
"""

from __future__ import annotations

import copy
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

__all__ = ["Discrete", "LinearGaussian", "LinearPosterior", "Quadrature", "diagonal_posterior"]

_CHUNK = 2**19  # numbers that quadrature scores at once


class Identity(Described):
    """The network that does nothing: on it, a part's head is linear in what the part is given."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = in_features

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class LinearPosterior(Described):
    """The normal q(z | x) = N(A x + c, L L') with a full covariance.

    Args:
        weight: A, ``(d, D)``.
        bias: c, ``(d,)``.
        scale_tril: L, ``(d, d)``, lower triangular with a positive diagonal.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = weight.shape[0], (weight.shape[1],)
        # Contiguous, as they will be when loaded: another layout rounds otherwise.
        self.weight = nn.Parameter(weight.detach().contiguous().clone())
        self.bias = nn.Parameter(bias.detach().contiguous().clone())
        # With logarithms on its diagonal, so that training may do with it what it likes.
        self.factor = nn.Parameter(scale_tril.tril(-1) + scale_tril.diagonal().log().diag())

    def forward(self, x: Tensor) -> Any:
        scale_tril = self.factor.tril(-1) + self.factor.diagonal().exp().diag()
        mean = x.to(self.weight.dtype) @ self.weight.mT + self.bias
        return dist.MultivariateNormal(mean, scale_tril=scale_tril)


def diagonal_posterior(weight: Tensor, bias: Tensor, scale: Tensor) -> NormalPosterior:
    """The library's own N(A x + c, diag(s)^2), from A ``(d, D)``, c ``(d,)`` and s ``(d,)``."""
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

    Begins with p(z | x) as its posterior. Everything is computed from the parameters as they are
    when asked: it stays exact while ``.vae`` is trained, and can be differentiated.

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
            self.likelihood.log_scale.fill_(math.log(scale - floor))
            to_mean, offset, covariance = _linear(self.true_posterior, bias)
        posterior = LinearPosterior(to_mean, offset, torch.linalg.cholesky(covariance))
        self.vae = VAE(NormalPrior(latent_dim).to(weight.dtype), posterior, self.likelihood)

    def with_posterior(self, posterior: nn.Module) -> LinearGaussian:
        """The same model beside another part that returns normals, diagonal or full."""
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
        scale = self.likelihood.min_scale + self.likelihood.log_scale.exp()
        return head.weight, head.bias, scale.square()

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

        Without data that of all x ~ p(x), for a posterior N(A x + c, S): it is normal itself,
        N(A b + c, A (W W' + Psi) A' + S).
        """
        if x is not None:
            return VampDistribution(self.vae.q_z(x))
        p = self.marginal
        to_mean, offset, within = _linear(self.vae.q_z, p.mean)
        between = to_mean @ p.covariance_matrix @ to_mean.mT
        return dist.MultivariateNormal(to_mean @ p.mean + offset, between + within)

    def marginal_kl(self) -> Tensor:
        """KL(q(z) || p(z)) over all that the model can generate."""
        q = self.aggregated()
        return _kl_to_standard(q.mean, q.covariance_matrix)

    def mutual_information(self) -> Tensor:
        """I_q(x; z) = H(q(z)) - H(q(z | x)) over all that the model can generate."""
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
    """A, c and S of N(A x + c, S), read off its answers at 0 and at the unit vectors."""
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


class Discrete:
    """A VAE whose z takes K states and whose x takes M: every expectation is a sum.

    Args:
        prior: p(z), ``(K,)``.
        likelihood: p(x | z), ``(K, M)``, a row for each z.
        posterior: q(z | x), ``(M, K)``, a row for each x.
        data: p_D(x), ``(M,)``.

    Attributes:
        vae: the VAE, over one-hot z and x of shape ``(n, 1)``; gradients pass straight through z.
        log_joint: log p(x, z), ``(M, K)``.
        log_prob: log p(x), ``(M,)``.
        true_posterior: p(z | x), ``(M, K)``.
        joint: q(x, z) = p_D(x) q(z | x), ``(M, K)``.
        aggregated: q(z), ``(K,)``.
        reconstruction: E[log p(x | z)].
        entropy: E[H(q(z | x))].
        kl: E[KL(q(z | x) || p(z))].
        mutual_information: I_q(x; z).
        marginal_kl: KL(q(z) || p(z)).
        decoder_kl: E_q(z) KL(q(x | z) || p(x | z)).

    Raises:
        ValueError: for a table of another shape, an entry of zero, or rows that do not sum to 1.
    """

    def __init__(self, prior: Tensor, likelihood: Tensor, posterior: Tensor, data: Tensor) -> None:
        k, m = len(prior), len(data)
        shapes = [(k,), (k, m), (m, k), (m,)]
        for table, shape in zip((prior, likelihood, posterior, data), shapes, strict=True):
            sums_to_one = (table.sum(-1) - 1).abs() < 1e-6
            if table.shape != shape or not ((table > 0).all() and sums_to_one.all()):
                raise ValueError(
                    f"Expected a table {shape} of numbers above 0, each row of sum 1; got {table}."
                )
        self.prior, self.likelihood, self.posterior, self.data = prior, likelihood, posterior, data
        self.log_joint = likelihood.log().mT + prior.log()
        self.log_prob = self.log_joint.logsumexp(-1)
        self.true_posterior = self.log_joint.softmax(-1)
        self.joint = data.unsqueeze(-1) * posterior
        self.aggregated = self.joint.sum(0)

        self.reconstruction = (self.joint * likelihood.log().mT).sum()
        self.entropy = -(self.joint * posterior.log()).sum()
        self.kl = data @ _kl(posterior, prior)
        self.mutual_information = data @ _kl(posterior, self.aggregated)
        self.marginal_kl = _kl(self.aggregated, prior)
        self.decoder_kl = self.aggregated @ _kl((self.joint / self.aggregated).mT, likelihood)

        decoder = CategoricalLikelihood(Identity(k), (1,), num_levels=m)
        self.vae = VAE(_Table(prior), _Table(posterior), decoder).to(prior.dtype)
        _fill(decoder.head, likelihood.log().mT, torch.zeros(m))

    def elbo(self) -> tuple[Tensor, Tensor, Tensor]:
        """The ELBO of each x, ``(M,)``, in its forms (1), (2) and (3)."""
        q, log_x, log_z = self.posterior, self.likelihood.log().mT, self.prior.log()
        return (
            (q * (self.log_joint - q.log())).sum(-1),
            (q * (log_x + log_z)).sum(-1) - (q * q.log()).sum(-1),
            (q * log_x).sum(-1) - _kl(q, self.prior),
        )

    def gap(self) -> Tensor:
        """KL(q(z | x) || p(z | x)), ``(M,)``."""
        return _kl(self.posterior, self.true_posterior)

    def augmented(self) -> tuple[Tensor, Tensor, Tensor]:
        """The expressions (5), (6) and (7).

        The first is the average ELBO. The other two are less by E[log p_D(x)], the constant of (5):
        it is -KL(q(x, z) || p(x, z)) alone that (6) and (7) rewrite.
        """
        return (
            -_kl(self.joint.ravel(), self.log_joint.exp().ravel()) + self.data @ self.data.log(),
            -_kl(self.data, self.log_prob.exp()) - self.data @ self.gap(),
            -self.marginal_kl - self.decoder_kl,
        )

    def terms_14(self) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of (14): reconstruction, entropy, and minus the cross entropy to the prior."""
        return self.reconstruction, self.entropy, self.aggregated @ self.prior.log()

    def info_16(self, alpha: float, lambda_: float) -> Tensor:
        """InfoVAE's objective as it is defined, (16)."""
        return alpha * self.mutual_information - lambda_ * self.marginal_kl - self.decoder_kl

    def info_rewritten(self, alpha: float, lambda_: float) -> Tensor:
        """InfoVAE's objective as question 4.3 rewrites it: (16) plus the constant E[log p_D(x)]."""
        pull = (1 - alpha) * self.kl + (alpha + lambda_ - 1) * self.marginal_kl
        return self.reconstruction - pull


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of tables along the last dimension."""
    return (p * (p.log() - q.log())).sum(-1)


class _Table(Described):
    """A prior ``(K,)`` or a posterior ``(M, K)`` over one-hot vectors, learned as logits."""

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        self.latent_dim, self.logits = probs.shape[-1], nn.Parameter(probs.log())

    def forward(self, x: Tensor | None = None) -> Any:
        logits = self.logits if x is None else self.logits[x[..., 0].long()]
        return dist.OneHotCategoricalStraightThrough(logits=logits)


class Quadrature:
    """Any VAE with a latent size of 1 or 2: integrals over z by the trapezoid rule, in float64.

    Even steps in t, with z = mean + spread * sinh(t), lie close where prior and posterior draw and
    reach far beyond. They are halved until no figure moves by more than the tolerance. With smooth
    networks (``tanh``) many more digits are exact then; with kinks (``relu``) they come dear.

    Args:
        vae: the VAE; what is looked at is a copy of it as it is now.
        tolerance: in nats.
        max_points: the largest grid.

    Raises:
        ValueError: when asked, for another latent size.
        RuntimeError: when asked, if the largest grid is too coarse.
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
        """E_q[value(z, log q(z | x))] of each datum; without a value log p(x)."""
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
    """Log q(z) from log q(z | x_n) in the last dimension, which stays."""
    return log_q.logsumexp(-1, keepdim=True) - math.log(log_q.shape[-1])
