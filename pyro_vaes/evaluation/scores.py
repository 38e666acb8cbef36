"""A score for each row: log p(x) with its error, and how unusual that is; how near copies are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.data.splits import as_split
from pyro_vaes.data.units import units_of
from pyro_vaes.evaluation.draws import draws, row_blocks
from pyro_vaes.evaluation.evaluator import _checked, _on_device
from pyro_vaes.evaluation.passes import Found, Pass
from pyro_vaes.evaluation.proposals.annealed import CHAINS, TOLERANCE
from pyro_vaes.evaluation.proposals.reach import unreached
from pyro_vaes.evaluation.reliability import reliability
from pyro_vaes.evaluation.tally import Tally
from pyro_vaes.inference.noise import normals_drawn_by
from pyro_vaes.vae import VAE, check_labels, evaluating

__all__ = ["Scores", "nearest_rows", "score", "score_alone"]


# Rows compared at once with all training rows.
_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The scores of some rows, in their order.

    >>> new, old = (pv.score(vae, torch.randn(n, 4), num_samples=50) for n in (5, 9))
    >>> new.log_p.shape, new.p_values(old).min() >= 0.1
    (torch.Size([5]), tensor(True))

    Attributes:
        log_p: the estimate of log p(x), or of log p(x | y), in nats, ``(n,)``, float64.
        log_p_se: its Monte Carlo standard error, from the spread of the weights (delta method); it
            says nothing where the estimate is unreliable. Not a number for a single draw.
        pareto_k: Pareto k-hat of each row; None for fewer than 21 draws, and for annealing.
        unreliable: the rows whose estimate is not to be trusted; None if nobody knows.
        gaps: the rows with gaps (NaN), whose log p(x) is of what was seen of them.
        num_samples: S, draws per row.
        proposal: what z was drawn from: ``encoder``, ``refined``, ``mixed`` or ``annealed``.
        warnings: what there is to say against the scores.
    """

    log_p: Tensor
    log_p_se: Tensor
    pareto_k: Tensor | None
    unreliable: Tensor | None
    gaps: Tensor
    num_samples: int
    proposal: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.log_p)

    def p_values(self, reference: Scores) -> Tensor:
        """How unusual each row is: the share of reference rows that score as low, or lower.

        With k of n reference rows as low it is (k + 1) / (n + 1), which for rows like those of the
        reference is at most a with probability a at most, whatever their distribution (Vovk et al.,
        "Algorithmic learning in a random world", 2005). Rows that the model was trained on score
        higher than others if it is overfitted, and so make others look more unusual than they are;
        rows held out do not.

        Args:
            reference: scores by the same proposal from as many draws, of training or held-out rows.

        Returns:
            ``(n,)``, float64; NaN for rows with gaps, whose scores do not compare with others', and
            for rows without a score.

        Raises:
            ValueError: for scores that do not compare.
        """
        ours, theirs = (
            (self.proposal, self.num_samples),
            (reference.proposal, reference.num_samples),
        )
        if ours != theirs:
            raise ValueError(
                f"Expected reference scores by {ours[1]} draws of the {ours[0]} proposal, as these "
                f"are; got {theirs[1]} of the {theirs[0]} one."
            )
        ordered = reference.log_p[~(reference.gaps | reference.log_p.isnan())].sort().values
        if not len(ordered):
            raise ValueError("Expected reference rows without gaps; got none.")
        as_low = torch.searchsorted(ordered, self.log_p.to(ordered), right=True)
        values = (as_low.double() + 1) / (len(ordered) + 1)
        return torch.where(self.gaps | self.log_p.isnan(), torch.nan, values)


def score(
    vae: VAE,
    x: Any,
    y: Any = None,
    *,
    num_samples: int = 1000,
    proposal: str = "auto",
    start: str = "refined",
    seed: int = 0,
    chunk_size: int | None = None,
) -> Scores:
    """Scores rows by the importance-weighted estimate of log p(x), each with its own error.

    >>> scores = pv.score(vae, torch.randn(5, 4), num_samples=50)
    >>> scores.log_p.shape, scores.unreliable.shape
    (torch.Size([5]), torch.Size([5]))

    Args:
        vae: the model.
        x: data, as for :func:`.evaluate`.
        y: labels ``(n,)``, or one for all, if ``x`` does not bring them.
        num_samples: draws S per row.
        proposal: what z is drawn from, as for :func:`.evaluate`.
        start: where annealing starts, as for :func:`.evaluate`.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once; changes no figure. None: see :func:`.evaluate`.

    Returns:
        The scores. ``scores.log_p`` is what :func:`.log_marginal` gives.

    Raises:
        TypeError: for a model that is no ``VAE``.
        ValueError: for data that the parts cannot take, or a proposal that does not suit the model.
    """
    chunk_size = _checked(vae, num_samples, chunk_size, proposal, start)
    x, labels = _on_device(vae, x)
    labels = check_labels(vae, x, labels if y is None else y)
    with evaluating(vae):
        way = Pass(vae, num_samples, seed, chunk_size, proposal, False, False, start)
        found = way.run(x, labels)
    return _scores(found, x, num_samples)


