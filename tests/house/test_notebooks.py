"""The notebooks: they run from top to bottom, and what is committed is the result of a clean run.

Those that train read ``PYRO_VAES_QUICK=1`` in one cell, for short runs.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# The assignment's numbered equations, by the notebook that derives them.
EQUATIONS = {
    "01_elbo": range(1, 8),
    "02_flow_posteriors": range(8, 13),
    "03_learned_priors": range(13, 15),
    "04_posterior_collapse_and_infovae": range(15, 17),
}
MOST_BYTES = 400_000
MOST_LINES = 40
SHORT = "# Quickstart"  # No part of the report, which sets the captions.
# Roots under which somebody's files lie. Not inside a word or a longer relative path.
MACHINE_PATH = re.compile(
    r"(?<![\w./])/(?:etc|home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)/|\b[A-Z]:\\"
)
HTML = re.compile(r"</?(?:a|b|br|center|details|div|font|h\d|i|img|p|span|su[bp]|table|td|tr)\b")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Any, kind: str) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def text_of(notebook: Any) -> str:
    """All that can be read in a notebook: sources and outputs, without its pictures."""
    parts = [cell.source for cell in notebook.cells]
    for cell in cells(notebook, "code"):
        for output in cell.outputs:
            parts.append(output.get("text", ""))
            data = output.get("data", {})
            parts += [str(value) for kind, value in data.items() if not kind.startswith("image/")]
    return "\n".join(parts)


def private_names(source: str) -> Iterator[str]:
    """What of a cell is not public: imports of private modules or names, private attributes."""

    def private(name: str) -> bool:
        return any(
            part.startswith("_") and not (part.startswith("__") and part.endswith("__"))
            for part in name.split(".")
        )

    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        yield from filter(private, names)


def faults(notebook: Any) -> Iterator[str]:
    """What is wrong with a notebook as it is committed."""
    code = cells(notebook, "code")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "not run from top to bottom"
    outputs = [output for cell in code for output in cell.outputs]
    if not outputs:
        yield "no outputs"
    for output in outputs:
        if output.output_type == "error":
            yield f"an error: {output.ename}"
        if output.get("name") == "stderr":
            yield f"a warning: {output.text}"
    for found in MACHINE_PATH.finditer(text_of(notebook)):
        yield f"a path of a machine: {found.group()}"
    for cell in code:
        yield from (f"a private name: {name}" for name in private_names(cell.source))
        if len(cell.source.splitlines()) > MOST_LINES:
            yield f"a cell of more than {MOST_LINES} lines"
        pictured = any("image/png" in output.get("data", {}) for output in cell.outputs)
        if pictured and "caption" not in cell.metadata and SHORT not in text_of(notebook):
            yield f"a picture without a caption: {cell.source[:40]}"
    for cell in cells(notebook, "markdown"):
        yield from (f"HTML in text: {found.group()}" for found in HTML.finditer(cell.source))
        if "\\tag" in cell.source:
            yield r"\tag, which MathML lacks: number an equation by \qquad (1)"


def equations(notebook: Any) -> set[int]:
    """The numbers of the equations that the text names, as (3)."""
    text = "\n".join(cell.source for cell in cells(notebook, "markdown"))
    return {int(number) for number in re.findall(r"(?<!\w)\((\d+)\)", text)}


@each_notebook
def test_committed_with_the_outputs_of_a_clean_run(path):
    assert not list(faults(nbformat.read(path, as_version=4)))
    assert path.stat().st_size < MOST_BYTES


def unknown_names(source: str) -> set[str]:
    """Names that a program uses and nowhere defines."""
    nodes = list(ast.walk(ast.parse(source)))
    known = set(dir(builtins))
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
    names = [node for node in nodes if isinstance(node, ast.Name)]
    known |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return {name.id for name in names} - known


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem[:2] != "00"], ids=lambda p: p.stem)
def test_the_listings_of_the_report_are_complete(path):
    notebook = nbformat.read(path, as_version=4)
    shown = [c.source for c in cells(notebook, "code") if "listing" in c.metadata.get("tags", ())]
    source = "\n".join(shown).replace("%matplotlib inline", "")
    assert shown and unknown_names(source) == set()
    assert max(map(len, source.splitlines())) <= 96  # A line of the PDF.
    assert unknown_names("import a.b as c\nc.d(e, f=1)") == {"e"}


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_equation_of_the_assignment_is_derived(name):
    path = FOLDER / f"{name}.ipynb"
    if not path.exists():
        pytest.skip("not written yet")
    missing = set(EQUATIONS[name]) - equations(nbformat.read(path, as_version=4))
    assert not missing


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from pyro_vaes.flows import _given", "a private name: pyro_vaes.flows._given"),
        ("import pyro_vaes._version", "a private name: pyro_vaes._version"),
        ("%matplotlib inline\nf(x)._params", "a private name: _params"),
        ("open('/home/me/x')", "a path of a machine: /home/"),
        ("import pyro_vaes as pv\npv.__version__", None),
        ("!pyro-vaes train --out ../runs/tmp/first  # 1/2", None),
    ],
)
def test_faults_are_found(source, fault):
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text="done")]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert list(faults(notebook)) == ([fault] if fault else [])


def test_outputs_of_a_dirty_run_are_found():
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    notebook = nbformat.v4.new_notebook(
        cells=[code("1", execution_count=2), text(r"a <br> b \tag{1}")]
    )
    found = list(faults(notebook))
    assert found[:3] == ["not run from top to bottom", "no outputs", "HTML in text: <br"]
    assert found[3].startswith(r"\tag")
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("error", ename="KeyError"),
        nbformat.v4.new_output("stream", name="stderr", text="beware"),
    ]
    assert {"an error: KeyError", "a warning: beware"} < set(faults(notebook))
    notebook.cells[1].source = r"from (3) to $$f(1). \qquad (12)$$"
    assert equations(notebook) == {3, 12}


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, monkeypatch):
    """In the folder of the notebooks, as ``jupyter execute`` does, which is how they are made."""
    monkeypatch.setenv("PYRO_VAES_QUICK", "1")
    # The command line of this very environment, activated or not.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    # A warning would be seen by the reader, too.
    assert not [fault for fault in faults(notebook) if not fault.startswith("a path")]
