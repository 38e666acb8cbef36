"""Proposals for z to estimate log p(x): the encoder, a fit per datum, or both.

- ``encoder``: q(z | x), as it was trained.
- ``refined``: a Student's t fitted to each datum (:mod:`pyro_vaes.evaluation.proposals.refined`),
  mixed with the prior, whose share grows with the mass that it covers (Hesterberg, "Weighted
  average importance sampling and defensive mixture distributions", Technometrics 1995): no region
  of z is missed where data determine little of z, and all weights are bounded.
- ``auto``: half of each by the balance heuristic (Veach and Guibas, "Optimally combining sampling
  techniques", 1995) where the posterior scores other draws cheaply, ``refined`` where it does not,
  and ``encoder``, with the reason, where nothing can be fitted.
- ``annealed``: annealed importance sampling (:mod:`pyro_vaes.evaluation.proposals.annealed`).

Fits, further starts and retries are judged by draws that are not used again: an estimate from draws
that passed a test would be biased.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pyro.distributions.transforms import AffineAutoregressive
from torch import Tensor
from torch.distributions import constraints

from pyro_vaes.core.choices import PROPOSALS
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.evaluation.draws import RowBlock, generator_of
from pyro_vaes.evaluation.pareto import pareto_k, tail_size
from pyro_vaes.evaluation.proposals.joint import Joint
from pyro_vaes.evaluation.proposals.refined import (
    DIAGONAL,
    FULL,
    STAGES,
    Stage,
    Student,
    fit,
    improve,
)
from pyro_vaes.vae import VAE, drawn

__all__ = [
    "Balanced",
    "Fit",
    "Fitted",
    "Mixed",
    "PriorPart",
    "PriorSource",
    "check_proposal",
    "prior_draws",
    "prior_scale",
    "refine",
    "scores_cheaply",
    "unrefinable",
]


# Rows of a block whose fit is also started at draws of the prior, and the number of such starts:
# for these rows, and for all rows of a block in which the starts disagree.
_PILOT_ROWS, _PILOT_STARTS, _MORE_STARTS = 16, 2, 4

# Draws for the mass of a component; draws for the k-hat that decides on a retry, and its limit.
_MASS_DRAWS = 32
_PILOT_DRAWS, _PILOT_K = 128, 0.7

# Enough of a fit to see where a start leads.
_SHORT = (DIAGONAL, FULL)

# Two fits are two modes if their locations are more than this many scales (squared) apart, and
# matter if the masses differ by less than this many nats.
_APART, _MATTERS = 9.0, 3.0

# The share of a mixture's draws that is split evenly over its parts, whatever their masses.
_EVEN = 0.1

# The second retry: a long climb in whitened coordinates.
_LONG = (Stage(100, 2, 0.1), Stage(100, 4, 0.03))

# Draws for the scale of the prior.
_PRIOR_DRAWS = 512


def check_proposal(proposal: str, start: str) -> None:
    """Refuses an unknown proposal, or a start that does not apply to it."""
    if start not in ("refined", "prior") or (start != "refined" and proposal != "annealed"):
        raise ValueError(
            'Expected start="refined", or start="prior" with proposal="annealed"; got '
            f"start={start!r} with proposal={proposal!r}."
        )
    if proposal not in PROPOSALS:
        raise ValueError(
            f"Expected a proposal among {', '.join(map(repr, PROPOSALS))}; got {proposal!r}."
        )


class Fit(Protocol):
    """A proposal per datum."""

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)``."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)`` in nats, float64."""

    def rows(self, index: Tensor | slice) -> Fit:
        """Of some of the data."""


