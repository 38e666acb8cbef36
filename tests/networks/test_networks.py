"""Networks: rows in, rows out, of the sizes they say."""

import math

import pytest
import torch
from pyro.optim import Adam

import pyro_vaes as pv
from pyro_vaes.core.described import describe, rebuild
from pyro_vaes.core.labels import append_labels, flat
from pyro_vaes.networks.convolutions import ConvDecoder, ConvEncoder
from pyro_vaes.networks.mlp import ACTIVATIONS, MLP, GatedMLP, SkipMLP
from pyro_vaes.networks.residual import ResDecoder, ResEncoder, ResMLP

SHAPES = [(1, 8, 8), (3, 37, 41), (1, 28, 28), (2, 9, 8)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [MLP, ResMLP])
def test_mlp(kind, activation):
    network = kind(5, [7, 3], activation)
    assert network(torch.randn(2, 4, 5)).shape == (2, 4, network.out_features) == (2, 4, 3)


def test_gated_layer_is_a_product_with_a_sigmoid():
    network = GatedMLP(4, [3])
    x = torch.randn(6, 4)
    both = network.layers[0](x)
    expected = both[:, :3] * torch.sigmoid(both[:, 3:])
    torch.testing.assert_close(network(x), expected)


def test_features_of_a_skip_network_begin_with_its_inputs():
    network = SkipMLP(4, [7, 3], "tanh")
    x = torch.randn(2, 6, 4)
    assert network.out_features == 7
    features = network(x)
    assert torch.equal(features[..., :4], x)
    assert torch.equal(features[..., 4:], network.layers(x))
    other = rebuild(describe(network))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), features)


PAIRS = [(ConvEncoder, ConvDecoder), (ResEncoder, ResDecoder)]


@pytest.mark.parametrize("shape", [*SHAPES, (3, 64, 64)])
@pytest.mark.parametrize("labels", [0, 4])
@pytest.mark.parametrize(("Encoder", "Decoder"), PAIRS)
def test_convolutional_pair(shape, labels, Encoder, Decoder):
    pixels = shape[0] * shape[1] * shape[2]
    encoder = Encoder(shape, (4, 6), 10, num_labels=labels)
    assert encoder.in_features == pixels + labels
    rows = torch.randn(2, 3, pixels + labels)
    features = encoder(rows)
    assert features.shape == (2, 3, 10)
    torch.testing.assert_close(encoder(rows[1, 2]), features[1, 2])  # Rows are independent.
    decoder = Decoder(5 + labels, shape, (6, 4))
    out = decoder(torch.randn(2, 3, 5 + labels))
    assert decoder.feature_shape == (4, *shape[1:])
    assert out.shape == (2, 3, decoder.out_features)


