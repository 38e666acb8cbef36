"""Test log p(x) of tables as they come, in nats and in their own units: units must not matter.

Four tables, three splits, two seeds. "as it is" is the command line on the raw file; "by hand" the
same on the file standardised by its training rows, with the Jacobian; "Python" are parts and
``initialize_from``, on the raw rows. The mixtures of Gaussians and the factor analyses of
scikit-learn are chosen on the same validation rows, standardised as well.

Each cell is kept in ``--runs`` as soon as it is there: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, header, write

import pyro_vaes as pv
from pyro_vaes.cli.train import train_command

OURS, CLASSICAL = ("as it is", "by hand", "Python"), ("GaussianMixture", "FactorAnalysis")
SPLITS, SEEDS, BASELINE = range(3), range(2), "by hand"
_DRAWS = 400


def tables() -> dict[str, np.ndarray]:
    """The raw tables; penguins only where palmerpenguins is installed."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

    wine, diabetes = load_wine(), load_diabetes()
    found = {
        "breast cancer": load_breast_cancer().data,
        "wine": np.column_stack([wine.data, wine.target]),
        "diabetes": np.column_stack([diabetes.data, diabetes.target]),
    }
    with contextlib.suppress(ImportError):
        from palmerpenguins import load_penguins

        found["penguins"] = load_penguins().select_dtypes("number").dropna().to_numpy(float)
    return found


def _standardised(data: pv.DataSet) -> tuple[Callable[[Any], torch.Tensor], float]:
    """What standardises rows by those of training, and what that adds to log p(x)."""
    x = data.train.x.double()
    center, spread = x.mean(0), x.std(0, correction=0)
    jacobian = -float(spread.log().sum())
    return lambda rows: (torch.as_tensor(rows).double() - center) / spread, jacobian


