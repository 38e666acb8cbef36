"""What ``pyro-vaes doctor`` says of an installation."""

import importlib.util
import re
import sys

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.cli import doctor
from pyro_vaes.cli.app import main
from pyro_vaes.core.errors import RunError


def run(capsys, *arguments):
    """The exit status, output and errors of a command."""
    capsys.readouterr()
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_doctor_trains_and_names_what_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "ray" else find(name, *rest),
    )
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    state = torch.get_rng_state()
    status, out, _ = run(capsys, "doctor", "--seconds", "0.5")
    assert status == 0 and list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert f"pyro_vaes {pv.__version__}" in out and f"torch {torch.__version__}" in out
    assert "Missing: ray, for --engine ray. To get it: pip install ray" in out
    assert "Compiler: none, so that" in out and "Missing: a TeX engine" in out
    assert re.search(r"^Training: \d+ epochs .* steps; validation ELBO from -", out, re.M)


def test_doctor_fails_where_training_does_not_work(monkeypatch):
    class Worse:
        epochs, seconds, device, mode = 2, 1.0, "cpu", "traced"
        records = ({"val_elbo": -100.0}, {"val_elbo": -101.0})

    run_module = sys.modules["pyro_vaes.runs.run"]
    monkeypatch.setattr(run_module, "train", lambda *args, **options: Worse())
    with pytest.raises(RunError, match="does not work here: 2 epochs"):
        doctor._training(1.0)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_doctor_refuses_a_time_that_is_none(capsys, value):
    assert run(capsys, "doctor", "--seconds", value)[0] == 2
