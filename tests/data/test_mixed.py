"""Tables with columns of several kinds: guessed, said, corrected, split, given back as rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.codec import Codec, codec_of
from pyro_vaes.data.mixed.kinds import guess_kind

N = 120


def frame():
    random = np.random.default_rng(0)
    rain = np.where(random.random(N) < 0.4, 0.0, random.gamma(2, 3, N)).round(1)
    return pd.DataFrame(
        {
            "island": random.choice(["Biscoe", "Dream", "Torgersen"], N),
            "bill_mm": random.normal(44, 5, N).round(1),
            "mass_g": (random.normal(42, 8, N).round() * 100).astype(int),
            "year": random.integers(2007, 2010, N),
            "visits": random.negative_binomial(1, 0.1, N),
            "stars": random.integers(1, 6, N),
            "smokes": random.integers(0, 2, N),
            "sex": random.choice(["male", "female"], N),
            "rain": rain,
            "price": np.exp(random.normal(3, 1.5, N)),
            "day": pd.Timestamp("2021-03-01") + pd.to_timedelta(random.integers(0, 900, N), "D"),
            "seen_on": [f"2020-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(N)],
            "fee": 7,
        }
    )


KINDS = {
    "island": "category",
    "bill_mm": "real",
    "mass_g": "real",
    "year": "real",
    "visits": "count",
    "stars": "ordinal",
    "smokes": "binary",
    "sex": "binary",
    "rain": "hurdle",
    "price": "positive",
    "day": "date",
    "seen_on": "date",
    "fee": "drop",
}
UNSURE = {"year", "stars", "smokes", "price"}


def test_kinds_are_guessed():
    found = {name: guess_kind(column) for name, column in frame().items()}
    assert {name: guess.kind for name, guess in found.items()} == KINDS
    assert {name for name, guess in found.items() if guess.unsure} == UNSURE


def _repeated(frequencies):
    return pd.Series(np.repeat(np.arange(len(frequencies)), frequencies))


@pytest.mark.parametrize(
    ("frequencies", "kind"),
    [
        ((400, 80, 20, 5, 6, 1), "count"),  # a rise of one is chance
        ((150, 160, 90, 40, 20, 8), "count"),
        ((200, 180, 108, 37, 94, 150, 175), "ordinal"),  # frequent at both ends
        ((100, 90, 80, 70), "ordinal"),
        ((400, 80, 20), "ordinal"),  # none, mild, severe?
        ((0, 400, 80, 20, 5), "ordinal"),  # from 1
    ],
)
def test_small_whole_numbers_that_are_the_rarer_the_higher_are_counts(frequencies, kind):
    guess = guess_kind(_repeated(frequencies))
    assert (guess.kind, guess.unsure) == (kind, True)


def test_words_make_a_table_and_one_paragraph_says_what_was_guessed():
    data = pv.load_data(frame())
    assert (data.kind, data.default_likelihood) == ("table", "table")
    said = data.describe()
    assert "taken for a table because it has columns of several kinds" in said
    assert "category: island (3)" in said and "date: day, seen_on" in said
    assert "Left out: 'fee' (it is always 7)." in said
    assert "Not certain, say otherwise with types: 'year' is real since" in said
    assert "\n" not in said


@pytest.mark.parametrize("gaps", [False, True])
def test_rows_come_back_as_they_were(gaps, tmp_path):
    table = frame().drop(columns="fee")
    if gaps:
        random = np.random.default_rng(1)
        table = table.mask(random.random(table.shape) < 0.1)
    data = pv.load_data(table, split="time")
    x = torch.cat([data.train.x, data.val.x, data.test.x])
    assert x.isnan().sum() == int(table.isna().sum().sum())
    back = data.rows(x)
    assert list(back) == list(table)
    for name in table:
        ours, theirs = back[name], table[name]
        assert (ours.isna() == theirs.isna()).all(), name
        there = ~theirs.isna()
        if name in ("price", "rain", "bill_mm"):
            np.testing.assert_allclose(ours[there].astype(float), theirs[there].astype(float), 1e-6)
        elif name in ("day", "seen_on"):
            assert (ours[there] == pd.to_datetime(theirs[there])).all()
        else:
            assert (ours[there] == theirs[there]).all(), name
    if not gaps:
        assert back["mass_g"].dtype.kind == back["visits"].dtype.kind == "i"
        assert back["bill_mm"].tolist() == table["bill_mm"].tolist()  # One decimal, exactly.
    codec = Codec.of(json.loads(json.dumps(data.codec.plain())))
    assert codec == data.codec


def test_a_file_and_a_frame_are_the_same_table(tmp_path):
    path = tmp_path / "birds.csv"
    frame().to_csv(path, index=False)
    of_file, of_frame = pv.load_data(path), pv.load_data(frame())
    assert torch.equal(of_file.train.x, of_frame.train.x)
    assert of_file.codec.columns == of_frame.codec.columns


def test_numbers_are_a_table_if_that_is_asked_for():
    numbers = frame()[["bill_mm", "mass_g", "visits"]]
    assert pv.load_data(numbers).kind == "real"
    assert [c.kind for c in pv.load_data(numbers, kind="table").codec.columns] == [
        "real",
        "real",
        "count",
    ]
    assert pv.load_data(numbers, types={"visits": "real"}).kind == "table"
    with pytest.raises(DataError, match="data frame, or a file of rows, for kind='table'"):
        pv.load_data(numbers.to_numpy(), kind="table")


def test_types_decide():
    table = frame().assign(grade=np.resize(["low", "mid", "high"], N))
    data = pv.load_data(
        table,
        types={
            "grade": ["low", "mid", "high"],
            "stars": "category",
            "price": "drop",
            "fee": "drop",
        },
    )
    columns = {c.name: (c.kind, c.size) for c in data.codec.columns}
    assert columns["grade"] == ("ordinal", 3) and columns["stars"] == ("category", 5)
    assert "price" not in columns
    assert [one.values for one in data.codec.coded if one.column.name == "grade"] == [
        ("low", "mid", "high")
    ]
    with pytest.raises(DataError, match=r"kind of column 'stars' among real, .*got 'word'"):
        pv.load_data(table, types={"stars": "word"})
    with pytest.raises(DataError, match="got one for 'nobody'"):
        pv.load_data(table, types={"nobody": "real"})
    with pytest.raises(DataError, match=r"two values in binary column 'stars'; got 5"):
        pv.load_data(table, types={"stars": "binary"})


def test_a_label_and_what_is_dropped_are_no_columns():
    data = pv.load_data(frame(), label_column="island", drop=("sex",))
    names = [c.name for c in data.codec.columns]
    assert "island" not in names and "sex" not in names
    assert data.label_names == ("Biscoe", "Dream", "Torgersen")
    with pytest.raises(DataError, match="got 'sex' as both"):
        pv.load_data(frame(), label_column=("island", "sex"), drop=("sex",))


@pytest.mark.parametrize("other", [{"kind": "real"}, {"num_levels": 5}, {"image_shape": (1, 1, 2)}])
def test_a_table_with_types_is_of_no_other_kind(other):
    rows = pd.DataFrame({"a": np.linspace(-1, 1, 30), "b": np.linspace(0, 3, 30)})
    with pytest.raises(DataError, match="no other kind, levels or image_shape of a table"):
        pv.load_data(rows, types={"a": "real"}, **other)


def test_names_and_a_few_words_among_numbers_are_no_categories():
    table = frame().assign(who=[f"bird {i}" for i in range(N)])
    assert "'who' (120 of 120 words are different: names?)" in pv.load_data(table).describe()
    numbers = frame()[["bill_mm", "mass_g"]].astype(object)
    numbers.iloc[3, 0] = "?"
    with pytest.raises(DataError, match=r"column 'bill_mm' .*got '\?'"):
        pv.load_data(numbers)


def test_new_rows_are_found_by_name_and_checked():
    codec = codec_of(frame(), {}, [])
    some = frame().iloc[:5]
    shuffled = some[list(reversed(list(some)))]
    np.testing.assert_array_equal(codec.numbers(shuffled), codec.numbers(frame())[:5])
    with pytest.raises(DataError, match="none called rain"):
        codec.numbers(some.drop(columns="rain"))
    other = some.assign(island="Elba")
    with pytest.raises(DataError, match=r"column 'island', one of Biscoe, .*got 'Elba' in line 0"):
        codec.numbers(other)
    assert np.isnan(codec.numbers(some.assign(island=None))[:, 0]).all()


def test_rows_come_back_as_finely_as_they_are_written():
    n = 40
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2024-01-01", periods=n),
            "mass": np.arange(n) / 10,
            "size": 20 + 2 * np.arange(n),
            "site": ["a", "b", "c", "d"] * 10,
        }
    )
    codec = pv.load_data(frame).codec
    new = frame.head(2).assign(
        day=pd.to_datetime(["2024-02-13 12:30", "2024-02-14 00:00"]),
        mass=[1.234, 5.0],
        size=[30.5, 31],
    )
    x = codec.numbers(new)
    assert str(codec.rows(x)["day"][0]) == "2024-02-14 00:00:00"
    back = codec.finer(x).rows(x)
    assert back["day"].tolist() == new["day"].tolist() and back["mass"].tolist() == [1.234, 5.0]
    assert back["size"].tolist() == [30.5, 31] and back["site"].tolist() == ["a", "b"]
    assert codec.finer(codec.numbers(frame)) == codec


@pytest.mark.parametrize("of_frame", [True, False])
def test_groups_stay_in_one_split(of_frame):
    group = np.repeat(np.arange(20), 6)
    table = frame().assign(patient=group)
    options = {"group": "patient"} if of_frame else {"group": group, "drop": ["patient"]}
    data = pv.load_data(table, **options)
    assert "patient" not in [c.name for c in data.codec.columns]
    numbers = data.codec.numbers(table).astype("f4")
    of_row = {tuple(row): g for row, g in zip(numbers, group, strict=True)}
    splits = (data.train, data.val, data.test)
    found = [{of_row[tuple(row)] for row in split.x.numpy()} for split in splits]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]
    assert set.union(*found) == set(range(20))
    assert abs(len(data.test) - 24) <= 6 and abs(len(data.val) - 24) <= 6
    with pytest.raises(DataError, match="at least three groups"):
        pv.load_data(np.random.default_rng(0).normal(size=(9, 2)), group=[0, 1, 1] * 3)


def test_a_split_by_time_keeps_the_order():
    x = np.arange(50.0)[:, None] + 0.5
    data = pv.load_data(x, split="time")
    assert torch.cat([data.train.x, data.val.x, data.test.x]).flatten().tolist() == x[:, 0].tolist()
    assert len(data.test) == len(data.val) == 10
    with pytest.raises(DataError, match="among random, time"):
        pv.load_data(x, split="space")
    with pytest.raises(DataError, match="that bring their splits"):
        pv.load_data({"train_x": x, "val_x": x, "test_x": x}, split="time")


def test_only_tables_have_rows():
    with pytest.raises(DataError, match="columns of several kinds; got real"):
        pv.load_data(np.random.default_rng(0).normal(size=(9, 2))).rows(np.zeros((1, 2)))


def test_a_table_from_file_to_synthetic_rows():
    data = pv.load_data(frame(), seed=1)
    columns = data.codec.columns
    sizes = [c.size if c.kind == "category" else 0 for c in columns]
    torch.manual_seed(0)
    likelihood = pv.TableLikelihood(pv.MLP(2, [16]), columns)
    likelihood.initialize_from(data.train)
    network = pv.OneHotColumns(pv.MLP(sum(s or 1 for s in sizes), [16]), sizes)
    posterior = pv.NormalPosterior(network, 2, event_shape=data.event_shape)
    vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    pv.fit(vae, data.train, data.val, epochs=5, progress=False)
    made = data.rows(vae.sample(30))
    assert set(made["island"]) <= {"Biscoe", "Dream", "Torgersen"} and len(made) == 30
    assert data.codec.numbers(made).shape == (30, 12)
