"""Networks: a row of numbers in, a row of features out.

A network maps ``(..., in_features)`` to ``(..., out_features)`` and says both sizes. It knows
nothing of distributions: the part that owns it adds the heads. A conditional part hands it the
one-hot label beside its input (:func:`join`), so ``in_features`` counts the labels too.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vaes.spec import Described

__all__ = ["ACTIVATIONS", "MLP", "GatedMLP", "Network", "join", "takes_labels", "with_labels"]

#: The activations by name.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


@runtime_checkable
class Network(Protocol):
    """What a part asks of a network: its sizes and a call on rows."""

    in_features: int
    out_features: int

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Maps ``(..., in_features)`` to ``(..., out_features)``."""


def make_activation(name: str) -> nn.Module:
    """The activation called ``name``, one of :data:`ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"Expected activation among {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]()


def positive(**sizes: int) -> None:
    """Refuses sizes that are not whole numbers of at least one, naming the argument."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"Expected {name} to be a whole number of at least 1; got {size!r}.")


class MLP(Described):
    """A multilayer perceptron: linear layers, each followed by the activation.

    Args:
        in_features: size of an input row (one-hot labels included).
        hidden_dims: sizes of the hidden layers; the last is ``out_features``.
        activation: one of :data:`ACTIVATIONS`.

    Raises:
        ValueError: for a size below one or an unknown activation.
    """

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int], activation: str = "leaky_relu"
    ) -> None:
        super().__init__()
        sizes = _sizes(in_features, hidden_dims)
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), make_activation(activation)]
        self.layers = nn.Sequential(*layers)
        self.in_features = in_features
        self.out_features = sizes[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.layers(inputs))


class GatedMLP(Described):
    """A multilayer perceptron of gated layers, (W h + b) * sigmoid(V h + c).

    Dauphin et al., "Language modeling with gated convolutional networks" (2017), equation 1; the
    network of the VampPrior literature (Tomczak and Welling 2018, with layers of 300).

    Args:
        in_features: size of an input row (one-hot labels included).
        hidden_dims: sizes of the hidden layers; the last is ``out_features``.

    Raises:
        ValueError: for a size below one.
    """

    def __init__(self, in_features: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        sizes = _sizes(in_features, hidden_dims)
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, 2 * size_out), nn.GLU()]
        self.layers = nn.Sequential(*layers)
        self.in_features = in_features
        self.out_features = sizes[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.layers(inputs))


def _sizes(in_features: int, hidden_dims: Sequence[int]) -> list[int]:
    if not hidden_dims:
        raise ValueError("Expected at least one hidden layer in hidden_dims; got none.")
    hidden = {f"hidden_dims[{i}]": size for i, size in enumerate(hidden_dims)}
    positive(in_features=in_features, **hidden)
    return [in_features, *hidden_dims]


def join(rows: Tensor, labels: Tensor | None, num_labels: int) -> Tensor:
    """Puts the one-hot label beside each row; without labels, the rows as they are.

    Args:
        rows: ``(..., features)``.
        labels: whole numbers in ``0..num_labels - 1`` of a shape that broadcasts against the rows'
            batch shape; needed exactly when ``num_labels > 0``.
        num_labels: number of labels, 0 for an unconditional part.

    Returns:
        ``(..., features + num_labels)``.
    """
    if num_labels == 0:
        return rows
    if labels is None:
        raise ValueError(
            f"Expected labels y in 0..{num_labels - 1} for a conditional part; got none."
        )
    # A comparison instead of one_hot(), which waits for the device to check the range.
    one_hot = labels.unsqueeze(-1) == torch.arange(num_labels, device=labels.device)
    batch_shape = torch.broadcast_shapes(rows.shape[:-1], labels.shape)
    return torch.cat(
        [
            rows.expand(*batch_shape, rows.shape[-1]),
            one_hot.to(rows.dtype).expand(*batch_shape, num_labels),
        ],
        dim=-1,
    )


def takes_labels(part: nn.Module) -> bool:
    """Whether a part is to be given labels: its ``num_labels`` says, or else an argument ``y``."""
    num_labels = getattr(part, "num_labels", None)
    if num_labels is not None:
        return bool(num_labels)
    return "y" in inspect.signature(part.forward).parameters


def with_labels(part: nn.Module, y: Tensor | None, *inputs: Tensor) -> Any:
    """Calls a part, with the labels if it takes them."""
    return part(*inputs) if y is None or not takes_labels(part) else part(*inputs, y)


def flat(x: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Flattens the event dimensions: ``(..., *event_shape)`` to ``(..., prod(event_shape))``."""
    event_shape = tuple(event_shape)
    batch_dims = x.dim() - len(event_shape)
    if batch_dims < 0 or tuple(x.shape[batch_dims:]) != event_shape:
        raise ValueError(
            f"Expected data of shape (..., {', '.join(map(str, event_shape))}); "
            f"got {tuple(x.shape)}."
        )
    return x.reshape(*x.shape[:batch_dims], math.prod(event_shape))
