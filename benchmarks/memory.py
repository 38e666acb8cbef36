"""How much memory grows with the size of the data: copies held, a ratio that no machine changes.

Each point has a fresh process. What is counted is the most that it held beyond what it held before
(resident memory, mapped pages of the file included, which the system may take back at any time).
"growth" is the difference between a file and one of half the size, over that of the files: the
layers of one batch, which do not grow, are left out of it.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, PeakMemory, header, in_fresh_process, write

import pyro_vaes as pv

WAYS = ("load_data", "fit", "fit, mapped", "log_marginal, mapped", "encode, mapped")
KINDS = {"bytes": np.uint8, "float32": np.float32}
_SIZE, _FEW = 32 * 32, 500


def _vae(kind: str, x: torch.Tensor) -> pv.VAE:
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(_SIZE, [32]), 4)
    network = pv.MLP(4, [32])
    if kind == "bytes":
        likelihood: Any = pv.DiscretizedLogisticLikelihood(network, (_SIZE,), 256)
    else:
        likelihood = pv.NormalLikelihood(network, (_SIZE,))
        likelihood.initialize_from(x[:1000])
    return pv.VAE(pv.NormalPrior(4), posterior, likelihood)


def _file(folder: Path, kind: str, rows: int) -> Path:
    path = folder / f"{kind}-{rows}.npy"
    made = np.lib.format.open_memmap(path, "w+", KINDS[kind], (rows, _SIZE))
    random = np.random.default_rng(0)
    for start in range(0, rows, 1000):
        part = made[start : start + 1000]
        part[:] = (
            random.integers(0, 256, part.shape)
            if kind == "bytes"
            else random.normal(size=part.shape)
        )
    made.flush()
    return path


def peak(way: str, kind: str, path: str, rows: int) -> float:
    """The peak of one way, in megabytes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    mapped = np.load(path, mmap_mode="r")
    few = pv.Split(torch.from_numpy(np.array(mapped[:256])))
    vae = _vae(kind, few.x)
    # What is loaded at first use is no memory for data.
    pv.fit(vae, few, epochs=1, progress=False)
    pv.log_marginal(vae, few.x[:64], 1, proposal="encoder")
    with PeakMemory() as used:
        if way == "load_data":
            kept: Any = pv.load_data(path)
        elif way == "fit":
            kept = pv.load_data(path)
            pv.fit(vae, kept.train, kept.val, epochs=1, batch_size=256, progress=False)
        elif way == "fit, mapped":
            train, val = mapped[:-_FEW], mapped[-_FEW:]
            pv.fit(vae, train, val, epochs=1, batch_size=256, progress=False)
        elif way == "log_marginal, mapped":
            pv.log_marginal(vae, mapped[: rows // 4], 1, proposal="encoder")
        else:
            vae.encode(mapped)
    return used.bytes / 1e6


def main() -> None:
    """Measures each way and writes ``memory.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=160, help="size of the larger file")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    if given.toy and given.out == RESULTS:
        parser.error("Expected --out beside --toy, whose figures are not worth keeping.")
    megabytes = 8 if given.toy else given.megabytes
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, dtype in KINDS.items():
            sizes = [megabytes // 2, megabytes]
            rows = [size * 1_000_000 // (_SIZE * np.dtype(dtype).itemsize) for size in sizes]
            paths = [str(_file(Path(folder), kind, count)) for count in rows]
            for way in WAYS:
                half, full = (
                    in_fresh_process(peak, way, kind, path, count)
                    for path, count in zip(paths, rows, strict=True)
                )
                growth = (full - half) / (sizes[1] - sizes[0])
                print(f"{kind}, {way}: {growth:.2f} times the file", flush=True)
                records.append(
                    {"values": kind, "way": way, "growth": growth, "peak": full, "file": sizes[1]}
                )
    print(write(given.out, "memory", records, header()))


if __name__ == "__main__":
    main()
