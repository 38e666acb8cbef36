"""Every public class and function shows an example that runs; of errors, what raises them does."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam

import pyro_vaes as pv

FACES = ("data", "distributions", "evaluation", "exact", "flows", "inference", "networks")
FACES += ("plotting", "sklearn", "training", "vae")
MODULES = [pv, *(importlib.import_module(f"pyro_vaes.{face}") for face in FACES)]
VALUES = [getattr(module, name) for module in MODULES for name in module.__all__]
PUBLIC: dict[str, Any] = {
    f"{value.__module__}.{value.__name__}": value
    for value in VALUES
    if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))
}


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples may use without saying where it comes from, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(4, [8]), latent_dim=2)
    likelihood = pv.NormalLikelihood(pv.MLP(2, [8]), event_shape=(4,))
    vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    return {"Adam": Adam, "SVI": SVI, "dist": dist, "pv": pv, "torch": torch, "vae": vae}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_example_runs(name: str, namespace: dict[str, Any]) -> None:
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(PUBLIC[name]) or "", namespace, name, None, None
    )
    assert example.examples, "no >>> example"
    blocks = (inspect.getdoc(PUBLIC[name]) or "").split("\n\n")
    shown = [block for block in blocks if block.startswith(">>>")]
    assert len(shown) == len(set(shown)), "an example stands there twice"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    said: list[str] = []
    assert not runner.run(example, out=said.append).failed, "".join(said)
