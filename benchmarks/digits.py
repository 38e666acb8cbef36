"""Figures on the digits: every row trained from scratch, several seeds, judged on the test rows.

    python benchmarks/digits.py recipes       # the recipes
    python benchmarks/digits.py course        # the course's four priors
    python benchmarks/digits.py ingredients   # what each ingredient of the default is worth
    python benchmarks/digits.py convolutions  # the same for the convolutional recipe
    python benchmarks/digits.py posteriors    # what closer posteriors and bounds add to it

Choices were made on the validation rows; this script is where the test rows are looked at. Each
table is a study like those of the course: its runs are known by their contents, so that a second
call goes on, and its page states k-hat, errors over seeds, and the comparisons that were tested.
Pages go to ``benchmarks/results/digits/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyro_vaes as pv
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome
from pyro_vaes.experiments.pages import Settings, usual_proposal, write_pages
from pyro_vaes.experiments.study import Cell, Study
from pyro_vaes.runs.build import build
from pyro_vaes.runs.recipes import RECIPES
from pyro_vaes.runs.resolve import check_combination, resolve
from pyro_vaes.runs.run import train

RESULTS = Path(__file__).parent / "results" / "digits"

# A row: what differs from the recipe of its table, by flag.
_RECIPES = {name: RECIPES[name].values for name in ("default", "digits-conv", "course")}
_COURSE: Mapping[str, Mapping[str, Any]] = {
    "standard": {},
    "mixture, K = 50": {"prior": "mixture", "prior_components": 50},
    "VampPrior, K = 200, learned weights, warm-up 20": {
        "prior": "vamp",
        "prior_components": 200,
        "prior_weights": "learned",
        "warmup_epochs": 20,
    },
    "RealNVP, 4 layers": {"prior": "realnvp", "prior_flows": 4},
    "MAF, 4 layers": {"prior": "maf", "prior_flows": 4},
}
_INGREDIENTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "categorical levels": {"likelihood": "categorical"},
    "no augmentation": {"augment": 0.0},
    "standard prior": {"prior": "standard"},
    "no moving average": {"ema_decay": 0.0},
    "no KL warm-up": {"warmup_epochs": 0.0},
    "LeakyReLU": {"activation": "leaky_relu"},
}
_CONVOLUTIONS: Mapping[str, Mapping[str, Any]] = {
    "digits-conv": {},
    "no sharpness": {"sharpness": False},
    "50 components": {"prior_components": 50},
    "moving average 0.995": {"ema_decay": 0.995},
    "no augmentation": {"augment": 0.0},
    "no KL warm-up": {"warmup_epochs": 0.0},
}
_POSTERIORS: Mapping[str, Mapping[str, Any]] = {
    "digits-conv": {},
    "full covariance": {"posterior": "full_normal"},
    "full covariance, five draws": {
        "posterior": "full_normal",
        "train_samples": 5,
        "gradient": "path",
    },
    "the same, images moved by more": {
        "posterior": "full_normal",
        "train_samples": 5,
        "gradient": "path",
        "augment": 2.2,
    },
}


def table(
    title: str,
    question: str,
    rows: Mapping[str, Mapping[str, Any]],
    tested: tuple[str, ...],
    recipe: str | None = None,
) -> Study:
    """A study whose first row is the one that others are compared with."""
    first, *others = rows

    def findings(o: Outcome) -> list[str]:
        return o.ranked(first, others)

    return Study(
        title,
        question,
        grid=lambda data, quick: [Cell(name, flags) for name, flags in rows.items()],
        draw=lambda outcome: {},
        findings=findings,
        columns={
            "val_elbo": "validation -ELBO",
            "active_units": "active units",
            "epochs": "epochs",
        },
        recipe=recipe,
        comparisons=tuple(Comparison(name, first) for name in tested),
    )


STUDIES = {
    "recipes": table(
        "Recipes on the digits",
        "What does each recipe reach?",
        _RECIPES,
        ("digits-conv", "course"),
    ),
    "course": table(
        "The course's priors",
        "What do the notebook's model and its four priors reach?",
        _COURSE,
        ("mixture, K = 50", "RealNVP, 4 layers", "MAF, 4 layers"),
        "course",
    ),
    "ingredients": table(
        "Ingredients of the default recipe",
        "What is each ingredient worth? Each row takes one away.",
        _INGREDIENTS,
        ("categorical levels", "standard prior", "no augmentation"),
    ),
    "convolutions": table(
        "Ingredients of the convolutional recipe",
        "What is each ingredient worth? Each row takes one away.",
        _CONVOLUTIONS,
        ("no sharpness", "no augmentation", "no KL warm-up"),
        "digits-conv",
    ),
    "posteriors": table(
        "Posteriors of the convolutional recipe",
        "What do a closer posterior and a tighter bound add?",
        _POSTERIORS,
        ("full covariance", "full covariance, five draws", "the same, images moved by more"),
        "digits-conv",
    ),
}


def trained(recipe: str, flags: Mapping[str, Any], seed: int) -> tuple[pv.VAE, pv.History]:
    """Trains one model on the digits."""
    config, explicit = resolve(recipe, None, {**flags, "seed": seed})
    config, _ = check_combination(config, explicit)
    data = pv.load_data("digits")
    torch.manual_seed(seed)
    vae, _ = build(config, data)
    return vae, train(vae, data, config, progress=False)


def main() -> None:
    """Trains all rows of a table and writes its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=STUDIES)
    flag = partial(parser.add_argument, type=int)
    flag("--seeds", default=5)
    flag("--samples", default=1000, help="importance samples for each test image")
    flag("--workers", default=0, help="processes; 0: one per core")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="a rehearsal: few epochs")
    given = parser.parse_args()
    settings = Settings(
        seeds=given.seeds,
        samples=given.samples,
        proposal=usual_proposal(given.quick),
        quick=given.quick,
        out=given.out,
        runs=given.runs,
        workers=given.workers,
        program="python benchmarks/digits.py",
    )
    for page in write_pages({given.table: STUDIES[given.table]}, settings):
        print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
