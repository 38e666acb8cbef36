"""On the way to the first epoch nothing is done twice."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from pyro_vaes.cli import main
from pyro_vaes.cli import train as command
from pyro_vaes.runs.options import Option
from pyro_vaes.runs.schema import OPTIONS
from pyro_vaes.storage import files
from pyro_vaes.training import checkpoint, loop
from pyro_vaes.training.distributed import Processes

FLAGS = ("--latent-dim", "2", "--hidden-dims", "8", "--prior", "standard")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each of the steps towards a training is taken."""
    counts: collections.Counter[str] = collections.Counter()

    def count(where: object, name: str, called: str = "") -> None:
        function = getattr(where, name)

        def counted(*args: object, **kwargs: object) -> object:
            counts[called or name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(where, name, counted)

    parse = Option._parse

    def parsed(option: Option, value: object) -> object:
        counts[option.name] += 1
        return parse(option, value)

    monkeypatch.setattr(Option, "_parse", parsed)
    for name in ("check_combination", "check_warmup_steps", "check_resume"):
        count(command, name)
    count(Processes, "check", "processes")
    for name in ("check_batches", "check_trainable", "check_units", "check_data"):
        count(loop, name)
    count(checkpoint, "read_groups")
    count(files.FileLock, "acquire", "lock")
    return counts


def test_each_check_is_made_once_and_each_option_read_once(
    counts: collections.Counter[str], tmp_path: Path
) -> None:
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(0).random((50, 4)), delimiter=",")
    out = str(tmp_path / "run")
    run = ["train", "--data", str(tmp_path / "x.csv"), "--samples", "5", "--out", out, *FLAGS]
    once = {"check_combination", "check_warmup_steps", "processes", "check_trainable", "lock"}
    twice = {"check_batches", "check_data"}  # Of training and of validation data.
    given = {"data", "latent_dim", "hidden_dims", "prior", "epochs"}

    main([*run, "--epochs", "1"])
    expected = dict.fromkeys(once | {"check_units"} | given, 1) | dict.fromkeys(twice, 2)
    assert counts == expected

    counts.clear()
    main([*run, "--epochs", "2", "--resume"])
    # The flags, and the options of the run that is resumed.
    read = dict.fromkeys(OPTIONS, 1) | dict.fromkeys(given, 2)
    assert counts == expected | read | {"check_resume": 1, "read_groups": 1}
