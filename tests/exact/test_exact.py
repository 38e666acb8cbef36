"""The exact models: exact against each other, and exact for the estimators pointed at them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from registry import data, make_vae, scramble
from torch import Tensor, nn

import pyro_vaes as pv
from pyro_vaes.exact.discrete import Discrete
from pyro_vaes.exact.linear_gaussian import LinearGaussian, LinearPosterior, diagonal_posterior
from pyro_vaes.exact.quadrature import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


def close(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# --- linear and Gaussian ------------------------------------------------------------------------


def make(data_dim: int = 4, latent_dim: int = 2, scale: float = 0.6) -> LinearGaussian:
    return LinearGaussian(torch.randn(data_dim, latent_dim) + 1, torch.randn(data_dim), scale)


def guides(data_dim: int = 4, latent_dim: int = 2) -> dict[str, nn.Module]:
    """Guides that are wrong in every respect."""
    weight, bias = 0.4 * torch.randn(latent_dim, data_dim), torch.randn(latent_dim)
    factor = torch.randn(latent_dim, latent_dim).tril(-1) + torch.eye(latent_dim)
    return {
        "full": LinearPosterior(weight, bias, factor),
        "diagonal": diagonal_posterior(weight, bias, torch.rand(latent_dim) + 0.5),
        "neural": scramble(pv.NormalPosterior(pv.MLP(data_dim, [8], "tanh"), latent_dim)),
    }


def test_the_parts_are_those_of_the_formulas():
    w, b = torch.randn(4, 2), torch.randn(4)
    model = LinearGaussian(w, b, 0.6)
    z, x = torch.randn(7, 2), torch.randn(7, 4)
    noise = x - z @ w.mT - b
    expected = -0.5 * (noise / 0.6).square().sum(-1) - 4 * math.log(0.6 * math.sqrt(2 * math.pi))
    close(model.vae.p_x(z).log_prob(x), expected)
    close(model.vae.p_z().log_prob(z), -0.5 * z.square().sum(-1) - math.log(2 * math.pi))
    a, c, scale = torch.randn(2, 4), torch.randn(2), torch.rand(2)
    q = diagonal_posterior(a, c, scale)(x)
    close(q.mean, x @ a.mT + c)
    close(q.stddev, scale.expand(7, 2))
    factor = torch.tensor([[0.5, 0.0], [-2.0, 0.1]])
    q = LinearPosterior(a, c, factor)(x)
    close(q.mean, x @ a.mT + c)
    close(q.covariance_matrix, (factor @ factor.mT).expand(7, 2, 2))


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("guide", ["exact", "mean_field", "full", "diagonal", "neural"])
def test_algebra_agrees_with_quadrature(guide, latent_dim):
    model = make(3, latent_dim)
    if guide != "exact":
        chosen = {**guides(3, latent_dim), "mean_field": model.mean_field()}[guide]
        model = model.with_posterior(chosen)
    grid = Quadrature(model.vae)
    x, z = torch.randn(6, 3), torch.randn(9, latent_dim)
    with torch.no_grad():
        close(model.log_prob(x), grid.log_prob(x), 1e-8)
        close(model.elbo(x), grid.elbo(x), 1e-8)
        close(model.gap(x), grid.gap(x), 1e-8)
        close(model.true_posterior(x).log_prob(z.unsqueeze(1)), grid.true_posterior(z, x), 1e-8)
        each = torch.stack([model.vae.q_z(x_n).log_prob(z) for x_n in x])
        close(model.aggregated(x).log_prob(z), each.logsumexp(0) - math.log(6))
        # Hoffman and Johnson (2016): the two halves of the average KL.
        kl = torch.distributions.kl_divergence(
            model.vae.q_z(x).expand((6,)), as_family(model.vae.p_z(), model.vae.q_z(x))
        )
        close(grid.mutual_information(x) + grid.marginal_kl(x), kl.mean(), 1e-6)


def as_family(normal, like):
    """The same normal as a MultivariateNormal, for which alone PyTorch knows the KL."""
    if not isinstance(like, dist.MultivariateNormal):
        return normal
    return dist.MultivariateNormal(normal.mean, torch.diag_embed(normal.variance))


def test_the_true_posterior_leaves_no_gap_and_no_variance():
    model = make()
    x = model.vae.sample(20)
    close(model.gap(x), torch.zeros(20))
    evidence = model.log_prob(x)
    for _ in range(3):
        loss = Trace_ELBO().loss(model.vae.model, model.vae.guide, x)
        assert loss == pytest.approx(-evidence.sum().item(), abs=1e-8)
    close(pv.log_marginal(model.vae, x, 1, proposal="encoder"), evidence, 1e-8)


@pytest.mark.parametrize("guide", ["full", "diagonal", "mean_field"])
def test_estimators_meet_the_closed_forms(guide):
    model = make(4, 2, scale=1.0)
    # Wider than the true posterior and to its side, so that importance sampling is sure to work.
    at_zero, near = model.true_posterior(torch.zeros(4)), model.mean_field()
    weight = model.vae.posterior.weight
    chosen = {
        "full": LinearPosterior(weight, at_zero.mean + 0.3, 1.4 * at_zero.scale_tril),
        "diagonal": diagonal_posterior(weight, at_zero.mean + 0.3, 1.4 * at_zero.stddev),
        "mean_field": near,
    }[guide]
    wrong = model.with_posterior(chosen)
    x = wrong.vae.sample(200)
    report = pv.evaluate(wrong.vae, x, num_samples=3000)
    assert (wrong.gap(x) > 0.01).all()
    assert report.nll == pytest.approx(-wrong.log_prob(x).mean().item(), abs=0.02)
    assert report.elbo == pytest.approx(wrong.elbo(x).mean().item(), abs=0.02)
    q = wrong.aggregated(x)
    z = q.sample((20_000,))
    terms = q.log_prob(z) - wrong.vae.p_z().log_prob(z)
    error = terms.std().item() / math.sqrt(20_000)
    assert report.marginal_kl == pytest.approx(terms.mean().item(), abs=0.02 + 4 * error)


def test_the_mean_field_guide_is_the_best_of_its_family():
    model = LinearGaussian(torch.tensor([[1.0, 0.8], [0.5, 1.0]]), torch.randn(2), 0.6)
    best = model.with_posterior(model.mean_field())
    gap = best.gap(torch.randn(8, 2)).mean()
    assert gap > 0.1
    for gradient in torch.autograd.grad(gap, list(best.vae.posterior.parameters())):
        close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("guide", ["exact", "full", "diagonal"])
def test_q_of_z_over_all_that_the_model_generates(guide):
    """The two halves of the KL add up to its mean over x ~ p(x), which 2 D points give exactly."""
    model = make()
    if guide != "exact":
        model = model.with_posterior(guides()[guide])
    p = model.marginal
    points = 2 * torch.cat([p.scale_tril.mT, -p.scale_tril.mT]) + p.mean
    q = model.vae.q_z(points)
    prior = as_family(model.vae.p_z(), q).expand((8,))
    kl = torch.distributions.kl_divergence(q, prior).mean()
    close(model.mutual_information() + model.marginal_kl(), kl)
    if guide == "exact":
        # q(z) is the prior, and the information that of a channel: 1/2 log det P.
        w, _, psi = model.theta
        capacity = 0.5 * torch.logdet(torch.eye(2) + w.mT / psi @ w)
        close(model.marginal_kl(), torch.zeros(()))
        close(model.mutual_information(), capacity)
    else:
        assert model.marginal_kl() > 0.1


def test_it_stays_exact_while_it_is_trained():
    model = make(3, 2)
    x = torch.randn(40, 3)
    before = model.elbo(x).sum().item()
    svi = SVI(model.vae.model, model.vae.guide, Adam({"lr": 0.02}), pv.ELBO())
    for _ in range(50):
        svi.step(x)
    assert model.elbo(x).sum().item() > before + 1
    psi = model.theta[2]
    assert psi.std() > 1e-3, "each element has a scale of its own now"
    grid = Quadrature(model.vae)
    with torch.no_grad():
        close(model.log_prob(x), grid.log_prob(x), 1e-7)
        close(model.elbo(x), grid.elbo(x), 1e-7)
        assert (model.gap(x) > 1e-6).all()


def test_it_is_saved_and_loaded_like_any_other(tmp_path):
    for place, guide in enumerate(["exact", "full", "diagonal"]):
        model = make()
        if guide != "exact":
            model = model.with_posterior(guides()[guide])
        pv.save(model.vae, tmp_path / str(place))
        loaded = pv.load(tmp_path / str(place))
        x = torch.randn(3, 4)
        z = torch.randn(3, 2)
        assert torch.equal(loaded.q_z(x).mean, model.vae.q_z(x).mean)
        assert torch.equal(loaded.q_z(x).log_prob(z), model.vae.q_z(x).log_prob(z))
        assert torch.equal(loaded.p_x(z).log_prob(x), model.vae.p_x(z).log_prob(x))


def test_single_precision_will_do():
    """The usual dtype, and data of another than the model's."""
    model = make()
    x = model.vae.sample(5)
    single = LinearGaussian(*(p.detach().float() for p in model.theta[:2]), 0.6)
    assert single.vae.dtype == torch.float32
    assert single.log_prob(x.float()).dtype == torch.float32
    with torch.no_grad():
        close(single.log_prob(x.float()).double(), model.log_prob(x), 1e-4)
        close(Quadrature(single.vae).log_prob(x.float()), model.log_prob(x), 1e-4)
        close(
            pv.log_marginal(single.vae, x.float(), 1, proposal="encoder").double(),
            model.log_prob(x),
            1e-4,
        )
        close(pv.log_marginal(model.vae, x.float(), 1, proposal="encoder"), model.log_prob(x), 1e-4)


