"""Reads Markdown into a document tree, by pandoc.

A source becomes a list of blocks of pandoc's tree. Documents are joined by joining lists, and names
of headings, links and pictures are kept apart. Raw HTML and raw TeX are left out, and so are
pictures and formulas that are not :mod:`~pyro_vaes.course.report.allowed`: nothing of a source is
executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pypandoc

from pyro_vaes.course.report.allowed import PictureError, check_formula, check_picture

__all__ = [
    "MARKDOWN",
    "DocumentError",
    "Node",
    "adopted",
    "from_markdown",
    "heading",
    "left_out",
    "link",
    "pandoc",
    "plain_text",
    "remarks_on",
    "walked",
    "words",
]


Node = dict[str, Any]
"""A node of pandoc's tree: its kind ``t`` and, for most, its contents ``c``."""

MARKDOWN = "gfm+tex_math_dollars+implicit_figures"
_SHORT = 24  # characters of a cell that is not broken
_LEFT_OUT = "left-out"  # the class of a placeholder
_SECONDS = 300.0  # time limit of pandoc, TeX engine included, for one document


class DocumentError(ValueError):
    """A source that cannot be read, or a document that cannot be written; one line."""


# --- reading --------------------------------------------------------------------------------------


def from_markdown(text: str, folder: Path, prefix: str, shift: int = 0) -> list[Node]:
    """Reads GitHub's Markdown, with formulas between dollar signs.

    Args:
        text: the Markdown.
        folder: the folder of its pictures.
        prefix: of the names of its headings, which makes them unique.
        shift: added to the levels of its headings.

    Raises:
        DocumentError: for a picture that is not there.
    """
    blocks = json.loads(pandoc(text, "json", MARKDOWN))["blocks"]
    return adopted(blocks, folder, (folder,), prefix, shift)


def adopted(
    blocks: list[Node], folder: Path, within: Sequence[Path], prefix: str, shift: int
) -> list[Node]:
    """Blocks whose headings, links and pictures stay valid in a joined document."""

    def adopt(node: Node) -> list[Node]:
        kind: str = node["t"]
        content: Any = node.get("c")
        if kind == "Header":
            level, (name, classes, pairs), inlines = content
            node["c"] = [level + shift, [f"{prefix}-{name}", classes, pairs], inlines]
        elif kind in ("RawInline", "RawBlock"):
            is_break = kind == "RawInline" and re.fullmatch(r"<br\s*/?>", content[1].strip())
            return [{"t": "LineBreak"}] if is_break else []
        elif kind == "CodeBlock" and not content[1].strip():
            return []
        elif kind == "Table":
            _set_table(content)
        elif kind == "Image":
            path = _picture(content[2][0], folder, within)
            try:
                check_picture(path)
            except PictureError as error:
                return [left_out(f"the picture {path.name} is {error}")]
            content[2][0] = str(path)
        elif kind == "Math" and (command := check_formula(content[1])):
            code = {"t": "Code", "c": [["", [], []], content[1]]}
            return [code, left_out(f"the formula is not set: {command} is none of those allowed")]
        elif kind == "Link":
            target = content[2][0]
            if target.startswith("#"):
                content[2][0] = f"#{prefix}-{target[1:]}"
            elif target.endswith(".ipynb"):
                content[2][0] = f"#{Path(target).stem}"
            elif not re.match(r"https?://|mailto:", target):
                return list(content[1])  # A file next to the source is not next to the document.
        return [node]

    return walked(blocks, adopt)


def _picture(target: str, folder: Path, within: Sequence[Path]) -> Path:
    """The resolved path of a picture, which must lie within the allowed folders."""
    path = (folder / target).resolve()
    inside = any(path.is_relative_to(place.resolve()) for place in within)
    if re.match(r"[a-z]+:", target) or not inside or not path.is_file():
        raise DocumentError(f"Expected the picture {target} within {folder}; found none.")
    return path


def left_out(reason: str) -> Node:
    """A placeholder for something left out; see :func:`remarks_on`."""
    return {"t": "Span", "c": [["", [_LEFT_OUT], []], words(f"[{reason}]")]}


