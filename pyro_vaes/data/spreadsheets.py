"""Tables: text files with any separator, compressed or not, parquet files, and data frames.

Pandas reads them. Guesses (the separator, a header, an index, the column of labels) are noted and
reported; options override them. Errors name a cell as a spreadsheet does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.cells import (
    check_cells,
    gaps_of,
    letter_of,
    numbers_in_words,
    numbers_of,
    weights_of,
)
from pyro_vaes.data.mixed.codec import Codec, codec_of
from pyro_vaes.data.mixed.conditions import (
    are_conditions,
    condition_rows,
    conditions_of,
    labels_asked,
)
from pyro_vaes.data.mixed.lines import read_text

__all__ = [
    "SUFFIXES",
    "Columns",
    "TableOptions",
    "pick_columns",
    "read_frame",
    "read_table",
    "without_index",
]


SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
# Names of columns of labels: always, and if they hold classes.
_LABELS, _PERHAPS_LABELS = ("label", "y"), ("labels", "target", "targets", "class", "species")
_INDEX = ("index", "id", "row", "rowid", "row_id", "row_names", "rownames")
# Whole numbers are classes up to this many, strings up to half the rows.
_MOST_CLASSES = 30


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table by name.

    Attributes:
        names: those that make a row, in order.
        label: the one that holds the labels, or None.
    """

    names: tuple[str, ...]
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Overrides of guesses about a table.

    Attributes:
        header: whether the first row holds the names of the columns; None to detect it.
        label_column: the name of the column of labels; ``""`` for none, None to detect it;
            several names, also with commas between, for columns of conditions.
        drop: names of columns to leave out.
        types: kinds of columns by name; any makes it a table of columns of several kinds.
        table: whether it is one; None to detect it: a column of words makes it one.
        group: the name of a column whose values say which rows stay together.
        weights: the name of a column by which rows count in training.
        found: takes the columns of what was read, where they have names.
        extras: takes the ``codec`` of a table of several kinds, that of ``conditions``, and the
            ``group`` and ``weights`` of rows.
    """

    header: bool | None = None
    label_column: str | Sequence[str] | None = None
    drop: tuple[str, ...] = ()
    types: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    table: bool | None = None
    group: str | None = None
    weights: str | None = None
    found: list[Columns] = dataclasses.field(default_factory=list, compare=False)
    extras: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def check_used(self, source: Any) -> None:
        """Refuses names of columns of a source that is no table, and a header of what has none."""
        is_path = isinstance(source, (str, Path))
        ends = str(source).lower() if is_path else ""
        is_table = ends.endswith(SUFFIXES) or hasattr(source, "iloc")
        is_text = ends.endswith(SUFFIXES) and not ends.endswith(".parquet")
        got = Path(source).name if is_path else type(source).__name__
        for name in ("label_column", "drop", "types"):
            if getattr(self, name) not in (None, (), {}) and not is_table:
                raise DataError(
                    f"Expected a table with {name} (a text or .parquet file, or a data frame); got "
                    f"{got}."
                )
        if self.header is not None and not is_text:
            raise DataError(f"Expected a text file of rows with header; got {got}.")


def read_table(path: Path, options: TableOptions, notes: list[str]) -> tuple[Any, bool]:
    """Reads a text file of rows, or a ``.parquet`` file.

    Args:
        path: the file.
        options: overrides of guesses.
        notes: collects a sentence for each guess.

    Returns:
        A pandas ``DataFrame`` whose index counts the lines, and whether its columns have names.
    """
    if path.suffix.lower() != ".parquet":
        return read_text(path, options.header, notes)
    import pandas as pd

    try:
        return without_index(pd.read_parquet(path), notes), True
    except ImportError as error:
        raise DataError(
            "Expected a library that reads parquet files; got none. Run pip install pyarrow."
        ) from error


def without_index(frame: Any, notes: list[str]) -> Any:
    """A frame whose rows are counted from 0; an index with a name was left out, which is noted."""
    names = [name for name in frame.index.names if name is not None]
    if names:
        notes.append(f"The index of the frame, {', '.join(map(repr, names))}, was left out.")
    return frame.reset_index(drop=True)


def read_frame(
    frame: Any, options: TableOptions, notes: list[str], named: bool = True
) -> dict[str, Any]:
    """Reads a data frame: ``x``, an array of numbers, and perhaps ``y``, labels of any kind.

    Args:
        frame: a pandas ``DataFrame``; its index counts the lines.
        options: overrides of guesses.
        notes: collects a sentence for each guess.
        named: whether the columns have names of their own.

    Raises:
        DataError: naming the first cell that is no number.
    """
    letters = list(map(letter_of, range(frame.shape[1])))
    names = [str(name) for name in frame.columns] if named else letters
    options = dataclasses.replace(options, label_column=labels_asked(options.label_column, names))
    _check_named(options, names)
    if named:
        _check_once(names, letters, options.drop)
    left_out = (*options.drop, options.group, options.weights)
    dropped = {i for i, name in enumerate(names) if name in left_out}
    if named:
        dropped |= _indices(frame, names, dropped, options, notes)
    if options.label_column and not named:
        raise DataError(
            "Expected a first row of names in a table with a column of labels, "
            f"{options.label_column[0]!r}; got none."
        )
    labels = _labels(frame, names, dropped, options, notes) if named else []
    given = frame.iloc[:, labels].set_axis([names[i] for i in labels], axis=1)
    conditions = bool(options.label_column) and are_conditions(given, options.types)
    kept = [i for i in range(len(names)) if i not in dropped and i not in labels]
    if not len(frame) or not kept:
        raise DataError(f"Expected rows with numbers in them; got {len(frame)} of {len(kept)}.")
    if options.group is not None:
        options.extras["group"] = frame.iloc[:, names.index(options.group)].to_numpy()
    if options.weights is not None:
        column = frame.iloc[:, names.index(options.weights)]
        options.extras["weights"] = weights_of(column, options.weights)
    places = [f"column {names[i]!r} ({letters[i]})" if named else letters[i] for i in kept]
    places = [place if named else f"column {place}" for place in places]
    for i, place in zip(kept, places, strict=True):
        check_cells(frame.iloc[:, i], place)
    chosen = frame.iloc[:, kept].set_axis([names[i] for i in kept], axis=1)
    chosen = chosen.apply(numbers_in_words)
    types = {n: kind for n, kind in options.types.items() if not conditions or n not in given}
    if _is_mixed(chosen, options.table, types):
        codec = options.extras["codec"] = codec_of(chosen, types, notes)
        found: dict[str, Any] = {"x": codec.numbers(chosen)}
    else:
        pairs = zip(kept, places, strict=True)
        found = {"x": np.stack([numbers_of(frame.iloc[:, i], p) for i, p in pairs], axis=1)}
    if named:
        of_labels = names[labels[0]] if labels and not conditions else None
        in_row = [names[i] for i in kept]
        if "codec" in options.extras:
            in_row = [column.name for column in options.extras["codec"].columns]
        options.found.append(Columns(tuple(in_row), of_labels))
    if conditions:
        codec = options.extras["conditions"] = conditions_of(given, options.types, notes)
        found["y"] = condition_rows(codec, given)
    elif labels:
        found["y"] = _checked_labels(given.iloc[:, 0])
    return found


def _checked_labels(column: Any) -> Any:
    """One label for each row; refused where there is none, or a fraction."""
    if column.isna().any():
        line = column.index[column.isna()][0]
        raise DataError(f"Expected a label in each row; got none in line {line}.")
    labels = column.to_numpy()
    if labels.dtype.kind == "f" and (wrong := labels[labels != np.floor(labels)]).size:
        raise DataError(
            f"Expected labels that are whole numbers or words; got {wrong[0]:g}. (Rename "
            f"column {column.name!r} if it is no label.)"
        )
    return labels


def pick_columns(
    frame: Any,
    columns: Columns,
    labelled: bool,
    codec: Codec | None = None,
    conditions: Codec | None = None,
    written: Callable[[Any, list[int]], Any] | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """The columns of a table in an order that is known, whatever order they stand in.

    Args:
        frame: as :func:`read_table` reads it.
        columns: what is wanted, by name.
        labelled: whether labels are needed.
        codec: how columns of several kinds are written as numbers.
        conditions: how those of conditions are, if labels are such.
        written: gives columns of the frame, by number, as they stand in its file.

    Returns:
        ``x``, an array of numbers; the labels, conditions or None; and the columns that are not
        in x, by name.

    Raises:
        DataError: for columns that are missing or there twice, and for cells that are no numbers.
    """
    if not len(frame):
        raise DataError("Expected rows with numbers in them; got none.")
    names = [str(name) for name in frame.columns]
    of_labels = [c.name for c in conditions.columns] if conditions else [columns.label or ""]
    of_labels = list(filter(None, of_labels)) if labelled else []
    wanted = [*columns.names, *of_labels]
    missing = [name for name in wanted if name not in names]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + ", ..." * (len(missing) > 5)
        raise DataError(
            f"Expected columns called {shown} ({len(missing)} of {len(wanted)} are missing); got "
            f"{', '.join(filter(None, names[:20]))}{', ...' * (len(names) > 20)}."
        )
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise DataError(f"Expected one column called {twice[0]!r}; got {names.count(twice[0])}.")
    at = {name: i for i, name in enumerate(names)}
    chosen = frame.iloc[:, [at[name] for name in columns.names]].set_axis(columns.names, axis=1)
    if codec is not None:
        x = codec.numbers(chosen)
    else:
        places = [f"column {name!r} ({letter_of(at[name])})" for name in columns.names]
        pairs = zip(columns.names, places, strict=True)
        x = np.stack([numbers_of(chosen[name], place) for name, place in pairs], axis=1)
    labels = frame.iloc[:, at[of_labels[0]]].to_numpy() if of_labels else None
    if of_labels and conditions is not None:
        given = frame.iloc[:, [at[name] for name in of_labels]].set_axis(of_labels, axis=1)
        labels = condition_rows(conditions, given)
    others = [i for i, name in enumerate(names) if name not in columns.names]
    rest = written(frame, others) if written and others else frame.iloc[:, others]
    called = [names[i] or f"column {letter_of(i)}" for i in others]
    called = [
        n if called.count(n) == 1 else f"{n} ({letter_of(i)})"
        for n, i in zip(called, others, strict=True)
    ]
    return x, labels, {name: _cells(rest.iloc[:, i]) for i, name in enumerate(called)}


def _cells(column: Any) -> Any:
    """Cells to copy; whole numbers stay whole next to a gap."""
    import pandas as pd

    plain = not pd.api.types.is_extension_array_dtype(column.dtype)
    return column.to_numpy() if plain else column.to_numpy(dtype=object, na_value=None)


# --- guesses ------------------------------------------------------------------------------------


def _check_named(options: TableOptions, names: Sequence[str]) -> None:
    named = filter(None, (options.group, options.weights))
    for name in (*options.drop, *(options.label_column or ()), *named):
        if name not in names:
            known = ", ".join(filter(None, names))
            raise DataError(f"Expected a column called {name!r}; got {known}.")
    if both := set(options.drop) & set(options.label_column or ()):
        raise DataError(f"Expected a column as label or in drop; got {min(both)!r} as both.")


def _check_once(names: Sequence[str], letters: Sequence[str], drop: Sequence[str]) -> None:
    """Refuses two columns of one name, for new rows find theirs by it."""
    for name in names:
        at = [letters[i] for i, other in enumerate(names) if other == name and name not in drop]
        if name and len(at) > 1:
            raise DataError(
                f"Expected a name of its own for each column; got {name!r} for {' and '.join(at)}. "
                "Rename one, or leave them out."
            )


def _indices(
    frame: Any, names: Sequence[str], dropped: set[int], options: TableOptions, notes: list[str]
) -> set[int]:
    """Columns that only count the rows."""
    found = set()
    for i, name in enumerate(names):
        nameless = name == "" or name.startswith("Unnamed: ")
        if i in dropped or name in (options.label_column or ()):
            continue
        if not nameless and name.lower() not in _INDEX:
            continue
        if nameless and frame.iloc[:, i].isna().all():  # Lines that end in a separator.
            notes.append("The column without a name was left out: it is empty.")
            found.add(i)
        elif _counts(frame.iloc[:, i]):
            shown = repr(name) if name else "without a name"
            notes.append(f"The column {shown} was left out: it is an index that counts the rows.")
            found.add(i)
        elif nameless and not i and _identify(frame.iloc[:, i]):
            notes.append("The column without a name was left out: it is an index of the rows.")
            found.add(i)
        elif nameless:
            raise DataError(
                f"Expected a name for each column; got none for column {letter_of(i)}. (Leave an "
                "index out.)"
            )
        else:
            notes.append(f"The column {name!r} was taken for data, not for an index.")
    return found


def _counts(column: Any) -> bool:
    values = column.to_numpy()
    if values.dtype.kind not in "iu" or not len(values):
        return False
    return values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _identify(column: Any) -> bool:
    """Whether words or whole numbers are different in all rows, as names of rows are."""
    return column.dtype.kind not in "fM" and not column.isna().any() and bool(column.is_unique)


def _labels(
    frame: Any, names: Sequence[str], dropped: set[int], options: TableOptions, notes: list[str]
) -> list[int]:
    """The columns of labels: those asked for, or the one that looks like it."""
    if options.label_column is not None:
        return [names.index(name) for name in options.label_column]
    wanted = [i for i, n in enumerate(names) if n.lower() in _LABELS and i not in dropped]
    if len(wanted) > 1:
        raise DataError(f"Expected one column called label or y at most; got {len(wanted)}.")
    perhaps = [i for i, n in enumerate(names) if n.lower() in _PERHAPS_LABELS and i not in dropped]
    for i in perhaps:
        if not wanted and _classes(frame.iloc[:, i]):
            wanted.append(i)
        else:
            notes.append(f"The column {names[i]!r} was taken for data, not for labels.")
    if wanted:
        notes.append(f"The column {names[wanted[0]]!r} was taken for the labels.")
    return wanted[:1]


def _classes(column: Any) -> bool:
    """Whether values look like classes: words that repeat, or a few whole numbers."""
    if column.dtype.kind == "f":
        return False
    distinct = column.nunique()
    return bool(distinct <= (_MOST_CLASSES if column.dtype.kind in "iu" else len(column) / 2))


def _is_mixed(frame: Any, table: bool | None, types: Mapping[str, Any]) -> bool:
    """Whether columns are of several kinds: if that was asked for, or most cells of one are words.

    A few words among numbers are an error in the file, not a category. Dates and categories of
    a data frame are no real numbers, though numbers stand for them.
    """
    import pandas as pd

    if table is not None or types:
        return bool(table or types)
    for _, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind == "M":
            return True
        if pd.api.types.is_numeric_dtype(column.dtype):
            continue
        there = ~gaps_of(column)
        words = pd.to_numeric(column, errors="coerce").isna().to_numpy() & there
        if words.sum() > there.sum() / 2:
            return True
    return False
