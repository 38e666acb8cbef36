"""A description is plain data, and gives back the same tree of modules."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from registry import LIKELIHOODS, POSTERIORS, PRIORS, OwnPosterior, cases, make_vae, scramble
from torch import nn

import pyro_vaes
from pyro_vaes import flows
from pyro_vaes.core.described import (
    CLASSES,
    Described,
    SpecError,
    describe,
    plain,
    rebuild,
    table_of,
)
from pyro_vaes.exact import Discrete, LinearGaussian
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.likelihoods import NormalLikelihood
from pyro_vaes.parts.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.parts.priors import MixturePrior, NormalPrior, VampPrior
from pyro_vaes.vae import VAE

PARTS = [
    pytest.param(table, *row.values, id=f"{kind}-{row.id}")
    for kind, table in [("prior", PRIORS), ("posterior", POSTERIORS), ("likelihood", LIKELIHOODS)]
    for row in cases(table, own=True)
]


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(("table", "name", "num_labels"), PARTS)
def test_every_part_survives_the_round_trip(table, name, num_labels):
    part = table[name].make(2, (2, 2), num_labels)
    description = through_json(describe(part))
    copy = rebuild(description)
    assert repr(copy) == repr(part)
    assert describe(copy) == describe(part)
    state = part.state_dict()
    assert {k: v.shape for k, v in copy.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    copy.load_state_dict(state)
    if table is PRIORS:
        inputs = (torch.arange(3) % num_labels,) if num_labels else ()
    else:
        shape = (3, 2, 2) if table is POSTERIORS else (3, 2)
        inputs = (torch.randn(shape), *((torch.arange(3) % num_labels,) if num_labels else ()))
    draws = []
    for module in (part, copy):
        torch.manual_seed(1)
        d = module(*inputs)
        draws += [z := d.sample(), d.log_prob(z)]
    assert torch.equal(draws[0], draws[2]) and torch.equal(draws[1], draws[3])


def test_sharing_survives():
    vae = make_vae("vamp", "iaf")
    copy = rebuild(through_json(describe(vae)))
    assert copy.prior.posterior is copy.posterior
    base = NormalPosterior(MLP(4, [8]), 2)
    vae = VAE(
        VampPrior(base, torch.rand(3, 4)),
        FlowPosterior(base, flows.planar(2, 1)),
        NormalLikelihood(MLP(2, [8]), (4,)),
    )
    copy = rebuild(through_json(describe(vae)))
    assert copy.prior.posterior is copy.posterior.base
    assert len(list(copy.parameters())) == len(list(vae.parameters()))


def test_what_is_equal_but_not_shared_stays_apart():
    network = MLP(2, [8])
    both = [NormalLikelihood(network, (4,)), NormalLikelihood(MLP(2, [8]), (4,)), network]
    a, b, c = rebuild(through_json(describe(both)))
    assert a.network is c and b.network is not c


def test_options_are_kept_given_by_position_or_by_name():
    for prior in (
        MixturePrior(2, 3, 0, False),
        MixturePrior(2, num_components=3, learn_weights=False),
    ):
        copy = rebuild(through_json(describe(prior)))
        assert copy.num_components == 3 and "logits" not in dict(copy.named_parameters())
    recipe = flows.iaf(4, 3, [8, 9])
    assert repr(rebuild(through_json(describe(recipe)))) == repr(recipe)
    copy = rebuild(through_json(describe(MLP(3, (4, 5), activation="tanh"))))
    assert repr(copy) == repr(MLP(3, [4, 5], "tanh"))


def test_pseudo_inputs_within_bounds_come_back():
    """Their values travel with the weights; at rebuilding they are not there yet."""
    prior = VampPrior(NormalPosterior(MLP(4, [8]), 2), 1 + torch.rand(3, 4), bounds=(1, 2))
    copy = rebuild(through_json(describe(prior)))
    copy.load_state_dict(prior.state_dict())
    z = torch.randn(5, 2)
    assert torch.equal(copy().log_prob(z), prior().log_prob(z))


def test_range_set_later_comes_back_with_the_weights():
    vae = make_vae("normal", "iaf")
    copy = rebuild(through_json(describe(vae)))
    copy.load_state_dict(vae.state_dict())
    x = torch.randint(0, 4, (5, 4)).float()
    assert torch.equal(copy.encode(x), vae.encode(x))
    assert copy.posterior.x_range == vae.posterior.x_range == (0.0, 3.0)


def test_a_copy_of_a_module_is_described_alike():
    import copy

    vae = make_vae("mixture", "planar")
    assert describe(copy.deepcopy(vae)) == describe(vae)


class UsersPrior(NormalPrior):
    def __init__(self, extra):
        super().__init__(2)
        self.extra = extra


class UsersPlainSubclass(NormalPrior):
    pass


def test_only_our_own_modules_can_be_described():
    for value in (
        nn.Linear(2, 2),
        OwnPosterior(2, (4,)),
        UsersPrior(1),
        UsersPlainSubclass(2),
        {"nested": [nn.ReLU()]},
        lambda: None,
        object(),
        torch.float32,
    ):
        with pytest.raises(
            SpecError, match=r"Expected parts and arguments of pyro_vaes' own; got .*into=vae"
        ):
            describe(value)
    vae = VAE(NormalPrior(2), OwnPosterior(2, (4,)), NormalLikelihood(MLP(2, [8]), (4,)))
    with pytest.raises(SpecError, match="OwnPosterior"):
        describe(vae)


def test_a_users_class_does_not_take_the_place_of_ours():
    class NormalPrior(Described):
        def __init__(self, latent_dim):
            super().__init__()

    with pytest.raises(SpecError):
        describe(NormalPrior(2))
    assert (
        type(rebuild({"class": "NormalPrior", "arguments": {"latent_dim": 2}})) is not NormalPrior
    )


@pytest.mark.parametrize(
    "description",
    [
        {"class": "os.system", "arguments": {"command": "true"}},
        {"class": "Linear", "arguments": {"in_features": 1, "out_features": 1}},
        {"class": "Described", "arguments": {"x": 1}},
        {"class": "NormalPrior"},
        {"class": "NormalPrior", "arguments": {"latent_dim": 0}},
        {"class": "NormalPrior", "arguments": {"wrong": 2}},
        {"class": "NormalPrior", "arguments": [2]},
        {"class": ["NormalPrior"], "arguments": {}},
        {"class": "MLP", "arguments": {"in_features": 2, "hidden_dims": [[3]]}},
        {"class": "VampPrior", "arguments": {"posterior": {"ref": 0}}},
        {"ref": 3},
        {"ref": "0"},
        {"tensor": [2], "dtype": "nn"},
        {"tensor": [2], "dtype": "load"},
        {"tensor": [2]},
        {"tensor": [-1], "dtype": "float32"},
        {"dict": [1]},
        {},
    ],
    ids=str,
)
def test_damaged_or_foreign_descriptions_are_refused(description):
    with pytest.raises(SpecError, match="Expected"):
        rebuild(description)


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, [2, "x"]], {"a": {"b": None}}])
def test_plain_data_survive(value):
    assert rebuild(through_json(describe(value))) == value


def test_tensors_are_described_by_shape_and_type():
    for tensor in (
        torch.ones(2, 3),
        torch.ones(0, dtype=torch.int64),
        torch.ones((), dtype=torch.float64),
    ):
        copy = rebuild(through_json(describe(tensor)))
        assert (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype)
        assert copy.isnan().all() if copy.is_floating_point() else not copy.any()


def test_a_description_takes_no_notice_of_later_training():
    vae = make_vae("vamp_weighted", "flow_of_flow")
    before = describe(vae)
    scramble(vae)
    assert describe(vae) == before


def descendants(cls: type) -> set[type]:
    return {cls}.union(*(descendants(child) for child in cls.__subclasses__()))


def test_the_table_holds_every_class_that_can_be_described():
    for found in pkgutil.walk_packages(pyro_vaes.__path__, "pyro_vaes."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    ours = descendants(Described) - {Described}
    ours = {cls for cls in ours if cls.__module__.startswith("pyro_vaes.")}
    modules = {cls.__name__: cls.__module__.removeprefix("pyro_vaes.") for cls in ours}
    assert dict(CLASSES) == {**modules, "FlowRecipe": "flows.recipes"}


def test_a_name_in_two_modules_is_refused():
    with pytest.raises(SpecError, match="'MLP' once; got it in here and there"):
        table_of({"here": ("MLP",), "there": ("MLP",)})


def test_models_of_every_row_load_in_a_fresh_process(tmp_path):
    """Whatever was imported before: a class is found by its name alone."""
    vaes = {f"{kind}-{i}": vae for kind, rows in saved_rows().items() for i, vae in enumerate(rows)}
    for name, vae in vaes.items():
        pyro_vaes.save(vae, tmp_path / name)
    code = (
        "import sys, pyro_vaes as pv\n"
        "for folder in sys.argv[1:]:\n"
        "    pv.load(folder)\n"
        "    print(folder)"
    )
    folders = [str(tmp_path / name) for name in vaes]
    ended = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False
    )
    assert ended.stdout.splitlines() == folders, ended.stderr


def saved_rows() -> dict[str, list[VAE]]:
    """A VAE with each part of the registry, and those whose truth is known."""

    def rows(table):
        return [row.values[0] for row in cases(table, own=True, labels=(0,))]

    thirds = torch.full((3,), 1 / 3)
    discrete = Discrete(
        thirds, torch.full((3, 2), 0.5), torch.full((2, 3), 1 / 3), torch.ones(2) / 2
    )
    return {
        "prior": [make_vae(prior=name) for name in rows(PRIORS)],
        "posterior": [make_vae(posterior=name) for name in rows(POSTERIORS)],
        "likelihood": [make_vae(likelihood=name) for name in rows(LIKELIHOODS)],
        "exact": [LinearGaussian(torch.rand(3, 2), torch.rand(3), 0.5).vae, discrete.vae],
    }


def test_numbers_of_numpy_and_torch_are_numbers():
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    count = np.arange(60).max() % 3 + 1
    for size, scale in ((count, x.std()), (torch.tensor(3), torch.tensor(x).std())):
        likelihood = NormalLikelihood(MLP(2 + size, np.array([8])), (np.int64(4),), size, scale)
        description = through_json(describe(likelihood))
        assert description["arguments"]["num_labels"] == 3
        assert description["arguments"]["initial_scale"] == pytest.approx(float(scale))
        rebuild(description).load_state_dict(likelihood.state_dict())
    low, high = x.min(), torch.tensor(x.max())
    posterior = NormalPosterior(MLP(4, [8]), 2, x_range=(low, high))
    assert posterior.x_range == (float(low), float(high))
    assert NormalLikelihood(MLP(2, [8]), 4).event_shape == (4,)
    flow = FlowPosterior(posterior, flows.iaf(np.int64(2), torch.tensor(1), [8]))
    rebuild(through_json(describe(flow)))
    u = VampPrior(posterior, x[:3].astype(float), bounds=(x.min(), x.max()))
    assert torch.equal(u.pseudo_inputs, torch.tensor(x[:3]))


def test_what_is_plain_already_stays():
    tensor, parameter = torch.zeros(3), nn.Parameter(torch.zeros(()))
    for value in (1, 0.5, True, None, "a", (1, 2), [None], {"a": 1}, torch.Size((2, 3))):
        assert plain(value) == value
    assert plain(tensor) is tensor and plain(parameter) is parameter
    assert plain({"a": [np.float32(0.5), np.bool_(True)]}) == {"a": [0.5, True]}
    assert type(plain(np.bool_(True))) is bool
