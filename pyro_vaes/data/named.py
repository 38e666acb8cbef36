"""Data sets known by name: the embedded digits, and those of torchvision."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.groups import shares
from pyro_vaes.data.tables import Pair, _reason

__all__ = ["read_digits", "read_omniglot", "read_pixels", "read_torchvision"]

# The last rows of torchvision's training files are kept for validation.
_VALIDATION_ROWS = 10_000
# Of 32,460 images, as many for testing and validation as in the literature on VAEs.
_OMNIGLOT_SHARES = (8_070 / 32_460, 1_345 / 32_460)


def read_digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits of 8x8 pixels that scikit-learn carries, in file order; levels 0..16.

    Alpaydin and Kaynak, "Optical recognition of handwritten digits" (UCI, 1998), its test part.
    """
    # The table is read directly where it can be: importing scikit-learn takes a second.
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return torch.from_numpy(table[:, :-1].copy()), torch.from_numpy(table[:, -1]).long()
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x), torch.from_numpy(y)


def read_pixels(name: str, root: str | Path) -> tuple[list[Pair], tuple[str, ...] | None]:
    """The images and labels of three splits, bytes, and the names of the classes, if known.

    Raises:
        DataError: see :func:`read_torchvision`.
    """
    if name == "omniglot":
        x, y, names = read_omniglot(root)
        num_test, num_val = (round(len(x) * share) for share in _OMNIGLOT_SHARES)
        index = shares(len(x), num_test, num_val, seed=0)
        return [(x[i], y[i]) for i in index], names
    (x, y), test = read_torchvision(name, root)
    cut = len(x) - _VALIDATION_ROWS
    return [(x[:cut], y[:cut]), (x[cut:], y[cut:]), test], None


def read_torchvision(name: str, root: str | Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """The training and test files of a set of torchvision's, downloaded if absent.

    Args:
        name: ``mnist``, ``fashion_mnist`` or ``cifar10``.
        root: the folder that holds, or will hold, torchvision's folders.

    Returns:
        ``(x, y)`` of the training file and of the test file, x uint8, ``(n, 28, 28)`` or
        ``(n, 3, 32, 32)``.

    Raises:
        DataError: if the files are absent and cannot be fetched, or are damaged.
    """
    from torchvision import datasets

    root = Path(root).expanduser()
    if name == "cifar10":
        return _cifar(root)
    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    folder = root / kind.__name__ / "raw"
    new_folders = [path for path in (folder, folder.parent, root) if not path.exists()]
    try:
        train, test = (kind(root, train=part, download=True) for part in (True, False))
    # Downloading and parsing fail in many ways; each has the same two remedies.
    except Exception as error:
        for path in new_folders:
            with contextlib.suppress(OSError):  # kept unless empty
                path.rmdir()
        reason = _reason(error)
        if len(list(folder.glob("*-ubyte"))) == len(kind.resources):
            raise DataError(
                f"Expected the files of {name} in {folder}; got damaged ones ({reason}). "
                "Delete them to fetch them again."
            ) from error
        raise DataError(
            f"Expected the files of {name} in {folder}, or a network to fetch them from; got "
            f"neither ({reason}). Connect, or put the four ...-ubyte files there."
        ) from error
    return (train.data, train.targets), (test.data, test.targets)


def _cifar(root: Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """The files of CIFAR-10: Krizhevsky, "Learning multiple layers of features" (2009)."""
    from torchvision import datasets

    folder, archive = root / "cifar-10-batches-py", "cifar-10-python.tar.gz"
    with _fetching("cifar10", folder, f"unpack {archive} in {root}"):
        train, test = (datasets.CIFAR10(root, train=part, download=True) for part in (True, False))
    first, second = (
        (torch.from_numpy(part.data).movedim(-1, 1).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return first, second


def read_omniglot(root: str | Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The 32,460 characters of Omniglot, ink white on black, made smaller by averaging.

    Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
    induction" (2015): 19,280 background and 13,180 evaluation images of 105x105 pixels, read from
    torchvision's archives in the order of their names. A pixel of the result is the mean over
    3.75x3.75 pixels, the cut ones weighted by their area.

    Args:
        root: the folder that holds, or will hold, torchvision's ``omniglot-py``.

    Returns:
        x uint8, ``(32460, 28, 28)``; the alphabets, ``(32460,)``; and their 50 names.

    Raises:
        DataError: if the files are absent and cannot be fetched.
    """
    from torchvision import datasets

    folder = Path(root).expanduser() / "omniglot-py"
    archives = [folder / f"images_{part}.zip" for part in ("background", "evaluation")]
    with _fetching("omniglot", folder, f"put {' and '.join(a.name for a in archives)} there"):
        for background in (True, False):
            datasets.Omniglot(folder.parent, background=background, download=True)
    found = [pair for archive in archives for pair in _characters(archive)]
    names = sorted({name for name, _ in found})
    number = {name: i for i, name in enumerate(names)}
    x = torch.from_numpy(np.stack([image for _, image in found]))
    return x, torch.tensor([number[name] for name, _ in found]), tuple(names)


def _characters(archive: Path) -> Iterator[tuple[str, Any]]:
    """The alphabet and the image of each character, in the order of the file names."""
    from PIL import Image

    # The mean over 15 quarters of a pixel: Pillow's box filter takes a cut pixel whole or not.
    means = np.repeat(np.eye(28) / 15, 15, 1).reshape(28, 105, 4).sum(-1)
    # Torchvision lists folders in the order of the file system, which differs between machines.
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            if name.startswith(archive.stem + "/") and name.endswith(".png"):
                ink = 255.0 - np.asarray(Image.open(io.BytesIO(files.read(name))).convert("L"))
                yield name.split("/")[1], np.rint(means @ ink @ means.T).astype(np.uint8)


@contextlib.contextmanager
def _fetching(name: str, folder: Path, remedy: str) -> Iterator[None]:
    """Turns what goes wrong into one line, and leaves no new empty folder behind."""
    new = [path for path in (folder, folder.parent) if not path.exists()]
    try:
        yield
    # Downloading and unpacking fail in many ways; all have one remedy.
    except Exception as error:
        for path in new:
            with contextlib.suppress(OSError):  # kept unless empty
                path.rmdir()
        raise DataError(
            f"Expected the files of {name} in {folder}, or a network to fetch them from; got "
            f"neither ({_reason(error)}). Connect, or {remedy}."
        ) from error
