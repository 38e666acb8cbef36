"""Loads the data that the options of a run name."""

from __future__ import annotations

from typing import Any

from pyro_vaes.data.dataset import NAMES, DataSet, load_data
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import GREY_IMAGES, RunConfig

__all__ = ["load_for"]


def load_for(config: RunConfig) -> DataSet:
    """Loads the data of a configuration.

    Raises:
        DataError: see :func:`.load_data`.
        ConfigError: for an option that does not apply to the data.
    """
    options, given = config.data, _own_options(config)
    if options.source in NAMES:
        for name, value in given.items():
            if value != _own_options(RunConfig())[name]:
                flag = {"seed": "split-seed"}.get(name, name.replace("_", "-"))
                raise ConfigError(
                    f"Invalid value for '--{flag}': expected it only with your own data; "
                    f"got it with --data {options.source}."
                )
        given = {}
    known = options.binarization != "auto" and options.source in GREY_IMAGES
    binarization: Any = options.binarization if known else None
    return load_data(options.source, root=options.root, binarization=binarization, **given)


def _own_options(config: RunConfig) -> dict[str, Any]:
    """The options of :func:`.load_data` for data of the user's own."""
    options = config.data
    return {
        "kind": None if options.data_kind == "auto" else options.data_kind,
        "num_levels": options.num_levels or None,
        "image_shape": _shape(options.image_shape),
        "header": {"auto": None, "first-row": True, "none": False}[options.header],
        "label_column": {"auto": None, "none": ""}.get(options.label_column, options.label_column),
        "drop": () if options.drop == "none" else tuple(options.drop.split(",")),
        "types": _types(options.types),
        "missing": options.missing,
        "dependent": options.dependent,
        "group": None if options.group == "none" else options.group,
        "weights": None if options.weights == "none" else options.weights,
        "split": options.split_by,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction,
        "seed": options.split_seed,
    }


def _types(text: str) -> dict[str, str]:
    if text == "auto":
        return {}
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    if not all(name and kind for name, _, kind in pairs):
        raise ConfigError(
            f"Invalid value for '--types': expected NAME=KIND,NAME=KIND or auto; got {text!r}."
        )
    return {name: kind for name, _, kind in pairs}


def _shape(text: str) -> tuple[int, ...] | None:
    if text in ("auto", "none"):
        return None if text == "auto" else ()
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isascii() and size.isdecimal() for size in sizes):
        raise ConfigError(
            f"Invalid value for '--image-shape': expected C,H,W, none or auto; got {text!r}."
        )
    return tuple(map(int, sizes))
