"""A two-dimensional model whose true posterior is bent, to see what posteriors can follow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes import flows
from pyro_vaes.evaluation import evaluate, untouched
from pyro_vaes.exact import Quadrature
from pyro_vaes.networks import MLP
from pyro_vaes.posteriors import FlowPosterior, FullNormalPosterior, NormalPosterior
from pyro_vaes.priors import NormalPrior
from pyro_vaes.training import fit
from pyro_vaes.vae import VAE

__all__ = ["Banana", "Valley", "families", "fitted_banana"]

_SCALE, _BEND, _DATUM = 0.25, 1.0, 0.5


class Valley(nn.Module):
    """p(x | z) = N(z_2 + b z_1^2, s^2): given x, z lies along a parabola."""

    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z[..., 1:] + _BEND * z[..., :1].square(), _SCALE).to_event(1)


@dataclasses.dataclass(frozen=True)
class Banana:
    """A posterior fitted to the bent one.

    Attributes:
        gap: KL(q(z | x) || p(z | x)), in nats.
        draws: from q(z | x), ``(n, 2)``.
        grid: coordinates of the points where the true posterior was scored.
        density: p(z | x) there.
    """

    gap: float
    draws: Tensor
    grid: tuple[Tensor, Tensor]
    density: Tensor


def _normal() -> NormalPosterior:
    return NormalPosterior(MLP(1, [16], "tanh"), 2, [1])


_FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "diagonal": _normal,
    "full covariance": lambda: FullNormalPosterior(MLP(1, [16], "tanh"), 2, [1]),
    "planar, 16": lambda: FlowPosterior(_normal(), flows.planar(2, 16)),
    "Sylvester, 4": lambda: FlowPosterior(_normal(), flows.sylvester(2, 4)),
    "IAF, 4": lambda: FlowPosterior(_normal(), flows.iaf(2, 4, [32])),
    "spline, 4": lambda: FlowPosterior(_normal(), flows.spline(2, 4, [32])),
}


def families() -> list[str]:
    """The posteriors that can be fitted."""
    return list(_FAMILIES)


def fitted_banana(family: str, steps: int = 2000, seed: int = 0) -> Banana:
    """Fits a posterior to the bent one; model and datum are fixed.

    Args:
        family: one of :func:`families`.
        steps: of training, with 64 draws each.
        seed: of weights and noise.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(NormalPrior(2), _FAMILIES[family](), Valley())
        x = torch.full((64, 1), _DATUM)
        options: dict[str, Any] = {"epochs": steps, "learning_rate": 5e-3, "schedule": "cosine"}
        fit(vae, x, seed=seed, mode="traced", progress=False, **options)
        exact = Quadrature(vae)
        evidence = exact.log_prob(x[:1]).item()
        elbo = evaluate(vae, x[:1], num_samples=20_000, diagnostics=False).elbo
        line = torch.linspace(-2.5, 2.5, 120, dtype=torch.float64)
        z = torch.cartesian_prod(line, line)
        with untouched(vae):
            torch.manual_seed(seed)
            draws = vae.q_z(x[:1]).sample((1500,)).squeeze(1)
            density = exact.log_joint(z, x[:1]).exp().squeeze(-1) / math.exp(evidence)
        one, two = torch.meshgrid(line, line, indexing="ij")
    return Banana(evidence - elbo, draws, (one, two), density.reshape(one.shape))
