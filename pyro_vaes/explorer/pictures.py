"""Data as a page holds them: images as PNG in the page itself, others as words."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Pictures", "word", "words"]


class Pictures:
    """Draws images of one range of values, dark on white, as ``data:`` addresses.

    Args:
        image_shape: ``(C, H, W)``.
        values: the data that determine white and black.
    """

    def __init__(self, image_shape: Sequence[int], values: Any) -> None:
        self.shape = tuple(image_shape)
        values = np.asarray(values, dtype=float)
        self.low, self.high = float(np.nanmin(values)), float(np.nanmax(values))

    def sheet(self, images: Any, columns: int) -> str:
        """Images in rows of ``columns``, without gaps."""
        channels, height, width = self.shape
        array = np.asarray(images, dtype=float).reshape(-1, columns, channels, height, width)
        sheet = array.transpose(0, 3, 1, 4, 2).reshape(len(array) * height, -1, channels)
        scaled = (sheet - self.low) / max(self.high - self.low, 1e-12)
        # What was not seen is white.
        grey = np.nan_to_num(scaled, nan=0.0).clip(0, 1)
        if channels not in (3, 4):
            grey = 1 - grey.mean(2)  # ink on paper
        buffer = io.BytesIO()
        Image.fromarray((255 * grey).round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def words(columns: Callable[[Any], Mapping[str, Any]], data: Any) -> list[list[str]]:
    """Data ``(n, ...)`` as words, a list for each row."""
    found = columns(np.asarray(data))
    return [[word(value) for value in row] for row in zip(*found.values(), strict=True)]


def word(value: Any) -> str:
    """A value in few digits; what was not seen is blank."""
    if value is None or value != value:
        return ""
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}" if math.isfinite(value) else str(value)
    return str(value)
