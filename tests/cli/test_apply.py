"""A trained run and new rows: columns by name, identities kept, one line for what does not fit."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import refused, run
from PIL import Image

import pyro_vaes as pv
from pyro_vaes.cli import apply
from pyro_vaes.runs.build import build, data_of
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import from_values
from pyro_vaes.storage.tensors import read_tensors, write_tensors
from pyro_vaes.storage.weights import WEIGHTS

SMALL = ["--hidden-dims", "8", "--latent-dim", "2", "--mode", "eager", "--prior", "standard"]
SMALL += ["--epochs", "3", "--warmup-epochs", "0", "--samples", "5"]
SMALL += ["--proposal", "encoder"]
FAST = ["--samples", "30", "--proposal", "encoder"]
COMMANDS = ("score", "encode", "reconstruct", "interpolate", "traverse")


def table(n: int = 80) -> pd.DataFrame:
    random = np.random.default_rng(0)
    height = random.normal(172, 9, n)
    return pd.DataFrame(
        {
            "id": range(n),
            "height": height,
            "mass": 70 + 0.8 * (height - 172) + random.normal(0, 5, n),
            "species": random.choice(["adelie", "gentoo"], n),
        }
    )


def trained(out: Path, **options: Any) -> None:
    """Trains as the command does, without its pictures and closing figures."""
    small = {"hidden_dims": (8,), "latent_dim": 2, "mode": "eager", "prior": "standard"}
    config = from_values({**small, "epochs": 3, "warmup_epochs": 0, **options})
    data = data_of(config)
    torch.manual_seed(0)
    train(build(config, data)[0], data, config, out=out, progress=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, and in it a run that was trained on it by its relative path."""
    home = tmp_path_factory.mktemp("home")
    table().to_csv(home / "all.csv", index=False)
    before = Path.cwd()
    os.chdir(home)
    try:
        assert run("train", *SMALL, "--data", "all.csv", "--out", "runs/first") == 0
        trained(Path("runs/conditional"), data="all.csv", conditional=True)
    finally:
        os.chdir(before)
    return home


