"""Writes documents: a self-contained HTML page, and a PDF by LaTeX.

pandoc does the work, and for the PDF any installed TeX engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

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

__all__ = ["ENGINES", "to_html", "to_pdf"]


ENGINES = ("xelatex", "lualatex", "pdflatex", "tectonic")
"""TeX engines, in the order in which they are tried."""

# Characters of a table's widest row, and the size of type that they fit a line in.
_COLUMNS = ((85, ""), (100, "\\small"), (115, "\\footnotesize"), (150, "\\scriptsize"))
_KEPT = 25  # rows of a table that are kept on one page


def to_html(blocks: list[Node], title: str) -> tuple[bytes, list[str]]:
    """One self-contained page: pictures embedded, formulas as MathML.

    Returns:
        The page, the same bytes for the same blocks, and one line per warning.
    """

    def mend(node: Node) -> list[Node]:
        if node["t"] == "Math":
            node["c"] = [node["c"][0], _mathml_ready(node["c"][1])]
        return [node]

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


def to_pdf(blocks: list[Node], title: str) -> tuple[bytes | None, list[str]]:
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
    blocks: list[Node], title: str, kind: str, options: list[str]
) -> tuple[bytes, list[str]]:
    # A PDF has an identifier, which pandoc would derive from its temporary folder.
    identity = f"<{hashlib.md5(plain_text(blocks).encode(), usedforsecurity=False).hexdigest()}>"
    meta = {
        "pdf-trailer-id": {"t": "MetaInlines", "c": [_raw("Inline", f"{identity} {identity}")]},
        "title": {"t": "MetaInlines", "c": words(title)},
        "lang": {"t": "MetaInlines", "c": words("en")},
    }
    tree = {"pandoc-api-version": _version(), "meta": meta, "blocks": blocks}
    with tempfile.TemporaryDirectory() as folder, _fixed_date():
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
    if node["t"] == "Math":
        formula = node["c"][1].strip()
        if re.match(r"\\begin\{(align|gather|equation|multline)\*?\}", formula):
            return [_raw("Inline", formula)]
    if node["t"] != "Table":
        return [node]
    _, _, columns, head, bodies, _ = node["c"]
    rows = [*head[1], *(row for body in bodies for part in body[2:] for row in part)]
    widths = [
        max((len(plain_text(row[1][i][4])) for row in rows if i < len(row[1])), default=1)
        for i in range(len(columns))
    ]
    total = sum(widths) + 3 * len(widths)
    size = next((size for limit, size in _COLUMNS if total <= limit), None)
    if size is None:
        size = _COLUMNS[-1][1]
        # Too wide at any size: cells are broken; a column's width follows the root of its text's.
        parts = [max(width, 4) ** 0.5 for width in widths]
        for column, part in zip(columns, parts, strict=True):
            column[1] = {"t": "ColWidth", "c": part / sum(parts)}

    need = _raw("Block", f"\\reportneed{{{min(len(rows) + 4, _KEPT)}}}\\begingroup{size}")
    return [need, node, _raw("Block", "\\endgroup")]


def _raw(kind: str, text: str) -> Node:
    return {"t": f"Raw{kind}", "c": ["latex", text]}


@contextlib.contextmanager
def _fixed_date() -> Iterator[None]:
    """Inside, PDFs carry a fixed date, unless the user has set one."""
    before = {name: os.environ.get(name) for name in ("SOURCE_DATE_EPOCH", "FORCE_SOURCE_DATE")}
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
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
