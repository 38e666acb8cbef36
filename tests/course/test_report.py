"""The report: what it says, that it says it again, and what it refuses."""

import base64
import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure

from pyro_vaes.cli.app import main
from pyro_vaes.course.report import documents, report, typesetting
from pyro_vaes.course.report.allowed import check_formula
from pyro_vaes.course.report.defects import DefectsPage
from pyro_vaes.course.report.documents import DocumentError, from_markdown, from_notebook, walked
from pyro_vaes.course.report.report import ReportError, write_report
from pyro_vaes.course.report.typesetting import to_html
from pyro_vaes.experiments.page import Page

ROOT = Path(__file__).resolve().parents[2]
# One grey point.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
HAS_TEX = any(map(shutil.which, typesetting.ENGINES))


def page_of(name, title, gap):
    return Page(
        title=title,
        question="How far may $\\beta$ go?",
        table=[["label", "NLL"], ["beta = 1", "81.98 ± 0.20"]],
        notes=[],
        figures=[(f"{name}_curve.png", "The curve bends.")],
        findings=[f"NLL falls by {gap} nats.", "A second finding."],
        claims=[],
        made_by="pyro_vaes 0, torch 2.",
        command=f"pyro-vaes study {name} --seeds 2",
    )


@pytest.fixture(autouse=True)
def _short_defects(monkeypatch):
    # Its own tests run the page; here it is a page like any other.
    figure = Figure(figsize=(1, 1))
    page = DefectsPage("# What is wrong\n\n![A defect.](defect.png)\n", {"defect.png": figure})
    monkeypatch.setattr(report, "defects_page", lambda: page)


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name, title, gap in (("zeta", "Zeta", 1), ("priors", "Priors", 2), ("beta", "Beta", 3)):
        Figure(figsize=(1, 1)).savefig(folder / f"{name}_curve.png")
        page_of(name, title, gap).write(folder, name)
        rows = "".join(f"{name},beta = 1,{seed},81.5,1000,90\n" for seed in (0, 1))
        (folder / f"{name}.csv").write_text("study,label,seed,nll,num_samples,seconds\n" + rows)
    (folder / "digits.png").write_bytes((folder / "beta_curve.png").read_bytes())
    return folder


def cells(*more):
    v4 = nbformat.v4
    picture = base64.b64encode(PNG).decode()
    return [
        v4.new_markdown_cell("# 1 A title\n\nSee [there](02_flow_posteriors.ipynb) and [x](a.py)."),
        v4.new_markdown_cell("## Question 1\n\n$$\\log p(x) \\ge 0 \\tag{1}$$"),
        v4.new_code_cell("import torch  # no algorithm"),
        v4.new_code_cell(
            "%matplotlib inline\nsvi = SVI(model, guide, optim, loss)",
            outputs=[v4.new_output("stream", text="loss 4570.4\n")],
        ),
        v4.new_code_cell(
            "plt.plot(svi.step(x))",
            outputs=[
                v4.new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"})
            ],
        ),
        v4.new_code_cell(
            "a_check()",
            outputs=[
                v4.new_output("execute_result", {"text/html": "<b>9</b>", "text/plain": "9.25"}),
                v4.new_output("stream", name="stderr", text="a warning"),
            ],
        ),
        *more,
    ]


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in report.NOTEBOOKS[:2]:
        notebook = nbformat.v4.new_notebook(cells=cells())
        for i, cell in enumerate(notebook.cells):
            cell.id = f"cell-{i}"
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


def without_tex(monkeypatch):
    monkeypatch.setattr(typesetting.shutil, "which", lambda name: None)


