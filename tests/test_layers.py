"""The floors of the house: imports run downward or sideways, never up, never in a circle.

The sources are parsed, not imported, so imports inside functions and under ``TYPE_CHECKING`` count
like any other. ``__init__`` and ``__main__`` stand outside: they open the doors and may read all.
"""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "pyro_vaes"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
EXEMPT = {"__init__", "__main__"}

# A row may stand here before its module is written; a module may not stand there without its row.
FLOORS = {
    # 5: for people.
    "assemble": 5,
    "catalogue": 5,
    "cluster": 5,
    "cli": 5,
    "defects": 5,
    "demonstrations": 5,
    "recipes": 5,
    "report": 5,
    "report_command": 5,
    "banana": 5,
    "measures": 5,
    "outcomes": 5,
    "studies": 5,
    "study_commands": 5,
    "study_figures": 5,
    "study_panels": 5,
    "study_prior_figures": 5,
    "study_findings": 5,
    "study_report": 5,
    "study_runs": 5,
    # 4: act on any VAE.
    "checkpoints": 4,
    "diagnostics": 4,
    "evaluation": 4,
    "fit_options": 4,
    "importance": 4,
    "monitoring": 4,
    "plotting": 4,
    "run_folder": 4,
    "run_state": 4,
    "sweep": 4,
    "training": 4,
    # 3: join parts, weigh the bound.
    "divergences": 3,
    "exact": 3,
    "inference": 3,
    "objectives": 3,
    "recording": 3,
    "vae": 3,
    # 2: parts.
    "likelihoods": 2,
    "posteriors": 2,
    "priors": 2,
    # 1: what Pyro lacks or gets wrong.
    "autoregressive": 1,
    "distributions": 1,
    "flow_layers": 1,
    "flows": 1,
    "levels": 1,
    "topographic": 1,
    "transforms": 1,
    # 0: tensors in, tensors out; and plain data.
    "_version": 0,
    "allocator": 0,
    "augmentation": 0,
    "config": 0,
    "convolutions": 0,
    "data": 0,
    "distributed": 0,
    "documents": 0,
    "folders": 0,
    "networks": 0,
    "noise": 0,
    "options": 0,
    "pareto": 0,
    "results": 0,
    "sources": 0,
    "spec": 0,
    "splits": 0,
    "typesetting": 0,
}
TOP = max(FLOORS.values())
PARTS = {name for name, floor in FLOORS.items() if floor == 2}
# Options reach the rest as plain arguments, so that every module is usable without them.
READERS_OF_CONFIG = {name for name, floor in FLOORS.items() if floor == TOP} | {"checkpoints"}


def imported(name: str, source: str, modules: set[str]) -> Iterator[str]:
    """Names of the package's modules that ``source`` imports; the package's own root is ``""``."""
    # Relative imports start from the folder of the module: PACKAGE itself for a top-level one.
    package = [PACKAGE, *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            # "from pyro_vaes import flows" reads a module, "from pyro_vaes.vae import VAE" a name.
            targets = [f"{origin}.{alias.name}" for alias in node.names]
            targets = [t if t.removeprefix(f"{PACKAGE}.") in modules else origin for t in targets]
        else:
            continue
        for target in targets:
            if target == PACKAGE or target.startswith(f"{PACKAGE}."):
                yield target.removeprefix(PACKAGE).removeprefix(".")


def violations(sources: Mapping[str, str]) -> list[str]:
    """Every breach of the table by these modules (name to source text), one line each."""
    found = [
        f"{name}.py has no floor; give it one in FLOORS, in tests/test_layers.py"
        for name in sources
        if name not in FLOORS
    ]
    graph = {
        name: set(imported(name, source, {*sources, *FLOORS})) for name, source in sources.items()
    }
    for name, targets in graph.items():
        for target in targets & FLOORS.keys():
            if name in FLOORS and FLOORS[target] > FLOORS[name]:
                floors = f"floor {FLOORS[name]} imports floor {FLOORS[target]}"
                found.append(f"{name}.py imports {target}, upwards: {floors}")
            if {name, target} <= PARTS and name != target:
                found.append(f"{name}.py imports {target}: parts are given to each other")
            if target == "config" and name not in READERS_OF_CONFIG:
                found.append(f"{name}.py imports config: take plain arguments instead")
        if targets & {"", *EXEMPT}:
            found.append(f"{name}.py imports the package's front door: name the module instead")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' <- '.join(error.args[1])}")
    return found


def test_the_package_keeps_the_floors():
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
    }
    assert "vae" in paths, "the package was not found"
    found = violations(
        {name: path.read_text("utf-8") for name, path in paths.items() if name not in EXEMPT}
    )
    assert not found, "\n".join(["imports leave the floors:", *found])


@pytest.mark.parametrize(
    ("name", "source", "breach"),
    [
        ("networks", "from pyro_vaes.vae import VAE", "networks.py imports vae, upwards"),
        ("flows", "from pyro_vaes import priors", "flows.py imports priors, upwards"),
        ("flows", "import pyro_vaes.priors", "flows.py imports priors, upwards"),
        ("flows", "from . import priors", "flows.py imports priors, upwards"),
        ("flows", "from .priors import VampPrior", "flows.py imports priors, upwards"),
        ("vae", "def f():\n    from pyro_vaes.training import fit", "imports training, upwards"),
        (
            "data",
            "import typing\nif typing.TYPE_CHECKING:\n    from pyro_vaes.vae import VAE",
            "data.py imports vae, upwards",
        ),
        ("priors", "from pyro_vaes.posteriors import NormalPosterior", "given to each other"),
        ("training", "from pyro_vaes.config import RunConfig", "take plain arguments"),
        ("options", "from pyro_vaes.config import RunConfig", "take plain arguments"),
        ("cli", "import pyro_vaes as pv", "front door"),
        ("cli", "from pyro_vaes import VAE", "front door"),
        ("cli", "from . import VAE", "front door"),
        ("newcomer", "import torch", "newcomer.py has no floor"),
        ("variants.gan", "from ..vae import VAE", "variants.gan.py has no floor"),
        ("vae", "from pyro_vaes.vae import VAE", "circle: vae <- vae"),
    ],
)
def test_a_breach_is_found(name, source, breach):
    assert any(breach in line for line in violations({name: source}))


def test_a_circle_is_found():
    inwards = {
        "data": "from pyro_vaes.splits import Split",
        "splits": "def f():\n    from pyro_vaes.sources import read",
        "sources": "from pyro_vaes import data",
    }
    (line,) = violations(inwards)
    assert line.startswith("circle: ")
    assert all(name in line for name in inwards)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cli", "from pyro_vaes.config import RunConfig"),
        ("checkpoints", "from pyro_vaes.config import RunConfig"),
        ("training", "from pyro_vaes import data, vae\nfrom pyro_vaes.evaluation import evaluate"),
        ("priors", "import pyro\nfrom pyro_vaes_extras import priors\nimport torch.distributions"),
    ],
)
def test_what_is_allowed(name, source):
    assert violations({name: source}) == []
