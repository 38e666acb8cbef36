"""A VAE: three parts joined into a Pyro model and guide."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.core.labels import takes_labels, with_labels

__all__ = ["VAE", "check_data", "check_labels", "untouched"]


# Pyro keeps parameters in one global store under names, and a second module under the same name
# silently trains the first one's tensors. So every VAE of a process, copies included, has its own.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_counter = itertools.count()
# What was last given to the store under a name.
_announced: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()

# Draws behind the mean of a distribution that cannot tell it.
_MEAN_DRAWS = 512


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
            cast(Any, posterior).set_x_range(*x_range)

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
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.p_z(y))
            pyro.sample("x", self.p_x(z, y), obs=x)
        return z

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The variational guide q(z | x)."""
        self._announce("posterior")
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.q_z(x, y))

    def _announce(self, *roles: str) -> None:
        for role in roles:
            part = cast(nn.Module, getattr(self, role))
            # pyro.module warns of frozen parameters and then leaves them alone: leave them out.
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    _announce(f"{self.name}.{role}$$${name}", parameter)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | int | None = None, *, mean: bool = False) -> Tensor:
        """Draws ``n`` data from the model.

        Args:
            n: number of draws.
            y: labels ``(n,)``, or one label for all; needed by a conditional VAE.
            mean: return the likelihood's mean instead of a draw from it.

        Returns:
            ``(n, *event_shape)``.

        Raises:
            ValueError: if ``n`` is negative, or the labels are none of the model's.
        """
        if n < 0:
            raise ValueError(f"Expected n of 0 or more; got {n}.")
        y = self._check_labels(y, n)
        prior = self.p_z(y)
        z = prior.sample(() if prior.batch_shape else (n,))
        return self.decode(z, y) if mean else self.p_x(z, y).sample()

    @torch.no_grad()
    def encode(
        self, x: Tensor, y: Tensor | None = None, *, num_samples: int | None = None
    ) -> Tensor:
        """The posterior mean ``(n, latent_dim)``, or draws ``(num_samples, n, latent_dim)``.

        The mean of a posterior that cannot tell it (a flow's) is the average of 512 draws from a
        fixed seed: the same at each call.
        """
        posterior = self.q_z(x, self._check_labels(y, len(x)))
        return mean_of(posterior) if num_samples is None else posterior.rsample((num_samples,))

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | int | None = None) -> Tensor:
        """The likelihood's mean ``(*batch, *event_shape)`` at z ``(*batch, latent_dim)``."""
        if y is not None:
            y = self._check_labels(y, z.shape[-2] if isinstance(y, int) and z.dim() > 1 else None)
        return mean_of(self.p_x(z, y))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The likelihood's mean at the posterior mean of x."""
        return self.decode(self.encode(x, y), y)

    def _check_labels(self, y: Tensor | int | None, n: int | None = None) -> Tensor | None:
        """Labels in range, one for each of n data if n is given; None if no part takes labels."""
        num_labels = max(getattr(part, "num_labels", 0) or 0 for part in self.children())
        if y is None:
            if num_labels:
                raise ValueError(
                    f"Expected labels y in 0..{num_labels - 1} for a conditional VAE; got none."
                )
            return None
        labels = torch.as_tensor(y, device=self.device).long()
        if n is not None and tuple(labels.shape) not in ((), (1,), (n,)):
            raise ValueError(f"Expected one label, or one for each of {n} data; got {len(labels)}.")
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


def mean_of(distribution: Any) -> Tensor:
    """The mean of a distribution; of one that cannot tell it, the average of fixed draws."""
    try:
        return cast(Tensor, distribution.mean)
    except NotImplementedError:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cast(Tensor, distribution.sample((_MEAN_DRAWS,)).mean(0))


@contextmanager
def untouched(vae: VAE) -> Iterator[None]:
    """Evaluation mode, no gradients, no validation; afterwards all is as it was, generators too."""
    modes = [(module, module.training) for module in vae.modules()]
    with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
        vae.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def check_data(vae: VAE, x: Tensor, y: Tensor | None = None) -> None:
    """Refuses data that the parts cannot take, before the work begins.

    Args:
        vae: the model.
        x: data ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.

    Raises:
        ValueError: for another event shape, for labels that are missing or out of range, or for
            values that are no levels of a likelihood over levels.
    """
    check_labels(vae, x, y)
    with untouched(vae):
        label = None if y is None else y[:1]
        check_support(vae.p_x(vae.q_z(x[:1], label).rsample(), label), x)


def check_labels(vae: VAE, x: Tensor, y: Tensor | None) -> None:
    """Refuses labels that are missing or out of range where a part takes them."""
    if vae.conditional:
        vae._check_labels(y, len(x))


def check_support(likelihood: Any, x: Tensor, first: int = 0) -> None:
    """Refuses values between or beyond the levels of a likelihood, rows counted from ``first``.

    Where validation is off, the probability of half a level would be a number like any other.
    """
    try:
        support = likelihood.support
    except (AttributeError, NotImplementedError):  # A user's own need not tell.
        return
    if not support.is_discrete:
        return
    wrong = ~support.check(x).reshape(-1, len(x)).all(0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        base = getattr(support, "base_constraint", support)
        top = getattr(base, "upper_bound", None)
        levels = f"{base}" if top is None else f"whole numbers up to {torch.as_tensor(top).max():g}"
        raise ValueError(
            f"Expected the likelihood's levels, {levels}; got values from {x[row].min():g} to "
            f"{x[row].max():g} in row {first + row} (counted from 0)."
        )
