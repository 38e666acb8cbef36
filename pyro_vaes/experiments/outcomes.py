"""What a study found: one row a run, paired comparisons on the same data, and words for them.

These words describe. What may be claimed of a comparison is said in
:mod:`pyro_vaes.experiments.claims`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.storage.weights import load
from pyro_vaes.vae import VAE

__all__ = ["DAGGER", "Difference", "Outcome", "joined"]


#: The mark of a figure that is not to be trusted.
DAGGER = "†"


class Difference(NamedTuple):
    """Mean of a difference, a number a seed, and its standard errors.

    Attributes:
        mean: over the seeds.
        error: standard error of the mean over the seeds; NaN for one seed.
        seeds: how many.
        rows: standard error over the test rows of these seeds' models, where there is one a row.
    """

    mean: float
    error: float
    seeds: int
    rows: float = math.nan

    @classmethod
    def of(cls, values: np.ndarray, rows: float = math.nan) -> Difference:
        """From one value a seed."""
        return cls(float(values.mean()), _error(values), len(values), rows)

    @property
    def p(self) -> float:
        """Of a two-sided t test of no difference; 1 for one seed."""
        if not self.error > 0:  # One seed, or seeds that agree to the last bit.
            return float(self.error != 0 or self.mean == 0)
        return 2 * float(stdtr(self.seeds - 1, -abs(self.mean) / self.error))

    def __str__(self) -> str:
        return with_error(abs(self.mean), self.error)


@dataclasses.dataclass
class Outcome:
    """The runs of a study that have figures.

    Attributes:
        name: the study.
        data: what the runs were trained on.
        table: one row a run: ``label``, ``seed``, what varies, all figures.
        log_marginal: of each test datum, by label and seed.
        folders: of the runs, by label and seed.
        quick: whether this is a rehearsal, too short for claims.
    """

    name: str
    data: DataSet
    table: pd.DataFrame
    log_marginal: Mapping[tuple[str, int], np.ndarray]
    folders: Mapping[tuple[str, int], Path]
    quick: bool = False

    @property
    def labels(self) -> list[str]:
        """What the cells are called, in the order of the grid."""
        return list(dict.fromkeys(self.table["label"]))

    def vae(self, label: str) -> VAE:
        """The trained model of a cell, of the first seed that has one."""
        seed = self.table.loc[self.table["label"] == label, "seed"].min()
        return load(self.folders[label, int(seed)])

    def history(self, label: str) -> list[list[dict[str, Any]]]:
        """The records of each seed's training."""
        paths = [path for (name, _), path in self.folders.items() if name == label]
        lines = [(path / "metrics.jsonl").read_text("utf-8").splitlines() for path in paths]
        return [[json.loads(line) for line in some] for some in lines]

    def values(self, label: str, key: str) -> np.ndarray:
        """A figure of a cell, one value a seed."""
        column = self.table.loc[self.table["label"] == label, key]
        return column.astype(float).dropna().to_numpy()

    def mean(self, label: str, key: str) -> tuple[float, float]:
        """Mean and standard error of a figure over the seeds (no error for one seed)."""
        values = self.values(label, key)
        if not len(values):
            return math.nan, math.nan
        return float(values.mean()), _error(values)

    def untrusted(self, label: str) -> bool:
        """Whether the estimate of log p(x) is unreliable for too many data, or nobody knows."""
        if "share_unreliable" not in self.table:
            return True
        rows = self.table.loc[self.table["label"] == label, "share_unreliable"].astype(float)
        return not float(rows.mean(skipna=False)) <= UNRELIABLE

    def marked(self, label: str) -> str:
        """A label, with a dagger if its likelihood is not to be trusted."""
        return f"{label} {DAGGER}" if self.untrusted(label) else label

    def paired(self, a: str, b: str) -> Difference:
        """NLL of a minus NLL of b, paired on the same test data and seeds, in nats."""
        seeds = [seed for name, seed in self.log_marginal if name == a]
        seeds = [seed for seed in seeds if (b, seed) in self.log_marginal]
        gaps = np.stack([self.log_marginal[b, s] - self.log_marginal[a, s] for s in seeds])
        return Difference.of(gaps.mean(1), _error(gaps.mean(0)))

    def differs(self, a: str, b: str, key: str) -> Difference:
        """A figure of a minus that of b, paired over the seeds."""
        both = self.table[self.table["label"].isin([a, b])]
        pairs = both.pivot(index="seed", columns="label", values=key).astype(float).dropna()
        return Difference.of((pairs[a] - pairs[b]).to_numpy())

    def differs_within(self, label: str, a: str, b: str) -> Difference:
        """A figure of a cell minus another of the same runs."""
        rows = self.table[self.table["label"] == label]
        return Difference.of((rows[a] - rows[b]).astype(float).dropna().to_numpy())

    def compared(self, a: str, b: str) -> str:
        """In words: by how much the NLL of one cell is below that of another."""
        gap = self.paired(a, b)
        way = "lower" if gap.mean < 0 else "higher"
        return f"NLL is {gap} nats {way} with {self.marked(a)} than with {self.marked(b)}"

    def ranked(self, reference: str, others: Sequence[str]) -> list[str]:
        """Sentences on which cells have a lower NLL than the reference, and which a higher one."""
        gaps = {label: self.paired(label, reference) for label in others if label != reference}
        sentences = []
        for way, chosen in (
            ("lower", [k for k, g in gaps.items() if g.mean < 0]),
            ("higher", [k for k, g in gaps.items() if g.mean >= 0]),
        ):
            if chosen:
                shown = joined([f"{self.marked(k)} (by {gaps[k]})" for k in chosen])
                sentences.append(f"NLL is {way} than with {self.marked(reference)} for {shown}.")
        return sentences

    def chosen(self, among: Sequence[str]) -> str | None:
        """Of cells that there are, that with the best ELBO on the validation rows; or None."""
        there = [label for label in among if label in self.labels]
        if len(there) < 2:
            return there[0] if there else None
        return max(there, key=lambda label: self.mean(label, "val_elbo")[0])


def _error(values: np.ndarray) -> float:
    """The standard error of a mean; NaN of one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def joined(items: Sequence[str]) -> str:
    """Items as a list in a sentence."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def with_error(value: float, error: float, digits: int = 2) -> str:
    spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def mean_text(o: Outcome, label: str, key: str, digits: int = 2) -> str:
    return with_error(*o.mean(label, key), digits)