class Uniform(nn.Module):
    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Uniform(-torch.ones(len(x), 2), 1.0).to_event(1)


def test_what_has_no_closed_form_is_refused():
    curved = make().with_posterior(guides()["neural"])
    for figure in (curved.aggregated, curved.marginal_kl, curved.mutual_information):
        with pytest.raises(ValueError, match=r"N\(A x \+ c, S\); got one not linear in x"):
            figure()
    with pytest.raises(ValueError, match="posterior that returns normals; got Independent"):
        make().with_posterior(Uniform()).elbo(torch.randn(5, 4))


# --- discrete -----------------------------------------------------------------------------------


def tables() -> Discrete:
    """Of 20 data, 1, 8, 6, 2 and 3 have the values 0 to 4."""
    return Discrete(
        torch.randn(3).softmax(-1),
        torch.randn(3, 5).softmax(-1),
        torch.randn(5, 3).softmax(-1),
        torch.tensor([1.0, 8.0, 6.0, 2.0, 3.0]) / 20,
    )


def rows(model: Discrete, copies: int = 1) -> Tensor:
    """Data in which every value has its share."""
    counts = (model.data * 20).round().long() * copies
    return torch.arange(5.0).repeat_interleave(counts).unsqueeze(-1)


def test_the_discrete_vae_has_the_tables():
    model = tables()
    states, values = torch.eye(3), torch.arange(5.0).unsqueeze(-1)
    close(model.vae.p_z().log_prob(states), model.prior.log())
    close(model.vae.q_z(values).log_prob(states.unsqueeze(1)).mT, model.posterior.log())
    close(model.vae.p_x(states.unsqueeze(1)).log_prob(values), model.likelihood.log())


