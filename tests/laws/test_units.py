"""Units do not matter: another unit of an element changes log p(x) by its log, and nothing else."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from registry import POSTERIORS, PRIORS, OwnPosterior, cases
from torch import nn

import pyro_vaes as pv
from pyro_vaes import flows
from pyro_vaes.data.units import units_of
from pyro_vaes.distributions.scaled_normal import ScaledNormal
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.gtm import GTMPseudoInputs
from pyro_vaes.parts.likelihoods import NormalLikelihood
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.priors import NormalPrior, VampPrior
from pyro_vaes.vae import VAE

EVENT = (2, 2)
UNITS = torch.tensor([[0.5, 2.0**20], [1.0, 2.0**-30]])
ANY = torch.tensor([[0.3, 1e6], [7.0, 1e-9]]), torch.tensor([[1000.0, -3e6], [0.0, 1e-7]])


def rows(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, 2, generator=generator, dtype=dtype)
    x[:, 1, 0] += x[:, 0, 0]
    return x + torch.tensor([[0.0, 3.0], [-1.0, 0.5]])


def build(prior, posterior, num_labels, x):
    """A VAE on data in some units, from one seed."""
    torch.manual_seed(1)
    q = POSTERIORS[posterior].make(2, EVENT, num_labels, scale=None)
    if prior == "vamp":
        p = _vamp(q, x, num_labels)
    elif prior == "vamp_bounded":
        p = _vamp(q, x, num_labels, [x.amin(0), x.amax(0)])
    elif prior.startswith("grid"):
        bounds = [x.amin(0), x.amax(0)] if prior == "grid_bounded" else None
        network = MLP(2 + num_labels, [8], "tanh")
        p = VampPrior(q, GTMPseudoInputs(network, EVENT, 2, bounds, num_labels))
    else:
        p = PRIORS[prior].make(2, EVENT, num_labels, scale=None)
    likelihood = NormalLikelihood(MLP(2 + num_labels, [8], "tanh"), EVENT, num_labels)
    likelihood.initialize_from(x)
    vae = VAE(p, q, likelihood)
    if prior.startswith("grid"):
        vae.prior.inputs.initialize(x)
    return vae


def _vamp(q, x, num_labels, bounds=None):
    u = pv.pseudo_inputs(x, 3, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(3) % num_labels if num_labels else None
    return VampPrior(q, u, bounds, labels=labels)


def trained(prior, posterior, num_labels, x, steps):
    """Log p(x), codes and KL of the data after some steps."""
    vae = build(prior, posterior, num_labels, x)
    y = torch.arange(len(x)) % num_labels if num_labels else None
    arguments = (x,) if y is None else (x, y)
    pyro.set_rng_seed(2)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*arguments)
    pyro.set_rng_seed(5)
    with torch.no_grad():
        q = vae.q_z(x, y)
        z = q.rsample()
        kl = q.log_prob(z) - vae.p_z(y).log_prob(z)
        return vae.p_x(z, y).log_prob(x), z, kl


ROWS = [
    *((prior, "normal", count) for prior in ("vamp", "vamp_bounded") for count in (0, 2)),
    ("grid", "normal", 0),
    ("grid_bounded", "normal", 2),
    ("gtm", "full_normal", 2),
    ("mixture", "iaf", 0),
]


@pytest.mark.parametrize(("prior", "posterior", "num_labels"), ROWS)
def test_a_power_of_two_changes_no_bit(prior, posterior, num_labels):
    x = rows()
    _, z, kl = trained(prior, posterior, num_labels, x, 20)
    log_p, z_scaled, kl_scaled = trained(prior, posterior, num_labels, x * UNITS, 20)
    assert torch.equal(z, z_scaled)
    assert torch.equal(kl, kl_scaled)
    shifted = trained(prior, posterior, num_labels, x, 20)[0] - UNITS.log().sum()
    torch.testing.assert_close(log_p, shifted, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("prior", "posterior", "num_labels"), ROWS)
def test_any_unit_and_origin_change_the_density_alone(prior, posterior, num_labels, double):
    x, (a, b) = rows(torch.float64), ANY
    log_p, z, kl = trained(prior, posterior, num_labels, x, 20)
    moved = trained(prior, posterior, num_labels, a.double() * x + b.double(), 20)
    assert (moved[1] - z).abs().max() < 1e-8
    assert (moved[2] - kl).abs().max() < 1e-8
    assert (moved[0] + a.double().log().sum() - log_p).abs().max() < 1e-8


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "num_labels"), cases(POSTERIORS, own=True))
def test_every_posterior_sees_each_element_in_its_own_units(name, num_labels):
    posterior = POSTERIORS[name].make(2, (4,), num_labels)
    y = (torch.arange(7) % num_labels,) if num_labels else ()
    x = torch.randn(7, 4)
    center, spread = torch.tensor([0.0, 4.0, -1.0, 1.0]), torch.tensor([2.0, 0.5, 1024.0, 1.0])
    torch.manual_seed(0)
    z = posterior(x, *y).rsample()
    powers = getattr(posterior, "powers", None)
    if powers is None:
        posterior.set_units(center, spread)
    else:  # The transform has the units of the data.
        powers.center.mul_(spread).add_(center)
        powers.spread.mul_(spread)
    torch.manual_seed(0)
    torch.testing.assert_close(posterior(center + spread * x, *y).rsample(), z, atol=1e-3, rtol=0)


def test_units_reach_the_posterior_whichever_is_made_first():
    x = 100 + 5 * torch.randn(60, 3)
    early, late = (NormalLikelihood(MLP(2, [8]), (3,)) for _ in range(2))
    early.initialize_from(x)
    q_early, q_late = (NormalPosterior(MLP(3, [8]), 2) for _ in range(2))
    VAE(NormalPrior(2), q_early, early)
    VAE(NormalPrior(2), q_late, late)
    late.initialize_from(x)
    for q in (q_early, q_late):
        torch.testing.assert_close(q.center, x.mean(0))
        torch.testing.assert_close(q.half_range, x.std(0, correction=0))


def test_a_copy_has_followers_of_its_own():
    likelihood, q = NormalLikelihood(MLP(2, [8]), (3,)), NormalPosterior(MLP(3, [8]), 2)
    vae = VAE(NormalPrior(2), q, likelihood)
    other = copy.deepcopy(vae)
    other.likelihood.initialize_from(5 + torch.randn(9, 3))
    assert not q.center.any()
    assert other.posterior.center.all()


def test_a_range_that_was_given_stays():
    likelihood = NormalLikelihood(MLP(2, [8]), (3,))
    likelihood.initialize_from(100 + torch.randn(60, 3))
    q = NormalPosterior(MLP(3, [8]), 2, x_range=(-1, 1))
    VAE(NormalPrior(2), q, likelihood)
    assert q.x_range == (-1.0, 1.0)
    assert q.center == 0


def test_a_posterior_in_another_vae_takes_what_that_one_knows(tmp_path):
    x, q = torch.randint(0, 4, (9, 3)).float(), NormalPosterior(MLP(3, [8]), 2)
    real = NormalLikelihood(MLP(2, [8]), (3,))
    real.initialize_from(x)
    levels = pv.CategoricalLikelihood(MLP(2, [8]), (3,), 4)
    for i, likelihood in enumerate((levels, real, levels)):
        vae = VAE(NormalPrior(2), q, likelihood)
        pv.save(vae, tmp_path / str(i))
        assert torch.equal(pv.load(tmp_path / str(i)).encode(x), vae.encode(x))
        assert (q.x_range is None) == (likelihood is real)
    q.set_x_range(0, 8)  # chosen by hand
    vae = VAE(NormalPrior(2), q, real)
    pv.save(vae, tmp_path)
    assert torch.equal(pv.load(tmp_path).encode(x), vae.encode(x))
    assert q.x_range == (0.0, 8.0)


def test_a_range_for_each_element():
    low, high = torch.tensor([0.0, -2.0, 5.0]), torch.tensor([1.0, 2.0, 9.0])
    q = NormalPosterior(MLP(3, [8]), 2, x_range=(low, high))
    plain = NormalPosterior(MLP(3, [8]), 2)
    plain.load_state_dict(
        {**q.state_dict(), "center": plain.center, "half_range": plain.half_range}
    )
    assert torch.equal(
        q(torch.stack([low, high])).mean, plain(torch.tensor([[-1.0] * 3, [1.0] * 3])).mean
    )
    assert torch.equal(q.x_range[0], low)
    with pytest.raises(ValueError, match="low < high for each element"):
        NormalPosterior(MLP(3, [8]), 2, x_range=(low, low))


@pytest.mark.parametrize("kind", ["tensors", "grid", "grid_bounded", "vamp_bounded"])
def test_units_are_saved_with_the_weights(kind, tmp_path):
    x = rows() * UNITS
    vae = build("vamp" if kind == "tensors" else kind, "normal", 0, x)
    pv.save(vae, tmp_path)
    again = pv.load(tmp_path)
    assert torch.equal(again.prior.pseudo_inputs, vae.prior.pseudo_inputs)
    assert torch.equal(again.encode(x), vae.encode(x))
    z = torch.randn(3, 2)
    assert torch.equal(again.p_x(z).log_prob(x[:3]), vae.p_x(z).log_prob(x[:3]))


def test_pseudo_inputs_stay_where_they_are_when_units_are_set():
    x = rows() * UNITS
    vae = build("vamp", "normal", 0, x)
    torch.testing.assert_close(
        vae.prior.pseudo_inputs, pv.pseudo_inputs(x, 3, generator=torch.Generator().manual_seed(3))
    )


def test_bounds_of_elements_hold_and_what_never_varies_stands_still():
    low, high = torch.tensor([0.0, 5.0, -1e9]), torch.tensor([1.0, 5.0, 1e9])
    u = low + (high - low) * torch.rand(4, 3)
    prior = VampPrior(NormalPosterior(MLP(3, [8]), 2), u, [low, high])
    with torch.no_grad():
        prior.inputs += 3 * torch.randn(4, 3)
    inside = prior.pseudo_inputs
    assert ((inside >= low) & (inside <= high)).all()
    assert torch.equal(inside[:, 1], torch.full((4,), 5.0))
    inside.sum().backward()
    assert prior.inputs.grad.isfinite().all()
    with pytest.raises(ValueError, match="low <= high for each element"):
        VampPrior(NormalPosterior(MLP(3, [8]), 2), u, [high, low])


def test_units_of_columns_that_never_vary_and_of_one_row():
    x = torch.tensor([[3.0, 0.0, 0.1]]).repeat(7, 1)
    for data in (x, x[:1]):
        center, spread = units_of(data, (3,))
        torch.testing.assert_close(center.float(), x[0])
        torch.testing.assert_close(spread.float(), torch.tensor([3.0, 1.0, 0.1]))


def test_units_of_values_far_from_zero():
    x = 1.6e9 + torch.randn(500, 1, dtype=torch.float64)
    center, spread = units_of(x, (1,))
    torch.testing.assert_close(spread, x.std(0, correction=0))
    assert (center - x.mean(0)).abs() < 1e-6


def test_shared_units_are_one_for_all_elements():
    x = torch.randint(0, 17, (50, 4)).float()
    center, spread = units_of(x, (4,), shared=True)
    assert torch.equal(center.float(), x.mean().expand(4))
    torch.testing.assert_close(spread.float(), x.std(correction=0).expand(4))


def test_units_refuse_another_shape():
    with pytest.raises(ValueError, match=r"Expected data of shape \(n, 3\); got \(5, 4\)"):
        NormalLikelihood(MLP(2, [8]), (3,)).initialize_from(torch.randn(5, 4))


@pytest.mark.parametrize("power", [-60, 0, 60])
def test_the_scaled_normal_is_a_normal_that_does_not_overflow(power):
    x, loc, scale = torch.randn(3, 20).unbind()
    scale, unit = scale.exp(), 2.0**power
    expected = dist.Normal(loc, scale).log_prob(x) - power * math.log(2)
    found = ScaledNormal(unit * loc, unit * scale).log_prob(unit * x)
    torch.testing.assert_close(found, expected)
    assert ScaledNormal(loc, scale).expand((4, 20)).sample().shape == (4, 20)


def test_a_scale_reaches_its_value_at_the_step_size_of_networks():
    class Constant(nn.Module):
        in_features = out_features = 2

        def forward(self, z):
            return torch.zeros_like(z)

    torch.manual_seed(0)
    x = torch.randn(256, 1) * 2e-2
    likelihood = NormalLikelihood(Constant(), (1,))
    vae = VAE(NormalPrior(2), NormalPosterior(MLP(1, [8]), 2), likelihood)
    pv.fit(vae, x, epochs=200, batch_size=64, learning_rate=1e-3, progress=False)
    # From 1 to 2e-2, a factor e^3.9, in 800 steps of 1e-3.
    assert likelihood.scale.item() == pytest.approx(2e-2, rel=0.2)


def test_a_flow_of_ones_own_base_sees_units():
    flow = FlowPosterior(OwnPosterior(2, (3,)), flows.iaf(2, 1, [8]), (3,))
    x = torch.randn(5, 3)
    seen = flow.features(x)
    flow.set_units(torch.full((3,), 8.0), torch.full((3,), 2.0))
    torch.testing.assert_close(flow.features(8 + 2 * x), seen)


@pytest.mark.parametrize("unit", [2.0**-75, 2.0**75])
@pytest.mark.parametrize("kind", ["real", "positive", "hurdle"])
def test_a_column_in_a_tiny_or_huge_unit_is_scored_in_single_precision(kind, unit):
    """The square of a scale of 1e-23 is no number of float32."""
    x = torch.rand(40, 1) + 0.5
    x[::4] = 0.0 if kind == "hurdle" else 1.0
    scores = []
    for values in (x, x * unit):
        likelihood = pv.TableLikelihood(pv.MLP(2, [8]), {"a": kind})
        likelihood.initialize_from(values)
        with torch.no_grad():
            likelihood.head.weight.zero_()
            likelihood.head.bias.zero_()
        scores.append(likelihood(torch.zeros(40, 2)).log_prob(values))
    change = torch.where(x[:, 0] == 0, 0.0, math.log(unit))
    torch.testing.assert_close(scores[1] + change, scores[0], rtol=1e-5, atol=1e-4)
