"""Combinations of parts that once cost many times their neighbours, next to these.

    python benchmarks/combinations.py

Milliseconds a training step of a VampPrior of an IAF posterior and of its base (digits), and of an
ordinal likelihood and a discretised logistic on 256 levels (MNIST's shape); microseconds a draw of
the default evaluation of colour images by both; memory of ``encode`` of a flow posterior against
the number of rows. Writes ``combinations.csv`` and ``combinations_memory.csv``.
"""

from __future__ import annotations

import dataclasses
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
from steps import ours
from works import DIGITS, MNIST, Work

import pyro_vaes as pv

COLOUR = dataclasses.replace(
    MNIST, title="colour images", features=3072, latent=32, levels=256, batch=40, steps=1
)
LIKELIHOODS: dict[str, Any] = {
    "ordinal": pv.OrdinalLikelihood,
    "discretised logistic": pv.DiscretizedLogisticLikelihood,
}


def flow_posterior(work: Work) -> pv.FlowPosterior:
    """Four IAF layers after a normal posterior."""
    base = pv.NormalPosterior(pv.MLP(work.features, work.hidden), work.latent)
    return pv.FlowPosterior(base, pv.flows.iaf(work.latent, 4))


def vamp_of(work: Work, of_base: bool) -> Run:
    """Steps of a VampPrior, of an IAF posterior or of its base."""
    posterior = flow_posterior(work)
    inputs = work.data().flatten(0, 1)[: work.components]
    prior = pv.VampPrior(posterior.base if of_base else posterior, inputs)
    decoder = pv.MLP(work.latent, work.hidden)
    likelihood = pv.CategoricalLikelihood(decoder, (work.features,), work.levels)
    return ours(work, "traced", "cpu", pv.VAE(prior, posterior, likelihood))


def levels_model(work: Work, name: str) -> pv.VAE:
    """A model of all 256 levels."""
    posterior = pv.NormalPosterior(pv.MLP(work.features, work.hidden), work.latent)
    decoder = pv.MLP(work.latent, work.hidden)
    likelihood = LIKELIHOODS[name](decoder, (work.features,), work.levels)
    if hasattr(likelihood, "initialize_from"):
        likelihood.initialize_from(pixels(work))
    return pv.VAE(pv.NormalPrior(work.latent), posterior, likelihood)


def pixels(work: Work) -> torch.Tensor:
    """One batch of levels, each pixel around one of its own."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(work.features, generator=generator) * (work.levels - 1)
    noise = 20 * torch.randn(work.batch, work.features, generator=generator)
    return (middle + noise).round().clamp(0, work.levels - 1)


def levels_steps(work: Work, name: str) -> Run:
    """Steps on all levels."""
    vae, x = levels_model(work, name), pixels(work)
    svi = pv.FastSVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, fused=True), pv.ELBO())

    def run(steps: int) -> None:
        for _ in range(steps):
            svi.update(x)

    return run


def levels_evaluation(work: Work, num_samples: int, name: str) -> Run:
    """The default evaluation of the batch; one unit is one draw scored."""
    vae, x = levels_model(work, name), pixels(work)

    def run(units: int) -> None:
        for _ in range(units // (len(x) * num_samples)):
            pv.evaluate(vae, x, num_samples=num_samples)

    return run


def encoding(work: Work, rows: int) -> float:
    """Most memory, in MB, of codes by a posterior without analytic mean, beyond model and data."""
    posterior = flow_posterior(work)
    likelihood = pv.CategoricalLikelihood(
        pv.MLP(work.latent, work.hidden), (work.features,), work.levels
    )
    vae = pv.VAE(pv.NormalPrior(work.latent), posterior, likelihood)
    x = torch.randint(work.levels, (rows, work.features)).float()
    vae.encode(x[:2])
    with PeakMemory() as memory:
        vae.encode(x)
    return memory.bytes / 1e6


def tables(toy: bool) -> Iterator[tuple[str, list[Contender]]]:
    """The works to time, and who does them."""
    digits, mnist, colour = (w.toy() if toy else w for w in (DIGITS, MNIST, COLOUR))
    for components in (10, 50):
        work = dataclasses.replace(digits, components=min(components, 5) if toy else components)
        yield (
            f"digits step, VampPrior K = {components}",
            [
                Contender("of an IAF posterior", partial(vamp_of, work, False)),
                Contender("of its base", partial(vamp_of, work, True)),
            ],
        )
    work = dataclasses.replace(mnist, levels=16 if toy else 256)
    yield (
        "step on 256 levels, MNIST's shape",
        [Contender(name, partial(levels_steps, work, name)) for name in LIKELIHOODS],
    )
    work, draws = (dataclasses.replace(colour, features=12), 20) if toy else (colour, 200)
    yield (
        "evaluation, colour images",
        [
            Contender(name, partial(levels_evaluation, work, draws, name), work.batch * draws)
            for name in LIKELIHOODS
        ],
    )


def main() -> None:
    """Times, measures memory, and writes both tables and their pictures."""
    given = options(__doc__)
    facts = header()
    panels: dict[str, Any] = {}
    for title, contenders in tables(given.toy):
        print(title, flush=True)
        panels[title] = compare(
            chosen(contenders, given.only),
            rounds=given.rounds or (2 if given.toy else 11),
            block_seconds=0.01 if given.toy else 0.3,
        )
        print(summary(panels[title]), flush=True)
    records = [{"work": title, **one} for title, found in panels.items() for one in found]
    write(given.out, "combinations", records, facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    bars(given.out / "combinations.png", panels, "ms a step, or a draw", caption=caption)
    work, sizes = (DIGITS.toy(), (20, 40)) if given.toy else (DIGITS, (1000, 3000, 10_000))
    points = [
        {"curve": "rows", "contender": "encode", "size": rows, "megabytes": megabytes}
        for rows in sizes
        for megabytes in [in_fresh_process(encoding, work, rows)]
    ]
    write(given.out, "combinations_memory", points, facts)
    curves(given.out / "combinations_memory.png", points, {"megabytes": "peak, MB"}, caption)


if __name__ == "__main__":
    main()
