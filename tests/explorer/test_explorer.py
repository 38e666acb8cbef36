"""The page to look into a model: what it shows is the model's, and it works in a browser."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vaes as pv
from pyro_vaes.cli.app import main
from pyro_vaes.explorer import page as pages
from pyro_vaes.explorer.contents import Rows, contents_of
from pyro_vaes.explorer.pictures import Pictures, word

WIDTHS = (1200, 400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def run(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def trained(folder, *options):
    few = ("--epochs", 3, "--warmup-epochs", 0, "--samples", 5, "--proposal", "encoder")
    assert run("train", "--recipe", "course", *few, *options, "--out", folder / "run") == 0
    return folder / "run"


FEW = ("--rows", 60, "--samples", 30, "--proposal", "encoder")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pytest.importorskip("bokeh", reason="bokeh is not installed: pip install 'pyro_vaes[explore]'")
    folder = trained(tmp_path_factory.mktemp("digits"), "--latent-dim", 4, "--hidden-dims", 32)
    assert run("explore", folder, *FEW) == 0
    return folder / "explore.html"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A page on a table with words in it, some of which look like the end of a script."""
    pytest.importorskip("bokeh", reason="bokeh is not installed: pip install 'pyro_vaes[explore]'")
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    kinds = ("</script><b id=evil>", "plain", "other")
    lines = [
        f"{170 + 9 * rng.standard_normal():.1f},{kinds[i % 3]},{rng.poisson(3)}" for i in range(90)
    ]
    (folder / "rows.csv").write_text("height <cm>,what,visits\n" + "\n".join(lines) + "\n")
    run_folder = trained(folder, "--data", folder / "rows.csv", "--likelihood", "auto")
    assert run("explore", run_folder, *FEW, "--split", "train") == 0
    return run_folder / "explore.html"


def facts_of(path):
    found = re.search(r'id="facts">(.*?)</script>', path.read_text("utf-8"), re.S)
    return json.loads(found[1])


def image_of(address):
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# --- what it shows --------------------------------------------------------------------------------


def make_vae(conditional=False):
    torch.manual_seed(0)
    num = 3 if conditional else 0
    posterior = pv.NormalPosterior(pv.MLP(4 + num, [8]), 3, (4,), num)
    likelihood = pv.NormalLikelihood(pv.MLP(3 + num, [8]), (4,), num_labels=num)
    return pv.VAE(pv.NormalPrior(3), posterior, likelihood)


