"""Affine autoregressive flows: IAF and its inverse, MAF."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import cast

import pyro.distributions.transforms as T
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_vaes.flows.base import FlowLayer, _near_identity

__all__ = ["Autoregressive", "IAFLayer", "MAFLayer"]


class IAFLayer(FlowLayer):
    """Inverse autoregressive flow: one pass draws and scores a sample.

    Kingma et al., "Improving variational inference with inverse autoregressive flow" (2016),
    equation 10. Scoring any other value takes D passes. The ordering is reversed in every other
    layer.
    """

    def __init__(
        self, dim: int, index: int, context_dim: int, hidden_dims: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        hidden = list(hidden_dims) if hidden_dims else [max(64, 2 * dim)]
        ordering = torch.arange(dim)
        if index % 2:
            ordering = ordering.flip(0)
        permutation = cast(torch.LongTensor, ordering)
        with warnings.catch_warnings():
            # Pyro advises against dim 1, where the flow is affine; the laws need it.
            warnings.filterwarnings("ignore", ".*input_dim = 1.*")
            self.network = _near_identity(
                ConditionalAutoRegressiveNN(dim, context_dim, hidden, permutation=permutation)
                if context_dim
                else AutoRegressiveNN(dim, hidden, permutation=permutation)
            )

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [Autoregressive(self.network, context)]


class MAFLayer(IAFLayer):
    """Masked autoregressive flow, the inverse of :class:`IAFLayer`: one pass scores any value.

    Papamakarios et al., "Masked autoregressive flow for density estimation" (2017). Drawing takes D
    passes.
    """

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [transform.inv for transform in super().forward(context)]


class Autoregressive(T.AffineAutoregressive):
    """Pyro's affine autoregressive transform with an inverse that also works in float64.

    Args:
        network: a Pyro autoregressive network.
        context: a further input of the network, or None.
    """

    def __init__(self, network: nn.Module, context: Tensor | None = None) -> None:
        super().__init__(_WithContext(network, context))

    def _inverse(self, y: Tensor) -> Tensor:
        columns = [torch.zeros_like(y[..., 0])] * y.shape[-1]
        # Each column needs only those before it in the permutation: one pass per column.
        for column in self.arn.permutation.tolist():
            mean, log_scale = self.arn(torch.stack(columns, dim=-1))
            log_scale = log_scale.clamp(self.log_scale_min_clip, self.log_scale_max_clip)
            columns[column] = (y[..., column] - mean[..., column]) * (-log_scale[..., column]).exp()
        # The last pass saw every input that any scale depends on.
        self._cached_log_scale = log_scale
        return torch.stack(columns, dim=-1)


class _WithContext:
    """An autoregressive network with its context filled in, and the ordering that Pyro needs."""

    def __init__(self, network: nn.Module, context: Tensor | None) -> None:
        self.permutation = cast(Tensor, network.permutation)
        self._call = network if context is None else partial(network, context=context)

    def __call__(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self._call(value))
