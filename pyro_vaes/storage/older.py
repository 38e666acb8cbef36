"""Converts weights that an earlier version wrote to those of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vaes.storage.tensors import named_tensors

__all__ = ["up_to_date", "writer"]


_UNITS = {"center": torch.zeros_like, "spread": torch.ones_like}


def writer(record: Mapping[str, Any]) -> str:
    """The version that wrote some weights, in words."""
    return f"pyro_vaes {record.get('version', '0.1.0, before weights held their version')}"


def up_to_date(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, from those of any version; unknown ones are unchanged.

    In earlier versions parts had no units of the data: elements had centre 0 and spread 1, encoders
    one map for all elements, and the log of a scale was learned at the networks' pace.
    """
    own, found = named_tensors(module), dict(tensors)
    for name in own.keys() - tensors.keys():
        part, _, last = name.rpartition(".")
        if last not in _UNITS:
            continue
        found[name] = _UNITS[last](own[name])
        pace, log_scale = getattr(module.get_submodule(part), "PACE", None), f"{part}.log_scale"
        if pace is not None and last == "center" and log_scale in tensors:
            found[log_scale] = tensors[log_scale] / pace
    for name in own.keys() & tensors.keys():
        if name.endswith((".center", ".half_range")) and not tensors[name].dim():
            found[name] = tensors[name].expand_as(own[name])
    return found
