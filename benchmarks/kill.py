"""Kills a command at random moments, starts it again each time, and compares what it leaves.

The command is run once undisturbed, then killed (SIGKILL to its whole process group, as when the
machine goes) and started again until it has been killed as often as asked for. Whenever it gets
through in spite of that, its folder is compared with the undisturbed one, file by file and bit for
bit, seconds apart, and the next run begins in a new folder. The last one is left in peace. (A study
whose report has a column of seconds differs in that report.) SIGTERM is what a cluster sends: a run
then saves its state at the next step, within an epoch too, and says so by its status.

    python benchmarks/kill.py                          # pyro-vaes train, 50 kills
    python benchmarks/kill.py --signal TERM --long     # by SIGTERM, epochs of a thousand steps
    python benchmarks/kill.py --study beta             # the same for a study
    python benchmarks/kill.py --command "train --prior vamp --resume --out {out}"
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import RESULTS, header, write

from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import read_tensors
from pyro_vaes.training.checkpoint import read_checkpoint

TRAIN = (
    "train --hidden-dims 32 --prior vamp --prior-components 10 --epochs 500 --patience 500 "
    "--resume --out {out}"
)
# Batches of one row: most signals come within an epoch.
LONG = (
    "train --hidden-dims 32 --batch-size 1 --epochs 10 --warmup-epochs 1 --samples 20 "
    "--resume --out {out}"
)
STUDY = "study {study} --quick --seeds 1 --out {{out}}/figures --runs {{out}}/runs"


@dataclasses.dataclass
class Kill:
    """One kill: in which run, when, how far it had got, and with what status it ended."""

    run: int
    seconds: float
    epochs: int
    steps_within: int
    partial_files: int
    status: int


def differences(folder: Path, other: Path) -> list[str]:
    """Names of files that are not the same in two folders, seconds apart."""
    here, there = _state(folder), _state(other)
    return sorted(name for name in here | there if here.get(name) != there.get(name))


def _state(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    if path.suffix == ".safetensors":
        tensors, record = read_tensors(path)
        digest = hashlib.sha256(json.dumps(_timeless(record), sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
    if path.suffix in (".json", ".jsonl"):
        # A line each, or the whole: both are rows of values.
        text = path.read_text()
        rows = map(json.loads, text.splitlines() if path.suffix == ".jsonl" else [text])
        return json.dumps([_timeless(row) for row in rows], sort_keys=True)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return json.dumps(_timeless(list(csv.DictReader(file))))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    """A record without what clocks say, at whatever depth."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "seconds" not in k and k[-3:] != "_ms"}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _epochs(out: Path) -> int:
    """Lines of all metrics so far."""
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("metrics.jsonl"))


def _steps(out: Path) -> int:
    """Steps within an epoch in the checkpoint, 0 if it is of a whole one."""
    try:
        saved = read_checkpoint(out)
    except RunFolderError:  # Weights without a checkpoint, for instance: killed before the first.
        return 0
    return 0 if saved is None else int(saved[1].get("within", {"steps": 0})["steps"])


def _start(command: str, out: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "pyro_vaes", *shlex.split(command.format(out=out))]
    # A group of its own, workers included: all of it is killed.
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
    )


def _check_end(process: subprocess.Popen[bytes], errors: bytes) -> None:
    if process.returncode:
        raise SystemExit(f"Expected the command to end well; got {errors.decode()[-2000:]}")


def undisturbed(command: str, out: Path) -> tuple[float, float]:
    """Runs the command once; returns the seconds to its first epoch, and in all."""
    began, first = time.perf_counter(), None
    process = _start(command, out)
    while process.poll() is None:
        time.sleep(0.02)
        if first is None and _epochs(out):
            first = time.perf_counter() - began
    _check_end(process, process.communicate()[1])
    total = time.perf_counter() - began
    return (total / 2 if first is None else first), total


def kills(
    command: str, place: Path, number: int, seed: int, how: signal.Signals = signal.SIGKILL
) -> Iterator[Kill | tuple[int, list[str]]]:
    """Kills the command so often.

    Args:
        command: what comes after ``pyro-vaes``; ``{out}`` stands for the folder.
        place: an empty folder for all of its folders.
        number: how many kills.
        seed: of the moments.
        how: the signal.

    Yields:
        Each kill; and for each run that got through, its number and the files that differ.
    """
    clock = random.Random(seed)
    first, _ = undisturbed(command, place / "undisturbed")
    done = run = 0
    while True:
        out = place / f"run{run}"
        process, began = _start(command, out), time.perf_counter()
        try:
            # Half of the kills come before the first epoch, half after it.
            process.wait(None if done == number else clock.uniform(0, 2 * first))
        except subprocess.TimeoutExpired:
            seconds = time.perf_counter() - began
            os.killpg(process.pid, how)
        _, errors = process.communicate()
        # Before a run handles signals they end it at once, as SIGKILL does always.
        if process.returncode in (-how, 128 + how):
            done += 1
            partial = len(list(out.rglob(".partial-*")))
            yield Kill(run, seconds, _epochs(out), _steps(out), partial, process.returncode)
            continue
        _check_end(process, errors)
        yield run, differences(place / "undisturbed", out)
        run += 1
        if done == number:
            return


def main() -> None:
    """Kills, prints, and writes ``kill.csv`` or ``kill_study.csv``; status 1 if a file differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--long", action="store_true", help="train in epochs of many steps")
    parser.add_argument("--command", default=TRAIN, help="after pyro-vaes; {out} is its folder")
    parser.add_argument("--study", help="a study's name instead")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    command = STUDY.format(study=given.study) if given.study else given.command
    command = LONG if given.long else command
    how = getattr(signal, f"SIG{given.signal}")
    name = "kill" + "_study" * bool(given.study) + "_long" * given.long
    name += "_term" * (given.signal == "TERM")
    facts, found, different, through = header(), [], set(), 0
    with tempfile.TemporaryDirectory() as place:
        for event in kills(command, Path(place), given.kills, given.seed, how):
            if isinstance(event, Kill):
                found.append(dataclasses.asdict(event))
                print(
                    f"{len(found)}: run {event.run} killed after {event.seconds:.2f} s, "
                    f"{event.epochs} epochs and {event.steps_within} steps, "
                    f"{event.partial_files} files half-written, status {event.status}",
                    flush=True,
                )
            else:
                through, files = event[0] + 1, event[1]
                different |= set(files)
                print(f"run {event[0]} got through: {', '.join(files) or 'no'} difference")
    facts |= {
        "killed": f"pyro-vaes {command}",
        "signal": how.name,
        "kills": str(len(found)),
        "kills saved within an epoch": str(sum(kill["steps_within"] > 0 for kill in found)),
        "runs that got through": str(through),
        "files that differ from the undisturbed run": ", ".join(sorted(different)) or "none",
    }
    print(write(given.out, name, found, facts))
    if different:
        raise SystemExit(f"Expected no difference; got {', '.join(sorted(different))}.")


if __name__ == "__main__":
    main()
