"""Evaluation: exact where the answer is known, the same for any chunk, and leaving no trace."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vaes as pv
from pyro_vaes.evaluation.draws import draws, row_blocks
from pyro_vaes.evaluation.pareto import pareto_k, tail_size
from pyro_vaes.vae import evaluating


class LinearLikelihood(nn.Module):
    """x = W z + noise, so that log p(x) is known."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, z):
        return dist.Normal(z @ self.weight.mT, self.scale).to_event(1)


class LinearPosterior(nn.Module):
    """The exact posterior of :class:`LinearLikelihood`, or a wider one."""

    def __init__(self, likelihood, wider=1.0):
        super().__init__()
        w = likelihood.weight.detach()
        precision = torch.eye(w.shape[1], dtype=w.dtype) + w.mT @ w / likelihood.scale**2
        self.covariance = torch.linalg.inv(precision)
        self.map = self.covariance @ w.mT / likelihood.scale**2
        self.wider = wider

    def forward(self, x):
        return dist.MultivariateNormal(x @ self.map.mT, self.covariance * self.wider)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    likelihood = LinearLikelihood(torch.randn(5, 2, dtype=torch.float64), 0.7)
    prior = pv.NormalPrior(2).double()
    w = likelihood.weight.detach()
    marginal = dist.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64),
        w @ w.mT + 0.49 * torch.eye(5, dtype=torch.float64),
    )
    x = marginal.sample((200,))
    return prior, likelihood, x, marginal.log_prob(x)


def test_exact_posterior_gives_log_p_with_zero_variance(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood), likelihood)
    report = pv.evaluate(vae, x, num_samples=3, proposal="encoder")
    assert report.elbo == pytest.approx(exact.mean().item(), abs=1e-9)
    assert report.nll == pytest.approx(-exact.mean().item(), abs=1e-9)
    torch.testing.assert_close(
        pv.log_marginal(vae, x, 1, proposal="encoder"), exact, rtol=0, atol=1e-9
    )


def test_importance_weighting_closes_the_gap(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood, wider=1.5), likelihood)
    report = pv.evaluate(vae, x, num_samples=3000)
    assert report.nll == pytest.approx(-exact.mean().item(), abs=0.02)
    # Two dimensions, covariance 1.5 times too wide: the gap is KL(q || p) in closed form.
    gap = 0.5 * 2 * (1.5 - 1 - math.log(1.5))
    assert exact.mean().item() - report.elbo == pytest.approx(gap, abs=0.02)
    assert report.elbo == pytest.approx(report.reconstruction - report.kl, abs=1e-9)
    assert report.elbo < -report.nll


def test_standard_errors_are_those_of_the_data(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood), likelihood)
    report = pv.evaluate(vae, x, num_samples=2, proposal="encoder")
    assert report.nll_se == pytest.approx(exact.std().item() / math.sqrt(200), rel=1e-6)


def make_vae(posterior="normal", prior="standard", conditional=False):
    torch.manual_seed(0)
    labels = 3 if conditional else 0
    base = pv.NormalPosterior(pv.MLP(6 + labels, [8]), 2, num_labels=labels)
    flows = {"planar": pv.flows.planar(2, 2), "iaf": pv.flows.iaf(2, 2)}
    q = pv.FlowPosterior(base, flows[posterior]) if posterior in flows else base
    p = pv.MixturePrior(2, 3, num_labels=labels) if prior == "mixture" else pv.NormalPrior(2)
    likelihood = pv.CategoricalLikelihood(pv.MLP(2 + labels, [8]), (6,), 4, num_labels=labels)
    return pv.VAE(p, q, likelihood).double()


def digits_like(n=20, labels=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4, (n, 6), generator=generator).double()
    y = torch.randint(0, 3, (n,), generator=generator) if labels else None
    return pv.Split(x, y)


