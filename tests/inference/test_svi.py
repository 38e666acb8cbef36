"""FastSVI takes the steps of Pyro's SVI, in fewer pieces."""

import os
import subprocess
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.optim import AdagradRMSProp, Adam, ClippedAdam, ExponentialLR, LambdaLR
from torch import nn

import pyro_vaes as pv
from pyro_vaes.inference.recording import TracedStep


def small_vae(seed=0, dtype=torch.float64, prior="standard"):
    torch.manual_seed(seed)
    posterior = pv.NormalPosterior(pv.MLP(6, [12]), 3)
    u = torch.randint(0, 5, (4, 6)).float()
    priors = {"standard": lambda: pv.NormalPrior(3), "vamp": lambda: pv.VampPrior(posterior, u)}
    likelihood = pv.CategoricalLikelihood(pv.MLP(3, [12]), (6,), 5)
    return pv.VAE(priors[prior](), posterior, likelihood).to(dtype)


def data(n=8, dtype=torch.float64):
    return torch.randint(0, 5, (n, 6), generator=torch.Generator().manual_seed(1)).to(dtype)


def weights(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def train(make_svi, steps=5, prior="standard", batches=None):
    pyro.clear_param_store()
    vae = small_vae(prior=prior)
    svi = make_svi(vae)
    torch.manual_seed(3)
    losses = [svi.step((batches or [data()])[i % len(batches or [0])]) for i in range(steps)]
    return torch.tensor(losses, dtype=torch.float64), weights(vae)


def optim():
    return Adam({"lr": 1e-2})


@pytest.mark.parametrize("prior", ["standard", "vamp"])
@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_same_updates_as_svi(mode, prior):
    losses, w = train(lambda v: SVI(v.model, v.guide, optim(), Trace_ELBO()), prior=prior)
    ours, w_ours = train(
        lambda v: pv.FastSVI(v.model, v.guide, optim(), Trace_ELBO(), mode=mode), prior=prior
    )
    torch.testing.assert_close(ours, losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(w_ours, w, rtol=0, atol=1e-6)


def test_one_trace_for_each_batch_shape():
    batches = [data(8), data(5)]
    losses, w = train(lambda v: SVI(v.model, v.guide, optim(), Trace_ELBO()), 8, batches=batches)
    made = []

    def make(vae):
        made.append(pv.FastSVI(vae.model, vae.guide, optim(), mode="traced"))
        return made[0]

    ours, w_ours = train(make, 8, batches=batches)
    torch.testing.assert_close(w_ours, w, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, losses, rtol=0, atol=1e-6)
    assert len(made[0]._programs) == 2


def test_per_parameter_options_and_clipping_are_honoured():
    def options(name):
        return {"lr": 0.0 if "likelihood" in name else 1e-2, "clip_norm": 0.1}

    for mode in ("eager", "traced"):
        _, w = train(lambda v: SVI(v.model, v.guide, ClippedAdam(options), Trace_ELBO()))
        _, ours = train(
            lambda v, m=mode: pv.FastSVI(v.model, v.guide, ClippedAdam(options), mode=m)
        )
        torch.testing.assert_close(ours, w, rtol=0, atol=1e-6)
    clipped = Adam({"lr": 1e-2}, {"clip_norm": 1e-3})
    _, w = train(
        lambda v: SVI(v.model, v.guide, Adam({"lr": 1e-2}, {"clip_norm": 1e-3}), Trace_ELBO())
    )
    _, ours = train(lambda v: pv.FastSVI(v.model, v.guide, clipped))
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-6)


def test_pyro_scheduler_is_honoured():
    def scheduled(kind, **options):
        pyro.clear_param_store()
        vae = small_vae()
        schedule = ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.5}
        )
        svi = kind(vae.model, vae.guide, schedule, Trace_ELBO(), **options)
        torch.manual_seed(3)
        for _ in range(4):
            svi.step(data())
            schedule.step()
        return weights(vae)

    expected = scheduled(SVI)
    for mode in ("eager", "traced"):
        torch.testing.assert_close(scheduled(pv.FastSVI, mode=mode), expected, rtol=0, atol=1e-6)


def test_torch_factory():
    _, w = train(lambda v: SVI(v.model, v.guide, optim(), Trace_ELBO()))
    _, ours = train(
        lambda v: pv.FastSVI(v.model, v.guide, lambda params: torch.optim.Adam(params, lr=1e-2))
    )
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-6)


