"""Many-sample bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from pyro.infer import RenyiELBO
from pyro.infer.util import get_dependent_plate_dims, torch_item, torch_sum
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vaes.core.checks import check_gradient
from pyro_vaes.inference.elbo import (
    check_reparameterized,
    log_prob_of,
    path_sites,
    score_term,
)

__all__ = ["ManySamples"]


class ManySamples(RenyiELBO):
    """Pyro's ``RenyiELBO``, for reparameterised guides, with a loss that can be recorded.

    Same estimate and same gradients: for each datum
    ``log(mean_k w_k ** (1 - alpha)) / (1 - alpha)``, the weights of its particles being
    ``w_k = p(x, z_k) / q(z_k | x)`` (Li and Turner 2016, equation 6; with ``alpha=0`` the bound of
    Burda et al. 2016, equation 8). :class:`~pyro_vaes.inference.svi.FastSVI` uses it for a
    ``RenyiELBO``.

    >>> objective = pv.ManySamples(num_particles=5, gradient="path")
    >>> svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), objective)
    >>> loss = svi.step(torch.randn(10, 4))

    Args:
        alpha: the order; not 1.
        num_particles: draws of z per datum.
        gradient: ``"total"``, or ``"path"`` with ``alpha=0``: doubly reparameterised (Tucker et
            al., "Doubly reparameterized gradient estimators for Monte Carlo objectives", 2019,
            equation 8), whose signal does not drown in noise as draws grow in number. q is scored
            twice more, so it must score any z.
        **options: those of Pyro's ``RenyiELBO``.

    Raises:
        ValueError: for an unknown gradient, or ``"path"`` with another order.
    """

    def __init__(
        self, alpha: float = 0, num_particles: int = 2, *, gradient: str = "total", **options: Any
    ) -> None:
        usual = {"max_plate_nesting": 1, "vectorize_particles": True}
        super().__init__(alpha, num_particles, **{**usual, **options})
        check_gradient(gradient)
        if gradient == "path" and alpha != 0:
            raise ValueError(f'Expected alpha=0 with gradient="path"; got {alpha}.')
        self.gradient = gradient

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Pyro's entry point: the loss, after its backward pass."""
        loss = self.tensor_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        warn_if_nan(loss, "loss")
        return cast(float, torch_item(loss))

    def tensor_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, differentiable and without host synchronisation."""
        return self.loss_of(self._get_traces(model, guide, args, kwargs))

    def loss_of(self, pairs: Iterable[tuple[Any, Any]]) -> Tensor:
        """The same of the traces of model and guide, one pair for each particle."""
        pairs, path = list(pairs), self.gradient == "path"
        weights = [log_weights(*pair, path=path) for pair in pairs]
        several = self.vectorize_particles and self.num_particles > 1
        powers = (1 - self.alpha) * (weights[0] if several else torch.stack(weights))
        if path:
            shares = powers.detach().softmax(0)
            for (_, guide_trace), share in zip(pairs, [shares] if several else shares, strict=True):
                weigh_paths(guide_trace, share)
        means = powers.logsumexp(0) - math.log(self.num_particles)
        return cast(Tensor, -means.sum() / (1 - self.alpha))


def weigh_paths(guide_trace: Any, share: Tensor) -> None:
    """Multiplies the gradient at each draw by its share of the weights, once more.

    The bound hands each path the share as a factor; without the score of q it is its square.
    """
    for name, site in path_sites(guide_trace):
        if site["log_prob"].shape != share.shape:
            raise ValueError(
                'Expected all latent sites in one plate of data for gradient="path"; got site '
                f"{name!r} of shape {tuple(site['log_prob'].shape)}, not {tuple(share.shape)}."
            )
        factor = share.reshape(*share.shape, *(1 for _ in site["fn"].event_shape))
        if site["value"].requires_grad:
            site["value"].register_hook(lambda slope, factor=factor: slope * factor)


def log_weights(model_trace: Any, guide_trace: Any, path: bool = False) -> Tensor:
    """Log p(x, z) - log q(z | x), not summed over the plates that all sites are in.

    Args:
        model_trace: of the model.
        guide_trace: of the guide.
        path: whether q is scored at a copy of its draw, so that all gradients pass the draw, and
            without its score.

    Raises:
        NotReparameterizedError: for a guide site whose draws cannot be differentiated, or that
            scores only its own draws, with ``path``.
    """
    check_reparameterized(guide_trace)
    within = get_dependent_plate_dims(model_trace.nodes.values())
    weights: Any = 0.0
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                found = site["log_prob"]
                if path and trace is guide_trace and not site_is_subsample(site):
                    found = log_prob_of(name, site, site["value"].clone()) - score_term(name, site)
                weights = weights + sign * torch_sum(found, within)
    return cast(Tensor, weights)
