"""Building what a file describes takes no more memory than the file makes likely."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from registry import make_vae

import pyro_vaes as pv
from pyro_vaes.core.bounded import Bounded, BoundError
from pyro_vaes.core.described import describe
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors, write_tensors
from pyro_vaes.storage.weights import WEIGHTS

HUGE = 10**9


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.zeros(HUGE),
        lambda: torch.full((30_000, 30_000), 0.5),
        lambda: torch.randn(HUGE, generator=torch.Generator()),
        lambda: torch.randperm(HUGE),
        lambda: torch.arange(HUGE),
        lambda: torch.linspace(0, 1, HUGE),
        lambda: torch.zeros(3).new_full((HUGE,), 1),
        lambda: torch.zeros(3000, 1).expand(3000, 30_000).clone(),
        lambda: torch.cartesian_prod(torch.arange(20_000), torch.arange(20_000)),
        lambda: torch.zeros(20_000)[:, None] + torch.zeros(20_000),
        lambda: torch.zeros(20_000).outer(torch.zeros(20_000)),
        lambda: torch.zeros(20).repeat(HUGE),
        lambda: torch.nn.Linear(100_000, 100_000),
        lambda: [torch.zeros(1000) for _ in range(HUGE)],
    ],
)
def test_what_asks_for_too_much_is_refused_before_it_is_taken(build):
    started = time.monotonic()
    with pytest.raises(BoundError, match="far more"), Bounded(2**24, 10_000):
        build()
    assert time.monotonic() - started < 20


def test_what_fits_is_left_as_it_is():
    torch.manual_seed(0)
    expected = torch.nn.Linear(300, 200)
    torch.manual_seed(0)
    with Bounded(2**24, 1000):
        found = torch.nn.Linear(300, 200)
        assert torch.zeros(3).expand(1000, 3).shape == (1000, 3)
        assert torch.tensor([1, 2]).max().item() == 2
        found.weight.data.mul_(1)  # In place: takes nothing.
    assert torch.equal(expected.weight, found.weight)


def replaced(description: Any, key: str, value: Any) -> Any:
    """A description in which every argument of a name has another value."""
    if isinstance(description, dict):
        return {k: value if k == key else replaced(v, key, value) for k, v in description.items()}
    if isinstance(description, list):
        return [replaced(item, key, value) for item in description]
    return copy.copy(description)


@pytest.mark.parametrize(
    ("prior", "key", "value"),
    [
        ("normal", "latent_dim", HUGE),
        ("normal", "hidden_dims", [8] * 200_000),
        ("normal", "hidden_dims", [10**6, 10**6]),
        ("normal", "num_levels", HUGE),
        ("normal", "num_labels", HUGE),
        ("normal", "event_shape", [HUGE]),
        ("mixture", "num_components", HUGE),
        ("vamp", "tensor", [2 * HUGE]),
        ("vamp", "tensor", [-1]),
        ("gtm", "grid_size", 10**5),
        ("realnvp", "depth", HUGE),
        ("realnvp", "dim", HUGE),
        ("maf", "depth", HUGE),
        ("maf", "dim", HUGE),
        ("normal", "latent_dim", "x"),
        ("normal", "latent_dim", -3),
        ("normal", "latent_dim", 1e400),
        ("normal", "class", "VAE"),
    ],
)
def test_a_file_that_describes_too_much_is_refused_in_a_line(prior, key, value, tmp_path):
    vae = make_vae(prior=prior)
    description = describe(vae)
    spoilt = replaced(description, key, value)
    assert spoilt != description
    write_tensors(tmp_path / WEIGHTS, named_tensors(vae), {"architecture": spoilt})
    started = time.monotonic()
    with pytest.raises(RunFolderError) as caught:
        pv.load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - started < 20


def test_half_precision_loads_as_what_can_be_computed_with(tmp_path):
    vae = make_vae().half()
    pv.save(vae, tmp_path)
    loaded = pv.load(tmp_path)
    assert loaded.dtype == torch.float32
    for name, tensor in named_tensors(vae).items():
        assert torch.equal(
            tensor.to(named_tensors(loaded)[name].dtype), named_tensors(loaded)[name]
        )
    assert (
        pv.log_marginal(loaded, torch.ones(3, *loaded.likelihood.event_shape), 5).isfinite().all()
    )


def test_weights_of_another_kind_of_number_are_refused(tmp_path):
    vae = make_vae()
    whole = {name: tensor.long() for name, tensor in named_tensors(vae).items()}
    write_tensors(tmp_path / WEIGHTS, whole, {"architecture": describe(vae)})
    with pytest.raises(RunFolderError, match="of a type like"):
        pv.load(tmp_path)
