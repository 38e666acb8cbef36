"""At one seed FastSVI takes SVI's steps, for every kind of argument, loss, optimiser and store.

First whole programs, as they are written in Pyro's tutorials; then one by one what a recording may
get wrong: what it depends on, what it changes, what it must leave to the user's own code.
"""

import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import (
    SVI,
    EnergyDistance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    autoguide,
    config_enumerate,
)
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam, ClippedAdam, ExponentialLR
from torch import nn
from torch.distributions import constraints

import pyro_vaes as pv

# That a step is not recorded is said: the tests of what is said look for it.
pytestmark = pytest.mark.filterwarnings("ignore:FastSVI:UserWarning")

RECORDED = ["traced", pytest.param("compiled", marks=pytest.mark.slow)]


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Program(NamedTuple):
    """What a user writes: a model, a guide, a loss, and the arguments of step i."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    feed: Callable[[int], tuple[Any, ...]]
    loss: Callable[[], Any] = Trace_ELBO
    after: Callable[[int], None] = lambda i: None


def run(build: Callable[[], Program], kind: Any = SVI, steps: int = 6, **options: Any) -> Any:
    """Losses, parameters and the SVI of a program at a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program = build()
    svi = kind(program.model, program.guide, Adam({"lr": 0.05}), program.loss(), **options)
    losses = []
    for i in range(steps):
        losses.append(svi.step(*program.feed(i)))
        program.after(i)
    store = pyro.get_param_store()
    params = {name: value.detach().clone() for name, value in store.items()}
    return losses, params, svi


def assert_same(build: Callable[[], Program], mode: str, steps: int = 6, tol: float = 1e-4) -> Any:
    losses, params, _ = run(build, steps=steps)
    ours, our_params, svi = run(build, pv.FastSVI, steps, mode=mode)
    assert ours == pytest.approx(losses, rel=tol)
    assert our_params.keys() == params.keys()
    for name, value in params.items():
        torch.testing.assert_close(our_params[name], value, rtol=10 * tol, atol=10 * tol)
    return svi


# --- programs ------------------------------------------------------------------------------------


def vae() -> Program:
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return Program(model, guide, lambda i: (normal(8, 6, seed=i),))


