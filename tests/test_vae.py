"""The VAE: a plain Pyro model and guide, whatever the parts are."""

from __future__ import annotations

import copy
import gc
import io
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import SGD, Adam
from registry import OwnLikelihood, OwnPosterior, OwnPrior, data, make_vae
from torch import nn

from pyro_vaes import flows
from pyro_vaes.core import looking
from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.likelihoods import BernoulliLikelihood, CategoricalLikelihood, NormalLikelihood
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.priors import NormalPrior, VampPrior
from pyro_vaes.vae import VAE, mean_of

pytestmark = pytest.mark.usefixtures("float64")


def train(vae, *batch, steps=3, optim=None, loss=None):
    svi = SVI(vae.model, vae.guide, optim or Adam({"lr": 1e-2}), loss or Trace_ELBO())
    return [svi.step(*batch) for _ in range(steps)]


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(before, module):
    return {name for name, p in module.named_parameters() if not torch.equal(before[name], p)}


# --- the model and the guide --------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [0, 3])
def test_sites_and_plate(num_labels):
    vae, x = make_vae(num_labels=num_labels), data("categorical", 5, 4)
    y = (torch.arange(5) % num_labels,) if num_labels else ()
    guide = poutine.trace(vae.guide).get_trace(x, *y)
    model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x, *y)
    model.compute_log_prob()
    assert model.nodes["z"]["value"] is guide.nodes["z"]["value"]
    assert model.nodes["z"]["log_prob"].shape == model.nodes["x"]["log_prob"].shape == (5,)
    assert model.nodes["x"]["is_observed"] and model.nodes["x"]["value"] is x
    for site in (model.nodes["z"], model.nodes["x"], guide.nodes["z"]):
        assert [(f.name, f.dim, f.size) for f in site["cond_indep_stack"]] == [("data", -1, 5)]


def test_plain_pyro_trains_it():
    """A loss that falls: the whole of it, in Pyro's own words."""
    vae = make_vae()
    x = torch.randint(0, 2, (64, 1)).double().expand(64, 4) * 3
    losses = train(vae, x, steps=200, optim=Adam({"lr": 2e-2}))
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_the_guide_can_be_swapped():
    vae, x = make_vae("mixture", likelihood="normal"), torch.randn(5, 4)
    guide = AutoNormal(vae.model)
    before = values(vae)
    svi = SVI(vae.model, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(3)]
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert {name.split(".")[0] for name in changed(before, vae)} == {"prior", "likelihood"}


def test_pyros_own_utilities_read_it():
    vae, x = make_vae(), data("categorical", 5, 4)
    draws = Predictive(vae.model, guide=vae.guide, num_samples=7)(x)
    assert draws["z"].shape == (7, 5, 2)
    many = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    one_by_one = Trace_ELBO(num_particles=50)
    vectorized, looped = (loss.loss(vae.model, vae.guide, x) for loss in (many, one_by_one))
    assert vectorized == pytest.approx(looped, rel=0.1)


# --- who owns which parameters ------------------------------------------------------------------


def test_a_copy_trains_its_own_parameters():
    vae, x = make_vae(), data("categorical", 5, 4)
    train(vae, x)
    clone = copy.deepcopy(vae)
    assert clone.name != vae.name
    of_vae, of_clone = values(vae), values(clone)
    train(clone, x)
    assert not changed(of_vae, vae)
    assert changed(of_clone, clone) == set(of_clone)
    # And the original is not affected.
    train(vae, x)
    assert changed(of_vae, vae) == set(of_vae)


def test_two_vaes_share_no_parameters():
    first, second, x = make_vae(), make_vae(), data("categorical", 5, 4)
    before = values(second)
    train(first, x)
    assert not changed(before, second)
    train(second, x)
    assert changed(before, second) == set(before)


def test_a_name_is_never_given_twice():
    names = set()
    for _ in range(4):
        names.add(make_vae().name)
        gc.collect()  # The next may well lie at the address of the last.
    assert len(names) == 4


def test_parts_shared_on_purpose_are_trained_by_both():
    prior = NormalPrior(2, 3)
    first, second = (
        VAE(prior, NormalPosterior(MLP(4, [8]), 2), NormalLikelihood(MLP(2, [8]), (4,)))
        for _ in range(2)
    )
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    for vae in (first, second):
        before = values(prior)
        train(vae, x, y)
        assert changed(before, prior) == set(before)


