"""Coordinates in which p(z | x) of a chain of levels is fitted: the noise of each level.

Given the level above, a level is often far narrower than over all, and its place moves with the
level above: no normal over z follows that. With ``z_l = loc(z_>l) + scale(z_>l) e_l`` the prior of
e does not depend on the levels above, and p(x, e) = p(x, z) |dz/de| has the same integral p(x) and
milder bends (Papaspiliopoulos, Roberts and Sköld 2007; Betancourt and Girolami, "Hamiltonian Monte
Carlo for hierarchical models", 2015). Fits, starts and annealing take place there; draws and
densities are handed back as those of z.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor

from pyro_vaes.core.support import scored
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.evaluation.proposals.fitted import Fit
from pyro_vaes.evaluation.proposals.joint import Joint

__all__ = ["InLatents", "NoiseJoint", "in_latents", "joint_for"]


class NoisePrior:
    """The prior of a chain's noise."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.batch_shape = chain, chain.batch_shape

    def sample(self, shape: Any) -> Tensor:
        """Draws ``(*shape, *batch, D)``."""
        return self.chain.whiten(self.chain.sample(shape))[0]

    def log_prob(self, noise: Tensor) -> Tensor:
        """Log density of noise ``(..., D)``; the networks of the links run once."""
        z, log_det = self.chain.colour(noise)
        return self.chain.log_prob(z) + log_det


class NoiseJoint(Joint):
    """Log p(x, e) of n data as a function of the noise e of a chain."""

    def chain(self) -> Chain:
        """The prior over z."""
        return cast(Chain, super().prior())

    def prior(self) -> NoisePrior:
        """The prior over e."""
        return NoisePrior(self.chain())

    def coordinates(self, z: Tensor) -> Tensor:
        """The noise of latents."""
        return self.chain().whiten(z)[0]

    def _terms(self, z: Tensor, piece: int) -> tuple[Tensor, Tensor]:
        chain = cast(Chain, self._priors[piece])
        latents, log_det = chain.colour(z)
        likelihood = self.vae.p_x(latents, self._labels[piece])
        log_x = scored(likelihood, self.x[self._rows[piece]])
        return log_x, chain.log_prob(latents) + log_det


@dataclasses.dataclass(frozen=True)
class InLatents:
    """A proposal of noise, as one of z."""

    proposal: Fit
    joint: NoiseJoint

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)`` of z."""
        return self.joint.chain().colour(self.proposal.sample(num, generator))[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)`` in nats, float64."""
        noise, log_det = self.joint.chain().whiten(z)
        return self.proposal.log_prob(noise) - log_det.double()

    def rows(self, index: Tensor | slice) -> InLatents:
        """Of some of the data."""
        return InLatents(self.proposal.rows(index), cast(NoiseJoint, self.joint.rows(index)))


def joint_for(prior: Any, *arguments: Any) -> Joint:
    """The target of a fit, in the coordinates that suit the prior."""
    return (NoiseJoint if isinstance(prior, Chain) else Joint)(*arguments)


def in_latents(proposal: Fit, joint: Joint) -> Fit:
    """A proposal in the coordinates of a target, as one of z."""
    return InLatents(proposal, joint) if isinstance(joint, NoiseJoint) else proposal
