"""Diagnostics: exact where the answer is known in closed form or by quadrature."""

import json
import math

import pyro.distributions as dist
import pytest
import torch
from registry import POSTERIORS, PRIORS, data, make_vae
from torch import nn

import pyro_vaes as pv
from pyro_vaes.core.choices import KERNELS
from pyro_vaes.evaluation import aggregate
from pyro_vaes.evaluation import diagnostics as diag
from pyro_vaes.exact.quadrature import Quadrature
from pyro_vaes.inference.divergences import mmd2

pytestmark = pytest.mark.usefixtures("float64")


class Table(nn.Module):
    """A posterior by hand: row ``i`` of the tables for the datum whose first number is i."""

    def __init__(self, loc, scale, wrap=lambda normal: normal):
        super().__init__()
        self.loc, self.scale, self.wrap = nn.Parameter(loc), scale, wrap

    def forward(self, x):
        i = x[:, 0].long()
        return self.wrap(dist.Normal(self.loc[i], self.scale[i]).to_event(1))


class Line(nn.Module):
    """A likelihood x = W z + noise."""

    def __init__(self, weight, scale=0.5):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, z):
        return dist.Normal(z @ self.weight.mT, self.scale).to_event(1)


class Exact(nn.Module):
    """The exact posterior of :class:`Line` under a standard normal prior."""

    def __init__(self, line):
        super().__init__()
        w = line.weight.detach()
        precision = torch.eye(w.shape[1]) + w.mT @ w / line.scale**2
        self.covariance = torch.linalg.inv(precision)
        self.map = self.covariance @ w.mT / line.scale**2

    def forward(self, x):
        return dist.MultivariateNormal(x @ self.map.mT, self.covariance)


def as_multivariate(normal):
    """The same distribution under a name that is not known to be diagonal."""
    return dist.MultivariateNormal(
        normal.base_dist.loc, scale_tril=torch.diag_embed(normal.base_dist.scale)
    )


def as_flow(normal):
    """The same distribution, its mean and closed forms hidden."""
    shift = dist.transforms.AffineTransform(0.0, 1.0, event_dim=1)
    return dist.TransformedDistribution(normal, [shift])


def unscored(normal):
    """A distribution that scores its own draws only, as planar flows do."""
    return dist.TransformedDistribution(normal, [dist.transforms.Planar(2)])


def table_vae(loc, scale=None, wrap=lambda normal: normal, prior=None, weight=None):
    scale = torch.full_like(loc, 0.5) if scale is None else scale
    dim = loc.shape[-1]
    line = Line(torch.ones(1, dim) if weight is None else weight)
    return pv.VAE(prior or pv.NormalPrior(dim).double(), Table(loc, scale, wrap), line)


def rows(num_kinds, repeats):
    """Data that name the rows of a :class:`Table`, each several times."""
    return torch.arange(num_kinds).repeat(repeats).unsqueeze(-1).double()


def evaluate(vae, x, num_samples=128, **options):
    """Diagnostics are of the encoder, whatever estimates log p(x)."""
    return pv.evaluate(vae, x, num_samples=num_samples, proposal="encoder", **options)


# --- the split of the KL --------------------------------------------------------------------------


def quadrature_1d(loc, scale):
    """I(x; z) and KL(q(z) || N(0, 1)) of a mixture of normals on the line."""
    z = torch.linspace(-12, 12, 40_001)
    parts = dist.Normal(loc[:, None], scale[:, None]).log_prob(z)
    joint = parts.logsumexp(0) - math.log(len(loc))
    step = z[1] - z[0]
    information = (parts.exp() * (parts - joint)).sum(-1).mean() * step
    marginal = (joint.exp() * (joint - dist.Normal(0.0, 1.0).log_prob(z))).sum() * step
    return information.item(), marginal.item()


