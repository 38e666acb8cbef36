"""Named tensors in safetensors files, with equal bytes for equal contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pyro_vaes._version import __version__
from pyro_vaes.storage.files import RunFolderError, unreadable, write_bytes

Groups = dict[str, dict[str, Tensor]]
_ENTRY = "pyro_vaes"
_FORMAT = 1


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, a shared one once, under the first of its names."""
    state: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        state.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in state.values()}


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object = "the file") -> None:
    """Copies tensors into a module of exactly these names and shapes.

    A part may name ``optional_buffers``, which the tensors may lack or hold in another shape: they
    are set accordingly.

    Raises:
        RunFolderError: if the tensors do not fit.
    """
    own, optional = named_tensors(module), _optional(module)
    odd = (own.keys() ^ tensors.keys()) - optional.keys()
    if odd:
        raise RunFolderError(
            f"Expected the tensors of this VAE in {source}; got others "
            f"({min(odd)!r} is in one only)."
        )
    for name, tensor in own.items():
        if name not in optional and tensor.shape != tensors[name].shape:
            raise RunFolderError(
                f"Expected {name!r} of shape {tuple(tensor.shape)} in {source}; "
                f"got {tuple(tensors[name].shape)}."
            )
        if name in tensors and _kind(tensor) != _kind(tensors[name]):
            raise RunFolderError(
                f"Expected {name!r} of a type like {tensor.dtype} in {source}; "
                f"got {tensors[name].dtype}."
            )
    for name, (part, key) in optional.items():
        given, like = tensors.get(name), next(part.parameters())
        if given is None or name not in own or own[name].shape != given.shape:
            setattr(part, key, None if given is None else given.to(like, copy=True))
    for name, tensor in named_tensors(module).items():
        tensor.copy_(tensors[name])


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _optional(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The buffers that a file may lack: by name, their module and their name in it."""
    return {
        f"{name}.{key}" if name else key: (part, key)
        for name, part in module.named_modules()
        for key in getattr(part, "optional_buffers", ())
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-ready record to one file, whole or not at all."""
    # Clones: safetensors refuses views of one storage, and a later step must not reach the file.
    on_cpu = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    facts = {**record, "format": _FORMAT, "version": __version__}
    text = json.dumps(facts, sort_keys=True)
    entry = json.dumps({"record": text, "digest": _digest(text, on_cpu)}, sort_keys=True)
    write_bytes(path, safetensors.torch.save(on_cpu, metadata={_ENTRY: entry}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote.

    Raises:
        RunFolderError: if the file is missing, foreign, truncated or altered.
    """
    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, so that the file is not mapped when a later write replaces it.
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


def _check_readable(path: Path) -> None:
    """Refuses a file that cannot be opened, apart from errors in its contents."""
    try:
        with path.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise RunFolderError(
            f"Expected a run folder with {path.name}; found none at {path}."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


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
    """An optimiser's state as ``index/key`` tensors, without its options (learning rate etc.)."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimiser of the same parameters the state of :func:`optimizer_tensors`.

    Raises:
        ValueError: if it is the state of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    # PyTorch ignores states without a parameter.
    if not state.keys() <= {index for group in groups for index in group["params"]}:
        raise ValueError("Expected the state of this optimiser; got that of more parameters.")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, by name."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # NumPy lacks bfloat16: hash the bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
