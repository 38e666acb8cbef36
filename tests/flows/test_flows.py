"""The laws of flows, and what recipes refuse and layers promise beyond them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from helpers import jacobian, only_row_changed
from registry import FLOWS, scramble
from torch import Tensor

from pyro_vaes import flows
from pyro_vaes.flows.autoregressive import IAFLayer

pytestmark = pytest.mark.usefixtures("float64")


# --- laws ---------------------------------------------------------------------------------------


def apply(transforms: list[Any], z: Tensor) -> tuple[Tensor, Tensor]:
    """The image of z and the log-determinant that the transforms report."""
    log_det = torch.zeros(z.shape[:-1])
    for transform in transforms:
        y = transform(z)
        log_det = log_det + transform.log_abs_det_jacobian(z, y)
        z = y
    return z, log_det


flow_cases = [
    pytest.param(name, dim, context_dim, id=f"{name}-{dim}{'-context' if context_dim else ''}")
    for name, case in FLOWS.items()
    for dim in (1, 2, 5)
    for context_dim in (0, 3)
    if dim >= case.min_latent_dim
]


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize(("name", "dim", "context_dim"), flow_cases)
def test_log_determinant_is_autograds(name, dim, context_dim, scale):
    flow = scramble(FLOWS[name].build(dim, 3).build(context_dim), scale)
    context = torch.randn(20, context_dim) if context_dim else None
    z = torch.randn(20, dim)
    _, log_det = apply(flow(context), z)
    exact = torch.linalg.slogdet(jacobian(lambda rows: apply(flow(context), rows)[0], z))[1]
    torch.testing.assert_close(log_det, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "dim", "context_dim"), flow_cases)
def test_inverse_holds_or_its_lack_is_declared(name, dim, context_dim):
    """New transforms, without the cache of a draw, as for any other value."""
    recipe = FLOWS[name].build(dim, 3)
    assert recipe.scores == FLOWS[name].scores
    flow = scramble(recipe.build(context_dim))
    context = torch.randn(20, context_dim) if context_dim else None
    z = torch.randn(20, dim)
    y, log_det = apply(flow(context), z)
    base = dist.Normal(torch.zeros(20, dim), 1.0).to_event(1)
    foreign = dist.TransformedDistribution(base, flow(context))
    if not recipe.scores:
        with pytest.raises((KeyError, NotImplementedError)):
            foreign.log_prob(y)
        return
    back = y
    for transform in reversed(flow(context)):
        back = transform.inv(back)
    torch.testing.assert_close(back, z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        foreign.log_prob(y), base.log_prob(z) - log_det, rtol=1e-7, atol=1e-6
    )


@pytest.mark.parametrize("name", FLOWS)
def test_flows_are_amortised(name):
    """The context of a row moves that row and no other."""
    flow = scramble(FLOWS[name].build(3, 2).build(4))
    z, context = torch.randn(5, 3), torch.randn(5, 4)
    changed = context.clone()
    changed[2] += 1
    for before, after in zip(apply(flow(context), z), apply(flow(changed), z), strict=True):
        only_row_changed(before, after, 2)


# --- the rest -----------------------------------------------------------------------------------


def test_every_flow_has_a_recipe_and_a_row():
    """Adding a flow is one class, one export, one row here, one row in the README."""
    recipes = {name for name in flows.__all__ if name.islower()}
    assert recipes == set(flows.LAYERS) == set(FLOWS)
    for name, case in FLOWS.items():
        recipe = case.build(4, 2)
        assert (recipe.name, recipe.dim, recipe.depth) == (name, 4, 2)
        assert recipe.scores == case.scores == flows.LAYERS[name].scores
        assert recipe.samples == flows.LAYERS[name].samples
        assert case.min_latent_dim == flows.LAYERS[name].min_dim


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: flows.FlowRecipe("radial", 2, 1),
            "Expected a flow among .*realnvp.*; got 'radial'",
        ),
        (lambda: flows.iaf(0, 1), "Expected dim to be a whole number of at least 1; got 0"),
        (lambda: flows.iaf(2, 0), "Expected depth to be a whole number of at least 1; got 0"),
        (lambda: flows.maf(2, 1.5), "Expected depth .*; got 1.5"),
        (lambda: flows.planar(True, 1), "Expected dim .*; got True"),
        (lambda: flows.realnvp(1, 2), "Expected dim of at least 2 for realnvp, .*; got 1"),
    ],
)
def test_bad_recipes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_print_as_they_are_written():
    assert repr(flows.iaf(4, 2, [8, 8])) == "flows.iaf(4, 2, hidden_dims=[8, 8])"
    assert repr(flows.planar(4, 2)) == "flows.planar(4, 2)"


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("context_dim", [0, 3])
def test_all_parameters_exist_at_construction_and_all_are_used(name, context_dim):
    flow = FLOWS[name].build(4, 2).build(context_dim)
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    d = dist.TransformedDistribution(
        dist.Normal(torch.zeros(5, 4), 1.0).to_event(1),
        flow(torch.randn(5, context_dim) if context_dim else None),
    )
    z = d.rsample()
    (d.log_prob(z).sum() + z.sum()).backward()
    assert flow.state_dict().keys() == before.keys()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in flow.parameters())


@pytest.mark.parametrize("name", FLOWS)
def test_transforms_are_new_at_each_call(name):
    """Their caches would otherwise outlive the distribution and keep its graph."""
    flow = FLOWS[name].build(4, 2).build()
    first, second = flow(None), flow(None)
    assert not {id(t) for t in first} & {id(t) for t in second}
    assert all(isinstance(t, torch.distributions.Transform) for t in first)


@pytest.mark.parametrize("name", FLOWS)
def test_layers_take_turns(name):
    """After three layers every output depends on every input: no dimension is left behind."""
    flow = scramble(FLOWS[name].build(4, 3).build())

    def apply(z):
        for transform in flow(None):
            z = transform(z)
        return z

    seen = jacobian(apply, torch.randn(50, 4)).abs().amax(0) > 1e-9
    assert seen.all()


@pytest.mark.parametrize(("scale", "rounding"), [(1.0, 0.0), (5.0, 1e-12)])
@pytest.mark.parametrize("dim", [1, 2, 8])
def test_planar_keeps_its_constraint_and_stays_invertible(dim, scale, rounding):
    """w'u > -1, and with it a determinant above zero everywhere."""
    layer = flows.planar(dim, 1).build(context_dim=3).layers[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, scale / dim**0.5)
    (transform,) = layer(torch.randn(500, 3))
    _, u, w = transform._params
    inner = (transform.u_hat(u, w) * w).sum(-1)
    assert (inner > -1 - rounding).all()
    assert inner.min() < -0.5, "the constraint was not put to the test"
    z = 3 * torch.randn(500, dim)
    assert torch.linalg.det(jacobian(transform, z)).min() > -rounding


