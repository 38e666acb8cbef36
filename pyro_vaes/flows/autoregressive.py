"""Affine autoregressive flows: IAF and its inverse, MAF."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions.transforms as T
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn.functional import linear

from pyro_vaes.flows.base import FlowLayer, _near_identity

__all__ = ["Autoregressive", "IAFLayer", "MAFLayer"]


class IAFLayer(FlowLayer):
    """Inverse autoregressive flow: one pass draws and scores a sample.

    Kingma et al., "Improving variational inference with inverse autoregressive flow" (2016),
    equation 10. Scoring any other value takes D steps, one after another. The ordering is reversed
    in every other layer.
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
        # Plain numbers: of models trained together the network's buffers are stacked.
        self.ordering: list[int] = ordering.tolist()
        with warnings.catch_warnings():
            # Pyro advises against dim 1, where the flow is affine; the laws need it.
            warnings.filterwarnings("ignore", ".*input_dim = 1.*")
            self.network = _near_identity(
                ConditionalAutoRegressiveNN(dim, context_dim, hidden, permutation=permutation)
                if context_dim
                else AutoRegressiveNN(dim, hidden, permutation=permutation)
            )

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [Autoregressive(self.network, self.ordering, context)]


class MAFLayer(IAFLayer):
    """Masked autoregressive flow, the inverse of :class:`IAFLayer`: one pass scores any value.

    Papamakarios et al., "Masked autoregressive flow for density estimation" (2017). Drawing takes D
    steps.
    """

    def forward(self, context: Tensor | None) -> list[Transform]:
        return [transform.inv for transform in super().forward(context)]


class Autoregressive(T.AffineAutoregressive):
    """Pyro's affine autoregressive transform with an inverse that also works in float64.

    Args:
        network: a Pyro autoregressive network.
        ordering: its columns, each after those that it depends on.
        context: a further input of the network, or None.
    """

    def __init__(
        self, network: nn.Module, ordering: Sequence[int], context: Tensor | None = None
    ) -> None:
        super().__init__(_WithContext(network, context))
        self.ordering = ordering

    def _inverse(self, y: Tensor) -> Tensor:
        """Column by column, each from those before it in the permutation.

        A column changes the first layer's sums by one product, and two outputs are needed: all
        columns together cost about one pass, not one pass each.
        """
        weight, sums = self.arn.first_layer()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for column in self.ordering:
            mean, log_scale = self.arn.outputs(sums, column)
            log_scale = log_scale.clamp(self.log_scale_min_clip, self.log_scale_max_clip)
            x = (y[..., column] - mean) * (-log_scale).exp()
            found[column] = x, log_scale.expand_as(x)
            sums = sums + x.unsqueeze(-1) * weight[:, column]
        columns, log_scales = zip(*(found[i] for i in range(y.shape[-1])), strict=True)
        self._cached_log_scale = torch.stack(log_scales, dim=-1)
        return torch.stack(columns, dim=-1)


class _WithContext:
    """An autoregressive network with its context filled in, and the buffer that Pyro asks for."""

    def __init__(self, network: Any, context: Tensor | None) -> None:
        self.permutation = cast(Tensor, network.permutation)
        self._network, self._context = network, context

    def __call__(self, value: Tensor) -> tuple[Tensor, Tensor]:
        context = () if self._context is None else (self._context,)
        return cast(tuple[Tensor, Tensor], self._network(value, *context))

    def first_layer(self) -> tuple[Tensor, Tensor]:
        """The first layer's weights of the value, and its sums where that is zero."""
        layer, size = self._network.layers[0], self._network.context_dim
        weight = layer.weight * layer.mask
        if self._context is None:
            return weight, layer.bias
        return weight[:, size:], linear(self._context, weight[:, :size], layer.bias)

    def outputs(self, sums: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """Mean and log scale of a column, from the sums of the first layer."""
        network, activate = self._network, self._network.f
        *inner, last = network.layers[1:]
        hidden = activate(sums)
        for layer in inner:
            hidden = activate(layer(hidden))
        weight, bias = (p.unflatten(0, (2, -1))[:, column] for p in (last.weight, last.bias))
        mask = last.mask.unflatten(0, (2, -1))[:, column]
        mean, log_scale = linear(hidden, weight * mask, bias).unbind(-1)
        return mean, log_scale
