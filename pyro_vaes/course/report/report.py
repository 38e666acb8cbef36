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
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pyro_vaes.core.errors import InputError
from pyro_vaes.course.report.defects import defects_page
from pyro_vaes.course.report.documents import (
    DocumentError,
    Node,
    from_markdown,
    heading,
    link,
    plain_text,
    remarks_on,
    words,
)
from pyro_vaes.course.report.notebooks import from_notebook, study_of
from pyro_vaes.course.report.numbering import Numbers, question_headings
from pyro_vaes.course.report.typesetting import Title, to_html, to_pdf
from pyro_vaes.course.studies.table import BEYOND, QUESTIONS, STUDIES
from pyro_vaes.experiments.outcomes import joined
from pyro_vaes.experiments.page import Page, markdown_table
from pyro_vaes.plotting import save_figure
from pyro_vaes.storage.files import write_bytes

__all__ = ["NOTEBOOKS", "Report", "ReportError", "write_report"]


TITLE = Title("Variational autoencoders: derivations and experiments")

NOTEBOOKS = (
    "01_elbo",
    "02_flow_posteriors",
    "03_learned_priors",
    "04_posterior_collapse_and_infovae",
)
"""The notebooks that hold the derivations, parts 1 to 4."""

EXPERIMENTS = "05_experiments"
"""The notebook of part 5: ideas, code and the places of the studies' pages."""

T = TypeVar("T")

_DELAY = 2.0  # seconds of work before a bar shows

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

    def blocks(self, numbers: Numbers) -> list[Node]:
        """The page two levels down in the report, its table with a caption."""
        before = numbers.last.copy()
        text = dataclasses.replace(self.page, made_by="").markdown()  # Said once, at the end.
        blocks = from_markdown(text, self.folder, f"study-{self.name}", shift=2)
        blocks[0]["c"][1][0] = f"study-{self.name}"
        for block in blocks[1:]:
            if block["t"] == "Header":
                block["c"][1][1] = ["unnumbered"]
        table = next(block for block in blocks if block["t"] == "Table")
        caption = words(f"{self.page.title}: figures on the test data.")
        table["c"][1] = [None, [{"t": "Plain", "c": caption}]]
        blocks = numbers.numbered(blocks)
        evidence = _para("The evidence:", [*numbers.since(before), {"t": "Str", "c": "."}])
        return [*blocks[:2], evidence, *blocks[2:]]

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


def write_report(
    results: Path, out: Path, notebooks: Path | None = None, title: Title = TITLE
) -> Report:
    """Writes ``report.html``, and ``report.pdf`` where a TeX engine is installed.

    The same sources give the same bytes of HTML. On a terminal, work that takes over two seconds
    has a bar with the time left.

    Args:
        results: the folder of the studies' results.
        out: the folder to write to, created if absent.
        notebooks: the folder of the notebooks; without one the report has no derivations.
        title: the title and the lines below; without a date, that of the results.

    Raises:
        ReportError: for sources that are missing or damaged; then nothing is written.
        RunFolderError: if the files cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ReportError(f"Expected a folder to write to; got the file {out}.")
    with tempfile.TemporaryDirectory() as folder, _bar() as bar:
        media = Path(folder)

        def done(part: T) -> T:
            bar.update()
            return part

        try:
            studies, numbers = _studies(results), Numbers()
            if not title.date:
                title = dataclasses.replace(title, date=max(s.page.date for s in studies))
            parts, remarks = done(_parts(notebooks, media, numbers))
            missing = [name for name in STUDIES if name not in {s.name for s in studies}]
            if missing:
                remarks.append(f"Not run: {', '.join(missing)}.")
            if old := [study.name for study in studies if not study.page.date]:
                remarks.append(f"Findings not checked, pages of an earlier version: {joined(old)}.")
            blocks = [
                *_summary(studies),
                *(block for part in parts for block in part),
                *done(_experiments(notebooks, media, studies, missing, numbers)),
                *done(_defects(media, numbers)),
                *_reproduction(studies, numbers),
                *_references(),
            ]
            remarks += remarks_on(blocks)
            page, faults = done(to_html(blocks, title))
            pdf, more = done(to_pdf(blocks, title))
        except DocumentError as error:
            raise ReportError(str(error)) from error
    html, typeset = out / "report.html", out / "report.pdf"
    write_bytes(html, page)
    if pdf is not None:
        write_bytes(typeset, pdf)
    elif typeset.exists():
        more.append(f"{typeset} is that of an earlier run.")
    return Report(html, None if pdf is None else typeset, [*remarks, *faults, *more])


def _bar() -> Any:
    """A bar over the derivations, the experiments, the errors, the page and the PDF."""
    return tqdm(total=5, desc="Writing", unit="part", delay=_DELAY, disable=None, leave=False)


# --- reading --------------------------------------------------------------------------------------


def _studies(results: Path) -> list[_Study]:
    if not results.is_dir():
        raise ReportError(
            f"Expected a folder of results at {results}; found none. pyro-vaes study writes one."
        )
    found = {path.stem for path in results.glob("*.csv") if path.with_suffix(".json").is_file()}
    found -= {*BEYOND}
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
    if page.date and (unfounded := page.unfounded()):
        raise ReportError(
            f"Expected findings with the numbers of their table in {name}.json of {results}; got "
            f"{', '.join(unfounded)} as well."
        )
    return _Study(name, results, page, rows)


def _parts(
    notebooks: Path | None, media: Path, numbers: Numbers
) -> tuple[list[list[Node]], list[str]]:
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
        parts.append(numbers.numbered(_part(path, media)))
    return parts, remarks


def _part(path: Path, media: Path) -> list[Node]:
    """The blocks of a notebook, its title as a section that can be linked to by its name."""
    blocks = from_notebook(path, media / path.stem, path.stem)
    tops = [block for block in blocks if block["t"] == "Header" and block["c"][0] == 1]
    if len(tops) != 1 or blocks[0] is not tops[0]:
        raise ReportError(f"Expected one first-level heading, at the top of {path}.")
    # The document numbers its sections: part 1 is section 1.
    inlines = tops[0]["c"][2]
    while inlines and (
        inlines[0]["t"] == "Space" or plain_text(inlines[:1]).rstrip(".:") in {"Part", *"012345"}
    ):
        inlines = inlines[1:]
    if inlines and inlines[0]["t"] == "Str":
        inlines[0]["c"] = inlines[0]["c"][:1].upper() + inlines[0]["c"][1:]
    tops[0]["c"] = [1, [path.stem, [], []], inlines]
    return question_headings(blocks)


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


def _summary(studies: Sequence[_Study]) -> list[Node]:
    """An answer to each of the assignment's questions that has been run, and no more."""
    known = {study.name: study for study in studies}
    answers = []
    for question, names in QUESTIONS.items():
        there = [known[name] for name in names if name in known]
        content: list[str | Node | list[Node]] = []
        for study in there:
            content += [study.inline(study.page.findings[0])]
        if there:
            label = [link(words(question), f"study-{there[0].name}"), *words(":")]
            answers.append([{"t": "Strong", "c": label}, *content])
    rows = [(study, row) for study in studies for row in study.rows]
    runs = len({row.get("run") or (study.name, *row.items()) for study, row in rows})
    return [
        heading("Summary", "summary", numbered=False),
        _para(f"What {runs} trained models answer to the questions of part 5:"),
        _bullets(answers),
    ]


