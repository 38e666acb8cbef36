"""Objectives: what SVI minimises.

One family, minimised over the data of a batch (sums of nats over the plate, as Pyro counts)::

    - E_q[log p(x | z)] + kl_weight KL(q(z | x) || p(z)) + n divergence_weight D(q(z), p(z))

with D between the aggregated posterior of the batch's n data and the prior: weighed per datum, it
does not fade beside the sums as batches grow.

Each objective is a subclass of Pyro's ``Trace_ELBO``: pass it to ``pyro.infer.SVI`` as its loss, or
to ``fit(objective=...)``. It reads log densities off the traces of any model and reparameterised
guide and knows nothing of the parts. The KL is the sampled log q(z | x) - log p(z), so every prior
and posterior will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.util import get_dependent_plate_dims, torch_item, torch_sum
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vaes.divergences import Divergence

__all__ = ["ELBO", "BetaELBO", "InfoELBO", "NotReparameterizedError", "Terms", "bound_terms"]


class Terms(NamedTuple):
    """The two terms of a bound, summed over data (and particles), in nats."""

    log_likelihood: Tensor
    """Log densities of the observed sites."""
    kl: Tensor
    """Log density under the guide minus under the model, of the latent sites, a sampled KL."""
    pairs: int
    """Number of (datum, particle) pairs in the sums."""


class NotReparameterizedError(ValueError):
    """A guide site whose draws cannot be differentiated."""


def bound_terms(model_trace: Any, guide_trace: Any) -> Terms:
    """Splits a pair of traces into log likelihood and sampled KL.

    Raises:
        NotReparameterizedError: for a guide site whose draws cannot be differentiated.
    """
    log_likelihood: Any = 0.0
    kl: Any = 0.0
    pairs = 1
    check_reparameterized(guide_trace)
    for site in guide_trace.nodes.values():
        if site["type"] == "sample":
            kl = kl + site["log_prob_sum"]
    for site in model_trace.nodes.values():
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            log_likelihood = log_likelihood + site["log_prob_sum"]
        else:
            kl = kl - site["log_prob_sum"]
            pairs = max(pairs, site["log_prob"].numel())
    return Terms(log_likelihood, kl, pairs)


def check_reparameterized(guide_trace: Any) -> None:
    """Refuses a guide whose draws cannot all be differentiated.

    Raises:
        NotReparameterizedError: naming the site.
    """
    for name, site in guide_trace.nodes.items():
        if site["type"] == "sample" and not site["fn"].has_rsample:
            raise NotReparameterizedError(
                f"Expected a reparameterised guide; got site {name!r} with "
                f"{type(site['fn']).__name__}, which has no rsample. Use Pyro's TraceGraph_ELBO."
            )


class ELBO(Trace_ELBO):
    """The evidence lower bound, optionally with a weight on its KL or with free bits.

    With the defaults this is Pyro's ``Trace_ELBO`` for reparameterised guides: same estimate, same
    gradients. The weights are tensors, so that a schedule changes them without retracing.

    Args:
        kl_weight: factor on the KL, at least 0. Pyro's ``poutine.scale`` refuses 0; this does not.
        free_bits: nats of KL for each datum that cost nothing: the batch's mean KL is replaced by
            ``max(KL, free_bits)`` (Kingma et al. 2016, section 4, with z as one group).
        **options: those of Pyro's ``ELBO`` (``num_particles``, ``vectorize_particles``, ...).

    Attributes:
        kl_weight: the weight asked for, a tensor.
        warmup: factor in [0, 1] on ``kl_weight``, a tensor that ``fit`` raises to 1.
        total: sums a term over processes that share a batch, which ``fit`` sets; None for one.

    Raises:
        ValueError: for a negative or infinite weight.
    """

    def __init__(self, kl_weight: float = 1.0, *, free_bits: float = 0.0, **options: Any) -> None:
        super().__init__(**{"max_plate_nesting": 1, **options})
        for name, value in (("kl_weight", kl_weight), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} of at least 0; got {value}.")
        self.kl_weight = torch.tensor(float(kl_weight))
        self.free_bits = float(free_bits)
        self.warmup = torch.ones(())
        self.total: Callable[[Tensor], Tensor] | None = None

    @property
    def recordable(self) -> bool:
        """Whether a step may be recorded and replayed (not if the objective learns in it)."""
        return True

    @property
    def min_data(self) -> int:
        """The fewest data in a batch from which the objective can be estimated."""
        return 1

    def to(self, device: torch.device | str) -> ELBO:
        """Moves the weights to a device, so that no step waits for a copy."""
        self.kl_weight = self.kl_weight.to(device)
        self.warmup = self.warmup.to(device)
        return self

    @contextmanager
    def full_weights(self) -> Iterator[None]:
        """The objective without its warm-up, as validation judges it."""
        warmup = self.warmup.clone()
        self.warmup.fill_(1.0)
        try:
            yield
        finally:
            self.warmup.copy_(warmup)

    def trace_loss(self, model_trace: Any, guide_trace: Any) -> Tensor:
        """The loss of one pair of traces, differentiable: a tensor, never read by the host."""
        terms = bound_terms(model_trace, guide_trace)
        kl = terms.kl
        if self.free_bits:
            free = self.free_bits * terms.pairs
            if self.total is None:
                kl = kl.clamp(min=free)
            else:  # What is free is so in the whole batch or not at all.
                kl = torch.where(self.total(kl.detach() - free) > 0, kl, free)
        return self.kl_weight * self.warmup * kl - terms.log_likelihood

    # The rest puts this loss in the place of Trace_ELBO's own in each of its entry points.

    def tensor_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss averaged over particles, differentiable and without host synchronisation."""
        losses = [self.trace_loss(*pair) for pair in self._get_traces(model, guide, args, kwargs)]
        return cast(Tensor, sum(losses) / self.num_particles)

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


