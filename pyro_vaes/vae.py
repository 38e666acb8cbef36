"""A VAE: three parts joined into a Pyro model and guide."""

from __future__ import annotations

import itertools
import math
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import as_labels, takes_labels, with_labels

__all__ = ["VAE", "check_data", "check_labels", "drawn", "evaluating"]


# Pyro keeps parameters in one global store under names, and a second module under the same name
# silently trains the first one's tensors. So every VAE of a process, copies included, has its own.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_counter = itertools.count()
# What was last given to the store under a name.
_announced: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()

# Draws behind the mean of a distribution that cannot tell it, and numbers drawn at once.
_MEAN_DRAWS = 512
_MEAN_NUMBERS = 2**20
# Rows encoded, decoded or drawn in one go: hidden layers need memory, too.
_PIECE = 4096


class VAE(Described):
    """A prior, a posterior and a likelihood joined into ``.model`` and ``.guide``.

    p(x, z) = p(x | z) p(z) and q(z | x), with sites ``"z"`` and ``"x"`` in a plate ``"data"``. Any
    module that honours the call of a part is a part. Labels ``y`` go to the parts that take them:
    those with ``num_labels > 0``, or a user's own whose ``forward`` has an argument ``y``.

    Args:
        prior: ``prior()`` or ``prior(y)`` returns a distribution over z, event shape
            ``(latent_dim,)``.
        posterior: ``posterior(x)`` or ``posterior(x, y)`` returns one with the batch shape of x.
        likelihood: ``likelihood(z)`` or ``likelihood(z, y)`` returns one with the batch shape of z
            and the event shape of a datum.

    Raises:
        ValueError: if the parts' sizes do not fit each other.
    """

    def __init__(self, prior: nn.Module, posterior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        for size in ("latent_dim", "event_shape"):
            told = {
                role: getattr(part, size)
                for role, part in (
                    ("prior", prior),
                    ("posterior", posterior),
                    ("likelihood", likelihood),
                )
                if getattr(part, size, None) is not None
            }
            if len(set(told.values())) > 1:
                raise ValueError(
                    f"Expected parts that agree on {size}; got "
                    + ", ".join(f"{role} {value}" for role, value in told.items())
                    + "."
                )
        self.prior = prior
        self.posterior = posterior
        self.likelihood = likelihood
        # The likelihood knows the range of the data, the posterior's network wants it scaled.
        x_range = getattr(likelihood, "x_range", None)
        if x_range is not None and getattr(posterior, "x_range", x_range) is None:
            take = getattr(posterior, "take_x_range", None) or cast(Any, posterior).set_x_range
            take(*x_range)
        # Or each element's own units: whoever else meets data in them follows.
        for part in (posterior, prior):
            if hasattr(likelihood, "hand_on") and hasattr(part, "set_units"):
                cast(Any, likelihood).hand_on(part)
        # Pseudo-inputs of levels are learned in units of their range.
        x_range = getattr(posterior, "x_range", None) if x_range is None else x_range
        per_element = hasattr(likelihood, "hand_on")
        if x_range is not None and not per_element and hasattr(prior, "set_units"):
            low, high = map(torch.as_tensor, x_range)
            cast(Any, prior).set_units((low + high) / 2, (high - low) / 2)

    @property
    def name(self) -> str:
        """The prefix of this VAE's parameters in Pyro's store; a copy has another."""
        if self not in _names:
            _names[self] = f"vae{next(_counter)}"
        return _names[self]

    @property
    def conditional(self) -> bool:
        """Whether any part takes labels."""
        return any(map(takes_labels, (self.prior, self.posterior, self.likelihood)))

    @property
    def prior_is_conditional(self) -> bool:
        """Whether the prior takes labels; otherwise one distribution serves all data."""
        return takes_labels(self.prior)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters."""
        return self._any_tensor().dtype

    def _any_tensor(self) -> Tensor:
        tensors = itertools.chain(self.parameters(), self.buffers())
        floating = (tensor for tensor in tensors if tensor.is_floating_point())
        return next(floating, torch.zeros(()))

    def p_z(self, y: Tensor | None = None) -> Any:
        """The prior's distribution, with the labels if it takes them."""
        return with_labels(self.prior, y)

    def q_z(self, x: Tensor, y: Tensor | None = None) -> Any:
        """The posterior's distribution, with the labels if it takes them."""
        return with_labels(self.posterior, y, x)

    def p_x(self, z: Tensor, y: Tensor | None = None) -> Any:
        """The likelihood's distribution, with the labels if it takes them."""
        return with_labels(self.likelihood, y, z)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The generative model p(x, z), observed at ``x`` of shape ``(n, *event_shape)``."""
        self._announce("prior", "likelihood")
        x = self._data(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.p_z(y))
            pyro.sample("x", self.p_x(z, y), obs=x)
        return z

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The variational guide q(z | x)."""
        self._announce("posterior")
        x = self._data(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.q_z(x, y))

    def _announce(self, *roles: str) -> None:
        for role in roles:
            part = cast(nn.Module, getattr(self, role))
            # pyro.module warns of frozen parameters and then leaves them alone: leave them out.
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    _announce(f"{self.name}.{role}$$${name}", parameter)

    def sample(self, n: int, y: Any = None, *, mean: bool = False) -> Tensor:
        """Draws ``n`` data from the model, with its modules in evaluation mode.

        Args:
            n: number of draws.
            y: labels ``(n,)``, or one label for all; needed by a conditional VAE.
            mean: return the likelihood's mean instead of a draw from it.

        Returns:
            ``(n, *event_shape)``.

        Raises:
            ValueError: if ``n`` is negative, or the labels are none of the model's.
        """
        n = operator.index(n)
        if n < 0:
            raise ValueError(f"Expected n of 0 or more; got {n}.")
        labels = self._check_labels(y, n)
        if n > _PIECE:
            return _in_pieces(
                lambda rows, some: self.sample(len(rows), some, mean=mean), range(n), labels
            )
        with in_evaluation_mode(self):
            prior = self.p_z(labels)
            z = prior.sample(() if prior.batch_shape else (n,))
            likelihood = self.p_x(z, labels)
            return mean_of(likelihood) if mean else cast(Tensor, likelihood.sample())

    def encode(self, x: Any, y: Any = None, *, num_samples: int | None = None) -> Tensor:
        """The posterior mean ``(n, latent_dim)``, or draws ``(num_samples, n, latent_dim)``.

        The mean of a posterior that cannot tell it (a flow's) is the average of 512 draws from a
        fixed seed: the same at each call. Modules are in evaluation mode meanwhile.

        Args:
            x: data ``(n, *event_shape)``, a tensor, array or list.
            y: labels ``(n,)``, or one label for all.
            num_samples: how many draws; None for the mean.

        Raises:
            ValueError: for data of another shape, or labels that are none of the model's.
        """
        # A posterior that takes no labels encodes without.
        needed = y is not None or takes_labels(self.posterior)
        if num_samples is None and np.ndim(x) > 1 and len(x) > _PIECE:
            labels = self._check_labels(y, len(x)) if needed else None
            return _in_pieces(self.encode, x, labels)
        x = self._tensor(x, "data x")
        labels = self._check_labels(y, len(x)) if needed else None
        with in_evaluation_mode(self):
            posterior = self.q_z(x, labels)
            if num_samples is None:
                return mean_of(posterior)
            return cast(Tensor, posterior.rsample((operator.index(num_samples),)))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """The likelihood's mean ``(*batch, *event_shape)`` at z ``(*batch, latent_dim)``.

        Raises:
            ValueError: for z of another size, or labels that are none of the model's.
        """
        z = self._tensor(z, "codes z")
        told = (getattr(part, "latent_dim", None) for part in self.children())
        latent_dim = next((size for size in told if size is not None), None)
        if not z.dim() or (latent_dim is not None and z.shape[-1] != latent_dim):
            raise ValueError(f"Expected z of shape (..., {latent_dim}); got {tuple(z.shape)}.")
        if z.dim() == 2 and len(z) > _PIECE:
            return _in_pieces(self.decode, z, None if y is None else self._check_labels(y, len(z)))
        if y is not None:
            lone = z.dim() > 1 and not as_labels(y).dim()
            y = self._check_labels(y, z.shape[-2] if lone else None)
        with in_evaluation_mode(self):
            return mean_of(self.p_x(z, y))

    def reconstruct(self, x: Any, y: Any = None) -> Tensor:
        """The likelihood's mean at the posterior mean of x."""
        return self.decode(self.encode(x, y), y)

    def _data(self, x: Any) -> Tensor:
        if isinstance(x, Tensor) and x.dtype != torch.uint8:
            return x
        return self._tensor(x, "data x")

    def _tensor(self, value: Any, what: str) -> Tensor:
        """Numbers as a tensor, where the parameters are and in their precision."""
        if not isinstance(value, Tensor):
            array = np.asarray(value) if np.ndim(value) else np.array(value)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"Expected {what} that are real numbers; got {array.dtype}.")
            if np.ma.is_masked(value):  # What is masked was not seen.
                array = np.ma.filled(value.astype(np.float64), np.nan)
            if array.dtype not in (np.uint8, np.float32):
                array = array.astype(np.float64 if array.dtype.kind == "f" else int)
            value = torch.from_numpy(np.array(array))
        if value.is_complex():
            raise ValueError(f"Expected {what} that are real numbers; got {value.dtype}.")
        return value.to(self.device, self.dtype)

    def _check_labels(self, y: Any, n: int | None = None) -> Tensor | None:
        """Labels in range, one for each of n data if n is given; None if no part takes labels."""
        num_labels = max(getattr(part, "num_labels", 0) or 0 for part in self.children())
        if y is None:
            if num_labels:
                raise ValueError(
                    f"Expected labels y in 0..{num_labels - 1} for a conditional VAE; got none."
                )
            return None
        labels = as_labels(y).to(self.device)
        if n is not None and tuple(labels.shape) not in ((), (1,), (n,)):
            raise ValueError(
                f"Expected labels y of shape ({n},), one for each datum, or one for all; got shape "
                f"{tuple(labels.shape)}. (Labels are numbers of classes, not one-hot rows.)"
            )
        if num_labels and not bool(((labels >= 0) & (labels < num_labels)).all()):
            wrong = labels[(labels < 0) | (labels >= num_labels)][0].item()
            raise ValueError(f"Expected labels y in 0..{num_labels - 1}; got {wrong}.")
        return labels if n is None else labels.expand(n)


