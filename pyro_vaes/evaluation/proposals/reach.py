"""For which data the encoder's draws cannot reach all of p(z | x), which no k-hat shows.

The mean weight of draws of q(z | x) is the mass of p(x, z) where q(z | x) is not nought: log p(x)
only if that is everywhere where the prior is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vaes.core.support import inside, is_angle
from pyro_vaes.evaluation.draws import RowBlock, generator_of
from pyro_vaes.evaluation.proposals.fitted import prior_draws

__all__ = ["reach_warnings", "unreached"]


_DRAWS = 512


def unreached(block: RowBlock, seed: int) -> Tensor:
    """For which data of a block the prior has draws outside of the posterior's support, ``(n,)``.

    Args:
        block: the data.
        seed: of the draws.
    """
    none = torch.zeros(len(block.x), dtype=torch.bool, device=block.x.device)
    if block.singular or is_angle(block.posterior) != is_angle(block.prior):
        return ~none
    generator = generator_of(block.x.device, int(seed), "reach", block.first)
    if inside(block.posterior, prior_draws(block.prior, 1, len(block.x), generator)) is None:
        return none
    z = prior_draws(block.prior, _DRAWS, len(block.x), generator)
    within = inside(block.posterior, z)
    return none if within is None else ~within.all(0)


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
            f"the support of q(z | x) leaves out a part of the prior's for {int(missed.sum())} of "
            f"{len(missed)} data: their log p(x), of the rest alone, is not to be trusted. Take a "
            "posterior that is positive wherever the prior is"
        )
