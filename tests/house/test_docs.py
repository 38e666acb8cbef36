"""The pages keep their promises: code runs, links lead somewhere, no public name is missing."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

import pyro_vaes as pv
from pyro_vaes.runs.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# What Sphinx has built may lie among them.
BUILT = {"_build", "figures", "notebooks"}
PAGES = sorted(p for p in DOCS.glob("**/*.md") if not BUILT & {*p.relative_to(DOCS).parts})
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *PAGES]

# A section of a page, without its heading.
SECTION = r"^## [^\n]+\n(.*?)(?=^## |\Z)"

# Its blocks need libraries of which a machine may have some.
WATCHING = DOCS / "watching.md"

# Parts whose steps take long to record, or cannot be recorded.
SLOW = {f"docs/parts/{name}.md" for name in ("network_residual_conv", "divergence_adversarial")}
SLOW |= {f"docs/parts/{name}.md" for name in ("posterior_iaf", "posterior_spline", "prior_spline")}

# What a page's code may cost in a test; the page itself shows what a user would write.
LIMITS = {
    "fit": {"epochs": 2, "warmup_epochs": 1},
    "evaluate": {"num_samples": 50},
    "log_marginal": {"num_samples": 50},
    "score": {"num_samples": 50},
}


def hurry(monkeypatch: pytest.MonkeyPatch, proposal: str) -> None:
    """Keeps epochs and samples small; everything else reaches the real functions as written."""

    def limited(function: Any, limits: dict[str, int]) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            for name, most in limits.items():
                bound.arguments[name] = min(bound.arguments[name], most)
            if "proposal" in bound.arguments and "proposal" not in kwargs:
                bound.arguments["proposal"] = proposal
            return function(*bound.args, **bound.kwargs)

        return call

    for function, limits in LIMITS.items():
        monkeypatch.setattr(pv, function, limited(getattr(pv, function), limits))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting a proposal to each datum takes longer than the rest of a page."""
    hurry(monkeypatch, "encoder")


def with_code() -> list[Any]:
    """README and the pages that show code."""
    pages = [p for p in PAGES if "```python\n" in p.read_text("utf-8") and p != WATCHING]
    names = [str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *pages]]
    # pythae's own code warns, and that of what it needs.
    ignored = pytest.mark.filterwarnings("ignore")
    marks = {n: ignored for n in names if "pythae" in n} | dict.fromkeys(SLOW, pytest.mark.slow)
    return [pytest.param(n, marks=marks.get(n, ())) for n in names]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("page", with_code())
def test_code_runs_from_top_to_bottom(page: str) -> None:
    if "pythae" in page:
        pytest.importorskip("pythae")
    run(page)


def run(page: str) -> dict[str, Any]:
    """Runs all code of a page, and returns what it defines."""
    document = Document.parse(str(ROOT / page), PythonCodeBlockParser())
    examples = list(document.examples())
    assert len(examples) == (ROOT / page).read_text("utf-8").count("```python\n") > 0
    for example in examples:
        example.evaluate()
    return document.namespace


