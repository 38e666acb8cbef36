"""A proposal per datum: a Student's t fitted to p(z | x) by variational inference.

An encoder's draws are a poor proposal where the encoder is poor, and the estimate of log p(x) then
measures the importance sampler. Here each datum gets its own location and covariance, with the
model fixed: first a diagonal normal, then a full covariance, then the same again in the coordinates
that the covariance whitens. Where a full covariance has many entries it starts at the curvature of
log p(x, z), which costs D gradients either way. Draws come from a Student's t of that location and
scale with 10 degrees of freedom: its tails are heavier than the posterior's, so that weights are
bounded.

Steps are taken in units of the prior, not of the encoder's scale, which may be far off. The
gradient leaves out the score of q (Roeder, Wu, Duvenaud, "Sticking the landing", 2017): it has no
noise where q is p(z | x).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vaes.evaluation.proposals.joint import GRADIENT_COST, Joint
from pyro_vaes.inference.joint_optimizer import fused_options
from pyro_vaes.inference.optimizers import lay_out, without_compiler

__all__ = [
    "DIAGONAL",
    "FIT_COST",
    "FULL",
    "MAX_FULL",
    "RANK",
    "STAGES",
    "WHITE",
    "Full",
    "LowRank",
    "Stage",
    "Student",
    "ascent",
    "axes",
    "fit",
    "improve",
]


# Above this many latent dimensions a covariance is a diagonal plus this many directions.
MAX_FULL, RANK = 64, 32

# Above this many a full covariance starts at a curvature, and its steps are smaller: the noise of
# D (D - 1) / 2 correlations adds up.
_FEW = 16

# Eigenvalues that a precision may have, in units of the prior's scale.
_PRECISION = (0.1, 1e8)

_DEGREES = 10

# Scales of the encoder's at which a fit may start, in units of the prior's.
_START = (1e-4, 2.0)

# The step of a difference of gradients, in units of the prior's scale.
_STEP = 0.03

# Newton steps where the covariance comes from a curvature.
_NEWTON = 3

# Total decay of the rate, as a share.
_DECAY = 0.97


@dataclasses.dataclass(frozen=True)
class Full:
    """The covariance L L', with L ``(n, D, D)`` lower triangular."""

    tril: Tensor

    @property
    def noise_dim(self) -> int:
        """Size of the noise that a draw is made of."""
        return self.tril.shape[-1]

    def colour(self, noise: Tensor) -> Tensor:
        """L e of noise e ``(draws, n, D)``."""
        return (noise.transpose(0, 1) @ self.tril.mT).transpose(0, 1)

    def pull(self, slope: Tensor) -> Tensor:
        """L' g: a gradient in z as one in the noise."""
        return (slope.transpose(0, 1) @ self.tril).transpose(0, 1)

    def push(self, noise: Tensor) -> Tensor:
        """L'^-1 e: a gradient in the noise as one in z."""
        columns = noise.movedim(0, -1)
        return torch.linalg.solve_triangular(self.tril.mT, columns, upper=True).movedim(-1, 0)

    def precision(self, shift: Tensor) -> Tensor:
        """(L L')^-1 d of shifts d ``(draws, n, D)``."""
        return torch.cholesky_solve(shift.movedim(0, -1), self.tril).movedim(-1, 0)

    def log_det(self) -> Tensor:
        """Log det L, ``(n,)``."""
        return self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def double(self) -> Full:
        """In float64."""
        return Full(self.tril.double())

    def rows(self, index: Tensor | slice) -> Full:
        """Of some of the data."""
        return Full(self.tril[index])


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The covariance A A' with A = S (I + U V'): a diagonal S, and U and V ``(n, D, R)``.

    U V' may narrow directions as well as widen them, which a diagonal plus a product U U' cannot:
    data determine a few directions of z, and leave the rest as wide as the prior.
    """

    scale: Tensor
    left: Tensor
    right: Tensor

    @property
    def noise_dim(self) -> int:
        """Size of the noise that a draw is made of."""
        return self.scale.shape[-1]

    def colour(self, noise: Tensor) -> Tensor:
        """A e of noise e ``(draws, n, D)``."""
        return self.scale * (noise + _low_rank(self.left, self.right, noise))

    def pull(self, slope: Tensor) -> Tensor:
        """A' g: a gradient in z as one in the noise."""
        slope = self.scale * slope
        return slope + _low_rank(self.right, self.left, slope)

    def push(self, noise: Tensor) -> Tensor:
        """A'^-1 e: a gradient in the noise as one in z, by Woodbury's identity."""
        if not self.left.shape[-1]:  # A diagonal.
            return noise / self.scale
        inverse = torch.linalg.solve(self._inner(), self.right.mT).mT
        return (noise - _low_rank(inverse, self.left, noise)) / self.scale

    def precision(self, shift: Tensor) -> Tensor:
        """The inverse covariance times shifts ``(draws, n, D)``, by Woodbury's identity."""
        white = shift / self.scale
        inverse = torch.linalg.solve(self._inner().mT, self.left.mT).mT
        return self.push(white - _low_rank(inverse, self.right, white))

    def log_det(self) -> Tensor:
        """Log abs det A, ``(n,)``."""
        return self.scale.log().sum(-1) + torch.linalg.slogdet(self._inner()).logabsdet

    def double(self) -> LowRank:
        """In float64."""
        return LowRank(self.scale.double(), self.left.double(), self.right.double())

    def rows(self, index: Tensor | slice) -> LowRank:
        """Of some of the data."""
        return LowRank(self.scale[index], self.left[index], self.right[index])

    def _inner(self) -> Tensor:
        unit = torch.eye(self.left.shape[-1]).to(self.left)
        return unit + self.right.mT @ self.left


