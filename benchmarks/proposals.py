"""What a proposal does to the figure, and what it costs.

    python benchmarks/proposals.py

Trains models whose encoders are good and bad proposals (one seed each, the digits), and estimates
log p(x) of the test rows by each proposal: NLL, k-hat, the share of unreliable rows, decoder
evaluations relative to the encoder's draws. Then times encoder and ``auto`` in turns, against the
number of rows and of draws. Writes ``proposals.csv`` (figures), ``proposals.md`` (both tables) and
``proposals_cost.csv`` (seconds).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from digits import trained
from harness import Contender, Run, compare, hardware, header, options, ratio, write
from pictures import bars

import pyro_vaes as pv

# A row: its title, a recipe, and the flags that differ from it.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "beta = 1": ("course", {}),
    "beta = 0.5": ("course", {"beta": 0.5}),
    "beta = 0.1": ("course", {"beta": 0.1}),
    "beta = 0": ("course", {"beta": 0.0}),
    "autoregressive, alpha = 1, lambda = 10, MMD": (
        "course",
        {"likelihood": "autoregressive", "alpha": 1.0, "lambda": 10.0, "divergence": "mmd"},
    ),
    "IAF posterior": ("course", {"posterior": "iaf"}),
    "default recipe": ("default", {}),
}
PROPOSALS = ("encoder", "refined", "auto", "annealed")
# Shares of the draws with which ``auto`` is repeated: how many does a figure need?
_SHARES = (10, 3, 1)


def figures(name: str, vae: pv.VAE, x: torch.Tensor, samples: int, audit: int) -> Iterator[Any]:
    """A record for each proposal; annealing, an audit, on the first rows alone."""
    asked = [
        (proposal, samples // share)
        for proposal in PROPOSALS
        for share in (_SHARES if proposal == "auto" else (1,))
    ]
    for proposal, draws in asked:
        rows = x[:audit] if proposal == "annealed" else x
        found = pv.evaluate(vae, rows, num_samples=draws, proposal=proposal, diagnostics=False)
        first = found.log_marginal[:audit].mean().item()
        yield {
            "model": name,
            "proposal": proposal,
            "rows": len(rows),
            "samples": draws,
            "nll": found.nll,
            "nll_se": found.nll_se,
            "nll_audit_rows": -first,
            "k_hat_median": found.pareto_k_median,
            "share_unreliable": found.share_unreliable,
            "evaluations": found.cost,
        }


def scoring(vae: pv.VAE, x: torch.Tensor, samples: int, proposal: str) -> Run:
    """All rows' log p(x) in one call; a unit is that call."""

    def run(units: int) -> None:
        for _ in range(units):
            pv.log_marginal(vae, x, samples, proposal=proposal)

    return run


def costs(
    vae: pv.VAE, x: torch.Tensor, works: list[tuple[int, int]], rounds: int
) -> Iterator[dict[str, Any]]:
    """Seconds of encoder and auto, in turns, for each number of rows and draws."""
    for rows, samples in works:
        contenders = [
            Contender(name, partial(scoring, vae, x[:rows], samples, name))
            for name in ("encoder", "auto")
        ]
        print(f"{rows} rows, S = {samples}", flush=True)
        for record in compare(contenders, rounds=rounds, block_seconds=0, warmup=0):
            yield {"work": f"{rows} rows, S = {samples}", **record}


def figures_table(records: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row for each model and proposal."""
    lines = [
        "| model | proposal | S | NLL | NLL, audited rows | k-hat | unreliable "
        "| decoder evaluations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        whole = "" if r["proposal"] == "annealed" else f"{r['nll']:.2f} ± {r['nll_se']:.2f}"
        k_hat = "" if r["k_hat_median"] is None else f"{r['k_hat_median']:.2f}"
        share = "" if r["share_unreliable"] is None else f"{r['share_unreliable']:.1%}"
        lines.append(
            f"| {r['model']} | {r['proposal']} | {r['samples']} | {whole} | "
            f"{r['nll_audit_rows']:.2f} | {k_hat} | "
            f"{share} | {r['evaluations']:.1f} S |"
        )
    return lines


def cost_table(records: list[dict[str, Any]]) -> list[str]:
    """Markdown: seconds of both and their ratio, for each work."""
    lines = ["| work | encoder, s | auto, s | ratio | quartiles |", "|---|---|---|---|---|"]
    for work in dict.fromkeys(r["work"] for r in records):
        mine = [r for r in records if r["work"] == work]
        low, middle, high = ratio(mine, "auto", "encoder") or (0.0, 0.0, 0.0)
        encoder, auto = (
            statistics.median(r["seconds"] for r in mine if r["contender"] == name)
            for name in ("encoder", "auto")
        )
        lines.append(
            f"| {work} | {encoder:.2f} | {auto:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} |"
        )
    return lines


def main() -> None:
    """Trains, estimates, times, and writes the tables."""
    given = options(__doc__, samples={"type": int, "default": 1000})
    facts = header()
    models, samples, audit, flags = MODELS, given.samples, 64, {}
    works, rounds = [(64, 1000), (447, 100), (447, 1000), (447, 3000)], given.rounds or 5
    if given.toy:
        models = {"beta = 0.5": MODELS["beta = 0.5"]}
        samples, audit, flags, works, rounds = 30, 4, {"epochs": 2}, [(16, 30)], 2
    test = pv.load_data("digits").test
    x = test.x[:16] if given.toy else test.x
    records: list[dict[str, Any]] = []
    vae = None
    for name, (recipe, own) in models.items():
        if given.only and given.only not in name:
            continue
        vae = trained(recipe, {**own, **flags}, 0)[0]
        for record in figures(name, vae, x, samples, audit):
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in record.items()})
            records.append(record)
    assert vae is not None, f"no model's name holds {given.only!r}"
    # Timed on the last of them.
    timed = list(costs(vae, x, works, rounds))
    write(given.out, "proposals", records, facts)
    write(given.out, "proposals_cost", timed, facts)
    caption = f"{hardware(facts)}; {facts['versions']}"
    panels = {
        w: [r for r in timed if r["work"] == w] for w in dict.fromkeys(r["work"] for r in timed)
    }
    bars(given.out / "proposals_cost.png", panels, "s", 1.0, caption)
    text = [
        *figures_table(records),
        "",
        f"Digits, {len(x)} test rows (annealed: the first {audit}, the audited rows), one seed; "
        "± is the standard error over the rows. Decoder evaluations are all "
        "that were made, fits included, in units of the encoder's draws.",
        "",
        *cost_table(timed),
        "",
        f"Medians of {rounds} rounds in turns, {list(models)[-1]}. {hardware(facts)}, "
        f"{facts['threads']} threads; {facts['versions']}; commit {facts['commit']}. "
        f"`{facts['command']}`",
    ]
    (given.out / "proposals.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