@dataclasses.dataclass(frozen=True)
class PriorPart:
    """The prior as a part of a proposal."""

    joint: Joint

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)``."""
        return prior_draws(self.joint.prior(), num, len(self.joint), generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)`` in nats, float64."""
        return self.joint.prior().log_prob(z).double()

    def rows(self, index: Tensor | slice) -> PriorPart:
        """Of some of the data."""
        return PriorPart(self.joint.rows(index))


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A mixture per datum of fits and the prior.

    Attributes:
        parts: K of them, a fit first.
        log_weights: ``(n, K)``, minus infinity for a fit that a datum does not have.
    """

    parts: tuple[Student | PriorPart, ...]
    log_weights: Tensor

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)``."""
        draws = [part.sample(num, generator) for part in self.parts]
        if len(draws) == 1:
            return draws[0]
        chosen = torch.multinomial(self.log_weights.exp(), num, True, generator=generator)
        index = chosen.mT[None, ..., None].expand(1, *draws[0].shape)
        return torch.stack(draws).gather(0, index)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)`` in nats, float64."""
        terms = [  # A part without weight may be a fit that has failed, with NaN in it.
            (part.log_prob(z) + weight).masked_fill(weight.isneginf(), -math.inf)
            for part, weight in zip(self.parts, self.log_weights.unbind(-1), strict=True)
        ]
        return torch.stack(terms).logsumexp(0)

    def rows(self, index: Tensor | slice) -> Mixed:
        """Of some of the data."""
        return Mixed(tuple(part.rows(index) for part in self.parts), self.log_weights[index])


@dataclasses.dataclass(frozen=True)
class Balanced:
    """The mixture of posterior and fit, each with its share of the draws.

    Attributes:
        posterior: q(z | x), able to score any z.
        fitted: the fit.
        share: of the posterior's draws.
    """

    posterior: Any
    fitted: Mixed
    share: float

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)`` in nats, float64."""
        ours = self.fitted.log_prob(z) + math.log1p(-self.share)
        return torch.logaddexp(self.posterior.log_prob(z).double() + math.log(self.share), ours)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws of the fit ``(num, n, D)``; those of the posterior exist already."""
        return self.fitted.sample(num, generator)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The result of :func:`refine`.

    Attributes:
        proposal: the mixture of fits, in the coordinates of the target or as one of z.
        unexplored: ``(n,)``, whether a mode that matters was found from one start only, so that
            others may have been missed.
    """

    proposal: Fit
    unexplored: Tensor


def unrefinable(block: RowBlock, joint: Joint) -> str | None:
    """Why no proposal over all of R^D can be fitted, None if one can."""
    reason = _place(block.prior) or _place(block.posterior, must_say=_support(block.prior) is None)
    if reason:
        return reason
    z = drawn(block.posterior, 1)
    if not z.is_floating_point():
        return f"z is of type {str(z.dtype).removeprefix('torch.')}, without gradients"
    try:
        joint.gradient(z)
    except (RuntimeError, NotImplementedError) as error:
        return f"{' '.join(str(error).split())[:100]}"
    return None


def _support(distribution: Any) -> Any:
    try:
        return distribution.support
    except (AttributeError, NotImplementedError):
        return None


def _place(distribution: Any, must_say: bool = False) -> str | None:
    """Why z is no vector of R^D, according to its distribution."""
    if isinstance(distribution, Chain):
        return next(filter(None, map(_place, distribution.distributions())), None)
    kind, support = type(distribution).__name__, _support(distribution)
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    if isinstance(distribution, torch.distributions.VonMises):
        return "z is an angle"
    if support is None:
        return f"neither prior nor posterior ({kind}) says its support" if must_say else None
    if support.is_discrete:
        return f"z is discrete ({kind})"
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    real = isinstance(support, type(constraints.real))
    return None if real else f"z lives in {support}, not in all of R^D"


def scores_cheaply(vae: VAE, posterior: Any) -> bool:
    """Whether the posterior scores draws other than its own, in one pass."""
    if not getattr(vae.posterior, "scores", True):
        return False
    transforms = getattr(posterior, "transforms", ())
    if any(isinstance(transform, AffineAutoregressive) for transform in transforms):
        return False
    try:
        posterior.log_prob(drawn(posterior, 1).clone())
    except (NotImplementedError, KeyError):  # Raised by flows without inverse.
        return False
    return True


def prior_draws(prior: Any, num: int, count: int, generator: torch.Generator) -> Tensor:
    """Draws ``(num, count, D)`` of a prior with or without labels, from a generator."""
    with torch.random.fork_rng(devices=_devices(generator)):
        torch.manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
        shape = (num,) if prior.batch_shape else (num, count)
        return prior.sample(shape)


