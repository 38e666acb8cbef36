"""Annealed importance sampling: log p(x) by many small steps, as a check of other estimates.

Chains start at a proposal q(z) and pass through densities q(z)^(1 - b) p(x, z)^b with b from 0 to
1, with Hamiltonian Monte Carlo in between; the mean weight is p(x) (Neal, "Annealed importance
sampling", 2001; for decoders Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of
decoder-based generative models", 2017). On data simulated from the model the chain can also start
at an exact draw of p(z | x) and run backwards, which bounds log p(x) from above: the number of
temperatures grows until both agree (Grosse, Ancha, Roy, "Measuring the reliability of MCMC
inference with bidirectional Monte Carlo", 2016).

Step sizes come from a pilot run on other noise and stay fixed: adapting them along the chain would
bias its weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vaes.evaluation.draws import generator_of
from pyro_vaes.evaluation.proposals.joint import Joint
from pyro_vaes.evaluation.proposals.refined import Full, LowRank

__all__ = ["CHAINS", "LEAPFROGS", "TOLERANCE", "Chains", "Source", "settle"]


CHAINS, LEAPFROGS = 16, 5

# Nats by which forward and reverse means may differ on simulated data.
TOLERANCE = 0.1

# Numbers of temperatures to try.
_TEMPERATURES = (32, 64, 128, 256, 512, 1024)

# Target acceptance rate of the step sizes, and how fast they adapt.
_ACCEPT, _FOLLOW = 0.75, 0.6


class Source(Protocol):
    """Where chains start."""

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)``."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of ``(num, n, D)``: ``(num, n)``."""


@dataclasses.dataclass
class _State:
    """Positions of the chains, with both log densities and their gradients there."""

    z: Tensor
    joint: Tensor
    source: Tensor
    joint_slope: Tensor
    source_slope: Tensor

    def at(self, beta: float) -> tuple[Tensor, Tensor]:
        """Log density and gradient at a temperature."""
        value = (1 - beta) * self.source + beta * self.joint
        return value, (1 - beta) * self.source_slope + beta * self.joint_slope

    def moved(self, other: _State, accept: Tensor) -> _State:
        """The other state where it is accepted, ``(chains, n)``."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)]
        masks = [accept if old.dim() == 2 else accept.unsqueeze(-1) for old, _ in pairs]
        return _State(
            *(new.where(mask, old) for (old, new), mask in zip(pairs, masks, strict=True))
        )


class Chains:
    """Annealing for a block of data.

    Args:
        joint: log p(x, z) of the block.
        source: where the chains start.
        frame: coordinates in which steps have equal length in all directions.
        place: from which seeds are made.
    """

    def __init__(self, joint: Joint, source: Source, frame: Full | LowRank, *place: Any) -> None:
        self.joint, self.source, self.frame, self.place = joint, source, frame, place

    def forward(self, temperatures: int) -> Tensor:
        """Log weights ``(CHAINS, n)``; the log of their mean bounds log p(x) from below."""
        steps = self._pilot(temperatures)
        generator = self._generator("forward", temperatures)
        return self._run(self._state(self.source.sample(CHAINS, generator)), steps, 1, generator)

    def bracket(self, temperatures: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on log p(x), ``(n,)``, from below and above, in expectation.

        Args:
            temperatures: their number.
            z: a draw of p(z | x) for each datum, ``(n, D)``: the one that x was simulated from.
        """
        lower = _log_mean(self.forward(temperatures))
        generator = self._generator("reverse", temperatures)
        state = self._state(z.expand(CHAINS, *z.shape).contiguous())
        weights = self._run(state, self._pilot(temperatures), -1, generator)
        return lower, -_log_mean(-weights)

    def _pilot(self, temperatures: int) -> Tensor:
        """Step sizes ``(temperatures - 1, n)``, adapted on separate noise."""
        generator = self._generator("pilot", temperatures)
        state = self._state(self.source.sample(CHAINS, generator))
        n, dim = state.z.shape[-2:]
        step = torch.full((n,), 0.7 * dim**-0.25, dtype=state.z.dtype, device=state.z.device)
        steps = []
        for beta in _betas(temperatures)[1:-1]:
            state, accept = self._move(state, beta, step, generator)
            step = step * (_FOLLOW * (accept.to(step).mean(0) - _ACCEPT)).exp()
            steps.append(step)
        return torch.stack(steps)

    def _run(
        self, state: _State, steps: Tensor, direction: int, generator: torch.Generator
    ) -> Tensor:
        betas = _betas(len(steps) + 1)
        weights = torch.zeros_like(state.joint)
        order = range(len(steps) + 1)[::direction]
        for count, i in enumerate(order):
            weights += (betas[i + 1] - betas[i]) * (state.joint - state.source)
            if count < len(steps):  # At the temperature between this difference and the next.
                between = i if direction > 0 else i - 1
                state, _ = self._move(state, betas[between + 1], steps[between], generator)
        return weights

    def _move(
        self, state: _State, beta: float, step: Tensor, generator: torch.Generator
    ) -> tuple[_State, Tensor]:
        """One trajectory of Hamiltonian Monte Carlo, and whether it was accepted."""
        length = step.unsqueeze(-1)
        momentum = _noise(state.z, generator)
        value, slope = state.at(beta)
        energy = value - momentum.square().sum(-1) / 2
        new = state
        for _ in range(LEAPFROGS):
            momentum = momentum + length / 2 * self.frame.pull(slope)
            new = self._state(new.z + self.frame.colour(length * momentum))
            value, slope = new.at(beta)
            momentum = momentum + length / 2 * self.frame.pull(slope)
        gain = value - momentum.square().sum(-1) / 2 - energy
        chance = torch.rand(gain.shape, generator=generator, device=gain.device, dtype=gain.dtype)
        accept = chance.log() < gain.nan_to_num(-math.inf)
        return state.moved(new, accept), accept

    def _state(self, z: Tensor) -> _State:
        value, slope = self.joint.gradient(z)
        with torch.enable_grad():
            part = z.detach().requires_grad_()
            source = self.source.log_prob(part)
            (source_slope,) = torch.autograd.grad(source.sum(), part)
        return _State(z, value, source.detach().double(), slope, source_slope)

    def _generator(self, *what: Any) -> torch.Generator:
        return generator_of(self.joint.x.device, *self.place, *what)


def settle(bracket: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[int, float]:
    """The number of temperatures needed, and by how much both bounds differ then.

    Args:
        bracket: the bounds on log p(x) of simulated data with a number of temperatures.

    Returns:
        The first number at which the means differ by less than ``TOLERANCE``, or the last.
    """
    gap = math.inf
    for temperatures in _TEMPERATURES:
        lower, upper = bracket(temperatures)
        gap = (upper - lower).mean().item()
        if gap < TOLERANCE:
            break
    return temperatures, gap


def _betas(temperatures: int) -> list[float]:
    """Values from 0 to 1 in ``temperatures`` steps, closer at both ends: a sigmoid."""
    places = [math.tanh(2 * (2 * i / temperatures - 1)) for i in range(temperatures + 1)]
    return [0.5 + 0.5 * place / math.tanh(2) for place in places]


def _log_mean(weights: Tensor) -> Tensor:
    return weights.logsumexp(0) - math.log(len(weights))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
