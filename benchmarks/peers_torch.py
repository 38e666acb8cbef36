"""The work without ``pyro_vaes``: textbook Pyro, and PyTorch written by hand."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from harness import Run
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.nn import functional as F
from works import LEARNING_RATE, Work, rounds_of

LOG_2_PI = math.log(2 * math.pi)


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with leaky ReLUs in between."""
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.LeakyReLU()]
    return nn.Sequential(*layers[:-1])


class Networks(nn.Module):
    """Encoder, decoder and pseudo-inputs."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.encoder = mlp((work.features, *work.hidden, 2 * work.latent))
        self.decoder = mlp((work.latent, *work.hidden[::-1], work.outputs))
        if work.components:
            self.pseudo_inputs = nn.Parameter(torch.rand(work.components, work.features))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance."""
        mean, log_var = self.encoder(self.work.scaled(x)).chunk(2, -1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(batch, features)``, or ``(batch, features, levels)``."""
        logits = self.decoder(z)
        return logits if self.work.levels == 2 else logits.unflatten(-1, (-1, self.work.levels))


class TextbookPyro(Networks):
    """Model and guide as Pyro's tutorials write them."""

    def prior(self) -> dist.TorchDistribution:
        """A standard normal, or the mixture of posteriors at the pseudo-inputs."""
        weights = self.decoder[0].weight
        if not self.work.components:
            zeros = weights.new_zeros(self.work.latent)
            return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
        mean, log_var = self.encode(self.pseudo_inputs.clamp(0, 1))
        return dist.MixtureSameFamily(
            dist.Categorical(logits=weights.new_zeros(self.work.components)),
            dist.Normal(mean, (0.5 * log_var).exp()).to_event(1),
        )

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        prior = self.prior()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            logits = self.decode(z)
            likelihood = (
                dist.Bernoulli(logits=logits)
                if self.work.levels == 2
                else dist.Categorical(logits=logits)
            )
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            mean, log_var = self.encode(x)
            pyro.sample("z", dist.Normal(mean, (0.5 * log_var).exp()).to_event(1))


def textbook_pyro(work: Work, device: str) -> Run:
    """``SVI`` with ``Trace_ELBO`` and ``pyro.optim.Adam``, all as it comes."""
    vae = TextbookPyro(work).to(device)
    svi = SVI(vae.model, vae.guide, Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    batches = rounds_of(work.data().to(device))

    def run(steps: int) -> None:
        for _ in range(steps):
            svi.step(next(batches))

    return run


class HandWritten(Networks):
    """The same bound in plain PyTorch, from the same one sample."""

    def log_prior(self, z: Tensor) -> Tensor:
        """Log density ``(batch,)``; a mixture's terms are broadcast to ``(batch, K, latent)``."""
        if not self.work.components:
            return -0.5 * (z.square() + LOG_2_PI).sum(-1)
        mean, log_var = self.encode(self.pseudo_inputs.clamp(0, 1))
        terms = log_var + (z.unsqueeze(1) - mean).square() * torch.exp(-log_var) + LOG_2_PI
        return torch.logsumexp(-0.5 * terms.sum(-1), -1) - math.log(self.work.components)

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO, summed over the batch."""
        mean, log_var = self.encode(x)
        noise = torch.randn_like(mean)
        z = mean + torch.exp(0.5 * log_var) * noise
        log_q = -0.5 * (log_var + noise.square() + LOG_2_PI).sum(-1)
        logits = self.decode(z)
        if self.work.levels == 2:
            loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        else:
            loss = F.cross_entropy(logits.flatten(0, 1), x.flatten().long(), reduction="sum")
        return loss + (log_q - self.log_prior(z)).sum()


def hand_written(work: Work, device: str) -> Run:
    """A plain PyTorch loop with one fused Adam."""
    vae = HandWritten(work).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    batches = rounds_of(work.data().to(device))

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            vae(next(batches)).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
