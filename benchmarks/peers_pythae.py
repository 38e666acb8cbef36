"""The work in pythae: its VAE and VAMP with networks of the same sizes (Bernoulli only)."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from harness import Run
from peers_torch import mlp
from pythae.models import VAE, VAMP, VAEConfig, VAMPConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor
from works import LEARNING_RATE, Work, rounds_of


class Encoder(BaseEncoder):
    """Mean and log-variance by one network."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.layers = mlp((work.features, *work.hidden, 2 * work.latent))

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_var = self.layers(self.work.scaled(x)).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    """Probabilities, as pythae's cross entropy wants them."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.layers = mlp((work.latent, *work.hidden[::-1], work.outputs))

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))


def model(work: Work, device: str) -> Any:
    """Pythae's VAE, or its VAMP if the work has components."""
    sizes: dict[str, Any] = {
        "input_dim": (work.features,),
        "latent_dim": work.latent,
        "reconstruction_loss": "bce",
    }
    parts = Encoder(work), Decoder(work)
    if work.components:
        config = VAMPConfig(**sizes, number_components=work.components, linear_scheduling_steps=0)
        return VAMP(config, *parts).to(device)
    return VAE(VAEConfig(**sizes), *parts).to(device)


def training(work: Work, device: str) -> Run:
    """What pythae's trainer does at a step, without its data loader."""
    vae = model(work, device)
    vae.train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    batches = rounds_of(work.data().to(device))

    def run(steps: int) -> None:
        for _ in range(steps):
            output = vae({"data": next(batches)}, epoch=1)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            output.loss.item()

    return run


def exact_draws(num_samples: int, batch_size: int) -> int:
    """Draws that ``get_nll`` makes for a datum: whole batches, and never less than one."""
    return max(1, num_samples // batch_size) * batch_size


def evaluation(work: Work, images: int, num_samples: int, batch_size: int, device: str) -> Run:
    """``get_nll``; one unit is one draw scored."""
    vae = model(work, device)
    vae.eval()
    x = work.data().flatten(0, 1)[:images].to(device)
    draws = images * exact_draws(num_samples, batch_size)

    @torch.no_grad()
    def run(units: int) -> None:
        for _ in range(units // draws):
            with contextlib.redirect_stdout(io.StringIO()):
                vae.get_nll(x, n_samples=num_samples, batch_size=batch_size)

    return run
