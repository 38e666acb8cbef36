"""Conditions that are a matrix: what parts make of them, and a VAE of every kind of them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from registry import LIKELIHOODS, POSTERIORS, PRIORS, cases, scramble
from torch.nn.functional import one_hot

import pyro_vaes as pv

pytestmark = pytest.mark.usefixtures("float64")

TABLES = {"prior": PRIORS, "posterior": POSTERIORS, "likelihood": LIKELIHOODS}
# A mixture over pseudo-inputs has those of one label.
LABELS_ALONE = [name for name in PRIORS if "vamp" in name]
ROWS = [
    (kind, *row.values)
    for kind, table in TABLES.items()
    for row in cases(table, labels=(3,), own=True)
    if row.values[0] not in LABELS_ALONE
]
rows_of_parts = pytest.mark.parametrize(("kind", "name", "num_labels"), ROWS)


def called(kind, name, part, y, n=6):
    """A part's distribution of n data, and a draw of it."""
    torch.manual_seed(1)
    inputs = {"prior": (), "posterior": (torch.randn(n, 4),), "likelihood": (torch.randn(n, 3),)}
    d = part(*inputs[kind], y)
    torch.manual_seed(2)
    return d, (d.rsample if d.has_rsample else d.sample)()


@rows_of_parts
def test_a_label_is_its_one_hot_row(kind, name, num_labels):
    part, y = TABLES[kind][name].make(3, (4,), num_labels), torch.arange(6) % num_labels
    of_labels, draw = called(kind, name, part, y)
    of_rows, same = called(kind, name, part, one_hot(y, num_labels).double())
    torch.testing.assert_close(same, draw)
    torch.testing.assert_close(of_rows.log_prob(same), of_labels.log_prob(draw))


@rows_of_parts
def test_rows_of_inputs_have_shapes_and_a_density_of_their_own(kind, name, num_labels):
    part, y = TABLES[kind][name].make(3, (4,), num_labels), torch.randn(6, num_labels)
    d, draw = called(kind, name, part, y)
    assert d.batch_shape == (6,) and draw.shape == (6, 4 if kind == "likelihood" else 3)
    log_p = d.log_prob(draw)
    assert log_p.shape == (6,) and log_p.isfinite().all()
    if not TABLES[kind][name].scores:
        return
    moved = y + torch.where(torch.arange(6) == 2, 1.0, 0.0)[:, None]
    other = called(kind, name, part, moved)[0].log_prob(draw)
    same = (other - log_p).abs() < 1e-9
    assert same.tolist() == [i != 2 for i in range(6)]


# --- a VAE of them --------------------------------------------------------------------------------


def conditions_of(*kinds, n=60):
    """A matrix with one column a kind, "real" or a number of categories."""
    columns = [50 + 9 * torch.randn(n) if k == 0 else torch.arange(n) % k for k in kinds]
    return torch.stack([column.double() for column in columns], 1)


def make(sizes, y, prior="mixture", x=None):
    conditions = pv.Conditions(sizes)
    conditions.initialize_from(y)
    parts = [t[n].make(2, (4,), conditions.width, scale=None) for t, n in (
        (PRIORS, prior), (POSTERIORS, "normal"), (LIKELIHOODS, "normal"))]  # fmt: skip
    if x is not None:
        parts[2].initialize_from(x)
    return pv.VAE(*parts, conditions)


@pytest.mark.parametrize(
    ("sizes", "prior"),
    [((0,), "mixture"), ((3,), "normal"), ((2, 0), "maf"), ((3, 2, 0, 0), "gtm")],
)
def test_fit_evaluate_use_and_reload(sizes, prior, tmp_path):
    y = conditions_of(*sizes)
    x = y[:, :1] / 50 + torch.randn(60, 4)
    vae = make(sizes, y, prior, x)
    history = pv.fit(vae, (x[:40], y[:40]), (x[40:], y[40:]), epochs=2, progress=False)
    assert math.isfinite(history.records[-1]["val_loss"])
    found = pv.evaluate(vae, (x, y), num_samples=8, proposal="encoder")
    assert math.isfinite(found.nll) and found.given_label
    assert "matrix of conditions" in found.reasons["mutual_information"]
    assert "matrix of conditions" in found.reasons["active_units"]
    assert vae.sample(60, y).shape == x.shape == vae.reconstruct(x, y).shape
    assert vae.sample(7, y[0]).shape == (7, 4)
    assert vae.interpolate(x[:3], x[3:6], 5, y[:3]).shape == (3, 5, 4)
    assert vae.traverse(x[:3], [1], 5, y[:3]).shape == (3, 1, 5, 4)
    assert vae.decode(torch.randn(8, 3, 2), y[:3]).shape == (8, 3, 4)
    gappy = x.masked_fill(torch.rand(60, 4) < 0.2, torch.nan)
    assert pv.impute(vae, gappy, 20, y=y, proposal="encoder").x.isfinite().all()
    pv.save(vae, tmp_path)
    again = pv.load(tmp_path)
    scores = [pv.score(m, x, y, num_samples=20, proposal="encoder").log_p for m in (vae, again)]
    assert torch.equal(*scores)


