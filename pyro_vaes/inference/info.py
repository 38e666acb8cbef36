"""Objectives about q(z), that of all data: InfoVAE and beta-TC-VAE."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vaes.core.checks import positive
from pyro_vaes.core.looking import diagonal_normal, normal_marginals
from pyro_vaes.inference.divergences import Divergence
from pyro_vaes.inference.elbo import ELBO, bound_terms, check_reparameterized, pairs_at

__all__ = ["BetaTCELBO", "InfoELBO", "KLParts"]


class InfoELBO(ELBO):
    """The objective of InfoVAE, which weighs inference against fit.

    Zhao, Song and Ermon, "InfoVAE" (2019). It minimises::

        - E[log p(x | z)] + (1 - alpha) KL(q(z | x) || p(z)) + (alpha + lambda_ - 1) D(q(z), p(z))

    with any strict divergence D instead of KL(q(z) || p(z)). As ``(alpha, lambda_)``, ``(0, 1)`` is
    exactly the ELBO, ``(1 - beta, beta)`` the beta-VAE, and ``(1, lambda_)`` the Wasserstein
    autoencoder, without the KL of each q(z | x) that makes posteriors collapse.

    D is taken over the whole minibatch, with labels over the data of all labels, and enters once
    per datum, so that it keeps its share of the loss as batches grow. A KL warm-up raises the
    weight of the KL only: D does not make posteriors collapse.

    >>> objective = pv.InfoELBO(alpha=0.0, lambda_=10.0, divergence=pv.MMD())
    >>> objective.kl_weight.item(), objective.divergence_weight.item()
    (1.0, 9.0)
    >>> objective.loss(vae.model, vae.guide, torch.randn(10, 4)) > 0
    True

    Args:
        alpha: weight of the mutual information of x and z, at most 1.
        lambda_: weight of the divergence of q(z) from p(z), at least ``1 - alpha``.
        divergence: D, such as :class:`~pyro_vaes.inference.divergences.MMD`; needed if its weight
            is above 0, else never computed.
        free_bits: as in :class:`~pyro_vaes.inference.elbo.ELBO`.
        site: the latent site; None if the model has only one.
        **options: those of Pyro's ``ELBO``. Each particle is a sample of q(z) by itself.

    Attributes:
        divergence_weight: ``alpha + lambda_ - 1``, a tensor. If it is 0 at construction, D is left
            out for good.
        divergence: D, or None.

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
        check_reparameterized(guide_trace)  # Scores need a sum of terms, which D is not.
        # Once per pair of datum and particle, as the other terms.
        divergence = self.divergence(site["value"], site["fn"])
        return loss + self.divergence_weight * pairs_at(site) * divergence