def _experiments(
    notebooks: Path | None,
    media: Path,
    studies: Sequence[_Study],
    missing: Sequence[str],
    numbers: Numbers,
) -> list[Node]:
    """Part 5: ideas and code of its notebook, with the page of each study in its place."""
    left = {study.name: study for study in studies}
    path = None if notebooks is None else notebooks / f"{EXPERIMENTS}.ipynb"
    if path is not None and path.exists():
        source = _part(path, media)
        source[0]["c"][1][0] = "experiments"
    else:
        source = _outline(studies)
    blocks: list[Node] = []
    for block in source:
        name = study_of(block)
        if name is None:
            blocks += numbers.numbered([block])
        elif name in left:
            blocks += left.pop(name).blocks(numbers)
    for study in left.values():
        blocks += study.blocks(numbers)
    absent = [_para(f"Not run: {', '.join(missing)}.")] if missing else []
    return [blocks[0], *absent, *blocks[1:]]


def _outline(studies: Sequence[_Study]) -> list[Node]:
    """The headings of part 5 and the places of the studies, where there is no notebook."""
    known = {study.name: study.page.title for study in studies}
    blocks = [heading("Experiments", "experiments")]
    for question, names in QUESTIONS.items():
        titles = [known[name] for name in names if name in known]
        blocks.append(heading(", ".join(titles) or "Not run", f"question-{question}", 2))
        blocks += [_para(f"study:{name}") for name in names]
    return [*blocks, heading("Beyond the questions", "beyond", 2)]


def _defects(media: Path, numbers: Numbers) -> list[Node]:
    page = defects_page()
    for name, figure in page.figures.items():
        save_figure(figure, media / name)
    return numbers.numbered(from_markdown(page.markdown, media, "defects"))


def _references() -> list[Node]:
    text = resources.files("pyro_vaes.course.report").joinpath("references.md").read_text("utf-8")
    title = heading("References", "references", numbered=False)
    return [title, *from_markdown(text, Path(), "references")]


def _reproduction(studies: Sequence[_Study], numbers: Numbers) -> list[Node]:
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
        "Finished runs are reused.",
        markdown_table(head, *rows),
    ]
    if said:
        text.append(f"Versions: {said}.")
    text += dict.fromkeys(study.page.made_by for study in studies)
    blocks = from_markdown("\n\n".join(text), Path(), "reproduce")
    table = next(block for block in blocks if block["t"] == "Table")
    table["c"][1] = [None, [{"t": "Plain", "c": words("The cost of each study.")}]]
    return [heading("How to reproduce", "reproduce"), *numbers.numbered(blocks)]


def _minutes(study: _Study) -> str:
    found = (row.get("seconds") or row.get("train_seconds") for row in study.rows)
    seconds = [text for text in found if text]
    try:
        return f"{sum(map(float, seconds)) / 60:.1f}" if seconds else "n/a"
    except ValueError:
        return "n/a"
