"""Masked networks whose outputs depend on earlier inputs only (MADE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pyro.nn.auto_reg_nn import MaskedLinear, create_mask
from torch import Tensor, nn

from pyro_vaes.core.checks import positive
from pyro_vaes.networks.mlp import make_activation

__all__ = ["AutoregressiveNetwork"]


class AutoregressiveNetwork(nn.Module):
    """A masked network from elements x_<i and a context to the logits of element i.

    Germain et al., "MADE: masked autoencoder for distribution estimation" (2015), section 4, with
    the direct connections of 4.1; every hidden unit sees the context.

    >>> from pyro_vaes.networks import AutoregressiveNetwork
    >>> network = AutoregressiveNetwork(3, num_levels=5, context_dim=8, hidden_dims=[16])
    >>> network(torch.zeros(10, 3), network.context(torch.zeros(10, 8))).shape
    torch.Size([10, 3, 5])

    Args:
        num_elements: D, elements in order.
        num_levels: L, logits for each element.
        context_dim: size of the context.
        hidden_dims: sizes of the hidden layers, at least D each.
        activation: one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.

    Raises:
        ValueError: for no hidden layer, or one with fewer units than elements: some elements would
            then be ignored.
    """

    def __init__(
        self,
        num_elements: int,
        num_levels: int,
        context_dim: int,
        hidden_dims: Sequence[int],
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        positive(**{f"hidden_dims[{i}]": size for i, size in enumerate(hidden_dims)})
        if not hidden_dims or min(hidden_dims) < num_elements:
            raise ValueError(
                f"Expected hidden_dims of at least {num_elements}, the number of elements; "
                f"got {list(hidden_dims)}."
            )
        sizes = list(hidden_dims)
        order = cast(torch.LongTensor, torch.arange(num_elements))
        # One column stands for the whole context, which needs no mask.
        (first, *inner, last), direct = create_mask(num_elements, 1, sizes, order, 1)
        self.context = nn.Linear(context_dim, sizes[0])
        self.first = MaskedLinear(num_elements, sizes[0], first[:, 1:], bias=False)
        self.inner = nn.Sequential(make_activation(activation))
        for mask in inner:
            self.inner.append(MaskedLinear(mask.shape[1], mask.shape[0], mask))
            self.inner.append(make_activation(activation))
        # Ordered by element, then level; Pyro's network orders by level, then element.
        last, direct = (m.repeat_interleave(num_levels, 0) for m in (last, direct[:, 1:]))
        self.last = MaskedLinear(sizes[-1], num_elements * num_levels, last, bias=False)
        self.direct = MaskedLinear(num_elements, num_elements * num_levels, direct, bias=False)
        self.num_levels = num_levels

    def forward(self, elements: Tensor, seen: Tensor) -> Tensor:
        """The logits of all elements at once, each from those before it.

        Args:
            elements: ``(..., D)``, scaled to [-1, 1].
            seen: ``(..., hidden_dims[0])``, ``self.context`` of the context.

        Returns:
            ``(..., D, L)``.
        """
        logits = self.last(self.inner(self.first(elements) + seen)) + self.direct(elements)
        return cast(Tensor, logits.unflatten(-1, (elements.shape[-1], self.num_levels)))
