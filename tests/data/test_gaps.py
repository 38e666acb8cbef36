"""Values that were not seen: NaN from reading to starting points."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.splits import as_split, pseudo_inputs
from pyro_vaes.data.tables import filled, num_gaps
from pyro_vaes.data.units import units_of


def gappy(n=60, d=3, share=0.2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=generator) * torch.tensor([1.0, 100.0, 1e-3]) + 5
    x[torch.rand(n, d, generator=generator) < share] = torch.nan
    x[0] = torch.nan
    return x


def test_a_mask_is_refused_and_its_filled_array_has_gaps():
    x = np.ma.masked_array(np.random.default_rng(0).normal(size=(50, 3)), mask=False)
    x[7, 1] = -999.0  # What is under a mask means nothing.
    x[7, 1] = np.ma.masked
    vae = pv.VAE(
        pv.NormalPrior(2),
        pv.NormalPosterior(pv.MLP(3, [4]), 2),
        pv.NormalLikelihood(pv.MLP(2, [4]), (3,)),
    )
    for use in (as_split, vae.encode):
        with pytest.raises(ValueError, match=r"mask.*x\.filled\(numpy\.nan\)"):
            use(x)
    assert as_split(x.filled(np.nan)).x.isnan().nonzero().tolist() == [[7, 1]]


def test_missing_values_of_pandas_are_gaps():
    frame = pd.DataFrame(
        {"a": pd.array([1, None, 3] * 5, dtype="Int64"), "b": [0.5, 1.5, None] * 5}
    )
    data = pv.load_data(frame)
    assert sum(num_gaps(s.x) for s in (data.train, data.val, data.test)) == 10
    assert "10 of 30 values (33.3%) are gaps" in data.describe()


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 1, np.nan], "binary"), ([0, 5, np.nan], "levels"), ([0.5, np.nan, -1], "real")],
)
def test_gaps_do_not_change_what_values_are_taken_for(values, kind):
    data = pv.load_data(np.array(values * 10, dtype=float).reshape(-1, 1))
    assert data.kind == kind


def test_infinity_is_no_gap():
    with pytest.raises(DataError, match="got infinity in row 1"):
        as_split(torch.tensor([[torch.nan], [torch.inf]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_are_those_of_what_was_seen(dtype):
    x = gappy().to(dtype)
    center, spread = units_of(x, (3,))
    for i in range(3):
        seen = x[:, i][~x[:, i].isnan()].double()
        torch.testing.assert_close(center[i], seen.mean())
        torch.testing.assert_close(spread[i], seen.std(correction=0))


def test_units_of_what_never_varies_or_was_never_seen():
    x = torch.tensor([[torch.nan, torch.nan], [3.0, torch.nan], [3.0, torch.nan]])
    center, spread = units_of(x, (2,))
    assert (center.tolist(), spread.tolist()) == ([3.0, 0.0], [3.0, 1.0])


@pytest.mark.parametrize("init", ["data", "mean", "random"])
@pytest.mark.parametrize("num", [10, 100])
def test_pseudo_inputs_have_no_gaps(init, num):
    x = gappy()
    u = pseudo_inputs(x, num, init)
    assert u.isfinite().all()
    low, high = filled(x).amin(0), filled(x).amax(0)
    assert ((u >= low) & (u <= high)).all()
    with pytest.raises(ValueError, match=r"without gaps; got NaN .* pseudo_inputs\(\) fills them"):
        pv.VampPrior(pv.NormalPosterior(pv.MLP(3, [4]), 2), x[:5])


def test_a_column_that_training_has_not_seen_is_mentioned():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] = np.nan
    notes = pv.load_data(x).describe()
    assert "1 of 3 elements (element 1) have no value in training" in notes
    assert "never vary" not in notes


def test_images_with_gaps_are_not_moved():
    x = torch.rand(30, 1, 8, 8)
    x[3, 0, 2, 2] = torch.nan
    data = pv.load_data(x[[3] * 30], image_shape=(1, 8, 8))
    with pytest.raises(DataError, match="without gaps to augment; got 18 values"):
        data.augmented(max_shift=1.0)


def test_gaps_beyond_single_precision():
    x = 1.6e9 + torch.arange(50, dtype=torch.float64).unsqueeze(-1)
    x[3] = torch.nan
    with pytest.raises(DataError, match="single precision can distinguish"):
        pv.load_data(x)
    ok = torch.randn(50, 1, dtype=torch.float64)
    ok[0] = torch.nan
    assert num_gaps(pv.load_data(ok).train.x) <= 1


# --- whole numbers that are large, or nearly whole ------------------------------------------------


def genes(most=1448):
    x = np.random.default_rng(0).negative_binomial(0.5, 0.02, (60, 5)).astype(float)
    x[3, 2] = most
    return x


def test_large_whole_numbers_with_many_zeros_are_counts_and_others_say_so():
    data = pv.load_data(genes())
    assert (data.kind, data.default_likelihood) == ("counts", "negative_binomial")
    assert "taken for counts because whole numbers up to 1448" in data.describe()
    money = pv.load_data(genes() + 300)
    assert money.kind == "real" and "say kind='counts'" in money.describe()
    assert pv.load_data(genes() + 300, kind="counts").kind == "counts"
    image = pv.load_data(genes().reshape(60, 1, 1, 5), image_shape=(1, 1, 5))
    assert image.kind == "real"


@pytest.mark.parametrize("wrong", [-1.0, 0.5])
def test_what_is_no_count_is_refused(wrong):
    x = genes()
    x[0, 0] = wrong
    with pytest.raises(DataError, match="whole numbers from 0 for kind='counts'; got"):
        pv.load_data(x, kind="counts")


def test_counts_with_rounding_noise_are_counts():
    x = genes()
    x[:, 4] = 0  # A gene that nobody expresses.
    x[5, 1] = np.nan
    noisy = torch.tensor(x, dtype=torch.float64) * 1.0000001
    data = pv.load_data(noisy)
    assert data.kind == "counts" and "off whole numbers were rounded" in data.describe()
    whole = torch.cat([s.x for s in (data.train, data.val, data.test)])
    assert torch.equal(whole.nansum(0), torch.tensor(x).float().nansum(0))
    assert pv.load_data(noisy, kind="real").kind == "real"


@pytest.mark.parametrize("x", [1e-5 * np.arange(18.0).reshape(9, 2), np.eye(9) * 1e-5 + 1])
def test_small_numbers_are_not_rounded_away(x):
    data = pv.load_data(x)
    assert data.kind == "real" and "rounded" not in data.describe()


@pytest.mark.parametrize("code", [-999, 9999, 99])
def test_a_number_that_may_mark_a_gap_is_said(tmp_path, code):
    numbers = np.random.default_rng(0)
    frame = pd.DataFrame({"a": numbers.normal(3, 1, 200), "age": numbers.integers(20, 120, 200)})
    frame.loc[::20, "a"] = code
    frame.to_csv(tmp_path / "rows.csv", index=False)
    notes = pv.load_data(tmp_path / "rows.csv").notes
    (said,) = (note for note in notes if "Taken for numbers" in note)
    assert f"{code} in column 'a', whose others lie from " in said and "age" not in said


def test_two_marks_of_gaps_in_a_column_are_both_said():
    x = np.random.default_rng(0).normal(size=(100, 2))
    x[:5, 1], x[5:10, 1] = -999, -9999
    (said,) = (note for note in pv.load_data(x).notes if "Taken for numbers" in note)
    assert "-999 in element 1" in said and "-9999 in element 1" in said


def test_bytes_are_searched_for_marks_of_gaps():
    x = np.random.default_rng(0).integers(0, 20, (100, 2), dtype=np.uint8)
    notes = pv.load_data(x, kind="counts").notes
    assert not any("Taken for numbers" in note for note in notes)
    x[:5, 1] = 99
    notes = pv.load_data(x, kind="counts").notes
    (said,) = (note for note in notes if "Taken for numbers" in note)
    assert "99 in element 1, whose others lie from 0 to 19" in said


def test_numbers_among_others_are_no_marks_of_gaps():
    x = np.random.default_rng(0).integers(-12, 12, (400, 3)) + 0.5 * (np.arange(400) % 2)[:, None]
    assert (x == 9).any() and (x == -9).any()
    assert not any("Taken for numbers" in note for note in pv.load_data(x).notes)
