"""The reference for wall time: a course notebook's plain VAE, trained by a plain PyTorch loop.

Introductory notebooks train a VAE on scikit-learn's 8x8 digits in this way: a Python ``Dataset``
that hands out one row at a time, a ``DataLoader`` of 64, one Adamax step per batch, validation
after each epoch, early stopping. This is the same job in our own words, with nothing of
``pyro_vaes`` in it, so that ``pyro-vaes train`` (recipe ``course``) has an equal to be timed with.

Kept because notebooks do it: raw levels 0..16 go into the encoder, the KL is estimated from the one
sample, the reconstruction is the log of clamped probabilities times a one-hot. With ``--pictures``
each improvement is also saved to disk and drawn as a page of samples, which is where such a
notebook spends most of its time; without it the loop is the harder reference.

    python benchmarks/course_loop.py --seed 0 --json
    python benchmarks/course_loop.py --seed 0 --json --pictures
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

PIXELS, LEVELS, HIDDEN, LATENT = 64, 17, 256, 16
BATCH, LEARNING_RATE, PATIENCE = 64, 1e-3, 20
TRAIN, VAL, TEST = slice(0, 1000), slice(1000, 1350), slice(1350, 1797)
CLAMP = 1e-5


class Rows(Dataset[Tensor]):
    """Rows of an array, handed out one by one as float tensors of shape ``(64,)``."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.as_tensor(self.rows[index], dtype=torch.float32)


def _mlp(size_in: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size_in, HIDDEN),
        nn.LeakyReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.LeakyReLU(),
        nn.Linear(HIDDEN, size_out),
    )


def _log_normal(z: Tensor, mean: Tensor | float, log_var: Tensor) -> Tensor:
    """Log density of a diagonal normal, summed over the last dimension."""
    terms = log_var + (z - mean) ** 2 * torch.exp(-log_var) + math.log(2 * math.pi)
    return -0.5 * terms.sum(-1)


