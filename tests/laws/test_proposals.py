"""Another proposal, the same model: estimates of log p(x) agree with the truth, or are marked."""

import math

import pyro.distributions as dist
import pytest
import torch
from registry import LIKELIHOODS, POSTERIORS, PRIORS, cases, data, make_vae, scramble
from torch import nn

import pyro_vaes as pv
from pyro_vaes.evaluation.proposals import fitted, refined
from pyro_vaes.evaluation.proposals.annealed import Chains
from pyro_vaes.evaluation.proposals.fitted import PriorSource, scores_cheaply
from pyro_vaes.evaluation.proposals.joint import Cost, Joint, frozen
from pyro_vaes.evaluation.proposals.refined import Full, LowRank, Stage, Student, axes
from pyro_vaes.exact.linear_gaussian import LinearGaussian, LinearPosterior, diagonal_posterior
from pyro_vaes.exact.quadrature import Quadrature
from pyro_vaes.vae import evaluating

pytestmark = pytest.mark.usefixtures("float64")


def linear(latent_dim=3, data_dim=6):
    weight = torch.randn(data_dim, latent_dim)
    return LinearGaussian(weight, torch.randn(data_dim), 0.5)


def encoders(model):
    """Good ones, and some made useless on purpose."""
    exact, near = model.vae.posterior, model.mean_field()
    to_mean, tril = exact.weight, model.true_posterior(torch.zeros(len(exact.weight.T))).scale_tril
    dim, size = to_mean.shape
    return {
        "exact": exact,
        "near": near,
        "narrow": LinearPosterior(to_mean, exact.bias, tril / 10),
        "shifted": LinearPosterior(to_mean, exact.bias + 2, tril),
        "diagonal": diagonal_posterior(to_mean, exact.bias + 1, tril.diagonal() / 10),
        "random": scramble(pv.NormalPosterior(pv.MLP(size, [8]), dim)),
    }


def within(estimates, truth, errors=3.0, bias=0.01):
    """Whether the mean difference is nought within some standard errors of it."""
    difference = estimates - truth
    error = difference.std() / math.sqrt(len(difference))
    assert abs(difference.mean()) <= errors * error + bias, (difference.mean(), error)


@pytest.mark.parametrize("proposal", ["refined", "auto"])
@pytest.mark.parametrize(
    "encoder",
    [
        "narrow",
        "random",
        pytest.param("near", marks=pytest.mark.slow),
        pytest.param("exact", marks=pytest.mark.slow),
        pytest.param("shifted", marks=pytest.mark.slow),
        pytest.param("diagonal", marks=pytest.mark.slow),
    ],
)
def test_the_truth_whatever_the_encoder(proposal, encoder):
    model = linear()
    model = model.with_posterior(encoders(model)[encoder])
    x = model.vae.sample(40)
    report = pv.evaluate(model.vae, x, num_samples=500, proposal=proposal, diagnostics=False)
    within(report.log_marginal, model.log_prob(x))
    assert report.num_unreliable == 0
    own = pv.evaluate(model.vae, x, num_samples=500, proposal="encoder")
    if encoder in ("exact", "near"):
        trusted = ~own.unreliable
        assert trusted.sum() > 20
        within(own.log_marginal[trusted], model.log_prob(x)[trusted], bias=0.03)
    if encoder in ("narrow", "shifted", "diagonal"):
        assert own.num_unreliable > 20
    # What belongs to the encoder comes from its own draws.
    for name in ("elbo", "kl", "reconstruction"):
        assert getattr(report, name) == getattr(own, name)
    assert report.encoder_nll == own.nll
    assert report.encoder_num_unreliable in (None, own.num_unreliable)


def missed(report, truth, bias=0.05):
    """Rows that lie outside four of their own standard errors of the truth, and a little.

    The little is what a mode of a few per cent of the mass adds: where no draw hits it, no figure
    made of the draws can know.
    """
    error = (1 / report.effective_sample_size - 1 / report.num_samples).clamp(min=0).sqrt()
    return (report.log_marginal - truth).abs() > 4 * error + bias


