"""The report: derivations, experiments and defects as one document, in HTML and in PDF.

Its contents come from the notebooks and from the results of the studies only. For each study NAME
the results folder holds ``NAME.csv`` (a row per run), ``NAME.json`` (a
:class:`~pyro_vaes.experiments.page.Page`) and the pictures of the page.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyro_vaes.core.errors import InputError
from pyro_vaes.course.report.defects import defects_page
from pyro_vaes.course.report.documents import (
    DocumentError,
    Node,
    from_markdown,
    from_notebook,
    heading,
    link,
    plain_text,
    remarks_on,
    words,
)
from pyro_vaes.course.report.typesetting import to_html, to_pdf
from pyro_vaes.course.studies.table import STUDIES
from pyro_vaes.experiments.page import Page, markdown_table
from pyro_vaes.plotting import save_figure
from pyro_vaes.storage.files import write_bytes

__all__ = ["NOTEBOOKS", "Report", "ReportError", "write_report"]


TITLE = "Variational autoencoders: derivations and experiments"

NOTEBOOKS = (
    "01_elbo",
    "02_flow_posteriors",
    "03_learned_priors",
    "04_posterior_collapse_and_infovae",
)
"""The notebooks that hold the derivations, parts 1 to 4."""

# Columns of a study's CSV with the versions of its runs.
_VERSIONS = ("version", "pyro_vaes", "python", "torch", "pyro")


class ReportError(InputError):
    """A source is missing or cannot be read; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The files written.

    Attributes:
        html: the page.
        pdf: the PDF, None if no TeX engine succeeded.
        remarks: a line for each missing part or warning.
    """

    html: Path
    pdf: Path | None
    remarks: list[str]


@dataclasses.dataclass(frozen=True)
class _Study:
    name: str
    folder: Path
    page: Page
    rows: list[dict[str, str]]

    @property
    def blocks(self) -> list[Node]:
        """The page, one level down in the report."""
        blocks = from_markdown(self.page.markdown(), self.folder, f"study-{self.name}", shift=1)
        blocks[0]["c"][1][0] = f"study-{self.name}"
        return blocks

    @property
    def link(self) -> Node:
        return link(self.inline(self.page.title), f"study-{self.name}")

    def inline(self, text: str) -> list[Node]:
        """A part of the page within a line; empty unless it is a paragraph."""
        blocks = from_markdown(text, self.folder, self.name)
        return list(blocks[0]["c"]) if blocks and blocks[0]["t"] == "Para" else []

    def values(self, column: str) -> list[str]:
        """The different values of a column of its CSV, in order of appearance."""
        found = (row.get(column, "") for row in self.rows)
        return list(dict.fromkeys(value for value in found if value))


def write_report(results: Path, out: Path, notebooks: Path | None = None) -> Report:
    """Writes ``report.html``, and ``report.pdf`` where a TeX engine is installed.

    The same sources give the same bytes of HTML.

    Args:
        results: the folder of the studies' results.
        out: the folder to write to, created if absent.
        notebooks: the folder of the notebooks; without one the report has no derivations.

    Raises:
        ReportError: for sources that are missing or damaged; then nothing is written.
        RunFolderError: if the files cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ReportError(f"Expected a folder to write to; got the file {out}.")
    with tempfile.TemporaryDirectory() as folder:
        media = Path(folder)
        try:
            studies = _studies(results)
            parts, remarks = _parts(notebooks, media)
            found = len(parts) - len(remarks) if parts else 0
            missing = [name for name in STUDIES if name not in {s.name for s in studies}]
            if missing:
                remarks.append(f"Not run: {', '.join(missing)}.")
            blocks = [
                *_summary(studies, found),
                *(block for part in parts for block in part),
                *_experiments(studies, missing),
                *_defects(media),
                *_reproduction(studies),
            ]
            remarks += remarks_on(blocks)
            page, faults = to_html(blocks, TITLE)
            pdf, more = to_pdf(blocks, TITLE)
        except DocumentError as error:
            raise ReportError(str(error)) from error
    html, typeset = out / "report.html", out / "report.pdf"
    write_bytes(html, page)
    if pdf is not None:
        write_bytes(typeset, pdf)
    elif typeset.exists():
        more.append(f"{typeset} is that of an earlier run.")
    return Report(html, None if pdf is None else typeset, [*remarks, *faults, *more])


# --- reading --------------------------------------------------------------------------------------


def _studies(results: Path) -> list[_Study]:
    if not results.is_dir():
        raise ReportError(
            f"Expected a folder of results at {results}; found none. pyro-vaes study writes one."
        )
    found = {path.stem for path in results.glob("*.csv") if path.with_suffix(".json").is_file()}
    if not found:
        raise ReportError(
            f"Expected NAME.csv and NAME.json of a study in {results}; found none. "
            "pyro-vaes study writes them."
        )
    order = [*(name for name in STUDIES if name in found), *sorted(found - {*STUDIES})]
    return [_study(results, name) for name in order]


def _study(results: Path, name: str) -> _Study:
    table = results / f"{name}.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            rows: list[dict[str, Any]] = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"Expected a readable {table.name} in {results}.") from error
    if not rows or any(None in row.values() or "" in row for row in rows):
        raise ReportError(f"Expected rows as long as the head in {table}; got a damaged file.")
    if not {"study", "label", "seed"} <= rows[0].keys():
        raise ReportError(f"Expected columns study, label and seed in {table}; got others.")
    try:
        page = Page.read(results / f"{name}.json")
    except ValueError as error:
        raise ReportError(str(error)) from error
    return _Study(name, results, page, rows)


