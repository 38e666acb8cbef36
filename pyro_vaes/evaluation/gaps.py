"""Why the ELBO lies below log p(x): the family of the encoder, or its network.

Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders" (2018), split

    log p(x) - ELBO(q) = [log p(x) - ELBO(q*)] + [ELBO(q*) - ELBO(q)]

into the approximation gap of the family and the amortisation gap of the network, where q* is the
best member of the encoder's own family for this datum. Here q* starts at the encoder's output and
ascends its ELBO with the model fixed: normals in mean and scale, flows in those of their base and
in their context, with the flow's weights fixed. An ascent that stops short of q* counts as
approximation; one that ends below the encoder's own q is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vaes.core.looking import diagonal_normal
from pyro_vaes.distributions.transformed import FlowDistribution
from pyro_vaes.evaluation.proposals.joint import Joint
from pyro_vaes.evaluation.proposals.refined import Stage, ascent
from pyro_vaes.inference.optimizers import lay_out
from pyro_vaes.vae import VAE

__all__ = ["best_elbo", "family"]


_STAGES = (Stage(300, 1, 0.2), Stage(200, 4, 0.02))
_DRAWS = 256

Build = Callable[[list[Tensor]], Any]


def family(
    vae: VAE, x: Tensor, y: Tensor | None, units: Tensor
) -> tuple[list[Tensor], Build] | str:
    """Parameters per datum of the encoder's family at its output, and the function from them to q.

    Args:
        vae: the model.
        x: data ``(n, *event_shape)``.
        y: labels ``(n,)`` or None.
        units: the prior's scale, ``(n, D)``, in which locations are measured.

    Returns:
        Both, or why they are missing.
    """
    q, posterior = vae.q_z(x, y), cast(Any, vae.posterior)
    found = _normal(q, units)
    if found is not None:
        return found
    inner = _normal(q.base_dist, units) if isinstance(q, FlowDistribution) else None
    if inner is None or not hasattr(posterior, "features") or not hasattr(posterior, "flow"):
        return f"q(z|x) is a {type(q).__name__}, whose family cannot be fitted per datum"
    parameters, base = inner
    context, flow = posterior.features(x, y), posterior.flow

    def build(free: list[Tensor]) -> Any:
        return FlowDistribution(base(free[:-1]), flow(free[-1]))

    return [*parameters, context], build


def _normal(q: Any, units: Tensor) -> tuple[list[Tensor], Build] | None:
    """A normal by loc, log scale and, for a full covariance, the part below the diagonal."""
    normal = diagonal_normal(q)
    if normal is not None:
        loc, scale = normal

        def diagonal(free: list[Tensor]) -> Any:
            return dist.Normal(loc + units * free[0], free[1].exp()).to_event(1)

        return [torch.zeros_like(loc), scale.log()], diagonal
    if not isinstance(q, torch.distributions.MultivariateNormal):
        return None
    centre, tril = q.loc, q.scale_tril
    width = tril.diagonal(dim1=-2, dim2=-1)

    def full(free: list[Tensor]) -> Any:
        scale = free[1].exp().unsqueeze(-1)
        lower = scale * (free[2].tril(-1) + torch.eye(centre.shape[-1]).to(scale))
        return dist.MultivariateNormal(centre + units * free[0], scale_tril=lower)

    return [torch.zeros_like(centre), width.log(), tril / width.unsqueeze(-1)], full


def best_elbo(joint: Joint, parameters: list[Tensor], build: Build) -> Tensor:
    """The ELBO of q*, ``(n,)``, from draws that the ascent did not use.

    Uses torch's global generator: seed it. Call inside ``evaluating`` and ``frozen``.

    Args:
        joint: log p(x, z) of the data.
        parameters: per datum, where the ascent starts.
        build: makes q from them.
    """
    free = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    for stage in _STAGES:
        optimizer = ascent(free)
        for step in range(stage.steps):
            optimizer.param_groups[0]["lr"] = stage.rate * (1 - step / stage.steps)
            with torch.enable_grad():
                q = build(free)
                z = q.rsample((stage.particles,))
                _, slope = joint.gradient(z.detach())
                climb = (z * slope.nan_to_num(0.0, 0.0, 0.0)).sum() - q.log_prob(z).sum()
                gradients = torch.autograd.grad(climb / stage.particles, free)
            for parameter, gradient in zip(free, gradients, strict=True):
                parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
            lay_out(free)
            optimizer.step()
    ended = [parameter.detach() for parameter in free]
    better = _elbo(joint, build(ended)) > _elbo(joint, build(parameters))
    chosen = [
        torch.where(better.view(-1, *[1] * (end.dim() - 1)), end, start)
        for end, start in zip(ended, parameters, strict=True)
    ]
    return _elbo(joint, build(chosen))


def _elbo(joint: Joint, q: Any) -> Tensor:
    """The ELBO of q for each datum, from fresh draws."""
    z = q.rsample((_DRAWS,))
    return (joint.log_prob(z) - q.log_prob(z).double()).mean(0)
