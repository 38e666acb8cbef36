"""Many-sample bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from pyro.infer import RenyiELBO
from pyro.infer.util import get_dependent_plate_dims, torch_sum
from torch import Tensor

from pyro_vaes.inference.elbo import check_reparameterized


class ManySamples(RenyiELBO):
    """Pyro's ``RenyiELBO``, for reparameterised guides, with a loss that can be recorded.

    Same estimate and same gradients: for each datum
    ``log(mean_k w_k ** (1 - alpha)) / (1 - alpha)``, the weights of its particles being
    ``w_k = p(x, z_k) / q(z_k | x)`` (Li and Turner 2016, equation 6; with ``alpha=0`` the bound of
    Burda et al. 2016, equation 8). :class:`~pyro_vaes.inference.svi.FastSVI` uses it for a
    ``RenyiELBO``.
    """

    def tensor_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, differentiable and without host synchronisation."""
        return self.loss_of(self._get_traces(model, guide, args, kwargs))

    def loss_of(self, pairs: Iterable[tuple[Any, Any]]) -> Tensor:
        """The same of the traces of model and guide, one pair for each particle."""
        weights = [log_weights(*pair) for pair in pairs]
        several = self.vectorize_particles and self.num_particles > 1
        powers = (1 - self.alpha) * (weights[0] if several else torch.stack(weights))
        means = powers.logsumexp(0) - math.log(self.num_particles)
        return cast(Tensor, -means.sum() / (1 - self.alpha))


def log_weights(model_trace: Any, guide_trace: Any) -> Tensor:
    """Log p(x, z) - log q(z | x), not summed over the plates that all sites are in.

    Raises:
        NotReparameterizedError: for a guide site whose draws cannot be differentiated.
    """
    check_reparameterized(guide_trace)
    within = get_dependent_plate_dims(model_trace.nodes.values())
    weights: Any = 0.0
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for site in trace.nodes.values():
            if site["type"] == "sample":
                weights = weights + sign * torch_sum(site["log_prob"], within)
    return cast(Tensor, weights)
