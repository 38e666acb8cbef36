"""Runs of studies and searches: where they start, and by what they are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_vaes as pv
from pyro_vaes.experiments.runs import Run, contents_of, perform
from pyro_vaes.runs.build import data_of
from pyro_vaes.runs.resolve import check_combination, resolve


def asked(root: Path, **options: Any) -> Run:
    small = {"hidden_dims": (4,), "latent_dim": 2, "epochs": 1, "warmup_epochs": 0.0}
    config, explicit = resolve(None, None, {**small, "data": str(root / "x.npy"), **options})
    config, _ = check_combination(config, explicit)
    return Run(config, contents_of(data_of(config)), root / "runs", 5, proposal="encoder")


def test_a_run_starts_from_the_weights_of_init_and_is_known_by_them(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 9, (60, 4)).astype("uint8")
    np.save(tmp_path / "x.npy", rows)
    first = asked(tmp_path, seed=3, learning_rate=0.01)
    perform((first,))
    # Steps of nothing leave the weights that training started from.
    again = asked(tmp_path, init=str(first.folder), learning_rate=1e-12, ema_decay=0.0)
    assert "error" not in perform((again,))[0]
    old, new = (pv.load(run.folder).state_dict() for run in (first, again))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)

    key = again.key
    assert again.finished() is not None
    other = asked(tmp_path, seed=4, learning_rate=0.01)
    perform((other,))
    (first.folder / "weights.safetensors").write_bytes(
        (other.folder / "weights.safetensors").read_bytes()
    )
    assert dataclasses.replace(again).key != key
    assert again.finished() is None
