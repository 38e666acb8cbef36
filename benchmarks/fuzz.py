"""Reads thousands of files that were damaged, or made to deceive, and counts what becomes of them.

    python benchmarks/fuzz.py                # 5,000 files
    python benchmarks/fuzz.py --files 500

Weights (bytes changed; the record changed and its digest made right again), checkpoints, results
of studies and ``.npz`` data of the user's own. Each is either read, or refused in one line. Counted
are other exceptions, executions (an audit hook sees unpickled classes, programs and connections),
and the peak of memory beyond what the imports hold. Writes ``fuzz.csv``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from harness import RESULTS, PeakMemory, header, write

import pyro_vaes as pv
from pyro_vaes.core.errors import InputError
from pyro_vaes.experiments.runs import RESULT, Run, contents_of, perform
from pyro_vaes.runs.build import data_of
from pyro_vaes.runs.resolve import check_combination, resolve
from pyro_vaes.storage import tensors as storage
from pyro_vaes.storage.weights import WEIGHTS
from pyro_vaes.training.checkpoint import CHECKPOINT, read_checkpoint

NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 2**70, 1e308, float("nan"), float("inf"), "", "x" * 10_000),
    *("os.system", "VAE", "MLP", "NormalPrior", "../../etc", [], {}, [[]], [2**40] * 8),
    *({"class": "MLP", "arguments": {"in_features": 2**40, "hidden_dims": [2**40]}},),
    *({"class": "os.system", "arguments": {"command": "true"}}, {"ref": 10**9}),
    *({"tensor": [2**40], "dtype": "float32"}, {"tensor": [-1], "dtype": "float32"}),
)
EXECUTIONS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
EXECUTIONS += ("socket.connect",)


def bytes_changed(whole: bytes, rng: random.Random) -> bytes:
    """What a disk or a network does to a file, anywhere in it, more often near its beginning."""
    end = len(whole) - 1
    i = rng.randint(0, min(400, end)) if rng.random() < 0.5 else rng.randint(0, end)
    j = min(i + rng.randint(1, 64), len(whole))
    noise = rng.randbytes(rng.randint(1, 16))
    return rng.choice(
        (
            whole[:i],
            whole[:i] + bytes([whole[i] ^ 1 << rng.randint(0, 7)]) + whole[i + 1 :],
            whole[:i] + bytes(j - i) + whole[j:],
            whole[:i] + noise + whole[i:],
            whole[:i] + b"\xff" * (j - i) + whole[j:],
            whole[:i] + whole[j:],
            whole[:j] + whole[i:j] + whole[j:],
        )
    )


def changed(value: Any, rng: random.Random) -> Any:
    """JSON with one node replaced, removed, renamed or nested without end."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.2:
        if rng.random() < 0.05:
            for _ in range(rng.choice((10, 5000))):
                value = [value]
            return value
        return rng.choice(NASTY)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        return [*value[:i], changed(value[i], rng), *value[i + 1 :]]
    key = rng.choice(sorted(value))
    rest = {k: v for k, v in value.items() if k != key}
    if rng.random() < 0.15:
        return rest
    name = "renamed" if rng.random() < 0.1 else key
    return {**rest, name: changed(value[key], rng)}


def dumped(value: Any) -> str:
    """As JSON, however deep."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        return json.dumps(value)
    finally:
        sys.setrecursionlimit(limit)


class Target:
    """A kind of file: how to spoil it and how it is read."""

    def __init__(self, path: Path, read: Callable[[], Any]) -> None:
        self.path, self.read, self.whole = path, read, path.read_bytes()

    def spoil(self, rng: random.Random) -> bytes:
        """The file's bytes, changed."""
        return bytes_changed(self.whole, rng)


class Record(Target):
    """Weights whose record says something else, with a digest that is right."""

    def spoil(self, rng: random.Random) -> bytes:
        """The same tensors under another record."""
        tensors = safetensors.torch.load(self.whole)
        held = json.loads(self.whole[8 : 8 + int.from_bytes(self.whole[:8], "little")])
        entry = json.loads(held["__metadata__"][storage._ENTRY])
        record = dumped(changed(json.loads(entry["record"]), rng))
        entry = {"record": record, "digest": storage._digest(record, tensors)}
        return safetensors.torch.save(tensors, {storage._ENTRY: json.dumps(entry)})


