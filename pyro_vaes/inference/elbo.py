"""Objectives for SVI.

One family, minimised over the data of a batch (in nats summed over the plate, as in Pyro)::

    - E_q[log p(x | z)] + kl_weight KL(q(z | x) || p(z)) + n divergence_weight D(q(z), p(z))

with D between the aggregated posterior of the batch's n data and the prior: weighted per datum, it
keeps its share of the loss as batches grow.

Each objective is a subclass of Pyro's ``Trace_ELBO``: pass it to ``pyro.infer.SVI`` as its loss, or
to ``fit(objective=...)``. It reads log densities from the traces of any model and reparameterised
guide and is independent of the parts. The KL is the sampled log q(z | x) - log p(z), so it works
with every prior and posterior.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor, torch_item
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vaes.core.checks import check_gradient
from pyro_vaes.core.looking import depends_on

__all__ = [
    "ELBO",
    "BetaELBO",
    "CapacityRamp",
    "CyclicalWeight",
    "NotReparameterizedError",
    "Schedule",
    "Terms",
    "bound_terms",
]

Schedule = Callable[[float], float]
"""A value for each epoch; within an epoch, for the fraction that is done."""


@dataclasses.dataclass(frozen=True)
class CyclicalWeight:
    """A KL weight that rises from 0 to its full value in each cycle, and stays there.

    Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing" (2019),
    equations 6 and 7, with a linear rise; theirs has four cycles in the whole training.

    >>> schedule = pv.CyclicalWeight(epochs=50)
    >>> [schedule(epoch) for epoch in (0, 12.5, 25, 49, 50, 75)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    >>> objective = pv.ELBO(schedule=schedule)

    Attributes:
        epochs: of a cycle.
        rise: share of a cycle over which the weight rises.

    Raises:
        ValueError: unless ``epochs`` is above 0 and ``rise`` in (0, 1].
    """

    epochs: float
    rise: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"Expected epochs of a cycle above 0; got {self.epochs}.")
        if not 0 < self.rise <= 1:
            raise ValueError(f"Expected rise above 0 and at most 1; got {self.rise}.")

    def __call__(self, epoch: float) -> float:
        return min(1.0, epoch % self.epochs / (self.rise * self.epochs))


@dataclasses.dataclass(frozen=True)
class CapacityRamp:
    """A capacity of the KL that rises linearly from 0, in nats per datum.

    Burgess et al., "Understanding disentangling in beta-VAE" (2018), section on a controlled
    increase of capacity: there to 25 nats over 100,000 steps.

    >>> ramp = pv.CapacityRamp(25.0, epochs=100)
    >>> ramp(0), ramp(50), ramp(200)
    (0.0, 12.5, 25.0)
    >>> objective = pv.BetaELBO(100.0, capacity=ramp)

    Attributes:
        end: the capacity at the end, nats per datum.
        epochs: after which it is reached.

    Raises:
        ValueError: for a negative or infinite value.
    """

    end: float
    epochs: float

    def __post_init__(self) -> None:
        for name, value in (("end", self.end), ("epochs", self.epochs)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} of at least 0; got {value}.")

    def __call__(self, epoch: float) -> float:
        return self.end * min(1.0, epoch / self.epochs) if self.epochs else self.end


class Terms(NamedTuple):
    """The two terms of a bound, summed over data (and particles), in nats."""

    log_likelihood: Tensor
    """Log densities of the observed sites."""
    kl: Tensor
    """Log density under the guide minus under the model, of the latent sites, a sampled KL."""
    largest: Any
    """The latent site of the model with the most (datum, particle) pairs; None without any."""

    @property
    def pairs(self) -> Any:
        """Number of (datum, particle) pairs in the sums, scaled and masked as these are."""
        return 1 if self.largest is None else pairs_at(self.largest)


class NotReparameterizedError(ValueError):
    """A guide site whose draws cannot be differentiated."""


def bound_terms(model_trace: Any, guide_trace: Any) -> Terms:
    """Splits a pair of traces into log likelihood and sampled KL.

    Raises:
        NotReparameterizedError: for a guide site whose draws cannot be differentiated.
    """
    check_reparameterized(guide_trace, scored=True)
    ours, theirs = (
        [site for site in trace.nodes.values() if site["type"] == "sample"]
        for trace in (model_trace, guide_trace)
    )
    latent = [site for site in ours if not site["is_observed"]]
    log_likelihood: Any = sum(site["log_prob_sum"] for site in ours if site["is_observed"])
    kl: Any = sum(site["log_prob_sum"] for site in theirs)
    for site in latent:
        kl = kl - site["log_prob_sum"]
    largest = max(latent, key=lambda site: site["log_prob"].numel(), default=None)
    return Terms(log_likelihood, kl, largest)


def pairs_at(site: Any) -> Tensor:
    """Number of (datum, particle) pairs at a site, scaled and masked as its log density is."""
    each = scale_and_mask(torch.ones_like(site["log_prob"]), site["scale"], site["mask"])
    return cast(Tensor, each.sum())


def check_reparameterized(guide_trace: Any, scored: bool = False) -> None:
    """Refuses a guide whose draws cannot all be differentiated.

    Args:
        guide_trace: of the guide.
        scored: whether a site may have a score part in addition to its reparameterisation.

    Raises:
        NotReparameterizedError: naming the site.
    """
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample":
            continue
        kind = type(site["fn"]).__name__
        if not site["fn"].has_rsample:
            raise NotReparameterizedError(
                f"Expected a reparameterised guide; got site {name!r} with {kind}, which has no "
                "rsample. Use Pyro's TraceGraph_ELBO."
            )
        if not scored and score_of(site) is not None:
            raise NotReparameterizedError(
                f"Expected a reparameterised guide; got site {name!r} with {kind}, whose gradient "
                "has a score part. Use ELBO() or Pyro's Trace_ELBO."
            )


def score_of(site: Any) -> Tensor | None:
    """The score part of a site's gradient; None for a fully reparameterised site.

    Naesseth et al., "Reparameterization gradients through acceptance-rejection sampling" (2017),
    equation 9: the probability of rejecting a draw depends on the parameters, too.
    """
    score = site["score_parts"].score_function if "score_parts" in site else 0.0
    return None if is_identically_zero(score) else cast(Tensor, score)


def log_prob_of(name: str, site: Any, value: Tensor) -> Tensor:
    """Log density of a guide site at a value that is not its own draw, scaled as the site is.

    Raises:
        NotReparameterizedError: if it scores only its own draws.
    """
    try:
        found = site["fn"].log_prob(value)
    except (NotImplementedError, KeyError):  # Raised by flows without inverse.
        raise NotReparameterizedError(
            f'Expected a guide that scores any value for gradient="path"; got site {name!r} with '
            f'{type(site["fn"]).__name__}, which scores only its own draws. Use gradient="total".'
        ) from None
    return cast(Tensor, scale_and_mask(found, site["scale"], site["mask"]))


def score_term(name: str, site: Any) -> Tensor:
    """Zero, with the gradient of log q at a fixed draw: the score of q, whose mean is zero."""
    found = log_prob_of(name, site, site["value"].detach())
    return found - found.detach()


def path_sites(guide_trace: Any) -> list[tuple[str, Any]]:
    """The sites of a guide that are drawn, names first.

    Raises:
        ValueError: if one is drawn given another: the score of the first then passes the second.
    """
    nodes = guide_trace.nodes.items()
    sites = [(n, s) for n, s in nodes if s["type"] == "sample" and not site_is_subsample(s)]
    for (first, a), (second, b) in itertools.combinations(sites, 2):
        if depends_on(b["value"], a["value"]):
            raise ValueError(
                f'Expected independent sites for gradient="path"; got {second!r}, drawn given '
                f'{first!r}. Make them one event, as ChainPosterior does, or use gradient="total".'
            )
    return sites


def score_surrogate(model_trace: Any, guide_trace: Any, kl_weight: Tensor) -> Tensor | None:
    """Zero, with the gradient that the score parts of the guide add to that of the weighted bound.

    Each site's score is multiplied by the terms of the loss in the plates of the site, as in Pyro's
    ``Trace_ELBO``. None if no site has one.
    """
    sites = [s for s in guide_trace.nodes.values() if s["type"] == "sample"]
    scores = [(site, score) for site in sites if (score := score_of(site)) is not None]
    if not scores:
        return None
    loss = MultiFrameTensor()
    for site in sites:
        loss.add((site["cond_indep_stack"], (kl_weight * site["log_prob"]).detach()))
    for site in model_trace.nodes.values():
        if site["type"] == "sample":
            weight = 1.0 if site["is_observed"] else kl_weight
            loss.add((site["cond_indep_stack"], (-weight * site["log_prob"]).detach()))
    total: Any = 0.0
    for site, score in scores:
        total = total + (loss.sum_to(site["cond_indep_stack"]) * (score - score.detach())).sum()
    return cast(Tensor, total)


def _constant(capacity: float | Schedule | None) -> Schedule | None:
    """A capacity as a function of the epoch."""
    known = capacity is None or callable(capacity)
    return cast("Schedule | None", capacity) if known else CapacityRamp(cast(float, capacity), 0.0)


def _scheduled(name: str, schedule: Schedule, epoch: float) -> float:
    """The value of a schedule at an epoch; refused if it cannot be a weight."""
    value = float(schedule(epoch))
    if not 0 <= value < math.inf:
        raise ValueError(
            f"Expected a {name} of at least 0 and finite at each epoch; got {value} at {epoch}."
        )
    return value


class ELBO(Trace_ELBO):
    """The evidence lower bound, optionally with a weight on its KL or with free bits.

    With the defaults this is Pyro's ``Trace_ELBO`` for reparameterised guides: same estimate, same
    gradients. The weights are tensors, so that a schedule changes them without retracing.

    >>> svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), pv.ELBO(free_bits=2.0))
    >>> loss = svi.step(torch.randn(10, 4))

    Args:
        kl_weight: factor on the KL, at least 0. Pyro's ``poutine.scale`` refuses 0; this does not.
        free_bits: nats of KL per datum without cost: the batch's mean KL is replaced by
            ``max(KL, free_bits)`` (Kingma et al. 2016, section 4, with z as one group).
        capacity: nats of KL per datum to aim at: the loss has ``kl_weight |KL - capacity|`` of the
            batch's mean KL (Burgess et al. 2018); a number, or a function of the epoch that has its
            last value at ``math.inf``, such as :class:`CapacityRamp`. None for the smallest KL.
        schedule: a function of the epoch, the factor on ``kl_weight``, such as
            :class:`CyclicalWeight`. ``fit`` calls both before each step; with plain ``SVI`` call
            :meth:`set_epoch`. Before, and in validation, the factor is 1 and the capacity the last.
        gradient: ``"total"``, or ``"path"``, which leaves out the score of q, whose mean is zero:
            no noise is left where q(z | x) is p(z | x), and often less elsewhere (Roeder, Wu,
            Duvenaud, "Sticking the landing", 2017, equation 8). q is scored a second time, so it
            must score any z; with an inverse autoregressive flow that takes D steps. Sites drawn
            given each other are refused: make them one event.
        **options: those of Pyro's ``ELBO`` (``num_particles``, ``vectorize_particles``, ...). Free
            bits and a capacity apply to each particle, or to the mean of vectorised ones.

    Attributes:
        kl_weight: the full weight, a tensor.
        warmup: factor on ``kl_weight``, a tensor that ``fit`` raises to 1 or sets by ``schedule``.
        kl_goal: the present capacity, a tensor.
        total: sums a term over processes that share a batch, which ``fit`` sets; None for one.

    Raises:
        ValueError: for a negative or infinite weight, or both free bits and a capacity.
    """

    def __init__(
        self,
        kl_weight: float = 1.0,
        *,
        free_bits: float = 0.0,
        capacity: float | Schedule | None = None,
        schedule: Schedule | None = None,
        gradient: str = "total",
        **options: Any,
    ) -> None:
        super().__init__(**{"max_plate_nesting": 1, **options})
        check_gradient(gradient)
        for name, value in (("kl_weight", kl_weight), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} of at least 0; got {value}.")
        self.kl_weight = torch.tensor(float(kl_weight))
        self.free_bits, self.gradient = float(free_bits), gradient
        self.warmup = torch.ones(())
        self.kl_schedule, self.kl_capacity = schedule, _constant(capacity)
        if self.kl_capacity is not None and free_bits:
            raise ValueError(
                f"Expected free bits or a capacity; got both, {free_bits:g} free bits. Each says "
                "how many nats of KL are to be used."
            )
        self.kl_goal = torch.tensor(self._last_capacity())
        if schedule is not None:
            _scheduled("schedule", schedule, 0.0)
        self.total: Callable[[Tensor], Tensor] | None = None

    @property
    def recordable(self) -> bool:
        """Whether a step may be recorded and replayed (not if it trains the objective)."""
        return True

    @property
    def min_data(self) -> int:
        """The smallest batch from which the objective can be estimated."""
        return 1

    def begin(self, num_data: int) -> None:
        """Takes note of the number of training data, which some objectives need; ``fit`` calls."""

    def to(self, device: torch.device | str) -> ELBO:
        """Moves the weights to a device, so that no step waits for a copy."""
        self.kl_weight = self.kl_weight.to(device)
        self.warmup, self.kl_goal = self.warmup.to(device), self.kl_goal.to(device)
        return self

    def set_epoch(self, epoch: float) -> None:
        """Sets the weight and the capacity that the schedules have at an epoch.

        Args:
            epoch: finished ones, with the fraction of the present one.

        Raises:
            ValueError: if a schedule returns a negative or infinite value.
        """
        if self.kl_schedule is not None:
            self.warmup.fill_(_scheduled("schedule", self.kl_schedule, epoch))
        if self.kl_capacity is not None:
            self.kl_goal.fill_(_scheduled("capacity", self.kl_capacity, epoch))

    def _last_capacity(self) -> float:
        last = self.kl_capacity
        return 0.0 if last is None else _scheduled("capacity", last, math.inf)

    @contextmanager
    def full_weights(self) -> Iterator[None]:
        """The objective as its schedules leave it, without warm-up, for validation."""
        warmup, goal = self.warmup.clone(), self.kl_goal.clone()
        self.warmup.fill_(1.0)
        self.kl_goal.fill_(self._last_capacity())
        try:
            yield
        finally:
            self.warmup.copy_(warmup)
            self.kl_goal.copy_(goal)

    def trace_loss(self, model_trace: Any, guide_trace: Any) -> Tensor:
        """The loss of one pair of traces, differentiable: a tensor, never read by the host."""
        terms = bound_terms(model_trace, guide_trace)
        kl, weight = terms.kl, self.kl_weight * self.warmup
        if self.gradient == "path" or self.free_bits or self.kl_capacity is not None:
            check_reparameterized(guide_trace)  # Scores need a sum of terms, which these break.
        if self.gradient == "path":
            kl = kl - sum(score_term(*site).sum() for site in path_sites(guide_trace))
        if self.free_bits:
            free = self.free_bits * terms.pairs
            over = kl.detach() - free  # Free bits apply to the whole batch.
            kl = torch.where((over if self.total is None else self.total(over)) > 0, kl, free)
        if self.kl_capacity is not None:
            kl = kl - self.kl_goal * terms.pairs
            whole = kl.detach() if self.total is None else self.total(kl.detach())
            kl = kl * torch.where(whole < 0, -1.0, 1.0)
        loss = weight * kl - terms.log_likelihood
        score = score_surrogate(model_trace, guide_trace, weight)
        return loss if score is None else loss + score

    # The rest replaces the loss of Trace_ELBO in each of its entry points.

    def tensor_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss averaged over particles, differentiable and without host synchronisation."""
        return self.loss_of(self._get_traces(model, guide, args, kwargs))

    def loss_of(self, pairs: Iterable[tuple[Any, Any]]) -> Tensor:
        """The same of the traces of model and guide, one pair for each particle."""
        return cast(Tensor, sum(self.trace_loss(*pair) for pair in pairs) / self.num_particles)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.tensor_loss(model, guide, *args, **kwargs)
        warn_if_nan(loss, "loss")
        return loss

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        loss = self.trace_loss(model_trace, guide_trace)
        return torch_item(loss), loss

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = torch_item(self.tensor_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return cast(float, loss)


class BetaELBO(ELBO):
    """The ELBO with weight ``beta`` on its KL, 0 included.

    Higgins et al., "beta-VAE" (2017), equation 4. With ``beta=0`` the prior does not regularise the
    posterior.

    >>> svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), pv.BetaELBO(4.0))
    >>> loss = svi.step(torch.randn(10, 4))
    """

    def __init__(self, beta: float, *, free_bits: float = 0.0, **options: Any) -> None:
        if not 0 <= beta < math.inf:
            raise ValueError(f"Expected beta of at least 0; got {beta}.")
        super().__init__(beta, free_bits=free_bits, **options)
