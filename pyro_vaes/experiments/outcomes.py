"""What a study found: one row a run, paired comparisons on the same data, and words for them.

A difference is claimed only where it exceeds two of its standard errors. The error is that of a
paired comparison: over the test data (of the differences of each datum, averaged over the seeds)
and over the seeds, added in quadrature.
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

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.storage.weights import load
from pyro_vaes.vae import VAE

__all__ = ["Difference", "Outcome", "joined"]


# So many standard errors make a difference worth a claim.
_CLAIM = 2.0


class Difference(NamedTuple):
    """Mean of a difference and its standard error."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it exceeds two standard errors."""
        return abs(self.mean) > _CLAIM * self.error

    def __str__(self) -> str:
        return f"{abs(self.mean):.2f} ± {self.error:.2f}"


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
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return float(values.mean()), float(error)

    def paired(self, a: str, b: str) -> Difference:
        """NLL of a minus NLL of b, paired on the same test data and seeds, in nats."""
        seeds = [seed for name, seed in self.log_marginal if name == a]
        seeds = [seed for seed in seeds if (b, seed) in self.log_marginal]
        gaps = np.stack([self.log_marginal[b, s] - self.log_marginal[a, s] for s in seeds])
        over_data = gaps.mean(0).std(ddof=1) / math.sqrt(gaps.shape[1])
        means = gaps.mean(1)
        over_seeds = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        return Difference(float(means.mean()), math.hypot(over_data, over_seeds))

    def differs(self, a: str, b: str, key: str) -> Difference:
        """A figure of a minus that of b, paired over the seeds alone."""
        gaps = self.values(a, key) - self.values(b, key)
        error = gaps.std(ddof=1) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
        return Difference(float(gaps.mean()), float(error))

    def compared(self, a: str, b: str) -> str:
        """In words: which of two cells has the lower NLL, if that can be told."""
        gap = self.paired(a, b)
        if not gap.clear:
            return f"{a} and {b} cannot be told apart by NLL ({gap} nats)"
        better, worse = (a, b) if gap.mean < 0 else (b, a)
        return f"{better} has a lower NLL than {worse}, by {gap} nats"

    def ranked(self, reference: str, others: Sequence[str]) -> list[str]:
        """A sentence on which cells beat the reference, lose to it, and cannot be told from it."""
        gaps = {label: self.paired(label, reference) for label in others if label != reference}
        sentences = []
        for words, chosen in (
            ("lower", [k for k, g in gaps.items() if g.clear and g.mean < 0]),
            ("higher", [k for k, g in gaps.items() if g.clear and g.mean > 0]),
        ):
            if chosen:
                shown = joined([f"{k} (by {gaps[k]})" for k in chosen])
                sentences.append(f"NLL is {words} than with {reference} for {shown} nats.")
        unclear = [k for k, g in gaps.items() if not g.clear]
        if unclear:
            shown = joined(unclear)
            sentences.append(f"By NLL, {shown} cannot be told from {reference}.")
        return sentences

    def best(self, key: str = "nll", among: Sequence[str] | None = None) -> str:
        """The cell with the lowest mean of a figure."""
        return min(among or self.labels, key=lambda label: self.mean(label, key)[0])


def joined(items: Sequence[str]) -> str:
    """Items as a list in a sentence."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def with_error(value: float, error: float, digits: int = 2) -> str:
    spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def mean_text(o: Outcome, label: str, key: str, digits: int = 2) -> str:
    return with_error(*o.mean(label, key), digits)