class Regression(PyroModule):
    """Pyro's first tutorial: distributions made before training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        scale = pyro.sample("scale", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)
        return mean


def regression(kind: Any = autoguide.AutoNormal) -> Program:
    model = Regression()
    return Program(model, kind(model), lambda i: (normal(20, 3), normal(20, seed=2)))


def dirichlet_process() -> Program:
    def model(x):
        with pyro.plate("sticks", 4):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.5))
        with pyro.plate("components", 5):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        left = torch.cat([torch.ones(1), (1 - beta).cumprod(-1)])
        weights = torch.cat([beta, torch.ones(1)]) * left
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    def guide(x):
        kappa = pyro.param("kappa", lambda: torch.rand(4) + 1, constraint=constraints.positive)
        tau = pyro.param("tau", lambda: torch.randn(5))
        phi = pyro.param("phi", lambda: torch.ones(len(x), 5) / 5, constraint=constraints.simplex)
        with pyro.plate("sticks", 4):
            pyro.sample("beta", dist.Beta(torch.ones(4), kappa))
        with pyro.plate("components", 5):
            pyro.sample("mu", dist.Normal(tau, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(phi))

    return Program(model, guide, lambda i: (torch.arange(12.0),))


def markov_model() -> Program:
    """As dmm.py: sequences of different lengths, the KL annealed by a plain number."""
    step, emit, combine = nn.Linear(2, 4), nn.Linear(2, 3), nn.Linear(5, 4)

    def model(x, lengths, beta):
        pyro.module("step", step)
        pyro.module("emit", emit)
        z = torch.zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(int(lengths.max())):
                mask = (t < lengths).float()
                loc, scale = step(z).chunk(2, -1)
                with poutine.scale(scale=beta):
                    fn = dist.Normal(loc, scale.exp()).mask(mask[:, None] > 0).to_event(1)
                    z = pyro.sample(f"z{t}", fn)
                fn = dist.Normal(emit(z), 1.0).mask(mask[:, None] > 0).to_event(1)
                pyro.sample(f"x{t}", fn, obs=x[:, t])

    def guide(x, lengths, beta):
        pyro.module("combine", combine)
        z = torch.zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(int(lengths.max())):
                mask = (t < lengths).float()
                loc, scale = combine(torch.cat([z, x[:, t]], -1)).chunk(2, -1)
                with poutine.scale(scale=beta):
                    fn = dist.Normal(loc, scale.exp()).mask(mask[:, None] > 0).to_event(1)
                    z = pyro.sample(f"z{t}", fn)

    def feed(i):
        return normal(4, 5, 3, seed=i), torch.tensor([2, 3, 1, 2 + i % 3]), 0.1 * (i + 1)

    return Program(model, guide, feed)


@pytest.mark.parametrize("mode", ["eager", "traced", "compiled"])
def test_vae(mode):
    assert assert_same(vae, mode).mode == mode


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_bayesian_regression(mode):
    assert assert_same(regression, mode).mode == mode


def columns_of_a_matrix() -> Program:
    """Parameters whose gradients are views: columns, a transposed matrix, an expanded sum."""
    start = normal(5, 3)

    def model(x):
        pyro.sample("total", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Beta(2.0, 2.0))
            pyro.sample("x", dist.Normal(3 * z, 0.5), obs=x)

    def guide(x):
        a = pyro.param("a", torch.full((5,), 2.0), constraint=dist.constraints.positive)
        b = pyro.param("b", torch.arange(1.0, 6.0), constraint=dist.constraints.positive)
        weight = pyro.param("weight", start)
        shift = pyro.param("shift", torch.zeros(3))
        mean = (weight.mT + shift.unsqueeze(-1)).matmul(x).sum()
        pyro.sample("total", dist.Normal(mean, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Beta(a, b))

    return Program(model, guide, lambda i: (normal(5, seed=i),))


@pytest.mark.parametrize("mode", ["eager", "traced", "compiled"])
def test_gradients_need_not_have_the_layout_of_their_parameters(mode):
    svi = assert_same(columns_of_a_matrix, mode)
    assert svi.mode == mode
    assert all(p.grad.stride() == p.stride() for p in svi._params.values())


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("build", [dirichlet_process, markov_model])
def test_what_is_not_recorded_runs_as_it_is(build, mode):
    assert assert_same(build, mode, steps=12).mode == "eager"


def mixture() -> Program:
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    guide = autoguide.AutoNormal(poutine.block(model, hide=["z"]))
    return Program(
        model,
        guide,
        lambda i: (torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]),),
        lambda: TraceEnum_ELBO(max_plate_nesting=1),
    )


def topics() -> Program:
    """Latent Dirichlet allocation, as lda.py, with a guide of Dirichlets."""
    words = torch.randint(0, 9, (12, 4), generator=torch.Generator().manual_seed(0))

    @config_enumerate
    def model(words):
        with pyro.plate("topics", 3):
            topic = pyro.sample("topic", dist.Dirichlet(torch.ones(9) / 9))
        with pyro.plate("documents", 4):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("words", 12):
                z = pyro.sample("z", dist.Categorical(share))
                pyro.sample("word", dist.Categorical(topic[z]), obs=words)

    def guide(words):
        positive = {"constraint": constraints.positive}
        a = pyro.param("a", lambda: torch.ones(3, 9) + torch.rand(3, 9), **positive)
        b = pyro.param("b", lambda: torch.ones(4, 3) + torch.rand(4, 3), **positive)
        with pyro.plate("topics", 3):
            pyro.sample("topic", dist.Dirichlet(a))
        with pyro.plate("documents", 4):
            pyro.sample("share", dist.Dirichlet(b))

    return Program(model, guide, lambda i: (words,), lambda: TraceEnum_ELBO(max_plate_nesting=2))


def sparse_process() -> Program:
    x = torch.linspace(0, 1, 15)
    kernel = gp.kernels.RBF(1)
    model = gp.models.VariationalSparseGP(
        x, x.sin(), kernel, x[::5].clone(), gp.likelihoods.Gaussian(), jitter=1e-4
    )
    return Program(model.model, model.guide, lambda i: ())


def flow_guide() -> Program:
    flow = affine_autoregressive(2, hidden_dims=[8])

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return Program(model, guide, lambda i: (normal(7, 2, seed=i),))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "traced", "compiled"])
@pytest.mark.parametrize(
    ("build", "recorded"),
    [(mixture, False), (topics, False), (sparse_process, True), (flow_guide, True)],
)
def test_other_programs(build, recorded, mode):
    assert assert_same(build, mode).mode == (mode if recorded else "eager")


GUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[8]),
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoStructured": autoguide.AutoStructured,
    "AutoGaussian": autoguide.AutoGaussian,
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("kind", GUIDES)
def test_autoguides_of_bayesian_regression(kind, mode):
    assert assert_same(lambda: regression(GUIDES[kind]), mode).mode == mode


def labels_and_codes(kind: Any, **options: Any) -> list[float]:
    """M2 of Kingma et al. (2014) with its auxiliary loss: two SVIs that share an optimiser."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    encoder, decoder, classifier = nn.Linear(9, 4), nn.Linear(5, 6), nn.Linear(6, 3)
    optim = Adam({"lr": 0.02})

    def model(x, y=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), obs=y)
            zy = torch.cat([z.expand(*y.shape[:-1], 2), y], -1)
            pyro.sample("x", dist.Normal(decoder(zy), 1.0).to_event(1), obs=x)

    def guide(x, y=None):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.module("classifier", classifier)
                y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            x = x.expand(*y.shape[:-1], 6)
            loc, scale = encoder(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    def auxiliary(x, y=None):
        pyro.module("classifier", classifier)
        with pyro.plate("data", len(x)):
            fn = dist.OneHotCategorical(logits=classifier(x))
            with poutine.scale(scale=20.0):
                pyro.sample("label", fn, obs=y)

    enum = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    one = kind(model, config_enumerate(guide, "parallel", expand=True), optim, enum, **options)
    two = kind(auxiliary, lambda x, y=None: None, optim, Trace_ELBO(), **options)
    losses = []
    for i in range(8):
        x, y = normal(6, 6, seed=i), torch.eye(3)[torch.arange(6) % 3]
        losses += [one.step(x), one.step(x, y), two.step(x, y)]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_two_losses_of_one_optimiser(mode):
    ours = labels_and_codes(pv.FastSVI, mode=mode)
    assert ours == pytest.approx(labels_and_codes(SVI), rel=1e-4)


# --- what a recording depends on ------------------------------------------------------------------


def line(feed: Callable[[int], tuple[Any, ...]], read: Any = None, **more: Any) -> Program:
    """A Gaussian mean: ``read`` makes a tensor of the arguments."""
    read = read or (lambda x: x)

    def model(*args):
        x = read(*args)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(*args):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    return Program(model, guide, feed, **more)


@dataclasses.dataclass
class Batch:
    x: Any


class Holder(list):
    """A user's own kind of list."""


BATCH = Batch(None)


def bordered(i: int) -> np.ndarray[Any, Any]:
    """Arrays that look the same when NumPy shortens them."""
    array = np.zeros(1401, dtype=np.float32)
    array[700] = 10 * i
    return array


def refilled(i: int) -> tuple[Batch]:
    BATCH.x = normal(5, seed=i)
    return (BATCH,)


ARGUMENTS = {
    "array": (lambda i: (bordered(i),), torch.as_tensor, "eager"),
    "object": (refilled, lambda b: b.x, "eager"),
    "subclass": (lambda i: (Holder([normal(5, seed=i)]),), lambda b: b[0], "eager"),
    "dictionary": (lambda i: ({"x": normal(5, seed=i)},), lambda b: b["x"], "traced"),
    "nested": (lambda i: ([normal(5, seed=i), (1, None)],), lambda b: b[0], "traced"),
    "twice the same": (
        lambda i: (normal(5, seed=i), normal(5, seed=i + 1)) if i % 2 else (normal(5, seed=i),) * 2,
        lambda a, b: a - 2 * b,
        "traced",
    ),
    "needs a gradient": (lambda i: (normal(5, seed=i).requires_grad_(),), None, "eager"),
    "number": (lambda i: (normal(5, seed=i), 2.0), lambda x, a: a * x, "traced"),
    "numbers": (lambda i: (normal(5, seed=i), 0.1 * i), lambda x, a: a * x, "eager"),
    "true and one": (
        lambda i: (normal(5), [1, True, 1.0][i % 3]),
        lambda x, a: x + (5 if a is True else 0),
        "traced",
    ),
}


@pytest.mark.parametrize("mode", RECORDED)
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_arguments(kind, mode):
    feed, read, ends = ARGUMENTS[kind]
    svi = assert_same(lambda: line(feed, read), mode, steps=12)
    assert svi.mode == ("eager" if ends == "eager" else mode)
    assert len(svi._programs) <= 3 and (ends == "eager" or svi._programs)


def test_keyword_arguments_are_recorded_by_name():
    def model(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x - 2 * y)

    def guide(x, y):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    def losses(kind, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = kind(model, guide, Adam({"lr": 0.1}), Trace_ELBO(), **options)
        a, b = torch.tensor(1.0), torch.tensor(5.0)
        return [svi.step(*p, **k) for p, k in [((a,), {"y": b}), ((), {"y": b, "x": a})] * 3]

    assert losses(pv.FastSVI, mode="traced") == pytest.approx(losses(SVI), rel=1e-5)


class Reader:
    """Reads its data as an attribute; an array, a list or a tensor."""

    def __init__(self, kind: str) -> None:
        self.kind, self.data, self.calls, self.shift = kind, None, 0, 0.0
        self.average = torch.zeros(())

    def feed(self, i: int) -> tuple[()]:
        x = normal(5, seed=i)
        if self.kind in ("number", "counter", "average"):
            self.data = x if self.data is None else self.data
            self.shift = float(i // 5) if self.kind == "number" else 0.0
        elif self.kind == "filled in place" and i:
            self.data.copy_(x)
        elif self.kind == "array":
            self.data = x.numpy()
        else:
            self.data = x
        return ()

    def read(self) -> torch.Tensor:
        x = torch.as_tensor(self.data) + self.shift
        if self.kind == "counter":
            self.calls += 1
            x = x + self.calls
        if self.kind == "average":
            self.average = 0.5 * self.average + x.mean()
            x = x + self.average
        return x


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("attribute", "eager"),
        ("filled in place", "traced"),
        ("array", "eager"),
        ("number", "traced"),
        ("counter", "eager"),
        ("average", "eager"),
    ],
)
def test_what_is_read_by_reference_is_noticed(kind, ends):
    def build():
        reader = Reader(kind)
        return line(lambda i: reader.feed(i), reader.read)

    assert assert_same(build, "traced", steps=12).mode == ends


def test_closures_and_globals_are_noticed():
    def build():
        x = normal(5)

        def feed(i):
            nonlocal x
            if i % 4 == 0:
                x = normal(5, seed=i)
            if i % 6 == 0:
                BATCH.x = torch.tensor(float(i))
            return ()

        return line(feed, lambda: x + BATCH.x)

    svi = assert_same(build, "traced", steps=16)
    assert svi.mode == "traced" and svi._programs


def test_training_and_evaluation_behaviour_is_noticed():
    def build():
        net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

        def after(i):
            net.train(i % 6 < 3)

        return Program(model, lambda x: None, lambda i: (normal(4, 3),), after=after)

    assert assert_same(build, "traced", steps=12).mode == "traced"


@pytest.mark.parametrize("source", ["numpy", "python"])
def test_noise_that_is_not_torchs_is_not_frozen(source):
    def build():
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        draw = np.random.rand if source == "numpy" else random.random
        return line(lambda i: (normal(5),), lambda x: x + float(draw()))

    assert assert_same(build, "traced").mode == "eager"


# --- shapes and values that the data decide -------------------------------------------------------

DECIDED = {
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x[(x > 0).nonzero()[:, 0]],
    "count": lambda x: x * len(x[x > 0]),
    "unique": lambda x: x + len(x.round().unique()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "item": lambda x: x * x.max().item(),
    "parameter": lambda x: x + pyro.param("loc", torch.zeros(())).item(),
    "repeated": lambda x: x.repeat_interleave((x > 0).long() + 1),
}


@pytest.mark.parametrize("kind", DECIDED)
def test_what_the_data_decide_is_not_frozen(kind):
    build = lambda: line(lambda i: (normal(9, seed=i),), DECIDED[kind])  # noqa: E731
    assert assert_same(build, "traced").mode == "eager"


def test_a_constant_mask_is_recorded_until_it_changes():
    def build():
        mask = torch.tensor([True, False, True, True, False])

        def after(i):
            if i == 4:
                mask[1] = True

        return line(lambda i: (normal(5, seed=i),), lambda x: x[mask], after=after)

    svi = assert_same(build, "traced", steps=10)
    assert svi.mode == "traced" and len(svi._programs) == 1


def test_a_fall_back_names_line_site_and_argument():
    def model(x):
        x = torch.as_tensor(x)
        scale = 1.0 if x.sum() > 0 else 2.0
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    svi = pv.FastSVI(model, guide, Adam({"lr": 0.1}), mode="traced")
    svi.step(torch.ones(()))
    with pytest.warns(
        UserWarning, match=r"eager mode: .*\(Python reads a tensor's value at test_d"
    ):
        svi.step(torch.ones(()))
    assert svi.mode == "eager"

    svi = pv.FastSVI(model, guide, Adam({"lr": 0.1}), mode="traced")
    with pytest.warns(UserWarning, match="argument 'x' is a ndarray, which may"):
        svi.step(np.ones((), dtype=np.float32))


# --- parameters and optimisers --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("how", ["set", "cleared", "deleted", "state"])
def test_a_replaced_parameter_is_trained(how, mode):
    def build():
        def after(i):
            store = pyro.get_param_store()
            if i != 3:
                return
            if how == "set":
                store["loc"] = torch.tensor(-3.0)
            elif how == "cleared":
                pyro.clear_param_store()
            elif how == "deleted":
                del store["loc"]
            else:
                state = store.get_state()
                state["params"] = {"loc": torch.tensor(2.0, requires_grad=True)}
                store.set_state(state)

        return line(lambda i: (normal(5),), after=after)

    assert assert_same(build, mode, steps=10).mode == mode


@pytest.mark.parametrize("kind", [SVI, pv.FastSVI])
def test_a_part_put_into_a_vae_is_trained(kind):
    pyro.set_rng_seed(0)
    mlp = lambda *sizes: pv.MLP(sizes[0], [sizes[1]])  # noqa: E731
    likelihood = pv.NormalLikelihood(mlp(2, 8), (4,))
    one = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(mlp(4, 8), 2), likelihood)
    svi = kind(one.model, one.guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(3):
        svi.step(normal(8, 4))
    one.posterior = pv.NormalPosterior(mlp(4, 8), 2)
    before = [p.detach().clone() for p in one.posterior.parameters()]
    for _ in range(3):
        svi.step(normal(8, 4))
    after = list(one.posterior.parameters())
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    # What is loaded into the store is what the model has from then on.
    for name, value in list(pyro.get_param_store().named_parameters()):
        pyro.get_param_store()[name] = torch.zeros_like(value)
    svi.step(normal(8, 4))
    assert all(bool((p.abs() <= 0.051).all()) for p in after)


def checkpointed(kind: Any, tmp_path: Any, optim: Callable[[], Any], **options: Any) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program, losses, schedule = line(lambda i: (normal(5),)), [], optim()
    for i in range(8):
        if i % 4 == 0:
            if i:
                schedule.save(tmp_path / "optim")
                schedule = optim()
                schedule.load(tmp_path / "optim")
            svi = kind(program.model, program.guide, schedule, Trace_ELBO(), **options)
        losses.append(svi.step(*program.feed(i)))
        if hasattr(schedule, "step"):
            schedule.step()
    return [*losses, pyro.param("loc").item()]


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize(
    "optim",
    [
        lambda: Adam({"lr": 0.1}),
        lambda: ClippedAdam({"lr": 0.1, "lrd": 0.7}),
        lambda: ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.7}
        ),
    ],
)
def test_an_optimiser_is_saved_and_loaded(optim, mode, tmp_path):
    expected = checkpointed(SVI, tmp_path, optim)
    assert checkpointed(pv.FastSVI, tmp_path, optim, mode=mode) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kinds", ["fast fast", "fast plain", "plain fast"])
