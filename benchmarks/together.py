"""Digits models of one architecture trained together, against one after another.

    python benchmarks/together.py
    python benchmarks/together.py --models 64 --device cuda

Milliseconds for one step of one model, the data's order, noise and bookkeeping included, as ``fit``
and ``fit_many`` report them. The first epoch, which traces and compiles, does not count; how long
a whole call takes is in the column ``setup_seconds``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from harness import Contender, Run, chosen, compare, hardware, header, options, summary, write
from pictures import bars
from works import DIGITS, Work, our_vae

import pyro_vaes as pv


def _steady(histories: list[pv.History], epochs: int) -> float:
    """Seconds for one epoch of one model, the first epoch left out."""
    # A single run reports the seconds of an epoch, a joint one each model's share of them.
    records = [record for history in histories[:1] for record in history.records[1:]]
    return sum(record["seconds"] for record in records) / (epochs - 1)


def together(work: Work, models: int, mode: str, device: str, epochs: int = 21) -> Run:
    """``fit_many``; one unit is one step of one model."""
    from pyro_vaes.training.sweep import fit_many

    rows = work.data().flatten(0, 1)

    def run(units: int) -> float:
        vaes = [our_vae(work) for _ in range(models)]
        settings: Any = {"batch_size": work.batch, "device": device, "mode": mode}
        return units / work.steps * _steady(fit_many(vaes, rows, epochs=epochs, **settings), epochs)

    return run


def alone(work: Work, mode: Any, device: str, epochs: int = 21) -> Run:
    """``fit``; one unit is one step."""
    rows = work.data().flatten(0, 1)

    def run(units: int) -> float:
        history = pv.fit(
            our_vae(work),
            rows,
            epochs=epochs,
            batch_size=work.batch,
            device=device,
            mode=mode,
            progress=False,
        )
        return units / work.steps * _steady([history], epochs)

    return run


def main() -> None:
    """Times them and writes ``together.csv`` and ``together.png``."""
    given = options(__doc__, models={"type": int})
    facts = header()
    work = DIGITS.toy() if given.toy else DIGITS
    models = given.models or (2 if given.toy else 16)
    epochs = 2 if given.toy else 21
    singles: tuple[str, ...] = ("traced",) if given.toy else ("eager", "traced", "compiled")
    if given.device == "cuda" and not given.toy:
        singles = ("eager", "cuda_graph")
    joint = ("traced",) if given.toy else ("traced", "compiled")
    found = [
        Contender(f"one after another, {mode}", partial(alone, work, mode, given.device, epochs))
        for mode in singles
    ] + [
        Contender(
            f"pyro_vaes together, {mode}",
            partial(together, work, models, mode, given.device, epochs),
        )
        for mode in joint
    ]
    print(f"{models} models", flush=True)
    records = compare(
        chosen(found, given.only),
        rounds=given.rounds or (2 if given.toy else 7),
        block_seconds=0,
        warmup=1,
    )
    print(summary(records), flush=True)
    stem = "together" + "_cuda" * (given.device == "cuda")
    write(given.out, stem, [{"work": f"{models} models", **record} for record in records], facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    title = f"{models} digits models"
    bars(given.out / f"{stem}.png", {title: records}, "ms a step and model", caption=caption)


if __name__ == "__main__":
    main()