@pytest.mark.parametrize("posterior", ["normal", "planar", "iaf"])
@pytest.mark.parametrize("conditional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_chunks_change_nothing(posterior, conditional):
    vae = make_vae(posterior, "mixture", conditional)
    split = digits_like(80, labels=conditional)
    sizes = (None, 700, 8192)
    reports = [pv.evaluate(vae, split, num_samples=300, chunk_size=size) for size in sizes]
    for other in reports[1:]:
        torch.testing.assert_close(other.log_marginal, reports[0].log_marginal, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.pareto_k, reports[0].pareto_k, rtol=0, atol=1e-8)
        for key, value in other.to_dict().items():
            expected = reports[0].to_dict()[key]
            exact = isinstance(value, str) or value is None or key == "warnings"
            assert value == (expected if exact else pytest.approx(expected, abs=1e-10)), key


def test_more_samples_begin_with_the_same_draws():
    vae, split = make_vae(), digits_like(10)
    small = pv.log_marginal(vae, split, 1, proposal="encoder")
    torch.testing.assert_close(
        small, pv.log_marginal(vae, split, 1, proposal="encoder"), rtol=0, atol=0
    )
    assert not torch.equal(small, pv.log_marginal(vae, split, 1, seed=1, proposal="encoder"))


def test_exactly_s_decoder_evaluations_and_one_encoding_for_each_datum():
    vae, split = make_vae(), digits_like(100)
    counts = {"decoder": 0, "encoder": 0}

    def count(name):
        def hook(module, inputs, output):
            counts[name] += inputs[0].shape[:-1].numel()

        return hook

    vae.likelihood.network.register_forward_hook(count("decoder"))
    vae.posterior.network.register_forward_hook(count("encoder"))
    pv.evaluate(vae, split, num_samples=150, chunk_size=640, proposal="encoder")
    # One more shows whether the likelihood is a probability, which has bits.
    assert counts == {"decoder": 150 * 100 + 1, "encoder": 100}


def test_evaluation_leaves_no_trace():
    vae, split = make_vae(), digits_like(20)
    vae.train()
    pyro.param("stays", torch.ones(2))
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    state, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    pv.evaluate(vae, split, num_samples=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == store
    assert all(torch.equal(before[name], p) for name, p in vae.state_dict().items())
    assert vae.training and all(p.grad is None for p in vae.parameters())


def test_one_datum_and_one_sample():
    report = pv.evaluate(make_vae(), digits_like(1), num_samples=1, proposal="encoder")
    assert math.isfinite(report.nll)
    assert report.nll == pytest.approx(-report.elbo)
    assert report.nll_se is None
    assert report.to_dict()["nll_se_reason"] == "one datum has no standard error"
    assert report.mutual_information == pytest.approx(0.0, abs=1e-12)


def test_bits_per_dimension():
    report = pv.evaluate(make_vae(), digits_like(20), num_samples=5, proposal="encoder")
    for name in ("nll", "nll_se", "elbo", "elbo_se"):
        bits = getattr(report, name.replace("nll", "nll_bpd").replace("elbo", "elbo_bpd"))
        assert bits == pytest.approx(getattr(report, name) / (6 * math.log(2)))


@pytest.mark.parametrize("kinds", [("count", "binary"), ("count", "real"), ("hurdle", "category")])
def test_bits_per_dimension_are_of_probabilities_alone(kinds):
    columns = {str(i): (kind, 3) if kind == "category" else kind for i, kind in enumerate(kinds)}
    likelihood = pv.TableLikelihood(pv.MLP(2, [8]), columns)
    table = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(2, [8]), 2), likelihood)
    normal = pv.NormalLikelihood(pv.MLP(2, [8]), (2,))
    real = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(2, [8]), 2), normal)
    x = torch.randint(0, 2, (20, 2)).float()
    reports = [pv.evaluate(vae, x, num_samples=5, proposal="encoder") for vae in (table, real)]
    discrete = [kinds == ("count", "binary"), False]
    assert ["bits/dim" in str(report) for report in reports] == discrete
    assert [report.to_dict()["elbo_bpd"] is not None for report in reports] == discrete
    assert "depends on the units" in reports[1].to_dict()["nll_bpd_reason"]