def test_a_tensor_with_two_owners_takes_one_step():
    """A VampPrior holds the VAE's posterior: the gradient is the sum of both ways, taken once."""
    vae, x = make_vae("vamp"), data("categorical", 5, 4)
    assert vae.prior.posterior is vae.posterior
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    grads = dict(zip(values(vae), torch.autograd.grad(loss, list(vae.parameters())), strict=True))
    before = values(vae)
    torch.manual_seed(1)
    train(vae, x, steps=1, optim=SGD({"lr": 1e-3}))
    for name, p in vae.named_parameters():
        torch.testing.assert_close(p, before[name] - 1e-3 * grads[name])


def test_frozen_parameters_stay_frozen_and_are_not_announced():
    vae, x = make_vae(), data("categorical", 5, 4)
    vae.likelihood.requires_grad_(False)
    before = values(vae)
    train(vae, x)
    moved = changed(before, vae)
    assert {name.split(".")[0] for name in moved} == {"posterior"}
    assert not any("likelihood" in name for name in pyro.get_param_store())
    vae.likelihood.requires_grad_(True)
    train(vae, x)
    assert changed(before, vae) == set(before)


def test_a_vae_without_parameters_of_its_prior_announces_none():
    vae, x = make_vae(), data("categorical", 5, 4)
    train(vae, x, steps=1)
    announced = {name.removeprefix(f"{vae.name}.") for name in pyro.get_param_store()}
    assert announced == {name.replace(".", "$$$", 1) for name in values(vae)}


# --- parts of a user's own ----------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["normal", "own", "mixture", "vamp", "realnvp"])
@pytest.mark.parametrize("posterior", ["own", "flow_of_own"])
@pytest.mark.parametrize("likelihood", ["own", "normal"])
def test_modules_without_any_attribute_of_ours_are_parts(prior, posterior, likelihood):
    vae, x = make_vae(prior, posterior, likelihood), torch.randn(6, 4)
    before = values(vae)
    assert all(torch.tensor(train(vae, x)).isfinite())
    assert changed(before, vae) == {name for name in before if "offsets" not in name}
    assert vae.sample(3).shape == (3, 4)
    assert vae.encode(x).shape == (6, 2)
    assert vae.reconstruct(x).shape == (6, 4)
    assert not vae.conditional or likelihood == "own"


class Recorder(nn.Module):
    """Calls a part and keeps what it was called with."""

    def __init__(self, part):
        super().__init__()
        self.part, self.calls = part, []


class WithLabels(Recorder):
    def forward(self, *inputs, y=None):
        self.calls.append(y)
        return self.part(*inputs)


class WithoutLabels(Recorder):
    def forward(self, *inputs):
        self.calls.append(len(inputs))
        return self.part(*inputs)


class Keyword(nn.Module):
    """Takes labels by position under the name ``y``, as a part does."""

    def __init__(self, part):
        super().__init__()
        self.part, self.calls = part, []

    def forward(self, value, y=None):
        self.calls.append(y)
        return self.part(value)


def test_labels_go_only_to_parts_that_take_them():
    prior = WithoutLabels(OwnPrior(2))
    posterior = WithoutLabels(OwnPosterior(2, (4,)))
    likelihood = Keyword(OwnLikelihood(2, (4,), 0))
    vae, x, y = VAE(prior, posterior, likelihood), torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert vae.conditional and not vae.prior_is_conditional
    train(vae, x, y, steps=1)
    assert (prior.calls, posterior.calls) == ([0], [1])
    assert len(likelihood.calls) == 1 and likelihood.calls[0] is y
    likelihood.calls.clear()
    train(vae, x, steps=1)
    assert likelihood.calls == [None]
    vae.sample(2, y=1)
    assert torch.equal(likelihood.calls[-1], torch.tensor([1, 1]))
    vae.encode(x, y), vae.decode(torch.randn(3, 2), y)
    assert likelihood.calls[-1] is y


@pytest.mark.parametrize("which", ["prior", "posterior", "likelihood"])
def test_one_conditional_part_is_enough(which):
    labels = {which: 3}
    p, q, x = (labels.get(part, 0) for part in ("prior", "posterior", "likelihood"))
    vae = VAE(
        NormalPrior(2, p),
        NormalPosterior(MLP(4 + q, [8]), 2, num_labels=q),
        NormalLikelihood(MLP(2 + x, [8]), (4,), x),
    )
    assert vae.conditional and vae.prior_is_conditional == (which == "prior")
    batch, y = torch.randn(6, 4), torch.arange(6) % 3
    before = values(vae)
    train(vae, batch, y)
    assert changed(before, vae) == set(before)
    assert vae.sample(6, y).shape == (6, 4)
    assert vae.reconstruct(batch, y).shape == (6, 4)


