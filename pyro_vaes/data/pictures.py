"""Folders of pictures, perhaps one folder for each class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.rows import gathered

__all__ = ["list_pictures", "read_pictures"]


_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# What kinds of pictures are read as: grey or else colour, perhaps with transparency.
_MODES = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}


def read_pictures(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Reads the pictures of a folder, in the order of their names.

    Args:
        folder: holds pictures of one size, or a folder of them for each class.
        notes: collects a sentence for each guess.

    Returns:
        ``x``, uint8 of shape ``(n, C, H, W)`` with one channel if all are grey and else three; and
        ``y``, the names of the classes, if there are any.

    Raises:
        DataError: for a folder without pictures, or with pictures of several sizes.
    """
    paths, labels = list_pictures(folder)
    sizes, modes = (set(facts) for facts in zip(*map(_facts, paths), strict=True))
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise DataError(f"Expected pictures of one size; got {shown}. Resize them first.")
    if modes & {"LA", "RGBA"}:
        notes.append("The pictures' transparency was left out.")
    # A grey picture among coloured ones gets three equal channels.
    channels = 1 if modes <= {"L", "LA"} else 3
    found: dict[str, Any] = {"x": gathered(_pixels(path, channels) for path in paths)}
    if labels:
        found["y"] = np.array(labels)
    return found


def list_pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder in the order of their names, and the names of their classes.

    Raises:
        DataError: for a folder without pictures, or with both pictures and folders of them.
    """
    lone = _pictures(folder)
    classes = {sub.name: _pictures(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    classes = {name: paths for name, paths in classes.items() if paths}
    if bool(lone) == bool(classes):
        raise DataError(
            "Expected a folder of pictures, or of folders of pictures, one for each class; got "
            f"{'both' if lone else 'neither'}."
        )
    paths = lone or [path for each in classes.values() for path in each]
    return paths, [name for name, each in classes.items() for _ in each]


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def _facts(path: Path) -> tuple[tuple[int, int], str]:
    """The size of a picture and what it is read as, by its head alone."""
    with _opened(path) as picture:
        return picture.size, _MODES.get(picture.mode, "RGB")


def _pixels(path: Path, channels: int) -> Tensor:
    """A picture as bytes of shape ``(1, channels, H, W)``."""
    with _opened(path) as picture:
        pixels = np.array(picture.convert(_MODES.get(picture.mode, "RGB")))
    bands = pixels.reshape(*pixels.shape[:2], -1)
    bands = bands[..., :channels] if bands.shape[2] > 2 else bands[..., [0] * channels]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(bands, -1, 0)))[None]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            yield picture
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"Expected a readable picture in {path.name}; got {error}.") from error