class CourseVAE(nn.Module):
    """Standard normal prior, diagonal normal posterior, a categorical over levels per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _mlp(PIXELS, 2 * LATENT)
        self.decoder = _mlp(LATENT, PIXELS * LEVELS)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z given x), each ``(batch, 16)``."""
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        return mean, log_var

    def logits(self, z: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the levels, ``(..., 64, 17)``."""
        rows = cast(Tensor, self.decoder(z))
        return rows.view(*z.shape[:-1], PIXELS, LEVELS)

    def sample(self, n: int) -> Tensor:
        """Draws of x, levels of shape ``(n, 64)``."""
        probabilities = torch.softmax(self.logits(torch.randn(n, LATENT)), dim=-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1).view(n, PIXELS)

    def forward(self, x: Tensor) -> Tensor:
        """The one-sample negative ELBO of each row, in nats, ``(batch,)``."""
        mean, log_var = self.encode(x)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        probabilities = torch.softmax(self.logits(z), dim=-1).clamp(CLAMP, 1 - CLAMP)
        one_hot = F.one_hot(x.long(), LEVELS)
        reconstruction = (one_hot * probabilities.log()).sum((-1, -2))
        kl = _log_normal(z, mean, log_var) - _log_normal(z, 0.0, torch.zeros_like(z))
        return kl - reconstruction


@dataclasses.dataclass
class CourseResult:
    """What one run of the loop gives; the bounds are mean negative ELBOs in nats per image."""

    model: CourseVAE
    seconds: float
    epochs: int
    best_epoch: int
    val_loss: float
    test_loss: float


@torch.no_grad()
def _mean_loss(model: CourseVAE, loader: DataLoader[Tensor]) -> float:
    losses = [model(x) for x in loader]
    return torch.cat(losses).mean().item()


@torch.no_grad()
def _keep_and_draw(model: CourseVAE, folder: Path, epoch: int) -> None:
    """What a notebook does at each improvement: the model to disk, sixteen samples to a PDF."""
    torch.save(model.state_dict(), folder / "best.pt")
    figure, axes = plt.subplots(4, 4)
    for image, axis in zip(model.sample(16), axes.flat, strict=True):
        axis.imshow(image.view(8, 8), cmap="gray")
        axis.axis("off")
    figure.savefig(folder / f"samples_{epoch}.pdf", bbox_inches="tight")
    plt.close(figure)


def train_course_loop(
    seed: int = 0, max_epochs: int = 1000, pictures: bool = False
) -> CourseResult:
    """Runs the whole job and takes its time: from reading the data to the test figure.

    Args:
        seed: of the weights, the shuffling and the noise.
        max_epochs: where to stop if early stopping does not.
        pictures: save and draw at each improvement, as notebooks do.

    Returns:
        The best model by validation, the seconds spent, and the figures.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _train(seed, max_epochs, Path(folder) if pictures else None)


def _train(seed: int, max_epochs: int, folder: Path | None) -> CourseResult:
    start = time.perf_counter()
    torch.manual_seed(seed)
    rows = load_digits().data
    train = DataLoader(Rows(rows[TRAIN]), batch_size=BATCH, shuffle=True)
    val = DataLoader(Rows(rows[VAL]), batch_size=BATCH)
    test = DataLoader(Rows(rows[TEST]), batch_size=BATCH)
    model = CourseVAE()
    optimizer = torch.optim.Adamax(model.parameters(), lr=LEARNING_RATE)
    best_loss, best_epoch, best_weights = math.inf, 0, copy.deepcopy(model.state_dict())
    epoch = 0
    for epoch in range(1, max_epochs + 1):
        for x in train:
            optimizer.zero_grad()
            model(x).mean().backward()
            optimizer.step()
        loss = _mean_loss(model, val)
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            best_weights = copy.deepcopy(model.state_dict())
            if folder is not None:
                _keep_and_draw(model, folder, epoch)
        elif epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(best_weights)
    test_loss = _mean_loss(model, test)
    seconds = time.perf_counter() - start
    return CourseResult(model, seconds, epoch, best_epoch, best_loss, test_loss)


@torch.no_grad()
def importance_weighted_nll(
    model: CourseVAE, num_samples: int = 2000, seed: int = 0, chunk: int = 25
) -> tuple[float, float]:
    """Importance-weighted test NLL with q(z given x) as the proposal, and its standard error.

    The likelihood is the normalised categorical: clamped probabilities do not sum to one.

    Args:
        model: a trained model.
        num_samples: draws for each image (Burda et al. 2016, arXiv:1509.00519, eq. 8).
        seed: of the draws.
        chunk: draws held in memory at once.

    Returns:
        Mean over the test images in nats, and its standard error over the images.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.as_tensor(load_digits().data[TEST], dtype=torch.float32)
    mean, log_var = model.encode(x)
    log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64)
    for done in range(0, num_samples, chunk):
        draws = min(chunk, num_samples - done)
        noise = torch.randn(draws, *mean.shape, generator=generator)
        z = mean + torch.exp(0.5 * log_var) * noise
        logits = model.logits(z).view(-1, LEVELS)
        levels = x.long().expand(draws, *x.shape).reshape(-1)
        log_x = -F.cross_entropy(logits, levels, reduction="none").view(draws, *x.shape).sum(-1)
        log_prior = _log_normal(z, 0.0, torch.zeros_like(z))
        log_weights = log_x + log_prior - _log_normal(z, mean, log_var)
        log_sum = torch.logaddexp(log_sum, log_weights.double().logsumexp(0))
    nll = math.log(num_samples) - log_sum
    return nll.mean().item(), (nll.std() / math.sqrt(len(nll))).item()


def main() -> None:
    """Trains once and prints the time and the figures."""
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1000, help="stop here at the latest")
    parser.add_argument("--samples", type=int, default=2000, help="draws per image for the NLL")
    parser.add_argument("--pictures", action="store_true", help="save and draw improvements")
    parser.add_argument("--json", action="store_true", help="print one flat object")
    options = parser.parse_args()
    result = train_course_loop(options.seed, options.epochs, options.pictures)
    nll, nll_se = importance_weighted_nll(result.model, options.samples, options.seed)
    figures = {
        "seconds": round(result.seconds, 3),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "val_neg_elbo": round(result.val_loss, 3),
        "test_neg_elbo": round(result.test_loss, 3),
        "test_nll": round(nll, 3),
        "test_nll_se": round(nll_se, 3),
        "samples": options.samples,
        "pictures": options.pictures,
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<14} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