@pytest.mark.parametrize(
    ("likelihood", "posterior", "proposal"),
    [
        ("bernoulli", "normal", "auto"),
        *(
            pytest.param(likelihood, posterior, proposal, marks=pytest.mark.slow)
            for likelihood in ("categorical", "bernoulli")
            for posterior in ("normal", "planar", "iaf")
            for proposal in ("refined", "auto")
            if (likelihood, posterior, proposal) != ("bernoulli", "normal", "auto")
        ),
    ],
)
def test_the_truth_by_quadrature(likelihood, posterior, proposal):
    vae = make_vae("mixture", posterior, likelihood, latent_dim=2, num_labels=0, scale=1.5)
    x = data(likelihood, 8, 4)
    truth = Quadrature(vae, tolerance=0.01, max_points=2**22).log_prob(x)  # Refined until it is.
    report = pv.evaluate(vae, x, num_samples=1000, proposal=proposal, diagnostics=False)
    assert not (missed(report, truth) & ~report.unreliable).any()
    # One of these random models has ridges that no normal follows: most of its rows are marked.
    assert report.num_unreliable <= (5 if (likelihood, posterior) == ("bernoulli", "planar") else 2)


class Absolute(nn.Module):
    """A likelihood of |z|, so that p(z | x) has 2^D modes."""

    def __init__(self, dim, scale=0.1):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.latent_dim, self.event_shape = dim, (dim,)

    def forward(self, z):
        return dist.Normal(z.abs(), self.scale).to_event(1)


def absolute(dim):
    return pv.VAE(pv.NormalPrior(dim), pv.NormalPosterior(pv.MLP(dim, [8]), dim), Absolute(dim))


def absolute_truth(x, scale=0.1):
    """For each dimension twice the integral over z > 0 of N(z; 0, 1) N(x; z, scale)."""
    variance = 1 + scale**2
    at = dist.Normal(torch.zeros(()), math.sqrt(variance)).log_prob(x)
    normal = torch.special.log_ndtr(x / variance / math.sqrt(scale**2 / variance))
    return (math.log(2) + at + normal).sum(-1)


@pytest.mark.parametrize("dim", [1, 2, pytest.param(16, marks=pytest.mark.slow)])
def test_several_modes_are_found_or_marked(dim):
    vae = absolute(dim)
    x = 1 + torch.rand(40, dim)
    report = pv.evaluate(vae, x, num_samples=1000, diagnostics=False)
    wrong = missed(report, absolute_truth(x))
    # One in forty may escape: where all starts fell into one mode, and all draws of the prior.
    assert (wrong & ~report.unreliable).sum() <= (dim == 2)
    if dim == 1:
        assert not wrong.any()
    if wrong.any():
        assert report.num_unexplored > 0
        assert any("several modes" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("posterior", "proposal", "size"),
    [
        ("normal", "auto", 37),
        pytest.param("normal", "auto", 8192, marks=pytest.mark.slow),
        pytest.param("normal", "auto", 5, marks=pytest.mark.slow),
        pytest.param("normal", "refined", 37, marks=pytest.mark.slow),
        pytest.param("planar", "auto", 37, marks=pytest.mark.slow),
    ],
)
def test_chunks_change_nothing(posterior, proposal, size):
    vae = make_vae("mixture", posterior, num_labels=3, scale=1.0)
    split = pv.Split(data("categorical", 70, 4), torch.arange(70) % 3)
    options = dict(num_samples=200, proposal=proposal, diagnostics=False)
    first, other = (pv.evaluate(vae, split, chunk_size=c, **options) for c in (None, size))
    torch.testing.assert_close(other.log_marginal, first.log_marginal, rtol=0, atol=1e-10)
    torch.testing.assert_close(other.pareto_k, first.pareto_k, rtol=0, atol=1e-8)


def test_no_trace_is_left():
    vae, x = make_vae(scale=1.0), data("categorical", 20, 4)
    vae.train()
    frozen = next(vae.likelihood.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    pv.log_marginal(vae, x, 30)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    assert all(p.requires_grad == (p is not frozen) for p in vae.parameters())
    assert vae.training


@pytest.mark.parametrize("proposal", [pytest.param("refined", marks=pytest.mark.slow), "auto"])
def test_noise_after_the_choice_is_fresh(proposal):
    """The mean weight is p(x), with two draws too: any draw that helped to choose would bias it."""
    model = linear(2, 3)
    model = model.with_posterior(encoders(model)["narrow"])
    x = model.vae.sample(1).expand(600, -1)
    ratio = (pv.log_marginal(model.vae, x, 2, proposal=proposal) - model.log_prob(x)).exp()
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 1) < 4 * error
    assert ratio.log().mean() < 0


