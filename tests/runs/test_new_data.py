"""New rows as a run knows its data: by name, in order where there are no names, never guessed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import load_data
from pyro_vaes.runs.build import data_of
from pyro_vaes.runs.new_data import element_names, own_data, read_new
from pyro_vaes.runs.run import record_of
from pyro_vaes.runs.schema import from_values


def of(path: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The configuration of a run on some data, and what its weights would say of them."""
    config = from_values({"data": str(path), **options})
    told = {"label_column": ""} if options.get("label_column") == "none" else {}
    return config, record_of(config, load_data(str(path), **told))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = "".join(f"{i},{i / 7:.3f},{i % 3},{'ab'[i % 2]}\n" for i in range(1, 31))
    (tmp_path / "all.csv").write_text("id,mass,size,class\n" + rows)
    return tmp_path / "all.csv"


def test_a_record_holds_the_columns(table):
    _, record = of(table)
    assert record["data"]["columns"] == ["mass", "size"] and record["data"]["kind"] == "real"
    assert record["data"]["label_column"] == "class"
    assert element_names(record["data"]) == ["mass", "size"]
    np.save(table.with_suffix(".npy"), np.zeros((20, 2, 3)) + np.arange(20.0)[:, None, None])
    _, record = of(table.with_suffix(".npy"))
    assert record["data"]["columns"] is None
    assert element_names(record["data"]) == [f"x{i}" for i in range(6)]


def test_columns_stand_in_any_order_and_file(table, tmp_path):
    new = tmp_path / "new.tsv"
    new.write_text("size\tweather\tmass\n2\train\t0.5\n1\tsun\t1.5\n")
    rows = read_new(new, from_values({"data": str(table)}), tmp_path, of(table)[1])
    assert rows.x.tolist() == [[0.5, 2], [1.5, 1]] and rows.x.dtype == torch.float32
    assert rows.y is None
    assert {k: list(v) for k, v in rows.carried.items()} == {"weather": ["rain", "sun"]}


def test_labels_have_the_numbers_of_the_run(table, tmp_path):
    config, record = of(table, conditional=True)
    (tmp_path / "new.csv").write_text("mass,size,class\n1,2,b\n1,2,b\n")
    rows = read_new(tmp_path / "new.csv", config, tmp_path, record)
    assert rows.y is not None and rows.y.tolist() == [1, 1]
    # Known classes go along: one wants to see them next to what the model says.
    assert list(rows.carried["class"]) == ["b", "b"] and not rows.notes
    assert "'class'" in read_new(tmp_path / "new.csv", config, tmp_path, record, 0).notes[0]
    (tmp_path / "new.csv").write_text("mass,size\n1,2\n")
    with pytest.raises(DataError, match="'class'"):
        read_new(tmp_path / "new.csv", config, tmp_path, record)
    assert read_new(tmp_path / "new.csv", config, tmp_path, record, label=0).y.tolist() == [0]


@pytest.mark.parametrize("y", [[300.0, 0.0], [300, 0], ["300", "0"]])
def test_numbers_that_stand_for_classes(tmp_path, y):
    np.savez(tmp_path / "all.npz", x=np.eye(20, 2) / 2, y=np.arange(20) % 4 * 100)
    config, record = of(tmp_path / "all.npz", conditional=True)
    assert record["data"]["label_names"] == ["0", "100", "200", "300"]
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 2)), y=np.array(y))
    assert read_new(tmp_path / "new.npz", config, tmp_path, record).y.tolist() == [3, 0]


def test_a_table_without_names_goes_by_its_order(tmp_path):
    (tmp_path / "all.csv").write_text("".join(f"{i},{i / 7:.3f}\n" for i in range(30)))
    config, record = of(tmp_path / "all.csv")
    assert record["data"]["columns"] is None
    (tmp_path / "new.csv").write_text("1,2.5\n2,3.5\n")
    rows = read_new(tmp_path / "new.csv", config, tmp_path, record)
    assert rows.x.tolist() == [[1, 2.5], [2, 3.5]]
    (tmp_path / "new.csv").write_text("1,2.5,7\n2,3.5,7\n")
    with pytest.raises(DataError, match=r"rows of shape \(2,\)"):
        read_new(tmp_path / "new.csv", config, tmp_path, record)