@pytest.fixture(scope="module")
def first(home: Path) -> Path:
    return home / "runs" / "first"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Rows whose columns stand in another order, with one that the run does not know."""
    rows = table().iloc[[5, 3, 70]].assign(note=["a", "b", "c"])
    rows[["note", "mass", "id", "height"]].to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


def test_commands_on_small_data_compute_on_one_thread(first, monkeypatch, tmp_path):
    from pyro_vaes.evaluation import evaluator, scores

    used = []

    def noting(function):
        def noted(*args, **kwargs):
            used.append(torch.get_num_threads())
            return function(*args, **kwargs)

        return noted

    for module, name in ((evaluator, "evaluate"), (scores, "score")):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert run("evaluate", first, "--samples", 4) == 0
        assert run("score", first, "--samples", 4, "--out", tmp_path / "scores.csv") == 0
        assert set(used) == {1} and len(used) >= 2 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_rows_carry_weights_which_new_rows_need_not(capsys, tmp_path):
    table().assign(w=np.arange(80) % 3).to_csv(tmp_path / "all.csv", index=False)
    out, few = tmp_path / "run", tmp_path / "new.csv"
    flags = ["--data", tmp_path / "all.csv", "--weights", "w", "--start", "random"]
    assert run("train", *SMALL, *flags, "--out", out) == 0
    assert "count by their weights in training" in capsys.readouterr().out
    assert "weights: w" in (out / "config.yaml").read_text()
    for split in ("train", "val", "test"):
        assert run("evaluate", out, "--split", split, *FAST) == 0
    plain = table()[["height", "mass"]].head(4)
    found = []
    for frame in (plain, plain.assign(w=9.0)):
        frame.to_csv(few, index=False)
        assert run("score", out, "--data", few, "--out", tmp_path / "s.csv", *FAST) == 0
        assert run("evaluate", out, "--data", few, *FAST) == 0
        found.append(pd.read_csv(tmp_path / "s.csv"))
    assert found[1]["w"].tolist() == [9.0] * 4 and "w" not in found[0]
    assert found[0]["log_p"].equals(found[1]["log_p"])
    table().to_csv(tmp_path / "all.csv", index=False)
    assert "column called 'w'" in refused(capsys, "train", *SMALL, *flags, "--out", tmp_path / "x")


# --- new rows -------------------------------------------------------------------------------------


def test_columns_go_by_name_and_what_is_left_goes_along(capsys, first, new, tmp_path):
    assert run("encode", first, "--data", new, "--out", tmp_path / "codes.csv") == 0
    assert "and copied to the table if one is written: 'note', 'id'" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "codes.csv")
    assert list(found.columns) == ["note", "id", "z0", "z1"]
    assert found["note"].tolist() == ["a", "b", "c"] and found["id"].tolist() == [5, 3, 70]
    x = table().loc[[5, 3, 70], ["height", "mass"]].to_numpy()
    codes = pv.load(first).encode(x).numpy()
    np.testing.assert_allclose(found[["z0", "z1"]], codes, rtol=1e-5)
    assert run("encode", first, "--data", new, "--out", tmp_path / "codes.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), codes, rtol=1e-6)


def test_reconstructions_have_the_names_of_the_columns(first, new, tmp_path):
    assert run("reconstruct", first, "--data", new, "--out", tmp_path / "a.tsv") == 0
    found = pd.read_csv(tmp_path / "a.tsv", sep="\t")
    assert list(found.columns) == ["note", "id", "height", "mass"]
    x = table().loc[[5, 3, 70], ["height", "mass"]].to_numpy()
    np.testing.assert_allclose(found[["height", "mass"]], pv.load(first).reconstruct(x), rtol=1e-5)


def test_scores_have_an_error_and_a_p_value(capsys, first, new, tmp_path):
    assert run("score", first, "--data", new, *FAST, "--out", tmp_path / "s.csv") == 0
    assert "p-values compare with 48 training rows" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "s.csv")
    assert list(found.columns[:2]) == ["note", "id"]
    vae, own = pv.load(first), pv.load_data(str(first.parents[1] / "all.csv"))
    x = torch.tensor(table().loc[[5, 3, 70], ["height", "mass"]].to_numpy()).float()
    scores, known = (
        pv.score(vae, rows, num_samples=30, proposal="encoder") for rows in (x, own.train.x)
    )
    np.testing.assert_allclose(found["log_p"], scores.log_p, rtol=1e-6)
    np.testing.assert_allclose(found["log_p_se"], scores.log_p_se, rtol=1e-6)
    np.testing.assert_allclose(found["pareto_k"], scores.pareto_k, rtol=1e-6)
    np.testing.assert_allclose(found["p_value"], scores.p_values(known))
    assert found["unreliable"].tolist() == scores.unreliable.tolist()
    assert run("score", first, *FAST, "--against", "none", "--out", tmp_path / "t.csv") == 0
    own_rows = pd.read_csv(tmp_path / "t.csv")
    assert "p_value" not in own_rows and own_rows["row"].tolist() == own.places["test"].tolist()


def test_an_unusual_row_has_a_low_p_value(first, tmp_path):
    pd.DataFrame({"height": [172.0, 400.0], "mass": [70.0, 70.0]}).to_csv(tmp_path / "a.csv")
    options = ["--against", "val", "--out", tmp_path / "s.csv"]
    assert run("score", first, "--data", tmp_path / "a.csv", *FAST, *options) == 0
    found = pd.read_csv(tmp_path / "s.csv")
    assert found["p_value"][1] == pytest.approx(1 / 17) and found["p_value"][0] > 0.2


def test_impute_leaves_what_was_seen_as_it_stands(home, tmp_path):
    mixed = (
        table()[["height", "species"]].round(1).assign(day=pd.date_range("2024-01-01", periods=80))
    )
    mixed.to_csv(tmp_path / "all.csv", index=False)
    trained(tmp_path / "run", data=str(tmp_path / "all.csv"), label_column="none")
    (tmp_path / "new.csv").write_text("day,species,height\n2024-02-13 12:30,,170.123\n,gentoo,\n")
    for name, digits in (("run", "170.123"), ("first", "123456.789")):
        run_folder = tmp_path / "run" if name == "run" else home / "runs" / "first"
        if name == "first":
            (tmp_path / "new.csv").write_text("height,mass\n123456.789,\n,70.5\n")
        asked = ["--data", tmp_path / "new.csv", "--out", tmp_path / "filled.csv"]
        assert run("impute", run_folder, *asked, *FAST) == 0
        filled = pd.read_csv(tmp_path / "filled.csv", dtype=str)
        assert filled["height"][0] == digits and filled.notna().all(axis=None)
        if name == "run":
            assert filled["day"][0] == "2024-02-13 12:30" and filled["species"][1] == "gentoo"


def test_a_table_of_words_without_names_has_a_run_that_can_be_used(tmp_path):
    words = table()[["height", "species", "mass"]].round(1)
    words.to_csv(tmp_path / "all.csv", index=False, header=False)
    trained(tmp_path / "run", data=str(tmp_path / "all.csv"))
    out = tmp_path / "out.csv"
    assert run("encode", tmp_path / "run", "--data", tmp_path / "all.csv", "--out", out) == 0
    assert len(pd.read_csv(out)) == 80
    assert run("sample", tmp_path / "run", "--num", 5, "--out", out) == 0
    assert list(pd.read_csv(out)) == ["A", "B", "C"]


def test_reconstructions_of_counts_say_at_which_exposure_they_are(capsys, tmp_path):
    counts = np.random.default_rng(0).poisson(4.0, (40, 3))
    rows = pd.DataFrame(counts, columns=["a", "b", "c"]).assign(depth=counts.sum(1) + 1)
    rows.to_csv(tmp_path / "all.csv", index=False)
    trained(tmp_path / "run", data=str(tmp_path / "all.csv"), kind="counts", exposure=True)
    capsys.readouterr()
    assert run("reconstruct", tmp_path / "run", "--out", tmp_path / "a.csv") == 0
    (depth,) = pd.read_csv(tmp_path / "a.csv")["depth"].unique()
    assert f"Means are at an exposure of {depth:g}," in capsys.readouterr().out


def test_no_column_takes_the_place_of_another(capsys, tmp_path):
    columns = ["row", "unreliable", "position", "nearest_distance"]
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 4)), columns=columns)
    rows.to_csv(tmp_path / "all.csv", index=False)
    out, own = tmp_path / "out.csv", tmp_path / "run"
    trained(own, data=str(tmp_path / "all.csv"))
    rows.assign(id="a").to_csv(tmp_path / "new.csv", index=False)
    asked, new = ["--num", 3, "--distances"], ["--data", tmp_path / "new.csv", "--out", out]
    assert "two columns called 'unreliable'" in refused(capsys, "impute", own, *new, *FAST)
    assert "called 'position'" in refused(capsys, "interpolate", own, *new)
    assert "called 'nearest_distance'" in refused(capsys, "sample", own, *asked, "--out", out)
    assert "called 'row'" in refused(capsys, "reconstruct", own, "--out", out)
    assert not out.exists() and run("impute", own, "--out", tmp_path / "out.npy", *FAST) == 0


def test_evaluates_new_rows(capsys, first, tmp_path):
    table().iloc[:20].to_csv(tmp_path / "new.csv", index=False)
    capsys.readouterr()
    some = ["--data", tmp_path / "new.csv", *FAST]
    assert run("evaluate", first, *some, "--json") == 0
    x = torch.tensor(table()[["height", "mass"]].to_numpy()[:20]).float()
    expected = pv.evaluate(pv.load(first), x, num_samples=30, proposal="encoder")
    found = pd.read_json(io.StringIO(capsys.readouterr().out), typ="series")
    assert found["nll"] == pytest.approx(expected.nll) and found["num_data"] == 20
    assert found["split"] is None and found["split_reason"]
    assert run("evaluate", first, *some) == 0
    assert "20 data" in capsys.readouterr().out
    assert "'--split'" in refused(capsys, "evaluate", first, *some, "--split", "val")


def test_paths_between_and_from_rows(first, new, tmp_path):
    vae, x = pv.load(first), table().loc[[5, 3, 70], ["height", "mass"]].to_numpy()
    line = ["--rows", "2,0", "--steps", "3", "--out", tmp_path / "line.csv"]
    assert run("interpolate", first, "--data", new, *line) == 0
    found = pd.read_csv(tmp_path / "line.csv")
    assert found["from_id"].tolist() == [70] * 3 and found["to_note"].tolist() == ["a"] * 3
    assert found["position"].tolist() == [0, 0.5, 1]
    expected = vae.interpolate(x[[2]], x[[0]], 3)[0]
    np.testing.assert_allclose(found[["height", "mass"]], expected, rtol=1e-5)
    walk = ["--rows", "0,2", "--units", "1,0", "--steps", "4"]
    for suffix in (".csv", ".npy"):
        out = tmp_path / f"walk{suffix}"
        assert run("traverse", first, "--data", new, *walk, "--out", out) == 0
    expected = vae.traverse(x[[0, 2]], [1, 0], 4)
    np.testing.assert_allclose(np.load(tmp_path / "walk.npy"), expected, rtol=1e-5)
    found = pd.read_csv(tmp_path / "walk.csv")
    assert found["unit"].tolist() == [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4
    assert found["id"].tolist() == [5] * 8 + [70] * 8
    np.testing.assert_allclose(found[["height", "mass"]], expected.reshape(-1, 2), rtol=1e-5)


def test_rows_of_the_run_itself_are_found_from_any_folder(capsys, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(40).to_csv("all.csv", index=False)  # Of that name, but another.
    assert run("encode", first, "--split", "val", "--out", "codes.npy") == 0
    own = pv.load_data(str(first.parents[1] / "all.csv"))
    expected = pv.load(first).encode(own.val.x)
    np.testing.assert_allclose(np.load("codes.npy"), expected, rtol=1e-6)
    assert run("evaluate", first, *FAST) == 0
    moved = shutil.copytree(first, tmp_path / "elsewhere" / "run")
    assert "trained on; got others" in refused(capsys, "evaluate", moved, *FAST)
    Path("all.csv").unlink()
    assert "all.csv" in refused(capsys, "evaluate", moved, *FAST)


# --- labels ---------------------------------------------------------------------------------------


def test_a_conditional_model_needs_labels_by_their_names(capsys, home, new, tmp_path):
    conditional, out = home / "runs" / "conditional", tmp_path / "codes.npy"
    line = refused(capsys, "encode", conditional, "--data", new, "--out", out)
    assert "'species'" in line and not out.exists()
    rows = pd.read_csv(new)
    vae, x = pv.load(conditional), rows[["height", "mass"]].to_numpy()
    # All of one class: numbered anew, it would have number 0.
    rows.assign(species="gentoo").to_csv(new, index=False)
    assert run("encode", conditional, "--data", new, "--out", out) == 0
    np.testing.assert_allclose(np.load(out), vae.encode(x, 1), rtol=1e-6)
    options = ["--label", "adelie", "--out", out]
    assert run("encode", conditional, "--data", new, *options) == 0
    np.testing.assert_allclose(np.load(out), vae.encode(x, 0), rtol=1e-6)
    rows.assign(species="chinstrap").to_csv(new, index=False)
    line = refused(capsys, "encode", conditional, "--data", new, "--out", out)
    assert "among adelie, gentoo; got chinstrap" in line
    capsys.readouterr()
    assert run("evaluate", conditional, "--data", new, "--label", "gentoo", *FAST, "--json") == 0
    expected = pv.evaluate(vae, (x, np.ones(3)), num_samples=30, proposal="encoder")
    found = pd.read_json(io.StringIO(capsys.readouterr().out), typ="series")
    assert found["nll"] == pytest.approx(expected.nll)
    assert "'--label'" in refused(capsys, "evaluate", conditional, "--label", "gentoo", *FAST)


def test_a_line_has_one_label(capsys, home, tmp_path):
    table().to_csv(tmp_path / "new.csv", index=False)
    species = table()["species"].tolist()
    other = species.index("gentoo" if species[0] == "adelie" else "adelie")
    asked = ["interpolate", home / "runs" / "conditional", "--data", tmp_path / "new.csv"]
    asked += ["--rows", f"0,{other}", "--out", tmp_path / "a.csv"]
    assert "of one label" in refused(capsys, *asked)
    assert run(*asked, "--label", "gentoo") == 0


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("mass,id\n70,1\n", "Expected columns called 'height' (1 of 2 are missing); got mass, id"),
        ("height,mass\n170,heavy\n", "line 2, column 'mass' (B); got 'heavy'"),
        ("height,mass\n", "got none"),
        ("height,mass,mass\n1,2,3\n", "one column called 'mass'; got 2"),
        ("", "empty"),
    ],
)
def test_rows_that_do_not_fit_are_refused(capsys, first, tmp_path, command, content, words):
    (tmp_path / "new.csv").write_text(content)
    before = sorted(tmp_path.iterdir())
    new, out = tmp_path / "new.csv", tmp_path / "out.csv"
    line = refused(capsys, command, first, "--data", new, "--out", out)
    assert "'--data'" in line and "new.csv" in line and words in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "--out", "a.txt"], "'--out'"),
        (["score", "--out", "a.png"], ".csv, .tsv or .npy"),
        (["reconstruct", "--out", "a.png"], "no images"),
        (["encode", "--split", "val", "--out", "a.csv"], "'--split'"),
        (["encode", "--label", "adelie", "--out", "a.csv"], "'--label'"),
        (["interpolate", "--rows", "0", "--out", "a.csv"], "'--rows'"),
        (["interpolate", "--rows", "0,3", "--out", "a.csv"], "0 to 2"),
        (["traverse", "--units", "2", "--out", "a.csv"], "'--units'"),
        (["traverse", "--rows", "x", "--out", "a.csv"], "'--rows'"),
        (["encode"], "'--out'"),
    ],
)
def test_options_that_make_no_sense(capsys, first, new, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    assert words in refused(capsys, command, first, "--data", new, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_the_rows_are_never_written_over(capsys, first, new):
    before = new.read_bytes()
    assert "'--out'" in refused(capsys, "encode", first, "--data", new, "--out", new)
    assert new.read_bytes() == before


def test_a_column_of_the_outputs_name_is_refused(capsys, first, tmp_path):
    table().assign(z0=1).to_csv(tmp_path / "new.csv")
    asked = ["encode", first, "--data", tmp_path / "new.csv", "--out", tmp_path / "a.csv"]
    assert "'z0'" in refused(capsys, *asked)


def test_a_missing_file_and_a_missing_run(capsys, first, tmp_path):
    options = ["--data", tmp_path / "none.csv", "--out", tmp_path / "a.csv"]
    assert "none.csv" in refused(capsys, "score", first, *options)
    assert "run folder" in refused(capsys, "score", tmp_path / "nothing", *options)


# --- runs of earlier versions ---------------------------------------------------------------------


def test_a_run_without_names_of_columns_has_those_of_its_data(capsys, home, new, tmp_path):
    older = home / "runs" / "older"
    shutil.copytree(home / "runs" / "first", older)
    tensors, record = read_tensors(older / WEIGHTS)
    for name in ("columns", "label_column", "kind"):
        del record["data"][name]
    write_tensors(older / WEIGHTS, tensors, record)
    assert run("encode", older, "--data", new, "--out", tmp_path / "a.npy") == 0
    x = table().loc[[5, 3, 70], ["height", "mass"]].to_numpy()
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), pv.load(older).encode(x), rtol=1e-5)
    assert run("evaluate", older, *FAST) == 0
    assert run("sample", older, "--num", 2, "--out", tmp_path / "a.csv") == 0
    moved = shutil.copytree(older, tmp_path / "moved")
    asked = ["encode", moved, "--data", new, "--out", tmp_path / "b.npy"]
    assert "trained on" in refused(capsys, *asked)


# --- synthetic rows -------------------------------------------------------------------------------


def test_synthetic_rows_have_names_and_distances(capsys, first, tmp_path):
    out = tmp_path / "rows.csv"
    assert run("sample", first, "--num", 5, "--distances", "--out", out) == 0
    assert "Distance to the nearest training row" in capsys.readouterr().out
    found = pd.read_csv(out)
    assert list(found.columns) == ["height", "mass", "nearest_distance"]
    own = pv.load_data(str(first.parents[1] / "all.csv"))
    x = torch.tensor(found[["height", "mass"]].to_numpy()).float()
    expected, _ = pv.nearest_rows(x, own.train)
    np.testing.assert_allclose(found["nearest_distance"], expected, rtol=1e-3)
    assert run("sample", first, "--num", 5, "--out", tmp_path / "rows.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), x, rtol=1e-5)
    line = refused(capsys, "sample", first, "--distances", "--out", tmp_path / "b.npy")
    assert "'--distances'" in line


def test_synthetic_rows_of_a_conditional_model_have_their_labels(home, tmp_path):
    out = tmp_path / "rows.csv"
    assert run("sample", home / "runs" / "conditional", "--num", 4, "--out", out) == 0
    assert pd.read_csv(out)["species"].tolist() == ["adelie", "gentoo"] * 2
    # The rows can be trained on as they are.
    assert pv.load_data(str(out)).label_names == ("adelie", "gentoo")


# --- arrays and pictures --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of two classes, and a conditional run on it."""
    home = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for kind, count in (("cats", 9), ("dogs", 11)):
        (home / "all" / kind).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 8, (4, 5, 3)).astype("uint8")
            Image.fromarray(pixels).save(home / "all" / kind / f"{i}.png")
    trained(home / "run", data=str(home / "all"), kind="real", conditional=True)
    return home


