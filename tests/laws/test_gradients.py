"""Gradients without the score of q: unbiased, and without noise where q(z | x) is p(z | x)."""

import math

import pyro
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro.infer import SVI
from pyro.optim import SGD, Adam
from registry import POSTERIORS, cases, data, make_vae, scramble

import pyro_vaes as pv
from pyro_vaes.exact.linear_gaussian import LinearGaussian, LinearPosterior
from pyro_vaes.inference import NotReparameterizedError
from pyro_vaes.runs.build import build
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import from_values
from pyro_vaes.storage.files import RunFolderError

pytestmark = pytest.mark.usefixtures("float64")


def linear(latent_dim=2, data_dim=3):
    return LinearGaussian(torch.randn(data_dim, latent_dim), torch.randn(data_dim), 0.7)


def shifted(model):
    """A posterior with a full covariance that is not p(z | x)."""
    exact = model.vae.posterior
    tril = 0.8 * torch.eye(len(exact.weight)) + 0.1
    return model.with_posterior(LinearPosterior(exact.weight + 0.2, exact.bias - 0.3, tril))


def gradients(vae, x, objective, repeats=1, parameters=None):
    """Per datum, one row for each repetition: all parameters in one vector."""
    chosen = list((parameters or vae).parameters())
    rows = []
    for _ in range(repeats):
        loss = objective.tensor_loss(vae.model, vae.guide, x) / len(x)
        found = torch.autograd.grad(loss, chosen, allow_unused=True)
        pairs = zip(found, chosen, strict=True)
        rows.append(torch.cat([(g if g is not None else 0 * p).flatten() for g, p in pairs]))
    return torch.stack(rows)


def agree(estimates, truth, of_truth=0.0, errors=4.5):
    error = (estimates.var(0) / len(estimates) + of_truth).sqrt()
    difference = (estimates.mean(0) - truth).abs()
    assert (difference <= errors * error + 1e-9).all(), (difference / (error + 1e-12)).max()


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("gradient", ["path", "total"])
def test_of_one_draw_it_is_that_of_the_bound_in_closed_form(gradient, beta):
    model = shifted(linear())
    x = model.vae.sample(1)
    vae, objective = model.vae, pv.BetaELBO(beta, gradient=gradient)
    estimates = gradients(vae, x.expand(400, -1), objective, 60)
    if beta == 1.0:
        bound = model.elbo(x).sum()
    else:
        q = vae.q_z(x)
        standard = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        kl = torch.distributions.kl_divergence(q, standard).sum()
        bound = model.elbo(x).sum() + (1 - beta) * kl
    truth = torch.autograd.grad(-bound, list(vae.parameters()), allow_unused=True)
    agree(estimates, torch.cat([g.flatten() for g in truth if g is not None]))


def test_at_the_exact_posterior_no_noise_is_left():
    vae = linear().vae
    x = vae.sample(5)
    path = gradients(vae, x, pv.ELBO(gradient="path"), 3, vae.posterior)
    assert path.abs().max() < 1e-10
    assert gradients(vae, x, pv.ELBO(), 3, vae.posterior).abs().max() > 0.1
    many = pv.ManySamples(num_particles=4, gradient="path")
    assert gradients(vae, x, many, 3, vae.posterior).abs().max() < 1e-10


def many_sample_bound(vae, x, nodes=40):
    """E log mean w of two draws, exactly: a quadrature that can be differentiated."""
    places, weights = (torch.tensor(a) for a in hermegauss(nodes))
    weights = weights / math.sqrt(2 * math.pi)
    q = vae.q_z(x)
    z = q.loc + q.scale_tril[..., 0] * places.unsqueeze(-1)
    z = z.unsqueeze(-2)
    log_w = vae.p_x(z).log_prob(x) + vae.p_z().log_prob(z) - q.log_prob(z)
    log_w = log_w[:, 0]
    pairs = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)
    return (weights.unsqueeze(0) * weights.unsqueeze(1) * pairs).sum()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("gradient", ["path", "total"])
def test_of_several_draws_it_is_that_of_the_bound_by_quadrature(gradient, together):
    model = shifted(linear(1, 2))
    x = model.vae.sample(1)
    objective = pv.ManySamples(num_particles=2, gradient=gradient, vectorize_particles=together)
    estimates = gradients(model.vae, x.expand(400, -1), objective, 60)
    truth = torch.autograd.grad(-many_sample_bound(model.vae, x), list(model.vae.parameters()))
    agree(estimates, torch.cat([g.flatten() for g in truth]))


def test_the_signal_of_many_draws_does_not_drown():
    """Tucker et al. (2019), section 6.1: the total gradient's signal falls as draws grow."""
    model = shifted(linear())
    x = model.vae.sample(1).expand(50, -1)

    def ratio(gradient, draws):
        objective = pv.ManySamples(num_particles=draws, gradient=gradient)
        found = gradients(model.vae, x, objective, 60, model.vae.posterior)
        return (found.mean(0).abs() / found.std(0)).nanmean()

    assert ratio("path", 64) > 1.5 * ratio("total", 64), (ratio("path", 64), ratio("total", 64))


