"""Weights and checkpoints on disk: whole or not at all, and never executable.

Everything is a safetensors file with one metadata entry, a JSON record that says what the tensors
are and holds a digest over them and itself. Equal weights give equal bytes; a truncated, altered or
foreign file is refused in one line. Files are written under a temporary name and then moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pyro_vaes.core.bounded import Bounded
from pyro_vaes.core.described import SpecError, describe, rebuild
from pyro_vaes.core.yaml import UniqueKeyLoader
from pyro_vaes.storage.files import CONFIG, MAY_DIFFER, RunFolderError
from pyro_vaes.storage.older import up_to_date, writer
from pyro_vaes.storage.tensors import fill, named_tensors, read_tensors, write_tensors
from pyro_vaes.vae import VAE

__all__ = ["load", "load_record", "save"]


WEIGHTS = "weights.safetensors"

# Limits of building: some copies of the weights (masks and the like), some operations for each.
_BYTES, _TIMES = 2**26, 16
_OPERATIONS, _SPARE = 200, 20


def save(vae: VAE, folder: str | Path, record: Mapping[str, Any] | None = None) -> Path:
    """Writes a VAE's weights, and how to rebuild it, to ``folder/weights.safetensors``.

    A VAE with your own modules is written without the latter; see :func:`load`.

    >>> pv.save(vae, "runs/first", {"learning_rate": 1e-3}).name
    'weights.safetensors'

    Args:
        vae: the model.
        folder: created if absent.
        record: JSON-ready facts to store with the weights (such as a configuration).

    Returns:
        The file's path.
    """
    try:
        architecture = describe(vae)
    except SpecError:
        architecture = None
    path = Path(folder) / WEIGHTS
    write_tensors(path, named_tensors(vae), {**(record or {}), "architecture": architecture})
    return path


def load(folder: str | Path, into: VAE | None = None) -> VAE:
    """Reads a VAE that :func:`.save` or a training run wrote, without executing anything from it.

    >>> path = pv.save(vae, "runs/first")
    >>> copy = pv.load("runs/first")
    >>> torch.equal(vae.decode(torch.zeros(2)), copy.decode(torch.zeros(2)))
    True

    Args:
        folder: the run folder.
        into: a VAE to fill, needed if it has your own modules.

    Returns:
        ``into``, or a new VAE in evaluation mode on the CPU; weights in half precision, too coarse
        for densities, are converted to float32.

    Raises:
        RunFolderError: if the folder or file is missing, damaged, or does not fit ``into``; if a
            training run wrote it under another configuration than that in the folder; if a version
            wrote it that this one cannot read (the message names it).
    """
    path = Path(folder) / WEIGHTS
    tensors, record = read_tensors(path)
    _check_belongs(Path(folder), record)
    vae = into
    if vae is None:
        if record.get("architecture") is None:
            raise RunFolderError(
                f"Expected into=vae to load {path}: it holds modules that are not pyro_vaes' own."
            )
        vae = _rebuilt(record, tensors, path)
        vae.to(_dtype(tensors)).eval()
    fill(vae, up_to_date(vae, tensors), f"{path}, by {writer(record)}")
    return vae


def _rebuilt(record: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> VAE:
    """The VAE that a file describes, built within limits given by its tensors."""
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    bounds = Bounded(_BYTES + _TIMES * held, _OPERATIONS * (len(tensors) + _SPARE))
    try:
        with torch.random.fork_rng(), bounds:  # Building draws weights only to overwrite them.
            vae = rebuild(record["architecture"])
    except SpecError as error:
        raise RunFolderError(f"{path}, by {writer(record)}: {error}") from error
    if not isinstance(vae, VAE):
        raise RunFolderError(f"Expected a VAE in {path}; got {type(vae).__name__}.")
    return vae


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The type that holds all weights exactly and is fit for densities: at least float32."""
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if not floating:
        return torch.get_default_dtype()
    return torch.float64 if torch.float64 in floating else torch.float32


def load_record(folder: str | Path) -> dict[str, Any]:
    """The record stored with the weights of a run folder, checked like the weights."""
    record = read_tensors(Path(folder) / WEIGHTS)[1]
    _check_belongs(Path(folder), record)
    return record


def _check_belongs(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuses weights that a training run wrote under another configuration than the folder's."""
    path = folder / CONFIG
    if "digest" not in record:
        return
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"Expected a readable file {path}; got {error}.") from error
    trained = str(record.get("config"))
    if text != trained and not _resumes(_options(trained), _options(text)):
        raise RunFolderError(
            f"Expected {folder / WEIGHTS} and {CONFIG} of one run; got weights that were trained "
            "under other options. (Was a file altered or moved? Resuming the run puts it right.)"
        )


def _resumes(trained: dict[Any, Any] | None, options: dict[Any, Any] | None) -> bool:
    """Whether a run with these options resumes one that was trained with those.

    A kill may come after the options of a longer run are written and before its weights are.
    """
    if trained is None or options is None:
        return False
    names = (trained.keys() | options.keys()) - {*MAY_DIFFER}
    if any(trained.get(name) != options.get(name) for name in names):
        return False
    before, now = trained.get("epochs"), options.get("epochs")
    return isinstance(before, int) and isinstance(now, int) and before <= now


def _options(text: str) -> dict[Any, Any] | None:
    """The options in a text as plain flat data; None if the text holds none."""
    try:
        values = yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    flat = [v for value in values.values() for v in (value if isinstance(value, list) else [value])]
    # Nested values are no options, and with aliases comparing them could take forever.
    return None if any(isinstance(v, (dict, list, set, tuple)) for v in flat) else values
