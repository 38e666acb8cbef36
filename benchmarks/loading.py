"""Loading against a file's size: peak memory over that size, and time over a plain reader's.

``load_data`` reads, checks, guesses the kind of the values and splits the rows. What it is compared
with only reads: ``numpy.load`` into memory, or ``pandas.read_csv`` and ``read_parquet``. Both take
turns in one process, in random order; a ratio is taken within each round. Memory is that of a fresh
process: "peak" is all that was resident beyond what it held before, pages of mapped files included,
and "allocated" is the part that is no file's and that the system cannot take back. "in files" is
``load_data`` with room for a tenth of the file: its splits lie in mapped temporary files.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, PeakMemory, header, in_fresh_process, write

import pyro_vaes as pv
from pyro_vaes.data import rows

_COLUMNS = 64
_KINDS = ("float32 .npy", "bytes .npy", ".npz", ".csv", ".parquet")


def _file(folder: Path, kind: str, megabytes: float) -> Path:
    """A file of about so many megabytes."""
    draw = np.random.default_rng(0)
    number = {"bytes .npy": 1, ".csv": 9}.get(kind, 4)  # Bytes of one number in the file.
    shape = (round(megabytes * 1e6 / number / _COLUMNS), _COLUMNS)
    path = folder / f"rows-{megabytes}{kind.split()[-1]}"
    if kind == "bytes .npy":
        np.save(path, draw.integers(0, 256, shape, dtype=np.uint8))
        return path
    x = draw.standard_normal(shape, dtype=np.float32)
    if kind == "float32 .npy":
        np.save(path, x)
    elif kind == ".npz":
        np.savez(path, x=x)
    else:
        import pandas as pd

        frame = pd.DataFrame(x, columns=[f"c{i}" for i in range(_COLUMNS)])
        if kind == ".csv":
            frame.to_csv(path, index=False, float_format="%.5f")
        else:
            frame.to_parquet(path)
    return path


def _plain(path: Path) -> Any:
    """What others read the file with, into memory."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        return np.load(path)["x"]
    import pandas as pd

    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


class _Allocated:
    """The most memory of no file inside a ``with`` block, beyond that before it; 0 off Linux."""

    def __enter__(self) -> _Allocated:
        self._ended = threading.Event()
        self._before = self._most = self._now()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        self.bytes = self._most - self._before

    def _look(self) -> None:
        while not self._ended.wait(0.002):
            self._most = max(self._most, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(s.split()[1]) * 1024 for s in lines if s.startswith("RssAnon")), 0)


def peak(way: str, path: str) -> tuple[float, float]:
    """Megabytes at most, and those of no file, that one way of loading takes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pv.load_data(torch.rand(2000, _COLUMNS))  # What is loaded at first use is no memory for data.
    if Path(path).suffix in (".csv", ".parquet"):
        import pandas  # noqa: F401
    if way == "in files":
        rows._IN_MEMORY = Path(path).stat().st_size // 10
    load: Callable[[Any], Any] = _plain if way == "plain" else pv.load_data
    with PeakMemory() as used, _Allocated() as allocated:
        kept = load(Path(path))
    del kept
    return used.bytes / 1e6, allocated.bytes / 1e6


def times(path: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a plain reader and of ours, in turns."""
    found: dict[str, list[float]] = {"plain": [], "load_data": []}
    order = random.Random(0)
    ways: list[tuple[str, Callable[[Any], Any]]] = [("plain", _plain), ("load_data", pv.load_data)]
    for _, load in ways:  # Once untimed: the file is in the system's cache then.
        load(path)
    for _ in range(rounds):
        for name, load in order.sample(ways, len(ways)):
            start = time.perf_counter()
            load(path)
            found[name].append(time.perf_counter() - start)
    return found


def main() -> None:
    """Measures each kind of file at each size and writes ``loading.csv``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    if given.toy and given.out == RESULTS:
        parser.error("Expected --out beside --toy, whose figures are not worth keeping.")
    sizes, rounds = ([1.0], 1) if given.toy else (given.megabytes, given.rounds)
    torch.set_num_threads(1)
    facts, records = header(), []
    with tempfile.TemporaryDirectory() as folder:
        for kind in _KINDS:
            for size in sizes:
                try:
                    path = _file(Path(folder), kind, size)
                except ImportError:  # No library that writes parquet files.
                    continue
                records += _lines(kind, path, rounds)
                path.unlink()
                out = write(given.out, "loading", records, facts)  # What there is, if it is ended.
    print(out)


def _lines(kind: str, path: Path, rounds: int) -> list[dict[str, Any]]:
    """One line for each way of loading a file."""
    size = path.stat().st_size / 1e6
    seconds, lines = times(path, rounds), []
    ratios = [a / b for a, b in zip(seconds["load_data"], seconds["plain"], strict=True)]
    for way in ("plain", "load_data", "in files"):
        most, allocated = in_fresh_process(peak, way, str(path))
        line: dict[str, Any] = {"file": kind, "megabytes": size, "way": way}
        line |= {"peak over file": most / size, "allocated over file": allocated / size}
        if way == "load_data":
            line |= {"time over plain": statistics.median(ratios)}
            line |= {"least": min(ratios), "most": max(ratios)}
        if way in seconds:
            line["seconds"] = statistics.median(seconds[way])
        lines.append(line)
        print(", ".join(f"{v:.3g}" if isinstance(v, float) else v for v in line.values()))
    return lines


if __name__ == "__main__":
    main()
