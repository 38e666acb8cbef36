"""A small convolutional encoder and decoder for images from 8x8 up: rows in, rows out.

The decoder's features form a map over the pixels, of ``feature_shape``, so that a likelihood can
give every pixel the same head instead of one large matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import Described
from pyro_vaes.networks.mlp import make_activation

__all__ = ["ConvDecoder", "ConvEncoder"]


def check_images(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """The shape of images of at least 8x8 pixels, with at least one number of channels."""
    shape = tuple(image_shape)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 8:
        raise ValueError(
            f"Expected image_shape (channels, height, width) from (1, 8, 8) up; got {shape}."
        )
    if not channels:
        raise ValueError("Expected at least one number of channels; got none.")
    positive(**{f"channels[{i}]": c for i, c in enumerate(channels)})
    return shape


class ConvEncoder(Described):
    """Convolutions of stride two, then a linear layer that also sees the label.

    >>> encoder = pv.ConvEncoder((1, 28, 28))
    >>> encoder(torch.zeros(10, 784)).shape
    torch.Size([10, 256])

    Args:
        image_shape: ``(channels, height, width)``; rows are flattened images.
        channels: of each convolution; each halves height and width.
        out_features: size of the features.
        activation: one of :data:`pyro_vaes.core.choices.ACTIVATIONS`.
        num_labels: number of labels, one-hot after the pixels of a row.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        out_features: int = 256,
        activation: str = "silu",
        num_labels: int = 0,
    ) -> None:
        super().__init__()
        self.image_shape = shape = check_images(image_shape, channels)
        positive(out_features=out_features)
        layers: list[nn.Module] = []
        size_in, height, width = shape
        for size_out in channels:
            layers += [
                nn.Conv2d(size_in, size_out, 3, stride=2, padding=1),
                make_activation(activation),
            ]
            size_in, height, width = size_out, math.ceil(height / 2), math.ceil(width / 2)
        self.convolutions = nn.Sequential(*layers)
        self.pixels = math.prod(shape)
        self.in_features = self.pixels + num_labels
        self.out_features = out_features
        self.linear = nn.Linear(size_in * height * width + num_labels, out_features)
        self.activation = make_activation(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        images, labels = rows[:, : self.pixels], rows[:, self.pixels :]
        features = self.convolutions(images.reshape(-1, *self.image_shape)).flatten(1)
        out = self.activation(self.linear(torch.cat([features, labels], dim=1)))
        return cast(Tensor, out).reshape(*inputs.shape[:-1], self.out_features)


class ConvDecoder(Described):
    """A linear layer, then upsampling and convolutions up to the size of the image.

    >>> decoder = pv.ConvDecoder(16, (1, 28, 28))
    >>> likelihood = pv.BernoulliLikelihood(decoder, event_shape=(784,))
    >>> decoder.feature_shape, likelihood(torch.zeros(10, 16)).event_shape
    ((32, 28, 28), torch.Size([784]))

    Args:
        in_features: ``latent_dim + num_labels``.
        image_shape: ``(channels, height, width)`` of the images.
        channels: of each convolution; before each, height and width double.
        activation: one of :data:`pyro_vaes.core.choices.ACTIVATIONS`.

    Attributes:
        feature_shape: ``(channels, height, width)`` of the features, a map over the pixels.
    """

    sums: Tensor

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: str = "silu",
    ) -> None:
        super().__init__()
        _, height, width = check_images(image_shape, channels)
        positive(in_features=in_features)
        # Halved from the size of the image down to that after the linear layer.
        self.sizes = [(height, width)]
        for _ in channels:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            self.sizes.insert(0, (height, width))
        self.start = (channels[0], height, width)
        self.linear = nn.Linear(in_features, math.prod(self.start))
        self.activation = make_activation(activation)
        pairs = zip([channels[0], *channels], channels)  # noqa: B905 - the first has one more
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), make_activation(activation))
            for a, b in pairs
        )
        # A kernel of three over doubled pixels is one of four over the pixels themselves, with
        # fewer products: its weights in each direction, last to first, are these sums.
        sums = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
        self.register_buffer("sums", torch.kron(sums, sums).T, persistent=False)
        self.feature_shape = (channels[-1], *self.sizes[-1])
        self.in_features = in_features
        self.out_features = math.prod(self.feature_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        features = self.activation(self.linear(rows)).reshape(-1, *self.start)
        for size, (convolution, activation) in zip(
            self.sizes[1:], cast(Any, self.convolutions), strict=True
        ):
            features = activation(self._enlarged(features, size, convolution))
        return cast(Tensor, features).reshape(*inputs.shape[:-1], self.out_features)

    def _enlarged(self, features: Tensor, size: tuple[int, int], layer: nn.Conv2d) -> Tensor:
        """Upsamples features to a size by repeating pixels, then convolves them."""
        if size != (2 * features.shape[-2], 2 * features.shape[-1]):
            return cast(Tensor, layer(functional.interpolate(features, size)))
        kernel = (layer.weight.flatten(2) @ self.sums).unflatten(2, (4, 4)).transpose(0, 1)
        return functional.conv_transpose2d(features, kernel, layer.bias, stride=2, padding=1)
