"""Rows for a trained model: its own, found again, and new ones, read as it knows its data.

Nothing is guessed anew. Columns are those that the run was trained on, by name; labels have the
numbers that they had; pictures have their channels where they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import NAMES, DataSet
from pyro_vaes.data.files import SUFFIXES, read, read_columns
from pyro_vaes.data.guesses import whole_again
from pyro_vaes.data.mixed.codec import Codec
from pyro_vaes.data.pictures import list_pictures, read_pictures
from pyro_vaes.data.rows import in_single
from pyro_vaes.data.splits import Split
from pyro_vaes.data.spreadsheets import SUFFIXES as TABLES
from pyro_vaes.data.spreadsheets import Columns, TableOptions
from pyro_vaes.data.tables import LABEL_KEYS, check_rows, read_labels, suffix_of
from pyro_vaes.runs.build import data_of
from pyro_vaes.runs.schema import DataConfig, RunConfig
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.older import writer
from pyro_vaes.vae import VAE, check_data

__all__ = [
    "NewRows",
    "checked",
    "condition_columns",
    "conditions_in",
    "element_columns",
    "element_names",
    "own_data",
    "read_new",
    "takes_y",
]

# Options that earlier versions ignored where data have no columns, bring their splits or have
# types, and that are refused now: runs of those versions may have them.
_UNUSED = (
    ("header", "label_column", "drop", "types", "val_fraction", "test_fraction"),
    ("data_kind", "num_levels", "image_shape"),
)


@dataclasses.dataclass(frozen=True)
class NewRows:
    """Rows that a model is applied to.

    Attributes:
        x: ``(n, *event_shape)``.
        y: labels ``(n,)``, conditions ``(n, columns)``, or None for a model without.
        carried: further columns of the rows, by name, which are copied to the output.
        notes: what there is to say.
        exact: of a table the numbers of x in the precision of its file, ``(n, D)``.
    """

    x: Tensor
    y: Tensor | None
    carried: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    exact: Any = None


# --- the run's own data ---------------------------------------------------------------------------


def own_data(config: RunConfig, run: Path, record: Mapping[str, Any]) -> DataSet:
    """The data that a run was trained on, from any folder.

    A relative path counts from the working folder or from a folder above the run's, whichever has
    the very data: they are known by their digest.

    Raises:
        InputError: beginning with what was expected, if they are not there any more.
    """
    complaint = f"Expected the data that {run} was trained on"
    found = None
    for place in _places(config, run):
        try:
            found = data_of(place, complaint)
        except DataError:
            continue
        if found.digest == record["data"]["digest"]:
            return found
    if found is None:
        data_of(config, complaint)  # Says why.
    raise RunFolderError(
        f"{complaint}; got others, as they are read now. (It was written by {writer(record)}.)"
    )


def _places(config: RunConfig, run: Path) -> Iterator[RunConfig]:
    """The configuration with each path at which its data may lie, as it stands and as used."""
    sources = [config.data.source]
    source = Path(config.data.source).expanduser()
    if config.data.source not in NAMES and not source.is_absolute():
        above = [folder / source for folder in run.resolve().parents]
        sources += [str(p) for p in above if p.exists() and p.resolve() != source.resolve()]
    for each in sources:
        data = dataclasses.replace(config.data, source=each)
        yield dataclasses.replace(config, data=data)
        for unused in _UNUSED:
            usual = {name: getattr(DataConfig(), name) for name in unused}
            if (other := dataclasses.replace(data, **usual)) != data:
                yield dataclasses.replace(config, data=other)


# --- new rows -------------------------------------------------------------------------------------


def read_new(
    path: Path,
    config: RunConfig,
    run: Path,
    record: Mapping[str, Any],
    label: Tensor | int | None = None,
) -> NewRows:
    """Reads rows that a run has not seen, by what it knows of its data.

    Args:
        path: a file of any kind that a run can be trained on, or a folder of pictures.
        config: the options of the run.
        run: its folder.
        record: what its weights say of its data.
        label: of all rows, or their conditions ``(columns,)``; they then need none of their own.

    Raises:
        DataError: for what cannot be read, or are no rows of this model.
    """
    facts = record["data"]
    labelled = label is None and takes_y(facts)
    carried: Mapping[str, Any] = {}
    notes: list[str] = []
    try:
        if suffix_of(path) in TABLES:
            x, labels, carried = _from_table(path, config, run, record, labelled, notes)
        elif path.is_dir() and suffix_of(path) not in SUFFIXES:
            x, labels, carried = _from_pictures(path, notes)
        else:
            x, labels = _from_arrays(path, facts, notes)
        rows = _shaped(x, facts, notes)
        y = _numbered(labels, facts, len(rows)) if labelled else None
    except DataError as error:
        reason = str(error).removeprefix(f"{path.expanduser()}: ")
        raise DataError(f"Invalid value for '--data' ({path}): {reason}") from error
    if label is not None:
        given = torch.as_tensor(label)
        y = given.expand(len(rows), *given.shape)
    return NewRows(rows, y, carried, tuple(notes), x if isinstance(x, np.ndarray) else None)


def _from_table(
    path: Path,
    config: RunConfig,
    run: Path,
    record: Mapping[str, Any],
    labelled: bool,
    notes: list[str],
) -> tuple[Any, Any, Mapping[str, Any]]:
    columns, codec = _columns(config, run, record), _codec(record["data"])
    if columns is None and codec is None:  # As many as the run's, in the same order.
        header = {"auto": None, "first-row": True, "none": False}[config.data.header]
        left_out = [*config.data.drop.split(","), config.data.group, config.data.weights]
        options = TableOptions(header, "", tuple(name for name in left_out if name != "none"))
        return read(path, None, options, notes)[0]["all"][0].numpy(), None, {}
    if columns is None:  # Called by their letters, above the first row.
        assert codec is not None
        names = tuple(column.name for column in codec.columns)
        return read_columns(path, Columns(names), False, codec, named=False)[0], None, {}
    given = conditions_in(record["data"])
    x, labels, carried = read_columns(path, columns, labelled, codec, given)
    seen = [c.name for c in given.columns] if given else [columns.label]
    unseen = [name for name in carried if not (labelled and name in seen)]
    if unseen:
        shown = ", ".join(map(repr, unseen[:10])) + ", ..." * (len(unseen) > 10)
        notes.append(f"Not seen by the model, and copied to the table if one is written: {shown}.")
    return x, labels, carried


def _columns(config: RunConfig, run: Path, record: Mapping[str, Any]) -> Columns | None:
    """The names of a run's columns; those of an earlier version's run are in its data alone."""
    facts = record["data"]
    if "columns" in facts:
        names = facts["columns"]
        return None if names is None else Columns(tuple(names), facts.get("label_column"))
    return own_data(config, run, record).columns


def _codec(facts: Mapping[str, Any]) -> Codec | None:
    """How the run's table is written as numbers, if its columns are of several kinds."""
    return Codec.of(facts["codec"]) if facts.get("codec") else None


