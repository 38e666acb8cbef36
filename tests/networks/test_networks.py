"""Networks: rows in, rows out, of the sizes they say."""

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.core.described import describe, rebuild
from pyro_vaes.core.labels import append_labels, flat
from pyro_vaes.networks.convolutions import ConvDecoder, ConvEncoder
from pyro_vaes.networks.mlp import ACTIVATIONS, MLP, GatedMLP, SkipMLP

SHAPES = [(1, 8, 8), (3, 37, 41), (1, 28, 28), (2, 9, 8)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp(activation):
    network = MLP(5, [7, 3], activation)
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("labels", [0, 4])
def test_convolutional_pair(shape, labels):
    pixels = shape[0] * shape[1] * shape[2]
    encoder = ConvEncoder(shape, (4, 6), 10, num_labels=labels)
    assert encoder.in_features == pixels + labels
    rows = torch.randn(2, 3, pixels + labels)
    features = encoder(rows)
    assert features.shape == (2, 3, 10)
    torch.testing.assert_close(encoder(rows[1, 2]), features[1, 2])
    decoder = ConvDecoder(5 + labels, shape, (6, 4))
    out = decoder(torch.randn(2, 3, 5 + labels))
    assert decoder.feature_shape == (4, *shape[1:])
    assert out.shape == (2, 3, decoder.out_features)


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
def test_convolutional_vae(shape):
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(ConvEncoder(shape, (4, 6), 12), 3, event_shape=shape)
    for likelihood in (
        pv.CategoricalLikelihood(ConvDecoder(3, shape, (6, 4)), shape, 5),
        pv.OrdinalLikelihood(ConvDecoder(3, shape, (6, 4)), shape, 5, sharpness=True),
        pv.NormalLikelihood(ConvDecoder(3, shape, (6, 4)), shape),
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
