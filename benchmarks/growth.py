"""How time and memory of a training step grow, one size at a time.

    python benchmarks/growth.py
    python benchmarks/growth.py --curve K --modes traced compiled

Curves: ``K`` (pseudo-inputs of a VampPrior), ``latent dim``, ``batch``, ``posterior depth`` (layers
of IAF), ``prior depth`` (layers of RealNVP), ``S`` (samples of an evaluation of 100 images), and
``models`` (trained together; for one step of all). Every point is a process of its own, visited in
an order drawn anew in each round. To add a curve, add a row to ``curves_of``.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from evaluate import ours as evaluation
from harness import PeakMemory, Run, hardware, header, in_fresh_process, options, write
from peers_torch import hand_written, textbook_pyro
from pictures import curves
from steps import ours
from together import together
from works import DIGITS, MNIST, VAMP, Work, our_vae

import pyro_vaes as pv

PEERS: dict[str, Callable[..., Run]] = {
    "textbook Pyro": textbook_pyro,
    "hand-written PyTorch": hand_written,
}
OURS = "pyro_vaes "


def _sized(field: str, work: Work, size: int, contender: str, device: str) -> Run:
    work = dataclasses.replace(work, **{field: size})
    if contender in PEERS:
        return PEERS[contender](work, device)
    return ours(work, contender.removeprefix(OURS), device)  # type: ignore[arg-type]


def _flow(part: str, work: Work, size: int, contender: str, device: str) -> Run:
    vae = our_vae(work)
    if size and part == "posterior":
        recipe = pv.flows.iaf(work.latent, size)
        vae = pv.VAE(vae.prior, pv.FlowPosterior(vae.posterior, recipe), vae.likelihood)
    elif size:
        prior = pv.FlowPrior(work.latent, pv.flows.realnvp(work.latent, size))
        vae = pv.VAE(prior, vae.posterior, vae.likelihood)
    return ours(work, contender.removeprefix(OURS), device, vae)  # type: ignore[arg-type]


def _evaluation(work: Work, size: int, contender: str, device: str) -> Run:
    images = min(100, work.steps * work.batch)
    run = evaluation(work, images, size, device)
    return lambda units: run(units * images * size)


def _models(work: Work, size: int, contender: str, device: str) -> Run:
    run = together(work, size, contender.removeprefix(OURS), device, epochs=6)

    def of_all(units: int) -> float:
        return size * (run(units) or 0.0)

    return of_all


@dataclasses.dataclass(frozen=True)
class Curve:
    """One size that grows.

    Attributes:
        sizes: its values.
        make: builds the run, given the size, the contender and the device.
        peers: contenders beside ours.
        units: how many units are timed; None for as many as fit into the time of a block.
    """

    sizes: tuple[int, ...]
    make: Callable[..., Run]
    peers: tuple[str, ...] = ()
    units: int | None = None


def curves_of(toy: bool) -> dict[str, Curve]:
    """All curves, over small works and two sizes in a toy run."""
    mnist, vamp, digits = (work.toy() if toy else work for work in (MNIST, VAMP, DIGITS))
    both = tuple(PEERS)
    depths = (0, 1, 2, 4, 8, 16)
    found = {
        "K": Curve((1, 10, 50, 200, 500, 1000, 2000), partial(_sized, "components", vamp), both),
        "latent dim": Curve((2, 8, 32, 128, 256), partial(_sized, "latent", vamp), both),
        "batch": Curve((10, 30, 100, 300, 1000), partial(_sized, "batch", mnist), both),
        "posterior depth": Curve(depths, partial(_flow, "posterior", mnist)),
        "prior depth": Curve(depths, partial(_flow, "prior", mnist)),
        "S": Curve((10, 100, 1000, 5000), partial(_evaluation, vamp), units=1),
        "models": Curve((1, 2, 4, 8, 16, 32), partial(_models, digits), units=1),
    }
    if toy:
        found = {k: dataclasses.replace(c, sizes=c.sizes[:2]) for k, c in found.items()}
    return found


def point(
    name: str, size: int, contender: str, device: str, threads: int, block: float, toy: bool
) -> dict[str, Any]:
    """Seconds for a unit and the peak memory beyond what the libraries hold."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # What the libraries load and keep at first use is no part of the growth.
    small = curves_of(toy=True)[name]
    small.make(small.sizes[0], contender, device)(small.units or 3)
    curve = curves_of(toy)[name]
    with PeakMemory(device) as memory:
        run = curve.make(size, contender, device)
        start = time.perf_counter()
        run(1 if curve.units else 3)
        setup = time.perf_counter() - start
        start = time.perf_counter()
        run(1)
        units = curve.units or max(3, round(block / (time.perf_counter() - start)))
        start = time.perf_counter()
        seconds = run(units)
        seconds = time.perf_counter() - start if seconds is None else seconds
    return {
        "curve": name,
        "contender": contender,
        "size": size,
        "seconds": seconds / units,
        "megabytes": memory.bytes / 1e6,
        "setup_seconds": round(setup, 3),
    }


def main() -> None:
    """Visits all points and writes ``growth.csv`` and ``growth.png``."""
    given = options(
        __doc__,
        curve={"help": "this curve only"},
        modes={"nargs": "+", "default": ["traced"], "help": "modes of ours"},
    )
    facts = header()
    todo = [
        (name, size, contender)
        for name, curve in curves_of(given.toy).items()
        if given.curve in (None, name)
        for contender in (*curve.peers, *(OURS + mode for mode in given.modes))
        if given.only is None or given.only in contender
        for size in curve.sizes
    ]
    if not todo:
        raise SystemExit(f"Expected --curve to be one of {', '.join(curves_of(False))}.")
    settings = (given.device, torch.get_num_threads(), 0.01 if given.toy else 1.0, given.toy)
    order, points = random.Random(0), []
    for number in range(given.rounds or (1 if given.toy else 3)):
        for place in order.sample(todo, len(todo)):
            record = in_fresh_process(point, *place, *settings)
            points.append({**record, "round": number})
            name, size, contender = place
            print(
                f"{name} = {size}, {contender}: {1e3 * record['seconds']:.3g} ms, "
                f"{record['megabytes']:.0f} MB",
                flush=True,
            )
    points.sort(key=lambda p: (todo.index((p["curve"], p["size"], p["contender"])), p["round"]))
    stem = "_".join(["growth", *filter(None, [given.curve, "cuda" * (given.device == "cuda")])])
    write(given.out, stem.replace(" ", "_"), points, facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    path = given.out / f"{stem.replace(' ', '_')}.png"
    curves(path, points, {"seconds": "seconds", "megabytes": "peak, MB"}, caption)


if __name__ == "__main__":
    main()
