"""Milliseconds for one training step: batch in, parameters moved.

    python benchmarks/steps.py                  # digits, MNIST shape, VampPrior
    python benchmarks/steps.py --work vamp
    python benchmarks/steps.py --device cuda

Batches lie ready in memory for every contender: nobody's data loading is timed.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial

import torch
from harness import Contender, Run, chosen, compare, hardware, header, options, summary, write
from pictures import bars
from pyro.optim import Adam
from works import LEARNING_RATE, WORKS, Work, our_vae, rounds_of

import pyro_vaes as pv
from pyro_vaes.core.choices import Mode

OURS = "pyro_vaes {}"


def ours(work: Work, mode: Mode, device: str, vae: pv.VAE | None = None) -> Run:
    """``FastSVI`` on a VAE of ``pyro_vaes``: the work's, or another."""
    vae = (vae or our_vae(work)).to(device)
    svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": LEARNING_RATE}), mode=mode)
    batches = rounds_of(work.data().to(device))

    def run(steps: int) -> None:
        for _ in range(steps):
            svi.update(next(batches))
        if svi.mode != mode:
            raise RuntimeError(f"Expected steps in mode {mode}; FastSVI fell back to {svi.mode}.")
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _jax_on(device: str) -> bool:
    """Puts JAX on a device if it can be there, where it would else take nearly all memory."""
    os.environ["JAX_PLATFORMS"] = device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    try:
        return bool(jax.devices())
    except RuntimeError:
        return False


def contenders(work: Work, device: str) -> list[Contender]:
    """All that can do the work; peers that are not installed are left out."""
    modes: tuple[Mode, ...] = ("eager", "traced", "compiled")
    if device == "cuda":
        modes += ("cuda_graph",)
    from peers_torch import hand_written, textbook_pyro

    found = [
        Contender("textbook Pyro", partial(textbook_pyro, work, device)),
        Contender("hand-written PyTorch", partial(hand_written, work, device)),
    ]
    if importlib.util.find_spec("numpyro") and not work.components and _jax_on(device):
        import peers_numpyro

        found += [
            Contender("NumPyro, jit", partial(peers_numpyro.jitted, work)),
            Contender("NumPyro, scan", partial(peers_numpyro.scanned, work), work.steps),
        ]
    if importlib.util.find_spec("pythae") and work.levels == 2:
        import peers_pythae

        found.append(Contender("pythae", partial(peers_pythae.training, work, device)))
    found += [Contender(OURS.format(mode), partial(ours, work, mode, device)) for mode in modes]
    return found


def main() -> None:
    """Times all works and writes ``steps.csv`` and ``steps.png``."""
    chosen_options = options(
        __doc__,
        work={"choices": WORKS, "help": "this work only"},
    )
    facts = header()
    panels = {}
    records = []
    for name, work in WORKS.items():
        if chosen_options.work not in (None, name):
            continue
        work = work.toy() if chosen_options.toy else work
        print(work.title, flush=True)
        panels[work.title] = compare(
            chosen(contenders(work, chosen_options.device), chosen_options.only),
            rounds=chosen_options.rounds or (2 if chosen_options.toy else 21),
            block_seconds=0.01 if chosen_options.toy else 0.3,
        )
        print(summary(panels[work.title]), flush=True)
        records += [{"work": name, **record} for record in panels[work.title]]
    stem = "_".join(
        ["steps", *filter(None, [chosen_options.work, "cuda" * (chosen_options.device == "cuda")])]
    )
    write(chosen_options.out, stem, records, facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    bars(chosen_options.out / f"{stem}.png", panels, "ms a step", caption=caption)


if __name__ == "__main__":
    main()
