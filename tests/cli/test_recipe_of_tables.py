"""``pyro-vaes train --recipe table``: where it starts, what it says, and what it cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import run

import pyro_vaes as pv

QUICK = [
    "--recipe",
    "table",
    "--transform",
    "none",
    "--mode",
    "eager",
    "--samples",
    "50",
    "--latent-dim",
    "2",
]


def table(n: int = 120) -> pd.DataFrame:
    random = np.random.default_rng(0)
    z = random.standard_t(4, (n, 2))
    x = z @ random.normal(size=(2, 4)) + 0.3 * random.standard_t(4, (n, 4))
    return pd.DataFrame(100 + x * [1, 1e-3, 50, 7], columns=list("abcd"))


def test_the_report_names_the_best_classical_density(tmp_path: Path, capsys: Any) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "run"
    assert run("train", *QUICK, "--data", tmp_path / "t.csv", "--epochs", 3, "--out", out) == 0
    said = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert "Likelihood: student_t" in said and summary["classical"] in said
    assert f"{summary['above_classical']:+.2f} +- {summary['above_classical_se']:.2f}" in said
    data = pv.load_data(tmp_path / "t.csv")
    best = pv.best_density(data.train, data.val)
    assert best.name == summary["classical"]
    assert -best.log_prob(data.test).mean() == pytest.approx(summary["classical_nll"])
    ours = summary["classical_nll"] - summary["nll"]
    assert ours == pytest.approx(summary["above_classical"], abs=1e-6)
    # A single step from random weights would be far below the classical one.
    assert ours > -1.0
    assert run("evaluate", out, "--samples", 50, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["classical"] == summary["classical"]
    assert again["classical_nll"] == summary["classical_nll"]
    assert run("evaluate", out, "--samples", 50, "--data", tmp_path / "t.csv", "--json") == 0
    assert "classical" not in json.loads(capsys.readouterr().out)


def test_a_start_that_validates_best_is_kept_and_said(tmp_path: Path, capsys: Any) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    options = ["--data", tmp_path / "t.csv", "--epochs", 2, "--learning-rate", 0.1]
    assert run("train", *QUICK, *options, "--out", tmp_path / "run") == 0
    assert "kept the weights it started from" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_epoch"] == 0


@pytest.mark.slow
def test_skewed_columns_are_transformed_where_validation_rows_want_it(tmp_path, capsys) -> None:
    frame = table(200)
    frame["a"], frame["c"] = np.exp((frame["a"] - 100) / 2), np.exp((frame["c"] - 100) / 100)
    frame.to_csv(tmp_path / "t.csv", index=False)
    options = ["--data", tmp_path / "t.csv", "--epochs", 2, "--out", tmp_path / "run"]
    auto = [*QUICK, "--transform", "auto"]
    assert run("train", *auto, *options) == 0
    said = capsys.readouterr().out
    assert "Transform: Yeo-Johnson of each column, since" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "of transformed columns" in summary["classical"]
    assert summary["above_classical"] > -1
    vae, data = pv.load(tmp_path / "run"), pv.load_data(tmp_path / "t.csv")
    assert vae.likelihood.powers is vae.posterior.powers
    log_p = pv.log_marginal(vae, data.test, num_samples=50)
    assert -log_p.mean() == pytest.approx(summary["nll"], abs=0.2)
    table(200).to_csv(tmp_path / "plain.csv", index=False)
    options = ["--data", tmp_path / "plain.csv", "--epochs", 1, "--out", tmp_path / "other"]
    assert run("train", *auto, *options) == 0
    assert "Transform: none, since a multivariate t" in capsys.readouterr().out
    counts = np.random.default_rng(0).poisson(400, (50, 3))
    np.save(tmp_path / "counts.npy", counts)
    options = ["--kind", "counts", "--transform", "yeo_johnson", "--data", tmp_path / "counts.npy"]
    assert run("train", *options, "--out", tmp_path / "no") == 2
    assert "'--transform'" in capsys.readouterr().err


def test_few_rows_of_many_columns_have_noise_without_correlations(tmp_path, capsys) -> None:
    x = np.random.default_rng(0).normal(size=(30, 8))
    np.save(tmp_path / "wide.npy", x)
    options = ["--data", tmp_path / "wide.npy", "--epochs", 1, "--out", tmp_path / "run"]
    assert run("train", *QUICK, *options) == 0
    assert "a diagonal covariance, since 18 training rows are few" in capsys.readouterr().out
    assert pv.load(tmp_path / "run").likelihood.below is None


def test_a_table_with_gaps_has_the_same_noise_and_no_classical_density(tmp_path, capsys) -> None:
    frame = table(80)
    frame.loc[::9, "b"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    options = ["--data", tmp_path / "t.csv", "--epochs", 2, "--out", tmp_path / "run"]
    assert run("train", *QUICK, *options) == 0
    said = capsys.readouterr().out
    assert "Likelihood: student_t, since the data hold real values." in said
    assert "no classical density to compare with: some values were not seen" in said


def test_columns_of_several_kinds_start_at_random_weights_which_is_said(tmp_path, capsys) -> None:
    frame = table(60).assign(island=np.random.default_rng(1).choice(["x", "y"], 60))
    frame.to_csv(tmp_path / "t.csv", index=False)
    options = ["--data", tmp_path / "t.csv", "--epochs", 1, "--out", tmp_path / "run"]
    assert run("train", *QUICK, "--label-column", "none", *options) == 0
    said = capsys.readouterr().out
    assert "starts at random weights" in said
    assert "no classical density to compare with: the data are no rows of real numbers" in said


@pytest.mark.parametrize(
    "options", [["--network", "mlp"], ["--posterior", "iaf"], ["--posterior", "full_normal"]]
)
def test_parts_that_cannot_start_so_are_refused(tmp_path, capsys, options) -> None:
    np.save(tmp_path / "x.npy", table(40).to_numpy())
    code = run("train", *QUICK, *options, "--data", tmp_path / "x.npy", "--out", tmp_path / "run")
    refused = options[-1] != "full_normal"
    assert code == (2 if refused else 0)
    assert ("Invalid value for '--start'" in capsys.readouterr().err) == refused
    assert (tmp_path / "run").exists() != refused


def test_the_recipe_of_files_and_flags_is_one_configuration(tmp_path: Path) -> None:
    from pyro_vaes.runs.resolve import resolve

    config, _ = resolve("table")
    assert (config.training.start, config.network.kind) == ("factors", "skip")
    assert config.objective.warmup_epochs == 0


def windows(rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 8)).cumsum(1)


def test_the_recipe_for_signals_starts_at_a_t_and_names_the_classical_density(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "w.npy", windows(120))
    flags = ["--recipe", "signal", "--data", tmp_path / "w.npy", "--split", "time", "--epochs", 1]
    assert run("train", *flags, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "Likelihood: student_t" in said and "best classical density" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert abs(summary["above_classical"]) < 1  # It is one of these, after a single epoch.
    assert run("evaluate", tmp_path / "run", "--samples", 50) == 0
    assert "best classical density" in capsys.readouterr().out


def test_rows_too_few_for_a_full_covariance_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "w.npy", windows(30))
    code = run("train", "--recipe", "signal", "--data", tmp_path / "w.npy", "--out", tmp_path / "r")
    assert code == 2 and not (tmp_path / "r").exists()
    assert "StudentTLikelihood with full=True" in capsys.readouterr().err