def prior_scale(prior: Any, generator: torch.Generator) -> Tensor:
    """Half the width of the middle 68 % of a prior's draws, ``(1 or n, D)``."""
    draws = prior_draws(prior, _PRIOR_DRAWS, 1, generator)
    low, high = draws.quantile(torch.tensor([0.16, 0.84]).to(draws), dim=0)
    return ((high - low) / 2).clamp(min=torch.finfo(draws.dtype).eps)


@dataclasses.dataclass(frozen=True)
class PriorSource:
    """The prior of n data as a proposal."""

    prior: Any
    count: int

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)``."""
        return prior_draws(self.prior, num, self.count, generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)``."""
        return self.prior.log_prob(z)


def _devices(generator: torch.Generator) -> list[int]:
    device = generator.device
    return [device.index or 0] if device.type == "cuda" else []


def refine(joint: Joint, posterior: Tensor, *place: Any) -> Fitted:
    """Fits a proposal to each datum of a block.

    Args:
        joint: log p(x, z) of the block.
        posterior: draws of q(z | x) to start from, ``(draws, n, D)``, not used again.
        place: from which the seed of the noise is made.
    """
    generator = generator_of(joint.x.device, *place)
    return _Refinement(joint, generator).run(posterior)


class _Refinement:
    def __init__(self, joint: Joint, generator: torch.Generator) -> None:
        self.joint, self.prior, self.generator = joint, joint.prior(), generator
        self.units = prior_scale(self.prior, generator).expand(len(joint), -1)
        self.everywhere = PriorPart(joint)
        self.prior_mass = _mass(joint, self.everywhere, generator).unsqueeze(-1)
        self.fits: list[Student] = []
        self.masses = torch.zeros(len(joint), 0, dtype=torch.float64, device=joint.x.device)
        self.unexplored = torch.zeros(len(joint), dtype=torch.bool, device=joint.x.device)

    def run(self, posterior: Tensor) -> Fitted:
        """One fit from the posterior; more if starts disagree or a pilot fails."""
        usual = self._start(torch.arange(len(self.joint), device=self.joint.x.device))
        loc, scale = posterior.mean(0), posterior.std(0)
        fine = loc.isfinite() & scale.isfinite()
        first = fit(
            self.joint,
            loc.where(fine, usual[0]),
            scale.where(fine, usual[1]),
            self.units,
            self.generator,
        )
        self._add(first)
        if self._disagree(first):
            for _ in range(_MORE_STARTS):
                self._add(self._from_prior(torch.arange(len(self.joint), device=first.loc.device)))
            self.unexplored = _singles(*self._modes())
        failed = self._failed(torch.arange(len(self.joint), device=first.loc.device))
        for retry in (self._from_prior, self._from_prior, self._longer):
            if not len(failed):
                break
            self._add(retry(failed), failed)
            failed = self._failed(failed)
        return Fitted(self._mixture(), self.unexplored)

    def _start(self, index: Tensor) -> tuple[Tensor, Tensor]:
        loc = prior_draws(self.prior, 1, len(self.joint), self.generator)[0]
        return loc[index], self.units[index]

    def _from_prior(self, index: Tensor, stages: Sequence[Stage] = STAGES) -> Student:
        """Fits of some rows that start at a draw of the prior."""
        joint = self.joint if len(index) == len(self.joint) else self.joint.rows(index)
        return fit(joint, *self._start(index), self.units[index], self.generator, stages)

    def _longer(self, index: Tensor) -> Student:
        """The best fits of some rows, with a longer ascent."""
        best = self.masses[index].argmax(-1)
        found = self.fits[0].rows(index)
        for k, other in enumerate(self.fits[1:], 1):
            mine = (best == k).nonzero()[:, 0]
            found = found.put(mine, other.rows(index[mine]))
        joint = self.joint.rows(index)
        for stage in _LONG:
            found = improve(joint, found, stage, self.generator)
        return found

    def _add(self, found: Student, index: Tensor | None = None) -> None:
        """Adds a fit of each datum, or of some."""
        joint = self.joint if index is None else self.joint.rows(index)
        mass = _mass(joint, found, self.generator)
        if index is not None:
            none = torch.full_like(self.masses[:, 0], -math.inf)
            mass = none.index_copy(0, index, mass)
            found = self.fits[0].put(index, found)
        self.fits.append(found)
        self.masses = torch.cat([self.masses, mass.unsqueeze(-1)], -1)

    def _disagree(self, first: Student) -> bool:
        """Whether fits of some rows from draws of the prior find modes that matter elsewhere."""
        n = len(self.joint)
        index = torch.arange(0, n, max(1, n // _PILOT_ROWS), device=first.loc.device)
        joint, fits = self.joint.rows(index), [first.rows(index)]
        fits += [self._from_prior(index, _SHORT) for _ in range(_PILOT_STARTS)]
        masses = torch.stack([_mass(joint, found, self.generator) for found in fits], -1)
        same, matter = _compare(fits, masses)
        pairs = matter.unsqueeze(-1) & matter.unsqueeze(-2) & ~same
        return bool(pairs.any())

    def _modes(self) -> tuple[Tensor, Tensor]:
        return _compare(self.fits, self.masses)

    def _mixture(self) -> Mixed:
        masses = torch.cat([self.masses, self.prior_mass], -1)
        there = masses.isfinite()
        # A fit without mass counts as well, if it can be drawn from.
        there[:, 0] |= ~self.masses.isfinite().any(-1) & self.fits[0].finite()
        there[:, -1] = True
        even = there.double() / there.sum(-1, keepdim=True)
        share = masses.masked_fill(~masses.isfinite(), -math.inf).softmax(-1).nan_to_num(0.0)
        share = torch.where(share.sum(-1, keepdim=True) > 0, share, even)
        parts: tuple[Student | PriorPart, ...] = (*self.fits, self.everywhere)
        return Mixed(parts, ((1 - _EVEN) * share + _EVEN * even).log())

    def _failed(self, index: Tensor) -> Tensor:
        """Which of some rows have too high a k-hat in pilot draws, which are not used again."""
        mixture = self._mixture().rows(index)
        z = mixture.sample(_PILOT_DRAWS, self.generator)
        weights = self.joint.rows(index).log_prob(z) - mixture.log_prob(z)
        k = pareto_k(weights.topk(tail_size(_PILOT_DRAWS) + 1, dim=0).values.mT)
        return index[k > _PILOT_K]


def _mass(joint: Joint, found: Student | PriorPart, generator: torch.Generator) -> Tensor:
    """The log mass of p(x, z) that a part covers, roughly, ``(n,)``."""
    z = found.sample(_MASS_DRAWS, generator)
    weights = joint.log_prob(z) - found.log_prob(z)
    return weights.nan_to_num(-math.inf, posinf=-math.inf).logsumexp(0) - math.log(_MASS_DRAWS)


def _compare(fits: list[Student], masses: Tensor) -> tuple[Tensor, Tensor]:
    """Which fits of a datum are one mode, ``(n, K, K)``, and which matter, ``(n, K)``."""
    locs = torch.stack([found.loc for found in fits])
    squares = []
    for found in fits:
        shift = (locs - found.loc).double()
        squares.append((shift * found.shape.double().precision(shift)).sum(-1))
    square = torch.stack(squares)
    square = torch.minimum(square, square.transpose(0, 1))
    same = square < _APART + locs.shape[-1] / 4
    best = masses.max(-1, keepdim=True).values
    return same.movedim(-1, 0), masses > best - _MATTERS


def _singles(same: Tensor, matter: Tensor) -> Tensor:
    """Whether a mode that matters was found only once: by Good and Turing, others are likely.

    Good, "The population frequencies of species" (Biometrika 1953).
    """
    met = (same & matter.unsqueeze(-2)).sum(-1)
    several = (matter.unsqueeze(-1) & matter.unsqueeze(-2) & ~same).any((-2, -1))
    return several & (matter & (met == 1)).any(-1)
