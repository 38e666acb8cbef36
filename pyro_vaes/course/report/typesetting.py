"""Writes documents: a self-contained HTML page, and a PDF by LaTeX.

pandoc does the work, and for the PDF any installed TeX engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from pyro_vaes.course.report.documents import (
    MARKDOWN,
    DocumentError,
    Node,
    left_out,
    pandoc,
    plain_text,
    walked,
    words,
)
from pyro_vaes.course.report.numbering import equation_numbers
from pyro_vaes.course.report.tables import fitted, raw

__all__ = ["ENGINES", "Title", "to_html", "to_pdf"]


ENGINES = ("xelatex", "lualatex", "pdflatex", "tectonic")
"""TeX engines, in the order in which they are tried."""


@dataclasses.dataclass(frozen=True)
class Title:
    """The head of the document; what is empty is a blank line to fill in.

    Attributes:
        text: the title.
        author: who hands it in.
        course: the course.
        date: of the results, as 2026-11-30.
        collaborators: with whom it was discussed.
    """

    text: str
    author: str = ""
    course: str = ""
    date: str = ""
    collaborators: str = ""

    def lines(self) -> list[Node]:
        """The lines below the title."""
        found: list[Node] = []
        for name, value in self._named():
            found += [{"t": "LineBreak"}] * bool(found) + words(f"{name}: {value}")
        return found

    def aligned(self) -> list[Node]:
        """The lines below the title as a table of LaTeX."""
        found = [raw("Inline", "\\begin{tabular}{@{}r@{ }l@{}}")]
        for name, value in self._named():
            found += [*words(f"{name}:"), raw("Inline", "&"), *words(value)]
            found.append(raw("Inline", "\\\\"))
        return [*found, raw("Inline", "\\end{tabular}")]

    def _named(self) -> list[tuple[str, str]]:
        names = ("author", "course", "date", "collaborators")
        return [(name.capitalize(), getattr(self, name) or _BLANK) for name in names]


_BLANK = 24 * "_"
_PRINTED = 96  # characters of printed text in a line of the PDF


def to_html(blocks: list[Node], title: Title) -> tuple[bytes, list[str]]:
    """One self-contained page: pictures embedded, formulas as MathML.

    Returns:
        The page, the same bytes for the same blocks, and one line per warning.
    """

    def mend(node: Node) -> list[Node]:
        if node["t"] == "Str":
            return [_curled(node)]
        if node["t"] == "Table":
            return [{"t": "Div", "c": [["", ["table"], [["tabindex", "0"]]], [node]]}]
        if node["t"] != "Math":
            return [node]
        formula, numbers = equation_numbers(node["c"][1])
        math = {"t": "Math", "c": [node["c"][0], _mathml_ready(formula)]}
        if not numbers or node["c"][0]["t"] != "DisplayMath":
            return [math]
        number = {"t": "Span", "c": [["", ["number"], []], words(f"({numbers[0]})")]}
        return [{"t": "Span", "c": [["", ["equation"], []], [math, number]]}]

    options = ["--standalone", "--embed-resources", "--mathml"]
    with _data("report.css") as style:
        return _written(walked(blocks, mend), title, "html", [*options, f"--css={style}"])


def _mathml_ready(formula: str) -> str:
    """A formula without commands that MathML lacks: numbers, labels, the space after "log"."""
    formula = re.sub(r"\\tag\{([^{}]*)\}", r"\\qquad\\text{(\1)}", formula)
    formula = re.sub(r"\\(label\{[^{}]*\}|nonumber|notag)", "", formula)
    # Otherwise an operator's name and its argument would touch.
    return re.sub(
        r"(\\(?:log|ln|exp|det))\s+(?=\\?[a-zA-Z])(?!\\left|\\big|\\Big)", r"\1\\,", formula
    )


def to_pdf(blocks: list[Node], title: Title) -> tuple[bytes | None, list[str]]:
    """The document as a PDF, by the first TeX engine that succeeds.

    Returns:
        The file, None if no engine succeeds, and one line per warning.
    """
    engines = [engine for engine in ENGINES if shutil.which(engine)]
    if not engines:
        return None, [
            f"No PDF: found no TeX engine ({', '.join(ENGINES)}). Install one, such as TeX Live."
        ]
    blocks = walked(blocks, _typeset)
    remarks = []
    with _data("report_header.tex") as header:
        for engine in engines:
            options = [f"--pdf-engine={engine}", f"--include-in-header={header}"]
            for name, value in (
                ("documentclass", "article"),
                ("papersize", "a4"),
                ("geometry", "margin=2.4cm"),
                ("colorlinks", "true"),
                ("linkcolor", "NavyBlue"),
                ("urlcolor", "NavyBlue"),
                ("toccolor", "black"),
            ):
                options.append(f"--variable={name}:{value}")
            try:
                return _written(blocks, title, "pdf", options)
            except DocumentError as error:
                remarks.append(f"No PDF by {engine}: {error}")
    return None, remarks


def _written(
    blocks: list[Node], title: Title, kind: str, options: list[str]
) -> tuple[bytes, list[str]]:
    # A PDF has an identifier, which pandoc would derive from its temporary folder.
    identity = f"<{hashlib.md5(plain_text(blocks).encode(), usedforsecurity=False).hexdigest()}>"
    meta = {
        "pdf-trailer-id": {"t": "MetaInlines", "c": [raw("Inline", f"{identity} {identity}")]},
        "title": {"t": "MetaInlines", "c": words(title.text)},
        "author": {"t": "MetaInlines", "c": title.aligned() if kind == "pdf" else title.lines()},
        "author-meta": {"t": "MetaString", "c": title.author},
        "lang": {"t": "MetaInlines", "c": words("en")},
    }
    tree = {"pandoc-api-version": _version(), "meta": meta, "blocks": blocks}
    with tempfile.TemporaryDirectory() as folder, _fixed_date(title.date):
        log, file = Path(folder, "log.json"), Path(folder, f"report.{kind}")
        options = [*options, "--number-sections", "--toc", "--toc-depth=2", f"--log={log}"]
        pandoc(json.dumps(tree), kind, "json", *options, f"--output={file}")
        return file.read_bytes(), _warnings(log)


def _warnings(log: Path) -> list[str]:
    """Pandoc's warnings, without repetitions."""
    entries = json.loads(log.read_text(encoding="utf-8"))
    lines = [" ".join(_said(e).split()) for e in entries if e["verbosity"] == "WARNING"]
    return list(dict.fromkeys(lines))


