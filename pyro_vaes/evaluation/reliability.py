"""Whether an estimate of log p(x) is to be trusted: Pareto k-hat, effective sample size, modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.evaluation.pareto import MIN_SAMPLES, reliable_k
from pyro_vaes.evaluation.proposals.annealed import TOLERANCE

__all__ = ["UNRELIABLE", "is_trusted", "k_hat_lines", "reliability"]


#: Largest share of unreliable data in a figure to be trusted.
UNRELIABLE = 0.05

_FIGURES = ("pareto_k_median", "pareto_k_max", "pareto_k_limit", "num_unreliable")


def reliability(
    values: Mapping[str, Tensor], proposal: str, num_samples: int
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Figures of the estimate and, as ``encoder_...``, of the encoder's draws alone.

    Args:
        values: figures of each datum, from a :class:`~pyro_vaes.evaluation.passes.Pass`.
        proposal: the one used.
        num_samples: S.

    Returns:
        Figures of an :class:`~pyro_vaes.evaluation.Evaluation`, why some are missing, and warnings.
    """
    size = values["effective_sample_size"]
    found: dict[str, Any] = {"ess_median": size.median().item(), "ess_min": size.min().item()}
    if "pareto_k" not in values:
        reason = f"a Pareto k-hat needs at least {MIN_SAMPLES} samples"
        names = [*_FIGURES, *(f"encoder_{name}" for name in _FIGURES)]
        missing = [*names, "share_unreliable", "num_unexplored"]
        return found, dict.fromkeys(missing, reason), [f"{reason}; got {num_samples}."]
    limit = reliable_k(num_samples)
    over = values["pareto_k"] > limit
    unexplored = values.get("unexplored", torch.zeros_like(over))
    unreached = values.get("unreached", torch.zeros_like(over))
    wrong = {"": over | unexplored | (unreached if proposal == "encoder" else False)}
    if "encoder_pareto_k" in values:
        wrong["encoder_"] = (values["encoder_pareto_k"] > limit) | unreached
    wrong = {who: bad | values.get(f"{who}undefined", False) for who, bad in wrong.items()}
    for who, unreliable in wrong.items():
        k = values[f"{who}pareto_k"]
        found[f"{who}pareto_k_median"], found[f"{who}pareto_k_max"] = (
            k.median().item(),
            k.max().item(),
        )
        found[f"{who}num_unreliable"] = int(unreliable.sum())
    found |= {"pareto_k_limit": limit, "unreliable": wrong[""]}
    found["num_unexplored"] = int(unexplored.sum())
    found["share_unreliable"] = found["num_unreliable"] / len(size)
    return found, {}, list(_warnings(over, unexplored, proposal, limit))


def _warnings(over: Tensor, unexplored: Tensor, proposal: str, limit: float) -> Iterator[str]:
    distrust = "their log p(x) is not to be trusted, and -log p(x) is likely to be lower."
    if bool(over.any()):
        remedy = 'more samples, or proposal="annealed"'
        if proposal == "encoder":
            remedy = 'another proposal ("auto"), more samples'
        yield (
            f"Pareto k-hat is over {limit:.2f} for {int(over.sum())} of {len(over)} data: "
            f"{distrust} Take {remedy}, or a posterior that fits better (a flow, a wider network)."
        )
    if bool(unexplored.any()):
        yield (
            f"p(z | x) has several modes for {int(unexplored.sum())} of {len(over)} data, and fits "
            f"from different starts keep finding new ones: {distrust} Take "
            'proposal="annealed" with start="prior".'
        )


def is_trusted(figures: Mapping[str, Any]) -> bool | None:
    """Whether a mean of log p(x) is unreliable for at most :data:`UNRELIABLE` of the data.

    Args:
        figures: those of an evaluation, by name.

    Returns:
        None if unknown, without a k-hat.
    """
    if figures["proposal"] == "annealed":  # Judged by forward and reverse runs, for all data.
        return bool(figures["annealing_gap"] < TOLERANCE)
    share = figures["share_unreliable"]
    return None if share is None else bool(share <= UNRELIABLE)


def k_hat_lines(figures: Mapping[str, Any], reason: str) -> Iterator[str]:
    """Pareto k-hat in words, of the proposal and of the encoder's draws alone.

    Args:
        figures: those of an evaluation, by name.
        reason: why there is no k-hat, if there is none.
    """
    limit = figures["pareto_k_limit"]
    if figures["num_unreliable"] is None:
        unknown = "" if is_trusted(figures) else "; whether -log p(x) can be trusted is unknown"
        yield f"Pareto k-hat: n/a ({reason}){unknown}"
        return
    yield f"Pareto k-hat, at most {limit:.2f} where log p(x) is to be trusted"
    for title, who in (("proposal", ""), ("encoder's draws alone", "encoder_")):
        count = figures[f"{who}num_unreliable"]
        if count is not None:
            share = count / figures["num_data"]
            yield (
                f"  {title}: median {figures[f'{who}pareto_k_median']:.2f}, largest "
                f"{figures[f'{who}pareto_k_max']:.2f}; unreliable for {count} of "
                f"{figures['num_data']} data ({share:.1%})"
            )
    if not is_trusted(figures):
        yield f"  -log p(x) is NOT TO BE TRUSTED: unreliable for more than {UNRELIABLE:.0%}"
