"""Tables as people write them: decimal commas, units, titles, names of rows, odd cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import load_data
from pyro_vaes.data.mixed.codec import codec_of

N = 30
RANDOM = np.random.default_rng(0)
A = RANDOM.normal(10, 2, N).round(2)
B = RANDOM.normal(1000, 200, N).round(1)
WORDS = np.resize(["x", "y", "z"], N)


def loaded(tmp_path, columns, separator=",", names=None, before="", after="", **options):
    path = tmp_path / "t.csv"
    names = list(columns) if names is None else names
    lines = [names, *zip(*columns.values(), strict=True)]
    text = "\n".join(separator.join(map(str, line)) for line in lines)
    path.write_text(f"{before}{text}\n{after}", "utf-8")
    return load_data(path, **options)


def test_a_decimal_comma_need_not_stand_in_the_first_rows(tmp_path):
    commas = [str(v).replace(".", ",") for v in A]
    for spoilt, cell in ((0, ""), (0, "3")):
        cells = [*commas]
        cells[spoilt] = cell
        data = loaded(tmp_path, {"k": range(100, 100 + N), "a": cells}, ";")
        assert data.kind == "real" and "decimal commas" in data.describe()
        whole = torch.cat([data.train.x, data.val.x, data.test.x])
        assert float(whole[:, 1].nanmedian()) == pytest.approx(np.median(A), abs=1)


def test_two_decimal_marks_are_refused(tmp_path):
    cells = [str(v).replace(".", ",") for v in A]
    cells[4] = "1.234"
    match = r"decimal commas, as others are; got '1.234' in line 6, column B"
    with pytest.raises(DataError, match=match):
        loaded(tmp_path, {"w": WORDS, "a": cells}, ";")


@pytest.mark.parametrize(
    "form", ["{:.2f}%", "${:.2f}", "{:.2f} kg", "{:.2f} €", "1.{:03.0f},5", "1'{:03.0f}.5"]
)
def test_numbers_with_signs_and_units_are_no_names(tmp_path, form):
    cells = [form.format(100 + 7 * i) for i in range(N)]
    with pytest.raises(
        DataError, match=r"Expected numbers in column 'p'; got .* in line 2\. Leave"
    ):
        loaded(tmp_path, {"a": A, "w": WORDS, "p": cells}, ";" if "," in form else ",")


@pytest.mark.parametrize("cell", ["?", "-", "<0.1", "Total"])
def test_a_word_among_numbers_is_refused_in_a_table_too(tmp_path, cell):
    cells = [*map(str, A)]
    cells[3] = cell
    match = rf"numbers in column 'p', as most cells hold; got '\{cell}' in line 5 \(1 of 30"
    with pytest.raises(DataError, match=match.replace("\\T", "T")):
        loaded(tmp_path, {"w": WORDS, "p": cells})
    said = loaded(tmp_path, {"w": WORDS, "b": B, "p": cells}, types={"p": "drop"}).describe()
    assert "Left out: 'p' (that was asked for)" in said


def test_names_stay_names(tmp_path):
    for names in ([f"P{i:03d}" for i in range(N)], [f"{i} High Street {i}" for i in range(N)]):
        said = loaded(tmp_path, {"who": names, "w": WORDS, "a": A}).describe()
        assert "Left out: 'who' (30 of 30 words are different: names?)" in said


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = {"a": A, "b": B, "c": A + 1}
    with pytest.raises(DataError, match="its own for each column; got 'a' for A and C"):
        loaded(tmp_path, columns, names=["a", "b", "a"])
    assert loaded(tmp_path, columns, names=["a", "b", "a"], drop=["a"]).columns.names == ("b",)


def test_names_of_rows_are_an_index(tmp_path):
    for index in ([f"car {i}" for i in range(N)], [3 * i for i in range(N)]):
        data = loaded(tmp_path, {"": index, "a": A, "b": B})
        assert data.columns.names == ("a", "b")
        assert "without a name was left out: it is an index of the rows" in data.describe()
    with pytest.raises(DataError, match=r"got none for column A\. \(Leave an index out"):
        loaded(tmp_path, {"": WORDS, "a": A, "b": B})
    with pytest.raises(DataError, match="got none for column B"):
        loaded(tmp_path, {"a": A, "": B})


def test_a_first_row_of_data_with_words_is_no_header(tmp_path):
    data = loaded(tmp_path, {"a": A[1:], "w": WORDS[1:], "b": B[1:]}, names=[A[0], "x", B[0]])
    assert len(data.train) + len(data.val) + len(data.test) == N
    assert "first row was taken for data" in data.describe()
    years = loaded(tmp_path, {"w": WORDS, "1990": A, "1991": B})
    assert years.columns.names == ("w", "1990", "1991")
    assert "The first row, w to 1991, was taken for a header" in years.describe()


def test_titles_and_long_lines_have_their_line(tmp_path):
    columns = {"a": A, "b": B, "w": WORDS}
    with pytest.raises(DataError, match="name for each column in line 1; got 1 names and 3 col"):
        loaded(tmp_path, columns, before="My table\n")
    with pytest.raises(DataError, match="Expected 1 cells in line 3, as in those above; got 3"):
        loaded(tmp_path, columns, before="# mine\n# all mine\n")
    with pytest.raises(DataError, match="Expected 3 cells in line 32, as in those above; got 4"):
        loaded(tmp_path, columns, after="1,2,x,4\n")


@pytest.mark.parametrize(
    ("cell", "types", "words"),
    [
        ("inf", {}, "real values in column 'a'; got inf in line 4"),
        ("-1", {"a": "positive"}, "positive values in column 'a'; got -1.0 in line 4"),
        ("2", {"b": "count"}, "count values in column 'b'; got"),
    ],
)
def test_values_that_a_kind_has_not_have_their_line(tmp_path, cell, types, words):
    cells = [*map(str, A)]
    cells[2] = cell
    with pytest.raises(DataError, match=words):
        loaded(tmp_path, {"a": cells, "b": B, "w": WORDS}, types=types)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pd.to_timedelta(np.arange(N), "h"), "got timedelta64"),
        (np.full(N, 1 + 2j), "got complex128"),
        (pd.period_range("2024-01-01", periods=N), r"got period\[D\]"),
        ([[1, 2]] * N, "in each cell of column 't' .*; got list"),
    ],
)
def test_a_frame_of_other_things_is_refused(column, words):
    with pytest.raises(DataError, match=words):
        load_data(pd.DataFrame({"a": A, "t": column}))


def test_categories_of_a_frame_make_it_a_table():
    frame = pd.DataFrame({"a": A, "t": pd.Categorical(np.resize([1, 2, 3], N))})
    assert [c.kind for c in load_data(frame).codec.columns] == ["real", "category"]


def test_numbers_as_words_are_numbers():
    frame = pd.DataFrame({"a": A, "k": np.resize([0, 2, 10], N), "w": WORDS})
    words = frame.assign(a=frame["a"].astype(str), k=frame["k"].astype(str))
    assert load_data(words).digest == load_data(frame).digest


def test_one_category_is_known_as_word_and_as_number():
    columns = pd.DataFrame({"k": np.resize(["0", "1", "2", "3+"], N), "t": np.resize([0, 5, 7], N)})
    codec = codec_of(columns, {"k": "category", "t": "category"}, [])
    numbers = pd.DataFrame({"k": [1, 2], "t": ["5", "7"]})
    assert codec.numbers(numbers).tolist() == [[1, 1], [2, 2]]
    assert codec.numbers(numbers.assign(k=[1.0, None]))[:, 0].tolist()[0] == 1
    with pytest.raises(DataError, match=r"column 't', one of 0, 5, 7; got '6' in line 1"):
        codec.numbers(numbers.assign(t=["5", "6"]))


def test_two_values_and_gaps_are_said_among_real_ones():
    rows = np.column_stack([A, B, np.resize([0.0, 1.0], N)])
    rows[::4, 2] = np.nan
    assert "elements have two values only (element 2: 0 and 1)" in load_data(rows).describe()
