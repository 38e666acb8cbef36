"""On an NVIDIA GPU: whole steps as CUDA graphs. Skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import cuda_worker
import pyro
import pyro.distributions as dist
import pytest
import torch
from cuda_worker import told
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import SGD, Adam, Adamax
from registry import LIKELIHOODS, OBJECTIVES, POSTERIORS, PRIORS, data, make_vae

import pyro_vaes as pv
from pyro_vaes.data.augmentation import binarize
from pyro_vaes.data.splits import Split
from pyro_vaes.training.distributed import ALONE
from pyro_vaes.training.sweep import fit_many

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


# --- training ---------------------------------------------------------------------------------


PAIRS = [
    *((prior, "normal", "categorical") for prior in PRIORS if prior != "normal"),
    *(("normal", posterior, "categorical") for posterior in POSTERIORS),
    *(("normal", "normal", likelihood) for likelihood in LIKELIHOODS),
]


# Pyro inverts an autoregressive transform element by element, looking each up on the host; a prior
# of the user's may make its parameters there.
HOST = {
    ("iaf", "normal", "categorical"),
    ("vamp_of_flow", "normal", "categorical"),
    ("own", "normal", "categorical"),
    ("normal", "maf", "categorical"),
}


def part_of(prior, posterior, likelihood):
    torch.manual_seed(0)
    one = make_vae(prior, posterior, likelihood)
    return one, data(likelihood, 30, 4)


@pytest.mark.filterwarnings("ignore:FastSVI continues in traced mode")
@pytest.mark.parametrize("parts", PAIRS, ids="-".join)
def test_every_part_can_be_captured(parts):
    """And takes the steps that it takes in eager mode on the same noise, moments included."""
    found = []
    for mode in ("eager", "cuda_graph"):
        one, x = part_of(*parts)
        history = pv.fit(
            one, x, x, epochs=3, batch_size=8, learning_rate=0.01, device="cuda", mode=mode,
            progress=False,
        )  # fmt: skip
        assert history.mode == ("traced" if mode != "eager" and parts in HOST else mode)
        found.append([record["train_loss"] for record in history.records])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "info_adversarial"])
def test_every_objective_can_be_captured(name):
    found = []
    for mode in ("eager", "cuda_graph"):
        one, x = part_of("spline", "normal", "categorical")
        history = pv.fit(
            one, x, x, objective=OBJECTIVES[name](), epochs=3, batch_size=10, learning_rate=0.01,
            device="cuda", mode=mode, progress=False,
        )  # fmt: skip
        assert history.mode == mode
        found.append([record["train_loss"] for record in history.records])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_training_chooses_graphs_and_resumes_bit_for_bit(tmp_path):
    def trained(*epochs, **where):
        for number in epochs:
            one, x = part_of("vamp", "normal", "bernoulli")
            history = pv.fit(
                one, Split(x / 2, transform=binarize), x, epochs=number, batch_size=8,
                resume=bool(where), progress=False, **where, ema_decay=0.9,
            )  # fmt: skip
        return one, history

    (one, straight), (other, resumed) = trained(80), trained(60, 80, out=tmp_path / "run")
    assert straight.device == "cuda" and straight.mode == resumed.mode == "cuda_graph"
    losses = [[record["val_loss"] for record in h.records] for h in (straight, resumed)]
    assert losses[0] == losses[1]
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_and_thawed_parameters_in_a_graph():
    found = []
    for mode in ("eager", "cuda_graph"):
        one = vae().cuda()
        x = torch.ones(8, 6).cuda()
        first = next(iter(one.posterior.parameters()))
        first.requires_grad_(False)
        svi = pv.FastSVI(one.model, one.guide, Adam({"lr": 0.01}), mode=mode)
        torch.manual_seed(0)
        for step in range(8):
            before = first.clone()
            if step == 4:
                first.requires_grad_(True)
            svi.step(x)
            assert torch.equal(before, first) == (step < 4)
        found.append([p.detach().cpu() for p in one.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_an_optimiser_without_state_and_a_parameter_without_part_in_the_loss():
    class Idle(pv.NormalPrior):
        def __init__(self):
            super().__init__(2)
            self.idle = torch.nn.Parameter(torch.ones(3))

    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(6, [16]), 2)
    likelihood = pv.CategoricalLikelihood(pv.MLP(2, [16]), (6,), 4)
    one = pv.VAE(Idle(), posterior, likelihood).cuda()
    for optim in (SGD({"lr": 1e-4}), Adam({"lr": 1e-3})):
        svi = pv.FastSVI(one.model, one.guide, optim, mode="cuda_graph")
        losses = [svi.step(torch.ones(8, 6).cuda()) for _ in range(20)]
        assert svi.mode == "cuda_graph" and len(svi._programs) == 1
        assert losses[-1] < losses[0]
    assert one.prior.idle.tolist() == [1.0] * 3


def test_what_a_graph_cannot_hold_is_recorded():
    """A number fetched from the host at each step can be recorded, not captured."""
    one = vae().cuda()
    host = torch.randn(100_000)

    def model(x):
        pyro.sample("from_host", dist.Delta(host.to("cuda").mean()), obs=host.to("cuda").mean())
        return one.model(x)

    svi = pv.FastSVI(model, one.guide, Adam({"lr": 0.01}), mode="cuda_graph")
    x = torch.ones(8, 6).cuda()
    svi.step(x)
    with pytest.warns(UserWarning, match="traced mode: the step could not be captured"):
        svi.step(x)
    assert svi.mode == "traced"
    losses = [svi.step(x) for _ in range(20)]
    assert len(set(losses)) == 20 and losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:FastSVI continues in traced mode")
def test_a_loss_that_waits_for_the_device_is_recorded():
    """Torch reads the draws of a mixture; the device's noise is not disturbed."""
    one, x = part_of("mixture", "normal", "categorical")
    history = pv.fit(
        one, x, x, objective=OBJECTIVES["info_mmd"](), epochs=30, batch_size=10, device="cuda",
        mode="cuda_graph", progress=False,
    )  # fmt: skip
    assert history.mode == "traced"
    assert history.records[-1]["val_loss"] < history.records[0]["val_loss"]
    assert len(set(torch.randn(100, device="cuda").tolist())) > 90


