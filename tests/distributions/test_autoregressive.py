"""Levels one after another; the laws of the likelihood stand in test_laws.py."""

import itertools

import pytest
import torch
from pyro.optim import Adam
from registry import data, make_vae, scramble
from torch import nn

import pyro_vaes as pv
from pyro_vaes.distributions import autoregressive
from pyro_vaes.distributions.autoregressive import AutoregressiveLevels
from pyro_vaes.networks.masked import AutoregressiveNetwork

ELEMENTS, LEVELS, CONTEXT = 5, 3, 2


def network(hidden_dims=(7, 6)):
    return scramble(AutoregressiveNetwork(ELEMENTS, LEVELS, CONTEXT, hidden_dims), 2.0)


def distribution(*batch, hidden_dims=(7, 6)):
    logits = torch.randn(*batch, ELEMENTS, LEVELS)
    return AutoregressiveLevels(
        logits, torch.randn(*batch, CONTEXT), network(hidden_dims), (ELEMENTS,)
    )


@pytest.mark.parametrize("hidden_dims", [(5,), (7, 6), (11, 5, 8)])
def test_an_element_sees_those_before_it_and_the_context(hidden_dims):
    net = network(hidden_dims)
    x, context = torch.randn(ELEMENTS), torch.randn(CONTEXT)
    of_x, of_context = torch.autograd.functional.jacobian(
        lambda x, context: net(x, net.context(context)).sum(-1), (x, context)
    )
    assert torch.equal(of_x != 0, torch.ones(ELEMENTS, ELEMENTS).tril(-1).bool())
    assert (of_context[1:] != 0).all()


@pytest.mark.usefixtures("float64")
def test_draws_follow_the_conditionals_of_one_pass():
    """All 3^5 data: a sampler whose running sums went astray would fail at the last elements."""
    every = torch.tensor(list(itertools.product(range(LEVELS), repeat=ELEMENTS))).double()
    count = 200_000
    with torch.no_grad():
        d = distribution()
        p = d.log_prob(every).exp()
        place = (d.sample((count,)) * LEVELS ** torch.arange(ELEMENTS - 1, -1, -1)).sum(-1)
    torch.testing.assert_close(p.sum().item(), 1.0)
    frequency = torch.bincount(place.long(), minlength=len(every)) / count
    assert ((frequency - p).abs() < 5 * (p / count).sqrt() + 5 / count).all()


def test_draws_in_blocks_belong_to_their_rows(monkeypatch):
    """One sure datum for each row, whatever the block it is drawn in."""
    monkeypatch.setattr(autoregressive, "_ROWS", 4)
    sure = torch.randint(0, LEVELS, (3, ELEMENTS))
    logits = 1e6 * nn.functional.one_hot(sure, LEVELS).float()
    d = AutoregressiveLevels(logits, torch.randn(3, CONTEXT), network(), (ELEMENTS,))
    draws = d.expand((2, 3)).sample((3,))
    assert torch.equal(draws, sure.float().expand(3, 2, 3, ELEMENTS))
    assert d.expand((0, 3)).sample().shape == (0, 3, ELEMENTS)


def test_values_are_checked_and_no_mean_is_told():
    d = distribution(4)
    with pytest.raises(ValueError, match="support"):
        AutoregressiveLevels(
            d.logits, torch.randn(4, CONTEXT), d.network, (ELEMENTS,), validate_args=True
        ).log_prob(torch.full((4, ELEMENTS), float(LEVELS)))
    with pytest.raises(NotImplementedError):
        d.mean  # noqa: B018


def test_without_the_masked_network_it_is_the_categorical_likelihood():
    likelihood = pv.AutoregressiveLikelihood(pv.MLP(2, [8]), (2, 3), 4, hidden_dims=[6])
    nn.init.zeros_(likelihood.masked.last.weight)
    nn.init.zeros_(likelihood.masked.direct.weight)
    plain = pv.CategoricalLikelihood(likelihood.network, (2, 3), 4)
    plain.head = likelihood.head
    z, x = torch.randn(7, 5, 2), torch.randint(0, 4, (5, 2, 3)).float()
    torch.testing.assert_close(likelihood(z).log_prob(x), plain(z).log_prob(x))


def test_it_stands_on_convolutions_too():
    network = pv.ConvDecoder(2, [1, 8, 8], [4, 4])
    likelihood = pv.AutoregressiveLikelihood(network, (1, 8, 8), 3)
    d = likelihood(torch.randn(4, 2))
    assert d.log_prob(d.sample()).shape == (4,)


@pytest.mark.parametrize("hidden_dims", [[], [8, 5], [0]])
def test_hidden_layers_that_hide_elements_are_refused(hidden_dims):
    with pytest.raises(ValueError, match="Expected hidden_dims"):
        pv.AutoregressiveLikelihood(pv.MLP(2, [8]), (6,), 4, hidden_dims=hidden_dims)


@pytest.mark.usefixtures("float64")
def test_recorded_steps_are_plain_steps():
    losses = []
    for mode in ("eager", "traced"):
        torch.manual_seed(0)
        vae = make_vae(likelihood="autoregressive")
        x = data("autoregressive", 6, 4)
        svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), pv.ELBO(), mode=mode)
        losses.append([float(svi.step(x)) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
