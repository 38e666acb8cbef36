"""InfoVAE's objective, its divergences, and many-sample bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import Adam
from registry import data, make_vae
from torch import Tensor

import pyro_vaes as pv
from pyro_vaes.inference.divergences import KERNELS, MMD, Adversarial, mmd2
from pyro_vaes.inference.elbo import ELBO, bound_terms
from pyro_vaes.inference.info import InfoELBO
from pyro_vaes.runs import build as assemble
from pyro_vaes.runs import resolve, run
from pyro_vaes.runs.build import build_objective
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors, optimizer_tensors
from pyro_vaes.training.validation import validate

kernels = pytest.mark.parametrize("kernel", KERNELS)


def value_and_grads(objective: Any, vae: Any, x: Tensor, seed: int = 3) -> tuple[float, list[Any]]:
    pyro.set_rng_seed(seed)
    loss = objective.differentiable_loss(vae.model, vae.guide, x)
    return loss.item(), list(torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True))


def same(a: list[Any], b: list[Any]) -> bool:
    return all((g is None and h is None) or torch.equal(g, h) for g, h in zip(a, b, strict=True))


# --- the family ---------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [None, MMD()])
@pytest.mark.parametrize("options", [{}, {"free_bits": 0.5}, {"num_particles": 2}])
def test_zero_one_is_the_elbo_bit_for_bit(divergence: Any, options: dict[str, Any]) -> None:
    vae = make_vae("vamp")
    x = data("categorical", 7, 4)
    info = InfoELBO(0.0, 1.0, divergence, **options)
    assert info.divergence is None
    (a, grads), (b, others) = (value_and_grads(o, vae, x) for o in (info, ELBO(**options)))
    assert a == b
    assert same(grads, others)
    pyro.set_rng_seed(1)
    info.differentiable_loss(vae.model, vae.guide, x)
    after = torch.rand(())
    pyro.set_rng_seed(1)
    ELBO(**options).differentiable_loss(vae.model, vae.guide, x)
    assert torch.rand(()) == after  # No draw was spent on a divergence of weight zero.


def test_one_minus_beta_and_beta_is_the_beta_vae() -> None:
    vae, x = make_vae(), data("categorical", 7, 4)
    for beta in (0.3, 0.9, 4.0):
        info = InfoELBO(1 - beta, beta)
        a, grads = value_and_grads(info, vae, x)
        b, others = value_and_grads(pv.BetaELBO(1 - (1 - beta)), vae, x)
        assert a == b
        assert same(grads, others)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((1.5, 1.0, MMD()), r"alpha of at most 1, since the KL's weight 1 - alpha is negative"),
        ((0.5, 0.4, MMD()), r"alpha \+ lambda_ of at least 1, since the divergence's weight"),
        ((0.5, 1.0, None), r"a divergence for its weight alpha \+ lambda_ - 1 = 0.5"),
        ((math.nan, 1.0, MMD()), "finite"),
        ((0.0, math.inf, MMD()), "finite"),
        ((-math.inf, 1.0, MMD()), "finite"),
    ],
)
def test_invalid_pairs_are_refused_with_the_reason(arguments: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        InfoELBO(*arguments)


def test_weights_meant_to_vanish_do() -> None:
    for tenth in range(11):
        assert InfoELBO(tenth / 10, 1 - tenth / 10).divergence is None
    assert InfoELBO(1.0, 0.5, MMD()).kl_weight == 0.0


@pytest.mark.usefixtures("float64")
def test_value_and_gradient_are_those_by_hand() -> None:
    vae, x = make_vae("normal"), data("categorical", 6, 4)
    objective = InfoELBO(0.25, 4.0, MMD(bandwidth=3.0))
    value, grads = value_and_grads(objective, vae, x)

    pyro.set_rng_seed(3)
    q = vae.q_z(x)
    z = q.rsample()
    prior = dist.Normal(torch.zeros(6, 2), torch.ones(6, 2)).to_event(1)
    y = prior.sample()
    kl = q.log_prob(z) - prior.log_prob(z)
    total = torch.zeros(())
    for i, j in itertools.permutations(range(6), 2):  # Gretton et al. 2012, equation 4
        for a, b, sign in ((z[i], z[j], 1), (y[i], y[j], 1), (z[i], y[j], -1), (z[j], y[i], -1)):
            total = total + sign * 3 / (3 + (a - b).square().sum()) / 30
    loss = (0.75 * kl - vae.p_x(z).log_prob(x)).sum() + 6 * 3.25 * total
    expected = torch.autograd.grad(loss, list(vae.parameters()))
    assert value == pytest.approx(loss.item(), abs=1e-10)
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_a_schedule_changes_the_weights_without_retracing(mode: Any) -> None:
    vae, x = make_vae(), data("categorical", 6, 4)
    objective = InfoELBO(0.5, 3.0, MMD())
    svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 0.0}), objective, mode=mode)
    svi.step(x)

    def loss() -> float:
        pyro.set_rng_seed(5)
        return svi.step(x)

    base = loss()
    objective.divergence_weight.mul_(3)
    tripled = loss()
    objective.divergence_weight.fill_(0.0)
    none = loss()
    assert tripled - none == pytest.approx(3 * (base - none), rel=1e-4)
    assert abs(base - none) > 1e-3
    objective.warmup.fill_(0.5)
    with_half = loss()
    objective.warmup.fill_(0.0)
    kl = 2 * (with_half - loss())
    assert none - with_half == pytest.approx(kl / 2, rel=1e-4)


def test_warm_up_leaves_the_divergence() -> None:
    vae, x = make_vae(), data("categorical", 6, 4)
    objective = InfoELBO(0.0, 5.0, MMD())
    objective.warmup.fill_(0.0)
    pyro.set_rng_seed(0)
    traces = objective._get_trace(vae.model, vae.guide, (x,), {})
    loss = objective.trace_loss(*traces).detach()
    assert abs(float(loss + bound_terms(*traces).log_likelihood.detach())) > 1e-3
    with objective.full_weights():
        assert objective.warmup == 1.0


@pytest.mark.usefixtures("float64")
def test_the_weight_of_the_divergence_is_per_datum() -> None:
    """In expectation, the loss per datum does not depend on the batch size."""
    vae, support = make_vae(scale=2.0), data("categorical", 5, 4)
    objective = InfoELBO(1.0, 1.0, MMD())
    with torch.no_grad():
        z = vae.q_z(support).sample((600,)).reshape(-1, 2)
        expected = mmd2(z, torch.randn(3000, 2)).item()
        for n, times in ((2, 600), (40, 60)):
            shares = []
            for _ in range(times):
                x = support[torch.randint(0, 5, (n,))]
                traces = objective._get_trace(vae.model, vae.guide, (x,), {})
                rest = -bound_terms(*traces).log_likelihood
                shares.append((objective.trace_loss(*traces) - rest) / n)
            values = torch.stack(shares)
            error = (values.std() / times**0.5).item()
            assert values.mean().item() == pytest.approx(expected, abs=4 * error + 0.03 * expected)
            assert expected > 6 * error


@pytest.mark.usefixtures("float64")
def test_a_subsample_scales_the_divergence_with_the_rest() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    x = torch.randn(5, 2) + 2
    losses = []
    for weight in (1.0, 0.0):
        objective = InfoELBO(0.0, 2.0, MMD())
        objective.divergence_weight.fill_(weight)
        pyro.set_rng_seed(0)
        losses.append(objective.loss(model, guide, x))
    pyro.set_rng_seed(0)
    z = dist.Normal(x, 0.5).sample()
    expected = mmd2(z, torch.randn(5, 2), paired=True)
    assert losses[0] - losses[1] == pytest.approx(100 * expected.item(), rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_scale_for_each_datum_scales_the_divergence_as_one_for_all() -> None:
    vae, x = make_vae(), data("categorical", 5, 4)
    objective, losses = InfoELBO(1.0, 2.0, MMD()), []
    for scale in (2.0, torch.full((5,), 2.0)):
        model, guide = (poutine.scale(part, scale=scale) for part in (vae.model, vae.guide))
        pyro.set_rng_seed(0)
        losses.append(objective.loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1])


def test_models_without_a_site_to_compare_are_refused() -> None:
    objective = InfoELBO(0.0, 2.0, MMD())

    def run(model: Any, site: str | None = None) -> None:
        guide = poutine.block(model, hide=["x"])
        InfoELBO(0.0, 2.0, MMD(), site=site).loss(model, guide)

    def two() -> None:
        with pyro.plate("data", 4, dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=torch.zeros(4, 2))

    def scalar() -> None:
        with pyro.plate("data", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    with pytest.raises(ValueError, match="one latent site; the model has 'a', 'b'"):
        run(two)
    with pytest.raises(ValueError, match="a latent site 'c'"):
        run(two, "c")
    run(two, "a")
    with pytest.raises(ValueError, match="to_event"):
        run(scalar)
    vae = make_vae()
    with pytest.raises(ValueError, match="at least two data in a batch"):
        objective.loss(vae.model, vae.guide, data("categorical", 1, 4))


@pytest.mark.parametrize("divergence", [MMD(), MMD("rbf"), "adversarial"])
@pytest.mark.parametrize(
    ("prior", "posterior"),
    [("mixture", "normal"), ("vamp", "planar"), ("maf", "normal"), ("realnvp", "planar")],
)
def test_it_trains_with_every_kind_of_part(prior: str, posterior: str, divergence: Any) -> None:
    vae, x = make_vae(prior, posterior), data("categorical", 12, 4)
    divergence = Adversarial(2, [8]) if divergence == "adversarial" else divergence
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), InfoELBO(0.5, 6.0, divergence))
    losses = [svi.step(x) for _ in range(10)]
    assert all(map(math.isfinite, losses))


def test_vectorised_particles_are_samples_of_their_own() -> None:
    vae, x = make_vae(), data("categorical", 5, 4)
    pyro.set_rng_seed(2)
    together = InfoELBO(1.0, 1.0, MMD(), num_particles=3, vectorize_particles=True)
    (traces,) = together._get_traces(vae.model, vae.guide, (x,), {})
    pyro.set_rng_seed(7)
    loss = together.trace_loss(*traces).detach()
    z = traces[0].nodes["z"]["value"]
    assert z.shape == (3, 5, 2)
    pyro.set_rng_seed(7)
    y = torch.randn(3, 5, 2)
    each = sum(mmd2(a, b, paired=True) for a, b in zip(z, y, strict=True))
    expected = 5 * each - bound_terms(*traces).log_likelihood
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# --- MMD ----------------------------------------------------------------------------------------


def brute(x: Tensor, y: Tensor, kernel: str, width: float) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        r2 = (a - b).square().sum().item()
        return width / (width + r2) if kernel == "imq" else math.exp(-r2 / width)

    def mean(pairs: Any) -> float:
        values = [k(a, b) for a, b in pairs]
        return sum(values) / len(values)

    return (
        mean(itertools.permutations(x, 2))
        + mean(itertools.permutations(y, 2))
        - 2 * mean(itertools.product(x, y))
    )


@kernels
@pytest.mark.usefixtures("float64")
def test_mmd2_is_the_sum_over_pairs(kernel: str) -> None:
    x, y = torch.randn(4, 3) + 1, torch.randn(6, 3)
    expected = brute(x, y, kernel, 6.0)
    assert mmd2(x, y, kernel).item() == pytest.approx(expected, abs=1e-12)
    both = (brute(x, y, kernel, 0.5) + brute(x, y, kernel, 9.0)) / 2
    assert mmd2(x, y, kernel, (0.5, 9.0)).item() == pytest.approx(both, abs=1e-12)
    # Far from the origin too, in float32.
    far = mmd2((x + 1000).float(), (y + 1000).float(), kernel)
    assert far.item() == pytest.approx(expected, abs=1e-3)


@kernels
@pytest.mark.usefixtures("float64")
def test_mmd2_is_symmetric_and_blind_to_order_and_place(kernel: str) -> None:
    x, y = torch.randn(7, 2), torch.randn(5, 2) * 2
    value = mmd2(x, y, kernel)
    for other in (
        mmd2(y, x, kernel, 4.0),
        mmd2(x[torch.randperm(7)], y[torch.randperm(5)], kernel),
        mmd2(x + 3, y + 3, kernel),
        mmd2(torch.stack([x, x]), torch.stack([y, y]), kernel)[1],
        mmd2(10 * x, 10 * y, kernel, 400.0),
    ):
        torch.testing.assert_close(other, value)
    order = torch.randperm(7)
    w = torch.randn(7, 2)
    torch.testing.assert_close(
        mmd2(x[order], w[order], kernel, paired=True), mmd2(x, w, kernel, paired=True)
    )


@kernels
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.usefixtures("float64")
def test_mmd2_of_equal_distributions_is_zero_on_average(kernel: str, paired: bool, n: int) -> None:
    values = mmd2(torch.randn(4000, n, 3), torch.randn(4000, n, 3), kernel, paired=paired)
    assert values.min() < 0  # Unbiased, so not a distance.
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.usefixtures("float64")
def test_mmd2_of_gaussians_is_its_closed_form_on_average(n: int, paired: bool) -> None:
    shift, scale, dim, width = 0.7, 0.5, 3, 6.0
    draws = torch.randn(6000, n, dim) * scale + shift
    values = mmd2(draws, torch.randn(6000, n, dim), "rbf", paired=paired)

    def kernel_mean(distance2: float, variance: float) -> float:
        # E exp(-|d|^2 / C) for d ~ N(m, v I): (1 + 2 v / C)^(-D/2) exp(-|m|^2 / (C + 2 v)).
        return (1 + 2 * variance / width) ** (-dim / 2) * math.exp(
            -distance2 / (width + 2 * variance)
        )

    expected = (
        kernel_mean(0, 2 * scale**2)
        + kernel_mean(0, 2)
        - 2 * kernel_mean(dim * shift**2, 1 + scale**2)
    )
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 4 * error
    assert expected > 10 * error


@pytest.mark.usefixtures("float64")
def test_mmd_of_a_conditional_prior_is_unbiased() -> None:
    """Draws i of posterior and prior share a label; pairing them up would bias the estimate."""
    labels = torch.randint(0, 2, (4000, 4))
    centers = 6.0 * labels[..., None].expand(-1, -1, 2)
    prior = dist.Normal(centers, 1.0).to_event(1)
    z = prior.sample()
    values = torch.stack([MMD()(z, prior) for _ in range(2)])
    per_batch = mmd2(z, prior.sample(), paired=True)
    error = per_batch.std() / len(per_batch) ** 0.5
    assert abs(values.mean()) < 4 * error
    biased = mmd2(z, prior.sample()).mean()
    assert biased < -10 * error


@pytest.mark.usefixtures("float64")
def test_the_gradient_of_mmd_reaches_a_prior_that_can_be_differentiated() -> None:
    x = data("categorical", 8, 4)
    reached = {}
    for name in ("maf", "mixture", "vamp"):
        vae = make_vae(name, scale=1.0)
        prior = vae.p_z().expand([8])
        z = vae.q_z(x).rsample()
        own = list(vae.prior.flow.parameters()) if name == "maf" else [next(vae.prior.parameters())]
        if name == "vamp":
            own = [vae.prior.pseudo_inputs]
        grads = torch.autograd.grad(MMD()(z, prior), own, allow_unused=True)
        reached[name] = any(g is not None and bool((g != 0).any()) for g in grads)
    assert reached == {"maf": True, "mixture": False, "vamp": False}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("cubic",), "kernel to be one of imq, rbf; got 'cubic'"),
        (("imq", 0.0), "bandwidth above 0"),
        (("imq", (1.0, -1.0)), "bandwidth above 0"),
        (("imq", ()), "bandwidth above 0"),
        (("rbf", math.inf), "bandwidth above 0"),
    ],
)
def test_bad_kernels_are_refused(arguments: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MMD(*arguments)
    with pytest.raises(ValueError, match=reason):
        mmd2(torch.randn(3, 2), torch.randn(3, 2), *arguments)


# --- Adversarial --------------------------------------------------------------------------------


def trained(shift: float, scale: float, steps: int = 600) -> tuple[Adversarial, Any, Any]:
    torch.manual_seed(0)
    divergence = Adversarial(2, [32], learning_rate=5e-3)
    q = dist.Normal(torch.full((512, 2), shift), scale).to_event(1)
    prior = dist.Normal(torch.zeros(512, 2), 1.0).to_event(1)
    for _ in range(steps):
        divergence(q.sample(), prior)
    return divergence, q, prior


def test_the_discriminator_learns_the_divergence_of_gaussians() -> None:
    divergence, q, prior = trained(0.8, 0.7)
    with torch.no_grad():
        estimate = torch.stack([divergence(q.sample(), prior) for _ in range(50)]).mean()
        other = trained(0.0, 1.0, 300)[0](prior.sample(), prior)
    exact = torch.distributions.kl_divergence(q.base_dist, prior.base_dist)[0].sum()
    assert estimate.item() == pytest.approx(exact.item(), rel=0.15)
    assert abs(other) < 0.1
    with torch.no_grad():  # Nothing is learned without gradients.
        before = named_tensors(divergence)["discriminator.1.weight"].clone()
        divergence(q.sample(), prior)
    assert torch.equal(named_tensors(divergence)["discriminator.1.weight"], before)


def test_its_gradients_are_those_of_the_divergence() -> None:
    """To the posterior through its draws; to a learned prior by the exact -E_q[grad log p]."""
    divergence, _, _ = trained(0.8, 0.7)
    divergence.optimizer.param_groups[0]["lr"] = 0.0
    loc, log_scale = torch.full((2,), 0.8).requires_grad_(), torch.zeros(2).requires_grad_()
    z = loc + 0.7 * torch.randn(40_000, 2)
    prior = dist.Normal(torch.zeros(2), log_scale.exp()).to_event(1).expand([40_000])
    to_loc, to_scale = torch.autograd.grad(divergence(z, prior), (loc, log_scale))
    # d/dm KL(N(m, s^2) || N(0, t^2)) = m / t^2;  d/dlog t = 1 - (s^2 + m^2) / t^2.
    assert to_loc.mean().item() == pytest.approx(0.8, abs=0.15)
    assert to_scale.mean().item() == pytest.approx(1 - 0.49 - 0.64, abs=0.02)
    assert all(p.grad is None for p in divergence.parameters())


@pytest.mark.parametrize("prior", ["mixture", "vamp", "maf"])
def test_every_learned_prior_is_reached(prior: str) -> None:
    vae, x = make_vae(prior, scale=1.0), data("categorical", 8, 4)
    z = vae.q_z(x).sample()
    score = Adversarial(2, [8])(z, vae.p_z().expand([8]))
    grads = torch.autograd.grad(score, list(vae.prior.parameters()), allow_unused=True)
    expected = torch.autograd.grad(
        -vae.p_z().log_prob(z).mean(), list(vae.prior.parameters()), allow_unused=True
    )
    assert any(g is not None and bool((g != 0).any()) for g in grads)
    for grad, other in zip(grads, expected, strict=True):
        assert (grad is None) == (other is None)
        if grad is not None:
            torch.testing.assert_close(grad, other)


def test_bad_discriminators_are_refused() -> None:
    for arguments in ({"latent_dim": 0}, {"latent_dim": 2, "steps": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Adversarial(**arguments)
    with pytest.raises(ValueError, match="learning_rate above 0"):
        Adversarial(2, learning_rate=0.0)
    vae = make_vae()
    with pytest.raises(ValueError, match="latent_dim=3 for Adversarial; got 2"):
        InfoELBO(0.0, 2.0, Adversarial(3)).loss(vae.model, vae.guide, data("categorical", 4, 4))


def test_a_recorded_step_falls_back_with_the_reason() -> None:
    vae, x = make_vae(), data("categorical", 6, 4)
    objective = InfoELBO(0.0, 2.0, Adversarial(2, [8]))
    svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), objective, mode="traced")
    svi.step(x)
    with pytest.warns(UserWarning, match="eager mode.*discriminator of Adversarial is trained"):
        svi.step(x)
    assert svi.mode == "eager"
    steps = optimizer_tensors(objective.divergence.optimizer)["0/step"]
    assert steps == 2  # The attempt to record took none.


# --- fit ----------------------------------------------------------------------------------------

TRAIN, VAL = torch.randint(0, 4, (40, 4)).float(), torch.randint(0, 4, (20, 4)).float()


def info(kind: str, seed: int = 0) -> InfoELBO:
    torch.manual_seed(seed)
    divergence = {"mmd": lambda: MMD("rbf"), "adversarial": lambda: Adversarial(2, [8])}[kind]()
    return InfoELBO(0.5, 4.0, divergence)


def fit(vae: Any, **options: Any) -> Any:
    defaults = {"epochs": 6, "batch_size": 16, "progress": False}
    return pv.fit(vae, TRAIN, VAL, **{**defaults, **options})


def build(prior: str = "vamp", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make_vae(prior)


def equal(a: Any, b: Any) -> bool:
    a, b = named_tensors(a), named_tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["mmd", "adversarial"])
def test_resume_is_exact(kind: str, tmp_path: Any) -> None:
    # A critic that learns in the midst of a step cannot be recorded.
    options = {"warmup_epochs": 2, "mode": "auto" if kind == "adversarial" else "traced"}
    whole, objective = build(), info(kind)
    expected = fit(whole, objective=objective, **options)
    assert expected.mode == ("eager" if kind == "adversarial" else "traced")
    first = build()
    fit(first, objective=info(kind), epochs=3, out=tmp_path, **options)
    # Other weights at first, which the checkpoint must replace.
    resumed, again = build(seed=9), info(kind, seed=9)
    history = fit(resumed, objective=again, out=tmp_path, resume=True, **options)
    assert equal(whole, resumed)
    assert equal(objective.divergence, again.divergence)
    assert [r["val_loss"] for r in history.records] == [r["val_loss"] for r in expected.records]
    if kind == "adversarial":
        states = [optimizer_tensors(o.divergence.optimizer) for o in (objective, again)]
        assert states[0].keys() == states[1].keys() != set()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("kind", ["mmd", "adversarial"])
def test_a_divergence_alone_draws_the_codes_to_the_prior(kind: str) -> None:
    """At alpha = 1 nothing else does: without it (beta = 0) the codes lie elsewhere."""
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))

    def codes(make: Any) -> float:
        torch.manual_seed(0)
        vae = make_vae("normal", "normal", "normal")
        options = {"epochs": 60, "batch_size": 64, "learning_rate": 0.01, "progress": False}
        pv.fit(vae, x, objective=make(), **options)
        torch.manual_seed(1)
        with torch.no_grad():
            return mmd2(vae.q_z(x).sample((8,)).reshape(-1, 2), torch.randn(2048, 2)).item()

    objectives = {
        "mmd": lambda: InfoELBO(1.0, 20.0, MMD()),
        "adversarial": lambda: InfoELBO(1.0, 1.0, Adversarial(2, [32], 5e-3, steps=5)),
    }
    assert codes(objectives[kind]) < 0.02
    assert codes(lambda: pv.BetaELBO(0.0)) > 0.1


def test_another_discriminator_is_refused(tmp_path: Any) -> None:
    fit(build(), objective=info("adversarial"), epochs=2, out=tmp_path)
    other = InfoELBO(0.5, 4.0, Adversarial(2, [9]))
    with pytest.raises(RunFolderError, match="Expected 'discriminator"):
        fit(build(), objective=other, epochs=4, out=tmp_path, resume=True)


def test_validation_is_at_full_weights_and_trains_nothing() -> None:
    vae, objective = build(), info("adversarial")
    objective.warmup.fill_(0.0)
    before = {k: t.clone() for k, t in named_tensors(objective.divergence).items()}
    split = pv.Split(VAL)
    figures = [validate(vae, objective, split, 0) for _ in range(2)]
    assert figures[0] == figures[1]
    after = named_tensors(objective.divergence)
    assert all(torch.equal(before[name], after[name]) for name in before)
    rest = 0.5 * figures[0]["val_kl"] - figures[0]["val_reconstruction"]
    assert figures[0]["val_loss"] != pytest.approx(rest, abs=1e-6)


def test_batches_of_one_are_refused_before_training() -> None:
    objective = info("mmd")
    with pytest.raises(
        ValueError, match=r"2 data in a batch for MMD; got 1 in the last one of 40 at batch_size=13"
    ):
        fit(build(), objective=objective, batch_size=13)
    with pytest.raises(ValueError, match="validation data"):
        pv.fit(build(), TRAIN, VAL[:1], objective=objective, progress=False)
    with pytest.raises(ValueError, match="got 1"):
        fit(build(), objective=objective, batch_size=1)
    fit(build(), objective=info("adversarial"), batch_size=13, epochs=1)


def test_validation_leaves_no_row_for_a_batch_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyro_vaes.training import validation as monitoring

    monkeypatch.setattr(monitoring, "_ROWS", 3)
    for n in range(2, 20):
        rows = monitoring._rows(None, pv.Split(torch.zeros(n, 4)))
        assert n % rows != 1
        assert 3 <= rows <= 6
    split = pv.Split(torch.randint(0, 4, (7, 4)).float())
    assert math.isfinite(validate(build(), info("mmd"), split, 0)["val_loss"])


# --- many-sample bounds -------------------------------------------------------------------------


def renyi(k: int) -> RenyiELBO:
    return RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.usefixtures("float64")
def test_renyi_is_the_importance_weighted_bound_of_each_datum(k: int, num_labels: int) -> None:
    """Burda et al. 2016, equation 8: the logarithm is taken datum by datum, and so the gradient."""
    vae = make_vae("vamp", num_labels=num_labels, scale=1.0)
    x = data("categorical", 6, 4)
    y = (torch.arange(6) % 3,) if num_labels else ()
    parameters = list(vae.parameters())
    pyro.set_rng_seed(4)
    value = renyi(k).loss_and_grads(vae.model, vae.guide, x, *y)
    grads = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    pyro.set_rng_seed(4)
    q = vae.q_z(x, *y)
    z = q.rsample((k,))
    log_weights = vae.p_x(z, *y).log_prob(x) + vae.p_z(*y).log_prob(z) - q.log_prob(z)
    loss = -(log_weights.logsumexp(0) - math.log(k)).sum()
    assert value == pytest.approx(loss.item(), abs=1e-8)
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if grad is None else grad, torch.zeros(()) if other is None else other
        )
    if k == 1:
        pyro.set_rng_seed(4)
        assert value == pytest.approx(Trace_ELBO().loss(vae.model, vae.guide, x, *y), abs=1e-8)


def test_many_sample_bounds_train_and_refuse_a_warm_up() -> None:
    values = {}
    for k in (1, 5, 50):
        history = fit(build(), objective=renyi(k), epochs=2)
        values[k] = history.records[-1]["val_loss"]
        assert math.isfinite(values[k])
    with pytest.raises(ValueError, match="many-sample bound has no KL to weigh; got RenyiELBO"):
        fit(build(), objective=renyi(5), warmup_epochs=2)


# --- the command line ---------------------------------------------------------------------------


def configured(**values: Any) -> Any:
    config, explicit = resolve.resolve(None, None, values)
    return resolve.check_combination(config, explicit)


def test_options_become_the_objective() -> None:
    def built(**values: Any) -> Any:
        return build_objective(configured(latent_dim=3, **values)[0])

    assert type(built()) is type(built(beta=3.0)) is pv.BetaELBO
    info = built(
        alpha=0.5, divergence="mmd", divergence_kernel="rbf", free_bits=0.25, **{"lambda": 4}
    )
    assert (float(info.kl_weight), float(info.divergence_weight)) == (0.5, 3.5)
    assert (info.divergence.kernel, info.free_bits) == ("rbf", 0.25)
    assert built(alpha=1.0, divergence="adversarial").divergence.latent_dim == 3
    bound = built(train_samples=5)
    assert type(bound) is RenyiELBO
    assert (bound.alpha, bound.num_particles, bound.vectorize_particles) == (0, 5, True)
    path = built(train_samples=5, gradient="path")
    assert (type(path), path.num_particles, path.gradient) == (pv.ManySamples, 5, "path")
    assert built(gradient="path").gradient == "path"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 2.0}, r"'--alpha': expected at most 1 \(the KL's weight is 1 - alpha\); got 2"),
        ({"alpha": 0.5, "lambda": 0.25}, r"'--lambda': expected at least 1 - alpha .*; got 0.25"),
        (
            {"lambda": 3.0},
            r"'--divergence': expected mmd or adversarial with .* is 2\); got none",
        ),
        ({"alpha": 0.5, "lambda": 0.5, "beta": 2.0}, r"'--beta': expected 1 with --alpha"),
        ({"train_samples": 5, "beta": 2.0}, r"'--beta': expected 1 with --train-samples 5, .*KL"),
        ({"train_samples": 5, "free_bits": 0.5}, r"'--free-bits': expected 0 with"),
        ({"train_samples": 5, "warmup_epochs": 3.0}, r"'--warmup-epochs': expected 0 with"),
        ({"train_samples": 5, "warmup_steps": 3}, r"'--warmup-steps': expected 0 with"),
        ({"train_samples": 5, "alpha": -1.0, "lambda": 2.0}, r"'--alpha': expected 0 with"),
        ({"train_samples": 2, "divergence": "mmd"}, r"'--divergence': expected none with"),
    ],
)
def test_options_that_are_no_objective_are_one_line(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        configured(**values)
    assert "\n" not in str(caught.value)


def test_a_divergence_without_weight_is_said() -> None:
    assert configured(divergence="mmd")[1] == [
        "--divergence has no effect with --alpha + --lambda = 1, its weight being 0."
    ]
    assert configured(alpha=0.9, divergence="mmd", **{"lambda": 0.1})[1] != []
    assert configured(alpha=0.5, divergence="mmd")[1] == []
    assert configured(alpha=-1.0, **{"lambda": 2})[1] == []


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": 0.5, "divergence": "mmd"},
        {"alpha": 1.0, "lambda": 9.0, "divergence": "adversarial"},
        {"train_samples": 5},
    ],
)
def test_a_configured_objective_trains(values: Any, tmp_path: Any) -> None:
    table = pv.load_data(torch.randint(0, 4, (60, 4)).numpy())
    config, _ = configured(epochs=2, hidden_dims=[8], latent_dim=2, batch_size=16, **values)
    vae, _ = assemble.build(config, table)
    history = run.train(vae, table, config, out=tmp_path, progress=False)
    assert math.isfinite(history.best_val_loss)


def test_batches_of_one_are_an_option_refused() -> None:
    table = pv.load_data(torch.randint(0, 4, (60, 4)).numpy())
    config, _ = configured(batch_size=len(table.train) - 1, alpha=0.5, divergence="mmd")
    vae, _ = assemble.build(config, table)
    with pytest.raises(ConfigError, match="'--divergence': Expected at least 2 data in a batch"):
        run.trainer_of(vae, table, config)