def test_pictures_keep_the_names_of_their_files(pictures, tmp_path):
    out = tmp_path / "codes.csv"
    assert run("encode", pictures / "run", "--data", pictures / "all", "--out", out) == 0
    found = pd.read_csv(out)
    assert found["file"][0] == str(Path("cats", "0.png")) and len(found) == 20
    assert found["file"].str.startswith("dogs").sum() == 11
    one = shutil.copytree(pictures / "all" / "dogs", tmp_path / "some" / "dogs")
    assert run("encode", pictures / "run", "--data", one.parent, "--out", tmp_path / "b.csv") == 0
    again = pd.read_csv(tmp_path / "b.csv")
    np.testing.assert_allclose(again[["z0", "z1"]], found[["z0", "z1"]][9:], rtol=1e-4, atol=1e-5)


def test_channels_are_where_the_run_has_them(capsys, pictures, tmp_path):
    x = np.random.default_rng(1).integers(0, 8, (3, 4, 5, 3)).astype("uint8")
    np.savez(tmp_path / "last.npz", x=x, y=["dogs", "cats", "dogs"])
    asked = ["reconstruct", pictures / "run", "--out", tmp_path / "a.npy"]
    assert run(*asked, "--data", tmp_path / "last.npz") == 0
    assert "moved to the front" in capsys.readouterr().out
    y = torch.tensor([1, 0, 1])
    expected = pv.load(pictures / "run").reconstruct(np.moveaxis(x, -1, 1), y)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, rtol=1e-5)
    np.save(tmp_path / "other.npy", x[:, :3])
    line = refused(capsys, *asked, "--data", tmp_path / "other.npy", "--label", "dogs")
    assert "shape (3, 4, 5)" in line