class ManySamples(RenyiELBO):
    """Pyro's ``RenyiELBO``, for reparameterised guides, with a loss that can be recorded.

    Same estimate and same gradients: for each datum
    ``log(mean_k w_k ** (1 - alpha)) / (1 - alpha)``, the weights of its particles being
    ``w_k = p(x, z_k) / q(z_k | x)`` (Li and Turner 2016, equation 6; with ``alpha=0`` the bound of
    Burda et al. 2016, equation 8). :class:`~pyro_vaes.inference.FastSVI` puts it in a
    ``RenyiELBO``'s place.
    """

    def tensor_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, differentiable and without host synchronisation."""
        weights = [log_weights(*pair) for pair in self._get_traces(model, guide, args, kwargs)]
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


class BetaELBO(ELBO):
    """The ELBO with weight ``beta`` on its KL, 0 included (assignment 5.2).

    Higgins et al., "beta-VAE" (2017), equation 4. With ``beta=0`` nothing pulls the posterior
    towards the prior.
    """

    def __init__(self, beta: float, *, free_bits: float = 0.0, **options: Any) -> None:
        if not 0 <= beta < math.inf:
            raise ValueError(f"Expected beta of at least 0; got {beta}.")
        super().__init__(beta, free_bits=free_bits, **options)


class InfoELBO(ELBO):
    """The objective of InfoVAE, which weighs inference against fit (assignment, question 4).

    Zhao, Song and Ermon, "InfoVAE" (2019); the assignment's equation 16 as rewritten in 4.3. It
    minimises::

        - E[log p(x | z)] + (1 - alpha) KL(q(z | x) || p(z)) + (alpha + lambda_ - 1) D(q(z), p(z))

    with any strict divergence D in the place of KL(q(z) || p(z)). ``(0, 1)`` is the ELBO, number by
    number; ``(1 - beta, beta)`` the beta-VAE; ``(1, lambda_)`` the Wasserstein autoencoder, without
    the pull on each q(z | x) that makes posteriors collapse.

    D is taken over the whole minibatch, and with labels over the data whatever their label. It
    enters once for each datum, so that it does not fade as batches grow. A KL warm-up raises the
    weight of the KL only: D does not make posteriors collapse.

    Args:
        alpha: weight of the mutual information of x and z, at most 1.
        lambda_: weight of the divergence of q(z) from p(z), at least ``1 - alpha``.
        divergence: D, such as :class:`~pyro_vaes.divergences.MMD`; needed if its weight is above 0
            and never computed if it is 0.
        free_bits: as in :class:`ELBO`.
        site: the latent site; None if the model has only one.
        **options: those of Pyro's ``ELBO``. Each particle is a sample of q(z) by itself.

    Attributes:
        divergence_weight: ``alpha + lambda_ - 1``, a tensor. One that is 0 at construction leaves D
            out for good.
        divergence: D, None if it is left out.

    Raises:
        ValueError: for weights that are infinite or make a term negative, or a missing divergence.
    """

    def __init__(
        self,
        alpha: float = 0.0,
        lambda_: float = 1.0,
        divergence: Divergence | None = None,
        *,
        free_bits: float = 0.0,
        site: str | None = None,
        **options: Any,
    ) -> None:
        weight = info_weight(alpha, lambda_)
        if weight and divergence is None:
            raise ValueError(
                f"Expected a divergence for its weight alpha + lambda_ - 1 = {weight:g}, such as "
                "MMD(); got None."
            )
        super().__init__(1.0 - alpha, free_bits=free_bits, **options)
        self.divergence = divergence if weight else None
        self.divergence_weight = torch.tensor(weight)
        self.site = site

    @property
    def recordable(self) -> bool:
        return self.divergence is None or self.divergence.recordable

    @property
    def min_data(self) -> int:
        return 1 if self.divergence is None else self.divergence.min_data

    def to(self, device: torch.device | str) -> InfoELBO:
        super().to(device)
        self.divergence_weight = self.divergence_weight.to(device)
        if self.divergence is not None:
            self.divergence.to(device)
        return self

    def trace_loss(self, model_trace: Any, guide_trace: Any) -> Tensor:
        loss = super().trace_loss(model_trace, guide_trace)
        if self.divergence is None:
            return loss
        site = latent_site(model_trace, self.site)
        z = site["value"]
        # All pairs of datum and particle, as in the other terms, which count a subsample's scale.
        pairs = z[..., 0].numel() * site["scale"]
        return loss + self.divergence_weight * pairs * self.divergence(z, site["fn"])


def info_weight(alpha: float, lambda_: float) -> float:
    """The weight of InfoVAE's divergence, ``alpha + lambda_ - 1``.

    Raises:
        ValueError: if it, or that of the KL, is negative or infinite.
    """
    if not (math.isfinite(alpha) and math.isfinite(lambda_)):
        raise ValueError(f"Expected finite alpha and lambda_; got {alpha} and {lambda_}.")
    if alpha > 1:
        raise ValueError(
            f"Expected alpha of at most 1, for the KL's weight 1 - alpha is negative above; "
            f"got {alpha}."
        )
    # Rounded, so that it vanishes where it is meant to: 0.9 + 0.1 - 1 need not be 0 in floats.
    weight = round(alpha + lambda_ - 1.0, 12) + 0.0
    if weight < 0:
        raise ValueError(
            f"Expected alpha + lambda_ of at least 1, for the divergence's weight "
            f"alpha + lambda_ - 1 is negative below; got {alpha} + {lambda_}."
        )
    return weight


def latent_site(model_trace: Any, name: str | None = None) -> dict[str, Any]:
    """The latent site of a model's trace: vectors ``(..., n, D)`` in a plate of data.

    Raises:
        ValueError: if there is none of that name, or several to choose from, or no vectors.
    """
    sites = {
        key: site
        for key, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }
    if name not in sites and (name is not None or len(sites) != 1):
        raise ValueError(
            f"Expected {'one latent site' if name is None else f'a latent site {name!r}'}; the "
            f"model has {', '.join(map(repr, sites)) or 'none'}. Give one of them as site."
        )
    site: dict[str, Any] = sites[name] if name is not None else next(iter(sites.values()))
    fn = site["fn"]
    if fn.event_dim != 1 or not fn.batch_shape:
        raise ValueError(
            "Expected vectors in a plate of data at the latent site (use .to_event(1)); got batch "
            f"shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}."
        )
    return site
