"""The report: what it says, that it says it again, and what it refuses."""

import base64
import dataclasses
import io
import json
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pyro_vaes.cli.app import main
from pyro_vaes.course.report import documents, report, tables, typesetting
from pyro_vaes.course.report.allowed import check_formula
from pyro_vaes.course.report.defects import DefectsPage
from pyro_vaes.course.report.documents import DocumentError, from_markdown, plain_text, walked
from pyro_vaes.course.report.notebooks import from_notebook
from pyro_vaes.course.report.report import ReportError, write_report
from pyro_vaes.course.report.typesetting import Title, to_html, to_pdf
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
        findings=[f"NLL falls to 81.98 ± 0.20 nats in {title}.", "A second finding."],
        claims=[],
        made_by="pyro_vaes 0, torch 2.",
        command=f"pyro-vaes study {name} --seeds {gap}",
        date=f"2026-11-0{gap}",
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


FRAME = (
    "<div><style>x</style><table class='dataframe'><thead><tr><th></th><th>NLL</th></tr><tr><th>K"
    "</th><th></th></tr></thead><tbody><tr><th>2</th><td>81.5</td></tr></tbody></table></div>"
)


def cells(*more):
    v4 = nbformat.v4
    picture = base64.b64encode(PNG).decode()
    return [
        v4.new_markdown_cell("# 1 A title\n\nSee [there](02_flow_posteriors.ipynb) and [x](a.py)."),
        v4.new_markdown_cell("## Question 1.1: the `bound`\n\n$$\\log p \\ge 0. \\qquad (7)$$"),
        v4.new_code_cell("import torch  # no algorithm"),
        v4.new_code_cell(
            "%matplotlib inline\nsvi = SVI(model, guide, optim, loss)",
            outputs=[v4.new_output("stream", text="loss 4570.4\n")],
            metadata={"tags": ["listing"]},
        ),
        v4.new_code_cell(
            "plt.plot(svi.step(x))",
            metadata={"caption": "Steps of $x$."},
            outputs=[
                v4.new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"})
            ],
        ),
        v4.new_code_cell(
            "a_check()",
            outputs=[
                v4.new_output("execute_result", {"text/html": "<b>9</b>", "text/plain": "9.25"}),
                v4.new_output("execute_result", {"text/html": FRAME, "text/plain": "a frame"}),
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


def test_studies_beyond_the_assignment_are_left_out(results, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    first = write_report(results, tmp_path / "a").html.read_bytes()
    for path in list(results.glob("beta*")):
        (results / path.name.replace("beta", "depth")).write_bytes(path.read_bytes())
    assert write_report(results, tmp_path / "b").html.read_bytes() == first


def test_the_order_and_the_words(results, notebooks, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    made = write_report(results, tmp_path / "out", notebooks)
    assert made.pdf is None
    page = made.html.read_text("utf-8")
    body = " ".join(page[page.index("</nav>") :].split())
    ids = ["summary", *report.NOTEBOOKS, "experiments", "study-beta", "study-priors"]
    ids += ["study-zeta", "defects-what-is-wrong", "reproduce", "references"]
    places = [body.index(f'id="{name}"') for name in ids]
    assert places == sorted(places)
    # The sections of the derivations have the numbers of the assignment's parts.
    numbers = re.findall(r'<h1 data-number="(\d)"', body)
    assert numbers == list("1234567")
    assert "</span> A title</h1>" in body
    summary = body[: body.index('id="01_elbo"')]
    assert "81.98 ± 0.20 nats in Beta." in summary and ">5.2</a>:" in summary
    assert "A second finding." not in summary and "Zeta" not in summary
    assert "6 trained models" in summary
    assert "Not run: vae, conditional, likelihoods" in body
    reproduce = body[body.index('id="reproduce"') :]
    assert "pyro-vaes</span> study beta" in re.sub(r'<span class="\w+">', "", reproduce)
    assert re.search(r"Beta</td>\s*<td[^>]*>2</td>\s*<td[^>]*>0, 1</td>", reproduce)
    assert re.search(r"<td[^>]*>1000</td>\s*<td[^>]*>3.0</td>", reproduce)
    assert any("No PDF" in line and "TeX" in line for line in made.remarks)
    assert any("03_learned_priors.ipynb" in line for line in made.remarks)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_the_time_left(terminal, results, notebooks, tmp_path, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    screen = Screen()
    without_tex(monkeypatch)
    monkeypatch.setattr(report, "_DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", screen)
    write_report(results, tmp_path / "out", notebooks)
    assert ("Writing:" in screen.getvalue()) == terminal
    assert bool(re.search("[1-5]/5", screen.getvalue())) == terminal


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
    assert all(word not in page for word in ("Question 1.1", "qquad", "study:"))
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))


def test_what_is_taken_from_a_notebook(notebooks, tmp_path):
    blocks = from_notebook(notebooks / "01_elbo.ipynb", tmp_path / "media", "part")
    text = to_html(blocks, Title("T"))[0].decode()
    plain = re.sub(r"<[^>]+>", "", text)
    assert "svi = SVI(model, guide, optim, loss)" in plain
    assert "loss 4570.4" in plain and "9.25" in plain
    for hidden in ("no algorithm", "matplotlib", "plt.plot", "a_check", "a warning", "&lt;Figure"):
        assert hidden not in plain
    assert "(7)" in plain and "qquad" not in plain
    assert re.search(r'<span class="equation">.*<span class="number">\(7\)</span>', text)
    # A data frame is a table, the name of its index in the corner.
    assert "a frame" not in plain and re.search(r"<th[^>]*>K</th>\s*<th[^>]*>NLL</th>", text)
    assert 'href="#02_flow_posteriors"' in text and "a.py" not in text


def put_out(tmp_path, outputs, **metadata):
    """The blocks of a notebook with one cell that has these outputs."""
    cell = nbformat.v4.new_code_cell("", outputs=outputs, metadata=metadata)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    return from_notebook(tmp_path / "a.ipynb", tmp_path / "media", "p")


def frame_of(frame):
    return nbformat.v4.new_output("display_data", {"text/html": frame._repr_html_()})


def test_a_frame_with_several_indexes_is_a_table(tmp_path):
    columns = pd.MultiIndex.from_product([["NLL", "KL | x"], ["mean", "s.e."]])
    index = pd.MultiIndex.from_product([[2, 8], ["IAF", "MAF"]], names=["D", "flow"])
    frame = pd.DataFrame(np.arange(16.0).reshape(4, 4), index, columns)
    (table,) = put_out(tmp_path, [frame_of(frame)])
    assert table["t"] == "Table"
    rows = [[plain_text(cell[4]) for cell in row[1]] for row in tables._rows(table)]
    assert rows[0] == ["D", "flow", "NLL, mean", "NLL, s.e.", "KL | x, mean", "KL | x, s.e."]
    assert [row[:3] for row in rows[1:]] == [
        ["2", "IAF", "0.0"],
        ["", "MAF", "4.0"],
        ["8", "IAF", "8.0"],
        ["", "MAF", "12.0"],
    ]


def test_printed_text_is_joined_and_a_caption_is_that_of_the_picture(tmp_path):
    parts = [nbformat.v4.new_output("stream", text=f"epoch {i}\n") for i in range(3)]
    (text,) = put_out(tmp_path, parts)
    assert text["c"][1][0]["c"][1].split("\n")[:3] == ["epoch 0", "epoch 1", "epoch 2"]
    picture = {"image/png": base64.b64encode(PNG).decode()}
    shown = [nbformat.v4.new_output("display_data", picture), frame_of(pd.DataFrame([[1]]))]
    first, second = put_out(tmp_path, shown, caption="A point.")
    assert plain_text(first["c"][1][1]) == "A point." and not second["c"][1][1]


@pytest.mark.slow
def test_tables_of_the_notebooks_are_shown_with_captions(tmp_path):
    for name in (*report.NOTEBOOKS, report.EXPERIMENTS):
        path = ROOT / "notebooks" / f"{name}.ipynb"
        cells = nbformat.read(path, as_version=4).cells
        outputs = [
            (cell, output.get("data", {}))
            for cell in cells
            for output in cell.get("outputs", ())
            if "remove_output" not in cell.metadata.get("tags", ())
        ]
        frames = [cell for cell, data in outputs if "<table" in data.get("text/html", "")]
        assert all("caption" in cell.metadata for cell in frames), name
        blocks = from_notebook(path, tmp_path / name, "p")
        made = [block for block in blocks if block["t"] == "Table" and block["c"][1][1]]
        pictures = sum("image/png" in data for cell, data in outputs if cell in frames)
        assert len(made) == len(frames) - pictures, name


@pytest.mark.parametrize(
    ("tag", "source", "output"),
    [("remove_cell", 0, 0), ("remove_input", 0, 1), ("remove_output", 1, 0), ("other", 1, 1)],
)
def test_tags_hide_parts_of_cells(tmp_path, tag, source, output):
    cell = nbformat.v4.new_code_cell(
        "svi.step(x)", outputs=[nbformat.v4.new_output("stream", text="seen")]
    )
    cell.metadata["tags"] = [tag, "listing"][: 1 + (tag != "remove_input")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    text = json.dumps(from_notebook(tmp_path / "a.ipynb", tmp_path / "media", "p"))
    assert ("svi.step" in text, "seen" in text) == (bool(source), bool(output))


def test_a_page_runs_nothing_of_its_sources(tmp_path):
    text = "# A\n\n<script>alert(1)</script>\n\n<img src='http://x.y/z.png'> a<br>b\n"
    page = to_html(from_markdown(text, tmp_path, "p"), Title("T"))[0].decode()
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
        page = to_html(from_markdown(f"![p]({name})", folder, "p"), Title("T"))[0].decode()
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
        Title("T"),
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
    page = moved / "beta.json"
    page.write_text(page.read_text().replace("A second", "Another"))
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
    wide = typeset("some words " * 30)[1]["c"][2]
    assert 0.9 < sum(column[1]["c"] for column in wide) <= 1


def wide_table(columns):
    head = [f"a head of {i}" for i in range(columns)]
    rows = [[f"row {row}", *(f"{row}{i}.25 ± 0.13" for i in range(1, columns))] for row in range(4)]
    lines = [head, ["---"] * columns, *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (table,) = from_markdown(text, report.Path(), "p")
    table["c"][1] = [None, [{"t": "Plain", "c": documents.words("Table 3. Many columns.")}]]
    return table


def test_a_table_of_many_columns_becomes_two_with_the_same_rows():
    parts = [block for block in tables.fitted(wide_table(14)) if block["t"] == "Table"]
    assert len(parts) == 2
    first, second = ([plain_text(c[4]) for c in part["c"][3][1][0][1]] for part in parts)
    assert first[0] == second[0] and len(first) + len(second) == 15
    assert abs(len(first) - len(second)) <= 1  # No lonely column.
    for part in parts:
        rows = part["c"][4][0][3]
        assert [plain_text(row[1][0][4])[:3] for row in rows] == ["row"] * 4
    assert plain_text(parts[1]["c"][1][1]) == "Table 3, further columns."


def outside_and_over(path):
    """Characters of a PDF that lie beyond its margins, and those that overprint each other."""
    pdfium = pytest.importorskip("pypdfium2")
    margin, outside, over = 2.4 / 2.54 * 72 - 3, "", []
    for page in pdfium.PdfDocument(path):
        width, text, boxes = page.get_width(), page.get_textpage(), []
        for i in range(text.count_chars()):
            sign, box = text.get_text_range(i, 1), text.get_charbox(i)
            if sign.strip() and (box[0] < margin or box[2] > width - margin):
                outside += sign
            if sign.isalnum() and sign not in "fil":  # Those are joined in one letter.
                boxes.append((*box, sign))
        boxes.sort()
        for i, (left, low, right, high, sign) in enumerate(boxes):
            for other in boxes[i + 1 :]:
                if other[0] >= right:
                    break
                shared = min(right, other[2]) - other[0], min(high, other[3]) - max(low, other[1])
                if min(shared) > 0 and shared[0] * shared[1] > 0.4 * (right - left) * (high - low):
                    over.append(sign + other[4])
    return outside, over


@pytest.mark.skipif(not HAS_TEX, reason="needs a TeX engine")
@pytest.mark.slow
def test_nothing_of_the_pdf_is_off_the_page_or_over_something_else(tmp_path):
    long = "a printed line that is far too long for a line of a page " * 4
    prose = "| what | cost |\n|---|---|\n| a name | " + "many words in a cell " * 20 + "|\n"
    blocks = from_markdown(f"```\n{long}\n```\n\n{prose}", report.Path(), "p")
    blocks += [wide_table(9), wide_table(14)]
    made, _ = to_pdf(blocks, Title("A title", date="2026-11-01"))
    (tmp_path / "a.pdf").write_bytes(made)
    assert outside_and_over(str(tmp_path / "a.pdf")) == ("", [])
    # Both are found where they are.
    blocks = [documents.heading("x", "x"), tables.raw("Block", r"\hbox to 9cm{\hskip 16cm off}")]
    blocks += [tables.raw("Block", r"\noindent\rlap{abcd}omnz")]
    (tmp_path / "b.pdf").write_bytes(to_pdf(blocks, Title("T"))[0])
    outside, over = outside_and_over(str(tmp_path / "b.pdf"))
    assert outside and over


def test_figures_and_tables_are_numbered_and_referred_to(results, notebooks, tmp_path, monkeypatch):
    without_tex(monkeypatch)
    page = write_report(results, tmp_path / "out", notebooks).html.read_text("utf-8")
    for kind, number in (("Figure", 6), ("Table", 4)):  # The last table is that of the costs.
        captions = re.findall(rf"<strong>{kind} (\d+)\.</strong>", page)
        assert captions == [str(i + 1) for i in range(number)]
    beta = page[page.index('id="study-beta"') : page.index('id="study-priors"')]
    assert re.search(r'href="#table-1"[^>]*>Table 1</a> and <a href="#figure-3"', beta)


def test_quotation_marks_and_primed_numbers_are_those_of_print():
    blocks = from_markdown(
        'Jensen\'s "bound" ("nll"), `it\'s code`.\n\n$$a = b. \\qquad (6\')$$', report.Path(), "p"
    )
    page = to_html(blocks, Title("T"))[0].decode()
    page = page.replace("&#39;", "'")
    for text in ("Jensen\u2019s", "\u201cbound\u201d", "(\u201cnll\u201d)", "it's code"):
        assert text in page
    assert 'class="number">(6\')</span>' in page


def test_the_lines_below_the_title_are_aligned_in_the_pdf():
    text = json.dumps(Title("T", author="A. Student").aligned())
    assert text.count('"&"') == 4 and "tabular" in text and "Student" in text


def test_the_lines_below_the_title(results, tmp_path, monkeypatch, capsys):
    without_tex(monkeypatch)
    page = write_report(results, tmp_path / "a").html.read_text("utf-8")
    assert "Date: 2026-11-03" in page  # That of the last results.
    assert re.search(r"Author: _{9,}", page) and re.search(r"Collaborators: _{9,}", page)
    given = ["--author", "A. Student", "--course", "CSC 6137", "--date", "2026-11-30"]
    main(["report", "--results", str(results), "--out", str(tmp_path / "b"), *given])
    page = (tmp_path / "b" / "report.html").read_text("utf-8")
    for line in ("Author: A. Student", "Course: CSC 6137", "Date: 2026-11-30"):
        assert line in page
    with pytest.raises(SystemExit):
        main(["report", "--results", str(results), "--date", "soon"])
    assert "--date" in capsys.readouterr().err


def test_a_study_stands_where_the_notebook_of_part_5_has_it(
    results, notebooks, tmp_path, monkeypatch
):
    without_tex(monkeypatch)
    v4 = nbformat.v4
    told = [v4.new_markdown_cell("# Part 5: experiments")]
    told.append(v4.new_markdown_cell("## Question 5.1: zeta first\n\nThe idea."))
    told.append(v4.new_code_cell("result('zeta')", metadata={"tags": ["study:zeta"]}))
    told.append(v4.new_markdown_cell("## Question 5.2: beta\n\nAnother idea."))
    told.append(v4.new_code_cell("result('beta')", metadata={"tags": ["study:beta"]}))
    nbformat.write(v4.new_notebook(cells=told), notebooks / f"{report.EXPERIMENTS}.ipynb")
    page = write_report(results, tmp_path / "out", notebooks).html.read_text("utf-8")
    body = page[page.index("</nav>") :]
    marks = ["Experiments</h1>", "Zeta first", "The idea", 'id="study-zeta"', "Another idea"]
    places = [body.index(mark) for mark in [*marks, 'id="study-beta"', 'id="study-priors"']]
    assert places == sorted(places)
    assert "result(" not in body and "study:zeta" not in body


def test_sections_have_the_numbers_of_the_questions():
    for name in (*report.NOTEBOOKS, report.EXPERIMENTS):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        shown = [c for c in notebook.cells if "remove_cell" not in c.metadata.get("tags", ())]
        heads = re.findall("^## (.*)$", "\n".join(c.source for c in shown), flags=re.MULTILINE)
        questions = [re.match(r"Question (?:\d\.)?(\d): ", head) for head in heads]
        numbers = [int(found[1]) for found in questions if found]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 4
        assert heads[len(numbers) :] in ([], ["Beyond the questions"])


def test_works_that_the_notebooks_cite_are_in_the_bibliography():
    known = (ROOT / "pyro_vaes" / "course" / "report" / "references.md").read_text("utf-8")
    for path in (ROOT / "notebooks").glob("0[1-5]*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        (listed,) = [cell.source for cell in cells if cell.source.startswith("## References")]
        entries = re.findall(r"^- (\w+).*?\((\d{4})\)", listed, flags=re.MULTILINE)
        text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        entries += re.findall(r"\b([A-Z][a-z]+) (?:et al\.|and [A-Z][a-z]+),? \(?(\d{4})", text)
        assert entries
        for author, year in entries:
            assert re.search(rf"^- {author}.*\({year}\)", known, flags=re.MULTILINE), (author, year)


def test_numbers_stand_to_the_right_and_short_cells_on_one_line():
    table = "| a | b | c |\n|---|---|---|\n| x y | 1.0 ± 0.1 | 3 of these and a good many more |\n"
    (block,) = from_markdown(table, report.Path(), "p")
    page = to_html([block], Title("T"))[0].decode().replace("\n", " ")
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
    elif what == "a number of its own":
        page = page_of("beta", "Beta", 1)
        dataclasses.replace(page, findings=["NLL falls to 81.97."]).write(results, "beta")
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
        ("a number of its own", "beta.json"),
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
