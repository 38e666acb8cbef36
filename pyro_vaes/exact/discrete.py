"""A discrete model whose ELBO, likelihood and posterior are finite sums."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.exact.linear_gaussian import Identity, _fill
from pyro_vaes.parts.likelihoods import CategoricalLikelihood
from pyro_vaes.vae import VAE

__all__ = ["Discrete"]


class Discrete:
    """A VAE whose z takes K states and whose x takes M: every expectation is a sum.

    >>> from pyro_vaes.exact import Discrete
    >>> half = torch.full((2, 2), 0.5)
    >>> p_x_given_z = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> model = Discrete(half[0], p_x_given_z, posterior=half, data=half[0])
    >>> torch.allclose(model.elbo()[0] + model.gap(), model.log_prob)
    True

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

        The first is the average ELBO. The other two are smaller by E[log p_D(x)], the constant of
        (5): they rewrite -KL(q(x, z) || p(x, z)) alone.
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
        """InfoVAE's objective by its definition, (16)."""
        return alpha * self.mutual_information - lambda_ * self.marginal_kl - self.decoder_kl

    def info_rewritten(self, alpha: float, lambda_: float) -> Tensor:
        """InfoVAE's objective as it is estimated: (16) plus the constant E[log p_D(x)]."""
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
