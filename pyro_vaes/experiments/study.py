"""The declaration of a study: a grid of runs, figures and findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.claims import MOST, Comparison
from pyro_vaes.experiments.outcomes import Outcome
from pyro_vaes.experiments.panels import Figures
from pyro_vaes.runs.resolve import check_combination, resolve
from pyro_vaes.runs.schema import RunConfig

__all__ = ["Cell", "Study", "configuration"]

_REHEARSAL: Mapping[str, Any] = {"epochs": 4, "patience": 4}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Attributes:
        label: the name in tables and figures.
        options: over the study's base, by flat name.
        factors: the factors that vary, a column each in the table.
    """

    label: str
    options: Mapping[str, Any]
    factors: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs and the question it answers.

    Attributes:
        title: a heading.
        question: a sentence or two.
        grid: the cells, given the data; the second argument asks for a small grid.
        draw: the figures.
        findings: sentences that describe and claim nothing.
        columns: of the page's table, after NLL, ELBO and KL: key to heading.
        measures: names in :data:`~pyro_vaes.experiments.measures.MEASURES`.
        reference: the cell with which others are compared; the first if empty.
        needs: requirements on the data: ``labels``, ``levels`` or ``images``.
        recipe: the recipe of its runs; the default recipe if None.
        base: options over the recipe that all cells share.
        comparisons: the comparisons to test, three at most, named before anything is run.

    Raises:
        ValueError: for more comparisons.
    """

    title: str
    question: str
    grid: Callable[[DataSet, bool], list[Cell]]
    draw: Callable[[Outcome], Figures]
    findings: Callable[[Outcome], list[str]]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measures: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    reference: str = ""
    recipe: str | None = None
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        if len(self.comparisons) > MOST:
            raise ValueError(
                f"Expected at most {MOST} comparisons in a study; got {len(self.comparisons)}. "
                "Name those that its question is about."
            )


def configuration(
    study: Study, cell: Cell, data: str, root: str, kind: str, seed: int, quick: bool
) -> RunConfig:
    """The options of a cell's run on a data set of some kind of values."""
    likelihood = {} if kind == "levels" else {"likelihood": "auto"}
    values = {**study.base, "data": data, "data_root": root, "seed": seed}
    values |= {**likelihood, **cell.options, **(_REHEARSAL if quick else {})}
    config, _ = resolve(study.recipe, None, values)
    return check_combination(config)[0]
