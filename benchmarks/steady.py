"""Trains for 10,000 steps and watches the memory of the process: it must not grow.

Each way of training has a fresh process. What is read is its resident memory after each thousand
steps; the first two thousand are warm-up, in which allocators and caches take what they keep.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import pyro.optim
import torch
from harness import RESULTS, header, in_fresh_process, write

import pyro_vaes as pv

WAYS = ("FastSVI eager", "FastSVI traced", "fit eager", "fit traced")
ROWS, BATCH = 256, 64
_WARM_UP = 2000


def _vae() -> pv.VAE:
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(64, [32]), 4)
    prior = pv.VampPrior(posterior, torch.rand(10, 64))
    return pv.VAE(prior, posterior, pv.OrdinalLikelihood(pv.MLP(4, [32]), (64,), 17))


def _megabytes() -> float:
    """What the process holds of the machine's memory now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(way: str, steps: int, every: int) -> list[dict[str, Any]]:
    """The memory at regular intervals of steps of one way of training."""
    torch.set_num_threads(1)
    kind, mode = way.split()
    vae = _vae()
    x = torch.randint(0, 17, (ROWS, 64)).float()
    points: list[dict[str, Any]] = []

    def look(done: int) -> None:
        if done % every == 0:
            points.append({"way": way, "steps": done, "megabytes": _megabytes()})

    if kind == "FastSVI":
        optim = pyro.optim.Adam({"lr": 1e-3})
        svi = pv.FastSVI(vae.model, vae.guide, optim, pv.ELBO(), mode=mode)
        for done in range(1, steps + 1):
            start = done * BATCH % ROWS
            svi.step(x[start : start + BATCH])
            look(done)
        return points
    update, done = pv.FastSVI.update, 0

    def counted(self: pv.FastSVI, *args: Any) -> torch.Tensor:
        nonlocal done
        loss = update(self, *args)
        done += 1
        look(done)
        return loss

    pv.FastSVI.update = counted  # type: ignore[assignment, method-assign]
    epochs = -(-steps * BATCH // ROWS)
    pv.fit(vae, x, x, epochs=epochs, batch_size=BATCH, mode=mode, ema_decay=0.99, progress=False)
    return points


def main() -> None:
    """Watches each way and writes ``steady.csv``; status 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    facts, points, grown = header(), [], []
    for way in WAYS:
        found = in_fresh_process(watch, way, given.steps, 1000)
        points += found
        start = next(p["megabytes"] for p in found if p["steps"] >= min(_WARM_UP, given.steps))
        growth = found[-1]["megabytes"] - start
        facts[f"{way}, MB from step {_WARM_UP} on"] = f"{growth:+.2f}"
        print(
            f"{way}: {found[-1]['megabytes']:.1f} MB, {growth:+.2f} after the warm-up", flush=True
        )
        grown += [way] * (growth > 5)
    print(write(given.out, "steady", points, facts))
    if grown:
        raise SystemExit(f"Expected memory that does not grow; got growth in {', '.join(grown)}.")


if __name__ == "__main__":
    main()