SCORING = [case for case in cases(POSTERIORS) if POSTERIORS[case.values[0]].scores]


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", sorted({case.values[0] for case in SCORING}))
def test_of_every_posterior_that_scores_any_z_it_is_unbiased(name, draws):
    prior = "chain" if name.startswith("chain") else "vamp"  # Shares parameters with q.
    vae = scramble(make_vae(prior, name, "normal", latent_dim=3), 0.3)
    x = data("normal", 1, 4).expand(60, -1)

    def found(gradient):
        kind = pv.ELBO if draws == 1 else pv.ManySamples
        options = {} if draws == 1 else {"num_particles": draws}
        return gradients(vae, x, kind(gradient=gradient, **options), 40)

    total = found("total")
    agree(found("path"), total.mean(0), total.var(0) / len(total), errors=5.5)


@pytest.mark.parametrize("name", [n for n, case in POSTERIORS.items() if not case.scores])
def test_a_posterior_that_scores_only_its_own_draws_is_refused_in_a_line(name):
    vae = make_vae(posterior=name, latent_dim=3)
    for objective in (pv.ELBO(gradient="path"), pv.ManySamples(gradient="path")):
        with pytest.raises(NotReparameterizedError, match="scores only its own draws") as error:
            gradients(vae, data("categorical", 3, 4), objective)
        assert "\n" not in str(error.value)


def two_sites(dependent):
    """z2 and z1 of their own, in plain Pyro, and x of both: a guide of two sites."""
    a = torch.tensor([0.4, 0.2, -0.4, 0.4, 0.6, 0.2, -0.4], requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", pyro.distributions.Normal(1.5 * z2, 0.8).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(z1, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            q2 = pyro.distributions.Normal(a[0] * x + a[1], a[2].exp()).to_event(1)
            z2 = pyro.sample("z2", q2)
            loc = a[3] * x + a[5] + (a[4] * z2 if dependent else 0.0)
            pyro.sample("z1", pyro.distributions.Normal(loc, a[6].exp()).to_event(1))

    return model, guide, a


PATHS = [
    lambda **options: pv.ELBO(**options),
    lambda **options: pv.ManySamples(num_particles=4, **options),
]


@pytest.mark.parametrize("objective", PATHS)
def test_of_independent_sites_it_is_unbiased(objective):
    model, guide, a = two_sites(dependent=False)
    x = torch.full((2000, 1), 1.3)

    def found(gradient):
        losses = [objective(gradient=gradient).tensor_loss(model, guide, x) for _ in range(40)]
        return torch.stack([torch.autograd.grad(loss / len(x), a)[0] for loss in losses])

    total = found("total")
    agree(found("path"), total.mean(0), total.var(0) / len(total))


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("objective", PATHS)
def test_sites_drawn_given_each_other_are_refused(objective, mode):
    """With several draws each would be weighed once more for each site after it: biased."""
    model, guide, _ = two_sites(dependent=True)
    loss = objective(gradient="path")
    svi = pv.FastSVI(model, guide, Adam({"lr": 1e-2}), loss, mode=mode)
    with pytest.raises(ValueError, match=r"got 'z1', drawn given 'z2'\. Make them one event"):
        svi.step(torch.ones(5, 1))


def test_the_command_line_refuses_it_before_training():
    config = from_values({"posterior": "planar", "gradient": "path", "device": "cpu"})
    with pytest.raises(ConfigError, match="'--gradient': expected total with --posterior planar"):
        build(config, pv.load_data("digits"))


def test_what_has_no_such_gradient_is_refused():
    with pytest.raises(ValueError, match="gradient among 'total', 'path'; got 'stl'"):
        pv.ELBO(gradient="stl")
    with pytest.raises(ValueError, match="alpha=0"):
        pv.ManySamples(0.5, gradient="path")
    vaes = [make_vae(), make_vae()]
    with pytest.raises(ValueError, match='gradient="total"'):
        pv.fit_many(vaes, data("categorical", 9, 4), objectives=[pv.ELBO(gradient="path")] * 2)


def test_a_run_resumes_with_its_gradient_only(tmp_path):
    torch.set_default_dtype(torch.float32)
    vae, x = make_vae("normal", "normal", "normal"), data("normal", 12, 4)
    options = dict(epochs=2, out=tmp_path / "run", progress=False)
    pv.fit(vae, x, objective=pv.ELBO(gradient="path"), **options)
    with pytest.raises(RunFolderError, match="Expected the objective"):
        pv.fit(vae, x, objective=pv.ELBO(), resume=True, **{**options, "epochs": 3})


OBJECTIVES = {
    "one": lambda: pv.ELBO(gradient="path"),
    "several": lambda: pv.ManySamples(num_particles=3, gradient="path"),
    "one after another": lambda: pv.ManySamples(
        num_particles=3, gradient="path", vectorize_particles=False
    ),
}


@pytest.mark.parametrize(
    "mode", ["pyro", "traced", pytest.param("compiled", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_are_those_of_plain_svi_in_every_mode(name, mode):
    found = []
    for kind in ("eager", mode):
        torch.manual_seed(0)
        pyro.clear_param_store()
        vae = make_vae("normal", "normal", "normal")
        x = data("normal", 6, 4)
        optim = SGD({"lr": 1e-3}) if mode == "compiled" else Adam({"lr": 1e-2})
        loss = OBJECTIVES[name]()
        if kind == "pyro":
            svi = SVI(vae.model, vae.guide, optim, loss)
        else:
            svi = pv.FastSVI(vae.model, vae.guide, optim, loss, mode=kind)
        torch.manual_seed(1)
        found.append([svi.step(x) for _ in range(4)])
    if mode == "compiled":  # It draws other noise.
        assert found[1] == pytest.approx(found[0], rel=0.3)
    else:
        assert found[1] == pytest.approx(found[0], rel=1e-9)
