"""Columns that are functions of others: found where they are, and only there."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.cli.app import main
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.dependences import Dependence, dependences


def frame(n: int = 80) -> pd.DataFrame:
    random = np.random.default_rng(0)
    made = pd.DataFrame(random.normal(50, [1, 1e3, 1e-3], (n, 3)), columns=["read", "math", "c"])
    made["score"] = (made.read + made.math) / 2
    return made.assign(copy=made.c, year=1999.0)


def test_copies_sums_and_constants_are_found_in_any_units():
    x = torch.tensor(frame().to_numpy())
    expected = [Dependence(3, (0, 1)), Dependence(4, (2,)), Dependence(5, ())]
    assert dependences(x) == expected
    scale = torch.tensor([1e6, 3.0, 1e-7, 1.0, 1e4, 2.0], dtype=torch.float64)
    assert dependences(x * scale - 7) == expected
    assert dependences(x.float()) == expected


def test_close_columns_are_none_that_depend():
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    near = x[:, :1] + 2e-3 * torch.randn(200, 1)
    nearer = x[:, :1] + 2e-4 * torch.randn(200, 1)
    assert dependences(torch.cat([x, near], 1)) == []
    assert dependences(torch.cat([x, nearer], 1)) == [Dependence(2, (0,))]


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 3), (3, 3), (10, 30), (31, 30)])
def test_few_rows_of_independent_columns_show_nothing(n, d):
    torch.manual_seed(0)
    assert dependences(torch.randn(n, d)) == []


def test_rows_with_gaps_are_left_out():
    x = torch.tensor(frame().to_numpy())
    x[::3, 0] = torch.nan
    assert Dependence(3, (0, 1)) in dependences(x)
    assert dependences(torch.full((9, 3), torch.nan)) == []


def test_one_of_one_hot_columns_is_a_function_of_the_others():
    x = torch.eye(4, dtype=torch.float64)[torch.arange(40) % 4]
    assert [one.column for one in dependences(x)] == [3]


def test_by_default_they_are_said_and_kept():
    data = pv.load_data(frame())
    said = data.describe()
    assert "'score' is a linear function of 'read', 'math'; 'copy' is a linear function of" in said
    assert "--dependent drop" in said and data.event_shape == (6,)
    assert "--dependent" not in pv.load_data(frame()[["read", "math", "c"]]).describe()


def test_they_are_dropped_by_name():
    data = pv.load_data(frame(), dependent="drop")
    assert data.columns.names == ("read", "math", "c") and data.event_shape == (3,)
    assert "'score' is a linear function" in data.describe()
    assert "'year' never varies" in data.describe()
    plain = pv.load_data(frame()[["read", "math", "c"]])
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(data, split).x, getattr(plain, split).x)


@pytest.mark.parametrize(
    ("source", "dependent", "words"),
    [
        (frame(), "refuse", r"'year' never varies.*by name, with drop \(--drop\)"),
        (frame().to_numpy(), "drop", "column 3 is a linear function of column 0, column 1.*array"),
        (pd.DataFrame({"a": [2.5] * 9, "b": [1.0] * 9}), "drop", "columns that vary"),
        (frame().assign(word=["x", "y"] * 40), "refuse", "'score' is a linear function"),
    ],
)
def test_they_are_refused(source, dependent, words):
    with pytest.raises(DataError, match=words):
        pv.load_data(source, dependent=dependent, label_column="" if "word" in source else None)


def test_a_run_knows_new_rows_by_the_columns_it_kept(tmp_path: Any, capsys: Any) -> None:
    frame().to_csv(tmp_path / "all.csv", index=False)
    options = ["--recipe", "table", "--data", tmp_path / "all.csv", "--epochs", 1, "--samples", 20]
    options += ["--mode", "eager", "--latent-dim", 2, "--out", tmp_path / "run"]
    run("train", *options)
    assert "Left out, since in training 'score' is" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert np.isfinite(found["nll"])
    # Three columns of spreads 1, 1000 and 0.001: the density of what is left has no floor in it.
    assert abs(found["nll"] - 3 * 1.419) < 2
    frame(9).to_csv(tmp_path / "new.csv", index=False)
    data = ["--data", tmp_path / "new.csv", "--out", tmp_path / "s.csv", "--samples", 20]
    run("score", tmp_path / "run", *data)
    assert len(pd.read_csv(tmp_path / "s.csv")) == 9


def run(*arguments: Any) -> None:
    with contextlib.suppress(SystemExit):
        main([str(argument) for argument in arguments])


def test_a_late_row_counts_however_many_come_before() -> None:
    same = torch.randn(30_000, 1).expand(-1, 2).clone()
    assert dependences(same) == [Dependence(1, (0,))]
    same[-1, 1] += 5.0
    late = torch.zeros(30_000, 1)
    assert dependences(late) == [Dependence(0, ())]
    late[-1] = 1.0
    assert dependences(same) == dependences(late) == []
