"""Runs studies and writes a table, figures and findings for each.

Once all runs of a study NAME are done, the folder gets ``NAME.csv`` (one row a run), the page with
question, table, findings and claims as ``NAME.md`` and ``NAME.json``, and ``NAME_*.png``.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pyro_vaes.data.dataset import DataSet, load_data
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.experiments.claims import claims
from pyro_vaes.experiments.outcomes import DAGGER, Difference, Outcome
from pyro_vaes.experiments.page import Page
from pyro_vaes.experiments.runs import Run, contents_of
from pyro_vaes.experiments.schedule import run_all
from pyro_vaes.experiments.study import Cell, Study, configuration
from pyro_vaes.plotting import save_figure
from pyro_vaes.runs.build import data_of
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import RunConfig
from pyro_vaes.runs.summary import VERSIONS
from pyro_vaes.storage.files import locked, write_text
from pyro_vaes.storage.weights import WEIGHTS

__all__ = ["Settings", "notes_of", "table_of", "usual_proposal", "write_pages"]


_COMMON = {
    "nll": "NLL",
    "pareto_k_median": "k-hat",
    "share_unreliable": "unreliable",
    "elbo": "-ELBO",
    "kl": "KL",
}
# Figures computed from the estimate of log p(x).
_OF_LOG_P = ("nll", "nll_train", "gap")


class Settings(NamedTuple):
    """Settings of studies.

    Attributes:
        data: a data set's name or the path of a file.
        data_root: folder for downloaded data.
        seeds: the number of seeds; 0, 1, 2, ...
        samples: importance samples per test datum.
        proposal: what log p(x) is estimated from, see :func:`pyro_vaes.evaluate`.
        quick: a rehearsal: few epochs, small grids.
        out: folder of tables and figures.
        runs: folder of the runs.
        workers: processes; 0 for one per core.
        engine: a name in :data:`~pyro_vaes.experiments.engines.ENGINES`.
        progress: show a progress bar.
        program: what the pages name as the command that made them, without study and flags.
    """

    data: str = "digits"
    data_root: str = "data"
    seeds: int = 3
    samples: int = 500
    proposal: str = "auto"
    quick: bool = False
    out: Path = Path("figures")
    runs: Path = Path("runs/studies")
    workers: int = 0
    engine: str = "local"
    progress: bool = True
    program: str = "pyro-vaes study"

    @property
    def command(self) -> str:
        """The flags that affect the findings."""
        flags = [f"--seeds {self.seeds}", f"--samples {self.samples}"]
        flags = [f"--data {self.data}", *flags] if self.data != "digits" else flags
        if self.proposal != usual_proposal(self.quick):
            flags.append(f"--proposal {self.proposal}")
        return " ".join([*flags, *(["--quick"] if self.quick else [])])


def usual_proposal(quick: bool) -> str:
    """A rehearsal makes no claims, so no proposals are fitted."""
    return "encoder" if quick else "auto"


def write_pages(studies: Mapping[str, Study], settings: Settings) -> list[Path]:
    """Runs studies, all their runs together, and writes their pages.

    Args:
        studies: by name.
        settings: seeds, samples and folders.

    Returns:
        The Markdown file of each study.

    Raises:
        ConfigError: for data that do not meet a study's needs.
        FolderInUseError: if another process runs one of them for the same folder.
    """
    data = load_data(settings.data, root=settings.data_root)
    for name, study in studies.items():
        _check(name, study, data)
    grids = {name: study.grid(data, settings.quick) for name, study in studies.items()}
    contents = _contents()
    runs = {
        (name, cell.label, seed): Run(
            config := _configuration(studies[name], cell, data, seed, settings),
            contents(config),
            settings.runs,
            settings.samples,
            studies[name].measures,
            settings.proposal,
        )
        for name, cells in grids.items()
        for cell in cells
        for seed in range(settings.seeds)
    }
    with ExitStack() as alone:
        for name in studies:
            alone.enter_context(locked(settings.out, name))
        results = run_all(
            list(runs.values()),
            workers=settings.workers,
            engine=settings.engine,
            progress=settings.progress,
        )
        return [
            _write(name, study, grids[name], runs, results, data, settings)
            for name, study in studies.items()
        ]


def _contents() -> Callable[[RunConfig], str]:
    """The contents of the data of configurations; data are read once."""
    known: dict[Any, str] = {}

    def contents(config: RunConfig) -> str:
        where = dataclasses.replace(config.data, augment=0.0, conditional=False)
        if where not in known:
            known[where] = contents_of(data_of(config))
        return known[where]

    return contents


def _check(name: str, study: Study, data: DataSet) -> None:
    has = {
        "labels": data.num_labels is not None,
        "levels": data.num_levels is not None,
        "images": data.image_shape is not None,
    }
    for need in study.needs:
        if not has[need]:
            raise ConfigError(
                f"Invalid value for '--data': expected data with {need} for the study {name!r}; "
                f"got {data.name} without."
            )


def _configuration(
    study: Study, cell: Cell, data: DataSet, seed: int, settings: Settings
) -> RunConfig:
    where = settings.data, settings.data_root
    return configuration(study, cell, *where, data.kind, seed, settings.quick)


def _write(
    name: str,
    study: Study,
    cells: Sequence[Cell],
    runs: Mapping[tuple[str, str, int], Run],
    results: Mapping[str, dict[str, Any]],
    data: DataSet,
    settings: Settings,
) -> Path:
    rows, log_marginal, folders, failed = [], {}, {}, []
    for cell in cells:
        for seed in range(settings.seeds):
            run = runs[name, cell.label, seed]
            result = results[run.key]
            row = {"study": name, "label": cell.label, "seed": seed, **cell.factors}
            row |= {"data": settings.data, "run": run.folder.name}
            if "error" in result:
                failed.append(f"{cell.label}, seed {seed}: {result['error']}")
                rows.append({**row, "error": result["error"]})
                continue
            figures = {k: v for k, v in result["figures"].items() if not k.endswith("_reason")}
            row |= {**figures, **result["training"], "evaluate_seconds": result["evaluate_seconds"]}
            row |= result["versions"]
            bounds = figures["elbo"], figures["nll"]
            row["gap"] = None if None in bounds else -bounds[0] - bounds[1]
            for measure in study.measures:
                row |= result["measures"][measure]
            rows.append(row)
            log_marginal[cell.label, seed] = np.array(result["log_marginal"])
            folders[cell.label, seed] = run.folder
    table = pd.DataFrame(rows)
    _csv(table, settings.out / f"{name}.csv")
    done = table[table["nll"].notna()] if "nll" in table else table[:0]
    outcome = Outcome(name, data, done, log_marginal, folders, settings.quick)
    if not len(done):
        raise ConfigError(f"No run of the study {name!r} has figures: {'; '.join(failed)}")
    outcome.shown = table_of(outcome, study)
    rehearsal = ["A rehearsal: too short for findings."]
    findings = rehearsal if settings.quick else study.findings(outcome)
    drawn = []
    for part, (figure, caption) in study.draw(outcome).items():
        save_figure(figure, settings.out / f"{name}_{part}.png")
        drawn.append((f"{name}_{part}.png", caption))
    page = Page(
        title=study.title,
        question=study.question,
        table=outcome.shown,
        notes=[*notes_of(outcome), *(f"No figures: {reason}" for reason in failed)],
        figures=drawn,
        findings=findings,
        claims=[] if settings.quick else list(map(str, claims(outcome, study.comparisons))),
        made_by=_made_by(settings, data, outcome.table),
        command=f"{settings.program} {name} {settings.command}",
        date=_date(folders.values()),
    )
    if unfounded := page.unfounded():
        raise ValueError(
            f"Expected findings of {name!r} with the numbers of its table; got {unfounded}."
        )
    return page.write(settings.out, name)


def _date(folders: Iterable[Path]) -> str:
    """The day on which the last of some runs was trained, in UTC."""
    last = max((folder / WEIGHTS).stat().st_mtime for folder in folders)
    return datetime.fromtimestamp(last, timezone.utc).date().isoformat()


def _csv(table: pd.DataFrame, path: Path) -> None:
    plain = table.map(lambda v: json.dumps(v) if isinstance(v, list) else v)
    write_text(path, plain.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def table_of(o: Outcome, study: Study) -> list[list[str]]:
    """The table of a page: the heads, and a row for each cell."""
    columns = {**_COMMON, **study.columns}
    against = len(o.labels) > 1
    first = study.reference or o.labels[0]
    heads = ["", *columns.values()]
    if against:
        heads.insert(2, f"NLL against {first}")
    rows = [heads]
    for label in o.labels:
        cells = [label, *(_cell(o, label, key) for key in columns)]
        if against:
            gap = None if label == first else o.paired(label, first)
            cells.insert(2, "" if gap is None else _against(o, gap, label, first))
        rows.append(cells)
    return rows


def _against(o: Outcome, gap: Difference, *labels: str) -> str:
    mark = f" {DAGGER}" if any(map(o.untrusted, labels)) else ""
    error = "" if np.isnan(gap.error) else f" ± {gap.error:.2f}"
    return f"{gap.mean:+.2f}{error} ({gap.rows:.2f}){mark}"


def notes_of(o: Outcome) -> list[str]:
    """What stands below the table: what its marks mean, and further figures of the findings."""
    noted = [f"{meaning}: {value}" for meaning, value in o.noted.items()]
    return [*_marks(o), *([f"Further figures: {'; '.join(noted)}."] if noted else [])]


def _marks(o: Outcome) -> list[str]:
    if not any(map(o.untrusted, o.labels)):
        return []
    fitted = "proposal" in o.table and set(o.table["proposal"]) != {"encoder"}
    how = "after a proposal was fitted to each" if fitted else "from the encoder's draws"
    return [
        f"{DAGGER} Not to be trusted: the estimate of log p(x) is unreliable for more than "
        f"{UNRELIABLE:.0%} of the test rows (Pareto k-hat over its limit, modes that may have been "
        f"missed, or too few draws to know), {how}."
    ]


def _cell(o: Outcome, label: str, key: str) -> str:
    if key not in o.table:
        return ""
    mean, error = o.mean(label, key)
    if np.isnan(mean):
        return ""
    mean = -mean if key in ("elbo", "val_elbo") else mean
    size = abs(mean)
    digits = 1 if size >= 100 else 2 if size >= 1 or key in _COMMON else 3 if size >= 0.01 else 4
    if key in ("epochs", "best_epoch", "active_units"):
        digits = 1
    if key == "share_unreliable":
        return f"{100 * mean:.1f}%"
    if key == "pareto_k_median":
        return f"{mean:.2f}"
    mark = f" {DAGGER}" if key in _OF_LOG_P and o.untrusted(label) else ""
    spread = "" if np.isnan(error) else f" ± {error:.{digits}f}"
    return f"{mean:.{digits}f}{spread}{mark}"


def _made_by(settings: Settings, data: DataSet, table: pd.DataFrame) -> str:
    """Data, seeds and versions; the versions are those of the runs, not of this process."""
    used = {column: sorted(set(table[column].dropna())) for column in VERSIONS if column in table}
    said = ", ".join(f"{column} {' and '.join(values)}" for column, values in used.items())
    return (
        f"{data.name}: {len(data.test)} test rows, {settings.seeds} seeds, {settings.samples} "
        "importance samples, nats per datum. ± is the standard error over the seeds; in brackets, "
        "of NLL against another row, that over the test rows of these models. K-hat is the median "
        "of Pareto's over the test rows, unreliable their share without a trusted estimate. "
        f"{said}, {platform.machine()}."
    )
