"""Log p(x, z) of some data as a function of z, with its gradient: the target of proposals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.core.support import scored
from pyro_vaes.evaluation.draws import Cost
from pyro_vaes.vae import VAE

__all__ = ["Joint", "frozen"]


# A gradient costs two further evaluations: a backward pass takes about two forward ones.
GRADIENT_COST = 3


@contextmanager
def frozen(vae: VAE) -> Iterator[None]:
    """Freezes the parameters, so that gradients are taken in z alone; restores them afterwards.

    Autograd then stores nothing for the weights, and no ``.grad`` is written.
    """
    learned = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


class Joint:
    """Log p(x, z) of n data, in pieces of at most ``chunk_size`` decoder evaluations.

    Call inside ``evaluating`` and :func:`frozen`.

    Args:
        vae: the model.
        x: data ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.
        chunk_size: decoder evaluations at once; changes results by rounding only.
        cost: counts the evaluations.
        prior: the prior's distribution where it takes no labels, so that it is made once.
    """

    def __init__(
        self,
        vae: VAE,
        x: Tensor,
        y: Tensor | None,
        chunk_size: int,
        cost: Cost,
        prior: Any = None,
    ) -> None:
        self.vae, self.x, self.y, self.cost = vae, x, y, cost
        self.chunk_size, self._prior = chunk_size, prior
        if prior is None and not vae.prior_is_conditional:
            self._prior = vae.p_z()
        self._rows = [slice(i, i + chunk_size) for i in range(0, len(x), chunk_size)]
        self._labels = [None if y is None else y[rows] for rows in self._rows]
        self._priors = [vae.p_z(y) if self._prior is None else self._prior for y in self._labels]

    def __len__(self) -> int:
        return len(self.x)

    def prior(self) -> Any:
        """The prior's distribution, for the n data if it takes labels."""
        return self.vae.p_z(self.y) if self._prior is None else self._prior

    def rows(self, index: Tensor | slice) -> Joint:
        """The same for some of the data."""
        y = None if self.y is None else self.y[index]
        return type(self)(self.vae, self.x[index], y, self.chunk_size, self.cost, self._prior)

    def coordinates(self, z: Tensor) -> Tensor:
        """Latents in the coordinates of the target: here themselves."""
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(x, z) at z ``(draws, n, D)``: ``(draws, n)``, float64."""
        out = torch.empty(z.shape[:-1], dtype=torch.float64, device=z.device)
        for draws, piece in self._pieces(len(z)):
            rows = self._rows[piece]
            log_x, log_z = self._terms(z[draws, rows], piece)
            out[draws, rows] = log_x.double() + log_z.double()
        self.cost.add(out.numel())
        return out

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x | z) + log p(z) and its gradient in z, ``(draws, n, D)``.

        Raises:
            RuntimeError: if log p(x | z) has no gradient in z.
        """
        value = torch.empty(z.shape[:-1], dtype=torch.float64, device=z.device)
        slopes = torch.empty_like(z)
        for draws, piece in self._pieces(len(z)):
            rows = self._rows[piece]
            with torch.enable_grad():
                part = z[draws, rows].detach().requires_grad_()
                log_x, log_z = self._terms(part, piece)
                if not log_x.requires_grad:
                    raise RuntimeError("log p(x | z) has no gradient in z")
                total = log_x + log_z
                (slopes[draws, rows],) = torch.autograd.grad(total, part, torch.ones_like(total))
            value[draws, rows] = total.detach().double()
        self.cost.add(GRADIENT_COST * value.numel())
        return value, slopes

    def _terms(self, z: Tensor, piece: int) -> tuple[Tensor, Tensor]:
        likelihood = self.vae.p_x(z, self._labels[piece])
        log_x = scored(likelihood, self.x[self._rows[piece]])
        return log_x, self._priors[piece].log_prob(z)

    def _pieces(self, num_draws: int) -> Iterator[tuple[slice, int]]:
        for piece, rows in enumerate(self._rows):
            size = len(self.x[rows])
            step = max(1, self.chunk_size // size)
            for first in range(0, num_draws, step):
                yield slice(first, first + step), piece
