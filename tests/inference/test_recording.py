"""What no recording may freeze, change or leave out: at one seed the steps are SVI's."""

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, ClippedAdam, PyroOptim
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyro_vaes as pv
from pyro_vaes.inference.guarding import NotRecordableError, other_noise_unused

pytestmark = pytest.mark.filterwarnings("ignore:FastSVI:UserWarning")


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(read: Callable[..., Any]) -> Callable[..., None]:
    def model(*args: Any) -> None:
        x = read(*args)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def guide(*args: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


def start() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def run(
    kind: Any,
    read: Callable[..., Any],
    feed: Callable[[int], Any] = lambda i: (normal(5, seed=i),),
    after: Callable[[int], Any] = lambda i: None,
    **options: Any,
) -> Any:
    """Losses, the generator's next number, and the SVI."""
    start()
    svi = kind(model_of(read), guide, Adam({"lr": 0.05}), Trace_ELBO(), **options)
    losses = []
    for i in range(8):
        losses.append(svi.step(*feed(i)))
        after(i)
    return [*losses, torch.rand(()).item()], svi


def noise_by(source: Callable[[], Any]) -> Callable[[], Callable[..., Any]]:
    return lambda: lambda x: x + source()


def seeded() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(5)


def forked() -> torch.Tensor:
    with torch.random.fork_rng():
        return torch.randn(5)


def own_generator() -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(0))


def checkpointed() -> Callable[..., Any]:
    net = nn.Dropout(0.5)

    def read(x: torch.Tensor) -> Any:
        loc = pyro.param("loc", torch.zeros(()))
        pyro.factor("f", checkpoint(lambda v: net(v).exp().sum(), x + loc, use_reentrant=False))
        return x

    return read


READS: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "numpy": (lambda: lambda x: torch.as_tensor(np.abs(x.numpy())), "reads a tensor's value at"),
    "asarray": (lambda: lambda x: torch.as_tensor(np.asarray(x) * 2), "reads a tensor's value at"),
    "dlpack": (lambda: lambda x: torch.as_tensor(np.from_dlpack(x) * 2), "reads a tensor's value"),
    "list": (lambda: lambda x: torch.tensor(x.tolist()), "reads a tensor's value at test_rec"),
    "scalars": (lambda: lambda x: torch.tensor([x.mean(), x.std()]), "reads a tensor's value"),
    "copy": (lambda: lambda x: copy.deepcopy(x) * 2, "reads a tensor's value at test_rec"),
    "seed": (noise_by(seeded), "a replay differs"),
    "fork": (noise_by(forked), "a replay differs"),
    "generator": (noise_by(own_generator), "a generator of its own at test_rec"),
    "checkpoint": (checkpointed, "a replay differs"),
    "default_rng": (
        noise_by(lambda: 0 * np.random.default_rng().normal()),
        "random numbers at test_rec",
    ),
}


@pytest.mark.parametrize("kind", READS)
def test_what_a_replay_would_freeze_is_said_and_runs_as_it_is(kind: str) -> None:
    make, reason = READS[kind]
    start()
    expected, _ = run(SVI, make())
    with pytest.warns(UserWarning, match=f"eager mode: the step could not be traced.*{reason}"):
        found, svi = run(pv.FastSVI, make(), mode="traced")
    assert found == pytest.approx(expected, rel=1e-4) and svi.mode == "eager"


def test_a_layer_that_cannot_be_replayed_does_not_end_the_training() -> None:
    net = nn.LSTM(3, 3, 2, dropout=0.3)

    def model(x: torch.Tensor) -> None:
        pyro.module("net", net)
        pyro.sample("x", dist.Normal(net(x)[0], 1.0).to_event(2), obs=x)

    svi = pv.FastSVI(model, lambda x: None, Adam({"lr": 0.01}), mode="traced")
    assert all(svi.step(normal(4, 3)) > 0 for _ in range(4))


def test_a_mask_that_numpy_writes_to_is_noticed() -> None:
    def both(kind: Any, **options: Any) -> Any:
        array = np.array([True, False, True, True, False])
        mask = torch.from_numpy(array)

        def after(i: int) -> None:
            array[1] = i >= 3

        return run(kind, lambda x: x[mask], after=after, **options)

    found, svi = both(pv.FastSVI, mode="traced")
    assert found == pytest.approx(both(SVI)[0], rel=1e-4)
    assert svi.mode == "traced" and svi._programs


def test_a_dictionary_that_the_step_writes_to_is_written_to() -> None:
    def read(x: torch.Tensor, kept: dict[str, Any]) -> torch.Tensor:
        kept["mean"] = x.mean()
        return x

    kept: dict[str, Any] = {"other": torch.zeros(())}
    with pytest.warns(UserWarning, match="the step changes an argument"):
        run(pv.FastSVI, read, lambda i: (normal(5, seed=i), kept), mode="traced")
    assert torch.equal(kept["mean"], normal(5, seed=7).mean())


