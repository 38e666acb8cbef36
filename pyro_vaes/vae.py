"""A VAE: three parts joined into a Pyro model and guide."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import Conditions, labels_in_range, takes_labels, with_labels
from pyro_vaes.core.looking import in_evaluation_mode, in_pieces, mean_of
from pyro_vaes.core.paths import bulk_of, line, walks
from pyro_vaes.core.support import check_densities, check_support

__all__ = ["VAE", "check_data", "check_labels", "drawn", "evaluating", "mean_of"]


# Pyro keeps parameters in one global store by name, and a second module of the same name silently
# trains the first one's tensors. So every VAE of a process, copies included, has its own name.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_counter = itertools.count()
# The parameter last put into the store under a name.
_announced: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()

# Rows encoded, decoded or drawn at once: hidden layers need memory, too.
_PIECE = 4096


class VAE(Described):
    """A prior, a posterior and a likelihood joined into ``.model`` and ``.guide``.

    p(x, z) = p(x | z) p(z) and q(z | x), with sites ``"z"`` and ``"x"`` in a plate ``"data"``. Any
    module that is called like a part is a part. Labels ``y`` go to the parts that take them: those
    with ``num_labels > 0``, or your own whose ``forward`` has an argument ``y``.

    >>> posterior = pv.NormalPosterior(pv.MLP(4, [32]), latent_dim=2)
    >>> likelihood = pv.NormalLikelihood(pv.MLP(2, [32]), event_shape=(4,))
    >>> vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    >>> vae.sample(10).shape, vae.encode(torch.zeros(3, 4)).shape
    (torch.Size([10, 4]), torch.Size([3, 2]))

    Args:
        prior: ``prior()`` or ``prior(y)`` returns a distribution over z, event shape
            ``(latent_dim,)``.
        posterior: ``posterior(x)`` or ``posterior(x, y)`` returns one with the batch shape of x.
        likelihood: ``likelihood(z)`` or ``likelihood(z, y)`` returns one with the batch shape of z
            and the event shape of a datum.
        conditions: what y is, if it is a matrix ``(n, columns)`` of several conditions, instead of
            one label for each datum.

    Raises:
        ValueError: if the parts' sizes do not fit each other.
    """

    conditions: Conditions | None

    def __init__(
        self,
        prior: nn.Module,
        posterior: nn.Module,
        likelihood: nn.Module,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__()
        for size in ("latent_dim", "event_shape"):
            sizes = {
                role: getattr(part, size)
                for role, part in (
                    ("prior", prior),
                    ("posterior", posterior),
                    ("likelihood", likelihood),
                )
                if getattr(part, size, None) is not None
            }
            if len(set(sizes.values())) > 1:
                raise ValueError(
                    f"Expected parts that agree on {size}; got "
                    + ", ".join(f"{role} {value}" for role, value in sizes.items())
                    + "."
                )
        self.prior = prior
        self.posterior = posterior
        self.likelihood = likelihood
        self.conditions = conditions
        if conditions is not None:
            conditions.fit((prior, posterior, likelihood))
        # The likelihood knows the range of the data; the posterior's network needs scaled inputs.
        x_range = getattr(likelihood, "x_range", None)
        if x_range is not None and getattr(posterior, "x_range", x_range) is None:
            take = getattr(posterior, "take_x_range", None) or cast(Any, posterior).set_x_range
            take(*x_range)
        # Or each element's own units, which the posterior and the prior take over.
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
        return with_labels(self.prior, self._inputs(y))

    def q_z(self, x: Tensor, y: Tensor | None = None) -> Any:
        """The posterior's distribution, with the labels if it takes them."""
        return with_labels(self.posterior, self._inputs(y), x)

    def p_x(self, z: Tensor, y: Tensor | None = None) -> Any:
        """The likelihood's distribution, with the labels if it takes them."""
        return with_labels(self.likelihood, self._inputs(y), z)

    def _inputs(self, y: Tensor | None) -> Tensor | None:
        """What the parts are given for labels, or for conditions of each datum."""
        return y if y is None or self.conditions is None else self.conditions(y)

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
            # pyro.module would warn of frozen parameters and ignore them: leave them out.
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    _announce(f"{self.name}.{role}$$${name}", parameter)

    def sample(self, n: int, y: Any = None, *, mean: bool = False) -> Tensor:
        """Draws ``n`` data from the model, with its modules in evaluation mode.

        Args:
            n: number of draws.
            y: labels ``(n,)``, or one label for all (with ``conditions`` rows of them, or one row
                for all); needed by a conditional VAE.
            mean: return the likelihood's mean instead of a draw from it.

        Returns:
            ``(n, *event_shape)``.

        Raises:
            ValueError: if ``n`` is negative, or for labels out of range or that no part takes.
        """
        if (n := operator.index(n)) < 0:
            raise ValueError(f"Expected n of 0 or more; got {n}.")
        if y is not None and not self.conditional:
            raise ValueError("Expected no labels y to sample, since no part takes them; got some.")
        labels = self._check_labels(y, n)
        if n > _PIECE:
            return in_pieces(
                lambda rows, some: self.sample(len(rows), some, mean=mean), range(n), labels, _PIECE
            )
        with in_evaluation_mode(self):
            prior = self.p_z(labels)
            z = prior.sample(() if prior.batch_shape else (n,))
            likelihood = self.p_x(z, labels)
            return mean_of(likelihood) if mean else cast(Tensor, likelihood.sample())

    def encode(self, x: Any, y: Any = None, *, num_samples: int | None = None) -> Tensor:
        """The posterior mean ``(n, latent_dim)``, or draws ``(num_samples, n, latent_dim)``.

        A posterior without an analytic mean (a flow) is averaged over 512 draws from a fixed seed.
        Modules are in evaluation mode meanwhile.

        Args:
            x: data ``(n, *event_shape)``, a tensor, array or list.
            y: labels ``(n,)``, or one label for all.
            num_samples: number of draws; None for the mean.

        Raises:
            ValueError: for data of another shape, or labels out of range.
        """
        # A posterior that takes no labels needs none.
        needed = y is not None or takes_labels(self.posterior)
        if num_samples is None and np.ndim(x) > 1 and len(x) > _PIECE:
            labels = self._check_labels(y, len(x)) if needed else None
            return in_pieces(self.encode, x, labels, _PIECE)
        x = self._tensor(x, "data x")
        labels = self._check_labels(y, len(x)) if needed else None
        with in_evaluation_mode(self):
            posterior = self.q_z(x, labels)
            if num_samples is None:
                return mean_of(posterior)
            return drawn(posterior, operator.index(num_samples))

    def decode(self, z: Any, y: Any = None) -> Tensor:
        """The likelihood's mean ``(*batch, *event_shape)`` at z ``(*batch, latent_dim)``.

        Raises:
            ValueError: for z of another size, or labels out of range.
        """
        z = self._tensor(z, "codes z")
        sizes = (getattr(part, "latent_dim", None) for part in self.children())
        latent_dim = next((size for size in sizes if size is not None), None)
        if not z.dim() or (latent_dim is not None and z.shape[-1] != latent_dim):
            raise ValueError(f"Expected z of shape (..., {latent_dim}); got {tuple(z.shape)}.")
        if z.dim() == 2 and len(z) > _PIECE:
            labels = None if y is None else self._check_labels(y, len(z))
            return in_pieces(self.decode, z, labels, _PIECE)
        if y is not None:
            lone = z.dim() > 1 and np.ndim(y) == (self.conditions is not None)
            y = self._check_labels(y, z.shape[-2] if lone else None)
        with in_evaluation_mode(self):
            return mean_of(self.p_x(z, y))

    def reconstruct(self, x: Any, y: Any = None) -> Tensor:
        """The likelihood's mean at the posterior mean of x."""
        return self.decode(self.encode(x, y), y)

    def interpolate(self, a: Any, b: Any, steps: int = 8, y: Any = None) -> Tensor:
        """Means of data on the straight lines from the codes of some rows to those of others.

        Args:
            a: data ``(n, *event_shape)`` where the lines begin.
            b: as many, where they end.
            steps: data on each line, from the reconstruction of a's row to that of b's.
            y: labels ``(n,)``, or one label for all.

        Returns:
            ``(n, steps, *event_shape)``.

        Raises:
            ValueError: for fewer than 2 steps, or another number of rows in b.
        """
        z = line(self.encode(a, y), self.encode(b, y), steps)
        return self._decode_stack(z, y).movedim(0, 1)

    def traverse(self, x: Any, units: Any = None, steps: int = 7, y: Any = None) -> Tensor:
        """Means of data as one unit of a row's code after the other runs through the prior.

        It goes from the 2.5 % to the 97.5 % quantile of 1000 fixed draws from the prior, the other
        units staying at the posterior mean.

        Args:
            x: data ``(n, *event_shape)`` to begin from.
            units: which ones, from 0; the active ones are in ``evaluate(...).active``. None: all.
            steps: data for each unit.
            y: labels ``(n,)``, or one label for all.

        Returns:
            ``(n, len(units), steps, *event_shape)``.

        Raises:
            ValueError: for fewer than 2 steps, or for units that are none of the code's.
        """
        z = self.encode(x, y)
        with in_evaluation_mode(self):
            prior = self.p_z(self._check_labels(y, len(z)) if self.prior_is_conditional else None)
            z = walks(z, *bulk_of(prior), units, steps)
        return self._decode_stack(z.flatten(0, 1), y).unflatten(0, z.shape[:2]).movedim(2, 0)

    def _decode_stack(self, z: Tensor, y: Any) -> Tensor:
        """Means at z ``(k, n, latent_dim)`` of n rows: ``(k, n, *event_shape)``."""
        labels = None if y is None else self._check_labels(y, z.shape[1])
        labels = None if labels is None else labels.repeat(len(z), *[1] * (labels.dim() - 1))
        return self.decode(z.flatten(0, 1), labels).unflatten(0, z.shape[:2])

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
            if np.ma.is_masked(value):
                raise ValueError(
                    f"Expected {what} without a mask; got masked (missing) values. Give "
                    "x.filled(numpy.nan)."
                )
            if array.dtype not in (np.uint8, np.float32):
                array = array.astype(np.float64 if array.dtype.kind == "f" else int)
            value = torch.from_numpy(np.array(array))
        if value.is_complex():
            raise ValueError(f"Expected {what} that are real numbers; got {value.dtype}.")
        return value.to(self.device, self.dtype)

    def _check_labels(self, y: Any, n: int | None = None) -> Tensor | None:
        """Labels in range, one for each of n data if n is given; None if no part takes labels."""
        if self.conditions is not None:
            return self.conditions.checked(y, n)
        if not self.conditional and np.ndim(y) > 1:
            return None  # Conditions that no part takes.
        num_labels = max(getattr(part, "num_labels", 0) or 0 for part in self.children())
        return labels_in_range(y, num_labels, n, self.device)