def test_the_order_and_the_words(results, notebooks, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    made = write_report(results, tmp_path / "out", notebooks)
    assert made.pdf is None
    page = made.html.read_text("utf-8")
    body = " ".join(page[page.index("</nav>") :].split())
    ids = ["summary", *report.NOTEBOOKS, "experiments", "study-beta", "study-priors"]
    ids += ["study-zeta", "defects-what-is-wrong", "reproduce"]
    places = [body.index(f'id="{name}"') for name in ids]
    assert places == sorted(places)
    # The sections of the derivations have the numbers of the assignment's parts.
    numbers = re.findall(r'<h1 data-number="(\d)"', body)
    assert numbers == list("1234567")
    assert "</span> A title</h1>" in body
    summary = body[: body.index('id="01_elbo"')]
    assert "NLL falls by 3 nats." in summary
    assert "A second finding." not in summary
    assert "derivations of 2 notebooks" in summary and "6 trained models" in summary
    assert "Not run: vae, conditional, likelihoods" in body
    reproduce = body[body.index('id="reproduce"') :]
    assert "pyro-vaes</span> study beta" in re.sub(r'<span class="\w+">', "", reproduce)
    assert re.search(r"Beta</td>\s*<td[^>]*>2</td>\s*<td[^>]*>0, 1</td>", reproduce)
    assert re.search(r"<td[^>]*>1000</td>\s*<td[^>]*>3.0</td>", reproduce)
    assert any("No PDF" in line and "TeX" in line for line in made.remarks)
    assert any("03_learned_priors.ipynb" in line for line in made.remarks)


def test_the_page_needs_nothing_else(results, notebooks, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    page = write_report(results, tmp_path / "out", notebooks).html.read_text("utf-8")
    assert "<script" not in page
    assert set(re.findall(r'(?:src|href)="([^"#]{5})', page)) == {"data:"}
    assert set(re.findall(r"https?://[\w.]+", page)) <= {"http://www.w3.org"}
    assert "<math" in page and "$" not in page
    assert str(tmp_path) not in page
    # Three studies, a defect, and one picture in each of two notebooks.
    assert page.count("data:image/png;base64,") == 6
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))


def test_what_is_taken_from_a_notebook(notebooks, tmp_path):
    blocks = from_notebook(notebooks / "01_elbo.ipynb", tmp_path / "media", "part")
    text = to_html(blocks, "T")[0].decode()
    plain = re.sub(r"<[^>]+>", "", text)
    assert "svi = SVI(model, guide, optim, loss)" in plain
    assert "loss 4570.4" in plain and "9.25" in plain
    for hidden in ("no algorithm", "matplotlib", "plt.plot", "a_check", "a warning", "&lt;Figure"):
        assert hidden not in plain
    assert "(1)" in plain and "\\tag" not in plain
    assert 'href="#02_flow_posteriors"' in text and "a.py" not in text


@pytest.mark.parametrize(
    ("tag", "source", "output"),
    [("remove_cell", 0, 0), ("remove_input", 0, 1), ("remove_output", 1, 0), ("other", 1, 1)],
)
def test_tags_hide_parts_of_cells(tmp_path, tag, source, output):
    cell = nbformat.v4.new_code_cell(
        "svi.step(x)", outputs=[nbformat.v4.new_output("stream", text="seen")]
    )
    cell.metadata["tags"] = [tag]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    text = json.dumps(from_notebook(tmp_path / "a.ipynb", tmp_path / "media", "p"))
    assert ("svi.step" in text, "seen" in text) == (bool(source), bool(output))


def test_a_page_runs_nothing_of_its_sources(tmp_path):
    text = "# A\n\n<script>alert(1)</script>\n\n<img src='http://x.y/z.png'> a<br>b\n"
    page = to_html(from_markdown(text, tmp_path, "p"), "T")[0].decode()
    assert "alert" not in page and "x.y" not in page
    assert re.search(r"a<br\s*/?>\s*b", page)


@pytest.mark.parametrize("how", ["absolute", "upwards", "by a link", "of another scheme"])
def test_pictures_come_from_the_folder_of_their_source(how, tmp_path):
    folder, secret = tmp_path / "results", tmp_path / "secret.png"
    folder.mkdir()
    secret.write_bytes(PNG)
    (folder / "link.png").symlink_to(secret)
    target = {
        "absolute": secret,
        "upwards": "../secret.png",
        "by a link": "link.png",
        "of another scheme": f"file://{secret}",
    }[how]
    with pytest.raises(DocumentError, match=r"Expected the picture .* within"):
        from_markdown(f"![p]({target})", folder, "p")
    (folder / "own.png").write_bytes(PNG)
    (folder / "inside.png").symlink_to("own.png")
    for name in ("own.png", "./own.png", "inside.png"):
        page = to_html(from_markdown(f"![p]({name})", folder, "p"), "T")[0].decode()
        assert base64.b64encode(PNG).decode() in page


