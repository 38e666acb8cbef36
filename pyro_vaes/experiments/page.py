"""The page of a study: its parts as data, and as Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyro_vaes.storage.files import read_json, write_text

__all__ = ["Page", "markdown_table"]

_CLAIMS = (
    "The findings describe these runs. Of the study's comparisons these were named before the "
    "runs, and are tested: by a two-sided t test over the seeds, with Holm's correction."
)


# A number without its sign; not part of a word.
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)*")


@dataclasses.dataclass(frozen=True)
class Page:
    """The page of a study. Texts are Markdown.

    Attributes:
        title: a heading.
        question: the question of the study.
        table: rows of cells, the heads first.
        notes: on the table.
        figures: the file and the caption of each.
        findings: a sentence or two each, one at least.
        claims: the comparisons tested, with their results.
        made_by: data, seeds and versions.
        command: the command that makes the page.
        date: of the last run, as 2026-11-30; empty if unknown.
    """

    title: str
    question: str
    table: Sequence[Sequence[str]]
    notes: Sequence[str]
    figures: Sequence[tuple[str, str]]
    findings: Sequence[str]
    claims: Sequence[str]
    made_by: str
    command: str
    date: str = ""

    def unfounded(self) -> list[str]:
        """Numbers in the findings that neither the table nor the claims contain."""
        sources = [cell for row in self.table for cell in row]
        sources += [*self.claims, *self.notes, self.question, self.made_by]
        known = {number for text in sources for number in _NUMBER.findall(text)}
        return [n for text in self.findings for n in _NUMBER.findall(text) if n not in known]

    def markdown(self) -> str:
        """The whole page."""
        text = [f"# {self.title}", self.question, "## Findings", _bullets(self.findings)]
        text += ["## Figures", markdown_table(*self.table), *self.notes]
        text += [f"![{caption}]({file})" for file, caption in self.figures]
        if self.claims:
            text += ["## Claims", _CLAIMS, _bullets(self.claims)]
        text.append(f"{self.made_by} Made by `{self.command}`.")
        return "\n\n".join(text) + "\n"

    def write(self, folder: Path, name: str) -> Path:
        """Writes ``NAME.json`` and ``NAME.md``, whose path is returned."""
        facts = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        write_text(folder / f"{name}.json", facts + "\n")
        write_text(folder / f"{name}.md", self.markdown())
        return folder / f"{name}.md"

    @classmethod
    def read(cls, path: Path) -> Page:
        """The page in a ``NAME.json``.

        Raises:
            ValueError: if it holds anything else.
        """
        found = read_json(path)
        depths = {"str": 0, "Sequence[str]": 1}
        fields = {field.name: depths.get(str(field.type), 2) for field in dataclasses.fields(cls)}
        if not (
            isinstance(found, dict)
            and fields.keys() - {"date"} <= found.keys() <= fields.keys()
            and all(_is_text(value, fields[name]) for name, value in found.items())
            and found["table"]
            and found["findings"]
            and all(len(figure) == 2 for figure in found["figures"])
        ):
            raise ValueError(f"Expected the page of a study in {path}; got something else.")
        return cls(**found)


def _is_text(value: Any, depth: int) -> bool:
    """Whether a value is a text, or lists of texts in lists as deep as that."""
    if depth == 0:
        return isinstance(value, str)
    return isinstance(value, list) and all(_is_text(v, depth - 1) for v in value)


def markdown_table(head: Sequence[str], *rows: Sequence[str]) -> str:
    """A table in Markdown."""
    return "\n".join([_row(head), "|" + "---|" * len(head), *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