def _announce(name: str, parameter: Tensor) -> None:
    """Puts a parameter into Pyro's store under a name, in the place of another one if need be.

    So a part that replaces another is trained from then on. Values that were loaded into the store
    (``load``, ``set_state``) are copied to the parameter.

    Raises:
        ValueError: for loaded values of another shape.
    """
    store = pyro.get_param_store()
    there = cast(Any, store[name]).unconstrained() if name in store else parameter
    if there is not parameter:
        if _announced.get(name) is parameter:  # Then the store was changed.
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


@contextmanager
def evaluating(vae: VAE) -> Iterator[None]:
    """Evaluation mode, no gradients, no validation; afterwards all is restored, also generators.

    >>> from pyro_vaes.vae import evaluating
    >>> with evaluating(vae):
    ...     vae.training, torch.is_grad_enabled()
    (False, False)
    """
    with torch.random.fork_rng(), pyro.validation_enabled(False), in_evaluation_mode(vae):
        yield


def drawn(distribution: Any, *sample_shape: int) -> Tensor:
    """Draws, reparameterised where the distribution has ``rsample``.

    >>> from pyro_vaes.vae import drawn
    >>> drawn(vae.p_z(), 10).shape
    torch.Size([10, 2])
    """
    if distribution.has_rsample:
        with suppress(NotImplementedError):  # Raised by levels of which one has none.
            return cast(Tensor, distribution.rsample(sample_shape))
    return cast(Tensor, distribution.sample(sample_shape))