class Json(Target):
    """A JSON file: its bytes or its values changed."""

    def spoil(self, rng: random.Random) -> bytes:
        """One of the two."""
        if rng.random() < 0.3:
            return super().spoil(rng)
        return dumped(changed(json.loads(self.whole), rng)).encode()


class Npz(Target):
    """An ``.npz``: its bytes changed, or a member's header says something else."""

    def spoil(self, rng: random.Random) -> bytes:
        """One of the two."""
        if rng.random() < 0.6:
            return super().spoil(rng)
        arrays = dict(np.load(io.BytesIO(self.whole)))
        out = io.BytesIO()
        name = rng.choice(sorted(arrays))
        other = rng.choice(
            (
                np.zeros((0, 3)),
                np.full((2, 2), np.nan),
                np.array([["a", "b"]]),
                np.zeros((3, 1, 2, 2, 2)),
                np.array([[1 + 2j]]),
                np.arange(3).astype("datetime64[D]"),
            )
        )
        np.savez(out, **{**arrays, name: other})
        spoilt = out.getvalue()
        shape = rng.choice((b"(9999999999999, 3)", b"(-12, 3)", b"(12, 3, 0)", b"(True, 3)"))
        return spoilt.replace(b"(12, 3)", shape) if rng.random() < 0.5 else spoilt


def targets(folder: Path) -> dict[str, Target]:
    """A small run of a study, whole, and data, each with what reads it."""
    config, explicit = resolve(
        "course",
        None,
        {"hidden_dims": [4], "latent_dim": 2, "prior": "vamp", "prior_components": 3, "epochs": 2},
    )
    config, _ = check_combination(config, explicit)
    data = data_of(config)
    run = Run(config, "", folder, samples=2, proposal="encoder")
    run = dataclasses.replace(run, data=contents_of(data))
    perform((run,))
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(12, 3)), y=rng.integers(0, 3, 12))
    weights, own = run.folder / WEIGHTS, folder / "data.npz"
    return {
        "weights, bytes": Target(weights, lambda: pv.load(run.folder)),
        "weights, record": Record(weights, lambda: pv.load(run.folder)),
        "checkpoint": Target(run.folder / CHECKPOINT, lambda: read_checkpoint(run.folder)),
        "result of a study": Json(run.folder / RESULT, run.finished),
        "npz": Npz(own, lambda: pv.load_data(own)),
    }


def outcome(read: Callable[[], Any]) -> str:
    """What becomes of a file."""
    try:
        found = read()
    except InputError as error:
        return "refused in one line" if "\n" not in str(error).strip() else "refused in many lines"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "not taken" if found is None else "read"


def main() -> None:
    """Spoils, reads, counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    executed: list[str] = []
    watching = False
    sys.addaudithook(
        lambda event, _: executed.append(event) if watching and event in EXECUTIONS else None
    )
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        kinds = targets(Path(name))
        for target in kinds.values():
            assert outcome(target.read) == "read", "expected the whole file to be read"
        counts = {kind: collections.Counter[str]() for kind in kinds}
        watching = True
        with PeakMemory() as memory:
            for number in range(given.files):
                kind = list(kinds)[number % len(kinds)]
                target = kinds[kind]
                target.path.write_bytes(target.spoil(rng))
                counts[kind][outcome(target.read)] += 1
                target.path.write_bytes(target.whole)
        watching = False
    records = [
        {"file": kind, "outcome": what, "count": count}
        for kind, found in counts.items()
        for what, count in found.most_common()
    ]
    facts = {
        **header(),
        "files": str(given.files),
        "executions": ", ".join(sorted(set(executed))) or "none",
        "peak memory beyond the imports": f"{memory.bytes / 2**20:.0f} MiB",
    }
    write(given.out, "fuzz", records, facts)
    for record in records:
        print(f"{record['file']:<20}{record['count']:>6}  {record['outcome']}")
    print(f"executions: {facts['executions']}; peak: {facts['peak memory beyond the imports']}")


if __name__ == "__main__":
    main()