# --- the curve of the bound, and its reliability --------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 7, 128, 300, 512])
def test_the_curve_averages_the_bound_over_disjoint_groups(num_samples):
    vae, split = make_vae(), digits_like(70)
    report = pv.evaluate(vae, split, num_samples=num_samples, proposal="encoder")
    blocks = []
    with evaluating(vae):
        for rows in row_blocks(vae, split.x, None):
            parts = draws(vae, rows, num_samples, 0, 64)
            blocks.append(torch.cat([part.log_weight for part in parts]))
    weights = torch.cat(blocks, dim=1)
    assert report.bound_samples[0] == 1
    assert report.bound_samples[-1] == num_samples
    for k, bound, error in zip(report.bound_samples, report.bound, report.bound_se, strict=True):
        groups = weights[: num_samples // k * k].unflatten(0, (-1, k))
        values = (groups.logsumexp(1) - math.log(k)).mean(0)
        assert bound == pytest.approx(values.mean().item(), abs=1e-10)
        assert error == pytest.approx((values.std() / math.sqrt(70)).item(), abs=1e-10)
    assert report.bound[0] == pytest.approx(report.elbo, abs=1e-10)
    assert report.bound[-1] == pytest.approx(-report.nll, abs=1e-10)
    size = (2 * weights.logsumexp(0) - (2 * weights).logsumexp(0)).exp()
    torch.testing.assert_close(report.effective_sample_size, size, rtol=1e-10, atol=0)
    if num_samples >= 21:
        largest = weights.topk(tail_size(num_samples) + 1, dim=0).values.mT
        torch.testing.assert_close(report.pareto_k, pareto_k(largest), rtol=0, atol=1e-8)
    else:
        assert report.pareto_k is None
        assert "at least 21" in report.to_dict()["num_unreliable_reason"]


def test_the_bound_rises_with_the_samples(linear):
    prior, likelihood, x, exact = linear
    vae = pv.VAE(prior, LinearPosterior(likelihood, wider=1.5), likelihood)
    bound = pv.evaluate(vae, x, num_samples=1024, proposal="encoder").bound
    assert bound == sorted(bound)
    assert bound[-1] == pytest.approx(exact.mean().item(), abs=0.02)


def test_a_posterior_that_is_too_narrow_is_warned_of(linear):
    prior, likelihood, x, _ = linear
    good = pv.evaluate(
        pv.VAE(prior, LinearPosterior(likelihood, 1.2), likelihood), x, proposal="encoder"
    )
    assert good.num_unreliable == 0
    assert good.warnings == []
    narrow = pv.evaluate(
        pv.VAE(prior, LinearPosterior(likelihood, 0.2), likelihood), x, proposal="encoder"
    )
    # The weights have a Pareto tail of k = 1 - 0.2: the density of normals of unlike width.
    assert narrow.pareto_k_median == pytest.approx(0.8, abs=0.15)
    limit = 1 - 1 / math.log10(1000)
    assert narrow.pareto_k_limit == pytest.approx(limit)
    assert narrow.num_unreliable == int((narrow.pareto_k > limit).sum()) > 100
    assert f"{narrow.num_unreliable} of 200 data" in narrow.warnings[0]
    assert 'another proposal ("auto")' in str(narrow)
    repaired = pv.evaluate(pv.VAE(prior, LinearPosterior(likelihood, 0.2), likelihood), x)
    assert repaired.num_unreliable == 0
    assert repaired.warnings == []
    assert repaired.encoder_num_unreliable == narrow.num_unreliable
    assert repaired.encoder_nll == narrow.nll


# --- the three forms of the ELBO ------------------------------------------------------------------


def test_equations_1_2_3_agree():
    vae, split = make_vae(), digits_like(100)
    report = pv.evaluate(vae, split, num_samples=2000, proposal="encoder")
    assert report.elbo_2 == pytest.approx(report.elbo, abs=0.02)
    assert report.elbo_3 == pytest.approx(report.elbo, abs=0.02)
    q, p = vae.q_z(split.x), vae.p_z()
    assert report.entropy == pytest.approx(q.entropy().mean().item(), abs=1e-10)
    kl = torch.distributions.kl_divergence(q, p).mean().item()
    assert report.elbo_3 == pytest.approx(report.reconstruction - kl, abs=1e-10)
    total = report.reconstruction + report.log_prior + report.entropy
    assert report.elbo_2 == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize(
    ("posterior", "prior", "missing"),
    [("normal", "mixture", {"elbo_3"}), ("iaf", "standard", {"elbo_2", "elbo_3"})],
)
def test_forms_without_a_closed_form_are_null(posterior, prior, missing):
    figures = pv.evaluate(
        make_vae(posterior, prior), digits_like(20), num_samples=30, proposal="encoder"
    ).to_dict()
    assert {name for name in ("elbo_2", "elbo_3") if figures[name] is None} == missing
    assert all("no closed form" in figures[f"{name}_reason"] for name in missing)
    assert figures["entropy"] is not None


# --- the result -----------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["normal", "planar", "iaf"])
@pytest.mark.parametrize("prior", ["standard", "mixture"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("num_data", "num_samples"), [(1, 1), (2, 1), (20, 2), (20, 25)])
def test_what_is_missing_is_null_with_a_reason(
    posterior, prior, conditional, num_data, num_samples
):
    split = digits_like(num_data, labels=conditional)
    report = pv.evaluate(
        make_vae(posterior, prior, conditional),
        split,
        num_samples=num_samples,
        train=split,
        proposal="encoder",
    )
    figures = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for name, value in figures.items():
        if not name.endswith("_reason"):
            assert (value is None) == (f"{name}_reason" in figures), name
            assert not isinstance(value, dict)
    assert "importance weighted" in str(report)


def test_a_row_for_pandas():
    report = pv.evaluate(make_vae("planar"), digits_like(20), num_samples=5, proposal="encoder")
    series = report.to_series()
    assert series["nll"] == report.nll
    assert series["mutual_information"] is None
    assert series.index.tolist() == list(report.to_dict())


def test_an_impossible_datum_is_null_not_infinite():
    class Certain(nn.Module):
        def forward(self, z):
            return dist.Uniform(z.new_zeros(*z.shape[:-1], 6), 1.0, validate_args=False).to_event(1)

    vae = make_vae()
    vae.likelihood = Certain()
    report = pv.evaluate(vae, digits_like(20), num_samples=30)
    assert report.nll == math.inf
    figures = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert figures["nll"] is None
    assert "not a finite number" in figures["nll_reason"]
    assert figures["num_unreliable"] == 20


def test_without_diagnostics_only_the_bounds():
    report = pv.evaluate(
        make_vae(), digits_like(20), num_samples=5, diagnostics=False, proposal="encoder"
    )
    full = pv.evaluate(make_vae(), digits_like(20), num_samples=5, proposal="encoder")
    figures, others = report.to_dict(), full.to_dict()
    assert {"nll", "elbo_bpd_se", "kl", "num_data"} <= set(figures)
    assert "active_units" not in figures
    assert all(figures[name] == others[name] for name in figures if name != "warnings")
    assert report.verdict is None
    assert len(str(report).splitlines()) == 6  # The last says that k-hat is unknown.


def test_prints_a_table():
    text = str(pv.evaluate(make_vae(), digits_like(20), num_samples=50))
    for part in ("importance weighted", "+-", "bits/dim", "mutual information", "k-hat", "units"):
        assert part in text


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="Expected num_samples"):
        pv.evaluate(make_vae(), digits_like(3), num_samples=0)


def level_vae(likelihood, num_labels=0):
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(3 + num_labels, [8]), 2, num_labels=num_labels)
    network = pv.MLP(2, [8])
    parts = {
        "bernoulli": lambda: pv.BernoulliLikelihood(network, (3,)),
        "beta_binomial": lambda: pv.BetaBinomialLikelihood(network, (3,), 5),
        "categorical": lambda: pv.CategoricalLikelihood(network, (3,), 5),
        "discretized_logistic": lambda: pv.DiscretizedLogisticLikelihood(network, (3,), 5),
        "ordinal": lambda: pv.OrdinalLikelihood(network, (3,), 5),
    }
    return pv.VAE(pv.NormalPrior(2), posterior, parts[likelihood]())