# --- the rest of the library ----------------------------------------------------------------------


def test_binarisation_is_drawn_on_the_device():
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((1000, 50), 0.3).cuda()
    first, second = binarize(grey, generator), binarize(grey, generator)
    assert first.is_cuda and not torch.equal(first, second)
    assert first.mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(binarize(grey, torch.Generator().manual_seed(0)), first)


def test_bounds_are_those_of_the_cpu():
    torch.manual_seed(0)
    one = vae()
    x = torch.randint(0, 4, (50, 6)).float()
    on_cpu = pv.evaluate(one, x, num_samples=4000)
    on_gpu = pv.evaluate(one.cuda(), x, num_samples=4000)
    assert on_gpu.nll == pytest.approx(on_cpu.nll, abs=0.02)
    assert on_gpu.elbo == pytest.approx(on_cpu.elbo, abs=0.02)
    coarse = pv.log_marginal(one, x, 4000, proposal="encoder", chunk_size=100)
    fine = pv.log_marginal(one, x, 4000, proposal="encoder")
    torch.testing.assert_close(fine, coarse, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_a_sweep_takes_the_steps_of_the_cpu(mode):
    found = []
    x = torch.randint(0, 4, (40, 6), generator=torch.Generator().manual_seed(1)).float()
    for device in ("cpu", "cuda"):
        together = [vae(), vae()]
        histories = fit_many(
            together, x, x, epochs=4, batch_size=10, learning_rates=[1e-2, 1e-3], device=device,
            mode=mode if device == "cuda" else "traced",
        )  # fmt: skip
        found.append([record["val_loss"] for h in histories for record in h.records])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_processes_share_a_batch_on_gpus(tmp_path, backend):
    """A group of one over NCCL, which wants a GPU for each; two on one GPU over gloo."""
    size = 1 if backend == "nccl" else 2
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    worker = Path(cuda_worker.__file__)
    command = [sys.executable, *launch, str(worker), str(tmp_path / "told.json"), backend]
    ended = subprocess.run(
        command, cwd=worker.parent.parent, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shared, alone = json.loads((tmp_path / "told.json").read_text()), told(ALONE)
    assert backend in shared.pop("backend")
    assert shared["mode"] == alone["mode"] == "traced" and shared["device"] == "cuda"
    for name in ("steps", "train_loss", "val_loss"):
        assert shared[name] == pytest.approx(alone[name], rel=1e-4)
