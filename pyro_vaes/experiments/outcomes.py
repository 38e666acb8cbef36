"""The outcome of a study: one row per run, paired comparisons on the same data, and sentences.

The sentences describe; :mod:`pyro_vaes.experiments.claims` tests what may be claimed.
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


#: The mark of an unreliable figure.
DAGGER = "†"


class Difference(NamedTuple):
    """The mean of a difference over seeds, and its standard errors.

    Attributes:
        mean: over the seeds.
        error: standard error of the mean over the seeds; NaN for one seed.
        seeds: the number of seeds.
        rows: standard error over the test rows for these models, if there is a value per row.
    """

    mean: float
    error: float
    seeds: int
    rows: float = math.nan

    @classmethod
    def of(cls, values: np.ndarray, rows: float = math.nan) -> Difference:
        """From one value per seed."""
        return cls(float(values.mean()), _error(values), len(values), rows)

    @property
    def p(self) -> float:
        """The p value of a two-sided t test of no difference; 1 for one seed."""
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
        data: the data of the runs.
        table: one row per run: ``label``, ``seed``, the factors, all figures.
        log_marginal: of each test datum, by label and seed.
        folders: of the runs, by label and seed.
        quick: whether this is a rehearsal, too short for claims.
        shown: the table of the page, the heads first.
        noted: further figures of the findings by their meaning; the page lists them.
    """

    name: str
    data: DataSet
    table: pd.DataFrame
    log_marginal: Mapping[tuple[str, int], np.ndarray]
    folders: Mapping[tuple[str, int], Path]
    quick: bool = False
    shown: Sequence[Sequence[str]] = ()
    noted: dict[str, str] = dataclasses.field(default_factory=dict)

    def cell(self, label: str, head: str) -> str:
        """A figure as the page's table shows it, without its sign or the error over rows."""
        row = next(row for row in self.shown if row[0] == label)
        return row[list(self.shown[0]).index(head)].split(" (")[0].lstrip("+-")

    def note(self, meaning: str, value: str) -> str:
        """A figure that findings quote and the table lacks, listed below the table."""
        self.noted[meaning] = value
        return value

    def lead(self, a: str, b: str) -> str:
        """By how much the NLL of a is lower or higher than that of b, noted as well."""
        gap = self.paired(a, b)
        self.note(f"NLL, {a} minus {b}", f"{'-' if gap.mean < 0 else '+'}{gap}")
        return f"{gap} nats {'lower' if gap.mean < 0 else 'higher'}"

    def lowest(self, among: Sequence[str], key: str = "nll") -> str:
        """The cell with the lowest mean of a figure, which describes and chooses nothing."""
        return min(among, key=lambda label: self.mean(label, key)[0])

    @property
    def labels(self) -> list[str]:
        """The labels of the cells, in the order of the grid."""
        return list(dict.fromkeys(self.table["label"]))

    def vae(self, label: str) -> VAE:
        """The trained model of a cell, for the first seed that has one."""
        seed = self.table.loc[self.table["label"] == label, "seed"].min()
        return load(self.folders[label, int(seed)])

    def history(self, label: str) -> list[list[dict[str, Any]]]:
        """The records of each seed's training."""
        paths = [path for (name, _), path in self.folders.items() if name == label]
        lines = [(path / "metrics.jsonl").read_text("utf-8").splitlines() for path in paths]
        return [[json.loads(line) for line in some] for some in lines]

    def values(self, label: str, key: str) -> np.ndarray:
        """A figure of a cell, one value per seed."""
        column = self.table.loc[self.table["label"] == label, key]
        return column.astype(float).dropna().to_numpy()

    def mean(self, label: str, key: str) -> tuple[float, float]:
        """Mean and standard error of a figure over the seeds (no error for one seed)."""
        values = self.values(label, key)
        if not len(values):
            return math.nan, math.nan
        return float(values.mean()), _error(values)

    def untrusted(self, label: str) -> bool:
        """Whether the estimate of log p(x) is unreliable for too many data, or is unchecked."""
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
        """A sentence on the difference in NLL of two cells."""
        gap = self.paired(a, b)
        way = "lower" if gap.mean < 0 else "higher"
        return f"NLL is {gap} nats {way} with {self.marked(a)} than with {self.marked(b)}"

    def ranked(self, reference: str, others: Sequence[str]) -> list[str]:
        """Sentences on the cells with a lower NLL than the reference, and with a higher one."""
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
        """Among the cells present, the one with the best validation ELBO; None without any."""
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


def in_words(count: int) -> str:
    """A small number in words."""
    names = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    names += ["ten", "eleven", "twelve"]
    return names[count] if count < len(names) else str(count)