def test_the_cost_is_bounded_and_counted():
    vae, x = make_vae(scale=1.0), data("categorical", 300, 4)
    count = [0]
    vae.likelihood.network.register_forward_hook(
        lambda module, inputs, output: count.__setitem__(0, count[0] + output[..., 0].numel())
    )
    report = pv.evaluate(vae, x, num_samples=1000, diagnostics=False)
    assert report.cost == report.decoder_evaluations / 300_000
    assert count[0] <= report.decoder_evaluations + 10
    assert 2.5 < report.cost <= 3.5
    assert pv.evaluate(vae, x, num_samples=100, proposal="encoder").cost == 1


# --- where nothing can be fitted ------------------------------------------------------------------


class OneHot(nn.Module):
    def __init__(self, kind=dist.OneHotCategorical):
        super().__init__()
        self.net, self.kind = nn.Linear(4, 3), kind

    def forward(self, x):
        return self.kind(logits=self.net(x))


class UniformOneHot(nn.Module):
    def forward(self):
        return dist.OneHotCategorical(logits=torch.zeros(3))


class Angle(nn.Module):
    def __init__(self, amortised):
        super().__init__()
        self.net = nn.Linear(4, 2) if amortised else None

    def forward(self, x=None):
        if self.net is None:
            return dist.VonMises(torch.zeros(2), torch.ones(2)).to_event(1)
        return dist.VonMises(self.net(x), 2.0).to_event(1)


class Detached(nn.Module):
    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z):
        return self.likelihood(z.detach())


def without_fit(kind):
    if kind == "discrete":
        return pv.VAE(UniformOneHot(), OneHot(), pv.NormalLikelihood(pv.MLP(3, [8]), (4,)))
    if kind == "angle":
        return pv.VAE(Angle(False), Angle(True), pv.NormalLikelihood(pv.MLP(2, [8]), (4,)))
    return pv.VAE(
        pv.NormalPrior(2),
        pv.NormalPosterior(pv.MLP(4, [8]), 2),
        Detached(pv.NormalLikelihood(pv.MLP(2, [8]), (4,))),
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("discrete", "z is discrete"), ("angle", "z is an angle"), ("detached", "no gradient in z")],
)
def test_where_nothing_can_be_fitted_the_reason_is_said(kind, reason):
    vae, x = without_fit(kind), torch.randn(12, 4)
    report = pv.evaluate(vae, x, num_samples=50)
    assert report.proposal == "encoder"
    assert reason in report.proposal_notes[0]
    assert any(reason in warning for warning in report.warnings)
    with pytest.warns(UserWarning, match=reason):
        estimate = pv.log_marginal(vae, x, 50)
    own = pv.log_marginal(vae, x, 50, proposal="encoder")
    torch.testing.assert_close(estimate, own, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"Expected a model.*{reason}"):
        pv.evaluate(vae, x, num_samples=50, proposal="refined")


def test_discrete_latents_are_summed_right():
    vae, x = without_fit("discrete"), torch.randn(12, 4)
    z = torch.eye(3)
    truth = torch.stack([vae.p_x(row).log_prob(x) for row in z]).logsumexp(0) - math.log(3)
    estimate = pv.log_marginal(vae, x, 20_000, proposal="encoder")
    torch.testing.assert_close(estimate, truth, rtol=0, atol=0.1)


def test_training_without_reparameterised_draws_is_refused_in_a_line():
    with pytest.raises(ValueError, match="which has no rsample"):
        pv.fit(without_fit("discrete"), torch.randn(12, 4), epochs=1, progress=False)


@pytest.mark.parametrize("judge", [pv.evaluate, pv.log_marginal])
def test_what_is_no_vae_is_refused(judge):
    with pytest.raises(TypeError, match=r"Expected a pyro_vaes\.VAE; got Linear"):
        judge(nn.Linear(2, 2), torch.randn(5, 4), num_samples=30)


