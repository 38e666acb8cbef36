"""Networks: a row of numbers in, a row of features out.

A network maps ``(..., in_features)`` to ``(..., out_features)`` and has both sizes as attributes.
It is independent of distributions: the part that owns it adds the heads. A conditional part appends
the one-hot label to its input (:func:`~pyro_vaes.core.labels.append_labels`), so ``in_features``
includes the labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vaes.core.checks import positive
from pyro_vaes.core.choices import ACTIVATIONS
from pyro_vaes.core.described import Described

__all__ = ["MLP", "GatedMLP", "Network", "SkipMLP", "check_network", "shape_of"]


@runtime_checkable
class Network(Protocol):
    """The interface of a network: its sizes and a call on rows.

    >>> from pyro_vaes.networks import Network
    >>> isinstance(pv.MLP(64, [256]), Network), isinstance(torch.nn.Linear(64, 256), Network)
    (True, True)
    """

    in_features: int
    out_features: int

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Maps ``(..., in_features)`` to ``(..., out_features)``."""


def make_activation(name: str) -> nn.Module:
    """The activation called ``name``, one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"Expected activation among {', '.join(ACTIVATIONS)}; got {name!r}.")
    activation: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return activation


def shape_of(shape: Sequence[int] | int, name: str = "event_shape") -> tuple[int, ...]:
    """A shape as a tuple of sizes of at least one; a lone size is the shape of a vector."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    positive(**{f"{name}[{i}]": size for i, size in enumerate(sizes)})
    return sizes


def check_network(network: Any) -> None:
    """Refuses a network without the sizes that parts need."""
    for name in ("in_features", "out_features"):
        size = getattr(network, name, None)
        if size is None:
            raise ValueError(
                "Expected a network with in_features and out_features, the sizes of its rows; got "
                f"{type(network).__name__} without {name}. Set both in its constructor."
            )
        positive(**{f"{name} of {type(network).__name__}": size})


class MLP(Described):
    """A multilayer perceptron: linear layers, each followed by the activation.

    >>> network = pv.MLP(64, [256, 128])
    >>> network(torch.zeros(10, 64)).shape
    torch.Size([10, 128])

    Args:
        in_features: size of an input row (one-hot labels included).
        hidden_dims: sizes of the hidden layers; the last is ``out_features``.
        activation: one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.

    Raises:
        ValueError: for a size below one or an unknown activation.
    """

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int], activation: str = "leaky_relu"
    ) -> None:
        super().__init__()
        sizes = sizes_of(in_features, hidden_dims)
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

    >>> network = pv.GatedMLP(784, [300, 300])
    >>> network(torch.zeros(10, 784)).shape
    torch.Size([10, 300])

    Args:
        in_features: size of an input row (one-hot labels included).
        hidden_dims: sizes of the hidden layers; the last is ``out_features``.

    Raises:
        ValueError: for a size below one.
    """

    def __init__(self, in_features: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        sizes = sizes_of(in_features, hidden_dims)
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, 2 * size_out), nn.GLU()]
        self.layers = nn.Sequential(*layers)
        self.in_features = in_features
        self.out_features = sizes[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.layers(inputs))


class SkipMLP(MLP):
    """A multilayer perceptron whose features follow its own inputs.

    What a part makes of the features is then a linear map of the inputs, which may start at that of
    a linear model, and a correction to it: see :func:`~pyro_vaes.classical.start.start_at_factors`.
    Inputs past the last layer: Bishop, "Pattern recognition and machine learning" (2006), section
    5.1.

    >>> network = pv.SkipMLP(30, [32])
    >>> network(torch.zeros(10, 30)).shape
    torch.Size([10, 62])

    Args:
        in_features: size of an input row (one-hot labels included).
        hidden_dims: sizes of the hidden layers; ``out_features`` is the last and ``in_features``.
        activation: one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.

    Raises:
        ValueError: for a size below one or an unknown activation.
    """

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int], activation: str = "leaky_relu"
    ) -> None:
        super().__init__(in_features, hidden_dims, activation)
        self.out_features += in_features

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.layers(inputs)], -1)


def sizes_of(in_features: int, hidden_dims: Sequence[int]) -> list[int]:
    """The sizes of inputs and layers, of at least one."""
    if not len(hidden_dims):
        raise ValueError("Expected at least one hidden layer in hidden_dims; got none.")
    hidden = {f"hidden_dims[{i}]": size for i, size in enumerate(hidden_dims)}
    positive(in_features=in_features, **hidden)
    return [in_features, *hidden_dims]