def test_warmup_changes_without_retracing():
    vae = small_vae()
    objective = pv.ELBO()
    svi = pv.FastSVI(vae.model, vae.guide, optim(), objective, mode="traced")
    svi.step(data())
    objective.warmup.fill_(0.0)
    torch.manual_seed(0)
    without = svi.step(data())
    torch.manual_seed(0)
    # The recorded loss has no KL now: it is the reconstruction alone.
    assert len(svi._programs) == 1
    vae2 = small_vae()
    svi2 = pv.FastSVI(vae2.model, vae2.guide, optim(), pv.BetaELBO(0.0), mode="eager")
    torch.manual_seed(3)
    svi2.step(data())
    assert without > 0
    objective.warmup.fill_(1.0)
    torch.manual_seed(0)
    assert svi.step(data()) != pytest.approx(without, abs=1e-3)


def test_frozen_parameters_stay_frozen_and_thaw():
    vae = small_vae()
    svi = pv.FastSVI(vae.model, vae.guide, optim(), mode="traced")
    svi.step(data())
    svi.step(data())
    frozen = vae.likelihood.head.weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    others = vae.posterior.head.weight.clone()
    svi.step(data())
    assert torch.equal(frozen, before)
    assert not torch.equal(vae.posterior.head.weight, others)
    frozen.requires_grad_(True)
    svi.step(data())
    assert not torch.equal(frozen, before)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_what_was_frozen_from_the_start_is_trained_once_thawed(mode):
    vae = small_vae()
    frozen = vae.likelihood.head.weight
    frozen.requires_grad_(False)
    svi = pv.FastSVI(vae.model, vae.guide, optim(), mode=mode)
    for thaws in (False, False, True, True, True):
        frozen.requires_grad_(thaws)
        before = frozen.clone()
        svi.step(data())
        assert torch.equal(frozen, before) != thaws
    assert svi.mode == mode


def test_freezing_everything_and_thawing_it_costs_no_recording():
    vae = small_vae()
    svi = pv.FastSVI(vae.model, vae.guide, optim(), mode="traced")
    for thawed in (True, True, False, False, True, True):
        for param in vae.parameters():
            param.requires_grad_(thawed)
        before = weights(vae)
        svi.step(data())
        assert torch.equal(weights(vae), before) != thawed
    assert svi.mode == "traced" and svi._programs


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_schedulers_take_thawed_parameters_along(mode):
    vae = small_vae()
    frozen = vae.likelihood.head.weight
    frozen.requires_grad_(False)
    schedule = LambdaLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "lr_lambda": lambda n: 0.5**n}
    )
    svi = pv.FastSVI(vae.model, vae.guide, schedule, mode=mode)
    svi.step(data())
    frozen.requires_grad_(True)
    for n in range(3):
        before = frozen.clone()
        svi.step(data())
        assert 0 < (frozen - before).abs().max() <= 0.11 * 0.5**n
        schedule.step()
    assert len(svi.optimizer.param_groups) == 1


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_an_optimiser_may_group_the_parameters_its_own_way(mode):
    def decayed(groups):
        params = [p for group in groups for p in group["params"]]
        matrices, rest = ([p for p in params if (p.dim() > 1) == many] for many in (True, False))
        return torch.optim.AdamW([{"params": matrices}, {"params": rest, "weight_decay": 0.0}])

    vae = small_vae()
    svi = pv.FastSVI(vae.model, vae.guide, decayed, mode=mode)
    frozen = vae.likelihood.head.weight
    frozen.requires_grad_(False)
    for thawed in (False, False, True, True):
        frozen.requires_grad_(thawed)
        before = weights(vae)
        svi.step(data())
        assert not torch.equal(weights(vae), before)
    assert len(svi.optimizer.param_groups) == 2 and svi.mode == mode


# --- what graphs need, without a GPU --------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """Steps that would be captured are recorded: all but the capture itself."""
    monkeypatch.setattr("pyro_vaes.inference.svi.GraphStep", TracedStep)

    def make(vae, optimiser):
        with monkeypatch.context() as here:
            here.setattr(torch.cuda, "is_available", lambda: True)
            return pv.FastSVI(vae.model, vae.guide, optimiser, mode="cuda_graph")

    return make


def test_a_graph_finds_the_optimisers_state_and_rates_in_place(graphs):
    """Of parameters that come later, too: a tensor made in a graph is reset at each replay."""
    vae = small_vae(dtype=torch.float32)
    frozen = vae.likelihood.head.weight
    frozen.requires_grad_(False)
    special = Adam(lambda name: {"lr": 0.5 if "likelihood.head" in name else 0.01})
    svi = graphs(vae, special)
    recorded = []
    for thawed in (False, False, False, True, True, True):
        frozen.requires_grad_(thawed)
        svi.step(data(dtype=torch.float32))
        recorded.append(any(not program.stale for program in svi._programs.values()))
        for group in svi.optimizer.param_groups:
            assert isinstance(group["lr"], torch.Tensor) and group["capturable"]
    assert recorded == [False, True, True, False, True, True]
    assert {round(float(g["lr"]), 4) for g in svi.optimizer.param_groups} == {0.5, 0.01}


