"""Docstrings, comments, messages and pages use the plain words of a textbook."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each with what to write instead. Names in code are not text.
WORDS = {
    r"(?:go|goes|going|gone|went) on": "continue, resume",
    r"(?:fore)?told|tells?": "know, report, distinguish, predict",
    r"beside": "with, next to",
    r"so many": "many, a number of",
    r"as dear|so dear|dearer|come dear": "expensive",
    r"to the letter": "exactly",
    r"cannot be had": "is not available",
    r"(?:the )?(?:shared|own) rooms?": "base class, folder",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
MODULES = sorted((ROOT / "pyro_vaes").glob("**/*.py"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *(
        p
        for p in sorted((ROOT / "docs").glob("**/*.*"))
        if p.suffix in (".md", ".rst") and p.relative_to(ROOT).parts[1] not in ("_build", "figures")
    ),
    ROOT / "benchmarks" / "README.md",
]


def text_of(path: Path) -> Iterator[tuple[int, str]]:
    """A page, or the comments and strings of a module, in pieces with their first lines."""
    if path.suffix != ".py":
        yield 1, path.read_text("utf-8")
        return
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                # Before Python 3.12 an f-string is one token, code included.
                yield token.start[0], re.sub(r"\{[^{}]*\}", "{}", token.string)


def found_in(path: Path) -> list[str]:
    return [
        f"{path.name}:{first + text.count(chr(10), 0, match.start())}: {match[0]!r}"
        for first, text in text_of(path)
        for match in PATTERN.finditer(text)
    ]


@pytest.mark.parametrize("path", [*MODULES, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_words_are_plain(path: Path) -> None:
    assert found_in(path) == [], f"better: {WORDS}"


def test_words_are_found_in_text_alone(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('told = 1\n"""One line.\n\nIt goes on."""\nprint(f"{told} beside")\n')
    assert found_in(module) == ["module.py:4: 'goes on'", "module.py:5: 'beside'"]
