"""Runs Pyro's own tests and examples with ``SVI``, and with ``FastSVI`` in its place.

Takes a checkout of Pyro's repository (of the installed version, or near it)::

    python benchmarks/pyro_suite.py ../pyro
    python benchmarks/pyro_suite.py ../pyro --only optim/test_optim.py --modes traced
    CI=1 python benchmarks/pyro_suite.py ../pyro --examples --only eight_schools vae --steps 10

Prints what passes under SVI and fails under FastSVI, by how much the losses differ, and in which
mode each program ended. What reads ``optim_objs`` may differ; nothing else should. A test that is
still running after its time counts neither as passed nor as failed. ``--steps`` ends each program
after that many steps, and compares their losses: minutes instead of hours. ``--table`` also writes
a row for each program; further calls, with other files, add theirs. With ``CI`` set, examples
look for their data in ``~/.data``; ``--stand-ins`` writes random data of the same shape there for
two files that they would download (chorales and faces).
"""

from __future__ import annotations

import argparse
import collections
import csv
import importlib.util
import json
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pyro.infer.svi
import torch

import pyro_vaes as pv

TESTS = (
    "optim",
    "params",
    "infer/autoguide",
    "infer/reparam",
    "infer/test_autoguide.py",
    "infer/test_abstract_infer.py",
    "infer/test_elbo_mapdata.py",
    "infer/test_enum.py",
    "infer/test_gradient.py",
    "infer/test_inference.py",
    "infer/test_initialization.py",
    "infer/test_multi_sample_elbos.py",
    "infer/test_predictive.py",
    "infer/test_valid_models.py",
)
_MODE, _LOG, _SECONDS = "PYRO_SUITE_MODE", "PYRO_SUITE_LOG", "PYRO_SUITE_SECONDS"
_STEPS = "PYRO_SUITE_STEPS"
_made: list[Any] = []
# Losses of two programs are compared up to this number of steps.
_COMPARED = 10


# --- in a process of its own: SVI replaced --------------------------------------------------------


def replace() -> None:
    """Puts a class that notes its losses where a program will look for SVI."""
    mode, most = os.environ[_MODE], int(os.environ[_STEPS])
    original = pyro.infer.SVI
    kind: Any = original if mode == "svi" else pv.FastSVI
    options = {} if mode == "svi" else {"mode": mode}

    class SVI(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **options, **kwargs)
            self.losses: list[float] = []
            _made.append(self)

        def step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().step(*args, **kwargs)
            self.losses += loss if isinstance(loss, tuple) else [loss]
            if 0 < most <= sum(len(svi.losses) for svi in _made):
                raise _EnoughError
            return loss

    for name, module in list(sys.modules.items()):
        if name.startswith("pyro.") and getattr(module, "SVI", None) is original:
            module.SVI = SVI  # type: ignore[attr-defined]


