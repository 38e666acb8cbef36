"""On an NVIDIA GPU: whole steps as CUDA graphs. Skipped where there is none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, Adamax

import pyro_vaes as pv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, generator=generator).cuda() for n in (8, 8, 5)]


def model(x):
    weight = pyro.param("weight", torch.ones(3, device="cuda"))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3, device="cuda"), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * weight, 0.5).to_event(1), obs=x)


def guide(x):
    # Without noise, so that two modes can be compared step by step.
    scale = pyro.param("scale", torch.full((3,), 0.5, device="cuda"))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(scale * x, event_dim=1))


@pytest.mark.parametrize("optim", [Adam, Adamax])
def test_graphs_take_the_steps_of_svi(optim):
    found = []
    for make in (
        lambda: SVI(model, guide, optim({"lr": 0.01}), Trace_ELBO()),
        lambda: pv.FastSVI(model, guide, optim({"lr": 0.01}), mode="cuda_graph"),
    ):
        pyro.clear_param_store()
        svi = make()
        losses = [svi.step(batches()[i % 3]) for i in range(30)]
        found.append((losses, pyro.param("weight").tolist(), pyro.param("scale").tolist()))
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def vae():
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(6, [16]), 2)
    likelihood = pv.CategoricalLikelihood(pv.MLP(2, [16]), (6,), 4)
    return pv.VAE(pv.MixturePrior(2, 3), posterior, likelihood)


def test_noise_differs_at_each_step_and_follows_the_seed():
    def losses():
        one = vae().cuda()
        x = torch.randint(0, 4, (8, 6), generator=torch.Generator().manual_seed(1)).float().cuda()
        svi = pv.FastSVI(one.model, one.guide, Adam({"lr": 0.0}), mode="cuda_graph")
        torch.manual_seed(3)
        return [svi.step(x) for _ in range(20)]

    first = losses()
    assert len(set(first)) == 20
    assert losses() == first


def test_schedules_reach_into_a_graph():
    x = torch.randint(0, 4, (32, 6), generator=torch.Generator().manual_seed(1))
    for schedule in ("constant", "cosine"):
        history = pv.fit(
            vae(), x, x, epochs=20, warmup_epochs=5, schedule=schedule, learning_rate=1e-2,
            device="cuda", mode="cuda_graph", progress=False,
        )  # fmt: skip
        assert history.records[-1]["val_loss"] < history.records[0]["val_loss"]
        assert history.mode == "cuda_graph"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision(precision):
    x = torch.randint(0, 4, (32, 6), generator=torch.Generator().manual_seed(1))
    history = pv.fit(vae(), x, x, epochs=3, device="cuda", precision=precision, progress=False)
    assert abs(history.precision_shift) < 0.2