@pytest.mark.parametrize(
    "content", [b"root:x:0:0:secret", PNG[:40], b"", b"\xff\xd8\xff secret", b"<!ENTITY a><svg>"]
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "svg"])
def test_one_bad_picture_costs_one_picture(content, suffix, results, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    (results / f"bad.{suffix}").write_bytes(content)
    page = results / "beta.json"
    page.write_text(page.read_text().replace("beta_curve.png", f"bad.{suffix}"))
    made = write_report(results, tmp_path / "out")
    (line,) = [line for line in made.remarks if line.startswith("Left out")]
    assert f"bad.{suffix}" in line
    html = made.html.read_text()
    assert html.count("data:image/png;base64,") == 3 and "secret" not in html


@pytest.mark.parametrize(
    "formula",
    [
        r"\newread\f\openin\f=/etc/passwd \read\f to\l \text{\l}",
        r"\def\x{\x}\x",
        r"\input{/etc/passwd}",
        r"\write18{true}",
        r"^^5cinput{/etc/passwd}",
        r"\catcode`@=11 x",
        r"\csname input\endcsname x",
        r"\begin{filecontents}{x}\end{filecontents}",
        r"\begin {verbatim} x",
        r"\begin\relax",
        r"x\) \input{y}",
        r"\@@input x",
        r"\directlua{x}",
        r"\includegraphics{x}",
    ],
)
def test_formulas_set_and_do_nothing_else(formula, tmp_path):
    blocks = from_markdown(f"One ${formula}$ two.", tmp_path, "p")
    (line,) = documents.remarks_on(blocks)
    assert "not set" in line
    kinds = [node["t"] for node in blocks[0]["c"]]
    assert "Math" not in kinds and "Code" in kinds


def test_the_formulas_of_notebooks_and_pages_are_all_set():
    texts = [path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    formulas = [
        f for text in texts for f in re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", text, re.DOTALL)
    ]
    assert len(formulas) > 100
    assert {check_formula(formula.strip("$")) for formula in formulas} == {""}


def test_what_hangs_is_ended_in_its_time(tmp_path, monkeypatch):
    slow = tmp_path / "pandoc"
    slow.write_text("#!/bin/sh\nsleep 60 & wait\n")
    slow.chmod(0o755)
    monkeypatch.setattr(documents.pypandoc, "get_pandoc_path", lambda: str(slow))
    monkeypatch.setattr(documents, "_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(DocumentError, match="timed out"):
        documents.pandoc("a", "json", "markdown")
    assert time.monotonic() - started < 10


def test_warnings_of_older_pandocs_are_told(tmp_path):
    log = tmp_path / "log.json"
    entry = {"type": "CouldNotConvertTeXMath", "verbosity": "WARNING", "contents": "x^"}
    log.write_text(json.dumps([entry, {**entry, "pretty": "Could not convert x^"}]))
    first, second = typesetting._warnings(log)
    assert "CouldNotConvertTeXMath" in first and "x^" in first
    assert second == "Could not convert x^"


def test_a_formula_that_cannot_be_set_is_told():
    page, faults = to_html(
        [
            {"t": "Para", "c": [{"t": "Math", "c": [{"t": "InlineMath"}, formula]}]}
            for formula in (r"\nonsense{y}", r"\log p(x)")
        ],
        "T",
    )
    assert len(faults) == 1 and "nonsense" in faults[0]
    # Else "log" and "p" would touch.
    assert b'<mspace width="0.167em"></mspace><mi>p</mi>' in page


def test_the_same_sources_give_the_same_bytes(results, notebooks, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    first, second = (
        write_report(results, tmp_path / name, notebooks).html.read_bytes() for name in "ab"
    )
    assert first == second
    moved = shutil.copytree(results, tmp_path / "elsewhere")
    assert write_report(moved, tmp_path / "c", notebooks).html.read_bytes() == first
    (moved / "beta.json").write_text((moved / "beta.json").read_text().replace("by 3", "by 4"))
    assert write_report(moved, tmp_path / "c", notebooks).html.read_bytes() != first


@pytest.mark.skipif(not HAS_TEX, reason="needs a TeX engine")
@pytest.mark.slow
def test_the_pdf_is_made_and_made_again(results, notebooks, tmp_path):
    # PNG files of no content stop TeX, though not a browser.
    shutil.rmtree(notebooks)
    first, second = (write_report(results, tmp_path / name) for name in "ab")
    assert first.pdf is not None, first.remarks
    assert first.pdf.read_bytes().startswith(b"%PDF-")
    assert first.pdf.read_bytes() == second.pdf.read_bytes()


def test_an_engine_that_fails_is_told_and_html_stays(results, tmp_path, monkeypatch):
    monkeypatch.setattr(typesetting, "ENGINES", ("xelatex",))
    monkeypatch.setattr(typesetting.shutil, "which", lambda name: f"/nowhere/{name}")
    real = documents.pandoc

    def pandoc(text, to, source, *options):
        if to == "pdf":
            raise DocumentError("pandoc could not write pdf: ! No such package.")
        return real(text, to, source, *options)

    monkeypatch.setattr(typesetting, "pandoc", pandoc)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.pdf").write_bytes(b"old")
    made = write_report(results, tmp_path / "out")
    assert made.html.exists() and made.pdf is None
    assert any("No PDF by xelatex" in line and "No such package" in line for line in made.remarks)
    assert any("earlier run" in line for line in made.remarks)


def test_tables_are_fitted_to_the_page_of_the_pdf():
    def typeset(cell):
        table = f"| a | b |\n|---|---|\n| {cell} | 1 |\n"
        return walked(from_markdown(table, report.Path(), "p"), typesetting._typeset)

    small, smaller = typeset("x"), typeset("x" * 90)
    for blocks in (small, smaller):
        assert [block["t"] for block in blocks] == ["RawBlock", "Table", "RawBlock"]
    assert "\\small" not in small[0]["c"][1] and "\\small" in smaller[0]["c"][1]
    assert smaller[1]["c"][2][0][1] == {"t": "ColWidthDefault"}
    wide = typeset("x" * 300)[1]["c"][2]
    assert sum(column[1]["c"] for column in wide) == pytest.approx(1)


def test_numbers_stand_to_the_right_and_short_cells_on_one_line():
    table = "| a | b | c |\n|---|---|---|\n| x y | 1.0 ± 0.1 | 3 of these and a good many more |\n"
    (block,) = from_markdown(table, report.Path(), "p")
    page = to_html([block], "T")[0].decode().replace("\n", " ")
    assert "x\u00a0y" in page and "1.0\u00a0±\u00a00.1" in page and "good many more" in page
    assert [column[0]["t"] for column in block["c"][2]] == [
        "AlignDefault",
        "AlignRight",
        "AlignRight",
    ]


# --- refusals -------------------------------------------------------------------------------------


def spoil(what, results, notebooks):
    if what == "no results":
        shutil.rmtree(results)
    elif what == "empty results":
        for path in results.iterdir():
            path.unlink()
    elif what == "a picture less":
        (results / "beta_curve.png").unlink()
    elif what == "short row":
        (results / "beta.csv").write_text("study,label,seed\nbeta,x\n")
    elif what == "long row":
        (results / "beta.csv").write_text("study,label,seed\nbeta,x,0,1\n")
    elif what == "no rows":
        (results / "beta.csv").write_text("study,label,seed\n")
    elif what == "other columns":
        (results / "beta.csv").write_text("a,b\n1,2\n")
    elif what == "binary csv":
        (results / "beta.csv").write_bytes(b"\xff\xfe\x00")
    elif what == "no page":
        (results / "beta.json").write_text('"words"')
    elif what == "a page without findings":
        dataclasses.replace(page_of("beta", "Beta", 1), findings=[]).write(results, "beta")
    elif what == "a page of something else":
        dataclasses.replace(page_of("beta", "Beta", 1), findings=[[1]]).write(results, "beta")
    elif what == "no notebooks":
        shutil.rmtree(notebooks)
    elif what == "damaged notebook":
        path = notebooks / "02_flow_posteriors.ipynb"
        path.write_bytes(path.read_bytes()[:200])
    elif what == "no notebook":
        (notebooks / "02_flow_posteriors.ipynb").write_text('{"a": 1}')
    elif what == "two titles":
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell("# A\n\n# B")],
        )
        nbformat.write(notebook, notebooks / "02_flow_posteriors.ipynb")


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("no results", "figures"),
        ("empty results", "NAME.csv"),
        ("a picture less", "beta_curve.png"),
        ("short row", "beta.csv"),
        ("long row", "beta.csv"),
        ("no rows", "beta.csv"),
        ("other columns", "beta.csv"),
        ("binary csv", "beta.csv"),
        ("no page", "beta.json"),
        ("a page without findings", "beta.json"),
        ("a page of something else", "beta.json"),
        ("no notebooks", "notebooks"),
        ("damaged notebook", "02_flow_posteriors.ipynb"),
        ("no notebook", "02_flow_posteriors.ipynb"),
        ("two titles", "02_flow_posteriors.ipynb"),
    ],
)
def test_bad_sources_get_one_line_and_nothing_is_written(
    what, named, results, notebooks, tmp_path, capsys
):
    spoil(what, results, notebooks)
    out = tmp_path / "out"
    arguments = ["--results", str(results), "--notebooks", str(notebooks), "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main(["report", *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert named in said.err and "xpected" in said.err
    assert not out.exists()


def test_an_out_that_is_a_file_is_refused(results, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ReportError, match="got the file"):
        write_report(results, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_command_says_where_the_page_is(results, tmp_path, capsys, monkeypatch):
    without_tex(monkeypatch)
    monkeypatch.chdir(tmp_path)
    main(["report"])
    said = capsys.readouterr()
    assert said.out.split() == [str(report.Path("report", "report.html"))]
    assert "without derivations" in said.err and "No PDF" in said.err
    assert (tmp_path / "report" / "report.html").is_file()