def test_split_of_the_kl_against_quadrature():
    loc, scale = torch.tensor([-1.0, -0.2, 0.1, 0.9, 2.0]), torch.tensor([0.3, 0.6, 0.5, 0.8, 0.4])
    vae = table_vae(loc[:, None], scale[:, None])
    # Copies of a datum leave the mixture as it is, and average its draws.
    report = evaluate(vae, rows(5, 200))
    information, marginal = quadrature_1d(loc, scale)
    assert report.mutual_information == pytest.approx(information, abs=0.01)
    assert report.marginal_kl == pytest.approx(marginal, abs=0.01)
    assert report.dimension_kl == pytest.approx(marginal, abs=0.01)
    assert report.total_correlation == pytest.approx(0.0, abs=1e-10)
    assert report.kl == pytest.approx(report.mutual_information + report.marginal_kl, abs=1e-10)


def test_mutual_information_of_the_linear_gaussian_model():
    line = Line(torch.tensor([[1.0], [0.5]]))
    vae = pv.VAE(pv.NormalPrior(1).double(), Exact(line), line)
    x = vae.sample(1000)
    report = evaluate(vae, x, 50)
    # The aggregated posterior is the prior: the information is the channel's, 1/2 log det.
    information = 0.5 * math.log(1 + 1.25 / 0.25)
    assert abs(report.mutual_information - information) < 4 * report.mutual_information_se + 0.01
    assert report.marginal_kl == pytest.approx(0.0, abs=0.02)
    assert report.mutual_information_se == pytest.approx(
        # Information density of the posterior at x: its spread over x in closed form.
        0.5 * (5 / 6) * math.sqrt(2) / math.sqrt(1000),
        rel=0.15,
    )


def test_far_apart_posteriors_tell_which_datum_it_was():
    vae = table_vae(torch.arange(8.0)[:, None] * 100)
    report = evaluate(vae, rows(8, 1), 10)
    assert report.mutual_information == pytest.approx(math.log(8), abs=1e-10)
    assert report.mutual_information_max == pytest.approx(math.log(8))


def test_total_correlation_and_dimension_wise_kl():
    # The aggregated posterior is near to a normal with correlation rho.
    rho, within = 0.8, 0.3
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]]) - within**2 * torch.eye(2)
    loc = dist.MultivariateNormal(torch.zeros(2), covariance).sample((1500,)) + torch.tensor([1, 0])
    report = evaluate(table_vae(loc, torch.full_like(loc, within)), rows(1500, 1))
    expected = -0.5 * math.log(1 - rho**2)
    assert abs(report.total_correlation - expected) < 4 * report.total_correlation_se + 0.02
    # One mean is moved by one: KL(N(1, 1) || N(0, 1)) = 1/2.
    assert report.dimension_kls == pytest.approx([0.5, 0.0], abs=0.1)
    assert report.dimension_kl == pytest.approx(sum(report.dimension_kls), abs=1e-10)
    # Under a prior without correlations all of it adds up.
    total = report.mutual_information + report.total_correlation + report.dimension_kl
    assert total == pytest.approx(report.kl, abs=0.05)


def test_a_prior_that_mixes_normals_has_marginals():
    prior = pv.MixturePrior(1, 3).double()
    loc = torch.tensor([[-1.0], [0.0], [2.0]])
    prior.loc.data, prior.log_scale.data = loc, torch.full((3, 1), math.log(0.5))
    # The optimal prior is the aggregated posterior: nothing remains but the information.
    report = evaluate(table_vae(loc, prior=prior), rows(3, 100))
    assert report.dimension_kl == pytest.approx(0.0, abs=1e-10)
    assert report.marginal_kl == pytest.approx(0.0, abs=0.02)
    assert abs(report.mmd2) < 4 * report.mmd2_se


@pytest.mark.parametrize("wrap", [as_multivariate, as_flow])
def test_any_posterior_that_scores_gives_the_same_split(wrap):
    loc, scale = torch.randn(70, 2), torch.rand(70, 2) + 0.2
    known = evaluate(table_vae(loc, scale), rows(70, 1), 4)
    other = evaluate(table_vae(loc, scale, wrap), rows(70, 1), 4)
    assert other.mutual_information == pytest.approx(known.mutual_information, abs=1e-9)
    assert other.mutual_information_se == pytest.approx(known.mutual_information_se, abs=1e-9)
    assert other.marginal_kl == pytest.approx(known.marginal_kl, abs=1e-9)
    if wrap is as_flow:
        assert other.total_correlation is None
        assert "normals only" in other.to_dict()["total_correlation_reason"]
    else:
        assert other.total_correlation == pytest.approx(known.total_correlation, abs=1e-9)
        assert other.dimension_kls == pytest.approx(known.dimension_kls, abs=1e-9)