def _parts(notebooks: Path | None, media: Path) -> tuple[list[list[Node]], list[str]]:
    """The derivations, a list of blocks for each notebook, and remarks on those missing."""
    if notebooks is None:
        return [], ["No notebooks: the report is without derivations."]
    if not notebooks.is_dir():
        raise ReportError(f"Expected a folder of notebooks at {notebooks}; found none.")
    parts, remarks = [], []
    for name in NOTEBOOKS:
        path = notebooks / f"{name}.ipynb"
        if not path.exists():
            remarks.append(f"No {path.name} in {notebooks}: the report is without it.")
            title = name[3:].replace("_", " ").capitalize()
            parts.append([heading(title, name), _para(f"{path.name} is missing.")])
            continue
        blocks = from_notebook(path, media / name, name)
        tops = [block for block in blocks if block["t"] == "Header" and block["c"][0] == 1]
        if len(tops) != 1 or blocks[0] is not tops[0]:
            raise ReportError(f"Expected one first-level heading, at the top of {path}.")
        # The document numbers its sections: part 1 is section 1.
        inlines = tops[0]["c"][2]
        while inlines and (
            inlines[0]["t"] == "Space" or plain_text(inlines[:1]).rstrip(".:") in {"Part", *"01234"}
        ):
            inlines = inlines[1:]
        tops[0]["c"] = [1, [name, [], []], inlines]
        parts.append(blocks)
    return parts, remarks


# --- writing --------------------------------------------------------------------------------------


def _para(*content: str | Node | list[Node]) -> Node:
    return {"t": "Para", "c": _inlines(content)}


def _inlines(content: Iterable[str | Node | list[Node]]) -> list[Node]:
    """Words, nodes and lists of nodes in one line, separated by spaces."""
    found: list[Node] = []
    for item in content:
        nodes = words(item) if isinstance(item, str) else item if isinstance(item, list) else [item]
        found += [{"t": "Space"}] * bool(found) + nodes
    return found


def _bullets(items: Iterable[Iterable[str | Node | list[Node]]]) -> Node:
    return {"t": "BulletList", "c": [[{"t": "Plain", "c": _inlines(item)}] for item in items]}


def _summary(studies: Sequence[_Study], parts: int) -> list[Node]:
    runs = sum(len(study.rows) for study in studies)
    derivations = f"the derivations of {parts} notebooks and " if parts else ""
    return [
        heading("Summary", "summary", numbered=False),
        _para(
            f"This document joins {derivations}the results of {len(studies)} "
            f"{'study' if len(studies) == 1 else 'studies'} over {runs} trained models with a page "
            "on what the reference notebooks get wrong. Figures, tables and findings are those "
            "that the studies computed. The first finding of each study:"
        ),
        _bullets(
            [
                {
                    "t": "Strong",
                    "c": [link(s.inline(s.page.title), f"study-{s.name}"), *words(":")],
                },
                s.inline(s.page.findings[0]),
            ]
            for s in studies
        ),
    ]


def _experiments(studies: Sequence[_Study], missing: Sequence[str]) -> list[Node]:
    blocks = [heading("Experiments", "experiments")]
    if missing:
        blocks.append(_para(f"Not run: {', '.join(missing)}."))
    return [*blocks, *(block for study in studies for block in study.blocks)]


def _defects(media: Path) -> list[Node]:
    page = defects_page()
    for name, figure in page.figures.items():
        save_figure(figure, media / name)
    return from_markdown(page.markdown, media, "defects")


def _reproduction(studies: Sequence[_Study]) -> list[Node]:
    commands = [study.page.command for study in studies]
    head = ("study", "runs", "seeds", "importance samples", "minutes of training")
    rows = [
        (
            study.page.title,
            str(len(study.rows)),
            ", ".join(study.values("seed")),
            ", ".join(study.values("num_samples")) or "n/a",
            _minutes(study),
        )
        for study in studies
    ]
    versions = {
        column: sorted({value for study in studies for value in study.values(column)})
        for column in dict.fromkeys(c for study in studies for c in study.rows[0])
        if column in _VERSIONS or column.endswith("_version")
    }
    said = "; ".join(f"{name} {', '.join(values)}" for name, values in versions.items() if values)
    text = [
        "`pyro-vaes reproduce` runs all studies and writes this document. One by one it is:",
        "```bash\n" + "\n".join([*commands, "pyro-vaes report"]) + "\n```",
        "Finished runs are reused. The cost of each study, from its CSV:",
        markdown_table(head, *rows),
    ]
    if said:
        text.append(f"Versions: {said}.")
    text.append("The last line of each study's section gives options and versions.")
    return [
        heading("How to reproduce", "reproduce"),
        *from_markdown("\n\n".join(text), Path(), "reproduce"),
    ]


def _minutes(study: _Study) -> str:
    found = (row.get("seconds") or row.get("train_seconds") for row in study.rows)
    seconds = [text for text in found if text]
    try:
        return f"{sum(map(float, seconds)) / 60:.1f}" if seconds else "n/a"
    except ValueError:
        return "n/a"
