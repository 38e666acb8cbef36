"""Peers as oracles: on the same weights other libraries compute the same densities.

The networks are ours; what stands round them (orderings, masks, determinants, inverses, splines,
mixtures) is theirs.
"""

import pytest
import torch
from registry import scramble
from sklearn.mixture import GaussianMixture
from torch.distributions import AffineTransform, Independent, Normal, SoftplusTransform

import pyro_vaes as pv

DIM = 4

pytestmark = pytest.mark.usefixtures("float64")


def test_the_joint_mixture_is_scikit_learns():
    prior = scramble(pv.MixturePrior(3, 5))
    peer = GaussianMixture(5, covariance_type="diag")
    peer.weights_ = prior.logits.softmax(-1).detach().numpy()
    peer.means_ = prior.loc.detach().numpy()
    peer.covariances_ = prior.log_scale.exp().square().detach().numpy()
    peer.precisions_cholesky_ = 1 / peer.covariances_**0.5
    z = 3 * torch.randn(200, 3)
    expected = torch.as_tensor(peer.score_samples(z.numpy()))
    torch.testing.assert_close(prior().log_prob(z), expected, rtol=1e-9, atol=1e-9)


def affine(parameters):
    mean, log_scale = parameters
    return AffineTransform(mean, log_scale.clamp(-5, 3).exp())  # Pyro's limits


def spline(zuko, layer, parameters, moved):
    """Their spline through our knots."""
    shape = (*moved, -1)
    widths, heights, slopes = (p.reshape(*shape) for p in parameters)
    peer = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, layer.bound)

    def knots(raw):
        shares = 1e-2 + (1 - 1e-2 * raw.shape[-1]) * raw.softmax(-1)
        ends = torch.nn.functional.pad(shares.cumsum(-1), (1, 0))
        return 2 * layer.bound * ends - layer.bound

    peer.horizontal, peer.vertical = knots(widths), knots(heights)
    # A slope of zero parameters is one, and none is less than a hundredth.
    at_zero = SoftplusTransform().inv(torch.tensor(1 - 1e-2))
    inner = 1e-2 + torch.nn.functional.softplus(slopes + at_zero)
    peer.derivatives = torch.nn.functional.pad(inner, (1, 1), value=1.0)
    return peer


def peer_layer(zuko, name, layer):
    """The peer of one layer, which maps the base's values to z, as a list of transforms."""
    from zuko.transforms import AutoregressiveTransform, CouplingTransform, PermutationTransform

    if name in ("iaf", "maf"):
        moves = AutoregressiveTransform(
            lambda value: zuko.transforms.DependentTransform(affine(layer.network(value)), 1), DIM
        )
        return [moves.inv if name == "maf" else moves]

    def meta(kept):
        parameters = layer.network(kept)
        if name == "realnvp":
            inner = affine(parameters)
        else:
            inner = spline(zuko, layer, parameters, (*kept.shape[:-1], DIM - layer.split))
        return zuko.transforms.DependentTransform(inner, 1)

    mask = torch.arange(DIM) < layer.split
    return [CouplingTransform(meta, mask), PermutationTransform(layer.reversed)]


@pytest.mark.parametrize("name", ["iaf", "maf", "realnvp", "spline"])
def test_flow_densities_are_zukos(name):
    zuko = pytest.importorskip("zuko")
    prior = scramble(pv.FlowPrior(DIM, getattr(pv.flows, name)(DIM, 3)))
    layers = [t for layer in prior.flow.layers for t in peer_layer(zuko, name, layer)]
    forward = zuko.transforms.ComposedTransform(*layers)
    base = Independent(Normal(torch.zeros(DIM), torch.ones(DIM)), 1)
    # Their flow maps z to the base.
    peer = zuko.distributions.NormalizingFlow(forward.inv, base)
    z = prior().sample((50,))
    far = 3 * torch.randn(50, DIM)
    for value in (z, far):
        ours, theirs = prior().log_prob(value), peer.log_prob(value)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