@pytest.mark.parametrize("command", ["encode", "reconstruct", "interpolate", "traverse"])
def test_draws_pictures_of_images(pictures, tmp_path, command):
    out = tmp_path / "a.png"
    extra = ["--units", "all"] if command == "traverse" else []
    extra += ["--label", "dogs"] if command == "interpolate" else []
    asked = ["--data", pictures / "all", *extra, "--out", out]
    assert run(command, pictures / "run", *asked) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_levels_beyond_those_of_the_run_are_refused(capsys, tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "levels.npy", random.integers(0, 4, (40, 3)))
    trained(tmp_path / "run", data=str(tmp_path / "levels.npy"))
    np.save(tmp_path / "new.npy", np.array([[0, 1, 2], [9, 0, 0]]))
    asked = ["score", tmp_path / "run", "--data", tmp_path / "new.npy", *FAST]
    line = refused(capsys, *asked, "--out", tmp_path / "a.csv")
    assert "'--data'" in line and "row 1" in line and not (tmp_path / "a.csv").exists()
    np.save(tmp_path / "new.npy", np.array([[0, 1, 1], [1, 0, 0]]))  # Binary, if guessed anew.
    assert run(*asked, "--out", tmp_path / "a.csv") == 0
    assert pd.read_csv(tmp_path / "a.csv")["row"].tolist() == [0, 1]
    assert run("sample", tmp_path / "run", "--num", 3, "--out", tmp_path / "s.csv") == 0
    found = pd.read_csv(tmp_path / "s.csv")
    assert list(found.columns) == ["x0", "x1", "x2"] and found.to_numpy().dtype.kind == "i"