def test_a_prior_is_refitted_under_the_same_conditions():
    y = conditions_of(2, 0)
    x, vae = torch.randn(60, 4), make((2, 0), y)
    prior = PRIORS["maf"].make(2, (4,), vae.conditions.width)
    before = prior(vae.conditions(y)).log_prob(torch.zeros(60, 2))
    better, _ = pv.refit_prior(vae, prior, (x, y), epochs=1, progress=False)
    assert better.conditions is vae.conditions
    assert not torch.equal(better.p_z(y).log_prob(torch.zeros(60, 2)), before)


def test_units_of_a_condition_do_not_matter():
    y, found = conditions_of(0, 2), []
    x = y[:, :1] / 20 + torch.randn(60, 4)
    for given in (y, y * torch.tensor([1e-3, 1.0]) + torch.tensor([-7.0, 0.0])):
        torch.manual_seed(0)
        vae = make((0, 2), given, x=x)
        pv.fit(vae, (x, given), epochs=2, progress=False)
        found.append(pv.log_marginal(vae, x, 20, y=given, proposal="encoder"))
    torch.testing.assert_close(*found, atol=1e-8, rtol=0)


@pytest.mark.slow
def test_what_depends_on_conditions_is_learned():
    """A mean that moves with a real value, in opposite ways in two groups: a line in each."""
    torch.manual_seed(0)
    y = torch.stack([torch.arange(400) % 2, torch.randn(400)], 1).double()
    slope = 3 * (1 - 2 * y[:, 0])
    x = (slope * y[:, 1])[:, None] + 0.3 * torch.randn(400, 1)
    conditions = pv.Conditions([2, 0])
    conditions.initialize_from(y)
    n = conditions.width
    likelihood = pv.NormalLikelihood(pv.MLP(1 + n, [32]), (1,), n)
    likelihood.initialize_from(x)
    posterior = pv.NormalPosterior(pv.MLP(1 + n, [16]), 1, (1,), n)
    vae = pv.VAE(pv.NormalPrior(1), posterior, likelihood, conditions)
    pv.fit(vae, (x, y), epochs=150, learning_rate=1e-2, progress=False)
    truth = dist.Normal(slope * y[:, 1], 0.3).log_prob(x[:, 0]).mean()
    assert truth - pv.log_marginal(vae, x, 100, y=y).mean() < 0.25
    assert vae.sample(500, [0, 1.5], mean=True).mean() > 3 > -3 > vae.sample(500, [1, 1.5]).mean()


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_fast_svi_takes_the_steps_of_svi(mode):
    y = conditions_of(3, 0, n=12)
    x, losses = torch.randn(12, 4), []
    for fast in (False, True):
        torch.manual_seed(0)
        vae = make((3, 0), y)
        pyro.set_rng_seed(1)
        if fast:
            svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), pv.ELBO(), mode=mode)
        else:
            svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
        losses.append([svi.step(x, y) for _ in range(4)])
        assert not fast or svi.mode == mode
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_refusals():
    y = conditions_of(3, 0)
    x, vae = torch.randn(60, 4), scramble(make((3, 0), y))
    for given, said in (
        (None, r"conditions y of shape \(60, 2\).*got none"),
        (y[:, :1], r"shape \(60, 2\), or \(2,\) for all data; got \(60, 1\)"),
        (y + torch.tensor([3.0, 0.0]), r"categories 0\.\.2 in column 0 .*; got [345]"),
        (y + torch.tensor([0.5, 0.0]), r"categories 0\.\.2 in column 0"),
        (y * torch.nan, "NaN or infinity"),
        ("ab", "conditions that are numbers; got 'ab'"),
    ):
        with pytest.raises(ValueError, match=said):
            pv.log_marginal(vae, x, 3, y=given)
    with pytest.raises(ValueError, match=r"2 or more categories, or 0 .*got \[1\]"):
        pv.Conditions([1])
    n = vae.conditions.width
    with pytest.raises(ValueError, match=f"num_labels={n}, the width of the conditions; got 3"):
        pv.VAE(pv.NormalPrior(2, 3), vae.posterior, vae.likelihood, vae.conditions)
    posterior = pv.NormalPosterior(pv.MLP(4 + n, [8]), 2, num_labels=n)
    vamp = pv.VampPrior(posterior, x[:5], labels=torch.arange(5) % n)
    with pytest.raises(ValueError, match="takes a matrix of conditions; got VampPrior"):
        pv.VAE(vamp, posterior, vae.likelihood, vae.conditions)
    plain = pv.NormalLikelihood(pv.MLP(2, [8]), (4,))
    parts = pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(4, [8]), 2), plain
    with pytest.raises(ValueError, match=f"a part with num_labels={n} .*got none"):
        pv.VAE(*parts, vae.conditions)


def test_labels_stay_labels_and_a_matrix_without_conditions_is_refused():
    x, y = torch.randn(20, 4), one_hot(torch.arange(20) % 3, 3)
    n = 3
    vae = pv.VAE(
        pv.NormalPrior(2, n),
        pv.NormalPosterior(pv.MLP(4 + n, [8]), 2, num_labels=n),
        pv.NormalLikelihood(pv.MLP(2 + n, [8]), (4,), n),
    )
    with pytest.raises(ValueError, match=r"shape \(20,\), .*got shape \(20, 3\).*not one-hot"):
        pv.fit(vae, (x, y), epochs=1, progress=False)
