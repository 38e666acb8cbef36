"""Reads a notebook of the course into pandoc's tree.

Tags of code cells say what is shown: ``listing`` the code, ``remove_output`` no output,
``remove_cell`` nothing (nbconvert knows the last two), and ``study:NAME`` the page of a study
instead. The key ``caption`` in the metadata of a cell is the caption of its picture or table.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat

from pyro_vaes.course.report.documents import (
    MARKDOWN,
    DocumentError,
    Node,
    adopted,
    pandoc,
    plain_text,
)

__all__ = ["LISTING", "from_notebook", "study_of"]


LISTING = "listing"
"""The tag of a cell whose code is shown."""

_STUDY = "study:"


def from_notebook(path: Path, media: Path, prefix: str) -> list[Node]:
    """Reads a notebook: text, formulas, outputs, and the code of cells with the tag ``listing``.

    Args:
        path: the ``.ipynb`` file.
        media: a folder to write its pictures to.
        prefix: of the names of its headings, which makes them unique.

    Raises:
        DocumentError: for a file that is no notebook, or a picture that is not there.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds of errors for a damaged file.
        raise DocumentError(f"Expected a notebook at {path}; got a damaged file.") from error
    notebook.cells = [_shown(cell) for cell in notebook.cells if "remove_cell" not in _tags(cell)]
    media.mkdir(parents=True, exist_ok=True)
    try:
        text = pandoc(nbformat.writes(notebook), "json", "ipynb", f"--extract-media={media}")
    except DocumentError as error:
        raise DocumentError(f"{path}: {error}") from error
    blocks: list[Node] = []
    read = iter(notebook.cells)
    for block in json.loads(text)["blocks"]:
        if block["t"] == "Div" and "cell" in block["c"][0][1]:
            blocks += _captioned(list(_opened(block["c"][1])), next(read).metadata.get("caption"))
        else:
            blocks.append(block)
    return adopted(blocks, path.parent, (path.parent, media), prefix, 0)


def study_of(block: Node) -> str | None:
    """The name of the study whose page takes the place of a block."""
    text = plain_text([block]) if block["t"] == "Para" else ""
    return text.removeprefix(_STUDY) if text.startswith(_STUDY) else None


def _tags(cell: Any) -> Sequence[str]:
    return cell.metadata.get("tags", ())


def _shown(cell: Any) -> Any:
    """A cell with only what is shown of it."""
    if cell.cell_type != "code":
        return cell
    for tag in _tags(cell):
        if tag.startswith(_STUDY):
            return nbformat.v4.new_markdown_cell(tag)
    lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
    cell.source = "\n".join(lines) if LISTING in _tags(cell) else ""
    outputs = [] if "remove_output" in _tags(cell) else cell.outputs
    cell.outputs = _joined([output for output in map(_readable, outputs) if output is not None])
    return cell


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Outputs with texts that follow each other as one: a kernel breaks a text where it pauses."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _readable(output: Any) -> Any:
    """An output with only its picture, its table or its text; None if it has none of them."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if "<table" in data.get("text/html", ""):
        data = {"text/markdown": pandoc(_table_in(data["text/html"]), "gfm", "html")}
    for kind in ("image/png", "image/jpeg", "text/markdown", "text/plain"):
        if kind in data:
            # As display data, since pandoc refuses a result without a number.
            return nbformat.v4.new_output("display_data", {kind: data[kind]})
    return None


class _Cells(HTMLParser):
    """The cells of an HTML table, one for each row and column.

    A cell over several columns is repeated in each, one over several rows stands in the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[list[str]] = []
        self.rows: list[list[str]] = []
        self._into, self._text = self.rows, ""
        self._spans: dict[str, int] = {}
        self._taken: dict[int, int] = {}  # Rows that a cell above still takes, by column.

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag in ("thead", "tbody"):
            self._into = self.heads if tag == "thead" else self.rows
        elif tag == "tr":
            self._into.append([])
            self._fill()
        elif tag in ("th", "td"):
            self._spans = {name: int(value or 1) for name, value in attrs if name.endswith("span")}
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("th", "td") or not self._into:
            return
        for _ in range(self._spans.get("colspan", 1)):
            self._taken[len(self._into[-1])] = self._spans.get("rowspan", 1) - 1
            self._into[-1].append(self._text.strip())
        self._fill()

    def _fill(self) -> None:
        while self._taken.get(column := len(self._into[-1]), 0):
            self._taken[column] -= 1
            self._into[-1].append("")


def _table_in(text: str) -> str:
    """The table of a data frame with one head and no cell over several: Markdown has no other."""
    cells = _Cells()
    cells.feed(text[text.index("<table") : text.index("</table>")])
    columns = zip(*cells.heads, strict=False)
    heads = [", ".join(part for part in column if part) for column in columns]

    def row(texts: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(one)}</{tag}>" for one in texts)

    body = "".join(f"<tr>{row(texts, 'td')}</tr>" for texts in cells.rows)
    return f"<table><thead><tr>{row(heads, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _opened(blocks: Sequence[Node]) -> Iterator[Node]:
    """Blocks of a cell, Markdown that it has put out read."""
    for block in blocks:
        inner = block["c"][1] if block["t"] == "Div" else []
        if len(inner) == 1 and inner[0]["t"] == "RawBlock" and inner[0]["c"][0] == "markdown":
            yield from json.loads(pandoc(inner[0]["c"][1], "json", MARKDOWN))["blocks"]
        elif len(inner) == 1 and inner[0]["t"] == "Para":
            yield inner[0]
        else:
            yield block


def _captioned(blocks: list[Node], caption: str | None) -> list[Node]:
    """Blocks whose last picture, or without one whose last table, has the caption."""
    if not caption:
        return blocks
    words = json.loads(pandoc(caption, "json", MARKDOWN))["blocks"]
    pictures = [i for i, block in enumerate(blocks) if _is_picture(block)]
    tables = [block for block in blocks if block["t"] == "Table"]
    if pictures:
        plain = {"t": "Plain", "c": blocks[pictures[-1]]["c"]}
        blocks[pictures[-1]] = {"t": "Figure", "c": [["", [], []], [None, words], [plain]]}
    elif tables:
        tables[-1]["c"][1] = [None, words]
    return blocks


def _is_picture(block: Node) -> bool:
    return block["t"] == "Para" and [node["t"] for node in block["c"]] == ["Image"]