def remarks_on(blocks: list[Node]) -> list[str]:
    """A line for each part of a document that was left out."""
    lines: list[str] = []

    def collect(node: Node) -> list[Node]:
        if node["t"] == "Span" and _LEFT_OUT in node["c"][0][1]:
            lines.append(f"Left out: {plain_text(node['c'][1]).strip('[]')}.")
        return [node]

    walked(blocks, collect)
    return lines


def _set_table(content: list[Any]) -> None:
    """Keeps short cells on one line and aligns numbers to the right."""
    _, _, columns, _, bodies, _ = content
    rows = [row[1] for body in bodies for row in body[3]]
    for i, column in enumerate(columns):
        column[1] = {"t": "ColWidthDefault"}  # Not that of the dashes in the source.
        texts = [plain_text(row[i][4]) for row in rows if i < len(row)]
        numbers = all(re.match(r"[-+\u2212]?\d", text) for text in texts if text)
        if column[0]["t"] == "AlignDefault" and numbers and any(texts):
            column[0] = {"t": "AlignRight"}
    for cell in (cell for row in rows for cell in row):
        if len(plain_text(cell[4])) <= _SHORT:
            cell[4] = walked(cell[4], _unbroken)


def _unbroken(node: Node) -> list[Node]:
    return [{"t": "Str", "c": "\u00a0"}] if node["t"] == "Space" else [node]


def walked(nodes: list[Any], action: Callable[[Node], list[Node]]) -> list[Any]:
    """The tree with each node replaced by the action's result, children first."""
    found: list[Any] = []
    for node in nodes:
        if isinstance(node, list):
            found.append(walked(node, action))
        elif isinstance(node, dict) and "t" in node:
            if isinstance(node.get("c"), list):
                node = {**node, "c": walked(node["c"], action)}
            found += action(node)
        else:
            found.append(node)
    return found


# --- making ---------------------------------------------------------------------------------------


def heading(text: str, name: str, level: int = 1, numbered: bool = True) -> Node:
    """A heading that can be linked to as ``#name``."""
    classes = [] if numbered else ["unnumbered"]
    return {
        "t": "Header",
        "c": [level, [name, classes, []], words(text)],
    }


def link(inlines: list[Node], name: str) -> Node:
    """A link to the heading of this name."""
    return {"t": "Link", "c": [["", [], []], inlines, [f"#{name}", ""]]}


def words(text: str) -> list[Node]:
    """Plain text as inline nodes."""
    found: list[Node] = []
    for word in text.split():
        found += [{"t": "Space"}] * bool(found) + [{"t": "Str", "c": word}]
    return found


def plain_text(nodes: list[Node]) -> str:
    """The words of some nodes."""
    parts: list[str] = []

    def collect(node: Node) -> list[Node]:
        if node["t"] in ("Space", "SoftBreak", "LineBreak"):
            parts.append(" ")
        elif node["t"] in ("Str", "Code", "Math"):
            parts.append(node["c"] if node["t"] == "Str" else node["c"][1])
        return [node]

    walked(nodes, collect)
    return "".join(parts)


# --- pandoc ---------------------------------------------------------------------------------------


def pandoc(text: str, to: str, source: str, *options: str) -> str:
    """Converts a text by pandoc; with an option ``--output=`` into that file.

    Raises:
        DocumentError: if it fails, with the message of pandoc or TeX.
    """
    command = [pypandoc.get_pandoc_path(), f"--from={source}", f"--to={to}", "--quiet", *options]
    try:
        written, said, status = _ended(command, text)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise DocumentError(f"pandoc could not write {to}: {error}"[:300]) from error
    if status:
        lines = [line for line in said.splitlines() if line.startswith(("!", "l."))]
        shown = " ".join(" ".join(lines or [said]).split())
        raise DocumentError(f"pandoc could not write {to}: {shown[:300]}")
    return written


def _ended(command: Sequence[str], text: str) -> tuple[str, str, int]:
    """Output, messages and status of a program; after a time limit it is killed, with children."""
    # TeX's own settings: it runs nothing, writes below, and leaves no log of fonts here.
    settings = {"shell_escape": "f", "openout_any": "p", "MISSFONT_LOG": os.devnull}
    environment = {**os.environ, **settings}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(
        command, **pipes, encoding="utf-8", env=environment, start_new_session=True
    ) as process:
        try:
            written, said = process.communicate(text, timeout=_SECONDS)
        except BaseException:
            with contextlib.suppress(OSError, AttributeError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
    return written, said, process.returncode
