"""Data sets known by name: the embedded digits, and those of torchvision."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.tables import _reason

__all__ = ["read_digits", "read_torchvision"]


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

    new = not root.exists()
    try:
        train, test = (datasets.CIFAR10(root, train=part, download=True) for part in (True, False))
    # Downloading and unpacking fail in many ways; all have one remedy.
    except Exception as error:
        if new:
            with contextlib.suppress(OSError):  # kept unless empty
                root.rmdir()
        raise DataError(
            f"Expected the files of cifar10 in {root / 'cifar-10-batches-py'}, or a network to "
            f"fetch them from; got neither ({_reason(error)}). Connect, or unpack "
            f"cifar-10-python.tar.gz in {root}."
        ) from error
    first, second = (
        (torch.from_numpy(part.data).movedim(-1, 1).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return first, second
