"""What a recorded step reads by reference: each kind of place, changed in the midst of training."""

import argparse
import collections
import functools
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn

import pyro_vaes as pv

Place = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[float], Any]]


class Config:
    beta = 1.0


class Slotted:
    __slots__ = ("beta",)


class Scaled:
    beta = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.beta


FILE: Any = types.ModuleType("file_of_the_user")
exec("beta = 1.0\ndef scale(x):\n    return x * beta", vars(FILE))


def class_attribute() -> Place:
    Config.beta = 1.0
    return lambda x: x * Config.beta, functools.partial(setattr, Config, "beta")


def attribute_of_ones_class() -> Place:
    Scaled.beta = 1.0
    return Scaled(), functools.partial(setattr, Scaled, "beta")


def variable_of_a_file() -> Place:
    FILE.beta = 1.0
    return lambda x: x * FILE.beta, functools.partial(setattr, FILE, "beta")


def variable_behind_a_function_of_a_file() -> Place:
    FILE.beta = 1.0
    return lambda x: FILE.scale(x), functools.partial(setattr, FILE, "beta")


def held(value: Any) -> Place:
    value.beta = 1.0
    return lambda x: x * value.beta, functools.partial(setattr, value, "beta")


def function_attribute() -> Place:
    def scale(x: torch.Tensor) -> Any:
        return x * scale.beta  # type: ignore[attr-defined]

    return scale, held(scale)[1]


def new_attribute() -> Place:
    holder: Any = type("Holder", (), {})()
    return lambda x: x * getattr(holder, "beta", 1.0), functools.partial(setattr, holder, "beta")


def queue() -> Place:
    items = collections.deque([1.0], maxlen=1)
    return lambda x: x * items[-1], items.append


def long_list() -> Place:
    items = [1.0] * 1000
    return lambda x: x * items[700], functools.partial(items.__setitem__, 700)


def members_of_a_set() -> Place:
    members = {"one"}

    def change(value: float) -> None:
        members.clear()
        members.add("one" if value == 1 else "more")

    return lambda x: x * (1.0 if "one" in members else 3.0), change


def new_key() -> Place:
    items: dict[str, float] = collections.OrderedDict(a=1.0)
    return lambda x: x * items.get("b", 1.0), functools.partial(items.__setitem__, "b")


def cached_function() -> Place:
    items = {"beta": 1.0}

    @functools.cache
    def beta() -> float:
        return items["beta"]

    def change(value: float) -> None:
        items["beta"] = value
        beta.cache_clear()

    return lambda x: x * beta(), change


def environment() -> Place:
    os.environ["BETA_OF_A_TEST"] = "1"

    def change(value: float) -> None:
        os.environ["BETA_OF_A_TEST"] = str(value)

    return lambda x: x * float(os.environ["BETA_OF_A_TEST"]), change


def dropout_rate() -> Place:
    net = nn.Dropout(0.5)
    return lambda x: net(x + 1), lambda value: setattr(net, "p", 0.1 * value)


def hook_of_a_module() -> Place:
    net = nn.Identity()

    def change(value: float) -> None:
        if value > 1:
            net.register_forward_hook(lambda module, args, out: value * out)

    return lambda x: net(x), change


def forward() -> Place:
    net = nn.Identity()
    return lambda x: net(x), lambda value: setattr(net, "forward", lambda x: value * x)


def function_of_torch() -> Place:
    holder = types.SimpleNamespace(of=torch.tanh)
    return lambda x: holder.of(x), lambda value: setattr(holder, "of", torch.sin)


def kind_of_distribution() -> Place:
    holder = types.SimpleNamespace(kind=dist.Normal)

    def noise(x: torch.Tensor) -> Any:
        return x + holder.kind(0.0, 1.0).rsample(x.shape)

    return noise, lambda value: setattr(holder, "kind", dist.Laplace)


def parameter_of_a_distribution() -> Place:
    prior = dist.Normal(0.0, 1.0)
    return lambda x: x + prior.rsample(x.shape), lambda v: setattr(prior, "loc", torch.tensor(v))


PLACES: list[Any] = [
    class_attribute,
    attribute_of_ones_class,
    variable_of_a_file,
    variable_behind_a_function_of_a_file,
    pytest.param(lambda: held(types.SimpleNamespace()), id="namespace"),
    pytest.param(lambda: held(argparse.Namespace()), id="options"),
    pytest.param(lambda: held(Slotted()), id="slot"),
    function_attribute,
    new_attribute,
    queue,
    long_list,
    members_of_a_set,
    new_key,
    cached_function,
    environment,
    dropout_rate,
    hook_of_a_module,
    forward,
    function_of_torch,
    kind_of_distribution,
    parameter_of_a_distribution,
]


def model_of(read: Callable[..., Any]) -> Callable[..., None]:
    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=read(x))

    return model


def guide(x: torch.Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


def losses(kind: Any, model: Any, after: Callable[[int], Any], **options: Any) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(model, guide, Adam({"lr": 0.05}), Trace_ELBO(), **options)
    found = []
    for i in range(12):
        found.append(svi.step(torch.linspace(-1, 2, 5) + i))
        after(i)
    return found, svi


@pytest.mark.parametrize("place", PLACES)
def test_a_change_is_noticed_and_recorded_anew(place: Callable[[], Place]) -> None:
    sys.modules[FILE.__name__] = FILE

    def run(kind: Any, **options: Any) -> Any:
        read, change = place()
        return losses(
            kind, model_of(read), lambda i: i in (4, 8) and change(1.0 + i // 4), **options
        )

    expected, _ = run(SVI)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, svi = run(pv.FastSVI, mode="traced")
    assert found == pytest.approx(expected, rel=1e-4)
    assert svi.mode == "traced" and 2 <= svi._made <= 3 and svi._programs


LAST: Any = None


def counted_on_itself() -> Callable[..., Any]:
    def read(x: torch.Tensor) -> Any:
        read.calls = getattr(read, "calls", 0) + 1  # type: ignore[attr-defined]
        return x * read.calls  # type: ignore[attr-defined]

    return read


def left_in_a_global() -> Callable[..., Any]:
    def read(x: torch.Tensor) -> torch.Tensor:
        global LAST
        LAST = x.mean()
        return x

    return read


def kept_by_a_hook() -> Callable[..., Any]:
    net, kept = nn.Identity(), []
    net.register_forward_hook(lambda module, args, out: kept.append(out.mean()))

    def read(x: torch.Tensor) -> Any:
        return net(x) + len(kept)

    return read


@pytest.mark.parametrize("make", [counted_on_itself, left_in_a_global, kept_by_a_hook])
def test_a_step_that_leaves_something_behind_runs_as_it_is(make: Callable[[], Any]) -> None:
    expected, _ = losses(SVI, model_of(make()), lambda i: None)
    last = LAST
    with pytest.warns(UserWarning, match="the step changes '.*', which a replay would not"):
        found, svi = losses(pv.FastSVI, model_of(make()), lambda i: None, mode="traced")
    assert found == pytest.approx(expected, rel=1e-4) and svi.mode == "eager"
    assert last is None or torch.equal(last, LAST)