def make_rows(n=40, conditional=False, classes=True):
    y = torch.arange(n) % 3
    return Rows(
        x=torch.randn(n, 4, generator=torch.Generator().manual_seed(1)),
        y=y if conditional else None,
        classes=y if classes else None,
        names=[str(10 + i) for i in range(n)],
        image_shape=None,
        columns=lambda x: {f"x{i}": x[:, i] for i in range(4)},
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_everything_shown_is_the_models_own(conditional):
    vae, rows = make_vae(conditional), make_rows(conditional=conditional)
    state = torch.get_rng_state()
    found = contents_of(vae, rows, num_samples=30, proposal="encoder", units=[2, 0])
    assert torch.equal(torch.get_rng_state(), state)
    y = rows.y
    assert torch.equal(found.means, vae.reconstruct(rows.x, y))
    assert torch.equal(
        found.scores.log_p, pv.log_marginal(vae, rows.x, 30, y=y, proposal="encoder")
    )
    assert found.walked == list(range(40)) and sorted(found.units) == [0, 2]
    assert found.inactive == 1
    assert torch.equal(found.walks, vae.traverse(rows.x, found.units, 7, y))
    a, b = found.pairs[1]
    label = None if y is None else y[[a]]
    torch.testing.assert_close(
        found.paths[1], vae.interpolate(rows.x[[a]], rows.x[[b]], 11, label)[0]
    )
    # A conditional model follows one label.
    assert y is None or len(y[found.ends].unique()) == 1
    assert conditional or [int(rows.classes[i]) for i in sorted(found.ends)].count(0) == 1


def test_rows_are_chosen_evenly_with_all_that_belongs_to_them():
    rows = make_rows(41)
    some = rows.some(5)
    assert some.names == ["10", "20", "30", "40", "50"]
    assert torch.equal(some.x, rows.x[::10]) and torch.equal(some.classes, rows.classes[::10])
    assert rows.some(100) is rows
    assert make_rows(3, classes=False).labels == ["all rows"] * 3


def test_traversals_are_bounded_by_the_room_for_them(monkeypatch):
    from pyro_vaes.explorer import contents

    monkeypatch.setattr(contents, "_NUMBERS", 3 * 3 * 7 * 4)
    found = contents_of(
        make_vae(), make_rows(), num_samples=20, proposal="encoder", units=[0, 1, 2]
    )
    assert found.walked == [0, 20, 39] and len(found.walks) == 3


def test_no_active_unit_and_rows_that_are_all_the_same():
    pytest.importorskip("bokeh")
    rows = make_rows(4, classes=False)
    rows.x[:] = 0.0
    found = contents_of(make_vae(), rows, num_samples=30, proposal="encoder")
    assert found.units == [] and found.ends == [0] and found.walks.shape == (4, 0, 7, 4)
    assert '"walks": []' in pages.page_of(found, "none")


def test_pictures_are_dark_on_white_and_side_by_side():
    draw = Pictures((1, 2, 2), [[0.0, 4.0]])
    sheet = image_of(draw.sheet([[0, 4, 2, float("nan")], [4, 4, 4, 4]], 2))
    assert sheet.tolist() == [[255, 0, 0, 0], [128, 255, 0, 0]]
    color = Pictures((3, 1, 1), [[0, 1]]).sheet([[1, 0, 0.5]], 1)
    assert image_of(color).tolist() == [[[255, 0, 128]]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (np.float32(1.23456), "1.235"), (7, "7"), ("a", "a")],
)
def test_values_are_said_in_few_digits(value, text):
    assert word(value) == text


def test_one_file_holds_everything(digits):
    text = digits.read_text("utf-8")
    # Bokeh's own code has addresses that it would never ask: the browser tests see to that.
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "//" not in markup and "<!--" not in markup
    facts = facts_of(digits)
    assert len(facts["names"]) == len(facts["pairs"]) == 60
    assert image_of(facts["pairs"][0]).shape == (8, 16)
    assert image_of(facts["walks"][0]).shape == (8 * len(facts["units"]), 8 * facts["walkSteps"])
    assert len(facts["ends"]) == 8 and len(facts["paths"]) == 28
    logp = [float(v) for v in facts["logp"]]
    assert [logp[i] for i in facts["worst"]] == sorted(logp)[:12]
    assert len(text) < 4e6
    # Of 30 draws a k-hat is to be below 1 - 1 / log10(30).
    assert "Pareto k-hat (above 0.32: doubtful)" in text


def test_words_of_the_data_stay_words(table):
    facts = facts_of(table)
    assert facts["columns"] == ["height <cm>", "what", "visits"]
    assert "</script><b id=evil>" in {row[1] for row in facts["cells"]}
    # The only script ends are those of the page itself.
    text = table.read_text("utf-8")
    assert "<b id=evil>" not in text and text.count("</script>") == text.count("<script")


