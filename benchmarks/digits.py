"""Figures on the digits: every row trained from scratch, several seeds, judged on the test rows.

    python benchmarks/digits.py course       # the course's four priors
    python benchmarks/digits.py recipes      # the recipes
    python benchmarks/digits.py ingredients  # what each ingredient of the default is worth

Choices were made on the validation rows; this script is where the test rows are looked at. A row's
``+-`` is the standard error over the seeds; a difference is paired over the same test images and
seeds. Writes a CSV (one line a run) and a Markdown table to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_vaes as pv
from pyro_vaes.runs.build import build
from pyro_vaes.runs.resolve import check_combination, resolve
from pyro_vaes.runs.run import train

RESULTS = Path(__file__).parent / "results"

# A row: its title, a recipe, and the flags that differ from it.
COURSE: list[tuple[str, str, dict[str, Any]]] = [
    ("standard", "course", {}),
    ("mixture, K = 50", "course", {"prior": "mixture", "prior_components": 50}),
    (
        "VampPrior, K = 200, learned weights, warm-up 20",
        "course",
        {
            "prior": "vamp",
            "prior_components": 200,
            "prior_weights": "learned",
            "warmup_epochs": 20,
        },
    ),
    ("RealNVP, 4 layers", "course", {"prior": "realnvp", "prior_flows": 4}),
    ("MAF, 4 layers", "course", {"prior": "maf", "prior_flows": 4}),
]
# The default, the convolutional one, and the default with one ingredient taken away at a time.
RECIPES: list[tuple[str, str, dict[str, Any]]] = [
    ("default", "default", {}),
    ("digits-conv", "digits-conv", {}),
]
INGREDIENTS: list[tuple[str, str, dict[str, Any]]] = [
    ("default", "default", {}),
    ("categorical levels", "default", {"likelihood": "categorical"}),
    ("no augmentation", "default", {"augment": 0.0}),
    ("standard prior", "default", {"prior": "standard"}),
    ("no moving average", "default", {"ema_decay": 0.0}),
    ("no KL warm-up", "default", {"warmup_epochs": 0.0}),
    ("LeakyReLU", "default", {"activation": "leaky_relu"}),
]
# The same for the convolutional recipe: its ingredients besides the default's.
CONVOLUTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("digits-conv", "digits-conv", {}),
    ("no sharpness", "digits-conv", {"sharpness": False}),
    ("50 components", "digits-conv", {"prior_components": 50}),
    ("moving average 0.995", "digits-conv", {"ema_decay": 0.995}),
    ("no augmentation", "digits-conv", {"augment": 0.0}),
    ("no KL warm-up", "digits-conv", {"warmup_epochs": 0.0}),
]
TABLES = {
    "course": COURSE,
    "recipes": RECIPES,
    "ingredients": INGREDIENTS,
    "convolutions": CONVOLUTIONS,
}


def trained(recipe: str, flags: dict[str, Any], seed: int) -> tuple[pv.VAE, pv.History]:
    """Trains one model on the digits."""
    config, explicit = resolve(recipe, None, {**flags, "seed": seed})
    config, _ = check_combination(config, explicit)
    data = pv.load_data("digits")
    torch.manual_seed(seed)
    vae, _ = build(config, data)
    return vae, train(vae, data, config, progress=False)


def run(recipe: str, flags: dict[str, Any], seed: int, samples: int) -> dict[str, Any]:
    """Trains and evaluates one model; returns its figures and log p(x) of each test image."""
    started = time.perf_counter()
    vae, history = trained(recipe, flags, seed)
    seconds = time.perf_counter() - started
    data = pv.load_data("digits")
    val = pv.evaluate(vae, data.val, num_samples=min(500, samples), diagnostics=False)
    test = pv.evaluate(vae, data.test, num_samples=samples)
    assert test.share_unreliable is not None, test.reasons.get("num_unreliable")
    return {
        "seed": seed,
        "epochs": history.epochs,
        "seconds": seconds,
        "val_nll": val.nll,
        "nll": test.nll,
        "nll_se": test.nll_se,
        "neg_elbo": -test.elbo,
        "kl": test.kl,
        "k_hat": test.pareto_k_median,
        "share_unreliable": test.share_unreliable,
        "log_marginal": test.log_marginal,
    }


def error(values: list[float]) -> float:
    """Standard error of a mean over seeds."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def main() -> None:
    """Trains all rows of a table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000, help="at least 21, for k-hat")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", help="only rows whose title holds this text")
    options = parser.parse_args()
    if options.samples < 21:
        parser.error(f"Expected --samples of 21 or more, which k-hat needs; got {options.samples}.")
    rows = [row for row in TABLES[options.table] if not options.rows or options.rows in row[0]]
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| model | NLL | k-hat | unreliable | against the first row | -ELBO | KL "
        "| validation NLL | epochs | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    records, reference = [], None
    for title, recipe, flags in rows:
        runs = []
        for seed in range(options.seeds):
            runs.append(run(recipe, flags, seed, options.samples))
            shown = {k: round(v, 2) for k, v in runs[-1].items() if k != "log_marginal"}
            print(title, shown, flush=True)
        per_datum = torch.stack([r.pop("log_marginal") for r in runs]).mean(0)
        mean = {key: statistics.mean(r[key] for r in runs) for key in runs[0]}
        against = ""
        if reference is None:
            reference = per_datum
        else:
            difference = reference - per_datum
            se = difference.std().item() / math.sqrt(len(difference))
            against = f"{difference.mean().item():+.2f} ± {se:.2f}"
        lines.append(
            f"| {title} | {mean['nll']:.2f} ± {error([r['nll'] for r in runs]):.2f} | "
            f"{mean['k_hat']:.2f} | {mean['share_unreliable']:.1%} | {against} | "
            f"{mean['neg_elbo']:.2f} | {mean['kl']:.2f} | {mean['val_nll']:.2f} | "
            f"{mean['epochs']:.0f} | {mean['seconds']:.1f} |"
        )
        records += [{"model": title, "recipe": recipe, **flags, **r} for r in runs]
    command = f"python benchmarks/digits.py {options.table}"
    command += "".join(
        f" --{name} {getattr(options, name)!r}"
        for name in ("seeds", "samples", "rows")
        if getattr(options, name) != parser.get_default(name)
    )
    lines += [
        "",
        f"Digits, {options.seeds} seeds, {options.samples} importance samples, nats per image; "
        "± over seeds, in the column against the first row over the test images, paired; k-hat is "
        "the median of the test images', unreliable their share without a trusted estimate. "
        f"torch {torch.__version__}, pyro {pyro.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads. `{command}`",
    ]
    text = "\n".join(lines) + "\n"
    (options.out / f"digits_{options.table}.md").write_text(text)
    names = list(dict.fromkeys(key for record in records for key in record))
    with (options.out / f"digits_{options.table}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(records)
    print(text)


if __name__ == "__main__":
    main()