# --- columns of several kinds ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table with words, dates and a gap."""
    home, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=80).strftime("%Y-%m-%d")
    frame = pd.DataFrame({"id": range(80), "mass": random.normal(70, 5, 80).round(2), "day": days})
    frame["island"] = random.choice(["a", "b", "c"], 80)
    frame.loc[3, "mass"] = np.nan
    frame.to_csv(home / "all.csv", index=False)
    trained(home / "run", data=str(home / "all.csv"))
    return home


def test_words_dates_and_rounding_go_in_and_come_out(mixed, tmp_path):
    new = pd.read_csv(mixed / "all.csv")[["island", "id", "day", "mass"]].iloc[[7, 3]]
    new.to_csv(tmp_path / "new.csv", index=False)
    asked = ["--data", tmp_path / "new.csv", "--out", tmp_path / "out.csv"]
    assert run("reconstruct", mixed / "run", *asked) == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found.columns) == ["id", "mass", "day", "island"] and found["id"].tolist() == [7, 3]
    assert set(found["island"]) <= {"a", "b", "c"}
    assert (found["mass"] == found["mass"].round(2)).all()
    assert found["day"].str.fullmatch(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]").all()
    assert run("score", mixed / "run", *FAST, *asked) == 0
    scores = pd.read_csv(tmp_path / "out.csv")
    # Less was seen of the second row: its score does not compare with those of others.
    assert scores["p_value"].isna().tolist() == [False, True] and scores["log_p"].notna().all()
    assert run("sample", mixed / "run", "--num", 6, "--distances", "--out", tmp_path / "s.csv") == 0
    again = pv.load_data(str(tmp_path / "s.csv"), drop=["nearest_distance"])
    assert again.kind == "table"