def _low_rank(left: Tensor, right: Tensor, vector: Tensor) -> Tensor | float:
    """U V' e of vectors e ``(draws, n, D)``."""
    if not left.shape[-1]:  # A diagonal.
        return 0.0
    return (vector.transpose(0, 1) @ right @ left.mT).transpose(0, 1)


@dataclasses.dataclass(frozen=True)
class Student:
    """A multivariate Student's t per datum, 10 degrees of freedom.

    Attributes:
        loc: ``(n, D)``.
        shape: its scale matrix.
    """

    loc: Tensor
    shape: Full | LowRank

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws ``(num, n, D)``."""
        size = (num, len(self.loc))
        normal = _noise((*size, self.shape.noise_dim), self.loc, generator)
        chi2 = _noise((*size, _DEGREES), self.loc, generator).square().sum(-1, keepdim=True)
        return self.loc + self.shape.colour(normal) * (_DEGREES / chi2).sqrt()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of z ``(num, n, D)``: ``(num, n)`` in nats, float64."""
        dim, shape = z.shape[-1], self.shape.double()
        shift = z.double() - self.loc.double()
        square = (shift * shape.precision(shift)).sum(-1)
        log_scale = math.lgamma((_DEGREES + dim) / 2) - math.lgamma(_DEGREES / 2)
        log_scale -= 0.5 * dim * math.log(_DEGREES * math.pi)
        tail = 0.5 * (_DEGREES + dim) * torch.log1p(square / _DEGREES)
        return log_scale - shape.log_det() - tail

    def rows(self, index: Tensor | slice) -> Student:
        """Of some of the data."""
        return Student(self.loc[index], self.shape.rows(index))

    def put(self, index: Tensor, other: Student) -> Student:
        """With the fits of some of the data replaced."""
        pairs = [
            mine.index_copy(0, index, new)
            for mine, new in zip(self._tensors(), other._tensors(), strict=True)
        ]
        return Student(pairs[0], type(self.shape)(*pairs[1:]))

    def finite(self) -> Tensor:
        """Which of the data have a fit without infinities and NaN, ``(n,)``."""
        parts = [part.isfinite().flatten(1).all(1) for part in self._tensors()]
        return torch.stack(parts).all(0)

    def _tensors(self) -> list[Tensor]:
        fields = dataclasses.fields(self.shape)
        return [self.loc, *(getattr(self.shape, field.name) for field in fields)]


