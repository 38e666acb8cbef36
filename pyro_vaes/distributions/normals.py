"""Normal distributions of diagonal and full covariance."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor


def diagonal_normal_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of every value under every one of K diagonal normals, by two matrix products.

    Expanding the square, sum_d (z_d - m_kd)^2 / s_kd^2 is two products of (batch, D) by (D, K),
    with memory (batch, K) where the plain form needs (batch, K, D). The expansion cancels where
    means are many scales away from zero, so it is done in float64, which costs little next to the
    network that made the components: the error is 1e-7 nats, where float32 would lose tens.

    Args:
        value: ``(*sample, *batch, D)``.
        loc: ``(*batch, K, D)``.
        scale: ``(*batch, K, D)``, positive.

    Returns:
        ``(*sample, *batch, K)`` in nats, in the dtype of ``value``.
    """
    if value.device.type == "mps":  # Metal has no float64.
        normal = dist.Normal(loc, scale, validate_args=False)
        return normal.log_prob(value.unsqueeze(-2)).sum(-1)
    z, m, s = value.double(), loc.double(), scale.double()
    precision = s.reciprocal().square()
    weighted = m * precision
    constant = (m * weighted).sum(-1) + 2 * s.log().sum(-1) + loc.shape[-1] * math.log(2 * math.pi)
    if loc.dim() == 2:
        product = z.square() @ precision.mT - 2 * z @ weighted.mT
    else:
        row = z.unsqueeze(-2)
        product = (row.square() @ precision.mT - 2 * row @ weighted.mT).squeeze(-2)
    return (-0.5 * (product + constant)).to(value.dtype)


def full_normal_log_prob(value: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """The same for normals of full covariance, by two matrix products.

    (z - m)' P (z - m) is linear in z z' and in z, so that K precisions P form one matrix (D^2, K).
    PyTorch instead solves a linear system for each pair of a value and a component.

    Args:
        value: ``(*sample, D)``.
        loc: ``(K, D)``.
        scale_tril: ``(K, D, D)``, lower triangular, its diagonal positive.

    Returns:
        ``(*sample, K)`` in nats, in the dtype of ``value``.
    """
    z, m, factor = value.double(), loc.double(), scale_tril.double()
    dim = m.shape[-1]
    unit = torch.eye(dim, dtype=m.dtype, device=m.device).expand_as(factor)
    whiten = torch.linalg.solve_triangular(factor, unit, upper=False)
    precision = whiten.mT @ whiten
    weighted = (precision @ m.unsqueeze(-1)).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = (m * weighted).sum(-1) + 2 * log_det + dim * math.log(2 * math.pi)
    outer = (z.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)
    product = outer @ precision.flatten(-2).mT - 2 * z @ weighted.mT
    return (-0.5 * (product + constant)).to(value.dtype)