def _announce(name: str, parameter: Tensor) -> None:
    """Gives a parameter to Pyro's store under a name, also where another one stands there.

    A part that was put into the place of another is trained from then on. Values that were loaded
    into the store (``load``, ``set_state``) are taken over.

    Raises:
        ValueError: for loaded values of another shape.
    """
    store = pyro.get_param_store()
    there = cast(Any, store[name]).unconstrained() if name in store else parameter
    if there is not parameter:
        if _announced.get(name) is parameter:  # So it is the store that was changed.
            if there.shape != parameter.shape:
                raise ValueError(
                    f"Expected {name!r} in Pyro's store of shape {tuple(parameter.shape)}; got "
                    f"{tuple(there.shape)}. Clear the store, or load what was saved of this model."
                )
            with torch.no_grad():
                parameter.copy_(there)
        store[name] = parameter
    _announced[name] = parameter
    pyro.param(name, parameter)


def _in_pieces(work: Callable[[Any, Tensor | None], Tensor], rows: Any, y: Tensor | None) -> Tensor:
    """What is done to some rows and their labels, a piece of them at a time."""
    result = None
    for start in range(0, len(rows), _PIECE):
        piece = slice(start, start + _PIECE)
        part = work(rows[piece], None if y is None else y[piece])
        if result is None:
            result = part.new_empty(len(rows), *part.shape[1:])
        # Copied: kept, small results among large freed ones would leave holes in the memory.
        result[piece] = part
    return cast(Tensor, result)


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards each module is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    with torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def mean_of(distribution: Any) -> Tensor:
    """The mean of a distribution; of one that cannot tell it, the average of fixed draws."""
    try:
        return cast(Tensor, distribution.mean)
    except NotImplementedError:
        numbers = math.prod((*distribution.batch_shape, *distribution.event_shape))
        most = max(1, _MEAN_NUMBERS // max(1, numbers))
        pieces = [min(most, _MEAN_DRAWS - done) for done in range(0, _MEAN_DRAWS, most)]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cast(
                Tensor,
                sum(distribution.sample((count,)).sum(0) for count in pieces) / _MEAN_DRAWS,
            )


@contextmanager
def evaluating(vae: VAE) -> Iterator[None]:
    """Evaluation mode, no gradients, no validation; afterwards all is as it was, generators too."""
    with torch.random.fork_rng(), pyro.validation_enabled(False), in_evaluation_mode(vae):
        yield


def drawn(distribution: Any, *sample_shape: int) -> Tensor:
    """Draws; those of a distribution without rsample (a discrete one's) have no gradient anyway."""
    draw = distribution.rsample if distribution.has_rsample else distribution.sample
    return cast(Tensor, draw(sample_shape))


def check_data(vae: VAE, x: Tensor, y: Tensor | None = None) -> None:
    """Refuses data that the parts cannot take, before the work begins.

    Args:
        vae: the model.
        x: data ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.

    Raises:
        ValueError: for another event shape, for labels that are missing or out of range, for
            values that are no levels of a likelihood over levels, or for gaps (NaN) that a part
            cannot take.
    """
    check_labels(vae, x, y)
    with evaluating(vae):
        label = None if y is None else y[:1]
        likelihood = vae.p_x(drawn(vae.q_z(vae._data(x[:1]), label)), label)
        for first in range(0, len(x), _PIECE):
            rows = vae._data(x[first : first + _PIECE])
            check_support(likelihood, rows, first)
            _check_codes(vae, rows, y, first)


def _check_codes(vae: VAE, x: Tensor, y: Tensor | None, first: int) -> None:
    """Refuses a row with gaps of which a posterior makes NaN, as one of a user's own may."""
    gaps = x.isnan().flatten(1).any(1)
    if not bool(gaps.any()):
        return
    row = int(gaps.nonzero()[0])
    label = None if y is None else y[first + row : first + row + 1]
    if bool(drawn(vae.q_z(x[row : row + 1], label)).isnan().any()):
        raise ValueError(
            f"Expected a posterior that takes gaps; got NaN codes of row {first + row} (counted "
            "from 0), which has NaN in it. Give its network zeros there, as NormalPosterior does."
        )


def check_labels(vae: VAE, x: Tensor, y: Any) -> Tensor | None:
    """Labels as int64 where the model is; refused if missing or out of range for a part."""
    if y is None and not vae.conditional:
        return None
    return vae._check_labels(y, len(x))


def check_support(likelihood: Any, x: Tensor, first: int = 0) -> None:
    """Refuses values between or beyond the levels of a likelihood, rows counted from ``first``.

    Where validation is off, the probability of half a level would be a number like any other. Gaps
    (NaN) are refused where elements are not independent given z, and cannot be left out.
    """
    gaps = x.isnan() if x.is_floating_point() else torch.zeros((), dtype=torch.bool)
    if bool(gaps.any()):
        if not hasattr(likelihood, "stand_in"):
            row = int(gaps.reshape(len(x), -1).any(1).nonzero()[0])
            raise ValueError(
                f"Expected data without gaps for {type(likelihood).__name__}, which cannot leave "
                f"elements out; got NaN in row {first + row} (counted from 0). Fill them in, or "
                "take a likelihood of independent elements."
            )
        x = torch.where(gaps, likelihood.stand_in, x)
    try:
        support = likelihood.support
    except (AttributeError, NotImplementedError):  # A user's own need not tell.
        return
    if not support.is_discrete:
        return
    wrong = ~support.check(x).reshape(-1, len(x)).all(0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        if hasattr(support, "explain"):
            raise ValueError(
                f"Expected {support.explain(x[row])} in row {first + row} (counted from 0)."
            )
        base = getattr(support, "base_constraint", support)
        top = getattr(base, "upper_bound", None)
        levels = f"{base}" if top is None else f"whole numbers up to {torch.as_tensor(top).max():g}"
        if getattr(base, "lower_bound", None) == 0 and top is None:
            levels = "whole numbers from 0"
        raise ValueError(
            f"Expected the likelihood's levels, {levels}; got values from {x[row].min():g} to "
            f"{x[row].max():g} in row {first + row} (counted from 0)."
        )
