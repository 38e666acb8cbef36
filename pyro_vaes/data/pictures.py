"""Folders of pictures, perhaps one folder for each class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
# How Pillow calls more than 8 bits a channel: of a picture, and of what its file holds.
_DEEP_MODE, _DEEP_FILE = re.compile("[IF]"), re.compile(";16[BLN]")

# The tag of EXIF that says how a picture is turned.
_ORIENTATION = 0x0112


def read_pictures(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Reads the pictures of a folder, in the order of their names.

    Args:
        folder: holds pictures of one size, or a folder of them for each class.
        notes: collects a sentence for each guess.

    Returns:
        ``x``, uint8 of shape ``(n, C, H, W)`` with one channel if all are grey and else three; and
        ``y``, the names of the classes, if there are any.

    Raises:
        DataError: for a folder without pictures, or with pictures of several sizes or of more than
            8 bits a channel.
    """
    paths, labels = list_pictures(folder)
    facts = zip(*map(_facts, paths), strict=True)
    sizes, modes, moving, turned = (set(each) for each in facts)
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise DataError(f"Expected pictures of one size; got {shown}. Resize them first.")
    if modes & {"LA", "RGBA"}:
        notes.append("The pictures' transparency was left out.")
    if any(moving):
        notes.append("Of pictures with several frames or pages the first was taken.")
    if any(turned):
        notes.append("Pictures were turned upright, as their EXIF orientation says.")
    _note_others(folder, paths, notes)
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


def _note_others(folder: Path, paths: Sequence[Path], notes: list[str]) -> None:
    """Says which files were left out: no pictures, or in folders further down."""
    there = {p.relative_to(folder) for p in set(folder.rglob("*")) - set(paths) if p.is_file()}
    names = sorted(str(p) for p in there if not any(part.startswith(".") for part in p.parts))
    if names:
        shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        notes.append(f"Left out of the folder, since they are no pictures or lie deeper: {shown}.")


def _facts(path: Path) -> tuple[tuple[int, int], str, bool, bool]:
    """The size of a picture, what it is read as, whether it has several frames, and is turned."""
    with _opened(path) as picture:
        held = "".join(str(tile) for tile in getattr(picture, "tile", ()))
        if _DEEP_MODE.match(picture.mode) or _DEEP_FILE.search(held):
            raise DataError(
                f"Expected pictures of 8 bits a channel; got more in {path.name}, which would be "
                "cut off. Save such pictures as an array of numbers, by numpy.save."
            )
        kind = _MODES.get(picture.mode, "RGB")
        if "transparency" in picture.info and not kind.endswith("A"):
            kind += "A"
        moving = getattr(picture, "is_animated", False)
        turned = _is_turned(picture)
        return _upright(picture).size, kind, moving, turned


def _pixels(path: Path, channels: int) -> Tensor:
    """A picture as bytes of shape ``(1, channels, H, W)``."""
    with _opened(path) as picture:
        pixels = np.array(_upright(picture).convert(_MODES.get(picture.mode, "RGB")))
    bands = pixels.reshape(*pixels.shape[:2], -1)
    bands = bands[..., :channels] if bands.shape[2] > 2 else bands[..., [0] * channels]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(bands, -1, 0)))[None]


def _is_turned(picture: Any) -> bool:
    """Whether the camera's axes are not those of the stored picture, by its EXIF block."""
    try:
        return bool(picture.getexif().get(_ORIENTATION, 1) in range(2, 9))
    except SyntaxError:  # What stands there is no such block.
        return False


def _upright(picture: Any) -> Any:
    """The picture as viewers show it."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture) if _is_turned(picture) else picture


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            yield picture
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"Expected a readable picture in {path.name}; got {error}.") from error
