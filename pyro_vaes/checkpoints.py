"""Weights and checkpoints on disk: whole or not at all, and never executable.

Everything is a safetensors file with one metadata entry, a JSON record that says what the tensors
are and carries a digest over them and itself. Equal weights give equal bytes; a truncated, altered
or foreign file is refused in one line. Files are written beside their place and moved into it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pyro_vaes.config import CONFIG, ConfigError, read_config, to_yaml
from pyro_vaes.folders import RunFolderError, write_bytes
from pyro_vaes.spec import SpecError, describe, rebuild
from pyro_vaes.vae import VAE

__all__ = ["RunFolderError", "load", "load_record", "save"]

Groups = dict[str, dict[str, Tensor]]

WEIGHTS = "weights.safetensors"
_ENTRY = "pyro_vaes"
_FORMAT = 1


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
    if "digest" not in record or not (folder / CONFIG).exists():
        return
    try:
        config = read_config(folder)
    except ConfigError as error:
        raise RunFolderError(str(error)) from error
    if record.get("config") != to_yaml(config):
        raise RunFolderError(
            f"Expected {folder / WEIGHTS} and {CONFIG} of one run; got weights that were trained "
            "under other options. (Was a file altered or moved? Resuming the run puts it right.)"
        )


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, a shared one once, under the first of its names."""
    state: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        state.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in state.values()}


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object = "the file") -> None:
    """Copies tensors into a module of exactly these names and shapes.

    Raises:
        RunFolderError: if they do not fit.
    """
    own = named_tensors(module)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[0]
        raise RunFolderError(
            f"Expected the tensors of this VAE in {source}; got others ({odd!r} is in one only)."
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise RunFolderError(
                f"Expected {name!r} of shape {tuple(tensor.shape)} in {source}; "
                f"got {tuple(tensors[name].shape)}."
            )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-ready record to one file, whole or not at all."""
    # Clones: safetensors refuses views of one storage, and a later step must not reach the file.
    on_cpu = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    text = json.dumps({**record, "format": _FORMAT}, sort_keys=True)
    entry = json.dumps({"record": text, "digest": _digest(text, on_cpu)}, sort_keys=True)
    write_bytes(path, safetensors.torch.save(on_cpu, metadata={_ENTRY: entry}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote.

    Raises:
        RunFolderError: if the file is missing, not one of ours, truncated or altered.
    """
    if not path.is_file():
        raise RunFolderError(f"Expected a run folder with {path.name}; found none at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, so that the file is not mapped while a later write replaces it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise RunFolderError(
            f"Expected a whole safetensors file at {path}; got a truncated, altered or foreign one."
        ) from error
    try:
        entry = json.loads(metadata[_ENTRY])
        text, digest = entry["record"], entry["digest"]
        record = json.loads(text)
        version = record["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"Expected a file that pyro_vaes wrote at {path}; got one without its record."
        ) from error
    if digest != _digest(text, tensors):
        raise RunFolderError(f"Expected {path} as it was written; got an altered file.")
    if version != _FORMAT:
        raise RunFolderError(
            f"Expected format {_FORMAT} in {path}; got {version!r} (another version?)."
        )
    return tensors, record


def write_groups(
    path: Path, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]
) -> None:
    """Writes several sets of named tensors, as ``group/name``, to one file."""
    tensors = {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
    write_tensors(path, tensors, record)


def read_groups(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Reads what :func:`write_groups` wrote; empty groups are absent.

    Raises:
        RunFolderError: see :func:`read_tensors`.
    """
    tensors, record = read_tensors(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, slash, name = key.partition("/")
        if not slash:
            raise RunFolderError(f"Expected a checkpoint at {path}; got weights.")
        groups.setdefault(group, {})[name] = tensor
    return groups, record


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as ``index/key`` tensors; its options are the caller's to repeat."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimiser of the same parameters the state of :func:`optimizer_tensors`.

    Raises:
        ValueError: if it is the state of others.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    # PyTorch passes over a state without its parameter.
    if not state.keys() <= {index for group in groups for index in group["params"]}:
        raise ValueError("Expected the state of this optimiser; got that of more parameters.")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, by name."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class BackgroundWriter:
    """Runs one write at a time in a thread; leaving the context waits for the last.

    Hashing and writing release the interpreter, so that training goes on meanwhile. A failed write
    is raised at the next one, or on leaving.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Starts a write, once the one before has ended."""
        self.wait()

        def run() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        # Not a daemon: an interpreter that exits waits for the file to be whole.
        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the write under way, and raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *details: object) -> None:
        self.wait()


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # NumPy lacks bfloat16: look at the bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
