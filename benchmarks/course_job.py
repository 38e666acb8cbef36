"""The course's plain VAE job, from data to test figures, as whole processes.

    python benchmarks/course_job.py

``pyro-vaes train`` against ``course_loop.py`` (with and without the pictures that a notebook
draws), in turns, one seed a round. Wall clock from starting Python to its end: imports, tracing or
compiling, training with early stopping, the test figures from equally many samples, and files are
all in it. The number of epochs differs from seed to seed and from loop to loop: it is recorded
beside, with the figures reached, so that no speed is bought with a worse model.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import hardware, header, options, summary, write
from pictures import bars

HERE = Path(__file__).parent
SAMPLES = 1000  # what pyro-vaes train draws for its test figures
KEPT = ("epochs", "nll", "neg_elbo")


def _run(command: list[str], threads: int) -> tuple[float, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout


def ours(seed: int, epochs: int, threads: int, *flags: str) -> dict[str, Any]:
    """One run of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "pyro_vaes", "train", "--recipe", "course"]
        # The default may move on to better likelihoods; the job is the course's.
        command += ["--likelihood", "categorical", "--threads", str(threads)]
        command += ["--seed", str(seed), "--epochs", str(epochs), "--out", str(out), *flags]
        seconds, _ = _run(command, threads)
        figures = json.loads((out / "summary.json").read_text())
    return {
        "seconds": seconds,
        "epochs": figures["epochs"],
        "nll": figures["nll"],
        "neg_elbo": -figures["elbo"],
        "train_seconds": figures["train_seconds"],
    }


def course(seed: int, epochs: int, threads: int, *flags: str) -> dict[str, Any]:
    """One run of the course's loop."""
    command = [sys.executable, str(HERE / "course_loop.py"), "--json", "--seed", str(seed)]
    command += ["--epochs", str(epochs), "--samples", str(SAMPLES), *flags]
    seconds, text = _run(command, threads)
    figures = json.loads(text)
    return {
        "seconds": seconds,
        "epochs": figures["epochs"],
        "nll": figures["test_nll"],
        "neg_elbo": figures["test_neg_elbo"],
        "train_seconds": figures["seconds"],
    }


def main() -> None:
    """Runs the job and writes ``course_job.csv`` and ``course_job.png``."""
    given = options(__doc__)
    facts = header()
    epochs, threads = 2 if given.toy else 1000, torch.get_num_threads()
    jobs = {
        "course loop": lambda seed: course(seed, epochs, threads),
        "course loop, pictures": lambda seed: course(seed, epochs, threads, "--pictures"),
        "pyro_vaes train": lambda seed: ours(seed, epochs, threads),
        # The loops' own evaluation; by default a proposal is fitted to each image.
        "pyro_vaes train, encoder's draws": lambda seed: ours(
            seed, epochs, threads, "--proposal", "encoder"
        ),
    }
    names = [name for name in jobs if given.only is None or given.only in name]
    records, order = [], random.Random(0)
    for number in range(given.rounds or (1 if given.toy else 7)):
        for name in order.sample(names, len(names)):
            record = {"contender": name, "round": number, **jobs[name](number)}
            records.append(record)
            shown = {k: round(v, 2) for k, v in record.items() if isinstance(v, float)}
            print(f"{name}, seed {number}: {record['epochs']} epochs, {shown}", flush=True)
    records.sort(key=lambda record: (names.index(record["contender"]), record["round"]))
    print(summary(records, "s"))
    for name in names:
        mine = [record for record in records if record["contender"] == name]
        means = {key: statistics.mean(record[key] for record in mine) for key in KEPT}
        print(name, *(f"{key} {value:.2f}" for key, value in means.items()))
    write(given.out, "course_job", [{"work": "course job", **r} for r in records], facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    panel = {"the course's job": records}
    bars(given.out / "course_job.png", panel, "s, whole process", 1, caption)


if __name__ == "__main__":
    main()
