"""The works to be timed: sizes, data, and the model as a user of ``pyro_vaes`` writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_vaes as pv

LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Work:
    """A VAE of multilayer perceptrons and the data of one epoch.

    Attributes:
        title: what tables call it.
        features: elements of a datum.
        hidden: sizes of the hidden layers of encoder and decoder.
        latent: size of z.
        levels: levels of an element; 2 for a Bernoulli, more for a categorical.
        batch: data in a step.
        steps: steps in an epoch.
        components: pseudo-inputs of a VampPrior; 0 for a standard normal prior.
    """

    title: str
    features: int
    hidden: tuple[int, ...]
    latent: int
    levels: int
    batch: int
    steps: int
    components: int = 0

    @property
    def outputs(self) -> int:
        """Outputs of the decoder for a datum."""
        return self.features * (1 if self.levels == 2 else self.levels)

    def data(self) -> Tensor:
        """Levels ``(steps, batch, features)``, float32."""
        if self.features == 64:
            rows = torch.as_tensor(load_digits().data, dtype=torch.float32)
            rows = rows[: self.steps * self.batch]
        else:
            generator = torch.Generator().manual_seed(0)
            # An eighth of MNIST's pixels is ink.
            rows = torch.rand(self.steps * self.batch, self.features, generator=generator) < 0.125
        return rows.float().view(self.steps, self.batch, self.features)

    def scaled(self, x: Any) -> Any:
        """Levels as the encoder sees them, in [-1, 1]."""
        return x * (2 / (self.levels - 1)) - 1

    def toy(self) -> Work:
        """The same with smaller layers and fewer components."""
        return dataclasses.replace(
            self, hidden=(16,), latent=4, batch=8, steps=3, components=min(self.components, 5)
        )


DIGITS = Work("digits", 64, (256, 256), 16, 17, 64, 15)
MNIST = Work("MNIST shape", 784, (300, 300), 40, 2, 100, 20)
VAMP = dataclasses.replace(MNIST, title="MNIST shape, VampPrior K = 500", components=500)
WORKS = {"digits": DIGITS, "mnist": MNIST, "vamp": VAMP}


def our_vae(work: Work) -> pv.VAE:
    """The work's model, of the parts of ``pyro_vaes``."""
    posterior = pv.NormalPosterior(pv.MLP(work.features, work.hidden), work.latent)
    prior: Any = pv.NormalPrior(work.latent)
    if work.components:
        prior = pv.VampPrior(posterior, torch.rand(work.components, work.features), bounds=(0, 1))
    decoder = pv.MLP(work.latent, work.hidden[::-1])
    likelihood: Any = (
        pv.BernoulliLikelihood(decoder, (work.features,))
        if work.levels == 2
        else pv.CategoricalLikelihood(decoder, (work.features,), work.levels)
    )
    return pv.VAE(prior, posterior, likelihood)


def rounds_of(batches: Tensor) -> Iterator[Tensor]:
    """The batches of one epoch after another, for ever."""
    while True:
        yield from batches.unbind()
