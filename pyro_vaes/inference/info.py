"""InfoVAE: a divergence between q(z) and p(z) in the objective."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vaes.inference.divergences import Divergence
from pyro_vaes.inference.elbo import ELBO, check_reparameterized

__all__ = ["InfoELBO"]


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