def blocks_of(text: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", text, re.S)


def watching_blocks() -> list[str]:
    return blocks_of(WATCHING.read_text("utf-8"))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("number", range(1, len(watching_blocks())))
# The loggers' own code warns, and that of what they need.
@pytest.mark.filterwarnings("ignore")
def test_each_way_of_watching_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = blocks = watching_blocks()
    for module in re.findall(r"^(?:import|from) ([\w.]+)", blocks[number], re.M):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    namespace: dict[str, Any] = {}
    for code in (first, blocks[number]):
        exec(compile(code, str(WATCHING), "exec"), namespace)


def test_commands_of_a_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_vaes.cli import main

    few = {"score": ["--samples", "30", "--proposal", "encoder"]}
    few |= dict.fromkeys(("evaluate", "impute"), few["score"])
    few["train"] = ["--epochs", "2", "--warmup-epochs", "0", "--samples", "5"]
    few["train"] += ["--proposal", "encoder"]
    page = (DOCS / "using-a-model.md").read_text("utf-8")
    lines = re.findall(r"^pyro-vaes (.*)$", page, re.M)
    assert len(lines) == 9
    rows = "".join(f"{i},{170 + i % 7},{101_000 + 31 * i % 300}\n" for i in range(60))
    monkeypatch.chdir(tmp_path)
    for name in ("measurements.csv", "new.csv"):
        Path(name).write_text("id,height_cm,pressure_pa\n" + rows)
    for line in lines:
        command, *options = shlex.split(line)
        main([command, *options, *few.get(command, [])])
        assert "--out" not in options or Path(options[options.index("--out") + 1]).exists()


@pytest.mark.parametrize(
    ("page", "count", "found"),
    [
        ("exploring", 2, ("runs/first/explore.html", "val.html")),
        pytest.param(
            "searching",
            2,
            ("search/best/summary.json", "random/search.md"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_commands_of_other_pages_run(
    page: str, count: int, found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyro_vaes.cli import main

    if page == "exploring":
        pytest.importorskip("bokeh")
    lines = re.findall(r"^pyro-vaes (.*)$", (DOCS / f"{page}.md").read_text("utf-8"), re.M)
    assert len(lines) == count
    monkeypatch.chdir(tmp_path)
    few = ["--samples", "30", "--proposal", "encoder"]
    quick = ["--epochs", "2", "--warmup-epochs", "0", "--workers", "1"]
    if page == "exploring":
        main(["train", "--out", "runs/first", *few, *quick[:4]])
    for line in lines:
        main([*shlex.split(line), *few, *(quick if page == "searching" else [])])
    assert all(Path(name).exists() for name in found)


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gallery")


def test_the_gallery_is_that_of_the_registry_and_the_docstrings(gallery: Any) -> None:
    hint = "run python benchmarks/gallery.py --text, and FLAG/VALUE for a new picture"
    assert (DOCS / "gallery.md").read_text("utf-8") == gallery.page(), hint
    shown = [(gallery.stem(f, v), gallery.has_picture(f, row)) for f, v, row in gallery.shown()]
    pictures = {f"{stem}.png" for stem, drawn in shown if drawn}
    files = list((DOCS / "gallery").iterdir())
    assert {path.name for path in files} == pictures, hint
    assert all(1000 < path.stat().st_size < 60_000 for path in files)


@pytest.mark.parametrize(
    ("part", "found"),
    [
        # Eight posteriors, one sheet of draws, and a bar for each unit.
        (("posterior", "normal"), (8, 0, 0)),
        (("likelihood", "ordinal"), (0, 1, 0)),
        (("objective", "--beta"), (0, 0, 16)),
    ],
)
def test_a_picture_of_the_gallery_is_drawn(
    part: tuple[str, str], found: tuple[int, ...], gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "EPOCHS", 2)
    axes = gallery.picture(*part).axes[0]
    assert (len(axes.collections), len(axes.images), len(axes.patches)) == found


FIRST = dict.fromkeys(("prior", "likelihood"), "Generative story") | {
    "posterior": "How z is drawn",
    "network": "What it computes",
    "objective": "What is minimised",
    "divergence": "What it measures",
}


def test_every_part_has_a_page_with_its_story_uses_limits_lines_and_paper(gallery: Any) -> None:
    assert {flag for flag, *_ in gallery.shown()} == set(REGISTRY)
    pages = {gallery.stem(flag, value): (flag, value) for flag, value, _ in gallery.shown()}
    assert {path.stem for path in (DOCS / "parts").iterdir()} == set(pages)
    for stem, (flag, value) in pages.items():
        row, text = REGISTRY[flag][value], (DOCS / "parts" / f"{stem}.md").read_text("utf-8")
        titles, bodies = (re.findall(p, text, re.M | re.S) for p in (r"^## ([^\n]+)", SECTION))
        assert titles == [FIRST[flag], "When to use it", "Limits", "Ten lines", "Paper"], stem
        assert all(len(body.split()) > 5 for body in bodies), stem
        assert (f"](../gallery/{stem}.png)" in text) == gallery.has_picture(flag, row), stem
        (code,) = blocks_of(text)
        lines = [line for line in code.splitlines() if line]
        assert 8 <= len(lines) <= 13, (stem, len(lines))
        # The first author and the year of the paper that `pyro-vaes parts` names.
        author, year = row.source.split()[-4 if "et al." in row.source else 0], row.source[-4:]
        assert author in bodies[-1] and year in bodies[-1], stem


@pytest.mark.parametrize("kind", sorted(FIRST))
def test_the_command_of_a_part_is_one(
    kind: str, gallery: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyro_vaes.cli import main

    for flag, value, row in gallery.shown():
        if flag != kind:
            continue
        text = (DOCS / "parts" / f"{gallery.stem(flag, value)}.md").read_text("utf-8")
        (command,) = re.findall(r"^`pyro-vaes (train .*)`$", text, re.M)
        named = re.findall(r"--[\w-]+", command)
        wanted = re.findall(r"--[\w-]+", value) or [f"--{flag}"]
        wanted += [f"--{option.replace('_', '-')}" for option in row.options]
        assert set(wanted) <= set(named), value
        main([*shlex.split(command), "--print-config"])
        assert value.startswith("--") or f"{flag}: {value}" in capsys.readouterr().out


def test_readme_shows_what_its_example_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, "auto")
    shown = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    *figures, verdict = shown[0].splitlines()
    printed = str(run("README.md")["report"])
    assert len(figures) == 3
    for line in figures:
        # The same words in the same order; fewer epochs and draws make other figures.
        words = [re.escape(word) for word in re.split(r"\d+(?:\.\d+)?", " ".join(line.split()))]
        assert re.search(r"[\d.]+".join(words), " ".join(printed.split())), line
    assert verdict.startswith("No posterior collapse: ")


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 800


def test_every_page_is_in_the_index() -> None:
    texts = [(DOCS / f"{name}.md").read_text("utf-8") for name in ("index", "gallery")]
    listed = set(re.findall(r"^[\w/-]+$", "\n".join(texts), re.M))
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in PAGES}
    # Studies and notebooks are copied when the pages are built.
    copied = [*ROOT.glob("figures/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    pages |= {str(p.relative_to(ROOT).with_suffix("")) for p in copied}
    assert pages - {"index"} <= listed


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^   ~(\S+)\.(\w+)$", (DOCS / "reference" / "index.rst").read_text(), re.M)
    documented = {
        module
        for page in DOCS.glob("reference/*.rst")
        for module in re.findall(r"automodule:: (\S+)", page.read_text("utf-8"))
    }
    found = set()
    for module, name in listed:
        assert module in documented, f"no page documents {module}"
        value = getattr(importlib.import_module(module), name)
        if module == "pyro_vaes.flows.recipes":
            assert value is getattr(pv.flows, name)
        elif module == "pyro_vaes.sklearn":
            assert value is getattr(pv.sklearn, name)
        else:
            assert value is getattr(pv, name)
            found.add(name)
    # What is no class or function stands in the text of the page.
    assert found | {"flows", "sklearn", "__version__"} == set(pv.__all__)
    recipes = {name for module, name in listed if module == "pyro_vaes.flows.recipes"}
    assert recipes == set(pv.flows.LAYERS)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(path: Path, text: str) -> list[str]:
    """The relative links in ``text``, which stands at ``path``, that lead nowhere."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            found.append(target)
    return found


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    assert broken(path, path.read_text("utf-8")) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](nowhere.md) [b](README.md) [c](README.md#set-up) [d](README.md#no) [e](https://x.y)"
    assert broken(ROOT / "README.md", text) == ["nowhere.md", "README.md#no"]
