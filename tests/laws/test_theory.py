"""The assignment's derivations as numbers: one test for each equation or question, by its number.

On the models of ``pyro_vaes.exact`` both sides of an equation are known, so they are compared to
rounding. That the tests can fail is tested too: :data:`PLANTED` breaks a formula for each.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from helpers import jacobian
from pyro.distributions.transforms.planar import ConditionedPlanar
from registry import scramble
from torch import Tensor

from pyro_vaes import flows
from pyro_vaes.data.dataset import load_data
from pyro_vaes.distributions.mixtures import Mixture
from pyro_vaes.exact import linear_gaussian as exact
from pyro_vaes.exact.discrete import Discrete
from pyro_vaes.exact.linear_gaussian import LinearGaussian
from pyro_vaes.exact.quadrature import Quadrature
from pyro_vaes.flows import autoregressive
from pyro_vaes.inference.divergences import Divergence
from pyro_vaes.inference.elbo import ELBO
from pyro_vaes.inference.info import InfoELBO
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.likelihoods import NormalLikelihood
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.priors import MixturePrior, NormalPrior, VampPrior
from pyro_vaes.vae import VAE

pytestmark = pytest.mark.usefixtures("float64")


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def tables(seed: int = 0, states: int = 3, values: int = 5) -> Discrete:
    """A discrete model in which no two distributions are the same."""
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> Tensor:
        return (1.5 * torch.randn(*shape, generator=generator)).softmax(-1)

    return Discrete(table(states), table(states, values), table(values, states), table(values))


def linear(data_dim: int = 4, latent_dim: int = 2) -> LinearGaussian:
    """Probabilistic PCA with a diagonal guide that is wrong in every respect."""
    model = LinearGaussian(torch.randn(data_dim, latent_dim), torch.randn(data_dim), 0.7)
    wrong = exact.diagonal_posterior(
        0.3 * torch.randn(latent_dim, data_dim), torch.randn(latent_dim), torch.rand(latent_dim) + 1
    )
    return model.with_posterior(wrong)


def neural(posterior: str = "normal", prior: str = "mixture", latent_dim: int = 2) -> VAE:
    """A VAE of networks with parameters of size one."""
    q = NormalPosterior(MLP(4, [8], "tanh"), latent_dim)
    if posterior != "normal":
        q = FlowPosterior(q, flows.FlowRecipe(posterior, latent_dim, 3))
    p = {
        "normal": lambda: NormalPrior(latent_dim),
        "mixture": lambda: MixturePrior(latent_dim, 3),
        "vamp": lambda: VampPrior(q, torch.randn(3, 4)),
    }[prior]()
    return scramble(VAE(p, q, NormalLikelihood(MLP(latent_dim, [8], "tanh"), (4,))))  # type: ignore[return-value]


# --- question 1: the ELBO -----------------------------------------------------------------------


def test_eq_1_2_3_are_one_number_and_bound_the_evidence():
    model = tables()
    first, second, third = model.elbo()
    close(second, first)
    close(third, first)
    # The evidence by its definition, sum_z p(x | z) p(z), and the true posterior by Bayes' rule.
    evidence = model.prior @ model.likelihood
    bayes = (model.prior.unsqueeze(-1) * model.likelihood / evidence).mT
    gap = (model.posterior * (model.posterior / bayes).log()).sum(-1)
    assert (gap > 0.01).all()
    close(model.log_prob, evidence.log())
    close(model.gap(), gap)
    close(first + gap, evidence.log())
    tight = Discrete(model.prior, model.likelihood, bayes, model.data)
    close(tight.elbo()[0], evidence.log())


def test_eq_1_2_3_where_everything_is_normal():
    """ELBO, evidence and gap are three closed forms of their own; they must add up."""
    model = linear()
    x = torch.randn(6, 4)
    assert (model.gap(x) > 0.1).all()
    close(model.elbo(x) + model.gap(x), model.log_prob(x), 1e-10)
    weight, bias, _ = model.theta
    tight = LinearGaussian(weight, bias, 0.7)
    close(tight.gap(x), torch.zeros(6), 1e-10)
    close(tight.elbo(x), tight.log_prob(x), 1e-10)


@contextmanager
def exact_noise(dim: int) -> Iterator[int]:
    """Replaces normal noise by all 2^d vectors of signs, one for each particle.

    Their mean is 0 and their covariance I: means over them of anything quadratic are exact.
    """
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * dim).reshape(-1, 1, dim)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("normal", "multivariate_normal"):
            patch.setattr(
                f"torch.distributions.{module}._standard_normal",
                lambda shape, dtype, device: signs.to(dtype).expand(shape),
            )
        yield len(signs)


def test_eq_4_reparameterised_gradients_are_those_of_the_bound():
    """The gradient that SGD follows is, in expectation, that of (4), for theta and for phi."""
    model, x = linear(), torch.randn(6, 4)
    with exact_noise(2) as particles:
        objective = ELBO(num_particles=particles, vectorize_particles=True)
        loss = objective.differentiable_loss(model.vae.model, model.vae.guide, x)
    bound = model.elbo(x).sum()
    close(-loss, bound, 1e-10)
    parameters = dict(model.vae.named_parameters())
    assert len(parameters) == 5
    estimated = torch.autograd.grad(-loss, list(parameters.values()))
    expected = torch.autograd.grad(bound, list(parameters.values()))
    for one, other in zip(estimated, expected, strict=True):
        assert other.abs().max() > 0.01
        close(one, other, 1e-9)


def test_eq_5_6_7_vaes_optimise_in_the_augmented_space():
    """(5) is the average ELBO. (6) and (7) are its KL alone: they lack its constant E[log p_D]."""
    model = tables()
    fifth, sixth, seventh = model.augmented()
    constant = (model.data * model.data.log()).sum()
    close(fifth, (model.data * model.elbo()[0]).sum())
    # The divergence over pairs (x, z), entry by entry.
    kl = sum(
        model.data[x]
        * model.posterior[x, z]
        * math.log(
            model.data[x] * model.posterior[x, z] / (model.prior[z] * model.likelihood[z, x])
        )
        for x, z in itertools.product(range(5), range(3))
    )
    close(fifth - constant, -kl)
    close(sixth, -kl)
    close(seventh, -kl)
    assert constant < -0.5


# --- question 2: flow posteriors ----------------------------------------------------------------


def planar(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """f(z) = z + u h(w'z + b) with h = tanh."""
    return z + u * ((w * z).sum(-1, keepdim=True) + b).tanh()


def psi(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """(11)."""
    return (1 - ((w * z).sum(-1, keepdim=True) + b).tanh().square()) * w


def push(z: Tensor, layers: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """z_K and sum_k ln |1 + u_k' psi_k(z_{k-1})|."""
    total = torch.zeros(z.shape[:-1])
    for u, w, b in layers:
        total = total + (1 + (u * psi(z, w, b)).sum(-1)).abs().log()
        z = planar(z, u, w, b)
    return z, total


def layers_of(posterior: FlowPosterior, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """u, w and b of each planar layer at x; u as constrained, so that the layer has an inverse."""
    layers = []
    for transform in posterior.flow(posterior.features(x)):
        b, u, w = transform._params
        layers.append((transform.u_hat(u, w), w, b))
    return layers


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_eq_11_planar_determinant_is_autograds(dim):
    layers = [(torch.randn(dim), torch.randn(dim), torch.randn(1)) for _ in range(4)]
    z = torch.randn(200, dim)
    _, total = push(z, layers)
    close(total, torch.linalg.slogdet(jacobian(lambda z: push(z, layers)[0], z))[1], 1e-9)


def test_eq_11_planar_log_density_of_the_library():
    vae, x = neural("planar"), torch.randn(50, 4)
    q = vae.posterior(x)
    z_k = q.rsample()
    log_q = q.log_prob(z_k)
    z_0 = z_k
    for transform in reversed(q.transforms):
        z_0 = transform.inv(z_0)  # remembered, not solved for
    by_hand, total = push(z_0, layers_of(vae.posterior, x))
    close(by_hand, z_k)
    close(log_q, vae.posterior.base(x).log_prob(z_0) - total, 1e-10)
    # On a line the density integrates to one over where the flow takes z_0.
    vae = neural("planar", latent_dim=1)
    z_0 = torch.linspace(-60, 60, 200_001).reshape(-1, 1, 1)
    z_k, total = push(z_0, layers_of(vae.posterior, x[:5]))
    log_q = vae.posterior.base(x[:5]).log_prob(z_0) - total
    close(torch.trapezoid(log_q.exp(), z_k.squeeze(-1), dim=0), torch.ones(5), 1e-6)


def right_side_of_12(vae: VAE, x: Tensor, z_0: Tensor) -> Tensor:
    """What the assignment's (12) takes the mean of."""
    z_k, total = push(z_0, layers_of(vae.posterior, x))
    log_joint = vae.p_x(z_k).log_prob(x) + vae.p_z().log_prob(z_k)
    return vae.posterior.base(x).log_prob(z_0) - log_joint - total


def test_eq_12_sign_is_negative_elbo():
    """As it is printed, (12) is the free energy: the loss, no lower bound. ELBO = -(12)."""
    vae, x = neural("planar"), torch.randn(5, 4)
    with torch.no_grad():
        torch.manual_seed(1)
        z_0 = vae.posterior.base(x).expand((4000, 5)).sample()
        energy = right_side_of_12(vae, x, z_0).mean(0)
        torch.manual_seed(1)
        objective = ELBO(num_particles=4000, vectorize_particles=True)
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
    close(loss, energy.sum(), 1e-8)
    evidence = Quadrature(vae).log_prob(x)
    assert (-energy < evidence - 0.1).all(), "minus (12) is a lower bound"
    assert (energy > evidence + 0.1).all(), "(12) itself is not"


def test_question_2_4_iaf_draws_in_one_pass_and_scores_what_it_drew():
    """One pass of the network a draw; its Jacobian is triangular; the inverse recovers z_0."""
    dim, depth = 5, 3
    flow = scramble(flows.iaf(dim, depth).build(), 0.7)
    passes = []
    for layer in flow.layers:
        layer.network.register_forward_hook(lambda *_: passes.append(1))
    base = dist.Normal(torch.zeros(20, dim), 1.0).to_event(1)
    q = dist.TransformedDistribution(base, flow(None))
    z_k = q.rsample()
    own = q.log_prob(z_k)
    assert len(passes) == depth

    def forward(z: Tensor) -> Tensor:
        for transform in flow(None):
            z = transform(z)
        return z

    z_0 = z_k
    for transform in reversed(flow(None)):  # new transforms: they remember nothing
        z_0 = transform.inv(z_0)
    close(forward(z_0), z_k, 1e-9)
    by_definition = base.log_prob(z_0) - torch.linalg.slogdet(jacobian(forward, z_0))[1]
    close(own, by_definition, 1e-9)
    close(dist.TransformedDistribution(base, flow(None)).log_prob(z_k.clone()), own, 1e-9)
    one = jacobian(flow.layers[0](None)[0], z_0)
    close(one.triu(1), torch.zeros_like(one))
    assert (one.diagonal(dim1=-2, dim2=-1) > 0).all()


# --- question 3: learned priors -----------------------------------------------------------------


def test_eq_14_three_terms():
    model = tables()
    reconstruction, entropy, prior = model.terms_14()
    x, z = torch.meshgrid(torch.arange(5), torch.arange(3), indexing="ij")
    weights = model.data[x] * model.posterior[x, z]
    close(reconstruction, (weights * model.likelihood[z, x].log()).sum())
    close(entropy, (weights * -model.posterior[x, z].log()).sum())
    # E_{q(z)}, over the aggregated posterior, is E_{q(x)} E_{q(z | x)}.
    close(prior, (weights * model.prior[z].log()).sum())
    close(prior, ((model.data @ model.posterior) * model.prior.log()).sum())
    close(reconstruction + entropy + prior, (model.data * model.elbo()[0]).sum())


def test_question_3_2_optimal_prior_is_aggregated_posterior():
    model = tables()
    others = [tables(seed).prior for seed in range(1, 200)]

    def bound(prior: Tensor) -> Tensor:
        return Discrete(prior, model.likelihood, model.posterior, model.data).augmented()[0]

    best = bound(model.aggregated)
    for prior in others:
        # What another prior loses is its distance to the aggregated posterior.
        lost = (model.aggregated * (model.aggregated / prior).log()).sum()
        assert lost > 0
        close(best - bound(prior), lost)
    # The Lagrangian is stationary there, with the multiplier beta = -1.
    prior = model.aggregated.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((model.data @ model.posterior) @ prior.log(), prior)
    close(gradient - 1, torch.zeros(3))


@pytest.mark.parametrize("posterior", ["normal", "iaf"])
def test_question_3_3_vamp_with_data_is_aggregated_posterior(posterior):
    """K = N pseudo-inputs at the data: no distance remains between q(z) and the prior."""
    vae = neural(posterior)
    x, z = torch.randn(7, 4), torch.randn(30, 2)
    prior = VampPrior(vae.posterior, x)
    each = torch.stack([vae.posterior(x_n).log_prob(z) for x_n in x])
    close(prior().log_prob(z), each.logsumexp(0) - math.log(7), 1e-10)
    if posterior == "normal":
        vamp = Quadrature(VAE(prior, vae.posterior, vae.likelihood))
        close(vamp.marginal_kl(x), torch.zeros(()), 1e-6)
        # (3) then loses nothing but the mutual information.
        reconstruction = vamp.elbo(x).mean() + vamp.mutual_information(x)
        other = Quadrature(vae)
        lost = other.mutual_information(x) + other.marginal_kl(x)
        close(other.elbo(x).mean(), reconstruction - lost, 1e-5)
        assert other.marginal_kl(x) > 0.1


def gradient(value: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True))


def through_z_and_directly(vae: VAE, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each encoder parameter, the gradient of ln p(z): in all, through z, and not through z."""
    phi = list(vae.posterior.parameters())
    z = vae.posterior(x).rsample()
    total = gradient(vae.p_z().log_prob(z).sum(), phi)
    # Stop at z, and continue by the chain rule: d ln p / d z times d z / d phi.
    stop = z.detach().requires_grad_()
    value = vae.p_z().log_prob(stop).sum()
    (at_z,) = gradient(value, [stop])
    through = gradient((z * at_z).sum(), phi)
    direct = gradient(value, phi)
    for parameter, *found in zip(phi, total, through, direct, strict=True):
        yield tuple(torch.zeros_like(parameter) if g is None else g for g in found)  # type: ignore[misc]


def test_question_3_6_gradient_paths():
    """VampPrior: prior and encoder are coupled. MoG, like N(0, I): by z alone."""
    x = torch.randn(6, 4)
    for name in ("normal", "mixture"):
        for total, through, direct in through_z_and_directly(neural(prior=name), x):
            close(total, through)
            assert through.abs().max() > 1e-3
            assert not direct.any()
    vae = neural(prior="vamp")
    for total, through, direct in through_z_and_directly(vae, x):
        close(total, through + direct, 1e-10)
        assert direct.abs().max() > 1e-3
    # lambda = {u_1, ..., u_K, phi} learns from ln p(z); of the mixture, its means, scales, weights.
    for prior in (vae.prior, neural(prior="mixture").prior):
        for found in gradient(prior().log_prob(torch.randn(9, 2)).sum(), list(prior.parameters())):
            assert found is not None and found.abs().max() > 1e-3


# --- question 4: posterior collapse and InfoVAE -------------------------------------------------


def test_question_4_1_the_elbo_cannot_tell_collapse_from_inference():
    """Its maximum, E[log p_D(x)], is reached with I_q(x; z) = 0 as well as with I_q(x; z) > 0."""
    model = tables()
    best = (model.data * model.data.log()).sum()
    for seed in range(50):
        assert tables(seed).augmented()[0] < (tables(seed).data * tables(seed).data.log()).sum()
    collapsed = Discrete(model.prior, model.data.expand(3, 5), model.prior.expand(5, 3), model.data)
    decoder = (model.joint / model.joint.sum(0)).mT
    informed = Discrete(model.aggregated, decoder, model.posterior, model.data)
    for reached in (collapsed, informed):
        close(reached.augmented()[0], best)
    close(collapsed.mutual_information, torch.zeros(()))
    assert informed.mutual_information > 0.05
    # (16) prefers the one that infers, by alpha times its information.
    preferred = informed.info_16(0.5, 1.0) - collapsed.info_16(0.5, 1.0)
    close(preferred, 0.5 * informed.mutual_information)


def test_eq_16_is_its_rewritten_form_term_by_term():
    """Up to E[log p_D(x)], which depends on nothing that is learned."""
    model = tables()
    constant = (model.data * model.data.log()).sum()
    aggregated = model.data @ model.posterior
    joint = model.data.unsqueeze(-1) * model.posterior
    information = (joint * (joint / torch.outer(model.data, aggregated)).log()).sum()
    marginal = (aggregated * (aggregated / model.prior).log()).sum()
    close(model.mutual_information, information)
    close(model.marginal_kl, marginal)
    # The two steps of the proof: the KL splits, and so does the distance of the decoders.
    close(model.kl, information + marginal)
    close(model.decoder_kl, information + constant - model.reconstruction)
    for alpha, lambda_ in itertools.product((-1.0, 0.0, 0.3, 1.0), (0.0, 0.7, 1.0, 10.0)):
        close(model.info_rewritten(alpha, lambda_), model.info_16(alpha, lambda_) + constant, 1e-11)
    # (0, 1) is the ELBO, (1 - beta, beta) the beta-VAE.
    elbo = (model.data * model.elbo()[0]).sum()
    close(model.info_rewritten(0.0, 1.0), elbo)
    close(model.info_rewritten(-3.0, 4.0), elbo - 3 * model.kl)


class Known(Divergence):
    """The marginal KL in closed form, in the place of an estimate."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.value = model.marginal_kl

    def forward(self, z: Tensor, prior: dist.Distribution) -> Tensor:
        return self.value()


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.0), (0.4, 3.0), (1.0, 10.0), (-2.0, 3.5)])
def test_eq_16_is_what_the_objective_maximises(alpha, lambda_):
    model, x = linear(), torch.randn(6, 4)
    with exact_noise(2) as particles:
        objective = InfoELBO(
            alpha, lambda_, Known(model), num_particles=particles, vectorize_particles=True
        )
        loss = objective.differentiable_loss(model.vae.model, model.vae.guide, x)
    q = model.vae.q_z(x)
    kl = torch.distributions.kl_divergence(q, model.vae.p_z().expand((6,)))
    pull = (1 - alpha) * kl + (alpha + lambda_ - 1) * model.marginal_kl()
    close(-loss, (model.elbo(x) + kl - pull).sum(), 1e-9)


# --- beyond the equations -----------------------------------------------------------------------


def test_the_importance_weighted_bound_rises_to_the_evidence():
    """E[log 1/S sum_s w_s] over all K^S draws of S states: from the ELBO towards log p(x)."""
    model = tables()
    log_weight = model.log_joint - model.posterior.log()
    bounds = []
    for samples in range(1, 9):
        draws = torch.cartesian_prod(*[torch.arange(3)] * samples).reshape(-1, samples)
        chance = model.posterior.log()[:, draws].sum(-1).exp()
        means = log_weight[:, draws].logsumexp(-1) - math.log(samples)
        bounds.append((chance * means).sum(-1))
    close(bounds[0], model.elbo()[0])
    curve = torch.stack(bounds)
    assert (curve.diff(dim=0) > 0).all()
    assert (curve < model.log_prob).all()
    assert (model.log_prob - curve[-1] < 0.5 * model.gap()).all()


def test_question_5_3_labels_are_0_to_9_and_levels_0_to_16():
    """The assignment gives the labels as {0, ..., 16}: those are the levels of the pixels."""
    digits = load_data("digits")
    assert (digits.num_labels, digits.num_levels) == (10, 17)
    y = torch.cat([split.y for split in (digits.train, digits.val, digits.test)])
    x = torch.cat([split.x for split in (digits.train, digits.val, digits.test)])
    assert torch.equal(y.unique(), torch.arange(10))
    assert torch.equal(x.unique().long(), torch.arange(17))


# --- every test above can fail ------------------------------------------------------------------

HERE = sys.modules[__name__]


def spoiled(name, wrong):
    """:func:`tables` with one attribute of the model computed wrongly."""
    right = tables

    def build(*args):
        model = right(*args)
        setattr(model, name, wrong(model))
        return model

    return build


def wrongly(method, place, wrong):
    """A method of :class:`Discrete` that returns several numbers, one of them wrong."""
    right = getattr(Discrete, method)

    def spoiled_method(self):
        values = list(right(self))
        values[place] = wrong(self, values[place])
        return tuple(values)

    return Discrete, method, spoiled_method


def frozen_vamp(self, y=None):
    """A VampPrior that forgets that it shares the encoder's parameters."""
    with torch.no_grad():
        components = self.posterior(self.pseudo_inputs)
    return Mixture(dist.Categorical(logits=self.logits), components)


def backwards(self, alpha, lambda_):
    return self.reconstruction - (1 + alpha) * self.kl - (alpha + lambda_ - 1) * self.marginal_kl


def one_too_many(self, alpha, lambda_):
    return self.reconstruction - (1 - alpha) * self.kl - (alpha + lambda_) * self.marginal_kl


_autoregressive = autoregressive.Autoregressive.log_abs_det_jacobian
_right_side, _components = right_side_of_12, Mixture.log_prob_components
_planar = ConditionedPlanar.log_abs_det_jacobian
_neural, _trace_loss, _gap = neural, ELBO.trace_loss, LinearGaussian.gap

PLANTED = {
    "2_without_entropy": (
        test_eq_1_2_3_are_one_number_and_bound_the_evidence,
        *wrongly("elbo", 1, lambda m, value: value + (m.posterior * m.posterior.log()).sum(-1)),
    ),
    "3_adds_the_kl": (
        test_eq_1_2_3_are_one_number_and_bound_the_evidence,
        *wrongly("elbo", 2, lambda m, v: 2 * (m.posterior * m.likelihood.log().mT).sum(-1) - v),
    ),
    "gap_the_wrong_way_round": (
        test_eq_1_2_3_are_one_number_and_bound_the_evidence,
        Discrete,
        "gap",
        lambda m: (m.true_posterior * (m.true_posterior / m.posterior).log()).sum(-1),
    ),
    "normal_gap_halved": (
        test_eq_1_2_3_where_everything_is_normal,
        LinearGaussian,
        "gap",
        lambda self, x: 0.5 * _gap(self, x),
    ),
    "4_kl_twice": (
        test_eq_4_reparameterised_gradients_are_those_of_the_bound,
        ELBO,
        "trace_loss",
        lambda self, p, q: _trace_loss(ELBO(2.0), p, q),
    ),
    "5_without_its_constant": (
        test_eq_5_6_7_vaes_optimise_in_the_augmented_space,
        *wrongly("augmented", 0, lambda m, v: v - (m.data * m.data.log()).sum()),
    ),
    "6_gap_not_averaged_over_data": (
        test_eq_5_6_7_vaes_optimise_in_the_augmented_space,
        *wrongly("augmented", 1, lambda m, v: v + (m.data * m.gap()).sum() - m.gap().mean()),
    ),
    "7_without_the_decoder": (
        test_eq_5_6_7_vaes_optimise_in_the_augmented_space,
        *wrongly("augmented", 2, lambda m, v: v + m.decoder_kl),
    ),
    "11_psi_without_the_slope": (
        partial(test_eq_11_planar_determinant_is_autograds, 3),
        HERE,
        "psi",
        lambda z, w, b: w.expand(z.shape),
    ),
    "11_determinant_inverted": (
        test_eq_11_planar_log_density_of_the_library,
        ConditionedPlanar,
        "log_abs_det_jacobian",
        lambda *args: -_planar(*args),
    ),
    "12_with_the_sign_of_an_elbo": (
        test_eq_12_sign_is_negative_elbo,
        HERE,
        "right_side_of_12",
        lambda *args: -_right_side(*args),
    ),
    "iaf_determinant_inverted": (
        test_question_2_4_iaf_draws_in_one_pass_and_scores_what_it_drew,
        autoregressive.Autoregressive,
        "log_abs_det_jacobian",
        lambda *args: -_autoregressive(*args),
    ),
    "14_prior_with_the_wrong_sign": (
        test_eq_14_three_terms,
        *wrongly("terms_14", 2, lambda m, value: -value),
    ),
    "aggregated_over_x_not_over_data": (
        test_question_3_2_optimal_prior_is_aggregated_posterior,
        HERE,
        "tables",
        spoiled("aggregated", lambda m: m.posterior.mean(0)),
    ),
    "vamp_without_its_weights": (
        partial(test_question_3_3_vamp_with_data_is_aggregated_posterior, "normal"),
        Mixture,
        "log_prob_components",
        lambda self, z: _components(self, z) + math.log(self._num_component),
    ),
    "vamp_cut_off_from_the_encoder": (
        test_question_3_6_gradient_paths,
        VampPrior,
        "forward",
        frozen_vamp,
    ),
    "mixture_tied_to_the_encoder": (
        test_question_3_6_gradient_paths,
        HERE,
        "neural",
        lambda prior: _neural(prior="vamp" if prior == "mixture" else prior),
    ),
    "collapse_with_information": (
        test_question_4_1_the_elbo_cannot_tell_collapse_from_inference,
        Discrete,
        "info_16",
        lambda m, alpha, lambda_: -lambda_ * m.marginal_kl - m.decoder_kl,
    ),
    "16_information_is_the_kl": (
        test_eq_16_is_its_rewritten_form_term_by_term,
        HERE,
        "tables",
        spoiled("mutual_information", lambda m: m.kl),
    ),
    "16_alpha_with_the_wrong_sign": (
        test_eq_16_is_its_rewritten_form_term_by_term,
        Discrete,
        "info_rewritten",
        backwards,
    ),
    "16_lambda_one_too_many": (
        test_eq_16_is_its_rewritten_form_term_by_term,
        Discrete,
        "info_rewritten",
        one_too_many,
    ),
    "16_divergence_left_out": (
        partial(test_eq_16_is_what_the_objective_maximises, 0.4, 3.0),
        InfoELBO,
        "trace_loss",
        lambda self, p, q: _trace_loss(self, p, q),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(name, monkeypatch):
    test, owner, attribute, wrong = PLANTED[name]
    test()
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        test()