def test_gaps_are_filled_and_all_else_stays(capsys, mixed, tmp_path):
    new = pd.read_csv(mixed / "all.csv").iloc[:5]
    new.loc[1, "island"] = np.nan
    new.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "filled.csv"
    asked = ["impute", mixed / "run", "--data", tmp_path / "new.csv", *FAST]
    assert run(*asked, "--out", out) == 0
    assert "2 gaps in 2 rows filled" in capsys.readouterr().out
    found = pd.read_csv(out)
    assert list(found.columns) == ["id", "mass", "day", "island", "unreliable"]
    seen = new.notna()
    for name in ("id", "mass", "day", "island"):
        assert found.loc[seen[name], name].tolist() == new.loc[seen[name], name].tolist()
    assert 50 < found.loc[3, "mass"] < 90 and found.loc[1, "island"] in {"a", "b", "c"}
    assert run(*asked, "--out", tmp_path / "filled.npy") == 0
    assert not np.isnan(np.load(tmp_path / "filled.npy")).any()


def test_a_word_that_the_run_does_not_know_is_refused(capsys, mixed, tmp_path):
    pd.read_csv(mixed / "all.csv").iloc[:3].assign(island="z").to_csv(tmp_path / "new.csv")
    asked = ["encode", mixed / "run", "--data", tmp_path / "new.csv", "--out", tmp_path / "a.csv"]
    line = refused(capsys, *asked)
    assert "'island'" in line and "'z'" in line and not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (50, "None can be 0.01 or less, which takes 99 rows to compare with; the least is 0.02."),
        (120, "1 of 3 are 0.01 or less; of rows like those of the run about 0.0248 would be."),
    ],
)
def test_what_is_said_of_low_p_values_is_what_there_can_be(count, said):
    """With n rows to compare with, a p-value is a multiple of 1 / (n + 1)."""
    assert apply._unusual(np.array([1 / (count + 1), 0.3, 1.0, np.nan]), count) == said
