"""Weights and checkpoints on disk: whole or not at all, and never executable.

Everything is a safetensors file with one metadata entry, a JSON record that says what the tensors
are and carries a digest over them and itself. Equal weights give equal bytes; a truncated, altered
or foreign file is refused in one line. Files are written beside their place and moved into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from pyro_vaes.core.described import SpecError, describe, rebuild
from pyro_vaes.core.yaml import UniqueKeyLoader
from pyro_vaes.storage.files import CONFIG, RunFolderError
from pyro_vaes.storage.tensors import fill, named_tensors, read_tensors, write_tensors
from pyro_vaes.vae import VAE

__all__ = ["load", "load_record", "save"]


WEIGHTS = "weights.safetensors"


def save(vae: VAE, folder: str | Path, record: Mapping[str, Any] | None = None) -> Path:
    """Writes a VAE's weights, and how to rebuild it, to ``folder/weights.safetensors``.

    A VAE with modules of the user's own is written without the latter; see :func:`load`.

    Args:
        vae: the model.
        folder: created if absent.
        record: JSON-ready facts to keep beside the weights (a configuration, say).

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
    """Reads a VAE that :func:`.save` or a training run wrote. Nothing from the folder is executed.

    Args:
        folder: the run folder.
        into: a VAE to fill, needed if it has modules of the user's own.

    Returns:
        ``into``, or a new VAE in evaluation mode on the CPU.

    Raises:
        RunFolderError: if the folder or file is missing, damaged, or does not fit ``into``; if a
            training run wrote it under another configuration than that in the folder.
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
        try:
            with torch.random.fork_rng():  # Building draws weights only to overwrite them.
                vae = cast(VAE, rebuild(record["architecture"]))
        except SpecError as error:
            raise RunFolderError(f"{path}: {error}") from error
        if not isinstance(vae, VAE):
            raise RunFolderError(f"Expected a VAE in {path}; got {type(vae).__name__}.")
        floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
        vae.to(floating[0] if floating else torch.get_default_dtype()).eval()
    fill(vae, tensors, path)
    return vae


def load_record(folder: str | Path) -> dict[str, Any]:
    """The record that stands beside the weights of a run folder, checked like the weights."""
    record = read_tensors(Path(folder) / WEIGHTS)[1]
    _check_belongs(Path(folder), record)
    return record


def _check_belongs(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuses weights that a training run wrote under another configuration than the folder's."""
    path = folder / CONFIG
    if "digest" not in record or not path.exists():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"Expected a readable file {path}; got {error}.") from error
    trained = str(record.get("config"))
    if text != trained and _options(text) != _options(trained, None):
        raise RunFolderError(
            f"Expected {folder / WEIGHTS} and {CONFIG} of one run; got weights that were trained "
            "under other options. (Was a file altered or moved? Resuming the run puts it right.)"
        )


def _options(text: str, unread: Any = ()) -> Any:
    """The options in a text as plain flat data; ``unread`` if the text holds none."""
    try:
        values = yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return unread
    if not isinstance(values, dict):
        return unread
    flat = [v for value in values.values() for v in (value if isinstance(value, list) else [value])]
    # Nested values are no options, and through aliases could take for ever to compare.
    return unread if any(isinstance(v, (dict, list, set, tuple)) for v in flat) else values
