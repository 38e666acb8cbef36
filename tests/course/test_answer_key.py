"""The answer key: every item of the assignment is there, and so is every place that it names."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from pyro_vaes.course.studies.table import QUESTIONS, STUDIES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "answer-key.md").read_text("utf-8")
ROWS = [line.split(" | ") for line in TEXT.splitlines() if re.match(r"\| \d\.\d", line)]
ITEMS = {1: 5, 2: 4, 3: 6, 4: 4, 5: 5}  # questions in each part of the assignment


def test_every_item_of_the_assignment_is_there():
    expected = [f"{part}.{i}" for part, count in ITEMS.items() for i in range(1, count + 1)]
    assert [row[0].strip("| ") for row in ROWS] == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_it_is_answered_where_the_key_says(row):
    name, question = re.search(r"notebooks/(\w+)\.ipynb\), (Question [\d.]+)", row[2]).groups()
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    heads = [line for cell in cells for line in cell.source.splitlines() if line.startswith("## ")]
    assert any(head.startswith(f"## {question}: ") for head in heads)


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`(tests/[^`]+)`", TEXT))))
def test_the_tests_that_it_names_exist(place):
    path, name = place.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), flags=re.MULTILINE)


def test_the_studies_that_it_names_are_those_of_the_questions():
    for row in ROWS:
        named = set(re.findall(r"figures/(\w+)\.md", row[4]))
        assert named <= STUDIES.keys()
        assert named >= set(QUESTIONS.get(row[0].strip("| "), ()))
        assert all((ROOT / "figures" / f"{name}.md").is_file() for name in named)