def conditions_in(facts: Mapping[str, Any]) -> Codec | None:
    """How a run's conditions are written as numbers; None of a model without, or with one label.

    Args:
        facts: what the run knows of its data.
    """
    return Codec.of(facts["conditions"]) if facts.get("conditions") else None


def takes_y(facts: Mapping[str, Any]) -> bool:
    """Whether a run's model is given labels or conditions."""
    return bool(facts["num_labels"] or facts.get("conditions"))


def condition_columns(facts: Mapping[str, Any], y: Any) -> dict[str, Any]:
    """Conditions ``(n, columns)`` as columns, with their words and dates."""
    codec = conditions_in(facts)
    assert codec is not None
    return _written(codec, y)


def _from_pictures(folder: Path, notes: list[str]) -> tuple[Any, Any, Mapping[str, Any]]:
    paths, labels = list_pictures(folder.expanduser())
    x = read_pictures(folder.expanduser(), notes)["x"]
    names = [str(path.relative_to(folder.expanduser())) for path in paths]
    return x, labels or None, {"file": np.array(names)}


def _from_arrays(path: Path, facts: Mapping[str, Any], notes: list[str]) -> tuple[Any, Any]:
    """Rows and labels of a file of arrays; labels as they stand there."""
    pairs, _ = read(path)
    if "all" not in pairs:
        raise DataError("Expected arrays called x (and y); got splits.")
    if facts.get("columns"):
        notes.append("An array names no columns: they are taken in the order of the run's.")
    labels = None
    if suffix_of(path) == ".npz":
        with np.load(path.expanduser(), allow_pickle=False) as arrays:
            keys = [key for key in arrays if key.lower() in LABEL_KEYS and "x" in arrays]
            labels = arrays[keys[0]] if keys else None
    return pairs["all"][0], labels


