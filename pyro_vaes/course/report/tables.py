"""Tables that fit a line of the PDF: smaller type, columns of fixed width, or two tables.

TeX breaks no line in a plain column, so a table that is too wide would run off the page. Widths are
measured here, with matplotlib's copy of the PDF's type.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import ImageFont

from pyro_vaes.course.report.documents import Node, plain_text, walked, words

__all__ = ["LINE", "fitted", "raw"]


LINE = 455.0
"""The width of a line in points."""

# Sizes of type, in points, with their commands.
_SIZES = ((10.0, ""), (9.0, "\\small"), (8.0, "\\footnotesize"))
_GAP = 8.0  # between columns, in points
_KEPT = 25  # rows of a table that are kept on one page
_HEAD = 12  # characters of a head that is not broken


def fitted(table: Node) -> list[Node]:
    """Blocks with all columns of a table, none wider than a line."""
    widths = _widths(table)
    for size, command in _SIZES:
        if size / 10 * sum(widths) + _GAP * len(widths) <= LINE:
            return _set(table, command)
    size, command = _SIZES[-1]
    wide = [size / 10 * width + _GAP for width in widths]
    if max(wide) > LINE / 3:
        return _set(_broken(table, wide), command, short=False)
    parts = _groups(wide)
    return [block for i, part in enumerate(parts) for block in _set(_part(table, part, i), command)]


def raw(kind: str, text: str) -> Node:
    """A ``Block`` or an ``Inline`` of LaTeX."""
    return {"t": f"Raw{kind}", "c": ["latex", text]}


def _rows(table: Node) -> list[Any]:
    _, _, _, head, bodies, _ = table["c"]
    return [*head[1], *(row for body in bodies for part in body[2:] for row in part)]


def _set(table: Node, size: str, short: bool = True) -> list[Node]:
    heads = [{**table, "c": [*table["c"]]}]
    if short:
        heads[0]["c"][3] = _short_heads(table["c"][3])
    lines = min(len(_rows(table)) + 4, _KEPT)
    start = f"\\reportneed{{{lines}}}\\begingroup\\setlength{{\\tabcolsep}}{{{_GAP / 2}pt}}{size}"
    return [raw("Block", start), *heads, raw("Block", "\\endgroup")]


def _short_heads(head: Any) -> Any:
    """A table's head with long cells in two lines."""
    rows = []
    for attributes, cells in head[1]:
        made = []
        for cell in cells:
            text = plain_text(cell[4])
            lines = _halves(text)
            if len(lines) > 1 and not any(sign in text for sign in "\\$"):
                start, middle, end = "\\begin{tabular}[b]{@{}c@{}}", "\\\\", "\\end{tabular}"
                content = [raw("Inline", start), *words(lines[0]), raw("Inline", middle)]
                block = {"t": "Plain", "c": [*content, *words(lines[1]), raw("Inline", end)]}
                cell = [*cell[:4], [block]]
            made.append(cell)
        rows.append([attributes, made])
    return [head[0], rows]


def _halves(text: str) -> list[str]:
    """A long head as two lines of about the same length."""
    parts = text.replace("\u00a0", " ").split()
    if len(text) <= _HEAD or len(parts) < 2:
        return [text]
    cuts = [(" ".join(parts[:i]), " ".join(parts[i:])) for i in range(1, len(parts))]
    return list(min(cuts, key=lambda cut: max(map(len, cut))))


def _widths(table: Node) -> list[float]:
    """The width of each column at ten points."""
    count, bodies = len(table["c"][2]), _rows({"c": [*table["c"][:3], [None, []], *table["c"][4:]]})
    found = [0.0] * count
    for row in table["c"][3][1]:
        for i, cell in enumerate(row[1][:count]):
            found[i] = max(found[i], *map(_width, _halves(plain_text(cell[4]))))
    for row in bodies:
        for i, cell in enumerate(row[1][:count]):
            found[i] = max(found[i], _width(plain_text(cell[4])))
    return found


def _width(text: str) -> float:
    plain = "".join(sign if " " <= sign <= "~" else "m" for sign in text.replace("\u00a0", " "))
    return float(_font().getlength(plain)) / 10


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "cmr10.ttf")), 100)


def _groups(wide: Sequence[float]) -> list[list[int]]:
    """Columns in as few groups as fit a line, of about the same width."""
    line, groups = LINE, _packed(wide, LINE)
    while line > 0 and len(narrower := _packed(wide, line)) == len(groups):
        line, groups = line - _GAP, narrower
    return groups


def _packed(wide: Sequence[float], line: float) -> list[list[int]]:
    """Columns in groups that fit a line; each starts with the first column, the names of rows."""
    groups, left = [[0]], line - wide[0]
    for i, width in enumerate(wide[1:], start=1):
        if width > left and len(groups[-1]) > 1:
            groups.append([0])
            left = line - wide[0]
        groups[-1].append(i)
        left -= width
    return groups


def _part(table: Node, columns: Sequence[int], number: int) -> Node:
    """Some columns of a table; the first part keeps its caption."""
    attributes, caption, specs, head, bodies, foot = table["c"]

    def some(rows: Any) -> Any:
        return [[row[0], [row[1][i] for i in columns]] for row in rows]

    if number and caption[1]:
        name = plain_text(caption[1]).split(".")[0]
        caption = [None, [{"t": "Plain", "c": words(f"{name}, further columns.")}]]
        attributes = ["", [], []]
    cut = [[body[0], body[1], some(body[2]), some(body[3])] for body in bodies]
    specs = [specs[i] for i in columns]
    return {"t": "Table", "c": [attributes, caption, specs, [head[0], some(head[1])], cut, foot]}


def _broken(table: Node, wide: Sequence[float]) -> Node:
    """A table of prose: short columns as wide as their text, the others share what is left."""
    short = [width if width <= LINE / 5 else 0.0 for width in wide]
    left = 0.97 * LINE - sum(short)
    long = sum(width**0.5 for width, kept in zip(wide, short, strict=True) if not kept)
    shares = [kept or left * width**0.5 / long for width, kept in zip(wide, short, strict=True)]
    table = {**table, "c": walked(table["c"], _breakable)}
    for column, share in zip(table["c"][2], shares, strict=True):
        column[1] = {"t": "ColWidth", "c": share / LINE}
    return table


def _breakable(node: Node) -> list[Node]:
    return [{"t": "Space"}] if node == {"t": "Str", "c": "\u00a0"} else [node]