def test_pyro_enumerates_the_same_elbo():
    model = tables()

    @config_enumerate
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            # Pyro does not weigh the states of a distribution that has an rsample.
            pyro.sample("z", dist.OneHotCategorical(logits=model.vae.q_z(x).logits))

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model.vae.model, guide, rows(model))
    assert loss == pytest.approx(-20 * model.augmented()[0].item(), abs=1e-10)


def test_evaluation_meets_the_enumerated_figures():
    model = tables()
    report = pv.evaluate(model.vae, rows(model, 5), num_samples=5000)
    elbo, _, _ = model.elbo()
    assert report.elbo == pytest.approx((model.data @ elbo).item(), abs=0.01)
    assert report.nll == pytest.approx(-(model.data @ model.log_prob).item(), abs=0.01)
    for name in ("reconstruction", "kl", "mutual_information", "marginal_kl"):
        exact = getattr(model, name).item()
        assert abs(exact) > 0.02
        assert getattr(report, name) == pytest.approx(exact, abs=0.01), name
    assert report.entropy == pytest.approx(model.entropy.item(), abs=1e-10)
    assert report.elbo_2 == pytest.approx(report.elbo, abs=0.01)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, torch.tensor([0.5, 0.5, 0.5])),
        (0, torch.tensor([0.5, 0.5, 0.0])),
        (1, torch.full((5, 3), 1 / 3)),
        (2, torch.full((5, 4), 0.25)),
        (3, torch.tensor([1.5, -0.5, 0.2, -0.1, -0.1])),
        (3, torch.full((5,), math.nan)),
    ],
)
def test_what_is_no_table_of_probabilities_is_refused(place, wrong):
    model = tables()
    arguments = [model.prior, model.likelihood, model.posterior, model.data]
    arguments[place] = wrong
    with pytest.raises(ValueError, match=r"Expected a table .* each row of sum 1"):
        Discrete(*arguments)


# --- quadrature ---------------------------------------------------------------------------------


def compare(vae: pv.VAE, x: Tensor, y: Tensor | None = None) -> None:
    """Log p(x) and the ELBO on a grid, and by plain Monte Carlo within its error."""
    grid, draws = Quadrature(vae), 20_000
    with torch.no_grad():
        z = vae.p_z(y).expand((len(x),)).sample((draws,))
        weights = vae.p_x(z, y).log_prob(x).exp()
        error = weights.std(0) / weights.mean(0) / math.sqrt(draws)
        assert error.max() < 0.1
        assert ((weights.mean(0).log() - grid.log_prob(x, y)).abs() < 4 * error + 1e-3).all()
        q = vae.q_z(x, y)
        z = q.sample((draws,))
        terms = vae.p_x(z, y).log_prob(x) + vae.p_z(y).log_prob(z) - q.log_prob(z)
        error = terms.std(0) / math.sqrt(draws)
        assert ((terms.mean(0) - grid.elbo(x, y)).abs() < 4 * error + 1e-3).all()


