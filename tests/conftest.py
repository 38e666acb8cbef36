"""What every test begins with: an empty parameter store, validation on, one thread, a seed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyro
import pytest
import torch

# A process that a test starts shares the cores with the other tests.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def fresh_pyro() -> Iterator[None]:
    """Pyro keeps parameters and validation in process-wide state: no test sees another's."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are float64, for tests whose tolerance matters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