def test_numpy_numbers_that_change_are_not_recorded_one_by_one() -> None:
    weights = np.linspace(0, 1, 12)

    def program(x: torch.Tensor, beta: Any) -> Any:
        return x * float(beta)

    start()
    svi = pv.FastSVI(model_of(program), guide, Adam({"lr": 0.05}))
    with pytest.warns(UserWarning, match="another number at each step"):
        losses = [svi.step(normal(5), weight) for weight in weights]
    assert len(set(losses)) == 12
    assert svi._made == 0


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda i: torch.nested.nested_tensor([normal(2), normal(3, seed=i)]), "unbind"),
        (lambda i: torch.complex(normal(5, seed=i), normal(5)).conj(), "imag"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_of_another_kind(make: Callable[[int], Any], read: str) -> None:
    reads = {"unbind": lambda x: torch.cat(list(x.unbind())), "imag": lambda x: x.imag * 1}
    expected, _ = run(SVI, reads[read], lambda i: (make(i),))
    found, _ = run(pv.FastSVI, reads[read], lambda i: (make(i),), mode="traced")
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_gradients_of_tensors_that_are_not_pyros_add_up(mode: str) -> None:
    """A network that the user trains by an optimiser of their own."""

    def weights(kind: Any, **options: Any) -> Any:
        torch.manual_seed(0)
        net = nn.Linear(1, 1)
        own = torch.optim.SGD(net.parameters(), lr=0.01)

        def read(x: torch.Tensor) -> torch.Tensor:
            pyro.factor("fit", -(net(x[:, None]) ** 2).sum())
            return x

        def after(i: int) -> None:
            if i % 2:
                own.step()
                own.zero_grad()

        _, svi = run(kind, read, after=after, **options)
        return torch.cat([p.detach().flatten() for p in net.parameters()]), svi

    found, svi = weights(pv.FastSVI, mode=mode)
    torch.testing.assert_close(found, weights(SVI)[0])
    assert svi.mode == mode


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_a_graph_that_is_retained(mode: str) -> None:
    def gradient(kind: Any, **options: Any) -> torch.Tensor | None:
        start()
        w = torch.ones(3, requires_grad=True)
        shift = (0.1 * w).sum().exp()
        model = model_of(lambda x: x + 0 * shift.detach())

        def shifted(x: torch.Tensor) -> None:
            model(x)
            pyro.factor("shift", shift)

        svi = kind(shifted, guide, Adam({"lr": 0.1}), Trace_ELBO(retain_graph=True), **options)
        for i in range(4):
            svi.step(normal(5, seed=i))
        return w.grad

    torch.testing.assert_close(gradient(pv.FastSVI, mode=mode), gradient(SVI))


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_a_module_that_becomes_float64(mode: str) -> None:
    def losses(kind: Any, **options: Any) -> list[float]:
        start()
        net, found = nn.Linear(2, 2), []

        def model() -> None:
            pyro.module("net", net)
            x = torch.ones(3, 2, dtype=net.weight.dtype)
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(2), obs=2 * x)

        svi = kind(
            model, lambda: None, PyroOptim(torch.optim.SGD, {"lr": 0.01}), Trace_ELBO(), **options
        )
        for i in range(8):
            found.append(svi.step())
            if i == 3:
                net.double()
        return found

    assert losses(pv.FastSVI, mode=mode) == pytest.approx(losses(SVI), rel=1e-5)


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("what", ["optimiser", "loss", "copy"])
def test_what_is_put_into_an_svi_counts(what: str, mode: str) -> None:
    def losses(kind: Any, **options: Any) -> list[float]:
        start()
        svi = kind(model_of(lambda x: x), guide, Adam({"lr": 0.05}), Trace_ELBO(), **options)
        found = []
        for i in range(8):
            found.append(svi.step(normal(5)))
            if i == 3 and what == "optimiser":
                svi.optim = Adam({"lr": 0.5})
            elif i == 3 and what == "loss":
                svi.loss_and_grads = Trace_ELBO(num_particles=3).loss_and_grads
            elif i == 3:
                svi = copy.deepcopy(svi)
        return found

    assert losses(pv.FastSVI, mode=mode) == pytest.approx(losses(SVI), rel=1e-4)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_a_rate_decays_by_the_steps_that_its_parameter_takes(mode: str) -> None:
    def model(x: torch.Tensor, both: bool) -> None:
        loc = pyro.param("one", torch.zeros(()))
        loc = loc + pyro.param("two", torch.zeros(())) if both else loc
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def params(kind: Any, **options: Any) -> list[float]:
        start()
        optim = ClippedAdam({"lr": 0.05, "lrd": 0.7})
        svi = kind(model, lambda *args: None, optim, Trace_ELBO(), **options)
        for i in range(10):
            svi.step(normal(5), i % 3 == 0)
        return [pyro.param(name).item() for name in ("one", "two")]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert params(pv.FastSVI, mode=mode) == pytest.approx(params(SVI), rel=1e-4)


def test_another_thread_may_draw_without_a_seed_during_a_recording() -> None:
    met: list[bool] = []

    def drawing() -> None:
        met.append(np.random.default_rng is not original)  # While it is recorded, a stand-in.
        np.random.default_rng().random()

    original = np.random.default_rng
    with ThreadPoolExecutor(1) as pool, other_noise_unused():
        pool.submit(drawing).result()
        with pytest.raises(NotRecordableError, match="random numbers"):
            np.random.default_rng()
    assert met == [True] and np.random.default_rng is original
