"""One pass over the data: the encoder's figures, and the estimate of log p(x) by a proposal.

Rows are processed in blocks of fixed size, each with its own seeds, and only sums are kept of their
draws: memory does not grow with the number of draws, and no figure depends on how the work is split
into chunks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vaes.core.support import place
from pyro_vaes.evaluation import aggregate
from pyro_vaes.evaluation import diagnostics as diag
from pyro_vaes.evaluation.draws import (
    BLOCK_SAMPLES,
    Cost,
    Draws,
    RowBlock,
    check_overrides,
    draws,
    generator_of,
    joined,
    row_blocks,
    seed_of,
)
from pyro_vaes.evaluation.gaps import best_elbo, family
from pyro_vaes.evaluation.proposals.annealed import CHAINS, LEAPFROGS, TOLERANCE, Chains, settle
from pyro_vaes.evaluation.proposals.coordinates import in_latents, joint_for
from pyro_vaes.evaluation.proposals.fitted import (
    Balanced,
    Fitted,
    Mixed,
    PriorSource,
    prior_scale,
    refine,
    scores_cheaply,
    unrefinable,
)
from pyro_vaes.evaluation.proposals.joint import GRADIENT_COST, Joint, frozen
from pyro_vaes.evaluation.proposals.reach import reach_warnings, unreached
from pyro_vaes.evaluation.proposals.refined import FIT_COST, MAX_FULL, RANK, Student, axes
from pyro_vaes.evaluation.tally import Tally, undefined_warnings
from pyro_vaes.vae import VAE, check_data, drawn

__all__ = ["Found", "Pass", "Weighted", "best_elbos"]


# Blocks of rows that are fitted at once: a step of 64 rows costs half as much again per row.
_TOGETHER = 4

# Most rows for which the best member of the encoder's family is sought.
_GAP_ROWS = 64

# Simulated data on which annealing is tested.
_SIMULATED = 32

_ESTIMATE = ("log_marginal", "pareto_k", "effective_sample_size", "undefined")


@dataclasses.dataclass
class Found:
    """The results of a pass.

    Attributes:
        values: figures of each datum, data along the first dimension.
        posteriors: of the blocks of rows, if diagnostics were asked for.
        proposal: that was used: ``encoder``, ``refined``, ``mixed`` or ``annealed``.
        notes: on the proposal.
        warnings: why it is not the one that was asked for, or is not to be trusted.
        evaluations: of the decoder.
        gap: by how many nats forward and reverse annealing differ on simulated data, if annealed.
    """

    values: dict[str, Tensor]
    posteriors: list[Any]
    proposal: str
    notes: list[str]
    evaluations: int = 0
    gap: float | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)

    def warn(self, singular: str | None) -> None:
        """Adds what there is to say of the reach of the draws, and of those without a weight.

        Args:
            singular: why the posterior has no density, if it has none.
        """
        self.warnings += reach_warnings(self.proposal, singular, self.values["unreached"])
        if "undefined" in self.values:
            self.warnings += undefined_warnings(self.values["undefined"])


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Draws for a block of data, weighed as draws of p(z | x) by :attr:`.Draws.log_weight`.

    Attributes:
        block: the data.
        draws: S of them.
        fitted: the fit that they come from; None for the encoder.
        notes: what to know of the proposal.
    """

    block: RowBlock
    draws: Draws
    fitted: Fitted | None
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Pass:
    """How to go through the data.

    Attributes:
        vae: the model, inside ``evaluating``.
        num_samples: S.
        seed: of all draws.
        chunk_size: decoder evaluations at once.
        proposal: one of :data:`~pyro_vaes.core.choices.PROPOSALS`.
        encoder: whether the encoder's own figures are asked for (the ELBO and its terms).
        diagnostics: whether more than these.
        start: where annealing starts, ``refined`` or ``prior``.
    """

    vae: VAE
    num_samples: int
    seed: int
    chunk_size: int
    proposal: str
    encoder: bool
    diagnostics: bool
    start: str = "refined"

    def run(self, x: Tensor, y: Tensor | None) -> Found:
        """Goes through the data.

        Raises:
            ValueError: for a proposal that does not fit the model.
        """
        check_overrides(self.vae, x, y)
        kind, notes = self._kind(x, y)
        parts: list[dict[str, Tensor]] = []
        found = Found({}, [], kind, notes)
        if kind == "encoder":
            found.warnings += notes
        with ExitStack() as stack:
            bar = stack.enter_context(_bar(self._total(kind) * len(x)))
            cost = Cost(report=bar.update)
            if kind != "encoder":
                stack.enter_context(frozen(self.vae))
            temperatures = self._settle(x, y, found, cost) if kind == "annealed" else 0
            blocks = row_blocks(self.vae, x, y)
            while group := list(itertools.islice(blocks, _TOGETHER)):
                estimates = self._estimates(kind, group, temperatures, cost)
                for block, estimate in zip(group, estimates, strict=True):
                    parts.append(self._block(block, estimate, kind, len(x), cost))
                    if self.diagnostics:
                        found.posteriors.append(block.posterior)
        found.values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        found.warn(block.singular)
        found.evaluations = cost.evaluations
        return found

    def weighted(self, x: Tensor, y: Tensor | None) -> Iterator[Weighted]:
        """The draws of z from the proposal, weighed as draws of p(z | x), a block at a time.

        Call inside ``evaluating``. Annealing leaves no draws to keep.

        Raises:
            ValueError: for a proposal that is not available with this model.
        """
        check_overrides(self.vae, x, y)
        kind, notes = self._kind(x, y)
        cost, blocks = Cost(), row_blocks(self.vae, x, y)
        with ExitStack() as stack:
            if kind != "encoder":
                stack.enter_context(frozen(self.vae))
            while group := list(itertools.islice(blocks, _TOGETHER)):
                estimates = self._estimates(kind, group, 0, cost)
                for block, fitted in zip(group, estimates, strict=True):
                    yield Weighted(block, self._weighed(block, fitted, kind, cost), fitted, notes)

    def _weighed(self, block: RowBlock, fitted: Fitted | None, kind: str, cost: Cost) -> Draws:
        """All draws of a block, their densities those of the proposal."""
        if fitted is None:
            return joined(self._draws(block, self.num_samples, cost))
        half = self.num_samples // 2 if kind == "mixed" else 0
        source: Any = fitted.proposal
        if half:
            source = Balanced(block.posterior, source, half / self.num_samples)
        own = [_judged(some, source) for some in self._draws(block, half, cost)]
        return joined([*own, *self._draws(block, self.num_samples - half, cost, source)])

    def _kind(self, x: Tensor, y: Tensor | None) -> tuple[str, list[str]]:
        """The proposal that is used, and notes on it."""
        if self.proposal == "encoder":
            return "encoder", []
        check_data(self.vae, x, y)
        first = slice(0, min(len(x), 2))
        block = next(row_blocks(self.vae, x[first], None if y is None else y[first]))
        with frozen(self.vae):
            joint = self._joint([block], Cost())
            reason = unrefinable(block, joint)
            if reason is None:
                if self.proposal != "auto":
                    return self.proposal, _low_rank(block)
                # Half of the draws are the encoder's, if they can be anywhere at a known density.
                cheap = self.num_samples > 1 and scores_cheaply(self.vae, block.posterior)
                mixed = cheap and place(block.posterior) is None
                return "mixed" if mixed else "refined", _low_rank(block)
        if self.proposal != "auto":
            raise ValueError(
                f"Expected a model whose posterior can be fitted per datum for proposal="
                f"{self.proposal!r}; got one where {reason}. Use proposal='encoder'."
            )
        return "encoder", [f"log p(x) is estimated from the encoder's draws: {reason}"]

    def _total(self, kind: str) -> float:
        """Decoder evaluations per datum, about."""
        own = self.num_samples * self.encoder
        return {
            "encoder": self.num_samples,
            "refined": own + self.num_samples + FIT_COST,
            "mixed": max(own, self.num_samples // 2) + self.num_samples / 2 + FIT_COST,
            "annealed": own + FIT_COST + 2 * CHAINS * GRADIENT_COST * LEAPFROGS * 100,
        }[kind]

    def _joint(self, group: list[RowBlock], cost: Cost) -> Joint:
        x = torch.cat([block.x for block in group])
        labels = [block.y for block in group if block.y is not None]
        prior = None if self.vae.prior_is_conditional else group[0].prior
        y = torch.cat(labels) if labels else None
        return joint_for(group[0].prior, self.vae, x, y, self.chunk_size, cost, prior)

    def _estimates(
        self, kind: str, group: list[RowBlock], temperatures: int, cost: Cost
    ) -> list[Any]:
        """For each block a fit to draw from, the log weights of annealing, or nothing."""
        first = group[0].first
        places = [slice(block.first - first, block.first - first + len(block.x)) for block in group]
        if kind == "encoder":
            return [None] * len(group)
        joint = self._joint(group, cost)
        if kind == "annealed":
            weights = self._chains(joint, group, "annealed", first).forward(temperatures)
            return [weights[:, place] for place in places]
        fitted = self._fit(joint, group, "fit", first)
        proposal = in_latents(cast(Mixed, fitted.proposal), joint)
        return [Fitted(proposal.rows(place), fitted.unexplored[place]) for place in places]

    def _fit(self, joint: Joint, group: list[RowBlock], *place: Any) -> Fitted:
        torch.manual_seed(seed_of(self.seed, "start", *place))
        starts = torch.cat([drawn(block.posterior, BLOCK_SAMPLES) for block in group], dim=1)
        return refine(joint, joint.coordinates(starts), self.seed, *place)

    def _chains(self, joint: Joint, group: list[RowBlock], *place: Any) -> Chains:
        if self.start == "prior":
            prior = joint.prior()
            scale = prior_scale(prior, generator_of(joint.x.device, self.seed, "scale"))
            frame = axes(scale.expand(len(joint), -1))
            return Chains(joint, PriorSource(prior, len(joint)), frame, self.seed, *place)
        source = self._fit(joint, group, *place).proposal
        first = cast(Student, cast(Mixed, source).parts[0])
        return Chains(joint, source, first.shape, self.seed, *place)

    def _settle(self, x: Tensor, y: Tensor | None, found: Found, cost: Cost) -> int:
        """The number of temperatures, settled on data simulated from the model."""
        torch.manual_seed(seed_of(self.seed, "simulated"))
        labels = None if y is None else y[torch.arange(_SIMULATED, device=y.device) % len(y)]
        prior = self.vae.p_z(labels)
        z = prior.sample(() if prior.batch_shape else (_SIMULATED,))
        made = self.vae.p_x(z, labels).sample().to(x.dtype)
        group = list(row_blocks(self.vae, made, labels))
        joint = self._joint(group, cost)
        chains, start = self._chains(joint, group, "simulated"), joint.coordinates(z)
        temperatures, found.gap = settle(lambda number: chains.bracket(number, start))
        found.notes.append(
            f"annealed through {temperatures} temperatures by {CHAINS} chains that start at the "
            f"{self.start} proposal; on {_SIMULATED} simulated data forward and reverse runs "
            f"differ by {found.gap:.2f} nats"
        )
        if found.gap >= TOLERANCE:
            found.warnings.append(found.notes[-1])
        return temperatures

    def _block(
        self, block: RowBlock, estimate: Any, kind: str, num_data: int, cost: Cost
    ) -> dict[str, Tensor]:
        """Figures of a block of data."""
        keep = 0
        if self.diagnostics:
            keep, _ = aggregate.aggregate_plan(
                block.posterior, num_data, self.num_samples, self.seed
            )
        fitted = estimate if isinstance(estimate, Fitted) else None
        # The estimate of log p(x) is judged, whoever's draws it is made of.
        judged = self.diagnostics or (kind == "encoder" and not self.encoder)
        own = Tally(block, self.num_samples, keep, judged)
        half = self.num_samples // 2 if kind == "mixed" else 0
        best = Tally(block, self.num_samples, diagnostics=True)
        source: Any = None if fitted is None else fitted.proposal
        if half:
            source = Balanced(block.posterior, source, half / self.num_samples)
        wanted = self.num_samples if self.encoder or kind == "encoder" else half
        for left, some in _counted(self._draws(block, wanted, cost), half):
            own.add(some)
            if left > 0:
                best.add(_judged(some.first(left), source))
        part = own.result() if self.encoder or kind == "encoder" else {}
        if kind == "annealed":
            part = _joined(part, _annealed(estimate))
        if fitted is not None:
            for some in self._draws(block, self.num_samples - half, cost, source):
                best.add(some)
            part = _joined(part, best.result()) | {"unexplored": fitted.unexplored}
        if self.diagnostics:
            part |= diag.closed_forms(block.posterior, block.prior, len(block.x))
        return part | {"unreached": unreached(block, self.seed)}

    def _draws(
        self, block: RowBlock, count: int, cost: Cost, source: Any = None
    ) -> Iterator[Draws]:
        return draws(self.vae, block, count, self.seed, self.chunk_size, source, cost)


def best_elbos(way: Pass, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor] | str:
    """ELBOs of the best members of the encoder's family, for evenly chosen rows.

    Returns:
        The rows ``(m,)`` and the ELBOs ``(m,)``, or why they are missing.
    """
    vae = way.vae
    rows = torch.arange(0, len(x), -(-len(x) // _GAP_ROWS), device=x.device)
    labels = None if y is None else y[rows]
    block = next(row_blocks(vae, x[rows], labels))
    with frozen(vae):
        joint = Joint(vae, block.x, block.y, way.chunk_size, Cost())
        reason = unrefinable(block, joint)
        if reason is not None:
            return reason
        scale = prior_scale(joint.prior(), generator_of(x.device, int(way.seed), "gaps"))
        found = family(vae, block.x, block.y, scale.expand(len(rows), -1))
        if isinstance(found, str):
            return found
        torch.manual_seed(seed_of(int(way.seed), "gaps"))
        return rows, best_elbo(joint, *found)


def _counted(some: Iterator[Draws], half: int) -> Iterator[tuple[int, Draws]]:
    """Draws, and how many are left of the half before each piece."""
    for piece in some:
        yield half, piece
        half -= len(piece.z)


def _judged(some: Draws, source: Any) -> Draws:
    """Draws of the posterior, weighted as draws of a mixture with it."""
    return dataclasses.replace(some, log_posterior=source.log_prob(some.z))


def _joined(own: dict[str, Tensor], best: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's figures, with the estimate of log p(x) in the place of the encoder's."""
    kept = {f"encoder_{name}": own.pop(name) for name in _ESTIMATE if name in own}
    return own | kept | {name: best[name] for name in _ESTIMATE if name in best}


def _annealed(weights: Tensor) -> dict[str, Tensor]:
    """Figures of log weights ``(chains, n)``."""
    total = weights.logsumexp(0)
    size = (2 * total - (2 * weights).logsumexp(0)).exp()
    return {
        "log_marginal": total - math.log(len(weights)),
        "effective_sample_size": size.nan_to_num(0.0),
    }


def _low_rank(block: RowBlock) -> list[str]:
    dim = block.posterior.event_shape[-1]
    if dim <= MAX_FULL:
        return []
    return [
        f"with {dim} latent dimensions (over {MAX_FULL}) the fitted covariance is a diagonal and "
        f"{RANK} directions"
    ]


def _bar(total: float) -> Any:
    """A progress bar with the time left, on a terminal only, if it takes over two seconds."""
    return tqdm(
        total=round(total),
        desc="Evaluating",
        unit="",
        unit_scale=True,
        delay=2,
        disable=None,
        leave=False,
    )