def test_iaf_draws_in_one_pass_and_maf_scores_in_one():
    counts = {}
    for name in ("iaf", "maf"):
        flow = FLOWS[name].build(5, 1).build()
        calls = []
        flow.layers[0].network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        base = dist.Normal(torch.zeros(5), 1.0).to_event(1)
        d = dist.TransformedDistribution(base, flow(None))
        z = d.rsample()
        d.log_prob(z)
        own = len(calls)
        calls.clear()
        dist.TransformedDistribution(base, flow(None)).log_prob(z.clone())
        counts[name] = (own, len(calls))
    # The other way goes column by column, without a pass of the whole network.
    assert counts == {"iaf": (1, 0), "maf": (0, 1)}


@pytest.mark.parametrize("name", ["iaf", "maf"])
def test_autoregressive_inverse_passes_gradients(name):
    """Scoring any value, as a prior does, trains the flow: the gradient is autograd's own."""
    flow = scramble(FLOWS[name].build(3, 2).build(), 0.5)
    z = torch.randn(4, 3)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)

    def score():
        return dist.TransformedDistribution(base, flow(None)).log_prob(z).sum()

    for parameter in flow.parameters():
        (grad,) = torch.autograd.grad(score(), parameter)
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
            up = score()
            parameter.sub_(2e-6 * direction)
            down = score()
            parameter.add_(1e-6 * direction)
        torch.testing.assert_close(
            (up - down) / 2e-6, (grad * direction).sum(), rtol=1e-4, atol=1e-5
        )


def by_passes(network: Any, y: Tensor, context: tuple[Tensor, ...]) -> Tensor:
    """The inverse as it is defined: one pass of the network for each column."""
    x = torch.zeros_like(y)
    for column in network.permutation.tolist():
        mean, log_scale = network(x, *context)
        value = (y - mean) * (-log_scale.clamp(-5.0, 3.0)).exp()
        x = torch.where(torch.arange(y.shape[-1]) == column, value, x)
    return x


@pytest.mark.parametrize("hidden_dims", [[7], [9, 8, 7]])
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("index", [0, 1])
def test_autoregressive_inverse_is_that_of_one_pass_for_each_column(
    hidden_dims, context_dim, index
):
    """Values and all gradients, also where all y share a context, as components of a mixture do."""
    layer = scramble(IAFLayer(5, index, context_dim, hidden_dims), 1.0)
    context = (torch.randn(4, context_dim, requires_grad=True),) if context_dim else ()
    y = torch.randn(6, 4, 5, requires_grad=True)
    transform = layer(*context or (None,))[0]
    ours, theirs = transform.inv(y), by_passes(layer.network, y, context)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    log_det = transform.log_abs_det_jacobian(ours, y)
    exact = torch.linalg.slogdet(jacobian(lambda x: layer(*context or (None,))[0](x), ours))[1]
    torch.testing.assert_close(log_det, exact, rtol=0, atol=1e-6)
    wanted = (y, *context, *layer.parameters())
    pairs = [torch.autograd.grad(x.sin().sum(), wanted, retain_graph=True) for x in (ours, theirs)]
    for mine, plain in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-7, atol=1e-8)