def test_normals_that_correlate_have_marginals():
    # Of the sum of two normals: the variance of each coordinate, whatever the correlation.
    factor = torch.tensor([[0.6, 0.0], [0.8, 0.5]])
    loc = torch.randn(40, 2)

    def correlated(normal):
        return dist.MultivariateNormal(normal.mean, scale_tril=factor)

    z = torch.randn(30, 2)
    aggregated = aggregate.AggregatedPosterior([correlated(dist.Normal(loc, 1.0))], None, 10**6)
    scale = torch.tensor([0.6, math.sqrt(0.8**2 + 0.5**2)])
    exact = dist.Normal(loc, scale).log_prob(z[:, None]).logsumexp(1) - math.log(40)
    torch.testing.assert_close(aggregated.marginals(z), exact)
    # A VampPrior whose pseudo-inputs are the data: the aggregated posterior itself.
    vae = table_vae(loc, wrap=correlated)
    prior = pv.VampPrior(vae.posterior, torch.arange(40.0)[:, None])
    report = evaluate(pv.VAE(prior, vae.posterior, vae.likelihood), rows(40, 5), 50)
    assert report.dimension_kl == pytest.approx(0.0, abs=1e-10)
    assert report.marginal_kl == pytest.approx(0.0, abs=0.02)
    assert report.total_correlation > 0.05


def test_a_posterior_that_cannot_score_says_so():
    for scores in (None, False):
        vae = table_vae(torch.randn(10, 2), wrap=unscored)
        if scores is False:
            vae.posterior.scores = False
        figures = evaluate(vae, rows(10, 1), 30).to_dict()
        assert figures["mutual_information"] is None
        assert figures["marginal_kl_se"] is None
        assert "own draws" in figures["mutual_information_reason"]
        assert figures["mmd2"] is not None
        assert figures["active_units"] == 2


@pytest.mark.parametrize("wrap", [lambda normal: normal, as_multivariate])
def test_a_part_of_many_data_stands_for_the_outer_mean_only(wrap, monkeypatch):
    loc = torch.randn(300, 1)
    whole = evaluate(table_vae(loc, wrap=wrap), rows(300, 1), 64)
    monkeypatch.setattr(aggregate, "_NORMAL_BUDGET", 1.0)
    monkeypatch.setattr(aggregate, "_PAIR_BUDGET", 1.0)
    monkeypatch.setattr(aggregate, "_MIN_DRAWS", 150)
    part = evaluate(table_vae(loc, wrap=wrap), rows(300, 1), 64)
    assert part.mutual_information != whole.mutual_information
    gap = abs(part.mutual_information - whole.mutual_information)
    assert gap < 4 * part.mutual_information_se
    assert part.kl == pytest.approx(part.mutual_information + part.marginal_kl, abs=1e-10)


def test_the_aggregated_posterior_is_chunked_without_a_trace():
    loc, scale = torch.randn(90, 3), torch.rand(90, 3) + 0.1
    z, labels = torch.randn(50, 3), torch.arange(90) % 4
    y = torch.arange(50) % 4
    normals = [dist.Normal(loc[i : i + 32], scale[i : i + 32]).to_event(1) for i in (0, 32, 64)]
    for posteriors in (normals, [as_multivariate(normal) for normal in normals]):
        for given in (None, labels):
            first, other = (aggregate.AggregatedPosterior(posteriors, given, c) for c in (1, 10**6))
            target = None if given is None else y
            torch.testing.assert_close(first.log_prob(z, target), other.log_prob(z, target))
            plain = dist.Normal(loc, scale).log_prob(z[:, None])
            if given is not None:
                same = (y[:, None] == labels)[..., None]
                plain = plain.masked_fill(~same, -math.inf)
            joint = plain.sum(-1).logsumexp(-1) - plain[..., 0].isfinite().sum(-1).log()
            torch.testing.assert_close(other.log_prob(z, target), joint)
            count = plain[..., 0].isfinite().sum(-1, keepdim=True)
            marginals = plain.logsumexp(1) - count.log()
            torch.testing.assert_close(first.marginals(z, target), marginals)
            torch.testing.assert_close(other.marginals(z, target), marginals)