class Stage(NamedTuple):
    """A part of a fit: Adam steps, draws of z in each, and the rate at the first step."""

    steps: int
    particles: int
    rate: float


DIAGONAL, FULL, WHITE = Stage(150, 1, 0.5), Stage(150, 1, 0.05), Stage(50, 4, 0.03)
STAGES = (DIAGONAL, FULL, WHITE)

# Decoder evaluations of a fit, per datum, without those of a curvature, 2 D gradients.
FIT_COST = GRADIENT_COST * sum(stage.steps * stage.particles for stage in STAGES)


def fit(
    joint: Joint,
    loc: Tensor,
    scale: Tensor,
    units: Tensor,
    generator: torch.Generator,
    stages: Sequence[Stage] = STAGES,
) -> Student:
    """Fits a Student's t to p(z | x) of each datum.

    Args:
        joint: the target.
        loc: initial location, ``(n, D)``.
        scale: initial scale, ``(n, D)``.
        units: the prior's scale, ``(D,)`` or ``(n, D)``.
        generator: of the noise.
        stages: for the diagonal, for the full covariance, and optional further ones in whitened
            coordinates.
    """
    diagonal, full, *more = stages
    log_scale = (scale / units).clamp(*_START).log()
    m, log_s, _ = _climb(joint, loc, axes(units), diagonal, generator, log_scale, None)
    loc, scale = loc + units * m, units * log_s.exp()
    shape: Full | LowRank = Full(scale.diag_embed())
    if _FEW < loc.shape[-1] <= MAX_FULL:
        shape = _curved(joint, loc, scale, units.expand_as(loc))
        loc = _uphill(joint, loc, shape)
    found = Student(loc, shape)
    for stage in (full, *more):
        if loc.shape[-1] > MAX_FULL:
            shape = _informed(joint, found.loc, units.expand_as(loc), generator)
            found = Student(_uphill(joint, found.loc, shape), shape)
        found = improve(joint, found, stage, generator)
    return found


def _curved(joint: Joint, loc: Tensor, scale: Tensor, units: Tensor) -> Full:
    """The covariance whose inverse is the bend of log p(x, z), seen a scale either way.

    Its differences of gradients average over the roughness of a network or a flow, which a second
    derivative takes for the posterior's own.
    """
    steps = scale * torch.eye(scale.shape[-1]).to(scale).unsqueeze(1)
    bend = joint.gradient(loc + steps)[1] - joint.gradient(loc - steps)[1]
    bend = (bend / (2 * scale.mT.unsqueeze(-1))).nan_to_num(0.0, 0.0, 0.0).movedim(0, -1)
    bend = units.unsqueeze(-1) * bend * units.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(-(bend + bend.mT) / 2)
    root = vectors * values.clamp(*_PRECISION).rsqrt().unsqueeze(-2)
    upper = torch.linalg.qr(root.mT).R  # Of any condition, where Cholesky's factor may fail.
    tril = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
    return Full(units.unsqueeze(-1) * tril)


def _informed(joint: Joint, loc: Tensor, units: Tensor, generator: torch.Generator) -> LowRank:
    """The prior's scale, and that of p(z | x) in the directions that the data determine most.

    They are the leading directions of gradients near the location (Cui et al., "Likelihood-informed
    dimension reduction for nonlinear inverse problems", 2014); their scale comes from curvature.
    """
    near = 0.3 * _noise((2 * RANK, *loc.shape), loc, generator)
    slopes = units * joint.gradient(loc + units * near)[1].nan_to_num(0.0, 0.0, 0.0)
    basis = torch.linalg.svd(slopes.movedim(0, -1), full_matrices=False).U[..., :RANK]
    step = _STEP * basis.movedim(-1, 0)
    bend = joint.gradient(loc + units * step)[1] - joint.gradient(loc - units * step)[1]
    bend = (units * bend / (2 * _STEP)).nan_to_num(0.0, 0.0, 0.0)
    curvature = -(basis.mT @ bend.movedim(0, -1))
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    basis = basis @ vectors
    widths = values.clamp(*_PRECISION).rsqrt()
    return LowRank(units, basis * (widths - 1).unsqueeze(-2), basis)