def info_weight(alpha: float, lambda_: float) -> float:
    """The weight of InfoVAE's divergence, ``alpha + lambda_ - 1``.

    Raises:
        ValueError: if it, or that of the KL, is negative or infinite.
    """
    if not (math.isfinite(alpha) and math.isfinite(lambda_)):
        raise ValueError(f"Expected finite alpha and lambda_; got {alpha} and {lambda_}.")
    if alpha > 1:
        raise ValueError(
            f"Expected alpha of at most 1, since the KL's weight 1 - alpha is negative above; "
            f"got {alpha}."
        )
    # Rounded, since 0.9 + 0.1 - 1 need not be 0 in floats.
    weight = round(alpha + lambda_ - 1.0, 12) + 0.0
    if weight < 0:
        raise ValueError(
            f"Expected alpha + lambda_ of at least 1, since the divergence's weight "
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


class KLParts(NamedTuple):
    """A KL split in three, each summed over data (and particles), in nats."""

    information: Tensor
    """Log q(z | x) - log q(z), of mean I(x; z)."""
    total_correlation: Tensor
    """Log q(z) - sum_d log q(z_d), of mean KL(q(z) || prod_d q(z_d))."""
    dimensions: Tensor
    """Sum_d log q(z_d) - log p(z); of a factorised prior, of mean sum_d KL(q(z_d) || p(z_d))."""


class BetaTCELBO(ELBO):
    """The ELBO with a weight for each of three parts of its KL: that of beta-TC-VAE.

    Chen et al., "Isolating sources of disentanglement in VAEs" (2018), equation 4. It minimises::

        - E[log p(x | z)] + alpha I(x; z) + beta TC(z) + gamma sum_d KL(q(z_d) || p(z_d))

    whose sum with all weights 1 is the ELBO, draw by draw. Under a prior that is no product, the
    last term is E[sum_d log q(z_d) - log p(z)].

    q(z) is estimated from the batch by minibatch-stratified sampling (appendix C.2), averaged over
    which datum takes the remainder: a datum's own q(z | x) has weight 1/N, the B - 1 others
    (N - 1) / (N (B - 1)) each, so that the estimate of q(z) is unbiased; that of its logarithm is
    too low in small batches, as theirs is.

    >>> objective = pv.BetaTCELBO(beta=6.0, num_data=10)
    >>> objective.loss(vae.model, vae.guide, torch.randn(10, 4)) > 0
    True

    Args:
        beta: weight of the total correlation, at least 0.
        alpha: weight of the information of x and z, at least 0.
        gamma: weight of the KL of the dimensions, at least 0.
        num_data: N, the number of training data; None for that of the data given to ``fit``.
        **options: those of :class:`~pyro_vaes.inference.elbo.ELBO`, without free bits, a capacity
            or ``gradient="path"``.

    Attributes:
        weights: of the three, ``(3,)``.

    Raises:
        ValueError: for a negative or infinite weight, or an option of the ELBO that needs one KL.
    """

    def __init__(
        self,
        beta: float = 6.0,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        num_data: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.free_bits or self.kl_capacity is not None or self.gradient != "total":
            raise ValueError(
                "Expected neither free bits, a capacity nor gradient='path' with BetaTCELBO, which "
                "weighs three parts of the KL; got one. Use ELBO() with it."
            )
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} of at least 0; got {value}.")
        if num_data is not None:
            positive(num_data=num_data)
        self.weights = torch.tensor([float(alpha), float(beta), float(gamma)])
        self.num_data, self._seen = num_data, num_data

    @property
    def min_data(self) -> int:
        return 2

    def begin(self, num_data: int) -> None:
        self._seen = self.num_data or num_data

    def to(self, device: torch.device | str) -> BetaTCELBO:
        super().to(device)
        self.weights = self.weights.to(device)
        return self

    def trace_loss(self, model_trace: Any, guide_trace: Any) -> Tensor:
        parts = self.kl_parts(model_trace, guide_trace)
        kl = (torch.stack(parts) * self.weights.to(parts[0].dtype)).sum()
        log_likelihood = bound_terms(model_trace, guide_trace).log_likelihood
        return self.kl_weight * self.warmup * kl - log_likelihood

    def kl_parts(self, model_trace: Any, guide_trace: Any) -> KLParts:
        """The three parts of the KL of a pair of traces, whose sum is that KL.

        Raises:
            ValueError: for a posterior other than normals, one datum, or fewer data than in the
                batch in all.
        """
        check_reparameterized(guide_trace)  # Scores need a sum of terms, which q(z) is not.
        site = latent_site(model_trace)
        guide = guide_trace.nodes[site["name"]]
        own = guide["unscaled_log_prob"]
        joint, marginals = aggregated(guide["fn"], site["value"], self._seen)
        terms = (own - joint, joint - marginals, marginals - site["unscaled_log_prob"])
        return KLParts(*(scale_and_mask(t, site["scale"], site["mask"]).sum() for t in terms))


def aggregated(q: Any, z: Tensor, num_data: int | None) -> tuple[Tensor, Tensor]:
    """Estimates of log q(z) and sum_d log q(z_d) at one draw for each datum of a batch.

    Args:
        q: q(z | x) of the batch, ``(..., n)``.
        z: draws, ``(..., n, D)``.
        num_data: the number of all data, at least n.

    Returns:
        Both of shape ``(..., n)``, in nats.

    Raises:
        ValueError: see :meth:`BetaTCELBO.kl_parts`.
    """
    normal, count = normal_marginals(q), z.shape[-2]
    if normal is None:
        raise ValueError(
            "Expected q(z | x) to be a normal for beta-TC, whose q(z_d | x) is known; got "
            f"{type(q).__name__}. Use a NormalPosterior or a FullNormalPosterior."
        )
    if num_data is None or not 2 <= count <= num_data:
        raise ValueError(
            f"Expected num_data, the number of training data, of at least the batch's and 2 data "
            f"in the batch; got {num_data} and {count}."
        )
    log_weights = z.new_full((count, count), math.log((num_data - 1) / num_data / (count - 1)))
    log_weights.fill_diagonal_(-math.log(num_data))
    loc, scale = (t.expand(z.shape).unsqueeze(-3) for t in normal)
    each = torch.distributions.Normal(loc, scale, validate_args=False).log_prob(z.unsqueeze(-2))
    pairs = each.sum(-1) if diagonal_normal(q) is not None else _full_pairs(q, z)
    marginals = (each + log_weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
    return (pairs + log_weights).logsumexp(-1), marginals


def _full_pairs(q: Any, z: Tensor) -> Tensor:
    """Log q(z_i | x_j) of normals of full covariance, ``(..., n, n)``."""
    loc, factor = q.loc.unsqueeze(-3), q.scale_tril.unsqueeze(-4)
    normal = torch.distributions.MultivariateNormal(loc, scale_tril=factor, validate_args=False)
    found: Tensor = normal.log_prob(z.unsqueeze(-2))
    return found