class LabelledPosterior(nn.Module):
    """A conditional posterior of a user's own: no attribute, only an argument ``y``."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, y):
        return dist.Normal(self.linear(x) + 10.0 * y.unsqueeze(-1), 1.0).to_event(1)


def test_a_labelled_posterior_of_ones_own_under_a_flow():
    flow = FlowPosterior(LabelledPosterior(), flows.iaf(2, 1), (4,))
    vae = VAE(NormalPrior(2), flow, NormalLikelihood(MLP(2, [8]), (4,)))
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert vae.conditional
    train(vae, x, y, steps=1)
    assert not torch.equal(vae.encode(x, y), vae.encode(x, y.flip(0)))


def test_a_labelled_posterior_of_ones_own_in_a_vamp_prior():
    posterior, labels = LabelledPosterior(), torch.tensor([0, 1, 2])
    prior = VampPrior(posterior, torch.randn(3, 4), labels=labels)
    vae = VAE(prior, posterior, NormalLikelihood(MLP(2, [8]), (4,)))
    train(vae, torch.randn(3, 4), labels, steps=1)
    components = vae.p_z().component_distribution.base_dist.loc
    torch.testing.assert_close(components, posterior(prior.pseudo_inputs, labels).base_dist.loc)


# --- sizes and ranges ---------------------------------------------------------------------------


def test_parts_of_different_sizes_are_refused():
    posterior = NormalPosterior(MLP(4, [8]), 2)
    with pytest.raises(
        ValueError, match="agree on latent_dim; got prior 3, posterior 2, likelihood 2"
    ):
        VAE(NormalPrior(3), posterior, NormalLikelihood(MLP(2, [8]), (4,)))
    with pytest.raises(
        ValueError, match=r"agree on event_shape; got posterior \(4,\), likelihood \(2, 2\)"
    ):
        VAE(NormalPrior(2), posterior, NormalLikelihood(MLP(2, [8]), (2, 2)))


def test_the_posterior_learns_the_range_of_the_data_from_the_likelihood():
    def ranged(likelihood, **options):
        posterior = NormalPosterior(MLP(4, [8]), 2, **options)
        VAE(NormalPrior(2), posterior, likelihood)
        return posterior.x_range

    levels = CategoricalLikelihood(MLP(2, [8]), (4,), 17)
    assert ranged(levels) == (0.0, 16.0)
    assert ranged(BernoulliLikelihood(MLP(2, [8]), (4,))) == (0.0, 1.0)
    assert ranged(NormalLikelihood(MLP(2, [8]), (4,))) is None
    assert ranged(levels, x_range=(-1, 1)) == (-1.0, 1.0)
    flow = FlowPosterior(NormalPosterior(MLP(4, [8]), 2), flows.planar(2, 1))
    VAE(NormalPrior(2), flow, levels)
    assert flow.base.x_range == (0.0, 16.0)
    VAE(NormalPrior(2), OwnPosterior(2, (4,)), levels)


def test_dtype_and_device_are_those_of_the_parameters():
    vae = make_vae()
    assert (vae.dtype, vae.device) == (torch.float64, torch.device("cpu"))
    assert vae.float().dtype == torch.float32
    assert vae.decode(torch.randn(2, 2).float()).dtype == torch.float32


# --- sampling, encoding, decoding ---------------------------------------------------------------


def test_draws_follow_the_model():
    """``sample`` is ancestral sampling: moments of a linear-Gaussian model are known."""
    vae = VAE(
        NormalPrior(2),
        NormalPosterior(MLP(3, [8]), 2),
        Linear(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, -1.0]]), 0.5),
    )
    weight = vae.likelihood.weight
    draws, means = vae.sample(20_000), vae.sample(20_000, mean=True)
    torch.testing.assert_close(
        draws.T.cov(), weight @ weight.T + 0.25 * torch.eye(3), atol=0.2, rtol=0
    )
    torch.testing.assert_close(means.T.cov(), weight @ weight.T, atol=0.2, rtol=0)


class Linear(nn.Module):
    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, z):
        return dist.Normal(z @ self.weight.T, self.scale).to_event(1)


@pytest.mark.parametrize("posterior", ["normal", "own", "planar", "iaf", "maf", "flow_of_flow"])
def test_encoding_is_the_posterior_mean_the_same_at_each_call(posterior):
    vae, x = make_vae("normal", posterior, "normal", scale=0.5), torch.randn(5, 4)
    before = torch.get_rng_state()
    first = vae.encode(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(vae.encode(x), first)
    draws = vae.encode(x, num_samples=20_000)
    assert draws.shape == (20_000, 5, 2)
    # A flow's mean is estimated from 512 draws.
    assert ((draws.mean(0) - first).abs() < 5 * draws.std(0) / 512**0.5).all()
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(first))


def test_nothing_that_comes_back_holds_a_graph():
    vae, x = make_vae("vamp", "iaf"), data("categorical", 5, 4)
    for value in (vae.sample(2), vae.encode(x), vae.encode(x, num_samples=1), vae.reconstruct(x)):
        assert not value.requires_grad


def test_decoding_takes_any_leading_dimensions():
    vae = make_vae(event_shape=(1, 2, 2))
    z = torch.randn(3, 5, 2)
    assert vae.decode(z).shape == (3, 5, 1, 2, 2)
    torch.testing.assert_close(vae.decode(z)[1], vae.decode(z[1]))
    assert vae.decode(z[0, 0]).shape == (1, 2, 2)


@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp", "maf"])
def test_labels_steer_the_draws(prior):
    vae = make_vae(prior, likelihood="normal", num_labels=3, scale=1.0)
    y = torch.tensor([0, 1, 2, 0])
    assert vae.sample(4, y).shape == (4, 4)
    torch.manual_seed(1)
    one = vae.sample(4, 2)
    torch.manual_seed(1)
    assert torch.equal(one, vae.sample(4, torch.full((4,), 2)))
    torch.manual_seed(1)
    assert not torch.allclose(one, vae.sample(4, 1))
    z = torch.randn(4, 2)
    assert torch.equal(vae.decode(z, 2), vae.decode(z, torch.full((4,), 2)))


def test_labels_that_no_part_takes_are_no_wish_for_a_class():
    vae = make_vae(num_labels=0)
    with pytest.raises(ValueError, match="since no part takes them"):
        vae.sample(4, 2)
    assert vae.encode(data("categorical", 4, 4), torch.arange(4)).shape[0] == 4  # Of a split.


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, r"Expected labels y in 0\.\.2 for a conditional VAE; got none"),
        (3, r"Expected labels y in 0\.\.2; got 3"),
        (-1, r"Expected labels y in 0\.\.2; got -1"),
        (torch.tensor([0, 1, 7, 2]), r"Expected labels y in 0\.\.2; got 7"),
    ],
    ids=str,
)
def test_wrong_labels_are_refused(y, message):
    vae, x = make_vae(num_labels=3), data("categorical", 4, 4)
    with pytest.raises(ValueError, match=message):
        vae.sample(4, y)
    with pytest.raises(ValueError, match=message):
        vae.encode(x, torch.tensor([y] * 4) if isinstance(y, int) else y)
    with pytest.raises(ValueError, match=message if y is not None else "got none"):
        vae.decode(torch.randn(4, 2), y)


def test_a_negative_number_of_draws_is_refused():
    with pytest.raises(ValueError, match="Expected n of 0 or more; got -1"):
        make_vae().sample(-1)
    assert make_vae().sample(0).shape == (0, 4)


def test_labels_of_another_length_are_refused():
    vae = make_vae(num_labels=3)
    with pytest.raises(ValueError, match=r"labels y of shape \(4,\), .*; got shape \(3,\)"):
        vae.sample(4, torch.tensor([0, 1, 2]))


def test_mean_of_a_distribution_that_cannot_tell_it():
    class Mute(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    loc = torch.tensor([5.0, -5.0])
    state = torch.get_rng_state()
    first = mean_of(Mute(loc, 1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first - loc).abs().max() < 0.3
    assert torch.equal(first, mean_of(Mute(loc, 1.0)))


def test_ten_steps_of_our_objective_through_plain_svi():
    vae, x = make_vae("vamp", "iaf"), data("categorical", 5, 4)
    before = values(vae)
    assert all(torch.tensor(train(vae, x, steps=10, loss=ELBO())).isfinite())
    assert changed(before, vae) == set(before)


# --- arrays, labels and modes as they come ------------------------------------------------------


@pytest.mark.parametrize("prior", ["normal", "mixture", "gtm", "vamp"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool, torch.float32])
def test_labels_of_any_dtype_are_numbers_not_masks(prior, dtype):
    torch.manual_seed(0)
    vae = make_vae(prior, "normal", "normal", num_labels=2)
    x, y = torch.randn(2, 4), torch.tensor([1, 0])
    for call in (
        lambda y: vae.p_z(y).log_prob(torch.ones(2, 2)),
        lambda y: vae.prior(y).log_prob(torch.ones(2, 2)),
        lambda y: vae.posterior(x, y).mean,
        lambda y: vae.likelihood(torch.ones(2, 2), y).mean,
        lambda y: poutine.trace(vae.guide).get_trace(x, y).nodes["z"]["fn"].mean,
    ):
        assert torch.equal(call(y.to(dtype)), call(y))


def test_own_parts_are_given_labels_as_numbers():
    vae = VAE(NormalPrior(2), OwnPosterior(2, (4,)), OwnLikelihood(2, (4,), 3))
    z, y = torch.randn(3, 2), torch.tensor([1, 0, 1])
    assert torch.equal(vae.p_x(z, y.to(torch.uint8)).mean, vae.p_x(z, y).mean)


def test_labels_that_are_no_whole_numbers_are_refused():
    vae = make_vae("mixture", "normal", "normal", num_labels=3)
    x = torch.randn(2, 4)
    for call in (vae.prior, lambda y: vae.encode(x, y), lambda y: vae.model(x, y)):
        for wrong in (torch.tensor([0.5, 1.0]), torch.tensor([float("nan"), 1.0])):
            with pytest.raises(ValueError, match="whole numbers"):
                call(wrong)
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*not one-hot"):
        vae.encode(x, torch.eye(3)[:2])
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        vae.encode(x, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="whole numbers; got"):
        vae.sample(2, ["cat", "dog"])


def test_arrays_and_lists_are_taken_wherever_tensors_are():
    vae = make_vae("normal", "normal", "normal", num_labels=3)
    x, y, z = torch.randn(5, 4), torch.arange(5) % 3, torch.randn(5, 2)
    for form in (lambda t: t.numpy(), lambda t: t.tolist(), lambda t: t.float()):
        torch.testing.assert_close(
            vae.encode(form(x), form(y)), vae.encode(x, y), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            vae.reconstruct(form(x), form(y)), vae.reconstruct(x, y), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            vae.decode(form(z), form(y)), vae.decode(z, y), atol=1e-6, rtol=0
        )
    assert vae.decode(torch.zeros(5, 2, dtype=torch.long), 1).shape == (5, 4)
    with pytest.raises(ValueError, match=r"z of shape \(\.\.\., 2\); got \(5, 3\)"):
        vae.decode(torch.zeros(5, 3), 1)
    with pytest.raises(ValueError, match="real numbers"):
        vae.encode([["a"] * 4], 0)
    pyro.set_rng_seed(0)
    expected = Trace_ELBO().loss(vae.model, vae.guide, x, y)
    pyro.set_rng_seed(0)
    assert Trace_ELBO().loss(vae.model, vae.guide, x.numpy(), y.numpy()) == expected


def _with_layer(layer):
    network = nn.Sequential(nn.Linear(4, 8), layer, nn.ReLU())
    network.in_features, network.out_features = 4, 8
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5))
    decoder.in_features, decoder.out_features = 2, 8
    return VAE(NormalPrior(2), NormalPosterior(network, 2), NormalLikelihood(decoder, (4,)))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)])
def test_looking_changes_nothing_and_depends_on_no_mode(layer):
    vae = _with_layer(copy.deepcopy(layer)).double()
    vae.train()
    vae.likelihood.eval()
    state = copy.deepcopy(vae.state_dict())
    modes = [module.training for module in vae.modules()]
    x = torch.randn(9, 4)
    paths = (lambda x: vae.interpolate(x, -x, 3), lambda x: vae.traverse(x, steps=3))
    for look in (vae.encode, vae.reconstruct, lambda x: vae.decode(x[:, :2]), *paths):
        assert torch.equal(look(x), look(x))
        torch.testing.assert_close(look(x)[:2], look(x[:2]))
    vae.sample(3)
    assert all(torch.equal(state[name], tensor) for name, tensor in vae.state_dict().items())
    assert modes == [module.training for module in vae.modules()]


def test_the_mean_of_draws_is_that_of_pieces(monkeypatch):
    posterior = FlowPosterior(NormalPosterior(MLP(4, [8]), 2), flows.iaf(2, 1, [8]))
    d = posterior(torch.randn(300, 4))
    mean = mean_of(d)
    monkeypatch.setattr("pyro_vaes.core.looking._MEAN_NUMBERS", 600 * 7)
    assert (mean_of(d) - mean).abs().max() < 0.5  # other draws, as many of them
    assert torch.equal(mean_of(d), mean_of(d))


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_shows_the_time_left_on_a_terminal_only(terminal, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    screen = Screen()
    monkeypatch.setattr(looking, "_DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", screen)
    found = looking.in_pieces(lambda rows, y: rows * 2, torch.arange(10), None, 2)
    assert found.tolist() == list(range(0, 20, 2))
    assert ("Computing" in screen.getvalue()) == terminal


def test_an_own_network_that_does_not_say_its_sizes_is_named():
    silent = nn.Sequential(nn.Linear(4, 8))
    for build in (
        lambda: NormalPosterior(silent, 2),
        lambda: NormalLikelihood(silent, (4,)),
    ):
        with pytest.raises(ValueError, match="got Sequential without in_features"):
            build()


# --- paths through the latent space ---------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["normal", "iaf"])
def test_a_line_between_two_rows_begins_and_ends_at_their_reconstructions(posterior):
    vae, a, b = make_vae("normal", posterior, "normal"), torch.randn(3, 4), torch.randn(3, 4)
    line = vae.interpolate(a, b, steps=5)
    assert line.shape == (3, 5, 4)
    torch.testing.assert_close(line[:, 0], vae.reconstruct(a))
    torch.testing.assert_close(line[:, -1], vae.reconstruct(b))
    middle = vae.decode((vae.encode(a) + vae.encode(b)) / 2)
    torch.testing.assert_close(line[:, 2], middle)
    with pytest.raises(ValueError, match="Expected 3 rows b"):
        vae.interpolate(a, b[:2])
    with pytest.raises(ValueError, match="steps of at least 2"):
        vae.interpolate(a, b, steps=1)


def test_a_traversal_moves_one_unit_through_the_prior():
    vae, x = make_vae("normal", "normal", "normal"), torch.randn(3, 4)
    made = vae.traverse(x, [1], steps=5)
    assert made.shape == (3, 1, 5, 4)
    # The prior is normal: 95 % of it, by 1000 draws.
    z = vae.encode(x).expand(5, 3, 2).clone()
    prior = vae.p_z().base_dist
    low, high = prior.loc - 1.96 * prior.scale, prior.loc + 1.96 * prior.scale
    z[..., 1] = torch.linspace(low[1].item(), high[1].item(), 5)[:, None]
    expected = vae.decode(z).movedim(1, 0)
    torch.testing.assert_close(made[:, 0], expected, atol=0.1, rtol=0.1)
    assert not torch.allclose(made[:, 0, 0], made[:, 0, -1], atol=1e-3)
    both = vae.traverse(x, steps=5)
    assert both.shape == (3, 2, 5, 4)
    torch.testing.assert_close(both[:, 1:], made)
    for units in ([], [2], [-1]):
        with pytest.raises(ValueError, match=r"units in 0\.\.1"):
            vae.traverse(x, units)


@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp", "realnvp"])
def test_paths_of_a_conditional_model_keep_each_rows_label(prior):
    vae, x, y = make_vae(prior, num_labels=3), data("categorical", 4, 4), torch.tensor([0, 2, 1, 2])
    state = torch.get_rng_state()
    line, made = vae.interpolate(x, x.flip(0), 3, y), vae.traverse(x, [0], 3, y)
    assert torch.equal(torch.get_rng_state(), state)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = vae.interpolate(x[rows], x.flip(0)[rows], 3, y[rows])
        torch.testing.assert_close(line[rows], alone)
    torch.testing.assert_close(vae.traverse(x, [0], 3, y), made)
    with pytest.raises(ValueError, match="labels"):
        vae.traverse(x, [0], 3)
