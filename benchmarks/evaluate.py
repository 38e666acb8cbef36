"""Importance-weighted log-likelihoods: microseconds a draw, and memory against S.

    python benchmarks/evaluate.py

A VAE of MNIST's shape with a VampPrior of K = 500. Ours scores all images; pythae's ``get_nll``
goes through them one by one, so a few of them tell its price per draw. It draws whole batches:
what is counted is what it draws. Both of its useful batch sizes are timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import (
    Contender,
    PeakMemory,
    Run,
    chosen,
    compare,
    hardware,
    header,
    in_fresh_process,
    options,
    summary,
    write,
)
from pictures import bars, curves
from works import VAMP, Work, our_vae

import pyro_vaes as pv


def ours(work: Work, images: int, num_samples: int, device: str, diagnostics: bool = False) -> Run:
    """The bound of all images in one call; one unit is one draw scored."""
    vae = our_vae(work).to(device)
    x = work.data().flatten(0, 1)[:images].to(device)

    def run(units: int) -> None:
        for _ in range(units // (images * num_samples)):
            if diagnostics:
                pv.evaluate(vae, x, num_samples=num_samples, proposal="encoder")
            else:
                pv.log_marginal(vae, x, num_samples, proposal="encoder")

    return run


def contenders(work: Work, images: int, num_samples: int, device: str) -> list[Contender]:
    """Ours and, where it is installed, pythae's."""
    draws = images * num_samples
    found = []
    if importlib.util.find_spec("pythae"):
        import peers_pythae

        some = max(1, images // 20)
        for size in sorted({min(100, num_samples), num_samples}):
            found.append(
                Contender(
                    f"pythae, batches of {size}",
                    partial(peers_pythae.evaluation, work, some, num_samples, size, device),
                    some * peers_pythae.exact_draws(num_samples, size),
                )
            )
    whole = partial(ours, work, images, num_samples, device)
    return [
        *found,
        Contender("pyro_vaes log_marginal", whole, draws),
        Contender("pyro_vaes evaluate", partial(whole, diagnostics=True), draws),
    ]


def peak(kind: str, work: Work, images: int, num_samples: int, device: str, threads: int) -> float:
    """Most memory, in MB, beyond what the model, the data and a small first call hold."""
    torch.set_num_threads(threads)
    if kind == "pyro_vaes":
        make: Any = partial(ours, work, images, device=device)
    else:
        import peers_pythae

        make = lambda s: peers_pythae.evaluation(work, 1, s, s, device)  # noqa: E731
    make(2)(images * 2)
    run = make(num_samples)
    with PeakMemory(device) as memory:
        run(images * num_samples)
    return memory.bytes / 1e6


def memory(
    work: Work, images: int, sizes: tuple[int, ...], device: str
) -> Iterator[dict[str, Any]]:
    """Peaks against S, each in a process of its own."""
    kinds = ["pyro_vaes"]
    if importlib.util.find_spec("pythae"):
        kinds.append("pythae, one batch")
    for kind in kinds:
        for size in sizes:
            count = images if kind == "pyro_vaes" else 1
            megabytes = in_fresh_process(
                peak, kind, work, count, size, device, torch.get_num_threads()
            )
            print(f"  {kind}, S = {size}: {megabytes:.0f} MB", flush=True)
            yield {"curve": "S", "contender": kind, "size": size, "megabytes": megabytes}


def main() -> None:
    """Times, measures memory, and writes ``evaluate.csv`` and ``evaluate_memory.csv``."""
    given = options(__doc__, images={"type": int, "default": 200})
    facts = header()
    work, images, num_samples = VAMP, given.images, 1000
    sizes: tuple[int, ...] = (100, 300, 1000, 3000, 10_000)
    if given.toy:
        work, images, num_samples, sizes = work.toy(), 20, 20, (10, 20)
    # One epoch of data holds the images, whatever the work's batches.
    work = dataclasses.replace(work, steps=-(-images // work.batch))
    print(f"{images} images, S = {num_samples}", flush=True)
    records = compare(
        chosen(contenders(work, images, num_samples, given.device), given.only),
        rounds=given.rounds or (2 if given.toy else 7),
        block_seconds=0,
        warmup=0,
    )
    print(summary(records, "us"), flush=True)
    stem = "evaluate" + "_cuda" * (given.device == "cuda")
    write(given.out, stem, [{"work": "evaluate", **record} for record in records], facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    title = f"{work.title}, S = {num_samples}"
    bars(given.out / f"{stem}.png", {title: records}, "µs a draw", 1e6, caption)
    points = list(memory(work, images, sizes, given.device))
    write(given.out, f"{stem}_memory", points, facts)
    curves(given.out / f"{stem}_memory.png", points, {"megabytes": "peak, MB"}, caption)


if __name__ == "__main__":
    main()
