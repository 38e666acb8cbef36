"""Dates in tables: one order for a column, times of day, numbers that are dates."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.mixed.codec import Codec, codec_of
from pyro_vaes.data.mixed.kinds import guess_kind

DAYS = pd.Series(pd.date_range("2024-01-01", periods=40, freq="9D"))


def written(form, dates=DAYS):
    return pd.Series(dates.dt.strftime(form), name="d")


def coded(column, **types):
    notes = []
    codec = codec_of(pd.DataFrame({"d": column}), types, notes)
    return codec, codec.numbers(pd.DataFrame({"d": column}))[:, 0], " ".join(notes)


@pytest.mark.parametrize(
    "form",
    [
        *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%dT00:00:00Z"),
        *("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m/%d/%Y 12:00 AM"),
        *("%d %b %Y", "%d-%B-%Y", "%b %d, %Y"),
    ],
)
def test_dates_of_any_form_are_the_same_days(form):
    codec, numbers, said = coded(written(form))
    assert "date: d" in said
    np.testing.assert_array_equal(numbers, 19723 + 9.0 * np.arange(40))
    back = codec.rows(numbers[:, None])["d"]
    assert back.tolist() == DAYS.tolist()
    assert Codec.of(json.loads(json.dumps(codec.plain()))) == codec


def test_numbers_are_dates_if_all_of_them_can_be():
    numbers = written("%Y%m%d").astype(int)
    guess = guess_kind(numbers)
    assert (guess.kind, guess.unsure) == ("date", True)
    assert coded(numbers)[1][:2].tolist() == [19723, 19732]
    numbers[7] = 20241399
    assert guess_kind(numbers).kind == "real"
    years = pd.Series(np.arange(2000, 2040))
    assert coded(years, d="date")[1][:2].tolist() == [10957.0, 11323.0]
    with pytest.raises(DataError, match=r"date values in column 'd'; got 748\.2 in line 0"):
        coded(pd.Series([748.2, 12.0, 3.5]), d="date")


def test_a_column_has_one_order_and_an_unsure_one_is_said():
    first = pd.Series(["01/02/2024", "02/03/2024", "03/11/2024"] * 5)
    *_, said = coded(first)
    assert "'d' is month_first since 01/02/2024 was read so, or is it day_first?" in said
    assert coded(first)[1][0] == 19724 and coded(first, d="day_first")[1][0] == 19754
    # One late day decides for all.
    assert coded(pd.concat([first, pd.Series(["13/02/2024"])], ignore_index=True))[1][0] == 19754
    assert coded(pd.concat([first, pd.Series(["02/13/2024"])], ignore_index=True))[1][0] == 19724
    both = pd.concat([first, pd.Series(["13/02/2024", "02/13/2024"])], ignore_index=True)
    with pytest.raises(DataError, match=r"one order in column 'd'; got '13/02/2024' in line 15"):
        coded(both)


def test_new_rows_are_read_in_the_order_of_the_old_ones():
    codec, *_ = coded(written("%d/%m/%Y"))
    new = pd.DataFrame({"d": ["01/02/2024", "2024-02-01", None]})
    np.testing.assert_array_equal(codec.numbers(new)[:, 0], [19754, 19754, np.nan])
    with pytest.raises(DataError, match=r"date values in column 'd', the day first; got '02/13/20"):
        codec.numbers(pd.DataFrame({"d": ["02/13/2024"]}))
    with pytest.raises(DataError, match="date values in column 'd'; got '01/02/2024'"):
        coded(written("%Y-%m-%d"))[0].numbers(pd.DataFrame({"d": ["01/02/2024"]}))


@pytest.mark.parametrize(("step", "form"), [("97min", "%Y-%m-%d %H:%M"), ("3721s", "%d.%m.%Y %T")])
def test_times_of_day_come_back(step, form):
    times = pd.Series(pd.date_range("2024-03-05 07:15", periods=60, freq=step))
    codec, numbers, _ = coded(written(form, times))
    assert codec.coded[0].date.since == "2024-03-05"
    back = codec.rows(numbers.astype("f4")[:, None])["d"]
    assert back.tolist() == times.tolist()
    zoned = times.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    np.testing.assert_array_equal(coded(zoned)[1], numbers)
    np.testing.assert_array_equal(coded(zoned.map(lambda t: t.isoformat()))[1], numbers)


def test_records_of_earlier_versions_hold_days():
    codec, *_ = coded(written("%Y-%m-%d"))
    (plain,) = codec.plain()
    assert Codec.of([{**plain, "date": True}]) == codec
    assert Codec.of([{**plain, "date": False}]).coded[0].date is None


def test_dates_of_a_data_frame_are_no_nanoseconds():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=40), "d": DAYS})
    data = pv.load_data(frame)
    assert data.kind == "table" and "date: d" in data.describe()
    assert data.train.x[:, 1].max() < 21_000
    assert pv.load_data(frame.assign(d=DAYS.dt.date)).digest == data.digest


def test_dates_among_which_a_cell_is_none_are_refused():
    column = written("%Y-%m-%d")
    column[4] = "never"
    with pytest.raises(DataError, match=r"dates in column 'd', as most .*got 'never' in line 4 "):
        coded(column)
    assert coded(pd.Series(column).where(column != "never"))[2].startswith("Columns were taken for")


@pytest.mark.parametrize("words", [("03/04/67", "23/11/71"), ("1-Jan-68", "2-Feb-70"), ("67-3-4",)])
def test_years_of_two_digits_are_no_dates_and_that_is_said(words):
    guess = guess_kind(pd.Series([*words, "05/12/20"] * 5))
    assert guess.kind == "category" and guess.unsure and "four digits" in guess.why
