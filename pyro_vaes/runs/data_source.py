"""From the options of a run to its data."""

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
        ConfigError: for an option that does not go with the data.
    """
    told, given = config.data, _own_options(config)
    if told.source in NAMES:
        for name, value in given.items():
            if value != _own_options(RunConfig())[name]:
                flag = {"seed": "split-seed"}.get(name, name.replace("_", "-"))
                raise ConfigError(
                    f"Invalid value for '--{flag}': expected it with data of your own only; "
                    f"got it with --data {told.source}."
                )
        given = {}
    known = told.binarization != "auto" and told.source in GREY_IMAGES
    binarization: Any = told.binarization if known else None
    return load_data(told.source, root=told.root, binarization=binarization, **given)


def _own_options(config: RunConfig) -> dict[str, Any]:
    """The options of :func:`.load_data` for data of the user's own."""
    told = config.data
    return {
        "kind": None if told.data_kind == "auto" else told.data_kind,
        "num_levels": told.num_levels or None,
        "image_shape": _shape(told.image_shape),
        "header": {"auto": None, "first-row": True, "none": False}[told.header],
        "label_column": {"auto": None, "none": ""}.get(told.label_column, told.label_column),
        "drop": () if told.drop == "none" else tuple(told.drop.split(",")),
        "val_fraction": told.val_fraction,
        "test_fraction": told.test_fraction,
        "seed": told.split_seed,
    }


def _shape(text: str) -> tuple[int, ...] | None:
    if text in ("auto", "none"):
        return None if text == "auto" else ()
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"Invalid value for '--image-shape': expected C,H,W, none or auto; got {text!r}."
        ) from error