def _uphill(joint: Joint, loc: Tensor, shape: Full | LowRank) -> Tensor:
    """Locations after Newton steps, each taken where it raises log p(x, z).

    In many dimensions a diagonal fit ends many scales away in the narrow directions, beyond the
    reach of gradient steps.
    """
    for _ in range(_NEWTON):
        value, slope = joint.gradient(loc.unsqueeze(0))
        step = shape.colour(shape.pull(slope.nan_to_num(0.0, 0.0, 0.0)))
        better = joint.log_prob(loc + step) > value
        loc = torch.where(better[0].unsqueeze(-1), loc + step[0], loc)
    return loc


def improve(joint: Joint, found: Student, stage: Stage, generator: torch.Generator) -> Student:
    """Improves a fit in the coordinates that its scale matrix whitens.

    One of low rank keeps its directions and changes its location and scales.
    """
    zero, shape = torch.zeros_like(found.loc), found.shape
    if isinstance(shape, Full):
        stage = stage._replace(rate=stage.rate * min(1.0, _FEW / zero.shape[-1]))
    below = None if isinstance(shape, LowRank) else torch.zeros_like(shape.tril)
    m, log_s, below = _climb(joint, found.loc, shape, stage, generator, zero, below)
    loc = found.loc + shape.colour(m.unsqueeze(0))[0]
    if isinstance(shape, Full):
        return Student(loc, Full(shape.tril @ _tril(log_s, below)))
    s = log_s.exp()
    left, right = shape.left / s.unsqueeze(-1), shape.right * s.unsqueeze(-1)
    return Student(loc, LowRank(shape.scale * s, left, right))


def _climb(
    joint: Joint,
    centre: Tensor,
    frame: Full | LowRank,
    stage: Stage,
    generator: torch.Generator,
    log_scale: Tensor,
    below: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Raises the ELBO of z = centre + frame (m + diag(s) (I + N) e) by Adam.

    Returns:
        m, log s and N, strictly lower triangular; without N the scale is diagonal.
    """
    loc, log_scale = torch.zeros_like(log_scale), log_scale.clone()
    below = None if below is None else below.clone()
    free = [loc, log_scale] if below is None else [loc, log_scale, below]
    optimizer = ascent(free)
    for step in range(stage.steps):
        optimizer.param_groups[0]["lr"] = stage.rate * (1 - _DECAY * step / stage.steps)
        scale = log_scale.exp()
        shape = axes(scale) if below is None else Full(_tril(log_scale, below))
        noise = _noise((stage.particles, *loc.shape), loc, generator)
        shift = shape.colour(noise)
        _, slope = joint.gradient(centre + frame.colour(loc + shift))
        slope = (frame.pull(slope) + shape.push(noise)).nan_to_num(0.0, 0.0, 0.0)
        loc.grad, log_scale.grad = slope.mean(0), (slope * shift).mean(0)
        if below is not None:
            outer = (scale * slope).movedim(0, -1) @ noise.transpose(0, 1)
            below.grad = outer.tril(-1) / stage.particles
        lay_out(free)
        optimizer.step()
    return loc, log_scale, below


def ascent(free: list[Tensor]) -> torch.optim.Optimizer:
    """Adam that ascends, on parameters of each datum, in one kernel where there is one."""
    kind = without_compiler(torch.optim.Adam)
    return kind(free, betas=(0.9, 0.99), maximize=True, **fused_options(kind, free))


def axes(scale: Tensor) -> LowRank:
    """A diagonal scale matrix."""
    none = scale.new_zeros(*scale.shape, 0)
    return LowRank(scale, none, none)


def _tril(log_scale: Tensor, below: Tensor | None) -> Tensor:
    """The factor diag(s) (I + N)."""
    scale = log_scale.exp()
    tril = scale.diag_embed()
    return tril if below is None else tril + scale.unsqueeze(-1) * below


def _noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