def _said(entry: dict[str, Any]) -> str:
    """A warning in words; some versions of pandoc give only its type and subject."""
    about = (f"{v}" for k, v in entry.items() if k not in ("type", "verbosity", "pretty"))
    return str(entry.get("pretty") or f"{entry.get('type', 'warning')}: {' '.join(about)}")


def _typeset(node: Node) -> list[Node]:
    """Nodes as LaTeX needs them: tables with a size, aligned equations as raw TeX."""
    if node["t"] == "Image" and node["c"][2][0].lower().endswith(".svg"):
        return [left_out(f"the picture {Path(node['c'][2][0]).name} is an SVG: see the page")]
    if node["t"] == "Header" and node["c"][0] > 3:  # Those run in, and a list may leave them.
        return [raw("Block", "\\reportneed{6}"), node]
    if node["t"] == "Image":
        return [_bounded(node)]
    if node["t"] == "Str":
        return [_curled(node)]
    if node["t"] == "CodeBlock" and not node["c"][0][1]:  # Printed text; code fits.
        return [{"t": "CodeBlock", "c": [node["c"][0], _wrapped(node["c"][1])]}]
    if node["t"] == "Math":
        formula, numbers = equation_numbers(node["c"][1].strip())
        if numbers and node["c"][0]["t"] == "DisplayMath":
            tags = "".join(f"\\tag{{{number}}}" for number in numbers[:1])
            return [{"t": "Math", "c": [node["c"][0], f"{formula} {tags}"]}]
        if re.match(r"\\begin\{(align|gather|equation|multline)\*?\}", formula):
            return [raw("Inline", formula)]
    return fitted(node) if node["t"] == "Table" else [node]


def _bounded(node: Node) -> Node:
    """A picture; one at least as high as wide may take more of a page."""
    (name, classes, pairs), *rest = node["c"]
    with Image.open(rest[1][0]) as picture:
        tall = picture.height >= picture.width
    pairs = [*pairs, ["height", "42%"]] if tall else pairs
    return {"t": "Image", "c": [[name, classes, pairs], *rest]}


def _curled(node: Node) -> Node:
    """A word with the apostrophes and quotation marks of print."""
    text = re.sub(r"(^|[(\[])\"", "\\1\N{LEFT DOUBLE QUOTATION MARK}", node["c"])
    text = text.replace('"', "\N{RIGHT DOUBLE QUOTATION MARK}")
    return {"t": "Str", "c": text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")}


def _wrapped(text: str) -> str:
    """Printed text without lines that are longer than a line of the PDF."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        kept = (
            textwrap.wrap(line, _PRINTED, subsequent_indent=indent) if line[_PRINTED:] else [line]
        )
        lines += kept
    return "\n".join(lines)


@contextlib.contextmanager
def _fixed_date(date: str) -> Iterator[None]:
    """Inside, PDFs carry this date, or that which the user has set."""
    before = {name: os.environ.get(name) for name in ("SOURCE_DATE_EPOCH", "FORCE_SOURCE_DATE")}
    day = datetime.fromisoformat(f"{date or '1970-01-01'}T00:00:00+00:00")
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(int(day.timestamp())))
    os.environ["FORCE_SOURCE_DATE"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _data(name: str) -> Iterator[Path]:
    """A file of this package."""
    with resources.as_file(resources.files("pyro_vaes.course.report") / name) as path:
        yield path


def _version() -> list[int]:
    return list(json.loads(pandoc("", "json", MARKDOWN))["pandoc-api-version"])