def check_data(vae: VAE, x: Tensor, y: Tensor | None = None) -> None:
    """Refuses data that do not fit the parts, before any work begins.

    >>> from pyro_vaes.vae import check_data
    >>> check_data(vae, torch.zeros(10, 4))
    >>> check_data(vae, torch.zeros(10, 5))
    Traceback (most recent call last):
    ValueError: Expected data of shape (..., 4); got (1, 5).

    Args:
        vae: the model.
        x: data ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.

    Raises:
        ValueError: for another event shape, for labels that are missing or out of range, for
            values that a likelihood cannot have, for gaps (NaN) that a part cannot take, or for
            parts that return distributions of other shapes.
    """
    check_labels(vae, x, y)
    with evaluating(vae):
        label = None if y is None else y[:1]
        posterior = vae.q_z(vae._data(x[:1]), label)
        likelihood = vae.p_x(drawn(posterior), label)
        check_densities(vae.p_z(label), posterior, likelihood, x.shape[1:])
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
    """Labels as int64 on the model's device; refused if missing or out of range for a part.

    >>> from pyro_vaes.vae import check_labels
    >>> check_labels(vae, torch.zeros(10, 4), None) is None
    True
    """
    if y is None and not vae.conditional:
        return None
    return vae._check_labels(y, len(x))