@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_an_optimiser_may_be_shared(kinds, mode):
    def losses(kinds):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optim, net, program = Adam({"lr": 0.1}), nn.Linear(2, 2), line(lambda i: (normal(5),))

        def other(x):
            pyro.module("net", net)
            loc = pyro.param("loc", torch.zeros(()))
            pyro.sample("y", dist.Normal(net(x[:2]) + loc, 3.0).to_event(1), obs=torch.zeros(2))

        def make(fast, *pair):
            options = {"mode": mode} if fast else {}
            return (pv.FastSVI if fast else SVI)(*pair, optim, Trace_ELBO(), **options)

        first, second = (kind == "fast" for kind in kinds.split())
        one = make(first, program.model, program.guide)
        two = make(second, other, lambda x: None)
        return [svi.step(normal(5)) for _ in range(6) for svi in (one, one, two)]

    assert losses(kinds) == pytest.approx(losses("plain plain"), rel=1e-4)


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("when", [0, 3])
def test_hooks_of_gradients_are_called(mode, when):
    seen = []

    def watched(kind, **options):
        seen.clear()

        def build():
            def after(i):
                if i == when:
                    hook = lambda g: (seen.append(g.item()), 2 * g)[1]  # noqa: E731
                    pyro.param("loc").unconstrained().register_hook(hook)

            return line(lambda i: (normal(5, seed=i),), after=after)

        _, params, svi = run(build, kind, 8, **options)
        return list(seen), params["loc"].item(), getattr(svi, "mode", None)

    calls, loc, _ = watched(SVI)
    ours, our_loc, ran = watched(pv.FastSVI, mode=mode)
    assert ours == pytest.approx(calls, rel=1e-5) and our_loc == pytest.approx(loc, rel=1e-5)
    assert len(ours) == 7 - when and ran == mode


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_gradients_after_and_before_a_step(mode):
    """They are zero after one, and what is in them before one counts."""

    def build():
        def after(i):
            grad = pyro.param("loc").unconstrained().grad
            assert grad is not None and not grad.any()
            if i == 3:
                grad.fill_(100.0)

        return line(lambda i: (normal(5),), after=after)

    assert assert_same(build, mode, steps=8).mode == mode


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_what_has_no_part_in_the_loss_is_left_alone(mode):
    def build():
        program = line(lambda i: (normal(5),))

        def guide(x):
            pyro.param("idle", torch.ones(()))
            return program.guide(x)

        return program._replace(guide=guide)

    pyro.clear_param_store()
    program = build()
    decay = pyro.optim.AdamW({"lr": 0.1, "weight_decay": 0.5})
    svi = pv.FastSVI(program.model, program.guide, decay, mode=mode)
    for i in range(4):
        svi.step(*program.feed(i))
    assert pyro.param("idle").item() == 1.0 and svi.mode == mode


