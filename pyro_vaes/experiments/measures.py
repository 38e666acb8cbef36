"""Measures of a trained run beyond :func:`pyro_vaes.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.distributions.mixtures import Mixture
from pyro_vaes.evaluation.diagnostics import class_accuracy, classifier, generate
from pyro_vaes.evaluation.evaluator import log_marginal
from pyro_vaes.runs.summary import moved
from pyro_vaes.vae import VAE, evaluating

__all__ = ["MEASURES", "reliability"]


_PER_CLASS = 1000
_BINS = 10
# Draws of each row for the KL of levels.
_DRAWS = 100


def training_rows(
    vae: VAE, data: DataSet, samples: int, proposal: str = "auto"
) -> dict[str, float]:
    """NLL of training rows, as many as test rows: the difference to test NLL shows over-fitting."""
    count = len(data.test)
    x = data.train.frozen().x[:count]
    y = None if data.train.y is None or not vae.conditional else data.train.y[:count]
    return {"nll_train": -log_marginal(vae, x, samples, y=y, proposal=proposal).mean().item()}


def components_used(
    vae: VAE, data: DataSet, samples: int, proposal: str = "auto"
) -> dict[str, float]:
    """The number of distinct components of a mixture prior in use: exp I(k; z) under q(z) p(k | z).

    I(k; z) is the entropy of the components' shares of q(z) minus that given z. The number is K for
    K separate components with equal shares, 1 if one has all of q(z), and 1 for K copies of one.
    """
    with evaluating(vae):
        torch.manual_seed(0)
        prior = vae.p_z()
        if not isinstance(prior, Mixture):
            return {"components_used": 1.0}
        z = vae.q_z(data.test.x).sample()
        scores = prior.mixture_distribution.logits + prior.log_prob_components(z)
        given_z = scores.double().softmax(-1)
    left = torch.special.entr(given_z).sum(-1).mean()
    information = torch.special.entr(given_z.mean(0)).sum() - left
    return {"components_used": information.exp().item()}


def level_kls(vae: VAE, data: DataSet, samples: int, proposal: str = "auto") -> dict[str, float]:
    """The KL of each level of latents, level 1 being the lowest; of one level, the KL."""
    split = data.test.frozen()
    y = split.y if vae.conditional else None
    with evaluating(vae):
        torch.manual_seed(0)
        q, p = vae.q_z(split.x, y), vae.p_z(y if vae.prior_is_conditional else None)
        z = q.sample((min(samples, _DRAWS),))
        if isinstance(q, Chain) and isinstance(p, Chain) and not q.reverse:
            kls = (q.level_log_probs(z) - p.level_log_probs(z)).mean((0, 1))
        else:
            kls = (q.log_prob(z) - p.log_prob(z)).mean().reshape(1)
    return {f"kl_level_{level}": kl for level, kl in enumerate(kls.flip(0).tolist(), 1)}


def pseudo_inputs_moved(
    vae: VAE, data: DataSet, samples: int, proposal: str = "auto"
) -> dict[str, float]:
    """The median distance that pseudo-inputs moved, in standard deviations of each element."""
    median = moved(vae, data)
    return {} if median is None else {"pseudo_inputs_moved": median}


def generated_classes(
    vae: VAE, data: DataSet, samples: int, proposal: str = "auto"
) -> dict[str, Any]:
    """Accuracy on generated data, a thousand per class, of a classifier trained on real data."""
    if not vae.conditional or data.train.y is None or data.num_labels is None:
        return {}
    judge = classifier(data.train.x, data.train.y)
    labels = torch.arange(data.num_labels).repeat_interleave(_PER_CLASS)
    with evaluating(vae):
        made = generate(vae, labels, seed=0)
    right = torch.as_tensor(judge.predict(made.flatten(1).numpy())) == labels[: len(made)]
    share, error = class_accuracy(judge, made, labels[: len(made)])
    by_class = [right[labels[: len(made)] == c].double().mean().item() for c in labels.unique()]
    return {"generated_accuracy": share, "generated_accuracy_se": error, "by_class": by_class}


def calibration(vae: VAE, data: DataSet, samples: int, proposal: str = "auto") -> dict[str, Any]:
    """Whether the probabilities of p(x | z) for single pixels agree with frequencies.

    The event is that a pixel of a test image is in the upper half of the levels; its probability is
    that under p(x | z) at a posterior draw of z. ``calibration_error`` is the mean distance between
    frequency and probability over ten bins, weighted by count (Guo et al. 2017, equation 3).
    """
    with evaluating(vae):
        torch.manual_seed(0)
        x = data.test.frozen().x
        y = data.test.y if vae.conditional else None
        likelihood = vae.p_x(vae.q_z(x, y).sample(), y)
        base = getattr(likelihood, "base_dist", likelihood)
        if not base.has_enumerate_support:
            return {}
        levels = base.enumerate_support(expand=False)
        upper = (len(levels) + 1) // 2
        probability = base.log_prob(levels)[upper:].exp().sum(0)
    return reliability(probability.flatten(), (x >= upper).flatten())


def reliability(probability: Tensor, happened: Tensor) -> dict[str, Any]:
    """Bins events by their probability: mean probability, frequency and count of each bin.

    Args:
        probability: of each event, ``(n,)``.
        happened: whether it occurred, ``(n,)``.
    """
    place = (probability.double() * _BINS).long().clamp(max=_BINS - 1)
    counts = torch.bincount(place, minlength=_BINS).double()
    sums = torch.zeros(2, _BINS, dtype=torch.float64)
    sums[0].index_add_(0, place, probability.double())
    sums[1].index_add_(0, place, happened.double())
    kept = counts > 0
    expected, observed = (sums / counts)[:, kept]
    error = (counts[kept] * (expected - observed).abs()).sum() / counts.sum()
    return {
        "calibration_error": error.item(),
        "expected": expected.tolist(),
        "observed": observed.tolist(),
        "counts": counts[kept].tolist(),
    }


MEASURES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "calibration": calibration,
    "components_used": components_used,
    "generated_classes": generated_classes,
    "level_kls": level_kls,
    "pseudo_inputs_moved": pseudo_inputs_moved,
    "training_rows": training_rows,
}
