"""How a study makes a claim: a few comparisons named beforehand, each tested once.

Two trainings of one model differ in their seed, so the seed is the unit: a comparison is one number
per seed, the mean over the test rows of the paired difference, and the claim is a two-sided t test
over these numbers with one degree of freedom fewer than seeds. (More test rows would only inform
about these trained models.) All comparisons of a study pass through Holm's correction (Holm, "A
simple sequentially rejective multiple test procedure", 1979). All other findings are described, not
claimed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.experiments.outcomes import DAGGER, Difference, Outcome

__all__ = ["MOST", "Claim", "Comparison", "claims", "holm"]


# Comparisons that a study may name, seeds that a test needs, and the level of all tests together.
MOST, SEEDS, LEVEL = 3, 5, 0.05

# Figures computed from the estimate of log p(x).
_OF_LOG_P = ("nll", "gap")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison that a study names before it is run.

    Attributes:
        a: label of a cell; of several, the one with the best validation ELBO is compared.
        b: the same.
        key: of the figure.
        name: of the figure, in words.
        unit: of the figure.
    """

    a: str | tuple[str, ...]
    b: str | tuple[str, ...]
    key: str = "nll"
    name: str = "NLL"
    unit: str = "nats"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A comparison and its result.

    Attributes:
        comparison: the comparison named.
        a: the cell chosen.
        b: the other.
        difference: of a and b.
        obstacle: why it cannot be tested; empty if it can.
        p: of the t test after Holm's correction, 1 without a test.
    """

    comparison: Comparison
    a: str
    b: str
    difference: Difference
    obstacle: str
    p: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether the difference is claimed."""
        return not self.obstacle and self.p <= LEVEL

    def __str__(self) -> str:
        c, d = self.comparison, self.difference
        way = "lower" if d.mean < 0 else "higher"
        # "Than", since a name may hold commas.
        text = f"{c.name} with *{self.a}* than with *{self.b}*: {d} {c.unit} {way}"
        if c.key == "nll" and not math.isnan(d.rows):
            text += f" (± {d.rows:.2f} over the test rows)"
        if self.obstacle:
            return f"{text}; not tested: {self.obstacle}."
        verdict = "claimed" if self.holds else "no difference is claimed"
        return f"{text}; p = {self.p:.2g} over {d.seeds} seeds, corrected: **{verdict}**."


def claims(o: Outcome, comparisons: Sequence[Comparison]) -> list[Claim]:
    """Tests the comparisons whose cells are present."""
    found = list(_compared(o, comparisons))
    # Comparisons that cannot be tested still count in the correction.
    corrected = holm([1.0 if c.obstacle else c.difference.p for c in found])
    return [dataclasses.replace(c, p=p) for c, p in zip(found, corrected, strict=True)]


def _compared(o: Outcome, comparisons: Sequence[Comparison]) -> Iterator[Claim]:
    for c in comparisons:
        a, b = (o.chosen([side] if isinstance(side, str) else side) for side in (c.a, c.b))
        if a is not None and b is not None:
            difference = o.paired(a, b) if c.key == "nll" else o.differs(a, b, c.key)
            yield Claim(c, a, b, difference, _obstacle(o, c.key, a, b, difference.seeds))


def _obstacle(o: Outcome, key: str, a: str, b: str, seeds: int) -> str:
    if key in _OF_LOG_P:
        doubtful = [f"*{label}*" for label in (a, b) if o.untrusted(label)]
        if doubtful:
            return f"{' and '.join(doubtful)} {DAGGER} unreliable for over {UNRELIABLE:.0%} of rows"
    return f"{seeds} of at least {SEEDS} seeds" if seeds < SEEDS else ""


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, most = [1.0] * len(values), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = most
    return corrected
