"""Splines and Sylvester flows: exact where Pyro's are not, and fit for recording and batching."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from helpers import jacobian
from registry import FLOWS, POSTERIORS, make_vae, scramble
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vaes as pv
from pyro_vaes import flows
from pyro_vaes.flows.residual import Sylvester, householder_columns
from pyro_vaes.flows.splines import rational_quadratic
from pyro_vaes.training.sweep import fit_many

pytestmark = pytest.mark.usefixtures("float64")

BOUND = 3.0
KINDS = ["orthogonal", "householder", "triangular"]


def parameters(num_bins, *shape, scale=1.0):
    sizes = (num_bins, num_bins, num_bins - 1)
    return [scale * torch.randn(*shape, size) for size in sizes]


def at_knots_and_between(p, num=200):
    """Points inside and outside, the bounds among them, for every spline of a batch."""
    ends = torch.tensor([-BOUND, BOUND, -BOUND - 1e-9, BOUND + 1e-9, -1e6, 1e6])
    points = torch.cat([2 * BOUND * (torch.rand(num) - 0.5) * 1.2, ends])
    return points.expand(*p[0].shape[:-2], len(points))


# --- splines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("num_bins", [2, 8, 20])
def test_a_spline_and_its_inverse(num_bins, scale):
    p = parameters(num_bins, 5, 1, scale=scale)
    x = at_knots_and_between(p).requires_grad_()
    y, log_slope = rational_quadratic(x, *p, BOUND)
    (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)
    back, again = rational_quadratic(y, *p, BOUND, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(again, log_slope, rtol=0, atol=1e-6)
    order = x.argsort(-1)
    assert (y.take_along_dim(order, -1).diff(dim=-1) >= 0).all()
    outside = x.abs() >= BOUND
    torch.testing.assert_close(y[outside], x[outside], rtol=0, atol=1e-12)
    torch.testing.assert_close(log_slope[outside], torch.zeros_like(y[outside]), rtol=0, atol=1e-9)


def test_a_spline_of_zeros_is_the_identity():
    x = torch.linspace(-4, 4, 101)
    for inverse in (False, True):
        y, log_slope = rational_quadratic(x, *parameters(8, 1, scale=0.0), BOUND, inverse)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros(101), rtol=0, atol=1e-12)


def test_a_density_through_a_spline_of_eight_bins_integrates_to_one():
    """In one dimension the grid can be as fine as the sharpest bin asks."""
    y = torch.linspace(-9, 9, 400_001)
    for _ in range(5):
        x, log_slope = rational_quadratic(y, *parameters(8, 1), BOUND, inverse=True)
        density = (dist.Normal(0.0, 1.0).log_prob(x) - log_slope).exp()
        assert torch.trapezoid(density, y).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
def test_no_gradient_of_a_spline_is_nan(inverse):
    p = [q.requires_grad_() for q in parameters(8, 7, scale=2.0)]
    v = torch.tensor([0.0, 2.0, -BOUND, BOUND, 4.0, 1e8, -1e8], requires_grad=True)
    y, log_slope = rational_quadratic(v, *p, BOUND, inverse)
    grads = torch.autograd.grad((y + log_slope).sum(), [v, *p])
    assert all(grad.isfinite().all() for grad in grads)
    assert all((grad[4:] == 0).all() for grad in grads[1:]), "the tails do not move"


def test_a_spline_can_be_inverted_in_single_precision():
    p = [q.float() for q in parameters(8, 2000, scale=1.0)]
    x = 2 * BOUND * (torch.rand(2000, dtype=torch.float32) - 0.5)
    back, _ = rational_quadratic(rational_quadratic(x, *p, BOUND)[0], *p, BOUND, inverse=True)
    assert (back - x).abs().max() < 2e-3
    assert (back - x).abs().median() < 1e-6


def test_pyros_spline_jumps_at_its_bound_and_branches_on_values():
    """So there is a spline of our own: the formulas inside agree, the ends and the form do not."""
    theirs = T.Spline(1, count_bins=8, bound=BOUND, order="quadratic")
    edge = torch.tensor([[BOUND - 1e-12]])
    assert theirs.log_abs_det_jacobian(edge, theirs(edge)).exp().item() == pytest.approx(0.999)
    p = parameters(8, 1, 1)
    assert rational_quadratic(edge, *p, BOUND)[1].exp().item() == pytest.approx(1, abs=1e-9)
    with pytest.raises(RuntimeError, match="control flow"):
        make_fx(lambda y: theirs.inv(y))(torch.randn(5, 1))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: theirs(x))(torch.randn(3, 5, 1))
    v = torch.randn(5, 1)
    inverse = make_fx(lambda y: rational_quadratic(y, *p, BOUND, inverse=True)[0])(v)
    wide = 4 * torch.randn(5, 1)
    torch.testing.assert_close(inverse(wide), rational_quadratic(wide, *p, BOUND, True)[0])


def test_a_spline_coupling_keeps_one_half():
    flow = scramble(flows.spline(5, 1).build())
    z = torch.randn(20, 5)
    coupling = flow(None)[0]
    y = coupling(z)
    torch.testing.assert_close(y[:, :2], z[:, :2], rtol=0, atol=0)
    assert (y[:, 2:] != z[:, 2:]).any()


# --- Sylvester ----------------------------------------------------------------------------------


def test_columns_are_those_of_the_product_of_reflections():
    v = torch.randn(3, 4, 6)
    product = torch.eye(6).expand(3, 6, 6)
    for i in range(4):
        u = v[:, i] / v[:, i].norm(dim=-1, keepdim=True)
        product = product @ (torch.eye(6) - 2 * u.unsqueeze(-1) * u.unsqueeze(-2))
    for columns in (1, 3, 6):
        q = householder_columns(v, columns)
        torch.testing.assert_close(q, product[..., :columns], rtol=0, atol=1e-12)


def test_reflections_reach_all_orthonormal_columns_up_to_their_signs():
    """The QR decomposition gives the mirrors of any: nothing is lost by the parametrisation."""
    given = torch.linalg.qr(torch.randn(6, 3)).Q
    packed, _ = torch.geqrf(given)
    mirrors = (packed.tril(-1) + torch.eye(6, 3)).mT
    q = householder_columns(mirrors, 3)
    torch.testing.assert_close(q * (q * given).sum(0).sign(), given, rtol=0, atol=1e-12)


def sylvester(dim, kind, **options):
    return flows.sylvester(dim, 1, kind, **options)


@pytest.mark.parametrize("scale", [0.3, 0.9, 3.0])
@pytest.mark.parametrize(
    ("dim", "kind", "options"),
    [
        (1, "householder", {}),
        (5, "householder", {}),
        (5, "householder", {"num_reflections": 1}),
        (5, "householder", {"num_reflections": 7}),
        (5, "orthogonal", {}),
        (5, "orthogonal", {"num_columns": 1}),
        (5, "orthogonal", {"num_columns": 5}),
        (5, "triangular", {}),
    ],
    ids=str,
)
def test_sylvester_log_determinant_is_autograds(dim, kind, options, scale):
    recipe = flows.sylvester(dim, 2, kind, **options)
    flow, context = recipe.build(3), torch.randn(20, 3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0.0, scale)
    z = torch.randn(20, dim)
    for transform in flow(context):
        log_det = transform.log_abs_det_jacobian(z, transform(z))
        sign, exact = torch.linalg.slogdet(jacobian(transform, z))
        assert (sign == 1).all()
        torch.testing.assert_close(log_det, exact, rtol=0, atol=1e-6)
        basis = transform.basis
        eye = torch.eye(basis.shape[-1])
        torch.testing.assert_close(basis.mT @ basis, eye.expand(*basis.shape[:-2], *eye.shape))


def test_pyros_sylvester_tells_a_wrong_log_determinant_where_ours_is_right():
    """Both at parameters of scale 0.9: DESIGN fact 7.3, and why this flow is our own."""
    ours = flows.sylvester(3, 1).build().layers[0]
    theirs = T.Sylvester(3, 2)
    worst = {}
    for name, module, make in [
        ("theirs", theirs, lambda: theirs),
        ("ours", ours, lambda: ours(None)[0]),
    ]:
        errors = []
        for _ in range(10):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.normal_(0.0, 0.9)
            z, transform = torch.randn(20, 3), make()
            told = transform.log_abs_det_jacobian(z, transform(z))
            exact = torch.linalg.slogdet(jacobian(transform, z))[1]
            errors.append((told - exact).abs().max().item())
        worst[name] = max(errors)
    assert worst["theirs"] > 0.1
    assert worst["ours"] < 1e-6


def test_the_formula_of_a_triangular_layer():
    layer = scramble(flows.sylvester(4, 2, "triangular").build()).layers[1]
    (transform,) = layer(None)
    mixing, diagonal, bias = layer.parameters_at_zero.split([16, 4, 4])
    mixing, q = mixing.view(4, 4), torch.eye(4).flip(0)
    r = mixing.triu(1) + torch.diag(0.999 * mixing.diagonal().tanh())
    s = mixing.tril(-1).T + torch.diag(0.999 * diagonal.tanh())
    z = torch.randn(4)
    torch.testing.assert_close(transform(z), z + q @ r @ torch.tanh(s @ q.T @ z + bias))


def test_an_orthogonal_layer_moves_z_along_its_columns():
    flow = scramble(flows.sylvester(6, 1, "orthogonal", num_columns=2).build())
    (transform,) = flow(None)
    z = torch.randn(50, 6)
    move = transform(z) - z
    assert torch.linalg.matrix_rank(move.detach()) == 2
    across = torch.eye(6) - transform.basis @ transform.basis.mT
    torch.testing.assert_close(move @ across, torch.zeros(50, 6), rtol=0, atol=1e-12)


def test_saturated_diagonals_stay_invertible_in_single_precision():
    """tanh reaches 1 there: without a limit the determinant would be zero."""
    q = torch.eye(3, dtype=torch.float32)
    extreme = torch.diag(torch.tensor([50.0, -50.0, 50.0], dtype=torch.float32))
    transform = Sylvester(q, extreme, -extreme.diagonal(), torch.zeros(3, dtype=torch.float32))
    z = torch.zeros(3, dtype=torch.float32)
    assert transform.log_abs_det_jacobian(z, transform(z)).isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_sylvester_begins_near_the_identity(kind):
    flow = flows.sylvester(16, 4, kind).build(32)
    z, context = torch.randn(100, 16), torch.randn(100, 32)
    image = z
    for transform in flow(context):
        image = transform(image)
    assert (image - z).std() < 0.5 * z.std()


@pytest.mark.parametrize("kind", KINDS)
def test_sylvester_scores_its_own_draws_and_refuses_others(kind):
    posterior = pv.NormalPosterior(pv.MLP(4, [8]), 3)
    posterior = scramble(pv.FlowPosterior(posterior, flows.sylvester(3, 2, kind)))
    assert not posterior.scores
    for q in (posterior(torch.randn(5, 4)), posterior(torch.randn(5, 4)).expand((2, 5))):
        z = q.rsample((7,))
        assert q.log_prob(z).shape == z.shape[:-1]
        with pytest.raises(NotImplementedError, match="the same tensor; got another"):
            q.log_prob(z.clone())
    with pytest.raises(ValueError, match=r"posterior\.base"):
        pv.VampPrior(posterior, torch.rand(5, 4))
    with pytest.raises(ValueError, match="scores any z for a prior"):
        pv.FlowPrior(3, flows.sylvester(3, 2, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_sylvester_fits_what_a_diagonal_normal_cannot(kind):
    """KL to a normal of correlation 0.95: at best 1.16 nats for a diagonal one, near 0 here."""
    torch.manual_seed(0)
    target = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    flow = flows.sylvester(2, 3, kind).build()
    scale = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([*flow.parameters(), scale], lr=0.03)
    for _ in range(200):
        q = dist.TransformedDistribution(dist.Normal(0.0, scale.exp()).to_event(1), flow(None))
        z = q.rsample((200,))
        kl = (q.log_prob(z) - target.log_prob(z)).mean()
        optimizer.zero_grad()
        kl.backward()
        optimizer.step()
    assert kl < 0.4 < -0.5 * math.log(1 - 0.95**2)


# --- both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flows.spline(1, 2), "Expected dim of at least 2 for spline"),
        (lambda: flows.spline(4, 2, count_bins=1).build(), "2 to 50 spline bins .*count_bins=1"),
        (lambda: flows.spline(4, 2, count_bins=51).build(), "2 to 50 spline bins"),
        (lambda: flows.spline(4, 2, bound=0.0).build(), "finite bound above zero; .*bound=0.0"),
        (lambda: flows.spline(4, 2, count_bins=2.5).build(), "whole number .*; got 2.5"),
        (
            lambda: sylvester(4, "planar").build(),
            "orthogonal, householder, triangular; got 'planar'",
        ),
        (lambda: sylvester(4, "orthogonal", num_columns=5).build(), "at most dim=4; got 5"),
        (lambda: sylvester(4, "orthogonal", num_columns=0).build(), "num_columns .*; got 0"),
        (lambda: sylvester(4, "householder", num_reflections=0).build(), "num_reflections .*got 0"),
        (lambda: sylvester(4, None, num_columns=2).build(), "'orthogonal' only; got 'householder'"),
        (lambda: sylvester(4, "triangular", num_reflections=2).build(), "'householder' only"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_print_as_they_are_written():
    assert repr(flows.spline(4, 2)) == "flows.spline(4, 2)"
    assert repr(flows.spline(4, 2, bound=3.0)) == "flows.spline(4, 2, bound=3.0)"
    assert repr(sylvester(4, "triangular")) == "flows.sylvester(4, 1, kind='triangular')"


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        pytest.param("spline", "sylvester", marks=pytest.mark.slow),
        ("gtm", "full_normal"),
    ],
)
def test_steps_can_be_recorded_and_batched(prior, posterior):
    """Replayed from a recording, and as one of a sweep, the steps are the same."""
    x = torch.randint(0, 4, (40, 4)).double()

    def make(seed):
        torch.manual_seed(seed)
        return make_vae(prior, posterior)

    options = dict(epochs=3, batch_size=20, optimizer="adam")
    together = [make(0), make(1)]
    fit_many(together, x, **options)
    for mode in ("eager", "traced"):
        alone = make(1)
        pv.fit(alone, x, seed=1, mode=mode, progress=False, **options)
        for ours, theirs in zip(together[1].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_every_kind_serves_a_posterior():
    for kind in KINDS:
        base = POSTERIORS["normal"].make(3, (4,), scale=None)
        posterior = pv.FlowPosterior(base, flows.sylvester(3, 2, kind))
        q = posterior(torch.randn(5, 4))
        assert q.rsample((2,)).shape == (2, 5, 3)


@pytest.mark.parametrize("name", [name for name, case in FLOWS.items() if case.scores])
def test_flows_that_score_begin_near_the_standard_normal(name):
    """Couplings as Pyro makes them begin thousands of nats away."""
    for dim in (3, 16):
        prior = pv.FlowPrior(dim, getattr(flows, name)(dim, 4))
        z = torch.randn(500, dim)
        kl = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - prior().log_prob(z)
        assert kl.mean() < 0.02 * dim


# --- activation normalisation ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["realnvp", "spline"])
def test_a_normalised_flow_is_invertible_and_its_determinant_is_autograds(name):
    flow = scramble(getattr(flows, name)(4, 3, [8], normalise=True).build())
    x = y = torch.randn(1, 4)
    total = torch.zeros(1)
    for transform in flow():
        before, y = y, transform(y)
        total = total + transform.log_abs_det_jacobian(before, y)
    back = y
    for transform in reversed(flow()):
        back = transform.inv(back)
    torch.testing.assert_close(back, x)

    def through(value):
        for transform in flow():
            value = transform(value)
        return value

    slopes = torch.autograd.functional.jacobian(lambda e: through(e[None])[0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(slopes).logabsdet, total[0])


@pytest.mark.parametrize("name", ["realnvp", "spline"])
def test_a_deep_prior_starts_at_the_data(name):
    torch.manual_seed(0)
    prior = pv.FlowPrior(4, getattr(flows, name)(4, 20, normalise=True))
    z = torch.randn(5000, 4) @ torch.randn(4, 4) * 3 + 10
    before = prior().log_prob(z).mean()
    prior.initialize_from(z)
    diagonal = dist.Normal(z.mean(0), z.std(0)).to_event(1).log_prob(z).mean()
    assert prior().log_prob(z).mean() > max(before, diagonal - 1)
    base = z
    for transform in reversed(prior.flow()):
        base = transform.inv(base)
    torch.testing.assert_close(base.std(0), torch.ones(4), atol=0.1, rtol=0)
    torch.testing.assert_close(base.mean(0), torch.zeros(4), atol=0.1, rtol=0)


def test_twenty_normalised_blocks_train_stably():
    """The loss never rises by more than a nat, and ends below that of a normal."""
    torch.manual_seed(0)
    prior = pv.FlowPrior(2, flows.realnvp(2, 20, [16], normalise=True))
    first = 2 * torch.randn(500, 1)
    z = torch.cat([first, first.square() + 0.3 * torch.randn(500, 1)], -1)
    prior.initialize_from(z)
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = -prior().log_prob(z).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    normal = dist.MultivariateNormal(z.mean(0), z.mT.cov()).log_prob(z).mean().item()
    assert max(after - before for before, after in itertools.pairwise(losses)) < 1
    assert losses[-1] < -normal - 0.5


def test_a_flow_that_takes_no_data_says_so():
    with pytest.raises(ValueError, match="normalise=True"):
        pv.FlowPrior(4, flows.realnvp(4, 2)).initialize_from(torch.randn(9, 4))
    prior = pv.FlowPrior(4, flows.realnvp(4, 2, normalise=True))
    with pytest.raises(ValueError, match="at least 2 codes to start a flow from; got 1"):
        prior.initialize_from(torch.randn(1, 4))