@pytest.mark.parametrize(
    "optimiser",
    [
        ClippedAdam({"lr": 0.01}),
        AdagradRMSProp({"eta": 0.1}),
        lambda groups: torch.optim.Adam(groups, lr=0.01),
        lambda groups: torch.optim.SGD(groups, lr=1e-4),
    ],
)
def test_an_optimiser_that_no_graph_can_hold(graphs, optimiser):
    """Its count of steps, a number of the host, would stay what it was."""
    vae = small_vae()
    svi = graphs(vae, optimiser)
    svi.step(data())
    with pytest.warns(UserWarning, match="traced mode: .* CUDA graph .* is not capturable"):
        svi.step(data())
    assert svi.mode == "traced" and svi._programs
    assert not any(
        isinstance(group.get("lr"), torch.Tensor) for group in svi.optimizer.param_groups
    )


def test_whoever_leaves_the_graphs_has_the_optimiser_of_the_other_mode(graphs, monkeypatch):
    class Refused(TracedStep):
        def _prepare(self, tensors):
            raise RuntimeError("about to wait")

    monkeypatch.setattr("pyro_vaes.inference.svi.GraphStep", Refused)
    vae = small_vae()
    svi = graphs(vae, Adam({"lr": 0.01}))
    svi.step(data())
    with pytest.warns(UserWarning, match="traced mode"):
        svi.step(data())
    (group,) = svi.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.01, rel=1e-6) and not group["capturable"]
    svi.step(data())
    assert svi.mode == "traced"


def test_noise_differs_at_each_step_and_follows_the_seed():
    def losses(seed):
        vae = small_vae()
        svi = pv.FastSVI(vae.model, vae.guide, Adam({"lr": 0.0}), mode="traced")
        torch.manual_seed(seed)
        return [svi.step(data()) for _ in range(4)]

    first = losses(0)
    assert len(set(first)) == 4
    assert losses(0) == first
    assert losses(1) != first


def test_data_dependent_model_falls_back_with_one_warning():
    net = nn.Linear(1, 1)

    def model(x):
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        scale = 1.0 if z > 0 else 2.0
        pyro.sample("x", dist.Normal(net(z.reshape(1)), scale), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("z", dist.Normal(loc, 1.0))

    svi = pv.FastSVI(model, guide, optim(), mode="traced")
    x = torch.ones(1)
    svi.step(x)
    with pytest.warns(UserWarning, match="continues in eager mode"):
        svi.step(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(x)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("loss", [Trace_ELBO, lambda: RenyiELBO(0.5, num_particles=3)])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_discrete_guide_is_trained_as_pyro_does_with_at_most_one_warning(
    auxiliary, loss, mode, prepared
):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0) if auxiliary else dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

    def guide():
        discrete = dist.Bernoulli(logits=pyro.param("logit", torch.zeros(())))
        if auxiliary:
            u = pyro.sample("u", discrete, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u, 1.0))
        else:
            pyro.sample("z", discrete)

    def run(kind, **options):
        pyro.clear_param_store()
        svi = kind(model, guide, optim(), loss(), **options)
        if options and prepared:
            svi.prepare()
        torch.manual_seed(0)
        losses = [svi.step() for _ in range(5)]
        return [*losses, pyro.param("logit").item()]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ours = run(pv.FastSVI, mode=mode)
    assert ["reparameterised" in str(one.message) for one in told] == [True] * (mode == "traced")
    assert ours == pytest.approx(run(SVI), abs=1e-6)


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("loss", [RenyiELBO, Trace_ELBO])
def test_the_nesting_of_plates_is_found_before_the_first_step(loss, mode):
    def steps(**options):
        def make(v):
            bound = loss(num_particles=3, vectorize_particles=True, **options)
            svi = pv.FastSVI(v.model, v.guide, optim(), bound, mode=mode)
            svi.prepare(data())
            return svi

        return train(make)

    expected, found = steps(max_plate_nesting=1), steps()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("alpha", [0, 0.5, -1.0])
