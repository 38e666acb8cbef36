"""Noise of some rows of a batch: that which they have in the whole batch."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vaes as pv
from pyro_vaes.inference.noise import Rows, drawing_rows

POSTERIORS = {
    "normal": lambda: pv.NormalPosterior(pv.MLP(6, [8]), 2),
    "full normal": lambda: pv.FullNormalPosterior(pv.MLP(6, [8]), 2),
    "flow": lambda: pv.FlowPosterior(pv.NormalPosterior(pv.MLP(6, [8]), 2), pv.flows.iaf(2, 2)),
    "low rank": lambda: _LowRank(),
}


class _LowRank(nn.Module):
    def forward(self, x):
        return dist.LowRankMultivariateNormal(
            x[:, :2], x[:, :4].reshape(-1, 2, 2), 1 + x[:, :2].square()
        )


def guide(posterior, x):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("z", posterior(x))


@pytest.mark.parametrize("particles", [None, 3])
@pytest.mark.parametrize("name", POSTERIORS)
def test_rows_have_the_noise_of_the_whole_batch(float64, name, particles):
    posterior, x = POSTERIORS[name](), torch.randn(5, 6)

    def draw(rows=None):
        torch.manual_seed(3)
        with pyro.plate("particles", particles or 1, dim=-2):
            if rows is None:
                z = guide(posterior, x)
            else:
                with drawing_rows(rows):
                    z = guide(posterior, x[rows.start : rows.stop])
        return z, torch.get_rng_state()

    whole, state = draw()
    for rows in (Rows(0, 2, 5), Rows(2, 5, 5), Rows(4, 5, 5)):
        z, after = draw(rows)
        torch.testing.assert_close(z, whole[..., rows.start : rows.stop, :], rtol=0, atol=1e-12)
        assert torch.equal(state, after)


def test_draws_outside_return_to_their_own_noise():
    torch.manual_seed(0)
    expected = dist.Normal(0.0, 1.0).expand([3]).rsample()
    with drawing_rows(Rows(0, 1, 4)):
        guide(POSTERIORS["normal"](), torch.randn(1, 6))
    torch.manual_seed(0)
    assert torch.equal(dist.Normal(0.0, 1.0).expand([3]).rsample(), expected)


def test_what_cannot_be_shared_is_refused():
    x = torch.randn(2, 6)
    with pytest.raises(ValueError, match=r"normals.*got Laplace at site 'z'"):  # noqa: SIM117
        with drawing_rows(Rows(0, 2, 4)), pyro.plate("data", 2):
            pyro.sample("z", dist.Laplace(x[:, 0], torch.ones(2)))
    with pytest.raises(ValueError, match=r"in the plate 'data'.*got 'z' outside"):  # noqa: SIM117
        with drawing_rows(Rows(0, 2, 4)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
