"""What the benchmarks share: fair timing of several contenders, memory, records, options.

Contenders are timed in one process and in turns: each round runs a block of every contender, in an
order drawn anew, so that a machine that slows down slows them all. A ratio is taken within each
round; what is reported is the median over the rounds with its quartiles. What a contender needs
before it runs steadily (tracing, compiling) is reported beside, as its set-up.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import dataclasses
import datetime
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch

RESULTS = Path(__file__).parent / "results"
_PLACES = ("--out", "--runs", "--data-root")
PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "pythae", "numpy")

Run = Callable[[int], "float | None"]
"""Does a number of units of work; the last one has ended when it returns.

It may return the seconds that count, if not all that it did is to be timed.
"""


@dataclasses.dataclass
class Contender:
    """One way to do the work.

    Attributes:
        name: what tables call it.
        make: builds everything and returns the function to time.
        granule: smallest number of units it can do (an epoch of scanned steps, say).
    """

    name: str
    make: Callable[[], Run]
    granule: int = 1


@dataclasses.dataclass
class _Ready:
    """A contender that has run: the function, its set-up time and the units in a block."""

    contender: Contender
    run: Run
    setup: float
    block: int
    store: Any

    def timed(self, units: int) -> float:
        """Seconds for a number of units, in a parameter store of the contender's own."""
        with pyro.get_param_store().scope(self.store) as self.store:
            start = time.perf_counter()
            seconds = self.run(units)
            return time.perf_counter() - start if seconds is None else seconds


def _ready(contender: Contender, block_seconds: float, warmup: int) -> _Ready:
    start = time.perf_counter()
    with pyro.get_param_store().scope() as store:
        torch.manual_seed(0)
        run = contender.make()
        # The first units trace and compile.
        run(_whole(warmup, contender.granule))
    ready = _Ready(contender, run, time.perf_counter() - start, contender.granule, store)
    if not block_seconds:
        return ready
    ready.timed(contender.granule)
    seconds = ready.timed(contender.granule)
    ready.block = _whole(contender.granule * block_seconds / seconds, contender.granule)
    return ready


def _whole(units: float, granule: int) -> int:
    """``units`` as a multiple of the granule, at least one."""
    return max(1, round(units / granule)) * granule