@pytest.mark.parametrize("num_data", [400, pytest.param(1500, marks=pytest.mark.slow)])
def test_the_error_of_the_split_is_honest(num_data):
    # 400 data all serve, of 1500 a part: either way five errors out of a hundred exceed two.
    line, seeds = Line(torch.tensor([[1.0]])), range(25)
    vae = pv.VAE(pv.NormalPrior(1).double(), Exact(line), line)
    reports = [evaluate(vae, vae.sample(num_data), 8, seed=seed) for seed in seeds]
    for name in ("mutual_information", "kl"):
        values = torch.tensor([getattr(report, name) for report in reports])
        errors = torch.tensor([getattr(report, f"{name}_se") for report in reports])
        assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.5)
        assert abs(values.mean().item() - 0.5 * math.log(5)) < 4 * errors.mean().item() / 5
    assert all(abs(report.marginal_kl) < 0.03 for report in reports)


def test_the_slope_is_that_of_the_noise():
    noise = torch.randn(500)
    values = 3.0 + 0.1 * torch.randn(500) - 2 * noise
    assert diag.slope(values, noise) == pytest.approx(-2.0, abs=0.02)
    assert diag.slope(values, noise * 0) == 0.0
    assert diag.slope(values, noise * math.nan) == 0.0


@pytest.mark.parametrize("posterior", ["normal", "iaf", "own"])
@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_split_of_any_model_on_the_line_against_quadrature(prior, posterior):
    vae = make_vae(prior, posterior, latent_dim=1, scale=1.0)
    x = data("categorical", 5, 4)
    exact = Quadrature(vae, tolerance=1e-4)
    report = evaluate(vae, x.repeat(60, 1), 1000)
    for name in ("mutual_information", "marginal_kl"):
        value = getattr(exact, name)(x).item()
        assert getattr(report, name) == pytest.approx(value, abs=0.03, rel=0.01), name


# --- active units ---------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [0, 1, 3, 5])
def test_a_planted_model_with_d_live_dimensions_has_d_active_units(live):
    weight = torch.zeros(8, 5)
    weight[:, :live] = torch.linalg.qr(torch.randn(8, 5)).Q[:, :live]
    line = Line(weight)
    vae = pv.VAE(pv.NormalPrior(5).double(), Exact(line), line)
    report = evaluate(vae, vae.sample(300), 20)
    assert report.active_units == live
    assert report.active == list(range(live))
    # The posterior means of a live unit: 1 - 1 / (1 + 1 / 0.25) of a variance of one.
    assert report.unit_variances[:live] == pytest.approx([0.8] * live, rel=0.4)
    said = {0: "Posterior collapse", 5: "No posterior collapse"}.get(live, "Partial")
    assert report.verdict.startswith(said)
    assert f"{live} of 5" in str(report)


def test_a_decoder_that_ignores_z_is_told_of():
    line = Line(torch.zeros(3, 2))
    dead = evaluate(pv.VAE(pv.NormalPrior(2).double(), Exact(line), line), torch.randn(50, 3), 10)
    assert dead.active_units == 0
    assert "the decoder ignores z" in dead.verdict
    assert dead.mutual_information == pytest.approx(0.0, abs=1e-10)
    # Also where the encoder still writes what nobody reads.
    written = evaluate(table_vae(torch.randn(50, 2), weight=torch.zeros(1, 2)), rows(50, 1), 10)
    assert written.active_units == 2
    assert "the decoder ignores z" in written.verdict


def test_a_decoder_that_reads_z_does_not_ignore_that_of_a_narrow_encoder():
    """Nor can one draw tell."""
    for scale, num_samples in ((1e-9, 30), (0.5, 1)):
        loc = torch.randn(50, 2)
        vae = table_vae(loc, torch.full_like(loc, scale))
        report = evaluate(vae, rows(50, 2), num_samples)
        assert "ignores z" not in report.verdict
        assert report.active_units == 2