def test_an_unknown_proposal_is_refused():
    with pytest.raises(ValueError, match=r"Expected a proposal among .*'auto'"):
        pv.evaluate(make_vae(), data("categorical", 3, 4), proposal="best")


# --- pieces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_students_draw_what_they_score(kind):
    if kind == "full":
        shape = Full((torch.randn(1, 2, 2).tril(-1) + torch.eye(2)).expand(2, 2, 2))
        covariance = shape.tril[0] @ shape.tril[0].mT
    else:
        left, right = torch.randn(2, 2, 1)
        shape = LowRank(
            torch.rand(2) + torch.ones(2, 2), left.expand(2, 2, 1), right.expand(2, 2, 1)
        )
        root = (torch.eye(2) + left @ right.mT) * shape.scale[0][:, None]
        covariance = root @ root.mT
    student = Student(torch.randn(2, 2), shape)
    z = student.sample(40_000, torch.Generator().manual_seed(0))
    expected = dist.MultivariateStudentT(10.0, student.loc[0], torch.linalg.cholesky(covariance))
    torch.testing.assert_close(student.log_prob(z)[:, 0], expected.log_prob(z[:, 0]))
    torch.testing.assert_close(z[:, 0].mT.cov(), covariance * 10 / 8, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", ["full", "low_rank", "diagonal"])
def test_a_scale_matrix_pushes_gradients_back_and_its_square_gives_the_precision(kind):
    shape: Full | LowRank = axes(torch.rand(3, 4) + 1)
    if kind == "full":
        shape = Full(torch.randn(3, 4, 4).tril(-1) + torch.eye(4))
    elif kind == "low_rank":
        shape = LowRank(torch.rand(3, 4) + 1, *(0.4 * torch.randn(2, 3, 4, 2)))
    noise = torch.randn(5, 3, 4)
    torch.testing.assert_close(shape.pull(shape.push(noise)), noise)
    torch.testing.assert_close(shape.precision(shape.colour(noise)), shape.push(noise))


@pytest.mark.parametrize(
    ("posterior", "cheap"),
    [("normal", True), ("full_normal", True), ("maf", True), ("iaf", False), ("planar", False)],
)
def test_which_posteriors_score_cheaply(posterior, cheap):
    vae = make_vae(posterior=posterior)
    assert scores_cheaply(vae, vae.q_z(data("categorical", 2, 4))) == cheap
    report = pv.evaluate(vae, data("categorical", 2, 4), num_samples=30, diagnostics=False)
    assert report.proposal == ("mixed" if cheap else "refined")


@pytest.mark.parametrize("data_dim", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_many_latent_dimensions_have_a_covariance_of_low_rank(data_dim):
    """Up to the rank, 32 directions of which the data say something, nothing is lost."""
    model = linear(70, data_dim)
    model = model.with_posterior(encoders(model)["random"])
    x = model.vae.sample(20)
    report = pv.evaluate(model.vae, x, num_samples=1000, diagnostics=False)
    assert "70 latent dimensions" in report.proposal_notes[0]
    within(report.log_marginal, model.log_prob(x), bias=0.02)
    assert report.num_unreliable == 0


@pytest.mark.slow
@pytest.mark.parametrize("dim", [40, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("encoder", ["random", "near"])
def test_a_full_covariance_of_many_dimensions_is_found(dim, encoder):
    """By steps alone its correlations were noise: at 60 dimensions 16 nats were missing."""
    weight = 2 * torch.randn(dim + 20, dim) / math.sqrt(dim)
    model = LinearGaussian(weight, torch.randn(dim + 20), 0.1)
    x = model.vae.sample(64)
    truth, model.vae.posterior = model.log_prob(x), encoders(model)[encoder]
    report = pv.evaluate(model.vae, x, num_samples=500, proposal="refined", diagnostics=False)
    assert (report.log_marginal - truth).abs().mean() < 0.1
    assert report.num_unreliable <= 3


def test_more_directions_than_the_rank_are_right_or_marked():
    model = linear(70, 50)
    model = model.with_posterior(encoders(model)["random"])
    x = model.vae.sample(20)
    report = pv.evaluate(model.vae, x, num_samples=1000, diagnostics=False)
    assert not (missed(report, model.log_prob(x)) & ~report.unreliable).any()


def test_the_prior_is_a_part_where_data_say_little_of_z():
    """A posterior of many modes is nearly the prior where the decoder hardly listens to z."""
    vae = make_vae("mixture", scale=0.3, latent_dim=2)
    with torch.no_grad():
        vae.prior.loc.mul_(6)
    x = data("categorical", 10, 4)
    truth = Quadrature(vae, tolerance=0.01, max_points=2**22).log_prob(x)
    report = pv.evaluate(vae, x, num_samples=300, proposal="refined", diagnostics=False)
    assert not missed(report, truth).any()
    assert (report.pareto_k < report.pareto_k_limit).all()


def test_a_fit_that_fails_is_left_out(monkeypatch):
    """Row 0 has no fit at all; rows 1 and 2 have none from the encoder, but from the prior."""
    model = linear()
    x, fits = model.vae.sample(20), []

    def failing(joint, *arguments):
        found = refined.fit(joint, *arguments)
        if len(joint) == len(x):  # Not those of the pilot's rows.
            found.loc[: 1 if fits else 3] = math.nan
            fits.append(found)
        return found

    monkeypatch.setattr(fitted, "fit", failing)
    monkeypatch.setattr(fitted, "_PILOT_K", -math.inf)  # All rows are fitted again.
    report = pv.evaluate(model.vae, x, num_samples=1000, proposal="refined", diagnostics=False)
    assert len(fits) > 1
    missed_by = (report.log_marginal - model.log_prob(x)).abs()
    assert missed_by[1:].max() < 0.1
    assert report.unreliable[0] or missed_by[0] < 0.3


# --- levels ---------------------------------------------------------------------------------------


class LinearLink(nn.Module):
    """p(z_1 | z_2) = N(A z_2, s^2 I)."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = weight, scale
        self.latent_dim, self.event_shape = weight.shape[0], (weight.shape[1],)

    def forward(self, above):
        return dist.Normal(above @ self.weight.mT, self.scale).to_event(1)


def linear_chain(scale=0.05):
    """A chain in which the levels nearly fix each other, and the same model with one level."""
    levels, chain = torch.randn(3, 2), torch.eye(5)
    chain[2:, :2], chain[2:, 2:] = levels, scale * torch.eye(3)
    model = linear(5, 6)
    weight, bias, _ = model.theta
    flat = LinearGaussian(weight @ chain, bias, 0.5)
    prior = pv.ChainPrior(pv.NormalPrior(2), LinearLink(levels, scale))
    encoder = pv.NormalPosterior(pv.MLP(6, [8]), 2)
    link = pv.NormalPosterior(pv.MLP(10, [8]), 3)
    posterior = scramble(pv.ChainPosterior(encoder, link))
    return pv.VAE(prior, posterior, model.likelihood), flat


@pytest.mark.parametrize("proposal", ["auto", pytest.param("refined", marks=pytest.mark.slow)])
def test_a_chain_of_levels_has_the_truth_of_its_model_with_one_level(proposal):
    vae, flat = linear_chain()
    x = flat.vae.sample(20)
    report = pv.evaluate(vae, x, num_samples=500, proposal=proposal, diagnostics=False)
    within(report.log_marginal, flat.log_prob(x))
    assert report.num_unreliable <= 1


@pytest.mark.slow
def test_annealing_of_a_chain_meets_the_truth():
    vae, flat = linear_chain(0.3)
    x = flat.vae.sample(40)
    report = pv.evaluate(vae, x, num_samples=10, proposal="annealed", diagnostics=False)
    assert report.annealing_gap < 0.1
    within(report.log_marginal, flat.log_prob(x), bias=0.05)


class Funnel(nn.Module):
    """p(z_1 | z_2) = N(0, exp(3 z_2)): Neal, "Slice sampling" (2003), section 8."""

    latent_dim, event_shape = 1, (1,)

    def forward(self, above):
        return dist.Normal(torch.zeros_like(above), (1.5 * above).exp()).to_event(1)


class Seen(nn.Module):
    latent_dim, event_shape = 2, (1,)

    def forward(self, z):
        return dist.Normal(z[..., 1:], 1.0).to_event(1)


def test_a_funnel_is_right_or_marked():
    """The truth is an integral over its upper level."""
    encoder, link = (scramble(pv.NormalPosterior(pv.MLP(d, [8]), 1)) for d in (1, 9))
    vae = pv.VAE(
        pv.ChainPrior(pv.NormalPrior(1), Funnel()), pv.ChainPosterior(encoder, link), Seen()
    )
    x = vae.sample(20)
    upper = torch.linspace(-8, 8, 4001)
    within_level = dist.Normal(0.0, ((3 * upper).exp() + 1).sqrt()).log_prob(x)
    weights = dist.Normal(0.0, 1.0).log_prob(upper) + math.log(upper[1] - upper[0])
    report = pv.evaluate(vae, x, num_samples=1000, proposal="refined", diagnostics=False)
    assert not (missed(report, (within_level + weights).logsumexp(-1)) & ~report.unreliable).any()
    assert report.num_unreliable <= 5


# --- every part -----------------------------------------------------------------------------------


def check_against_quadrature(vae, x, y, most_marked=1):
    truth = Quadrature(vae, tolerance=0.01, max_points=2**22).log_prob(x, y)
    report = pv.evaluate(vae, pv.Split(x, y), num_samples=400, diagnostics=False)
    assert not (missed(report, truth) & ~report.unreliable).any()
    assert report.num_unreliable <= most_marked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_labels"), cases(PRIORS))
def test_every_prior(name, num_labels):
    vae = make_vae(name, num_labels=num_labels, scale=0.7)
    # Weights like these give a spline spikes, and a normalised flow scales, that no normal fits:
    # more rows are marked. What is not marked is right.
    most = 3 if name in ("spline", "realnvp_normalised") else 1
    check_against_quadrature(vae, data("categorical", 6, 4), labels_of(num_labels), most)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS))
def test_every_posterior(name, num_labels):
    vae = make_vae(posterior=name, num_labels=num_labels, scale=0.5)
    check_against_quadrature(vae, data("categorical", 6, 4), labels_of(num_labels))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_labels"), cases(LIKELIHOODS))
def test_every_likelihood(name, num_labels):
    vae = make_vae(likelihood=name, num_labels=num_labels, scale=0.7)
    # Weights like these put partial autocorrelations at their bound, 0.9999: noise that is all but
    # known leaves ridges in p(z | x). More rows are marked; what is not marked is right.
    most = 2 if name == "autoregressive_normal" else 1
    check_against_quadrature(vae, data(name, 6, 4), labels_of(num_labels), most)


def labels_of(num_labels):
    return torch.arange(6) % num_labels if num_labels else None


# --- annealing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "encoder"),
    [
        ("refined", "random"),
        pytest.param("refined", "near", marks=pytest.mark.slow),
        pytest.param("prior", "near", marks=pytest.mark.slow),
        pytest.param("prior", "random", marks=pytest.mark.slow),
    ],
)
def test_annealing_meets_the_truth(encoder, start):
    model = linear(2, 4)
    model = model.with_posterior(encoders(model)[encoder])
    x = model.vae.sample(40)
    report = pv.evaluate(
        model.vae, x, num_samples=10, proposal="annealed", start=start, diagnostics=False
    )
    assert report.annealing_gap < 0.1
    within(report.log_marginal, model.log_prob(x), bias=0.05)
    assert report.proposal == "annealed"
    assert report.num_unreliable is None


@pytest.mark.slow
def test_forward_and_reverse_bracket_the_truth():
    model = linear(3, 6)
    z, prior = torch.randn(200, 3), PriorSource(model.vae.p_z(), 200)
    x = model.vae.p_x(z).sample()
    with evaluating(model.vae), frozen(model.vae):
        chains = Chains(Joint(model.vae, x, None, 4096, Cost()), prior, axes(torch.ones(200, 3)), 0)
        wide, close = chains.bracket(8, z), chains.bracket(64, z)
    truth = model.log_prob(x).detach()
    for lower, upper in (wide, close):
        error = max((side - truth).std().item() for side in (lower, upper)) / math.sqrt(200)
        assert (lower - truth).mean() < 3 * error
        assert (upper - truth).mean() > -3 * error
    assert (close[1] - close[0]).mean() < (wide[1] - wide[0]).mean() / 3


@pytest.mark.slow
def test_annealing_from_the_prior_finds_every_mode():
    vae, x = absolute(2), 1 + torch.rand(30, 2)
    report = pv.evaluate(
        vae, x, num_samples=2, proposal="annealed", start="prior", diagnostics=False
    )
    assert report.annealing_gap < 0.1
    within(report.log_marginal, absolute_truth(x), bias=0.1)


def test_where_both_ways_disagree_there_is_an_interval(monkeypatch):
    monkeypatch.setattr("pyro_vaes.evaluation.proposals.annealed._TEMPERATURES", (2,))
    vae, x = absolute(2), 1 + torch.rand(30, 2)
    options = dict(num_samples=5, proposal="annealed", start="prior")
    report = pv.evaluate(vae, x, **options)
    assert math.isnan(report.nll)
    assert report.nll_low < -absolute_truth(x).mean() < report.nll_high + 1
    assert report.nll_high - report.nll_low == pytest.approx(report.annealing_gap)
    figures = report.to_dict()
    assert figures["nll"] is None
    assert "differ by" in figures["nll_reason"]
    assert "differ by" in str(report)
    with pytest.warns(UserWarning, match="differ by"):
        pv.log_marginal(vae, x, 5, proposal="annealed", start="prior")


def test_a_start_without_annealing_is_refused():
    with pytest.raises(ValueError, match="Expected start="):
        pv.evaluate(make_vae(), data("categorical", 3, 4), start="prior")


# --- the gaps of Cremer, Li and Duvenaud ----------------------------------------------------------


@pytest.mark.parametrize(
    "encoder",
    ["diagonal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("near", "exact"))],
)
def test_the_gap_is_split_as_the_closed_forms_say(encoder):
    model = LinearGaussian(torch.tensor([[1.0, 0.8], [0.5, 1.0]]), torch.randn(2), 0.6)
    best = model if encoder == "exact" else model.with_posterior(model.mean_field())
    model = model.with_posterior(encoders(model)[encoder])
    x = model.vae.sample(50)
    report = pv.evaluate(model.vae, x, num_samples=2000, gaps=True, diagnostics=False)
    family, whole = best.gap(x).mean().item(), model.gap(x).mean().item()
    assert report.approximation_gap == pytest.approx(family, abs=0.03)
    error = 3 * 2000**-0.5 * (1 + whole)
    assert report.amortisation_gap == pytest.approx(whole - family, abs=0.03 + error)
    assert report.approximation_gap_se is not None


@pytest.mark.parametrize("posterior", [pytest.param("iaf", marks=pytest.mark.slow), "planar"])
def test_gaps_of_flows_are_not_negative(posterior):
    vae = make_vae(posterior=posterior, scale=1.0)
    report = pv.evaluate(vae, data("categorical", 20, 4), num_samples=300, gaps=True)
    assert report.approximation_gap > -0.02
    assert report.amortisation_gap > 0.5
    gap = -report.nll - report.elbo
    assert report.approximation_gap + report.amortisation_gap == pytest.approx(gap)


def test_an_ascent_that_fails_leaves_the_encoders_own_posterior(monkeypatch):
    monkeypatch.setattr("pyro_vaes.evaluation.gaps._STAGES", (Stage(20, 1, 1e3),))
    x = data("categorical", 20, 4)
    report = pv.evaluate(make_vae(), x, num_samples=2000, gaps=True, diagnostics=False)
    assert abs(report.amortisation_gap) < 0.3


@pytest.mark.parametrize(("posterior", "reason"), [("own", "Independent"), ("flow_of_own", "Flow")])
def test_families_that_cannot_be_fitted_have_no_gaps(posterior, reason):
    vae, x = make_vae(posterior=posterior), data("categorical", 4, 4)
    figures = pv.evaluate(vae, x, num_samples=30, gaps=True, proposal="encoder").to_dict()
    assert figures["approximation_gap"] is None
    assert reason in figures["amortisation_gap_reason"]