# --- the interface --------------------------------------------------------------------------------


def simple_elbo(model, guide, *args):
    return Trace_ELBO().differentiable_loss(model, guide, *args)


def test_a_function_as_the_loss():
    build = lambda: line(lambda i: (normal(5),), loss=lambda: simple_elbo)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert assert_same(build, "auto").mode == "eager"
    with pytest.warns(UserWarning, match="simple_elbo computes its own gradients"):
        assert run(build, pv.FastSVI, mode="compiled")[2].mode == "eager"


def test_the_rest_of_svis_interface():
    program, elbo = line(lambda i: (normal(5),)), Trace_ELBO()
    optim = Adam({"lr": 0.1})
    svi = pv.FastSVI(program.model, program.guide, optim, elbo.loss, elbo.loss_and_grads)
    expected = SVI(program.model, program.guide, Adam({"lr": 0.1}), elbo)
    for i in range(3):
        pyro.set_rng_seed(i)
        ours = svi.step(normal(5))
        pyro.clear_param_store()
        pyro.set_rng_seed(i)
        assert isinstance(ours, float) and isinstance(expected.step(normal(5)), float)
    with pytest.warns(FutureWarning, match="num_samples"):
        svi = pv.FastSVI(program.model, program.guide, optim, elbo, num_samples=10)
    assert svi.loss == elbo.loss and svi.loss_and_grads == elbo.loss_and_grads
    with pytest.raises(ValueError, match="optimiser, or a function that makes"):
        pv.FastSVI(program.model, program.guide, torch.optim.Adam([torch.zeros(1)]))