def _shaped(x: Any, facts: Mapping[str, Any], notes: list[str]) -> Tensor:
    """Rows in the shape of the run's data, in single precision."""
    rows, shape = check_rows(x), tuple(facts["event_shape"])
    last = (*shape[1:], shape[0])  # Where pictures may have their channels.
    if facts["image_shape"] and len(shape) == 3 and rows.shape[1:] == last != shape:
        rows = rows.movedim(-1, 1).contiguous()
        notes.append("The pictures' channels, which stood last, were moved to the front.")
    if tuple(rows.shape[1:]) != shape:
        raise DataError(
            f"Expected rows of shape {shape}, as the run's are; got {tuple(rows.shape[1:])}."
        )
    rows = in_single(rows)
    if rows.is_floating_point() and bool(rows.isinf().any()):
        raise DataError("Expected numbers within the range of float32; got larger ones.")
    if facts.get("kind") in ("binary", "levels", "counts"):  # As the run's own rows are.
        rows = whole_again([Split(rows)], notes)[0].x
    return rows


def _numbered(labels: Any, facts: Mapping[str, Any], count: int) -> Tensor:
    """Labels with the numbers that they have in the run."""
    if facts.get("conditions"):
        if labels is None or np.ndim(labels) < 2:
            raise DataError(
                "Expected conditions of each row, in columns of a table; got none. (For all rows "
                "the same ones: --label.)"
            )
        return torch.as_tensor(labels)
    if labels is None:
        raise DataError(
            "Expected a label for each row of a conditional model; got none. (For all rows the "
            "same one: --label.)"
        )
    names = facts.get("label_names")
    if names:
        place = {name: i for i, name in enumerate(names)}
        words = [_word(label) for label in np.asarray(labels).tolist()]
        strange = [word for word in words if word not in place]
        if strange:
            raise DataError(
                f"Expected labels among {', '.join(names[:10])}{', ...' * (len(names) > 10)}; got "
                f"{strange[0]}."
            )
        return torch.tensor([place[word] for word in words])
    y = read_labels(labels, count)
    if int(y.max()) >= facts["num_labels"]:
        raise DataError(f"Expected labels in 0..{facts['num_labels'] - 1}; got {int(y.max())}.")
    return y


def _word(label: Any) -> str:
    """A label as its run names it: whole numbers, which a table may hold as 3.0, without point."""
    whole = isinstance(label, float) and label.is_integer()
    return str(int(label)) if whole else str(label)


def checked(rows: NewRows, vae: VAE, path: Path | None) -> NewRows:
    """The rows, if the model can take them.

    Raises:
        DataError: if it cannot: levels beyond its own, for instance.
    """
    try:
        check_data(vae, rows.x, rows.y)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"Invalid value for '--data' ({path}): {error}") from error
    return rows


def element_columns(facts: Mapping[str, Any], x: Any, exact: Any = None) -> dict[str, Any]:
    """Rows as columns: by their names where they have some, with their words, dates and rounding.

    Args:
        facts: what a run knows of its data.
        x: an array ``(n, *event_shape)``.
        exact: what stands in the place of x, unrounded, where it is not NaN; None for nowhere.
    """
    table = np.asarray(x).reshape(len(x), -1)
    codec = _codec(facts)
    if codec is not None:
        if exact is not None:
            codec, table = codec.finer(exact), np.where(np.isnan(exact), table, exact)
        return _written(codec, table)
    columns: list[Any] = list(table.T)
    if exact is not None:  # Each number with the digits of its own precision.
        pairs = zip(columns, exact.T, strict=True)
        columns = [[e if e == e else c for c, e in zip(*pair, strict=True)] for pair in pairs]
    return dict(zip(element_names(facts), columns, strict=True))


def _written(codec: Codec, table: Any) -> dict[str, Any]:
    """Rows as columns with their words, dates and rounding, as a file holds them."""
    frame, found = codec.rows(table), {}
    for one in codec.coded:
        column = frame[one.column.name]
        column = column if one.date is None else one.date.text(column)
        found[one.column.name] = column.to_numpy(dtype=object, na_value=None)
    return found


def element_names(facts: Mapping[str, Any]) -> list[str]:
    """A name for each element of a datum: those of its columns, or else numbers."""
    if facts.get("columns"):
        return list(facts["columns"])
    return [f"x{i}" for i in range(int(np.prod(facts["event_shape"])))]
