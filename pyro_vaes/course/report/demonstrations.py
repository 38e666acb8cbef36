"""Four formulas of the reference notebooks, each run next to the right formula.

The notebooks are the two that come with the assignment; the formulas are written anew, on this
library's parts. Nats, float64, fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vaes import flows
from pyro_vaes.evaluation.evaluator import evaluate
from pyro_vaes.exact.linear_gaussian import LinearGaussian, LinearPosterior, diagonal_posterior
from pyro_vaes.parts.priors import FlowPrior, MixturePrior
from pyro_vaes.vae import VAE

__all__ = ["bound_defect", "flow_defect", "mixture_defect", "scale_defect"]


Figures = dict[str, float]

CORNER = 3.0  # the demonstrated mixture has its components at (3, ..., 3) and (-3, ..., -3)
WIDE = 16  # a usual latent size
STEPS = 250
_DRAWS = 20_000


# --- a mixture that is not joint ------------------------------------------------------------------


def two_corners(dim: int) -> MixturePrior:
    """The library's mixture of unit normals at (3, ..., 3) and (-3, ..., -3)."""
    prior = MixturePrior(dim, 2).double()
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[CORNER], [-CORNER]]).expand(2, dim))
    return prior


class PerDimension(nn.Module):
    """The defect: the parts of a joint mixture as one mixture for each dimension."""

    def __init__(self, mixture: MixturePrior) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self) -> Any:
        p = self.mixture()
        normal = p.component_distribution.base_dist
        loc, scale = normal.loc.mT, normal.scale.mT
        weights = dist.Categorical(logits=p.mixture_distribution.logits.expand(loc.shape))
        return dist.MixtureSameFamily(weights, dist.Normal(loc, scale)).to_event(1)


@torch.no_grad()
def mixture_defect() -> Figures:
    """Log densities at (3, -3), ELBOs with either prior, and the total correlation."""
    torch.manual_seed(0)
    noise, joint = 0.5, two_corners(2)
    apart = PerDimension(joint)
    ghost = torch.tensor([CORNER, -CORNER]).double()
    found = {
        "noise": noise,
        "joint": joint().log_prob(ghost).item(),
        "per_dimension": apart().log_prob(ghost).item(),
    }
    # x = z + noise, with q(z | x) = N(x, noise^2).
    eye, zero = torch.eye(2).double(), torch.zeros(2).double()
    likelihood = LinearGaussian(eye, zero, noise).likelihood
    posterior = diagonal_posterior(eye, zero, zero + noise)
    evidence = two_corners(2)
    evidence.log_scale.fill_(0.5 * math.log(1 + noise**2))
    around = dist.Normal(ghost, math.sqrt(1 + noise**2)).to_event(1)
    for name, p in (("likely", evidence()), ("ghost", around)):
        x = p.sample((500,))
        found[f"{name}_exact"] = -evidence().log_prob(x).mean().item()
        for kind, prior in (("joint", joint), ("per_dimension", apart)):
            figures = evaluate(
                VAE(prior, posterior, likelihood),
                x,
                num_samples=100,
                proposal="encoder",
                diagnostics=False,
            )
            found[f"{name}_{kind}"] = -figures.elbo
    for dim in (2, WIDE):
        prior = two_corners(dim)
        z = prior().sample((_DRAWS,))
        excess = prior().log_prob(z) - PerDimension(prior)().log_prob(z)
        found[f"correlation_{dim}"] = excess.mean().item()
    return found


# --- a log-determinant counted D times ------------------------------------------------------------


def counted(prior: Any, z: Tensor, times: int) -> Tensor:
    """The score of a flow's distribution whose log-determinant counts several times."""
    u = z
    for transform in reversed(prior.transforms):
        u = transform.inv(u)
    base = prior.base_dist.log_prob(u)
    return base + times * (prior.log_prob(z) - base)


