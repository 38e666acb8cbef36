"""What is built from options and data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.runs.build import build
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.resolve import check_combination, resolve


def built(data, **options):
    config, explicit = resolve(None, None, options)
    return build(check_combination(config, explicit)[0], data)[0]


def numbers_of_units(vae):
    """How many different values the units of likelihood and posterior have."""
    names = ("center", "spread", "half_range")
    return {len(b.unique()) for name, b in vae.named_buffers() if name.endswith(names)}


@pytest.mark.parametrize("likelihood", ["normal", "poisson", "negative_binomial"])
def test_pixels_have_one_unit(likelihood):
    # Images that are moved a little meet a pixel that is 0 in all others: in a unit of its own a 16
    # there would be a value of thousands.
    vae = built(pv.load_data("digits"), likelihood=likelihood)
    assert numbers_of_units(vae) == {1}


def test_columns_of_counts_have_units_of_their_own():
    rows = np.random.default_rng(0).poisson([1.0, 400.0], (60, 2))
    vae = built(pv.load_data(rows, kind="counts"), likelihood="poisson")
    assert numbers_of_units(vae) == {2}
    assert torch.isfinite(pv.log_marginal(vae, rows, num_samples=5, proposal="encoder")).all()


def test_noise_of_signals_has_the_order_that_is_asked_for():
    rows = np.random.default_rng(0).normal(size=(60, 3, 8)).astype("float32")
    data = pv.load_data(rows)
    options = {"likelihood": "autoregressive_normal", "noise_order": 3}
    likelihood = built(data, **options).likelihood
    assert likelihood.order == 3 and likelihood.partial.shape == (3,)
    with pytest.raises(ConfigError, match=r"'--noise-order': expected less than 8, .*; got 8"):
        built(data, **{**options, "noise_order": 8})


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        ("levels", {"noise_order": 3}, "--noise-order has no effect with --likelihood ordinal."),
        ("counts", {"sharpness": True}, "--sharpness has no effect with --likelihood negative_"),
        ("levels", {"sharpness": True}, None),
    ],
)
def test_auto_says_what_has_no_effect_once_the_data_have_decided(kind, flags, said):
    data = pv.load_data(np.arange(120).reshape(-1, 3) % 7, kind=kind)
    config, remarks = check_combination(*resolve(None, None, flags))
    assert not remarks
    remarks = [line for line in build(config, data)[1] if "no effect" in line]
    assert len(remarks) == (said is not None) and all(said in line for line in remarks)


@pytest.mark.parametrize(
    ("prior", "asked", "said"),
    [("vamp", False, True), ("vamp", True, False), ("standard", False, False)],
)
def test_a_prior_of_each_label_that_was_not_asked_for_is_said(prior, asked, said):
    flags = {"prior": prior, "conditional": True, "conditional_prior": asked, "hidden_dims": "4"}
    config, _ = check_combination(*resolve(None, None, flags))
    vae, remarks = build(config, pv.load_data("digits"))
    assert vae.prior_is_conditional == (asked or said)
    assert any("The prior is p(z given label)" in line for line in remarks) == said


def test_the_last_column_may_be_an_exposure():
    numbers = np.random.default_rng(0)
    depth = numbers.integers(1, 50, (90, 1))
    rows = np.concatenate([numbers.poisson(depth * [[0.1, 3.0, 1.0]]), depth], 1)
    data = pv.load_data(rows, kind="counts")
    likelihood = built(data, exposure=True).likelihood
    assert likelihood.counted == (3,) and float(likelihood.typical) == data.train.x[:, 3].median()
    torch.testing.assert_close(
        likelihood.log_mean.exp(), torch.tensor([0.1, 3.0, 1.0]), atol=0.2, rtol=0.1
    )
    found = pv.evaluate(built(data, exposure=True), data.test, num_samples=30)
    assert found.nll_bpd is None or math.isnan(found.nll_bpd)
    assert "exposure" in found.reasons["nll_bpd"]
    rows[4, 3] = 0
    with pytest.raises(ConfigError, match=r"'--exposure': expected numbers above 0 .*; got 0\."):
        built(pv.load_data(rows, kind="counts"), exposure=True)
    with pytest.raises(ConfigError, match=r"'--exposure': .* counts .*; got ordinal"):
        built(pv.load_data("digits"), exposure=True)
    with pytest.raises(ConfigError, match="'--exposure': expected rows of counts"):
        built(pv.load_data(rows[:, :1], kind="counts"), exposure=True)