def test_without_bokeh_it_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "bokeh", None)
    assert run("explore", tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'pyro_vaes[explore]'" in said


def test_a_page_is_refused_before_it_is_made(digits, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.zeros((1, 64)))  # No unit varies over one row.
    capsys.readouterr()
    for wrong in (
        [tmp_path / "none"],
        [digits.parent, "--data", tmp_path / "one.npy", "--out", tmp_path / "page.html"],
        [digits.parent, "--out", tmp_path / "page.pdf"],
        [digits.parent, "--rows", "1"],
        [digits.parent, "--split", "all"],
        [digits.parent, "--data", "no.csv"],
    ):
        assert run("explore", *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one.npy"]


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    with api.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"{path} does not start: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(browser, request):
    """Opens a page without a network, and checks that it asked for nothing and had no error."""
    contexts, said, asked = [], [], []

    def look(path, width):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: asked.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_function("window.Bokeh && Bokeh.documents[0] && Bokeh.documents[0].is_idle")
        return page

    yield look
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:", "blob:"))] == []
    for context in contexts:
        context.close()


# The place of a row in the first figure, in pixels of the window.
PLACE = """(i) => {
  const views = Object.values(Bokeh.index.roots ?? Bokeh.index);
  const view = views.find((v) => v.model.title.text.startsWith("Posterior means"));
  view.el.scrollIntoView({block: "center"});
  const source = view.model.renderers.map((r) => r.data_source).find((s) => s?.data.logp);
  const box = view.canvas_view.el.getBoundingClientRect();
  return [
    box.left + view.frame.x_scale.compute(source.data.x[i]),
    box.top + view.frame.y_scale.compute(source.data.y[i]),
  ];
}"""


def text_of(page, name):
    return page.text_content(f"#{name}")


def alone(facts, page):
    """A row whose point lies apart from the others'."""
    places = np.array([page.evaluate(PLACE, i) for i in range(len(facts["names"]))])
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    return int(gaps.min(1).argmax())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["digits", "table"])
def test_hover_click_and_slider(kind, width, opened, request):
    path = request.getfixturevalue(kind)
    facts, page = facts_of(path), opened(path, width)
    # Nothing is wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    row = alone(facts, page)
    other = 0 if row else 1
    page.evaluate("(i) => window.explore.choose(i)", other)
    shown = page.inner_html("#row-shown"), page.inner_html("#walk-shown")
    x, y = page.evaluate(PLACE, row)
    page.mouse.move(x - 30, y)
    page.mouse.move(x, y)
    page.wait_for_function(
        "(name) => document.getElementById('row-name').textContent === name",
        arg=facts["names"][row],
    )
    # Hovering shows the row, not its traversals.
    assert page.inner_html("#row-shown") != shown[0]
    assert page.inner_html("#walk-shown") == shown[1]
    assert f"log p(x) {facts['logp'][row]} " in text_of(page, "row-facts")
    page.mouse.click(x, y)
    page.wait_for_function(
        "(name) => document.getElementById('walk-name').textContent === name",
        arg=facts["names"][row],
    )
    assert page.inner_html("#walk-shown") != shown[1]
    if kind == "digits":
        assert page.get_attribute("#walk-shown img", "src") == facts["walks"][row]
        assert page.evaluate("document.querySelector('#row-shown img').naturalWidth") == 16
    else:
        cells = page.locator("#row-shown tr:nth-child(3) td").all_text_contents()
        assert cells == ["what", facts["cells"][row][1], facts["means"][row][1]]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["digits", "table"])
def test_the_slider_goes_from_one_row_to_the_other(kind, width, opened, request):
    path = request.getfixturevalue(kind)
    facts, page = facts_of(path), opened(path, width)
    slider, place = page.locator("#between"), page.locator("#between-shown")

    def seen():
        if kind == "digits":
            return place.screenshot()
        return place.locator("tr td:nth-child(3)").all_text_contents()

    start = seen()
    slider.focus()
    for step in range(1, facts["steps"]):
        slider.press("ArrowRight")
        share = round(100 * step / (facts["steps"] - 1))
        assert text_of(page, "between-place").startswith(f"{share} % of the way")
    end = seen()
    assert start != end
    # From there back is the same path: its end looks as the other's start does.
    first, second = facts["ends"][:2]
    page.select_option("#from", str(second))
    page.select_option("#to", str(first))
    assert seen() == start
    slider.press("Home")
    assert seen() == end
    if kind == "table":
        assert end == facts["paths"][f"{first},{second}"][-1]
    page.select_option("#to", str(second))
    assert "two different rows" in place.text_content()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_on_a_badly_modelled_row_shows_it(width, opened, digits):
    facts, page = facts_of(digits), opened(digits, width)
    page.locator("#worst tr.pick").nth(3).click()
    name = facts["names"][facts["worst"][3]]
    assert text_of(page, "row-name") == text_of(page, "walk-name") == name