@pytest.mark.parametrize(
    "loss", [ReweightedWakeSleep, TraceMeanField_ELBO, lambda: EnergyDistance(num_particles=3)]
)
def test_losses_that_compute_their_own_gradients(loss):
    def build():
        program = line(lambda i: (normal(5),), loss=loss)
        if loss is ReweightedWakeSleep:
            return program._replace(loss=lambda: ReweightedWakeSleep(num_particles=3))
        return program

    losses, params, theirs = run(build)
    ours, our_params, svi = run(build, pv.FastSVI)
    assert type(ours[0]) is type(losses[0]) and svi.mode == "eager"
    assert np.array(ours) == pytest.approx(np.array(losses), rel=1e-5)
    assert our_params["loc"] == pytest.approx(params["loc"])
    args = (normal(5),)
    assert type(svi.evaluate_loss(*args)) is type(theirs.evaluate_loss(*args))


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("kind", [Trace_ELBO, lambda: RenyiELBO(num_particles=2)])
def test_options_of_the_loss_may_change(kind, mode):
    def build():
        loss = kind()

        def after(i):
            loss.num_particles = 2 + i // 3

        return line(lambda i: (normal(5),), loss=lambda: loss, after=after)

    assert assert_same(build, mode, steps=9).mode == mode


def test_inside_a_handler_a_step_runs_as_it_is():
    def build():
        return line(lambda i: (normal(5),))

    def scaled(kind, **options):
        with poutine.scale(scale=3.0):
            return run(build, kind, **options)

    ours, _, svi = scaled(pv.FastSVI, mode="traced")
    assert ours == pytest.approx(scaled(SVI)[0], rel=1e-5) and svi.mode == "eager"


