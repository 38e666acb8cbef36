"""Two trainings side by side on one machine, against one after the other.

    python benchmarks/side_by_side.py

Milliseconds a step of a process alone and of two at once, by the number of threads and by how
OpenMP's threads wait (variables that count only if set before torch is loaded). ``ratio`` is the
time of two at once over that of one after the other: 1 shares the cores without loss, 0.5 is one
thread each on two cores. ``alone`` is relative to torch's default, which a setting must not spoil.
Writes ``side_by_side.csv``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import cores, header, options, write

SETTINGS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "spins 1,000 times": {"GOMP_SPINCOUNT": "1000"},
    "spins 2,000 times": {"GOMP_SPINCOUNT": "2000"},
    "spins 5,000 times": {"GOMP_SPINCOUNT": "5000"},
    "spins 10,000 times": {"GOMP_SPINCOUNT": "10000"},
    "spins 100,000 times": {"GOMP_SPINCOUNT": "100000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def work(name: str, mode: str, seconds: float, toy: bool) -> None:
    """In a process of its own: trains, says it is ready, waits for a line, and times steps."""
    from steps import ours
    from works import WORKS

    chosen = WORKS[name].toy() if toy else WORKS[name]
    run = ours(chosen, mode, "cpu")  # type: ignore[arg-type]
    run(3)
    print("ready", flush=True)
    sys.stdin.readline()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run(1)
        steps += 1
    print((time.perf_counter() - began) / steps, flush=True)


def timed(number: int, setting: dict[str, str], flags: list[str]) -> float:
    """Seconds a step of so many processes at once, their mean."""
    taken = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    threads = {"OMP_NUM_THREADS": str(cores())}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--work-here", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**taken, **threads, **setting},
        )
        for _ in range(number)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in started)


def rounds_of(names: list[str], number: int, flags: list[str]) -> Iterator[dict[str, Any]]:
    """A record for each setting and round, all settings in turn."""
    for i in range(number):
        default = 0.0
        for name in names:
            setting = SETTINGS[name]
            alone, both = timed(1, setting, flags), timed(2, setting, flags)
            default = default or alone
            yield {
                "contender": name,
                "round": i,
                "seconds": both,
                "seconds_alone": alone,
                "ratio": both / (2 * alone),
                "alone": alone / default,
            }


def main() -> None:
    """Times all settings and writes the table."""
    if sys.argv[1:2] == ["--work-here"]:
        work(*sys.argv[2:4], float(sys.argv[4]), sys.argv[5] == "toy")
        return
    given = options(
        __doc__,
        work={"default": "mnist", "help": "the work, as for steps.py"},
        mode={"default": "traced", "help": "of the steps"},
    )
    facts = {**header(), "work": f"{given.work}, {given.mode} steps"}
    seconds = 0.2 if given.toy else 10.0
    flags = [given.work, given.mode, str(seconds), "toy" if given.toy else "whole"]
    names = ["one thread"] if given.toy else [n for n in SETTINGS if (given.only or "") in n]
    records = list(rounds_of(names, given.rounds or (1 if given.toy else 5), flags))
    for name in names:
        mine = [r for r in records if r["contender"] == name]
        ratio, alone = (statistics.median(r[key] for r in mine) for key in ("ratio", "alone"))
        print(f"{name:22} two at once {ratio:.2f} of one after the other; alone {alone:.2f}")
    write(Path(given.out), "side_by_side", records, facts)


if __name__ == "__main__":
    main()