def test_a_gated_block_adds_to_its_input_a_product_with_a_sigmoid():
    network = ResMLP(4, [3], "tanh")
    x = torch.randn(6, 4)
    seen = network.first(x)
    normed = (seen - seen.mean(-1, True)) / (seen.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    block = network.blocks[0].body
    both = block[4](torch.tanh(block[2](torch.tanh(normed))))
    out = seen + both[:, :3] * torch.sigmoid(both[:, 3:])
    torch.testing.assert_close(network.blocks(seen), out)


def test_deep_residual_networks_start_near_the_identity():
    network = ResMLP(8, [8] * 20)
    seen = network.first(torch.randn(50, 8))
    assert (network.blocks(seen) - seen).norm() < seen.norm()
    images = torch.randn(4, 6, 8, 8)
    stage = ResDecoder(2, (1, 8, 8), (6,), blocks=20).stages[0]
    assert (stage(images) - images).norm() < images.norm()


@pytest.mark.parametrize("channels", [(8, 8, 8), (4, 4, 4), (16, 16, 16, 16), (3, 5, 7), (1,)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 13)])
def test_what_is_normalised_keeps_what_was_seen(shape, channels):
    """Down to one pixel, too: one channel a group would leave nothing, and two its sign."""
    encoder = ResEncoder(shape, channels, 8)
    decoder = ResDecoder(3, shape, channels)
    for network, size in ((encoder, math.prod(shape)), (decoder, 3)):
        seen = torch.randn(6, size, requires_grad=True)
        out = network(seen)
        assert out.std(0).mean() > 1e-3
        (slope,) = torch.autograd.grad(out.square().sum(), seen)
        assert slope.abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("mode", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_step_of_residual_networks_is_recorded(mode):
    """Normalised within each row, so that a recorded step is the step itself."""
    losses = []
    for kind in ("eager", mode):
        torch.manual_seed(0)
        posterior = pv.NormalPosterior(ResEncoder((1, 8, 8), (4,), 8), 2)
        likelihood = pv.BernoulliLikelihood(ResDecoder(2, (1, 8, 8), (4,)), (64,))
        vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
        svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), pv.ELBO(), mode=kind)
        torch.manual_seed(1)
        x = torch.rand(6, 64).round()
        losses.append([svi.step(x) for _ in range(5)])
        assert svi.mode == kind
    if mode == "traced":  # Compiled steps draw other noise.
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    else:
        assert losses[1] == pytest.approx(losses[0], rel=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_decoder_enlarges_and_then_convolves(shape):
    decoder = ConvDecoder(5, shape, (6, 4)).double()
    rows = torch.randn(7, 5, dtype=torch.float64)
    features = decoder.activation(decoder.linear(rows)).reshape(-1, *decoder.start)
    for size, layer in zip(decoder.sizes[1:], decoder.convolutions, strict=True):
        features = layer(torch.nn.functional.interpolate(features, size))
    torch.testing.assert_close(decoder(rows), features.flatten(1))


def test_labels_reach_the_features():
    encoder = ConvEncoder((1, 8, 8), (4,), 10, num_labels=3)
    rows = torch.randn(1, 64).expand(2, 64)
    features = encoder(append_labels(rows, torch.tensor([0, 2]), 3))
    assert not torch.allclose(features[0], features[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("Encoder", "Decoder"), PAIRS)
def test_convolutional_vae(shape, Encoder, Decoder):
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(Encoder(shape, (4, 6), 12), 3, event_shape=shape)
    for likelihood in (
        pv.CategoricalLikelihood(Decoder(3, shape, (6, 4)), shape, 5),
        pv.OrdinalLikelihood(Decoder(3, shape, (6, 4)), shape, 5, sharpness=True),
        pv.NormalLikelihood(Decoder(3, shape, (6, 4)), shape),
    ):
        vae = pv.VAE(pv.NormalPrior(3), posterior, likelihood)
        x = torch.randint(0, 5, (6, *shape)).float()
        pv.fit(vae, x, epochs=1, progress=False)
        assert vae.sample(2).shape == (2, *shape)
        other = rebuild(describe(vae))
        other.load_state_dict(vae.state_dict())
        torch.testing.assert_close(other.reconstruct(x), vae.reconstruct(x))


def test_every_pixel_shares_the_head_and_has_its_own_bias():
    likelihood = pv.BernoulliLikelihood(ConvDecoder(2, (1, 8, 8), (4, 3)), (64,))
    assert {tuple(p.shape) for p in likelihood.head.parameters()} == {(1, 3), (1, 64, 1)}
    features = torch.zeros(1, 3, 64)
    features[0, :, 17] = torch.tensor([1.0, 2.0, 3.0])
    logits = likelihood.head(features.reshape(1, -1))
    expected = torch.zeros(1, 64)
    expected[0, 17] = likelihood.head.map.weight[0] @ torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(logits, expected)


def test_bad_sizes_are_refused():
    for make in (
        lambda: MLP(0, [3]),
        lambda: MLP(3, []),
        lambda: MLP(3, [0]),
        lambda: MLP(3, [3], "sigmoidal"),
        lambda: GatedMLP(3, []),
        lambda: ConvEncoder((1, 4, 4)),
        lambda: ResMLP(3, []),
        lambda: ResMLP(3, [8, 1]),
        lambda: ResEncoder((1, 8, 8), (8, 8, 2)),
        lambda: ResDecoder(2, (1, 8, 8), (1, 1, 1)),
        lambda: ResEncoder((1, 4, 4)),
        lambda: ResDecoder(2, (1, 8, 8), blocks=0),
        lambda: ConvEncoder((8, 8)),
        lambda: ConvDecoder(2, (1, 8, 8), ()),
        lambda: pv.BernoulliLikelihood(ConvDecoder(2, (1, 8, 8)), (60,)),
    ):
        with pytest.raises(ValueError, match="Expected"):
            make()


def test_flat_and_join():
    assert flat(torch.zeros(2, 3, 4, 5), (4, 5)).shape == (2, 3, 20)
    with pytest.raises(ValueError, match=r"\(\.\.\., 4, 5\)"):
        flat(torch.zeros(2, 5, 4), (4, 5))
    joined = append_labels(torch.zeros(3, 2), torch.tensor([0, 1, 1]), 2)
    assert joined.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    with pytest.raises(ValueError, match="Expected labels"):
        append_labels(torch.zeros(3, 2), None, 2)
