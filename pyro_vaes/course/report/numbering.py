"""Numbers of a document: figures and tables in its captions, questions in its headings.

Sections have the numbers of the assignment's questions, and numbers are part of the text, so the
page and the PDF agree.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

from pyro_vaes.course.report.documents import Node, link, plain_text, words

__all__ = ["Numbers", "equation_numbers", "question_headings"]


@dataclasses.dataclass
class Numbers:
    """Counts the figures and tables of a document in their order."""

    last: Counter[str] = dataclasses.field(default_factory=Counter)

    def numbered(self, blocks: list[Node]) -> list[Node]:
        """Blocks whose figures and captioned tables are numbered; a table needs a caption."""
        for block in blocks:
            if block["t"] in ("Figure", "Table") and block["c"][1][1]:
                self._number(block)
            elif block["t"] == "Div":
                self.numbered(block["c"][1])
        return blocks

    def _number(self, block: Node) -> None:
        kind = block["t"]
        self.last[kind] += 1
        block["c"][0][0] = f"{kind.lower()}-{self.last[kind]}"
        first = block["c"][1][1][0]
        name = {"t": "Strong", "c": words(f"{kind} {self.last[kind]}.")}
        first["c"] = [name, {"t": "Space"}, *first["c"]]

    def since(self, before: Counter[str]) -> list[Node]:
        """A phrase with links to what has been numbered since: ``Table 2 and Figures 3 to 5``."""
        found: list[Node] = []
        for kind in ("Table", "Figure"):
            first, last = before[kind] + 1, self.last[kind]
            if first > last:
                continue
            if found:
                found += [_SPACE, *words("and"), _SPACE]
            text = words(f"{kind}{'s' * (last > first)} {first}")
            found.append(link(text, f"{kind.lower()}-{first}"))
            if last > first:
                joint = "and" if last == first + 1 else "to"
                found += [_SPACE, *words(joint), _SPACE]
                found.append(link(words(str(last)), f"{kind.lower()}-{last}"))
        return found


_SPACE: Node = {"t": "Space"}

_QUESTION = re.compile(r"Question(?: (\d+)\.)? ?(\d+):?\s*")


def question_headings(blocks: list[Node]) -> list[Node]:
    """Headings ``Question 3.1: three terms`` as ``Three terms``: the section has the number."""
    for block in blocks:
        if block["t"] != "Header" or not _QUESTION.match(plain_text(block["c"][2])):
            continue
        inlines = block["c"][2]
        after = next(i for i, node in enumerate(inlines) if plain_text([node]).endswith(":"))
        rest = inlines[after + 1 :]
        rest = rest[1:] if rest and rest[0]["t"] == "Space" else rest
        if rest and rest[0]["t"] == "Str":
            rest[0]["c"] = rest[0]["c"][:1].upper() + rest[0]["c"][1:]
        block["c"][2] = rest
    return blocks


_NUMBER = re.compile(r"\\q?quad\s*\((\d+'?)\)")


def equation_numbers(formula: str) -> tuple[str, list[str]]:
    r"""A formula without its numbers ``\qquad (1)``, and the numbers.

    >>> equation_numbers(r"a = b. \qquad (5)")
    ('a = b. ', ['5'])
    """
    return _NUMBER.sub("", formula), _NUMBER.findall(formula)