# --- recording changes nothing, and costs what it may ---------------------------------------------


class Average(nn.Module):
    """Counts, averages, and normalises: buffers of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.norm(x) - self.mean


@pytest.mark.parametrize("mode", ["eager", "traced", "compiled"])
@pytest.mark.parametrize("prepared", [False, True])
def test_buffers_are_svis(mode, prepared):
    def buffers(kind, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = Average()

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

        svi = kind(model, lambda x: None, Adam({"lr": 0.1}), Trace_ELBO(), **options)
        if options and prepared:
            svi.prepare(normal(8, 3, seed=99))
        for i in range(5):
            svi.step(normal(8, 3, seed=i))
        assert getattr(svi, "mode", mode) == mode
        return {name: buffer.clone() for name, buffer in net.named_buffers()}

    expected, found = buffers(SVI), buffers(pv.FastSVI, mode=mode)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_number_that_changes_is_said_once_and_not_recorded():
    program = line(lambda i: (normal(5), 0.1 * i), lambda x, beta: beta * x)
    svi = pv.FastSVI(program.model, program.guide, Adam({"lr": 0.1}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(30):
            svi.step(*program.feed(i))
    (one,) = [str(w.message) for w in said]
    assert "is another number at each step: pass it as a tensor" in one
    assert svi._made == 0 and svi.mode == "eager"


def test_the_recordings_are_bounded(monkeypatch):
    monkeypatch.setattr("pyro_vaes.inference.svi._MOST_PROGRAMS", 3)
    program = line(lambda i: (normal(2 + i % 6),))
    svi = pv.FastSVI(program.model, program.guide, Adam({"lr": 0.1}))
    for i in range(4):
        svi.step(*program.feed(i))
    with pytest.warns(UserWarning, match="those with others run in eager mode"):
        svi.step(*program.feed(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(5, 12):
            svi.step(*program.feed(i))
    assert len(svi._programs) == 3 and svi.mode == "traced"


# --- score parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["pv.ELBO", "FastSVI"])
def test_a_guide_that_rejects_has_its_whole_gradient(kind, weight):
    """d/da of the loss, against the gradient of implicitly reparameterised gammas."""
    n = 3000

    def gradient(make, guide_of):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        found = []

        def model():
            with pyro.plate("p", n), poutine.scale(scale=1 / n):
                z = pyro.sample("z", dist.Gamma(2.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))

        def guide():
            a = pyro.param("a", torch.tensor(1.3))
            with pyro.plate("p", n), poutine.scale(scale=1 / n):
                pyro.sample("z", guide_of(a.expand(n)))

        svi = make(model, guide)
        svi.step()
        pyro.param("a").unconstrained().register_hook(lambda g: found.append(g.item()))
        for _ in range(25):
            svi.step()
        return np.mean(found), np.std(found) / 5

    def make(model, guide):
        loss = Trace_ELBO() if weight == 1 else pv.BetaELBO(weight)
        if kind == "pv.ELBO":
            return SVI(model, guide, Adam({"lr": 0.0}), pv.BetaELBO(weight))
        return pv.FastSVI(model, guide, Adam({"lr": 0.0}), loss)

    mean, error = gradient(make, RejectionStandardGamma)
    truth, its_error = gradient(make, lambda a: dist.Gamma(a, 1.0))
    assert abs(mean - truth) < 4 * (error + its_error)
    assert error < 0.03  # Small enough to see the score part, 0.14 of it.


def test_terms_that_no_score_weighs_refuse_it():
    def model():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Gamma(2.0, 1.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", RejectionStandardGamma(pyro.param("a", torch.ones(3))))

    with pytest.raises(ValueError, match=r"site 'z' .* score part"):
        pv.ELBO(free_bits=0.1).loss(model, guide)
