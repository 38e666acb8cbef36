"""What the contracts on imports (import-linter, in ``pyproject.toml``) cannot say."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyro_vaes"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})

# Who may import a library: folders or modules; those after "within" only inside functions.
FENCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "click": (("cli",), ()),
    "seaborn": (("plotting", "experiments", "course"), ()),
    "matplotlib": (("plotting", "experiments", "course"), ()),
    "pandas": (("experiments", "course"), ("data", "evaluation")),
    "sklearn": (("sklearn",), ("classical", "data", "evaluation")),
    "bokeh": ((), ("explorer.page",)),
    "ray": ((), ("experiments.engines",)),
    "pypandoc": (("course.report.documents",), ()),
    "nbformat": (("course.report.notebooks",), ()),
}


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Module, names and whether inside a function, for each import of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, (), node in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, tuple(alias.name for alias in node.names), node in inner


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_libraries_stay_behind_their_fences():
    for path in FILES:
        here = module_of(path)
        for module, _, inner in imports(path):
            outer, within = FENCES.get(module.split(".")[0], ((here,), ()))
            allowed = outer + within if inner else outer
            assert any(f"{here}.".startswith(f"{place}.") for place in allowed), (
                f"{here} imports {module}; allowed are {allowed}"
            )


def test_no_private_name_crosses_a_folder():
    for path in FILES:
        folder = path.relative_to(PACKAGE).parts[0]
        for module, names, _ in imports(path):
            parts = module.split(".")
            if parts[0] == "pyro_vaes" and len(parts) > 1 and parts[1] != folder:
                private = [n for n in names if n.startswith("_") and n != "__version__"]
                assert not private, f"{module_of(path)} imports {private} from {module}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_holds_three_to_twelve_modules(folder):
    modules = [p for p in folder.glob("*.py") if not p.name.startswith("__")]
    folders = [p for p in folder.iterdir() if (p / "__init__.py").exists()]
    # The package itself and `course` hold folders.
    assert 3 <= len(modules) <= 12 or folders


def test_no_file_is_longer_than_450_lines():
    lengths = {module_of(p): len(p.read_text("utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lengths.items() if n > 450} == {}


def loaded(*arguments: str) -> set[str]:
    """The modules in memory after a fresh interpreter ran the arguments."""
    code = "import sys\ntry:\n    {}\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run(
        [sys.executable, "-c", code.format(arguments[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ended.stderr.splitlines()[-1].split())


def test_importing_the_package_imports_no_library_of_others():
    heavy = {"click", "pandas", "matplotlib", "sklearn", "torch"}
    assert not heavy & loaded("import pyro_vaes")
    # What `fit` needs is neither the command line nor pictures.
    assert not heavy - {"torch"} & loaded(
        "import pyro_vaes as pv; pv.fit, pv.evaluate, pv.load_data"
    )


def test_training_and_evaluating_import_neither_a_compiler_nor_a_library_for_pages(tmp_path):
    # Levels: a table of real values is compared with classical densities, by scikit-learn.
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 9, (60, 4)).astype("uint8"))
    run = tmp_path / "run"
    small = ["--epochs", "1", "--hidden-dims", "4", "--latent-dim", "2", "--samples", "4"]
    commands = (
        ["train", "--data", str(tmp_path / "x.npy"), "--out", str(run), *small],
        ["evaluate", str(run), "--samples", "4", "--proposal", "refined"],
    )
    unwanted = {"torch._dynamo", "torchvision", "seaborn", "pandas", "scipy", "matplotlib.pyplot"}
    for command in commands:
        after = loaded(f"from pyro_vaes.cli import main; main({command})")
        assert "pyro_vaes.evaluation.evaluator" in after
        assert not unwanted & after
    assert (run / "figures" / "latent_space.png").exists()


_NAMED = re.compile(r"(?:(?:from|import)\s+|[\"'`~])(pyro_vaes(?:\.\w+)+)")
_TEXTS = sorted(
    path
    for folder in ("pyro_vaes", "tests", "benchmarks", "docs", "notebooks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".ipynb") and "_build" not in path.parts
)


def exists(name: str) -> bool:
    """Whether a dotted name is that of a module, or of what a module or class holds."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_modules_that_are_named_in_text_and_in_strings_exist():
    # Imports in strings (of scripts for other processes, say) and references in docstrings.
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in _TEXTS
        for name in _NAMED.findall(path.read_text("utf-8"))
    }
    assert len(named) > 100
    assert {(where, name) for where, name in named if not exists(name)} == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["train", "--lerning-rate", "1"]]
)
def test_help_and_mistyped_flags_do_not_wait_for_torch(arguments):
    after = loaded(f"from pyro_vaes.cli import main; main({arguments})")
    assert "pyro_vaes.cli.app" in after
    assert "torch" not in after
