"""Whether the latent code is used: the aggregated posterior, active units, generated data.

The aggregated posterior q(z) = 1/N sum_n q(z | x_n) is the exact mixture over all given data. In a
conditional model all is given the label: q(z | y) is the mixture over the data with that label, and
the split of the KL reads

    E KL(q(z | x, y) || p(z | y)) = I_q(x; z | y) + E_y KL(q(z | y) || p(z | y)),

which without labels is Hoffman and Johnson, "ELBO surgery" (2016).

A figure is the mean of one value per datum: their spread over the data gives its standard error,
for a fixed encoder and to first order in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.core.support import scored
from pyro_vaes.data.tables import filled
from pyro_vaes.evaluation.draws import BLOCK_SAMPLES, generator_of, row_blocks, seed_of
from pyro_vaes.evaluation.proposals.fitted import prior_draws
from pyro_vaes.evaluation.results import Unavailable, shared
from pyro_vaes.inference.divergences import mmd2
from pyro_vaes.vae import VAE

__all__ = [
    "class_accuracy",
    "classifier",
    "closed_forms",
    "generate",
    "ignores_z",
    "latent_mmd2",
    "slope",
    "unit_variances",
]


# Variation of log p(x | z) over draws of z, relative to its size, that rounding alone explains.
_ROUNDING = 1e-5

# Draws of the prior for each of some data that are asked whether their decoder reads z.
_PRIOR_DRAWS = 16

_MMD_DATA = 1000
_CLASSIFIER_ROWS = 10_000


def closed_forms(posterior: Any, prior: Any, count: int) -> dict[str, Tensor]:
    """Mean and entropy of q and its KL to the prior for each datum, where they have a closed form.

    Args:
        posterior: batch shape ``(count,)``.
        prior: batch shape ``()`` or ``(count,)``.
        count: number of data.

    Returns:
        ``closed_mean`` ``(count, D)``, ``closed_entropy`` and ``closed_kl``, each ``(count,)``, in
        nats, as far as they are known.
    """
    forms: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
        "mean": (lambda: posterior.mean, (count, *posterior.event_shape)),
        "entropy": (posterior.entropy, (count,)),
        "kl": (lambda: torch.distributions.kl_divergence(posterior, prior), (count,)),
    }
    figures = {}
    for name, (form, shape) in forms.items():
        with suppress(NotImplementedError):
            figures[f"closed_{name}"] = form().double().expand(shape)
    return figures


def slope(values: Tensor, noise: Tensor) -> float:
    """The slope of the regression of values on noise.

    Args:
        values: ``(n,)``.
        noise: ``(n,)``; if it is rounding only, the slope is zero.
    """
    centred = noise - noise.mean()
    square = centred.square().sum().item()
    if not square > torch.finfo(noise.dtype).eps * (1 + values.square().sum().item()):
        return 0.0
    return (values * centred).sum().item() / square


def unit_variances(mean: Tensor, noise: Tensor | None, labels: Tensor | None) -> Tensor:
    """The variance over the data of each unit's posterior mean.

    Burda et al., "Importance weighted autoencoders" (2016), section 5.2: a unit is active if it
    exceeds 0.01. In a conditional model the variance is within labels, since the label alone is no
    information about x.

    Args:
        mean: posterior means ``(n, D)``, or their estimates.
        noise: variances of those estimates ``(n, D)``, which would otherwise count as activity;
            None for exact means.
        labels: ``(n,)`` or None.

    Returns:
        ``(D,)``.

    Raises:
        Unavailable: for too few data or draws.
    """
    groups = torch.zeros(len(mean), device=mean.device).long() if labels is None else shared(labels)
    _, groups = groups.unique(return_inverse=True)
    counts = groups.bincount()
    freedom = len(mean) - len(counts)
    if freedom < 1:
        raise Unavailable("a variance needs two data (with the same label, if there are labels)")
    sums = mean.new_zeros(len(counts), mean.shape[-1]).index_add(0, groups, mean)
    centred = mean - (sums / counts.unsqueeze(-1))[groups]
    variance = centred.square().sum(0) / freedom
    if noise is not None:
        if not bool(noise.isfinite().all()):
            raise Unavailable(
                "the posterior's mean is known from draws only, of which there is one"
            )
        shares = (1 - 1 / counts)[groups].unsqueeze(-1)
        variance = variance - (noise * shares).sum(0) / freedom
    return variance


def ignores_z(vae: VAE, x: Tensor, y: Tensor | None, values: dict[str, Tensor], seed: int) -> bool:
    """Whether log p(x | z) does not depend on z: on draws of the posterior, nor of the prior.

    Draws of a narrow posterior are too much alike to show it.

    Args:
        vae: the model.
        x: the data.
        y: labels ``(n,)`` or None.
        values: the range of log p(x | z) over the posterior's draws of each datum, and its mean.
        seed: seed of the prior's draws.
    """
    most = _ROUNDING * (values["log_likelihood"].abs() + 1)
    if not bool((values["likelihood_range"] <= most).all()):
        return False
    block = next(row_blocks(vae, x, y))
    generator = generator_of(x.device, int(seed), "ignores")
    z = prior_draws(block.prior, _PRIOR_DRAWS, len(block.x), generator)
    low, high = scored(vae.p_x(z, block.y), block.x).double().aminmax(dim=0)
    return bool((high - low <= most[: len(block.x)]).all())


def latent_mmd2(vae: VAE, z: Tensor, y: Tensor | None, seed: int) -> tuple[float, float]:
    """The squared MMD between aggregated posterior and prior, and its standard error.

    The unbiased estimator (:func:`.mmd2`) from one posterior draw per datum, of at most a thousand
    data, and as many draws of the prior; given labels, the mean over the labels.

    Args:
        vae: the model.
        z: one draw for each datum, ``(n, D)``.
        y: labels ``(n,)`` or None.
        seed: seed of the prior's draws.

    Raises:
        Unavailable: without two data (with the same label).
    """
    y = shared(y)
    generator = torch.Generator().manual_seed(seed_of(int(seed), "mmd"))
    some = torch.randperm(len(z), generator=generator)[:_MMD_DATA].sort().values.to(z.device)
    z, y = z[some], None if y is None else y[some]
    torch.manual_seed(seed_of(int(seed), "prior"))
    groups = [torch.arange(len(z))] if y is None else [(y == i).nonzero()[:, 0] for i in y.unique()]
    values, weights, errors = [], [], []
    for index in groups:
        if len(index) < 2:
            continue
        prior = vae.p_z(None if y is None else y[index])
        other = prior.sample(() if prior.batch_shape else (len(index),))
        terms = mmd2(z[index].double(), other.double(), paired=True, each=True)
        values.append(terms.mean().item())
        # The variance of a U-statistic of order two (Hoeffding 1948), first order.
        errors.append(2 * terms.std().item() / math.sqrt(len(terms)))
        weights.append(len(index))
    if not values:
        raise Unavailable("MMD needs two data (with the same label, if there are labels)")
    total = sum(weights)
    mean = sum(w * value for w, value in zip(weights, values, strict=True)) / total
    variance = sum((w / total * error) ** 2 for w, error in zip(weights, errors, strict=True))
    return mean, math.sqrt(variance)


def classifier(x: Tensor, y: Tensor) -> Any:
    """A support vector classifier of the flattened data, from at most ten thousand rows."""
    from sklearn.svm import SVC

    y = shared(y)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(x), generator=generator)[:_CLASSIFIER_ROWS].sort().values
    if len(y[rows].unique()) < 2:
        raise Unavailable("a classifier needs training data with at least two labels")
    return SVC().fit(filled(x[rows]).flatten(1).cpu().numpy(), y[rows].cpu().numpy())


def generate(vae: VAE, y: Tensor, seed: int) -> Tensor:
    """One datum x ~ p(x | y) for each label, for at most ten thousand of them."""
    made = []
    for place, labels in enumerate(y[:_CLASSIFIER_ROWS].split(BLOCK_SAMPLES)):
        torch.manual_seed(seed_of(int(seed), "generate", place))
        made.append(vae.sample(len(labels), labels))
    return torch.cat(made)


def class_accuracy(model: Any, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The share of data that a classifier labels correctly, with its standard error."""
    right = model.predict(filled(x).flatten(1).cpu().numpy()) == y.cpu().numpy()
    share = float(right.mean())
    return share, math.sqrt(share * (1 - share) / max(1, len(right) - 1))
