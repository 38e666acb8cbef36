"""Transforms of training batches, drawn anew each time: binarisation and small moves of images.

A transform maps ``(x_batch, generator)`` to a batch of the same shape. All its randomness comes
from the generator, so that training can be repeated and resumed, and it treats a batch as one
tensor, without a loop over its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Transform", "augment_images", "binarize", "compose", "move_images"]


Transform = Callable[[Tensor, torch.Generator], Tensor]


def compose(*transforms: Transform | None) -> Transform | None:
    """One transform that applies the given ones from left to right; None is no transform."""
    steps = [transform for transform in transforms if transform is not None]
    if len(steps) < 2:
        return steps[0] if steps else None

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            x = step(x, generator)
        return x

    return transform


def binarize(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draws a 0 or 1 for each element, with the element as the probability of a 1.

    Dynamic binarisation (Salakhutdinov and Murray, "On the quantitative analysis of deep belief
    networks", 2008): grey values in [0, 1] are read as probabilities.
    """
    return (_uniform(x.shape, x, generator) < x).to(x.dtype)


def augment_images(
    image_shape: Sequence[int],
    *,
    max_shift: float = 1.0,
    max_rotate: float = 10.0,
    max_scale: float = 0.1,
    max_shear: float = 0.1,
    probability: float = 0.5,
    num_levels: int | None = None,
) -> Transform:
    """A transform that moves some images of a batch, each by its own small affine map.

    Every strength is drawn uniformly and independently for each image; zero switches a move off.
    See :func:`.move_images` for the geometry. Pixels from outside the image are 0.

    Args:
        image_shape: ``(C, H, W)``; batches may hold images of that shape or flat rows.
        max_shift: largest move along each axis, in pixels; need not be whole.
        max_rotate: largest angle either way, in degrees.
        max_scale: largest growth; 0.1 scales by a factor from 1/1.1 to 1.1, on a log scale.
        max_shear: largest horizontal move for each row that lies further down, in pixels.
        probability: share of the images that are moved; the others stay sharp.
        num_levels: for data that are levels (2 for binary ones): results are rounded to whole
            numbers in ``0..num_levels - 1``. None leaves fractions.

    Returns:
        The transform; flat batches stay flat.

    Raises:
        ValueError: for a strength that is negative or not finite, or a shape that is not (C, H, W).
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"Expected image_shape (C, H, W); got {shape}.")
    if num_levels is not None and num_levels < 2:
        raise ValueError(f"Expected num_levels of at least 2; got {num_levels}.")
    strengths = {
        "max_shift": max_shift,
        "max_rotate": max_rotate,
        "max_scale": max_scale,
        "max_shear": max_shear,
    }
    for name, strength in strengths.items():
        if not 0 <= strength < math.inf:
            raise ValueError(f"Expected {name} of at least 0; got {strength}.")
    if not 0 <= probability <= 1:
        raise ValueError(f"Expected probability in [0, 1]; got {probability}.")
    limits = (max_shift, max_shift, math.radians(max_rotate), math.log1p(max_scale), max_shear)

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        if x[0].numel() != math.prod(shape):
            raise ValueError(f"Expected images of shape {shape}; got {tuple(x.shape[1:])}.")
        draws = _uniform((len(limits), len(x)), x, generator) * 2 - 1
        right, down, angle, log_scale, shear = draws * draws.new_tensor(limits).unsqueeze(-1)
        moved = move_images(
            x.reshape(len(x), *shape), right, down, angle, log_scale.exp(), shear
        ).reshape(x.shape)
        chosen = _uniform((len(x),), x, generator) < probability
        moved = torch.where(chosen.reshape(-1, *[1] * (x.dim() - 1)), moved, x)
        return moved if num_levels is None else moved.round().clamp(0, num_levels - 1)

    return transform


def move_images(
    images: Tensor, right: Tensor, down: Tensor, angle: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Shears, rotates, scales and then shifts each image about its centre, bicubically.

    Small images tolerate no blur: bilinear interpolation would leave no pixel black or white.

    Args:
        images: ``(n, C, H, W)``.
        right: move to the right in pixels, ``(n,)``.
        down: move downwards in pixels, ``(n,)``.
        angle: counter-clockwise, in radians, ``(n,)``.
        scale: factor of growth, ``(n,)``.
        shear: move to the right for each row that lies further down, in pixels, ``(n,)``.

    Returns:
        The moved images, ``(n, C, H, W)``, with 0 outside the originals.
    """
    height, width = images.shape[-2:]
    # Sampling asks where each pixel of the result came from: the inverse map, in closed form, of
    # p -> scale * rotation * shearing * p + shift, with x to the right and y downwards.
    cos, sin = angle.cos() / scale, angle.sin() / scale
    xx, xy = cos - shear * sin, -sin - shear * cos
    yx, yy = sin, cos
    # In grid units an axis runs from -1 to 1 whatever its length; angles refer to pixels.
    from_x = [xx, xy * (height / width), -(xx * right + xy * down) * (2 / width)]
    from_y = [yx * (width / height), yy, -(yx * right + yy * down) * (2 / height)]
    maps = torch.stack([torch.stack(from_x, -1), torch.stack(from_y, -1)], dim=-2)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bicubic", padding_mode="zeros", align_corners=False
    )


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from [0, 1) on the batch's device: a copy would take longer than a step."""
    if generator.device != like.device:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        generator = torch.Generator(like.device).manual_seed(seed)
    return torch.rand(*shape, generator=generator, device=like.device, dtype=like.dtype)
