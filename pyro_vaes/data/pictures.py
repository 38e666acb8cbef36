"""Folders of pictures, perhaps one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_vaes.core.errors import DataError

__all__ = ["list_pictures", "read_pictures"]


_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


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
    arrays = [_pixels(path) for path in paths]
    sizes = {array.shape[:2] for array in arrays}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
        raise DataError(f"Expected pictures of one size; got {shown}. Resize them first.")
    bands = {array.shape[2] for array in arrays}
    if bands & {2, 4}:
        notes.append("The pictures' transparency was left out.")
    if bands <= {1, 2}:
        x = np.stack([array[..., :1] for array in arrays])
    else:  # A grey picture among coloured ones gets three equal channels.
        x = np.stack([a[..., :3] if a.shape[2] > 2 else a[..., [0] * 3] for a in arrays])
    found = {"x": np.ascontiguousarray(np.moveaxis(x, -1, 1))}
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


def _pixels(path: Path) -> Any:
    """A picture as bytes of shape ``(H, W, bands)``: grey or colour, perhaps with transparency."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            plain = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}.get(picture.mode, "RGB")
            pixels = np.asarray(picture.convert(plain))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"Expected a readable picture in {path.name}; got {error}.") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
