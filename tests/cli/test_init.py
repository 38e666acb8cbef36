"""Training that starts from a saved run: its very weights, refused if they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run

import pyro_vaes as pv
from pyro_vaes.runs.schema import read_config
from pyro_vaes.storage.tensors import named_tensors, read_groups
from pyro_vaes.training.checkpoint import CHECKPOINT

SMALL = ["--hidden-dims", "8", "--latent-dim", "2", "--mode", "eager", "--prior", "standard"]
SMALL += ["--ema-decay", "0", "--warmup-epochs", "0", "--samples", "5"]
SMALL += ["--proposal", "encoder"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    np.save(home / "a.npy", random.normal(5, 2, (40, 3)))
    np.save(home / "b.npy", random.normal(9, 1, (40, 3)))
    np.save(home / "wide.npy", random.normal(9, 1, (40, 4)))
    options = [*SMALL, "--data", home / "a.npy", "--epochs", 2, "--out", home / "first"]
    assert run("train", *options) == 0
    return home


def test_training_starts_from_the_weights_of_a_run(home, tmp_path):
    # A step so small that it rounds to nothing: what is kept is what it started from.
    still = ["--learning-rate", "1e-30", "--epochs", "1", "--seed", "7"]
    options = [*SMALL, *still, "--data", home / "b.npy", "--init", home / "first"]
    assert run("train", *options, "--out", tmp_path / "run") == 0
    before, after = (named_tensors(pv.load(f)) for f in (home / "first", tmp_path / "run"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_config(tmp_path / "run").training.init == str(home / "first")


def test_a_resumed_run_is_exact_without_the_run_it_started_from(home, tmp_path, capsys):
    start = shutil.copytree(home / "first", tmp_path / "start")
    options = [*SMALL, "--data", home / "b.npy", "--init", start]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", *options, "--epochs", 3, "--out", whole) == 0
    assert run("train", *options, "--epochs", 3, "--minutes", 1e-9, "--out", parts) == 0
    shutil.rmtree(start)
    assert run("train", "--resume", "--out", parts) == 0
    (a, _), (b, _) = (read_groups(folder / CHECKPOINT) for folder in (whole, parts))
    for group in ("model", "best", "optimizer", "generator"):
        assert all(torch.equal(a[group][key], b[group][key]) for key in a[group])
    capsys.readouterr()
    assert run("train", "--resume", "--init", home / "first", "--out", parts) == 2
    assert "'--init'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "wide.npy"], "shape"),
        (["--data", "a.npy", "--latent-dim", "3"], "shape"),
        (["--data", "a.npy", "--prior", "mixture"], "in one only"),
    ],
)
def test_weights_of_another_model_are_refused(home, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(home)
    capsys.readouterr()
    asked = [*SMALL, *options, "--init", "first", "--out", tmp_path / "run"]
    assert run("train", *asked) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'--init'" in line and words in line and not (tmp_path / "run").exists()


def test_no_run_to_start_from(home, tmp_path, capsys):
    asked = [*SMALL, "--data", home / "a.npy", "--init", tmp_path / "none"]
    assert run("train", *asked, "--out", tmp_path / "run") == 2
    assert "'--init'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_prior_is_refitted_with_the_other_parts_frozen(home, tmp_path, capsys):
    options = [*SMALL, "--data", home / "a.npy", "--init", home / "first", "--epochs", 3]
    options += ["--prior", "mixture", "--freeze", "posterior,likelihood"]
    assert run("train", *options, "--out", tmp_path / "run") == 0
    before, after = pv.load(home / "first"), pv.load(tmp_path / "run")
    for part in ("posterior", "likelihood"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert isinstance(after.prior, pv.MixturePrior)
    # The figures before are those of the other run, on the same rows with the same noise.
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    first = json.loads((home / "first" / "summary.json").read_text())
    assert found["before_nll"] == pytest.approx(first["nll"], abs=1e-5)
    assert found["gain"] == pytest.approx(first["nll"] - found["nll"], abs=1e-5)
    printed = capsys.readouterr().out
    assert f"before, with the prior of {home / 'first'}: -log p(x) {first['nll']:.2f}" in printed
    assert f"log p(x) is now above that by {found['gain']:+.2f}" in printed
    assert "before" not in first
    # A stopped run resumes with the same parts frozen.
    parts = tmp_path / "parts"
    assert run("train", *options, "--minutes", 1e-9, "--out", parts) == 0
    assert run("train", "--resume", "--out", parts) == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            after.state_dict().values(), pv.load(parts).state_dict().values(), strict=True
        )
    )


def test_a_refitted_prior_whose_first_run_has_gone_says_so(home, tmp_path, capsys):
    first = shutil.copytree(home / "first", tmp_path / "first")
    options = [*SMALL, "--data", home / "a.npy", "--init", first, "--epochs", 2]
    options += ["--prior", "mixture", "--freeze", "posterior,likelihood", "--out", tmp_path / "run"]
    assert run("train", *options, "--minutes", 1e-9) == 0
    shutil.rmtree(first)
    assert run("train", "--resume", "--out", tmp_path / "run", "--samples", 5) == 0
    assert "before, with the prior of --init: not known: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--freeze", "posterior"], "'--freeze': expected a run by --init"),
        (["--init", "first", "--freeze", "encoder"], "'--freeze': expected one of none, prior"),
        (
            ["--init", "first", "--freeze", "prior,posterior,likelihood"],
            "expected one of none, prior",
        ),
        (
            ["--init", "first", "--freeze", "posterior,likelihood"],
            "'--freeze': expected a part left that learns; got posterior,likelihood with --prior",
        ),
        (
            ["--init", "first", "--freeze", "likelihood", "--hidden-dims", "9"],
            "'--init': expected a run with the likelihood of these options",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused(home, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(home)
    capsys.readouterr()
    asked = [*SMALL, "--data", "a.npy", *options, "--out", tmp_path / "run"]
    assert run("train", *asked) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and not (tmp_path / "run").exists()