def _command(x: Any, folder: Path, split: int, seed: int, epochs: int) -> torch.Tensor:
    """Log p(x) of the test rows of a file of rows, by ``pyro-vaes train``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.csv"
    names = ",".join(f"c{i}" for i in range(x.shape[1]))
    np.savetxt(file, np.asarray(x), delimiter=",", header=names, comments="", fmt="%.9g")
    flags = f"--kind real --split-seed {split} --seed {seed} --epochs {epochs} --samples 10"
    flags += f" --warmup-epochs {min(100, epochs // 2)}"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_command.main(
            [*flags.split(), "--data", str(file), "--out", str(folder / "run")],
            standalone_mode=False,
        )
    data = pv.load_data(file, kind="real", seed=split)
    return _score(pv.load(folder / "run"), data)


def _python(data: pv.DataSet, seed: int, epochs: int) -> torch.Tensor:
    torch.manual_seed(seed)
    size = data.event_shape[0]
    likelihood = pv.NormalLikelihood(pv.MLP(16, [256, 256]), (size,))
    likelihood.initialize_from(data.train.x)
    posterior = pv.NormalPosterior(pv.MLP(size, [256, 256]), 16)
    vae = pv.VAE(pv.NormalPrior(16), posterior, likelihood)
    pv.fit(
        vae,
        data.train,
        data.val,
        epochs=epochs,
        patience=50,
        warmup_epochs=min(100, epochs // 2),
        ema_decay=0.995,
        seed=seed,
        progress=False,
    )
    return _score(vae, data)


def _score(vae: pv.VAE, data: pv.DataSet) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pv.log_marginal(vae, data.test, num_samples=_DRAWS)


def _classical(name: str, data: pv.DataSet) -> torch.Tensor:
    """The model that scores the validation rows best, on the test rows."""
    from sklearn.decomposition import FactorAnalysis
    from sklearn.mixture import GaussianMixture

    standardise, jacobian = _standardised(data)
    train, val, test = (standardise(s.x).numpy() for s in (data.train, data.val, data.test))
    models: Iterable[Any]
    if name == "FactorAnalysis":
        models = (FactorAnalysis(k) for k in range(1, min(13, train.shape[1])))
    else:
        models = (
            GaussianMixture(k, covariance_type=kind, reg_covar=floor, random_state=0)
            for k, kind, floor in itertools.product(
                (1, 2, 3, 5, 8, 12), ("full", "diag"), (1e-3, 1e-2)
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = max((model.fit(train) for model in models), key=lambda model: model.score(val))
    return torch.as_tensor(best.score_samples(test)) + jacobian


def cell(
    name: str, x: np.ndarray, contender: str, split: int, seed: int, folder: Path, epochs: int
) -> np.ndarray:
    """Log p(x) of each test row of one cell, from the folder if it is there."""
    kept = folder / f"{name}-{contender}-{split}-{seed}.npy".replace(" ", "-")
    if kept.exists():
        return np.asarray(np.load(kept))
    data = pv.load_data(x, kind="real", seed=split)
    run = folder / kept.stem
    if contender == "as it is":
        values = _command(x, run, split, seed, epochs)
    elif contender == "by hand":
        standardise, jacobian = _standardised(data)
        values = _command(standardise(x), run, split, seed, epochs) + jacobian
    elif contender == "Python":
        values = _python(data, seed, epochs)
    else:
        values = _classical(contender, data)
    part = kept.with_suffix(".part.npy")
    np.save(part, values.double().numpy())
    part.replace(kept)
    return values.numpy()


def _record(table: str, contender: str, runs: dict[tuple[int, int], np.ndarray], base: Any) -> Any:
    """One line of the table: over splits and seeds, and paired with the baseline."""
    seeds = sorted({seed for _, seed in runs})
    values = np.concatenate([runs[key] for key in sorted(runs)])
    pairs = [runs[key] - base[key[0], key[1] if key in base else 0] for key in sorted(runs)]
    # Rows are what varies: seeds of a split score the same ones.
    per_row = np.concatenate(
        [
            np.mean([p for k, p in zip(sorted(runs), pairs, strict=True) if k[0] == s], axis=0)
            for s in sorted({split for split, _ in runs})
        ]
    )
    return {
        "table": table,
        "contender": contender,
        "splits": len({split for split, _ in runs}),
        "seeds": len(seeds),
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "lowest": float(values.min()),
        f"minus {BASELINE}": float(per_row.mean()),
        "paired s.e.": float(per_row.std(ddof=1) / math.sqrt(len(per_row))),
        "median difference": float(np.median(per_row)),
    }


def main() -> None:
    """Does what is missing, and writes ``raw_tables.csv``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/raw_tables"))
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    given = parser.parse_args()
    if given.toy and given.out == RESULTS:
        parser.error("Expected --out beside --toy, whose figures are not worth keeping.")
    torch.set_num_threads(1)
    given.runs.mkdir(parents=True, exist_ok=True)
    sizes = (range(1), range(1), 4) if given.toy else (SPLITS, SEEDS, 350)
    found: dict[tuple[str, str], dict[tuple[int, int], np.ndarray]] = {}
    all_tables = {k: v for k, v in tables().items() if not given.toy or k == "wine"}
    for split, seed, name, contender in itertools.product(
        sizes[0], sizes[1], all_tables, (*OURS, *CLASSICAL)
    ):
        if contender in CLASSICAL and seed:
            continue  # Nothing in them is random.
        values = cell(name, all_tables[name], contender, split, seed, given.runs, sizes[2])
        print(f"{name}, split {split}, seed {seed}, {contender}: {values.mean():.2f}", flush=True)
        found.setdefault((name, contender), {})[split, seed] = values
    records = [
        _record(name, contender, runs, found[name, BASELINE])
        for (name, contender), runs in sorted(found.items(), key=lambda item: item[0][0])
    ]
    print(write(given.out, "raw_tables", records, header()))


if __name__ == "__main__":
    main()
