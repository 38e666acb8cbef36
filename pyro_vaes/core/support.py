"""Where the values of a distribution live, and what it scores outside of that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution, VonMises, constraints

__all__ = [
    "check_densities",
    "check_density",
    "check_support",
    "inside",
    "is_angle",
    "place",
    "scored",
    "singular",
    "support_of",
]


def check_support(likelihood: Any, x: Tensor, first: int = 0) -> None:
    """Refuses values that a likelihood cannot have whatever z, rows counted from ``first``.

    Without Pyro's validation a value between two levels, or a negative one of an exponential
    distribution, would be scored like any other. Gaps (NaN) are refused where elements are not
    independent given z, and cannot be left out.
    """
    x = _without_gaps(likelihood, x, first)
    support = support_of(likelihood)  # Your own likelihood may have none.
    if support is None or not (support.is_discrete or _is_fixed(support)):
        return
    wrong = ~_within(likelihood, support, x).reshape(-1, len(x)).all(0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Expected {_expected(support, x[row])} in row {first + row} (counted from 0)."
        )


def scored(distribution: Any, value: Tensor) -> Tensor:
    """The log density of values, minus infinity outside of the support.

    Without Pyro's validation many distributions score such values like any other, or as NaN.

    >>> from pyro_vaes.core.support import scored
    >>> scored(dist.Exponential(1.0, validate_args=False), torch.tensor([1.0, -1.0]))
    tensor([-1., -inf])
    """
    log_prob: Tensor = distribution.log_prob(value)
    within = inside(distribution, value)
    return log_prob if within is None else log_prob.masked_fill(~within, -math.inf)


def inside(distribution: Any, value: Tensor) -> Tensor | None:
    """Which values, of shape ``(*batch, *event_shape)``, the support holds; None for all."""
    support = support_of(distribution)
    if support is None or _is_everywhere(support):
        return None
    if hasattr(distribution, "stand_in"):  # A gap (NaN) is left out of the density.
        value = torch.where(value.isnan(), distribution.stand_in, value)
    try:
        return _within(distribution, support, value)
    except (NotImplementedError, ValueError):  # A support that depends on what is not known.
        return None


def place(distribution: Any, must_say: bool = False) -> str | None:
    """Where z lives, according to its distribution, if that is not all of R^D.

    Args:
        distribution: of z.
        must_say: whether an unknown support is a reason, too.
    """
    if hasattr(distribution, "distributions"):  # Of the levels of a chain.
        return next(filter(None, map(place, distribution.distributions())), None)
    support, kind = support_of(distribution), type(distribution).__name__
    if is_angle(distribution):
        return "z is an angle"
    if _is_point(distribution):
        return "z is a point (Delta)"
    if support is None:
        return f"neither prior nor posterior ({kind}) says its support" if must_say else None
    if support.is_discrete:
        return f"z is discrete ({kind})"
    where = " ".join(str(_base(support)).split())
    return None if _is_everywhere(support) else f"z lives in {where:.80}, not in all of R^D"


def singular(posterior: Any, prior: Any) -> str | None:
    """Why the posterior has no density relative to the prior, None if it may have one."""
    if _is_point(posterior) and not _is_point(prior):
        return "the posterior is a point (Delta), without a density"
    kinds = [getattr(support_of(of), "is_discrete", None) for of in (posterior, prior)]
    if None not in kinds and kinds[0] != kinds[1]:
        names = ["discrete" if kind else "continuous" for kind in kinds]
        return f"the posterior is {names[0]} and the prior {names[1]}"
    return None


def check_density(role: str, distribution: Any, batch: Sequence[Any], event: Any) -> None:
    """Refuses a distribution of z or x that has other shapes, or whose density has a mask.

    Args:
        role: of the part, for the message.
        distribution: what it returned.
        batch: the batch shapes that it may have.
        event: the event shape; None for any vector.

    Raises:
        ValueError: naming the part.
    """
    shapes = [tuple(getattr(distribution, f"{kind}_shape", ())) for kind in ("batch", "event")]
    fits = len(shapes[1]) == 1 if event is None else shapes[1] == tuple(event)
    if not fits or shapes[0] not in map(tuple, batch):
        raise ValueError(
            f"Expected a {role} of batch shape {' or '.join(str(tuple(b)) for b in batch)} and "
            f"event shape {'(latent_dim,)' if event is None else tuple(event)}; got "
            f"{type(distribution).__name__} of batch shape {shapes[0]} and event shape "
            f"{shapes[1]}. Dimensions of one datum are declared by .to_event(...)."
        )
    if role != "likelihood" and any(_is_masked(part) for part in _layers(distribution)):
        raise ValueError(
            f"Expected a {role} that is a density; got one with a mask, whose log_prob is 0 "
            "where it hides. A mask belongs to the likelihood."
        )


def check_densities(prior: Any, posterior: Any, likelihood: Any, event: Any) -> None:
    """The same of all that the parts return for one datum; Pyro may broadcast what does not fit.

    Args:
        prior: p(z), with or without a batch dimension.
        posterior: q(z | x).
        likelihood: p(x | z) at one z.
        event: the shape of a datum.
    """
    check_density("posterior", posterior, [(1,)], None)
    check_density("prior", prior, [(), (1,)], posterior.event_shape)
    check_density("likelihood", likelihood, [(1,)], event)


def support_of(distribution: Any) -> Any:
    """The support, None if unknown; PyTorch forgets that of what it transforms."""
    if isinstance(distribution, Independent):
        base = support_of(distribution.base_dist)
        ndims = distribution.reinterpreted_batch_ndims
        return None if base is None else constraints.independent(base, ndims)  # type: ignore[no-untyped-call]
    if isinstance(distribution, TransformedDistribution) and distribution.transforms:
        base = support_of(distribution.base_dist)
        taken = _base(distribution.transforms[0].domain)
        if base is not None and taken is constraints.real and not _is_everywhere(base):
            return _Image(base, distribution.transforms)
    try:
        return distribution.support
    except (AttributeError, NotImplementedError):
        return None


class _Image(constraints.Constraint):
    """A part of R^D moved by transforms that take all of it."""

    def __init__(self, base: Any, transforms: Sequence[Any]) -> None:
        self.base, self.transforms = base, transforms
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return bool(self.base.is_discrete)

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return int(self.base.event_dim)

    def check(self, value: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        checked: Tensor = self.base.check(value)
        return checked

    def __repr__(self) -> str:
        return f"an image of {_base(self.base)}"


def _within(distribution: Any, support: Any, value: Tensor) -> Tensor:
    """Which values a support holds, whole events at once."""
    found: Tensor = support.check(value)
    event = len(distribution.event_shape) - support.event_dim
    return found if event <= 0 else found.flatten(-event).all(-1)


def _base(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _is_everywhere(support: Any) -> bool:
    return isinstance(_base(support), type(constraints.real))


def _is_fixed(support: Any) -> bool:
    """Whether no number in a support may depend on z."""
    values = vars(_base(support)).values()
    return not isinstance(_base(support), _Image) and not any(
        isinstance(value, Tensor) and value.numel() > 1 for value in values
    )


def is_angle(distribution: Any) -> bool:
    """Whether values are angles, whose support PyTorch takes for all of R."""
    return any(isinstance(part, VonMises) for part in _layers(distribution))


def _is_masked(distribution: Any) -> bool:
    return isinstance(distribution, MaskedDistribution) and distribution._mask is not True


def _is_point(distribution: Any) -> bool:
    return any(isinstance(part, Delta) for part in _layers(distribution))


def _layers(distribution: Any) -> Iterator[Any]:
    """A distribution and those that it is made of, one in the other or one after another."""
    while distribution is not None:
        yield distribution
        if hasattr(distribution, "distributions"):  # Of the levels of a chain.
            yield from itertools.chain(*map(_layers, distribution.distributions()))
        inner = getattr(distribution, "base_dist", None)
        distribution = getattr(distribution, "component_distribution", None) or inner


def _without_gaps(likelihood: Any, x: Tensor, first: int) -> Tensor:
    """Data with another value for NaN, which is refused where it cannot be left out."""
    if not x.is_floating_point() or not bool((gaps := x.isnan()).any()):
        return x
    if hasattr(likelihood, "stand_in"):
        return torch.where(gaps, likelihood.stand_in, x)
    row = int(gaps.reshape(len(x), -1).any(1).nonzero()[0])
    raise ValueError(
        f"Expected data without gaps for {type(likelihood).__name__}, which cannot leave elements "
        f"out; got NaN in row {first + row} (counted from 0). Fill them in, or use a likelihood of "
        "independent elements."
    )


def _expected(support: Any, row: Tensor) -> str:
    """What a support takes, and what a row has that it does not."""
    if hasattr(support, "explain"):
        return str(support.explain(row))
    base = getattr(support, "base_constraint", support)
    top = getattr(base, "upper_bound", None)
    if not support.is_discrete:
        return f"values in the likelihood's support, {base}; got {row.min():g} to {row.max():g}"
    levels = f"{base}" if top is None else f"whole numbers up to {torch.as_tensor(top).max():g}"
    if getattr(base, "lower_bound", None) == 0 and top is None:
        levels = "whole numbers from 0"
    if base is constraints.boolean:
        levels = "0 and 1"
    return f"the likelihood's levels, {levels}; got values from {row.min():g} to {row.max():g}"
