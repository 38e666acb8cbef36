"""Affine coupling flows: RealNVP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions.transforms as T
import torch
from pyro.nn import ConditionalDenseNN, DenseNN
from torch import Tensor
from torch.distributions import Transform

from pyro_vaes.flows.base import ActivationNorm, FlowLayer, _near_identity

__all__ = ["CouplingLayer", "RealNVPLayer"]


class CouplingLayer(FlowLayer):
    """One half of z is transformed given the other; the halves alternate.

    A subclass defines the transform in :meth:`couple`, from a network that maps the fixed half (and
    the context) to parameters of the sizes passed to this constructor.
    """

    reversed: Tensor
    min_dim = 2

    def __init__(
        self,
        dim: int,
        context_dim: int,
        hidden_dims: Sequence[int] | None,
        sizes: Callable[[int], Sequence[int]],
        normalise: bool = False,
    ) -> None:
        super().__init__()
        hidden = list(hidden_dims) if hidden_dims else [max(64, 2 * dim)]
        self.split = dim // 2
        param_dims = list(sizes(dim - self.split))
        self.network = _near_identity(
            ConditionalDenseNN(self.split, context_dim, hidden, param_dims)
            if context_dim
            else DenseNN(self.split, hidden, param_dims)
        )
        self.norm = ActivationNorm(dim) if normalise else None
        self.register_buffer("reversed", torch.arange(dim).flip(0), persistent=False)

    def couple(self, network: Callable[[Tensor], Any]) -> Transform:
        """The transform, given the network with its context filled in."""
        raise NotImplementedError

    def forward(self, context: Tensor | None) -> list[Transform]:
        network = self.network if context is None else partial(self.network, context=context)
        transforms = [self.couple(network), T.Permute(self.reversed, cache_size=1)]
        return transforms if self.norm is None else [*transforms, self.norm()]

    def initialize_from(self, z: Tensor) -> bool:
        if self.norm is not None:
            self.norm.initialize_from(z)
        return self.norm is not None


class RealNVPLayer(CouplingLayer):
    """Affine coupling: one half of z is shifted and scaled given the other.

    Dinh et al., "Density estimation using Real NVP" (2017), equations 4 and 5.
    """

    def __init__(
        self,
        dim: int,
        index: int,
        context_dim: int,
        hidden_dims: Sequence[int] | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__(dim, context_dim, hidden_dims, lambda moved: [moved] * 2, normalise)

    def couple(self, network: Callable[[Tensor], Any]) -> Transform:
        return T.AffineCoupling(self.split, network)
