"""Columns of a table as conditions: what makes them such, their kinds, and one row as a text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.codec import Codec
from pyro_vaes.data.mixed.conditions import condition_row


def frame(n: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(0)
    day = pd.date_range("2024-01-01", periods=n)
    return pd.DataFrame(
        {
            "x": random.normal(size=n),
            "dose": random.normal(5, 1, n).round(2),
            "grade": random.integers(1, 4, n),
            "site": random.choice(["a", "b", "c"], n),
            "day": day,
            "z": random.normal(size=n),
        }
    )


def loaded(labels, drop=(), rows=None, **options):
    rows = frame() if rows is None else rows
    return pv.load_data(rows, label_column=labels, drop=drop, kind=None, **options)


def test_several_columns_make_a_matrix_in_their_order():
    rows = frame()
    data = loaded(["site", "dose", "grade", "day"])
    assert data.columns.names == ("x", "z") and data.columns.label is None
    assert data.num_labels is None and data.kind == "real"
    assert data.condition_names == ("site", "dose", "grade", "day")
    i = data.places["train"].numpy()
    taken = rows.iloc[i]
    expected = [taken["site"].map({"a": 0, "b": 1, "c": 2}), taken["dose"], taken["grade"] - 1]
    expected.append((taken["day"] - pd.Timestamp("1970-01-01")).dt.days)
    matrix = np.stack([np.asarray(column, dtype=np.float32) for column in expected], 1)
    np.testing.assert_array_equal(data.train.y, matrix)
    back = data.conditions.rows(data.train.y.numpy())
    assert back["site"].tolist() == taken["site"].tolist()
    assert back["day"].tolist() == taken["day"].tolist()
    assert "Conditions were taken for: category: site (3); real: dose; ordinal: grade (3)" in (
        data.describe()
    )
    assert "'grade' is ordinal since 3 small whole numbers" in data.describe()


def test_one_column_is_a_label_unless_it_holds_reals_or_its_kind_is_given():
    drop = ("site", "dose", "day")
    assert loaded("grade", drop).num_labels == 4 and loaded("grade", drop).conditions is None
    real = loaded("grade", drop, types={"grade": "real"})
    assert real.train.y.shape == (36, 1) and real.kind == "real"
    assert set(real.train.y.flatten().tolist()) == {1.0, 2.0, 3.0}
    dose = loaded("dose", ("site", "grade", "day"))
    assert dose.condition_names == ("dose",) and dose.codec is None
    assert loaded("day", ("site", "grade", "dose")).condition_names == ("day",)


def test_a_column_with_a_comma_in_its_name_stays_one():
    rows = frame().rename(columns={"grade": "site,dose"})
    data = loaded("site,dose", ("day", "site", "dose"), rows)
    assert data.num_labels == 4 and data.columns.label == "site,dose"


def test_refusals():
    for labels, said in (
        ("site,nose", "a column called 'nose'"),
        (("site", "site"), "'site' twice"),
        (("site", "same"), "'same'; got others: it is always 1"),
        (("site", "name"), "names?"),
    ):
        rows = frame().assign(same=1, name=[f"n{i}" for i in range(60)])
        with pytest.raises(DataError, match=said.replace("?", r"\?")):
            loaded(labels, ("day",), rows)
    gap = frame()
    gap.loc[7, "dose"] = np.nan
    with pytest.raises(DataError, match=r"none in line 7, column 'dose' \(1 of 60"):
        loaded(["site", "dose"], ("day",), gap)


def test_a_row_as_text():
    codec = loaded(["site", "dose", "grade", "day"]).conditions
    codec = Codec.of(codec.plain())
    row = condition_row(codec, "day=1970-01-11, dose=5.5,grade=3,site=b")
    torch.testing.assert_close(row, torch.tensor([1.0, 5.5, 2.0, 10.0]))
    with pytest.raises(DataError, match="Expected day as a date; got 'soon'"):
        condition_row(codec, "day=soon,dose=5.5,grade=3,site=b")
    with pytest.raises(DataError, match="Expected grade among 1, 2, 3; got '4'"):
        condition_row(codec, "day=1970-01-11,dose=5.5,grade=4,site=b")