@pytest.mark.parametrize("particles", [1, 3])
def test_many_sample_bounds_are_pyros(particles, alpha, together, mode):
    def loss():
        return RenyiELBO(alpha, particles, max_plate_nesting=1, vectorize_particles=together)

    losses, w = train(lambda v: SVI(v.model, v.guide, optim(), loss()), prior="vamp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # It would warn of a step that could not be recorded.
        ours, w_ours = train(
            lambda v: pv.FastSVI(v.model, v.guide, optim(), loss(), mode=mode), prior="vamp"
        )
    torch.testing.assert_close(ours, losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(w_ours, w, rtol=0, atol=1e-6)


def test_other_losses_run_their_own_way():
    _, w = train(lambda v: SVI(v.model, v.guide, optim(), TraceMeanField_ELBO()))
    _, ours = train(lambda v: pv.FastSVI(v.model, v.guide, optim(), TraceMeanField_ELBO()))
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-6)


def test_particles():
    def make(v):
        return Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)

    _, w = train(lambda v: SVI(v.model, v.guide, optim(), make(v)))
    _, ours = train(lambda v: pv.FastSVI(v.model, v.guide, optim(), make(v), mode="traced"))
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-6)


def test_parameters_that_appear_later_are_trained():
    def model(n):
        for i in range(n):
            loc = pyro.param(f"loc{i}", torch.zeros(()))
            pyro.sample(f"x{i}", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))

    svi = pv.FastSVI(model, lambda n: None, optim(), mode="eager")
    svi.step(1)
    svi.step(3)
    assert pyro.param("loc2").item() > 0


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize(
    "kind", [AutoDelta, AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoIAFNormal]
)
def test_autoguides_are_trained(kind, mode):
    """They build themselves in the first step, replacing the parameters announced meanwhile."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def losses(make_svi):
        pyro.clear_param_store()
        torch.manual_seed(0)
        x = torch.randn(20, 2) + 3
        svi = make_svi(model, kind(model), optim(), Trace_ELBO())
        return torch.tensor([svi.step(x) for _ in range(5)])

    ours = losses(lambda *args: pv.FastSVI(*args, mode=mode))
    torch.testing.assert_close(ours, losses(SVI), rtol=1e-4, atol=0)


def test_models_in_turns_keep_their_own_parameters():
    first, second = small_vae(0), small_vae(1)
    a = pv.FastSVI(first.model, first.guide, optim(), mode="eager")
    b = pv.FastSVI(second.model, second.guide, optim(), mode="eager")
    for _ in range(3):
        a.step(data())
        b.step(data())
    for svi, vae in ((a, first), (b, second)):
        trained = {id(p) for group in svi.optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in vae.parameters()}


def test_no_compiler_falls_back(monkeypatch):
    monkeypatch.setattr("pyro_vaes.inference.recording.shutil.which", lambda name: None)
    vae = small_vae()
    svi = pv.FastSVI(vae.model, vae.guide, optim(), mode="compiled")
    svi.step(data())
    with pytest.warns(UserWarning, match="no C"):
        svi.step(data())
    svi.step(data())


@pytest.mark.parametrize("prior", ["standard", pytest.param("vamp", marks=pytest.mark.slow)])
def test_compiled_steps_are_eager_steps(prior):
    """The same noise at one seed: compiling changes rounding, nothing else."""
    # A last batch of another size and one of another layout are programs of their own.
    batches = [data(), data(3), data().mT.contiguous().mT]
    expected = train(lambda v: SVI(v.model, v.guide, optim(), Trace_ELBO()), 6, prior, batches)
    compiled = train(
        lambda v: pv.FastSVI(v.model, v.guide, optim(), mode="compiled"), 6, prior, batches
    )
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_evaluate_loss_takes_no_step():
    vae = small_vae()
    svi = pv.FastSVI(vae.model, vae.guide, optim())
    before = weights(vae)
    torch.manual_seed(0)
    ours = svi.evaluate_loss(data())
    torch.manual_seed(0)
    theirs = SVI(vae.model, vae.guide, optim(), Trace_ELBO()).evaluate_loss(data())
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert torch.equal(weights(vae), before)


def test_bad_mode_is_refused():
    vae = small_vae()
    with pytest.raises(ValueError, match="Expected mode"):
        pv.FastSVI(vae.model, vae.guide, optim(), mode="fast")


_COMPILED = """
import torch
from pyro_vaes.inference.recording import Program

print(Program(lambda x: (x.sin().cumsum(0).exp(),), [torch.ones(7)], compiled=True)(torch.ones(7)))
"""


@pytest.mark.slow
def test_half_a_library_in_the_compilers_cache_is_made_anew(tmp_path):
    """A process that is killed while it compiles leaves one there."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    def run():
        command = [sys.executable, "-c", _COMPILED]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    first = run()
    libraries = sorted(tmp_path.rglob("*.so"))
    assert first.returncode == 0 and libraries, first.stderr
    for path in libraries:
        path.write_bytes(path.read_bytes()[:10])
    again = run()
    assert again.stdout == first.stdout, again.stderr