class Scales(nn.Module):
    """The simplest flow prior: a standard normal with a scale for each dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self) -> Any:
        zero = torch.zeros_like(self.log_scale)
        stretch = dist.transforms.AffineTransform(zero, self.log_scale.exp(), event_dim=1)
        return dist.TransformedDistribution(dist.Normal(zero, zero + 1).to_event(1), [stretch])


def train(prior: nn.Module, z: Tensor, times: int, learning_rate: float) -> nn.Module:
    """A prior fitted to draws z ``(n, D)``, its log-determinant counted several times."""
    optimizer = torch.optim.Adam(prior.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        rows = torch.arange(step * 256, (step + 1) * 256) % len(z)
        loss = -counted(prior(), z[rows], times).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return prior


def bent_normal(num: int) -> tuple[Tensor, float]:
    """Draws of z1 ~ N(0, 1), z2 ~ N((z1^2 - 1) / 2, 1 / 4), and their entropy."""
    z1, noise = torch.randn(2, num).double()
    entropy = math.log(2 * math.pi * math.e) - math.log(2)
    return torch.stack([z1, (z1.square() - 1) / 2 + noise / 2], dim=-1), entropy


def integral(log_density: Callable[[Tensor], Tensor], bound: float = 9.0) -> float:
    """The integral of an unnormalised density over a square, by the trapezoid rule."""
    side = torch.linspace(-bound, bound, 501, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
    return log_density(z).exp().sum().item() * (side[1] - side[0]).item() ** 2


def flow_defect() -> tuple[tuple[Figures, Figures], list[Tensor]]:
    """Flow priors trained with either count, at D = 2 and 16; data and samples of the first."""
    torch.manual_seed(0)
    bent, bent_entropy = bent_normal(_DRAWS)
    round_ = torch.randn(_DRAWS, WIDE).double()
    round_entropy = 0.5 * WIDE * math.log(2 * math.pi * math.e)

    def realnvp() -> nn.Module:
        torch.manual_seed(0)
        return FlowPrior(2, flows.realnvp(2, 2, hidden_dims=[32])).double()

    small, samples = _either_count(realnvp, bent, 2e-2)
    wide, _ = _either_count(lambda: Scales(WIDE).double(), round_, 5e-2)
    return (small | {"entropy": bent_entropy}, wide | {"entropy": round_entropy}), samples


def _either_count(
    make: Callable[[], nn.Module], z: Tensor, learning_rate: float
) -> tuple[Figures, list[Tensor]]:
    """Figures of a prior trained on z with its determinant counted once, or D times."""
    dim = z.shape[-1]
    right, wrong = (train(make(), z, times, learning_rate)() for times in (1, dim))
    with torch.no_grad():
        found = {
            "dim": float(dim),
            "right_nll": -right.log_prob(z).mean().item(),
            "wrong_nll": -wrong.log_prob(z).mean().item(),
            "reported_nll": -counted(wrong, z, dim).mean().item(),
        }
        if dim == 2:
            found["mass"] = integral(lambda at: counted(wrong, at, dim))
        samples = [z, right.sample((_DRAWS,)), wrong.sample((_DRAWS,))]
        spread, right_spread, wrong_spread = (s.var(0).sum().sqrt().item() for s in samples)
    found |= {"right_spread": right_spread / spread, "wrong_spread": wrong_spread / spread}
    return found, samples


# --- a variance used as standard deviation --------------------------------------------------------


@torch.no_grad()
def scale_defect() -> tuple[Figures, Figures]:
    """Spreads of a narrow and a wide component: of the density, and of noise scaled by exp(v)."""
    torch.manual_seed(0)
    found = []
    for scale in (0.3, 2.0):
        prior = MixturePrior(1, 1).double()
        prior.loc.zero_()
        prior.log_scale.fill_(math.log(scale))
        log_variance = 2 * prior.log_scale
        drawn = log_variance.exp() * torch.randn(_DRAWS, 1).double()
        sampler = dist.Normal(0.0, log_variance.exp()[0]).to_event(1)
        found.append(
            {
                "scale": scale,
                "density": prior().sample((_DRAWS,)).std().item(),
                "sampler": drawn.std().item(),
                "kl": (sampler.log_prob(drawn) - prior().log_prob(drawn)).mean().item(),
            }
        )
    return found[0], found[1]


# --- one draw of the bound, reported as nll -------------------------------------------------------


@torch.no_grad()
def bound_defect() -> tuple[Figures, Figures]:
    """-log p(x) in four ways, for the true model with a poor posterior and a wrong model.

    Both are linear-Gaussian, so the truth is known. The two latent dimensions act on x almost
    alike, so they are correlated in the true posterior.
    """
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 1) + 0.6 * torch.randn(8, 2), torch.zeros(8).double()
    true, wrong = (LinearGaussian(weight.double(), bias, scale) for scale in (0.5, 0.6))
    x = true.marginal.sample((200,))
    exact = true.true_posterior(x)
    linear = cast(LinearPosterior, true.vae.posterior)
    poor = diagonal_posterior(linear.weight, linear.bias, exact.variance[0].sqrt())
    found = []
    for model in (true.with_posterior(poor), wrong):
        draws = [
            -evaluate(
                model.vae, x, num_samples=1, proposal="encoder", seed=seed, diagnostics=False
            ).elbo
            for seed in range(10)
        ]
        found.append(
            {
                "num": float(len(x)),
                "exact": -model.log_prob(x).mean().item(),
                "bound": -model.elbo(x).mean().item(),
                "weighted": evaluate(model.vae, x, proposal="encoder", diagnostics=False).nll,
                "one_draw": draws[0],
                "lowest": min(draws),
                "highest": max(draws),
            }
        )
    return found[0], found[1]