def score_alone(vae: VAE, x: Any, *, num_samples: int, seed: int = 0) -> Scores:
    """Scores by the encoder's draws, each row as if it were the only one.

    All rows have the same noise, so that a score is a function of its row, whatever stands next to
    it; in float32 to rounding. Errors of different rows are not independent.

    Args:
        vae: the model, without labels.
        x: data, as for :func:`.evaluate`.
        num_samples: draws S per row.
        seed: seed of the draws.
    """
    chunk_size = _checked(vae, num_samples, None, "encoder", "refined")
    x, _ = _on_device(vae, x)
    check_labels(vae, x, None)
    parts = []
    with evaluating(vae), normals_drawn_by(_for_all_rows):
        for block in row_blocks(vae, x, None):
            tally = Tally(block, num_samples, diagnostics=True)
            first = dataclasses.replace(block, first=0)  # Each block has the noise of the first.
            for some in draws(vae, first, num_samples, seed, chunk_size):
                tally.add(some)
            parts.append(tally.result() | {"unreached": unreached(first, seed)})
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = Found(values, [], "encoder", [])
    found.warn(first.singular)
    return _scores(found, x, num_samples)


def _for_all_rows(shape: Any, dtype: Any, device: Any) -> Tensor:
    """Noise of shape ``(samples, rows, ...)`` that is the same for all rows."""
    samples, _, *rest = shape
    return torch.randn(samples, 1, *rest, dtype=dtype, device=device).expand(shape)


def _scores(found: Found, x: Tensor, num_samples: int) -> Scores:
    count = CHAINS if found.proposal == "annealed" else num_samples
    unreliable, warnings = _judged(found, num_samples)
    return Scores(
        log_p=found.values["log_marginal"],
        log_p_se=_error(found.values["effective_sample_size"], count),
        pareto_k=found.values.get("pareto_k"),
        unreliable=unreliable,
        gaps=x.isnan().flatten(1).any(1),
        num_samples=num_samples,
        proposal=found.proposal,
        warnings=tuple(f"{text[0].upper()}{text[1:].rstrip('.')}." for text in warnings),
    )


def _judged(found: Found, num_samples: int) -> tuple[Tensor | None, list[str]]:
    """Which rows are not to be trusted, and what there is to say."""
    if found.gap is not None:
        doubtful = torch.full_like(found.values["log_marginal"], found.gap >= TOLERANCE)
        return doubtful.bool(), found.warnings
    figures, _, warnings = reliability(found.values, found.proposal, num_samples)
    return figures.get("unreliable"), [*found.warnings, *warnings]


def _error(size: Tensor, count: int) -> Tensor:
    """The standard error of a log mean weight, by the delta method: sd(w) / (mean(w) sqrt(S)).

    With the effective sample size E = (sum w)^2 / sum w^2 it is the root of (S / E - 1) / (S - 1).
    """
    if count == 1:
        return torch.full_like(size, torch.nan)
    return ((count / size - 1).clamp(min=0) / (count - 1)).sqrt()


def nearest_rows(
    x: Any, train: Any, *, shared: bool = False, classes: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """How far each row is from its nearest training row, and which one that is.

    The distance is the root of the mean square of the elements' differences, each in standard
    deviations of its element over the training rows. Synthetic rows that are much nearer than rows
    held out copy what the model was trained on.

    >>> pv.nearest_rows([[0.0, 1.0]], [[0.0, 1.0], [4.0, 3.0]])
    (tensor([0.], dtype=torch.float64), tensor([0]))

    Args:
        x: rows, as for :func:`.evaluate`.
        train: training rows.
        shared: one standard deviation for all elements, as befits pixels.
        classes: numbers of elements that are classes: any two are one standard deviation apart.

    Returns:
        Distances ``(n,)``, float64, and numbers of training rows ``(n,)``.

    Raises:
        ValueError: for rows of another shape.
    """
    known = as_split(train).frozen()
    rows = as_split(x).frozen()
    if rows.event_shape != known.event_shape:
        raise ValueError(
            f"Expected rows of shape {known.event_shape}, as training rows are; "
            f"got {rows.event_shape}."
        )
    _, spread = units_of(known, known.event_shape, shared)
    spread = spread.flatten().to(known.x.device)
    near, place = [], []
    for some in rows.x.split(_ROWS):
        each = some.flatten(1).to(spread) / spread
        best, index = _nearest(each, known.x.flatten(1), spread, list(classes))
        near.append(best / spread.numel() ** 0.5)
        place.append(index)
    return torch.cat(near), torch.cat(place)


def _nearest(
    some: Tensor, known: Tensor, spread: Tensor, classes: list[int]
) -> tuple[Tensor, Tensor]:
    """The least Euclidean distances and where they are, a part of the known rows at a time."""
    best = some.new_full((len(some),), torch.inf)
    index = torch.zeros(len(some), dtype=torch.long, device=some.device)
    for first in range(0, len(known), _ROWS):
        part = known[first : first + _ROWS].double() / spread
        least, at = _distances(some, part, classes).min(1)
        index = torch.where(least < best, first + at, index)
        best = torch.minimum(best, least)
    return best, index


def _distances(a: Tensor, b: Tensor, classes: list[int]) -> Tensor:
    """Euclidean distances ``(len(a), len(b))``; gaps (NaN) count like what was seen of both."""
    if not (classes or a.isnan().any() or b.isnan().any()):
        # By products of matrices, copies would not be at distance 0.
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    squares = (a[:, None] - b).square()
    some = squares[..., classes]
    squares[..., classes] = torch.where(some > 0, 1.0, some)
    seen = (~squares.isnan()).sum(-1)
    mean = squares.nansum(-1) / seen
    return torch.where(seen > 0, mean * a.shape[1], torch.inf).sqrt()