@pytest.mark.parametrize(
    ("prior", "posterior", "latent_dim"),
    [
        ("mixture", "normal", 1),
        ("iaf", "iaf", 1),
        ("vamp", "normal", 2),
        ("realnvp", "own", 2),
        ("own", "iaf", 2),
    ],
)
def test_quadrature_of_any_parts(prior, posterior, latent_dim):
    for likelihood in ("normal", "categorical"):
        vae = make_vae(prior, posterior, likelihood, latent_dim=latent_dim, scale=0.5)
        compare(vae, data(likelihood, 4, 4))


def test_quadrature_given_labels():
    vae = make_vae("mixture", "normal", "bernoulli", num_labels=3, scale=0.5)
    x, y = data("bernoulli", 6, 4), torch.arange(6) % 3
    compare(vae, x, y)
    grid = Quadrature(vae)
    assert grid.true_posterior(torch.randn(5, 2), x, y).shape == (5, 6)
    others = grid.log_prob(x, (y + 1) % 3)
    assert ((grid.log_prob(x, y) - others).abs() > 1e-3).all()
    with pytest.raises(ValueError, match="Expected labels"):
        grid.marginal_kl(x)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_true_posterior_is_a_density(latent_dim):
    vae = make_vae("mixture", "normal", "normal", latent_dim=latent_dim, scale=0.7)
    x = data("normal", 3, 4)
    line = torch.linspace(-12, 12, {1: 20_001, 2: 601}[latent_dim])
    z = torch.cartesian_prod(*[line] * latent_dim).reshape(-1, latent_dim)
    log_density = Quadrature(vae, 1e-5).true_posterior(z, x)
    total = log_density.exp().sum(0) * (line[1] - line[0]) ** latent_dim
    close(total, torch.ones(3), 1e-4)


def test_a_needle_in_the_grid_is_found():
    """A posterior a thousand times narrower than the prior, and a likelihood as sharp."""
    model = LinearGaussian(torch.tensor([[1.0], [2.0]]), torch.zeros(2), 1e-3)
    x = model.vae.sample(5)
    with torch.no_grad():
        grid = Quadrature(model.vae, 1e-6)
        close(grid.log_prob(x), model.log_prob(x), 1e-6)
        close(grid.elbo(x), model.elbo(x), 1e-6)


def test_far_apart_posteriors_tell_which_datum_it_was():
    model = LinearGaussian(torch.tensor([[1.0]]), torch.zeros(1), 0.01)
    x = torch.arange(-2.0, 3.0).unsqueeze(-1)
    grid = Quadrature(model.vae)
    close(grid.mutual_information(x), torch.tensor(math.log(5)), 1e-8)
    kl = torch.distributions.kl_divergence(
        model.vae.q_z(x), dist.MultivariateNormal(torch.zeros(1), torch.eye(1)).expand((5,))
    )
    close(grid.marginal_kl(x), kl.mean().detach() - math.log(5), 1e-6)


def test_quadrature_leaves_the_vae_alone():
    vae = make_vae("normal", "normal", "categorical", scale=0.5).float().train()
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    store = set(pyro.get_param_store().keys())
    x = data("categorical", 3, 4).float()
    state = torch.get_rng_state()
    log_prob = Quadrature(vae, 1e-4).log_prob(x)
    assert log_prob.dtype == torch.float64 and not log_prob.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == store
    assert vae.training and vae.dtype == torch.float32
    assert all(torch.equal(before[name], p) for name, p in vae.state_dict().items())


def test_what_quadrature_cannot_do_it_refuses():
    x = data("normal", 3, 4)
    with pytest.raises(ValueError, match="latent size of 1 or 2 for quadrature; got 3"):
        Quadrature(make_vae(likelihood="normal", latent_dim=3)).log_prob(x)
    vae = make_vae(likelihood="normal", scale=1.0)
    with pytest.raises(RuntimeError, match=r"settle within 0.001 nats on at most 60000 points"):
        Quadrature(vae, max_points=60_000).log_prob(x)
    planar = make_vae("normal", "planar", "normal", scale=0.5)
    assert Quadrature(planar).log_prob(x).isfinite().all()
    with pytest.raises((KeyError, NotImplementedError)):
        Quadrature(planar).elbo(x)
