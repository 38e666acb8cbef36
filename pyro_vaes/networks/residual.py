"""Residual networks with gates: dense ones, and an encoder and a decoder of images.

A block adds ``a * sigmoid(b)`` to its input, where a and b come from two layers after a
normalisation (He et al., "Identity mappings in deep residual networks", 2016, figure 4e; the gate
as in van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016). Blocks
start near the identity, so that deep networks train from the first step. Normalisation is by layer
or by groups of channels (Ba et al. 2016; Wu and He 2018), never over the batch: rows stay
independent, and a step may be recorded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vaes.core.checks import positive
from pyro_vaes.core.described import Described
from pyro_vaes.networks.convolutions import check_images
from pyro_vaes.networks.mlp import make_activation, sizes_of

__all__ = ["ResDecoder", "ResEncoder", "ResMLP"]


# Channels are normalised in at most this many groups, of at least this many channels each: of one
# pixel and one channel nothing would be left, of two a sign.
_GROUPS, _CHANNELS_EACH = 8, 4
# Fewest numbers that a network may normalise over.
_FEWEST = 3


class _DenseBlock(nn.Module):
    """A gated residual block of rows."""

    def __init__(self, size_in: int, size_out: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(size_in),
            make_activation(activation),
            nn.Linear(size_in, size_out),
            make_activation(activation),
            _shrunk(nn.Linear(size_out, 2 * size_out)),
            nn.GLU(),
        )
        same = size_in == size_out
        self.skip = nn.Identity() if same else nn.Linear(size_in, size_out)

    def forward(self, rows: Tensor) -> Tensor:
        return cast(Tensor, self.skip(rows) + self.body(rows))


class _ImageBlock(nn.Module):
    """A gated residual block of images, of half the height and width if ``halve``."""

    def __init__(self, size_in: int, size_out: int, activation: str, halve: bool = False) -> None:
        super().__init__()
        stride = 2 if halve else 1
        self.body = nn.Sequential(
            _group_norm(size_in),
            make_activation(activation),
            nn.Conv2d(size_in, size_out, 3, stride, padding=1),
            make_activation(activation),
            _shrunk(nn.Conv2d(size_out, 2 * size_out, 3, padding=1)),
            nn.GLU(dim=1),
        )
        self.halve = halve
        same = size_in == size_out
        self.skip = nn.Identity() if same else nn.Conv2d(size_in, size_out, 1)

    def forward(self, images: Tensor) -> Tensor:
        direct = functional.avg_pool2d(images, 2, ceil_mode=True) if self.halve else images
        return cast(Tensor, self.skip(direct) + self.body(images))


def _group_norm(channels: int) -> nn.GroupNorm:
    most = max(1, min(_GROUPS, channels // _CHANNELS_EACH))
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def _check_sizes(channels: Sequence[int], height: int, width: int) -> None:
    """Refuses images of which a size has too little to normalise."""
    for count in channels:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        if count * height * width < _FEWEST:
            raise ValueError(
                f"Expected at least {_FEWEST} numbers to normalise at each size; got {count} "
                f"channels of {height}x{width} pixels. Give more channels, or fewer sizes."
            )


def _shrunk(layer: Any) -> Any:
    """A layer whose block starts near the identity."""
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.zero_()
    return layer


class ResMLP(Described):
    """A linear layer, then gated residual blocks of dense layers.

    >>> network = pv.ResMLP(64, [256, 256])
    >>> network(torch.zeros(10, 64)).shape
    torch.Size([10, 256])

    Args:
        in_features: size of an input row (one-hot labels included).
        hidden_dims: sizes of the blocks; the last is ``out_features``.
        activation: one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.

    Raises:
        ValueError: for blocks below 3, which normalise all away, or an unknown activation.
    """

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int], activation: str = "silu"
    ) -> None:
        super().__init__()
        _, *hidden = sizes_of(in_features, hidden_dims)
        if min(hidden) < _FEWEST:
            raise ValueError(
                f"Expected blocks of at least {_FEWEST}, over which they normalise; got {hidden}."
            )
        pairs = itertools.pairwise([hidden[0], *hidden])
        self.first = nn.Linear(in_features, hidden[0])
        self.blocks = nn.Sequential(*(_DenseBlock(*pair, activation) for pair in pairs))
        self.last = nn.Sequential(nn.LayerNorm(hidden[-1]), make_activation(activation))
        self.in_features, self.out_features = in_features, hidden[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.blocks(self.first(inputs))))


class ResEncoder(Described):
    """Gated residual blocks of convolutions, then a linear layer that also sees the label.

    >>> encoder = pv.ResEncoder((3, 32, 32), [32, 64, 64], blocks=2)
    >>> encoder(torch.zeros(10, 3072)).shape
    torch.Size([10, 256])

    Args:
        image_shape: ``(channels, height, width)``; rows are flattened images.
        channels: of each size; the first block of a size halves height and width.
        out_features: size of the features.
        activation: one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.
        num_labels: number of labels, one-hot after the pixels of a row.
        blocks: of each size.

    Raises:
        ValueError: for images below 8x8, a size of fewer than 3 numbers, or an unknown activation.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        out_features: int = 256,
        activation: str = "silu",
        num_labels: int = 0,
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.image_shape = shape = check_images(image_shape, channels)
        positive(out_features=out_features, blocks=blocks)
        _, height, width = shape
        _check_sizes(channels, height, width)
        layers: list[nn.Module] = [nn.Conv2d(shape[0], channels[0], 3, padding=1)]
        for size_in, size_out in itertools.pairwise([channels[0], *channels]):
            layers.append(_ImageBlock(size_in, size_out, activation, halve=True))
            layers += [_ImageBlock(size_out, size_out, activation) for _ in range(blocks - 1)]
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        layers += [_group_norm(channels[-1]), make_activation(activation)]
        self.convolutions = nn.Sequential(*layers)
        self.pixels = math.prod(shape)
        self.in_features = self.pixels + num_labels
        self.out_features = out_features
        self.linear = nn.Linear(channels[-1] * height * width + num_labels, out_features)
        self.activation = make_activation(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        images, labels = rows[:, : self.pixels], rows[:, self.pixels :]
        features = self.convolutions(images.reshape(-1, *self.image_shape)).flatten(1)
        out = self.activation(self.linear(torch.cat([features, labels], dim=1)))
        return cast(Tensor, out).reshape(*inputs.shape[:-1], self.out_features)


class ResDecoder(Described):
    """A linear layer, then upsampling and gated residual blocks up to the size of the image.

    >>> decoder = pv.ResDecoder(16, (3, 32, 32), [64, 64, 32], blocks=2)
    >>> likelihood = pv.DiscretizedLogisticLikelihood(decoder, (3, 32, 32), num_levels=256)
    >>> decoder.feature_shape, likelihood(torch.zeros(10, 16)).event_shape
    ((32, 32, 32), torch.Size([3, 32, 32]))

    Args:
        in_features: ``latent_dim + num_labels``.
        image_shape: ``(channels, height, width)`` of the images.
        channels: of each size; before the blocks of a size, height and width double.
        activation: one of :data:`~pyro_vaes.core.choices.ACTIVATIONS`.
        blocks: of each size.

    Attributes:
        feature_shape: ``(channels, height, width)`` of the features, a map over the pixels.

    Raises:
        ValueError: for images below 8x8, a size of fewer than 3 numbers, or an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: str = "silu",
        blocks: int = 1,
    ) -> None:
        super().__init__()
        _, height, width = check_images(image_shape, channels)
        positive(in_features=in_features, blocks=blocks)
        _check_sizes(channels[::-1], height, width)
        self.sizes = [(height, width)]
        for _ in channels:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            self.sizes.insert(0, (height, width))
        self.start = (channels[0], height, width)
        self.linear = nn.Linear(in_features, math.prod(self.start))
        self.stages = nn.ModuleList(
            nn.Sequential(
                _ImageBlock(size_in, size_out, activation),
                *(_ImageBlock(size_out, size_out, activation) for _ in range(blocks - 1)),
            )
            for size_in, size_out in itertools.pairwise([channels[0], *channels])
        )
        self.last = nn.Sequential(_group_norm(channels[-1]), make_activation(activation))
        self.feature_shape = (channels[-1], *self.sizes[-1])
        self.in_features = in_features
        self.out_features = math.prod(self.feature_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.linear(inputs.reshape(-1, self.in_features)).reshape(-1, *self.start)
        for size, stage in zip(self.sizes[1:], self.stages, strict=True):
            features = stage(functional.interpolate(features, size))
        return cast(Tensor, self.last(features)).reshape(*inputs.shape[:-1], self.out_features)