def test_noise_of_an_estimated_mean_is_no_activity():
    loc = torch.zeros(400, 2)
    loc[:, 0] = torch.randn(400)
    known = evaluate(table_vae(loc), rows(400, 1), 2)
    hidden = evaluate(table_vae(loc, wrap=as_flow), rows(400, 1), 2)
    # Uncorrected, the means of two draws of scale 0.5 have a variance of 0.125.
    assert known.unit_variances[1] == 0.0
    assert hidden.unit_variances == pytest.approx(known.unit_variances, abs=0.1)
    many = evaluate(table_vae(loc, wrap=as_flow), rows(400, 1), 2000)
    assert many.active == [0]
    single = evaluate(table_vae(loc, wrap=as_flow), rows(400, 1), 1).to_dict()
    assert single["active_units"] is None
    assert "draws" in single["active_units_reason"]


# --- conditional models ---------------------------------------------------------------------------


class ByLabel(nn.Module):
    """A posterior with mean ``shift * y + x``; a part of its own that takes labels."""

    def __init__(self, shift, slope):
        super().__init__()
        self.shift, self.slope = shift, slope

    def forward(self, x, y):
        loc = self.shift * y.double().unsqueeze(-1) + self.slope * x[:, :1]
        return dist.Normal(loc, 0.5).to_event(1)


def test_a_conditional_model_is_judged_given_the_label():
    y = torch.arange(300) % 3
    x = torch.tensor([-1.0, 1.0])[torch.arange(300) // 3 % 2].unsqueeze(-1)
    line = Line(torch.ones(1, 1))
    labelled = evaluate(pv.VAE(pv.NormalPrior(1).double(), ByLabel(5.0, 0.0), line), (x, y))
    # The label alone moves z: no information on x.
    assert labelled.given_label
    assert "given the label" in str(labelled)
    assert labelled.active_units == 0
    assert labelled.mutual_information == pytest.approx(0.0, abs=1e-10)
    assert labelled.marginal_kl == pytest.approx(labelled.kl)
    assert labelled.mutual_information_max == pytest.approx(math.log(100))
    report = evaluate(pv.VAE(pv.NormalPrior(1).double(), ByLabel(5.0, 1.0), line), (x, y))
    information, _ = quadrature_1d(torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]))
    assert report.mutual_information == pytest.approx(information, abs=0.02)
    assert report.unit_variances == pytest.approx([1.0], rel=0.02)
    # Labels that no part takes change nothing.
    plain = table_vae(torch.randn(6, 1))
    with_labels = evaluate(plain, (rows(6, 10), torch.arange(60) % 2)).to_dict()
    assert with_labels == evaluate(plain, rows(6, 10)).to_dict()


def test_a_conditional_prior_that_matches_has_no_marginal_kl():
    prior = pv.NormalPrior(1, num_labels=2).double()
    prior.loc.data, prior.log_scale.data = torch.tensor([[0.0], [5.0]]), torch.full((2, 1), -0.6931)
    y = torch.arange(400) % 2
    vae = pv.VAE(prior, ByLabel(5.0, 0.0), Line(torch.ones(1, 1)))
    report = evaluate(vae, (torch.zeros(400, 1), y))
    for name in ("marginal_kl", "dimension_kl", "kl"):
        assert getattr(report, name) == pytest.approx(0.0, abs=1e-3)
    assert abs(report.mmd2) < 4 * report.mmd2_se


# --- the distance of the aggregated posterior to the prior ----------------------------------------


def test_the_terms_of_mmd_have_it_for_their_mean():
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64) + 1
    for kernel in KERNELS:
        terms = mmd2(x, y, kernel, paired=True, each=True)
        assert terms.shape == (7,)
        expected = mmd2(x, y, kernel, paired=True).item()
        assert terms.mean().item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="paired"):
        mmd2(x, y, each=True)


def terms_of(x, y):
    return mmd2(x, y, paired=True, each=True)


def test_mmd_is_unbiased_and_its_error_is_honest():
    same = torch.tensor([terms_of(*torch.randn(2, 50, 2)).mean() for _ in range(400)])
    assert abs(same.mean()) < 4 * same.std() / 20
    assert (same < 0).any()
    pairs = [terms_of(torch.randn(50, 2) + 1, torch.randn(50, 2)) for _ in range(400)]
    means = torch.stack([terms.mean() for terms in pairs])
    errors = torch.stack([2 * terms.std() / math.sqrt(50) for terms in pairs])
    assert errors.mean().item() == pytest.approx(means.std().item(), rel=0.2)