def compare(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    block_seconds: float,
    warmup: int = 3,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Times the contenders in turns.

    Args:
        contenders: what to time.
        rounds: how many blocks of each.
        block_seconds: about how long a block takes; 0 makes it the granule, and leaves out the
            tenth of a block that otherwise goes before it untimed.
        warmup: units before anything is timed; they count as set-up.
        say: where the progress goes.

    Returns:
        A record for each contender and round: ``contender``, ``round``, ``seconds`` for one unit,
        ``setup_seconds``.
    """
    ready = []
    for contender in contenders:
        ready.append(_ready(contender, block_seconds, warmup))
        say(f"  {contender.name}: set up in {ready[-1].setup:.1f} s, {ready[-1].block} a block")
    records = []
    order = random.Random(0)
    for number in range(rounds):
        order.shuffle(ready)
        for one in ready:
            gc.collect()
            # What another contender left in the caches and thread pools is not this one's to pay.
            if block_seconds:
                one.timed(_whole(one.block / 10, one.contender.granule))
            records.append(
                {
                    "contender": one.contender.name,
                    "round": number,
                    "seconds": one.timed(one.block) / one.block,
                    "setup_seconds": round(one.setup, 3),
                }
            )
    names = [contender.name for contender in contenders]
    return sorted(records, key=lambda record: (names.index(record["contender"]), record["round"]))


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    values = list(values)
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(
    records: Iterable[Mapping[str, Any]], ours: str, theirs: str, value: str = "seconds"
) -> tuple[float, float, float] | None:
    """Quartiles of ours / theirs, taken round by round; None if one of them was not timed."""
    times: dict[str, dict[int, float]] = {ours: {}, theirs: {}}
    for record in records:
        if record["contender"] in times:
            times[record["contender"]][int(record["round"])] = float(record[value])
    common = times[ours].keys() & times[theirs].keys()
    if not common:
        return None
    return quartiles(times[ours][number] / times[theirs][number] for number in common)


def summary(records: Sequence[Mapping[str, Any]], unit: str = "ms", value: str = "seconds") -> str:
    """A Markdown table: median, quartiles and set-up of each contender."""
    factor = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    lines = [f"| contender | {unit} | quartiles | set-up, s |", "|---|---|---|---|"]
    for name in dict.fromkeys(record["contender"] for record in records):
        mine = [record for record in records if record["contender"] == name]
        low, middle, high = (factor * q for q in quartiles(float(r[value]) for r in mine))
        setup = mine[0].get("setup_seconds", "")
        lines.append(f"| {name} | {middle:.3g} | {low:.3g} to {high:.3g} | {setup} |")
    return "\n".join(lines)


# --- memory ---------------------------------------------------------------------------------------


def in_fresh_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a module-level function in a process of its own, where memory has no history."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        # The libraries are loaded once; each process is still a fresh one.
        context.set_forkserver_preload(["pyro_vaes", "sklearn.datasets", "matplotlib.pyplot"])
    with context.Pool(1) as pool:
        return pool.apply(function, args, kwargs)


class PeakMemory:
    """Most memory held inside a ``with`` block beyond what was held before it, in bytes.

    The resident memory of the process (Linux; elsewhere the peak cannot be reset, and a fresh
    process is needed), or what the CUDA allocator handed out.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            _reset_peak()
            self._before = _peak()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self.bytes = _peak() - self._before


def _reset_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource  # Not on Windows, which has no peak of this kind.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- records --------------------------------------------------------------------------------------


def header() -> dict[str, str]:
    """The command, the versions and the hardware."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    facts = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_flags()]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "machine": f"{_cpu()}, {cores()} core{'s' * (cores() != 1)}, {platform.system()} "
        f"{platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        # Before the benchmark adds its own: anything near 1 is somebody else at work.
        facts["load at start"] = f"{os.getloadavg()[0]:.2f}"
    return facts


def hardware(facts: Mapping[str, str]) -> str:
    """The machine of a header, with its GPU if it has one."""
    return ", ".join(facts[name] for name in ("machine", "gpu") if name in facts)


def _flags() -> list[str]:
    """The command's flags but those that name folders: where files lie says nothing about them."""
    flags = [flag for flag in sys.argv[1:] if not flag.startswith(tuple(f"{p}=" for p in _PLACES))]
    for place in set(_PLACES) & set(flags):
        index = flags.index(place)
        del flags[index : index + 2]
    return flags


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def write(
    out: Path, name: str, records: Sequence[Mapping[str, Any]], facts: Mapping[str, str]
) -> Path:
    """Writes ``name.csv``: the facts as comment lines, then the records."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.csv"
    names = list(dict.fromkeys(key for record in records for key in record))
    with path.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in facts.items())
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({k: _short(v) for k, v in record.items()})
    return path


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def read(path: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """What :func:`write` wrote: the records, all text, and the facts."""
    lines = path.read_text().splitlines()
    comments = [line[2:] for line in lines if line.startswith("# ")]
    facts = {key: value for key, _, value in (line.partition(": ") for line in comments)}
    return list(csv.DictReader(line for line in lines if not line.startswith("# "))), facts


# --- options --------------------------------------------------------------------------------------


def options(doc: str | None, **extra: dict[str, Any]) -> argparse.Namespace:
    """Reads the options that all benchmarks share, and ``extra`` ones.

    Sets the number of threads and an empty cache for the compiler, and warns if the machine is
    busy with something else.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--rounds", type=int, help="blocks of each contender")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--threads", type=int, help="threads of PyTorch; as many as cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", help="contenders whose name holds this text")
    for name, settings in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    chosen = parser.parse_args()
    if chosen.toy and chosen.out == RESULTS:
        parser.error("Expected --out beside --toy, whose figures are not worth keeping.")
    # Toy sizes run in parallel with other tests, where waiting threads are very slow.
    torch.set_num_threads(chosen.threads or (1 if chosen.toy else cores()))
    # Compiling is timed from nothing, whatever an earlier run left behind.
    cache = tempfile.TemporaryDirectory(prefix="inductor", ignore_cleanup_errors=True)
    atexit.register(cache.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 and not chosen.toy:
        warnings.warn(
            f"The machine is busy (load {os.getloadavg()[0]:.1f}): figures will be too high.",
            stacklevel=2,
        )
    return chosen


def chosen(contenders: Iterable[Contender], text: str | None) -> list[Contender]:
    """The contenders whose name holds the text; all without one."""
    return [one for one in contenders if text is None or text in one.name]
