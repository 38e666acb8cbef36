"""Conditions on the command line: trained on, kept with the run, given to its rows and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import refused, run

import pyro_vaes as pv
from pyro_vaes.runs.schema import read_config
from pyro_vaes.storage.weights import load_record

SMALL = ["--hidden-dims", "8", "--latent-dim", "2", "--mode", "eager", "--epochs", "3"]
SMALL += ["--warmup-epochs", "0", "--samples", "25", "--proposal", "encoder"]
LABELS = ["--label", "sex", "--label-column", "site", "--label", "age"]
GIVEN = "sex=f,site=north, east,age=33"


def table(n: int = 80) -> pd.DataFrame:
    random = np.random.default_rng(0)
    sex, site = random.choice(["f", "m"], n), random.choice(["north, east", "south"], n)
    age = random.normal(40, 12, n).round(1)
    height = 170 + 8 * (sex == "m") + random.normal(0, 5, n)
    mass = 60 + 0.3 * age + random.normal(0, 4, n)
    return pd.DataFrame({"age": age, "height": height, "sex": sex, "mass": mass, "site": site})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a run on it, of three conditions."""
    home = tmp_path_factory.mktemp("conditions")
    table().to_csv(home / "all.csv", index=False)
    assert run("train", "--data", home / "all.csv", "--out", home / "run", *LABELS, *SMALL) == 0
    return home


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """New rows, columns in another order."""
    rows = table().sample(20, random_state=1)[["mass", "site", "height", "sex", "age"]]
    rows.to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


def matrix(rows: pd.DataFrame) -> torch.Tensor:
    """Conditions in the order of the flags."""
    columns = (rows["sex"] == "m", rows["site"] == "south", rows["age"])
    return torch.tensor(np.stack([np.asarray(c, dtype=np.float32) for c in columns], 1))


def test_a_run_keeps_how_its_conditions_are_written(home):
    facts, vae = load_record(home / "run")["data"], pv.load(home / "run")
    assert [one["column"][0] for one in facts["conditions"]] == ["sex", "site", "age"]
    assert facts["columns"] == ["height", "mass"] and facts["num_labels"] is None
    assert vae.conditions.sizes == (2, 2, 0)
    data = pv.load_data(str(home / "all.csv"), label_column=("sex", "site", "age"))
    torch.testing.assert_close(vae.conditions.center[2], data.train.y[:, 2].mean())