def test_mmd_sees_an_aggregated_posterior_off_the_prior():
    near = evaluate(table_vae(torch.randn(500, 2) * math.sqrt(0.75)), rows(500, 1), 5)
    far = evaluate(table_vae(torch.randn(500, 2) + 2), rows(500, 1), 5)
    assert abs(near.mmd2) < 4 * near.mmd2_se
    assert far.mmd2 > 20 * far.mmd2_se


# --- generated data -------------------------------------------------------------------------------


class Printer(nn.Module):
    """A likelihood that prints the label, or another one."""

    def __init__(self, shift=0):
        super().__init__()
        self.shift = shift

    def forward(self, z, y):
        mean = ((y + self.shift) % 3).double().unsqueeze(-1) * 10 + 0 * z[..., :1]
        return dist.Normal(mean, 1.0).to_event(1)


@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_a_classifier_of_real_data_judges_generated_ones(shift, accuracy):
    y = torch.arange(300) % 3
    train = pv.Split(y.double().unsqueeze(-1) * 10 + torch.randn(300, 1), y)
    vae = pv.VAE(pv.NormalPrior(1).double(), ByLabel(0.0, 0.0), Printer(shift))
    report = evaluate(vae, train, 5, train=train)
    assert report.class_accuracy == pytest.approx(accuracy, abs=0.02)
    assert report.class_accuracy_real > 0.98
    assert report.class_accuracy_se < 0.02


def test_why_there_is_no_class_accuracy():
    y = torch.arange(30) % 3
    x = torch.randn(30, 1)
    vae = pv.VAE(pv.NormalPrior(1).double(), ByLabel(0.0, 0.0), Printer())
    plain = table_vae(torch.randn(3, 1))
    for reason, figures in (
        ("pass train=", evaluate(vae, (x, y), 2)),
        ("these have none", evaluate(vae, (x, y), 2, train=x)),
        ("two labels", evaluate(vae, (x, y), 2, train=(x, y * 0))),
        ("not conditional", evaluate(plain, (rows(3, 10), y), 2, train=(x, y))),
    ):
        assert reason in figures.to_dict()["class_accuracy_reason"]


# --- every part -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "posterior", "num_labels"),
    [
        *[(name, "normal", 3) for name in PRIORS],
        *[("normal", name, 3) for name in POSTERIORS],
        *[pytest.param(name, "normal", 0, marks=pytest.mark.slow) for name in PRIORS],
        *[pytest.param("normal", name, 0, marks=pytest.mark.slow) for name in POSTERIORS],
    ],
)
def test_every_part_is_diagnosed(prior, posterior, num_labels):
    torch.manual_seed(0)
    vae = make_vae(prior, posterior, num_labels=num_labels)
    x = data("categorical", 30, 4)
    y = torch.arange(30) % 3 if num_labels else None
    report = pv.evaluate(vae, pv.Split(x, y), num_samples=40, train=pv.Split(x, y))
    figures = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    scores = POSTERIORS[posterior].scores
    assert (figures["mutual_information"] is not None) == scores
    if scores:
        total = figures["mutual_information"] + figures["marginal_kl"]
        assert total == pytest.approx(figures["kl"], abs=1e-9)
        assert -0.2 < figures["mutual_information"] < math.log(30) + 0.2
    assert (figures["class_accuracy"] is not None) == bool(num_labels)
    assert figures["num_unreliable"] is not None
    assert len(figures["unit_variances"]) == 2
    assert figures["verdict"] in str(report)


def test_a_mixture_prior_is_made_once_however_small_the_chunks(monkeypatch):
    vae = make_vae("vamp")
    made: list[int] = []
    forward = vae.prior.forward
    monkeypatch.setattr(vae.prior, "forward", lambda: made.append(1) or forward())
    x = data("categorical", 70, 4)
    counts = []
    for chunk_size in (1, 1000):
        made.clear()
        pv.evaluate(vae, x, num_samples=5, chunk_size=chunk_size, proposal="encoder")
        counts.append(len(made))
    assert counts[0] == counts[1] <= 5
