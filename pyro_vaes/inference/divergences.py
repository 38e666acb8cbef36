"""Divergences D(q(z), p(z)) between the aggregated posterior and the prior, from draws.

:class:`~pyro_vaes.inference.info.InfoELBO` adds one to the KL. A divergence is a module that is
called with a batch of posterior draws and the prior's distribution, and returns one differentiable
number. It gets the draws of the whole minibatch: one draw per datum is a sample from
q(z) = (1/N) sum_n q(z | x_n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.functional import softplus

from pyro_vaes.core.checks import positive
from pyro_vaes.core.choices import KERNELS
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.vae import drawn

__all__ = ["MMD", "Adversarial", "Divergence", "mmd2"]


class Divergence(nn.Module):
    """Base of the divergences: called as ``divergence(z, prior)``.

    >>> from pyro_vaes.inference import Divergence
    >>> class MeanDistance(Divergence):
    ...     def forward(self, z, prior):
    ...         return (z.mean(-2) - prior.mean.mean(-2)).square().sum(-1).mean()
    >>> objective = pv.InfoELBO(0.0, 10.0, MeanDistance())
    >>> loss = objective.loss(vae.model, vae.guide, torch.randn(10, 4))

    Args of the call:
        z: reparameterised draws of the posterior, ``(..., n, D)``, one for each of n data; leading
            dimensions (particles) are averaged over.
        prior: the distribution of z in the model, batch shape ``(..., n)``, event shape ``(D,)``.

    Attributes:
        min_data: the smallest batch from which it can be estimated.
        recordable: False if a call trains the divergence itself, so that a step must not be
            recorded and replayed.
        optimizer: of the divergence's own parameters, None without any.
    """

    min_data = 1
    recordable = True
    optimizer: torch.optim.Optimizer | None = None


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: str = "imq",
    bandwidth: float | Sequence[float] | None = None,
    *,
    paired: bool = False,
    each: bool = False,
) -> Tensor:
    """The squared maximum mean discrepancy between two samples, unbiased (so it may be negative).

    Gretton et al., "A kernel two-sample test" (2012), equation 3: the mean of the kernel over pairs
    of different x, plus that of different y, minus twice that over pairs of x and y.

    With r the distance of two points and C the bandwidth, ``imq`` is the inverse multiquadric
    kernel C / (C + r^2) of Tolstikhin et al., "Wasserstein auto-encoders" (2018), and ``rbf`` the
    Gaussian exp(-r^2 / C) of Zhao et al., "InfoVAE" (2019). Several bandwidths give the mean of
    their kernels.

    Args:
        x: ``(..., n, D)``, n at least 2.
        y: ``(..., m, D)``, m at least 2.
        kernel: ``imq`` or ``rbf``.
        bandwidth: C, in the units of r^2; 2 D if None, the expected squared distance of two draws
            of a standard normal.
        paired: leave out the pairs (x_i, y_i), which need not be independent then (equation 4);
            needs n = m.
        each: return the n terms of the paired estimate instead of their mean; their spread gives
            its standard error.

    Returns:
        ``(...)``, or ``(..., n)`` for each term; without unit, between -2 and 2.

    Raises:
        ValueError: for fewer than two rows, an unknown kernel, or a bandwidth that is not positive.

    >>> mmd2(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])).item() < 0
    True
    """
    _check(kernel, bandwidth)
    n, m = x.shape[-2], y.shape[-2]
    if min(n, m) < 2:
        raise ValueError(f"Expected at least two data in a batch for MMD; got {min(n, m)}.")
    widths = bandwidth if bandwidth is not None else 2.0 * x.shape[-1]
    widths = tuple(widths) if isinstance(widths, Sequence) else (widths,)
    # Distances come from a matrix product, which cancels far from the origin: centre first.
    center = y.detach().mean(-2, keepdim=True)
    x, y = x - center, y - center

    def kernels(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
        distances = (squares - 2 * a @ b.mT).clamp(min=0)
        rows = [_KERNELS[kernel](distances, width) for width in widths]
        return cast(Tensor, sum(rows)) / len(rows)

    def mean(a: Tensor, b: Tensor, different: bool) -> Tensor:
        values = kernels(a, b)
        total, count = values.sum((-2, -1)), a.shape[-2] * b.shape[-2]
        if different:
            total = total - values.diagonal(dim1=-2, dim2=-1).sum(-1)
            count -= a.shape[-2]
        return total / count

    if each:
        if not paired:
            raise ValueError("Expected paired=True for the terms of each pair; got paired=False.")
        across = kernels(x, y)
        pairs = kernels(x, x) + kernels(y, y) - across - across.mT
        return (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / (n - 1)
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, paired)


_KERNELS = {
    "imq": lambda distances, width: width / (width + distances),
    "rbf": lambda distances, width: torch.exp(-distances / width),
}


def _check(kernel: str, bandwidth: float | Sequence[float] | None) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"Expected kernel to be one of {', '.join(KERNELS)}; got {kernel!r}.")
    if bandwidth is None:
        return
    widths = bandwidth if isinstance(bandwidth, Sequence) else (bandwidth,)
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(f"Expected a bandwidth above 0, or several; got {bandwidth}.")


class MMD(Divergence):
    """The squared maximum mean discrepancy between q(z) and p(z), by :func:`.mmd2`.

    Each step draws as many values from the prior as there are data in the minibatch. The estimate
    is unbiased, so it is sometimes negative.

    A prior with reparameterised draws (a normal, a flow) is trained towards q(z) too. Any other (a
    mixture, a VampPrior) learns from the KL alone, and the divergence trains the posterior only.

    >>> z, prior = torch.randn(100, 2), vae.p_z().expand([100])
    >>> abs(pv.MMD()(z, prior).item()) < 0.2
    True

    Args:
        kernel: ``imq`` (inverse multiquadric, whose heavy tails give distant draws a gradient) or
            ``rbf``.
        bandwidth: squared distance at which the kernel has fallen to 1/2 (``imq``) or 1/e
            (``rbf``), or several, whose kernels are averaged; None for 2 D. For a prior of another
            scale s, 2 D s^2 is the same rule.

    Raises:
        ValueError: for an unknown kernel or a bandwidth that is not positive.
    """

    min_data = 2

    def __init__(
        self, kernel: str = "imq", bandwidth: float | Sequence[float] | None = None
    ) -> None:
        super().__init__()
        _check(kernel, bandwidth)
        self.kernel, self.bandwidth = kernel, bandwidth

    def forward(self, z: Tensor, prior: Any) -> Tensor:
        # Row i of a conditional prior has the label of datum i, so the two are not independent.
        return mmd2(z, drawn(prior), self.kernel, self.bandwidth, paired=True).mean()


class Adversarial(Divergence):
    """KL(q(z) || p(z)) by a discriminator T between draws of the two.

    T is trained on the logistic loss, whose optimum is log q(z) - log p(z) (Goodfellow et al. 2014,
    proposition 1), and KL(q(z) || p(z)) = E_q[T(z)] there. This is the adversarial autoencoder's
    idea (Makhzani et al. 2016; Tolstikhin et al. 2018, WAE-GAN) with the density ratio of Mescheder
    et al., "Adversarial variational Bayes" (2017), instead of the generator's loss: it estimates
    the divergence in InfoVAE, in nats. At the optimum its gradient is the KL's (ibid.,
    proposition 2).

    VAE and discriminator are trained alternately: each evaluation of the loss with gradients first
    takes ``steps`` steps of the discriminator on the minibatch's draws, held fixed, and then scores
    these with the discriminator held fixed. Without gradients (validation) it is not trained. The
    gradient to a learned prior is the exact -E_q[grad log p(z)]. Such a step is not recorded:
    :class:`~pyro_vaes.inference.svi.FastSVI` takes it in eager mode.

    The initial weights come from torch's global generator, which should be seeded before. ``fit``
    saves and restores discriminator and optimiser with the rest.

    >>> divergence = pv.Adversarial(latent_dim=2, hidden_dims=[32], steps=5)
    >>> objective = pv.InfoELBO(alpha=1.0, lambda_=1.0, divergence=divergence)
    >>> loss = objective.loss(vae.model, vae.guide, torch.randn(10, 4))

    Args:
        latent_dim: size of z.
        hidden_dims: hidden layers of the discriminator.
        learning_rate: of its optimiser, Adam; above the VAE's, so that it follows the posterior.
        steps: its steps per step of the VAE. Raise them if the divergence oscillates: the larger
            its weight, the closer the discriminator must be to its optimum.
    """

    recordable = False

    def __init__(
        self,
        latent_dim: int,
        hidden_dims: Sequence[int] = (128, 128),
        learning_rate: float = 2e-3,
        steps: int = 1,
    ) -> None:
        super().__init__()
        positive(latent_dim=latent_dim, steps=steps)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"Expected learning_rate above 0; got {learning_rate}.")
        self.latent_dim, self.steps = latent_dim, steps
        self.learning_rate = learning_rate
        network = MLP(latent_dim, hidden_dims)
        self.discriminator = nn.Sequential(network, nn.Linear(network.out_features, 1))
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate)

    def forward(self, z: Tensor, prior: Any) -> Tensor:
        if z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"Expected z of latent_dim={self.latent_dim} for Adversarial; got {z.shape[-1]}."
            )
        if torch.is_grad_enabled():
            if get_proxy_mode() is not None:
                raise RuntimeError("the discriminator of Adversarial is trained within a step")
            for _ in range(self.steps):
                self.train_discriminator(z.detach(), drawn(prior).detach())
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        logits = torch.func.functional_call(
            self.discriminator, fixed, (z.to(next(iter(fixed.values())).dtype),)
        )
        estimate = logits.mean().to(z.dtype)
        if not torch.is_grad_enabled():
            return estimate
        # KL(q || p) depends on the prior's own parameters by -E_q[log p(z)], of which the
        # discriminator has no gradient. The value does not change.
        score = prior.log_prob(z.detach()).mean()
        return estimate - (score - score.detach()) if score.requires_grad else estimate

    def train_discriminator(self, z: Tensor, y: Tensor) -> Tensor:
        """One step of the discriminator; returns its loss before, log 4 if it is at chance.

        Args:
            z: draws of q(z), ``(..., D)``.
            y: draws of p(z), ``(..., D)``.
        """
        dtype = next(self.discriminator.parameters()).dtype
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        loss = softplus(-self.discriminator(z.to(dtype))).mean()
        loss = loss + softplus(self.discriminator(y.to(dtype))).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()