def test_the_model_is_conditional_which_is_said(home, tmp_path, capsys):
    asked = ["train", "--data", home / "all.csv", *LABELS, *SMALL]
    assert run(*asked, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Conditions were taken for: binary: sex, site; real: age" in said
    assert "conditional, since the data have conditions: sex, site, age" in said
    line = refused(capsys, *asked, "--conditional", "false", "--out", tmp_path / "run")
    assert "'--conditional': expected true with conditions (sex, site, age)" in line
    vamp = ["--conditional-prior", "true", "--conditional", "true", "--prior", "vamp"]
    assert "a matrix of conditions" in refused(capsys, *asked, *vamp, "--out", tmp_path / "run")
    line = refused(capsys, *asked, "--label", "nose", "--out", tmp_path / "run")
    assert "a column called 'nose'" in line and not (tmp_path / "run").exists()


def test_one_label_that_the_model_does_not_see_is_said(home, tmp_path, capsys):
    asked = ["train", "--data", home / "all.csv", "--label", "sex", "--drop", "site", *SMALL]
    said = "does not see the labels, sex: --conditional true trains"
    for options, there in (([], True), (["--conditional", "true"], False)):
        assert run(*asked, *options, "--dry-run") == 0
        assert (said in capsys.readouterr().out) == there


@pytest.mark.parametrize("recipe", ["default", "table"])
def test_a_run_resumes_and_other_labels_are_refused(home, tmp_path, capsys, recipe):
    asked = ["train", "--data", home / "all.csv", "--out", tmp_path / "run", *SMALL]
    asked += ["--recipe", recipe, "--drop", "site"] if recipe == "table" else ["--drop", "site"]
    prior = ["--conditional", "true", "--conditional-prior", "true", "--prior", "maf"]
    labels = ["--label", "sex", "--label", "age", *(prior if recipe == "default" else [])]
    assert run(*asked, *labels, "--minutes", "1e-9") == 0
    assert "'--label-column'" in refused(capsys, *asked, "--resume", "--label", "sex")
    assert run(*asked, *labels, "--resume") == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_new_rows_bring_conditions_in_columns_of_any_order(home, new, tmp_path, capsys):
    rows, out, vae = pd.read_csv(new), tmp_path / "out.npy", pv.load(home / "run")
    x, y = torch.tensor(rows[["height", "mass"]].to_numpy(dtype="float32")), matrix(rows)
    asked = [home / "run", "--data", new, "--out", out]
    capsys.readouterr()
    assert run("encode", *asked) == 0
    np.testing.assert_allclose(np.load(out), vae.encode(x, y), rtol=1e-5)
    assert "Not seen by the model" not in capsys.readouterr().out  # Conditions are.
    assert run("reconstruct", *asked) == 0
    np.testing.assert_allclose(np.load(out), vae.reconstruct(x, y), rtol=1e-5)
    fast = {"num_samples": 30, "proposal": "encoder", "seed": 0}
    assert run("score", *asked, "--samples", 30, "--proposal", "encoder") == 0
    np.testing.assert_allclose(np.load(out)[:, 0], pv.score(vae, x, y, **fast).log_p, rtol=1e-5)
    x[3, 0] = torch.nan
    rows.assign(height=x[:, 0].numpy()).to_csv(new, index=False)
    assert run("impute", *asked, "--samples", 30, "--proposal", "encoder") == 0
    filled = pv.impute(vae, x, 30, y=y, proposal="encoder", seed=0).x
    np.testing.assert_allclose(np.load(out), filled, rtol=1e-5)
    assert run("evaluate", home / "run", "--data", new, "--samples", 25) == 0


def test_one_row_of_conditions_serves_all_rows(home, new, tmp_path):
    rows, out, vae = pd.read_csv(new), tmp_path / "codes.npy", pv.load(home / "run")
    rows[["mass", "height"]].to_csv(new, index=False)
    x = torch.tensor(rows[["height", "mass"]].to_numpy(dtype="float32"))
    assert run("encode", home / "run", "--data", new, "--label", GIVEN, "--out", out) == 0
    np.testing.assert_allclose(np.load(out), vae.encode(x, [0, 0, 33.0]), rtol=1e-5)


def test_rows_of_the_run_have_their_own(home, tmp_path):
    out, vae = tmp_path / "codes.npy", pv.load(home / "run")
    own = pv.load_data(str(home / "all.csv"), label_column="sex,site,age").val
    assert run("encode", home / "run", "--split", "val", "--out", out) == 0
    np.testing.assert_allclose(np.load(out), vae.encode(own.x, own.y), rtol=1e-5)


def test_samples_come_with_their_conditions(home, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    assert run("sample", home / "run", "--num", 30, "--label", GIVEN, "--out", out) == 0
    rows = pd.read_csv(out)
    assert set(rows["sex"]) == {"f"} and set(rows["site"]) == {"north, east"}
    assert (rows["age"] == 33).all() and len(rows) == 30
    assert run("sample", home / "run", "--num", 30, "--out", out) == 0
    assert "training rows drawn at random" in capsys.readouterr().out
    rows, known = pd.read_csv(out), table()
    assert rows["sex"].nunique() == 2
    there = set(zip(known["sex"], known["site"], known["age"].round(1), strict=True))
    assert set(zip(rows["sex"], rows["site"], rows["age"], strict=True)) <= there
    # The rows can be trained on as they are.
    assert pv.load_data(str(out), label_column="sex,site,age").condition_names[0] == "sex"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("sex=f,age=3", "of each of sex, site, age, as sex=f,"),
        ("sex=f,age=3", "got none for 'site'"),
        ("f", "got 'f'"),
        ("sex=f,site=south,age=3,nose=4", "got 'nose'"),
        ("sex=f,site=south,age=3,age=4", "got one twice"),
        ("sex=q,site=south,age=3", "Expected sex among f, m; got 'q'"),
        ("sex=f,site=south,age=old", "Expected age as a number; got 'old'"),
        ("sex=f,site=south,age=nan", "Expected age as a number; got 'nan'"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(capsys, home, tmp_path, label, words):
    line = refused(capsys, "sample", home / "run", "--label", label, "--out", tmp_path / "a.csv")
    assert "'--label'" in line and words in line and not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="age"), "'age' (1 of 5 are missing)"),
        (lambda rows: rows.replace("south", "up"), "in column 'site', one of north, east, south"),
        (lambda rows: rows.assign(sex=[None, *rows["sex"][1:]]), "none in line 2, column 'sex'"),
    ],
)
def test_new_rows_that_do_not_fit_are_refused(capsys, home, new, tmp_path, change, words):
    change(pd.read_csv(new)).to_csv(new, index=False)
    line = refused(capsys, "encode", home / "run", "--data", new, "--out", tmp_path / "a.csv")
    assert "new.csv" in line and words in line
    np.save(tmp_path / "new.npy", np.zeros((3, 2), dtype="float32"))
    asked = ["encode", home / "run", "--data", tmp_path / "new.npy", "--out", tmp_path / "a.csv"]
    assert "conditions of each row, in columns of a table" in refused(capsys, *asked)
    assert run(*asked, "--label", GIVEN) == 0


def test_paths_share_their_conditions(capsys, home, new, tmp_path):
    asked = ["interpolate", home / "run", "--data", new, "--out", tmp_path / "a.csv"]
    assert "rows of one label" in refused(capsys, *asked)
    assert run(*asked, "--label", GIVEN) == 0
    asked[0] = "traverse"
    assert "all or I,J" in refused(capsys, *asked)
    assert run(*asked, "--units", "all") == 0


def test_a_page_has_conditions_for_no_classes(home):
    from pyro_vaes.explorer.contents import Rows, contents_of

    own = pv.load_data(str(home / "all.csv"), label_column="sex,site,age").val
    names = [str(i) for i in range(len(own))]
    rows = Rows(own.x, own.y, None, names, None, lambda x: {"height": x[:, 0], "mass": x[:, 1]})
    found = contents_of(pv.load(home / "run"), rows, num_samples=25, proposal="encoder")
    assert len(found.scores) == len(own)


@pytest.mark.slow
def test_a_search_models_conditions_as_a_training_does(home, tmp_path, capsys):
    asked = ["search", "--data", home / "all.csv", *LABELS, *SMALL[:8], "--warmup-epochs", "0"]
    asked += ["--learning-rate", "1e-3,1e-2", "--out", tmp_path / "search", "--samples", "25"]
    run(*asked)
    said = "The model is conditional, since the data have conditions: sex, site, age."
    assert said in capsys.readouterr().out
    assert read_config(tmp_path / "search" / "best").data.conditional