@pytest.mark.parametrize("value", [-1.0, 0.5, 5.0])
@pytest.mark.parametrize(
    "likelihood",
    ["bernoulli", "beta_binomial", "categorical", "discretized_logistic", "ordinal"],
)
def test_values_between_or_beyond_the_levels_are_refused(likelihood, value):
    vae, x = level_vae(likelihood), torch.ones(6, 3)
    assert math.isfinite(pv.evaluate(vae, x, num_samples=2, proposal="encoder").nll)
    x[4, 1] = value
    for judge in (pv.evaluate, pv.log_marginal):
        with pytest.raises(ValueError, match=r"the likelihood's levels.*in row 4"):
            judge(vae, x, num_samples=2)


def test_labels_that_are_missing_or_unknown_are_refused():
    vae, x = level_vae("ordinal", num_labels=3), torch.ones(4, 3)
    good = torch.tensor([0, 1, 2, 0])
    assert math.isfinite(pv.evaluate(vae, (x, good), num_samples=2).nll)
    for data, message in ((x, "got none"), ((x, good + 1), r"0\.\.2; got 3")):
        for judge in (pv.evaluate, pv.log_marginal):
            with pytest.raises(ValueError, match=message):
                judge(vae, data, num_samples=2)


# --- subclasses -----------------------------------------------------------------------------------


class Scaled(pv.VAE):
    """A subclass whose model weighs the data by a half."""

    def model(self, x, y=None):
        with pyro.poutine.scale(scale=0.5):
            return super().model(x, y)


class Watched(pv.VAE):
    """A subclass whose model and guide are those of its parts."""

    def model(self, x, y=None):
        return super().model(x, y)

    def guide(self, x, y=None):
        return super().guide(x, y)


class Renamed(pv.VAE):
    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            return pyro.sample("code", self.q_z(x, y))


@pytest.mark.parametrize("judge", [pv.evaluate, pv.score, pv.log_marginal])
@pytest.mark.parametrize(("kind", "method"), [(Scaled, "model"), (Renamed, "guide")])
def test_a_subclass_with_another_model_than_its_parts_is_refused(judge, kind, method):
    vae = make_vae()
    other = kind(vae.prior, vae.posterior, vae.likelihood)
    with pytest.raises(ValueError, match=f"Expected a {method} of {kind.__name__} that"):
        judge(other, digits_like(5), num_samples=5, proposal="encoder")


def test_a_subclass_with_the_model_of_its_parts_has_their_figures():
    vae, x = make_vae(), digits_like(5)
    same = Watched(vae.prior, vae.posterior, vae.likelihood)
    store = dict(pyro.get_param_store().items())
    figures = [pv.evaluate(v, x, num_samples=30, proposal="encoder").nll for v in (vae, same)]
    assert figures[0] == figures[1]
    assert dict(pyro.get_param_store().items()).keys() == store.keys()
