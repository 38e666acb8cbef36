"""What a network sees of a table: categories as one-hot columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_vaes.core.described import Described
from pyro_vaes.networks.mlp import Network, check_network

__all__ = ["OneHotColumns"]


class OneHotColumns(Described):
    """A network that sees categories as one-hot columns, next to all others as they are.

    A category counts from 1 here, as :class:`~pyro_vaes.parts.columns.TableLikelihood` hands it to
    posteriors; 0 is one that was not seen, and has no column. What follows the D columns of a row
    (a mask, labels) is passed on.

    >>> network = pv.OneHotColumns(pv.MLP(1 + 3, [8]), sizes=[0, 3])
    >>> network.in_features
    2

    Args:
        network: sees the expanded rows.
        sizes: of each column how many categories it has, 0 for one that is a number.

    Raises:
        ValueError: for a network with fewer inputs than expanded columns.
    """

    def __init__(self, network: Network, sizes: Sequence[int]) -> None:
        super().__init__()
        check_network(network)
        expanded = sum(size or 1 for size in sizes)
        self.in_features = network.in_features - expanded + len(sizes)
        if self.in_features < len(sizes):
            raise ValueError(
                f"Expected a network with in_features of at least {expanded}; got "
                f"{network.in_features}."
            )
        self.sizes = list(sizes)
        self.network = cast(nn.Module, network)
        self.out_features: int = network.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        columns = inputs[..., : len(self.sizes)].split(1, -1)
        seen = [
            _one_hot(column, size) if size else column
            for column, size in zip(columns, self.sizes, strict=True)
        ]
        return cast(Tensor, self.network(torch.cat([*seen, inputs[..., len(self.sizes) :]], -1)))


def _one_hot(column: Tensor, size: int) -> Tensor:
    """Numbers from 1 to size ``(..., 1)`` as one-hot columns ``(..., size)``, others as none."""
    return (column == torch.arange(1, size + 1, device=column.device)).to(column)