def _log(name: str, outcome: str, reason: str) -> None:
    modes = dict(collections.Counter(getattr(svi, "mode", "svi") for svi in _made))
    losses = [float(loss) for svi in _made for loss in svi.losses[:_COMPARED]]
    _made.clear()
    line = {"name": name, "outcome": outcome, "modes": modes, "reason": reason, "losses": losses}
    with Path(os.environ[_LOG]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class _OutOfTimeError(BaseException):
    """No ``Exception``: nobody shall catch it on the way."""


class _EnoughError(BaseException):
    """The same, after the wanted number of steps."""


def _ring(*_: Any) -> None:
    raise _OutOfTimeError


_ENDED = {"_OutOfTimeError": "out of time", "_EnoughError": "cut"}

# The hooks of a pytest plugin, which this module is in the tests' process.


def pytest_configure(config: Any) -> None:
    replace()
    config.addinivalue_line("filterwarnings", "ignore:FastSVI")
    # Of torch versions after Pyro's release.
    config.addinivalue_line("filterwarnings", "ignore:.*torch.jit:DeprecationWarning")


def pytest_runtest_setup(item: Any) -> None:
    _made.clear()
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(int(os.environ[_SECONDS]))


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        text = report.longreprtext.strip().split("\n")[-1] if report.failed else ""
        ended = next((name for kind, name in _ENDED.items() if kind in text), None)
        _log(report.nodeid, ended or report.outcome, "" if ended else text)
    if report.when == "call":
        signal.alarm(0)


def _run_example(path: Path, arguments: list[str]) -> None:
    replace()
    _take_the_version_of(path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    name = " ".join([path.name, *arguments])
    pyro.set_rng_seed(0)  # Not all examples set one.
    try:
        runpy.run_path(str(path), run_name="__main__")
    except Exception as error:
        _log(name, "failed", f"{type(error).__name__}: {error}".split("\n")[0])
    except _EnoughError:
        _log(name, "cut", "")
    else:
        _log(name, "passed", "")


def _take_the_version_of(path: Path) -> None:
    """Gives Pyro the version that an example asks for, which is that of its checkout."""
    asked = re.search(r'__version__\.startswith\("([\d.]+)"\)', path.read_text("utf-8"))
    if asked:
        pyro.__version__ = asked[1]


# --- the whole ------------------------------------------------------------------------------------

Results = dict[str, dict[str, Any]]
_CRASHED = {
    "outcome": "failed",
    "modes": {},
    "reason": "the process ended without a word",
    "losses": [],
}
_NOTHING: dict[str, Any] = {"outcome": "missing", "modes": {}, "reason": "", "losses": []}


def _environment(mode: str, log: Path, options: argparse.Namespace) -> dict[str, str]:
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    told = {_MODE: mode, _LOG: str(log), "PYTHONPATH": path}
    limits = {_SECONDS: str(options.seconds), _STEPS: str(options.steps)}
    return {**os.environ, **told, **limits, "MPLBACKEND": "Agg"}


def run_tests(checkout: Path, mode: str, options: argparse.Namespace) -> Results:
    """The outcome of each test under a mode."""
    chosen = [f"tests/{name}" for name in options.only or TESTS]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.jsonl")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "pyro_suite",
            "-p",
            "no:cacheprovider",
        ]
        command += ["-k", options.keyword] if options.keyword else []
        subprocess.run(
            [*command, *chosen],
            cwd=checkout,
            env=_environment(mode, log, options),
            stdout=subprocess.DEVNULL,
            check=False,
        )
        return _read(log)


def run_examples(checkout: Path, mode: str, options: argparse.Namespace) -> Results:
    """The same of the examples, with the arguments that Pyro tests them with."""
    results: Results = {}
    for example in _examples(checkout):
        name, *arguments = example.split()
        if options.only and not any(name.startswith(only) for only in options.only):
            continue
        if options.keyword and options.keyword not in example:
            continue
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log.jsonl")
            path = checkout / "examples" / name
            try:
                subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--example", str(path), *arguments],
                    cwd=folder,
                    env=_environment(mode, log, options),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=options.seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                results[example] = {**_NOTHING, "outcome": "out of time"}
            else:
                results[example] = next(iter(_read(log).values()), _CRASHED)
    return results


def write_stand_ins(folder: Path) -> None:
    """Writes random chorales and faces, where there are none, in the form that examples read."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    chorales, faces = folder / "jsb_chorales.pkl", folder / "faces_training.csv"
    if not chorales.exists():
        splits = {}
        for split, size in (("train", 229), ("valid", 76), ("test", 77)):
            lengths = torch.as_tensor(numbers.integers(25, 130, size))
            drawn = [numbers.random((int(length), 88)) < 4 / 88 for length in lengths]
            notes = [torch.as_tensor(notes).float() for notes in drawn]
            splits[split] = {"sequence_lengths": lengths, "sequences": notes}
        chorales.write_bytes(pickle.dumps(splits))
    if not faces.exists():
        np.savetxt(faces, numbers.integers(0, 255, (320, 4096)), fmt="%d", delimiter=",")


def _examples(checkout: Path) -> list[str]:
    sys.path.insert(0, str(checkout))
    path = checkout / "tests" / "test_examples.py"
    spec = importlib.util.spec_from_file_location("pyros_examples", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [e if isinstance(e, str) else e.values[0] for e in module.CPU_EXAMPLES]


def _read(log: Path) -> Results:
    if not log.exists():
        return {}
    lines = map(json.loads, log.read_text("utf-8").splitlines())
    return {line["name"]: line for line in lines}


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest difference of two programs' losses, relative to the largest loss or to a nat.

    Terms may cancel: a loss of 0 is one of 1e-16 where they are added in another order.
    """
    pairs = list(zip(theirs["losses"], ours["losses"], strict=False))
    largest = max((abs(one) for one, _ in pairs if one == one), default=0.0)
    apart = [abs(a - b) for a, b in pairs if a != b and (a == a or b == b)]
    return max(apart, default=0.0) / max(largest, 1.0)


def compare(theirs: Results, ours: Results, mode: str, options: argparse.Namespace) -> int:
    """Prints what a mode does otherwise; returns how many programs fail or differ with it alone."""
    ran = [name for name, line in theirs.items() if line["outcome"] in ("passed", "cut")]
    lines = {name: ours.get(name, _NOTHING) for name in ran}
    counts = collections.Counter(line["outcome"] for line in lines.values())
    print(f"\n{mode}: of {len(ran)} that pass (or are cut) with SVI, {dict(counts)}")
    wrong = 0
    modes: collections.Counter[str] = collections.Counter()
    for name, line in lines.items():
        modes.update(line["modes"])
        apart = difference(theirs[name], line)
        failed, differs = line["outcome"] == "failed", not apart <= options.most
        wrong += failed or differs
        word = "FAILS  " if failed else "DIFFERS" if differs else "       "
        if failed or differs or (options.verbose and line["modes"]):
            print(f"  {word} {apart:.0e} {_counts(line['modes']):20} {name} {line['reason']}")
    print(f"  programs by the mode that they ended in: {dict(modes)}")
    return wrong


def tabulate(path: Path, results: dict[str, Results]) -> None:
    """Writes outcome and modes of each program that uses SVI; keeps the rows of other programs."""
    rows: dict[str, dict[str, str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["program"]: row for row in csv.DictReader(file)}
    for name in set().union(*results.values()):
        lines = {mode: found.get(name, _NOTHING) for mode, found in results.items()}
        if not lines["svi"]["losses"]:
            continue  # It takes no steps.
        row = rows.setdefault(name, {"program": name})
        for mode, line in lines.items():
            row[mode] = line["outcome"]
            if mode != "svi":
                row[f"{mode}: ended in"] = _counts(line["modes"])
                row[f"{mode}: difference"] = f"{difference(lines['svi'], line):.0e}"
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def _counts(modes: dict[str, int]) -> str:
    return " + ".join(f"{number} {mode}" for mode, number in modes.items())


def main() -> None:
    if sys.argv[1:2] == ["--example"]:
        _run_example(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--examples", action="store_true", help="the examples, not the tests")
    parser.add_argument("--only", nargs="+", help="files of tests/, or beginnings of examples")
    parser.add_argument("--keyword", help="pytest's -k; a part of an example's command")
    parser.add_argument("--modes", nargs="+", default=["eager", "traced"])
    parser.add_argument("--seconds", type=int, default=120, help="for one test or example")
    parser.add_argument("--steps", type=int, default=0, help="most of a program; 0: no limit")
    parser.add_argument("--most", type=float, default=1e-4, help="largest difference of the losses")
    parser.add_argument("--table", type=Path, help="a CSV to add a row for each program to")
    parser.add_argument("--stand-ins", action="store_true", help="random data, where none is found")
    parser.add_argument("--verbose", action="store_true", help="the mode of each program")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    if options.stand_ins:
        write_stand_ins(Path.home() / ".data")
    run = run_examples if options.examples else run_tests
    theirs = run(checkout, "svi", options)
    print(f"SVI: {dict(collections.Counter(line['outcome'] for line in theirs.values()))}")
    ours = {mode: run(checkout, mode, options) for mode in options.modes}
    failed = sum(compare(theirs, ours[mode], mode, options) for mode in options.modes)
    if options.table is not None:
        tabulate(options.table, {"svi": theirs, **ours})
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
