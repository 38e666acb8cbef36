"""Files that commands write: tables, arrays and pictures, each whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vaes.cli.flags import check_drawing
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.storage.files import write_bytes, write_text

__all__ = ["PICTURES", "TABLES", "check_out", "write_array", "write_table"]

PICTURES = (".png", ".svg", ".pdf")
TABLES = (".csv", ".tsv")


def check_out(out: Path, suffixes: Sequence[str], why: str = "", source: Path | None = None) -> str:
    """The suffix of a file that is to be written, refused before the work if it cannot be.

    Args:
        out: the file.
        suffixes: what it may be.
        why: why it can be nothing else, if somebody may ask.
        source: the file that is read, which is not to be written over.

    Raises:
        ConfigError: naming ``--out``.
    """
    suffix = out.suffix.lower()
    if suffix not in suffixes:
        what = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if suffixes[1:] else suffixes[0]
        raise ConfigError(
            f"Invalid value for '--out': expected a file ending in {what}{why}; got {out}."
        )
    if out.is_dir():
        raise ConfigError(f"Invalid value for '--out': expected a file; got the folder {out}.")
    if source is not None and out.resolve() == source.resolve():
        raise ConfigError(
            f"Invalid value for '--out': expected another file than --data; got {out}."
        )
    if suffix in PICTURES:
        check_drawing()
    return suffix


def write_table(out: Path, *parts: Mapping[str, Any]) -> None:
    """Writes columns of equal length under their names; what is not a number leaves a blank.

    Raises:
        ConfigError: if two parts have columns of one name, of which one would be lost.
    """
    names = [name for part in parts for name in part]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"Invalid value for '--out': expected an array (.npy), since a table would have two "
            f"columns called {twice!r}: the data have one already; got {out}."
        )
    columns = {name: values for part in parts for name, values in part.items()}
    text = io.StringIO()
    delimiter = "\t" if out.suffix.lower() == ".tsv" else ","
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*([_cell(v) for v in column] for column in columns.values()), strict=True))
    write_text(out, text.getvalue())


def _cell(value: Any) -> str:
    # A number of NumPy's is written with as few digits as identify it in its own precision.
    return "" if value is None or value != value else str(value)


def write_array(out: Path, array: Any) -> None:
    """Writes an array as ``numpy.save`` does."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(out, buffer.getvalue())