def test_what_a_table_without_names_leaves_out_new_rows_leave_out(tmp_path):
    rows = "".join(f"{i / 7:.3f},{i % 3},{i % 5 + 0.5}\n" for i in range(30))
    (tmp_path / "all.csv").write_text(rows)
    config = from_values({"data": str(tmp_path / "all.csv"), "group": "B"})
    record = record_of(config, load_data(str(tmp_path / "all.csv"), group="B"))
    (tmp_path / "new.csv").write_text("1.5,,2.5\n2.5,one,3.5\n")
    rows = read_new(tmp_path / "new.csv", config, tmp_path, record)
    assert rows.x.tolist() == [[1.5, 2.5], [2.5, 3.5]]


def test_nearly_whole_numbers_are_rounded_as_those_of_the_run_are(tmp_path):
    x = np.arange(60).reshape(30, 2) % 7
    pd.DataFrame(x + 1e-6, columns=["a", "b"]).to_csv(tmp_path / "all.csv", index=False)
    config, record = of(tmp_path / "all.csv")
    assert record["data"]["kind"] == "levels"
    rows = read_new(tmp_path / "all.csv", config, tmp_path, record)
    assert rows.x.tolist() == x.tolist() and "rounded" in rows.notes[0]
    pd.DataFrame([[0.25, 1.0]], columns=["a", "b"]).to_csv(tmp_path / "new.csv")
    assert read_new(tmp_path / "new.csv", config, tmp_path, record).x.tolist() == [[0.25, 1.0]]


def test_what_goes_along_stands_as_in_its_file(table, tmp_path):
    config, record = of(table)
    (tmp_path / "new.csv").write_text(
        "id,note,mass,size,note,count\n007,NA,1,2,1.50,3\n\n123456789012345678901,,1,2,x,\n"
    )
    rows = read_new(tmp_path / "new.csv", config, tmp_path, record)
    assert {name: list(cells) for name, cells in rows.carried.items()} == {
        "id": ["007", "123456789012345678901"],
        "note (B)": ["NA", ""],
        "note (E)": ["1.50", "x"],
        "count": ["3", ""],
    }


def test_a_table_of_words_without_names_is_read_as_the_runs_own(tmp_path):
    rows = "".join(f"{i / 7:.3f},{'abc'[i % 3]},{i % 5 + 0.5}\n" for i in range(30))
    (tmp_path / "all.csv").write_text(rows)
    config, record = of(tmp_path / "all.csv")
    assert record["data"]["columns"] is None
    (tmp_path / "new.csv").write_text("1.5,c,2.5\n2.5,b,3.5\n")  # By themselves b would be 0.
    rows = read_new(tmp_path / "new.csv", config, tmp_path, record)
    assert rows.x.tolist() == [[1.5, 2, 2.5], [2.5, 1, 3.5]]
    (tmp_path / "new.csv").write_text("1.5,z,2.5\n2.5,b,3.5\n")
    with pytest.raises(DataError, match=r"column 'B', one of a, b, c; got 'z' in line 1"):
        read_new(tmp_path / "new.csv", config, tmp_path, record)


def test_an_array_for_a_table_is_said_to_have_no_names(table, tmp_path):
    config, record = of(table)
    np.save(tmp_path / "new.npy", [[0.5, 2.0]])
    rows = read_new(tmp_path / "new.npy", config, tmp_path, record)
    assert rows.x.tolist() == [[0.5, 2.0]] and "in the order" in rows.notes[0]


def test_the_runs_own_data_are_known_by_their_digest(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, record = of(Path("all.csv"))
    (tmp_path / "runs" / "deep" / "one").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    found = own_data(config, Path("../runs/deep/one"), record)
    assert found.digest == record["data"]["digest"]
    Path("all.csv").write_text("mass,size\n" + "1,2\n3,4\n" * 9)
    assert own_data(config, tmp_path / "runs" / "deep", record).digest == found.digest
    with pytest.raises(ValueError, match="got others, as they are read now"):
        own_data(config, Path("/nowhere/run"), record)


def test_options_that_were_ignored_once_do_not_hide_the_runs_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 2)))
    config, record = of(Path("x.npy"))
    ignored = dataclasses.replace(config.data, header="none", label_column="none")
    old = dataclasses.replace(config, data=ignored)
    with pytest.raises(DataError, match="Expected a table"):
        data_of(old, "Expected the data")
    assert own_data(old, tmp_path / "run", record).digest == record["data"]["digest"]
