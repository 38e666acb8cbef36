"""For which data the encoder's draws cannot reach all of p(z | x), which no k-hat shows.

The mean weight of draws of q(z | x) is the mass of p(x, z) where q(z | x) is not nought: log p(x)
only if that is everywhere where the prior is not. Nor do draws that coincide in floating point say
anything: their weights are all equal, as those of p(z | x) itself would be.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vaes.core.support import inside, is_angle, support_of
from pyro_vaes.evaluation.draws import RowBlock, generator_of, seed_of
from pyro_vaes.evaluation.proposals.fitted import prior_draws
from pyro_vaes.vae import drawn

__all__ = ["reach_warnings", "unreached"]


_DRAWS = 512

# Draws to see whether they repeat, and the share of repetitions that no continuous q(z | x) has.
_FEW, _REPEATED = 64, 0.1


def unreached(block: RowBlock, seed: int) -> Tensor:
    """For which data of a block the posterior's draws miss a part of the prior's support, ``(n,)``.

    The prior has draws outside of the posterior's support, or the posterior is so narrow that its
    draws coincide in floating point.

    Args:
        block: the data.
        seed: of the draws.
    """
    none = torch.zeros(len(block.x), dtype=torch.bool, device=block.x.device)
    if block.singular or is_angle(block.posterior) != is_angle(block.prior):
        return ~none
    narrow = _coincide(block, seed)
    generator = generator_of(block.x.device, int(seed), "reach", block.first)
    if inside(block.posterior, prior_draws(block.prior, 1, len(block.x), generator)) is None:
        return narrow
    z = prior_draws(block.prior, _DRAWS, len(block.x), generator)
    within = inside(block.posterior, z)
    return narrow if within is None else narrow | ~within.all(0)


def _coincide(block: RowBlock, seed: int) -> Tensor:
    """For which data draws of a continuous posterior repeat each other in some dimension."""
    torch.manual_seed(seed_of(int(seed), "repeats", block.first))
    z = drawn(block.posterior, _FEW)
    if not z.is_floating_point() or getattr(support_of(block.posterior), "is_discrete", False):
        return torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
    generator = generator_of(z.device, int(seed), "repeats", block.first)
    return _repeat(z) & ~_repeat(prior_draws(block.prior, _FEW, len(block.x), generator))


def _repeat(z: Tensor) -> Tensor:
    """Whether many draws ``(num, n, D)`` of a datum are equal in some dimension, ``(n,)``."""
    equal = (z.sort(0).values.diff(dim=0) == 0).double().mean(0)
    return (equal > _REPEATED).flatten(1).any(1)


def reach_warnings(kind: str, why: str | None, missed: Tensor) -> Iterator[str]:
    """What there is to say of the encoder's reach.

    Args:
        kind: the proposal used.
        why: the posterior has no density, if it has none.
        missed: which data are :func:`unreached`.
    """
    if why is not None:
        yield f"{why}: its ELBO is minus infinity, and its draws do not estimate log p(x)"
    elif kind == "encoder" and bool(missed.any()):
        yield (
            f"the support of q(z | x) leaves out a part of the prior's, or its draws coincide, for "
            f"{int(missed.sum())} of {len(missed)} data: their log p(x), of the rest alone, is not "
            'to be trusted. Take proposal="refined", or a posterior that is positive wherever the '
            "prior is"
        )
