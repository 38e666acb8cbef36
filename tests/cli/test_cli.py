"""The command line: what it leaves behind, and one clear line for bad input."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaes.cli.app import main
from pyro_vaes.data.dataset import load_data

QUICK = ["--recipe", "course", "--epochs", "2", "--hidden-dims", "16", "--latent-dim", "2"]


def run(*arguments):
    """Runs the command in this process; returns its exit status. The closing figures are rough."""
    if arguments[0] == "train" and "--samples" not in arguments:
        arguments += ("--samples", 20)
    if arguments[0] == "train" and "--proposal" not in arguments:
        arguments += ("--proposal", "encoder")
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run("train", *QUICK, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "conditional"
    assert run("train", *QUICK, "--conditional", "true", "--prior", "vamp", "--out", out) == 0
    return out


def refused(capsys, *arguments):
    """Checks that the command is refused in one line with status 2; returns the line."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def test_run_folder(finished):
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith("tensorboard")}  # where it is installed
    figures = {"learning_curves", "latent_space", "samples", "reconstructions"}
    assert files == {
        "config.yaml",
        "weights.safetensors",
        "checkpoint/state.safetensors",
        "metrics.jsonl",
        "summary.json",
        *(f"figures/{name}.png" for name in figures),
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["epochs"] == 2 and summary["nll"] > 0


def test_prints_figures_and_folder(capsys, tmp_path):
    capsys.readouterr()
    out = tmp_path / "run"
    assert run("train", *QUICK, "--out", out) == 0
    text = capsys.readouterr().out
    assert "importance weighted" in text
    assert text.strip().splitlines()[-1] == f"Run folder: {out}"
    assert "Trained 2 epochs" in text


def test_evaluate_prints_one_flat_object(capsys, finished):
    capsys.readouterr()
    assert run("evaluate", finished, "--samples", 10, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_samples"] == 10 and report["split"] == "test"
    for key in ("nll", "nll_se", "elbo", "elbo_se", "kl", "reconstruction"):
        assert isinstance(report[key], float)
    assert run("evaluate", finished, "--samples", 10) == 0
    assert "importance weighted" in capsys.readouterr().out


def test_evaluation_is_that_of_training(capsys, finished):
    capsys.readouterr()
    run("evaluate", finished, "--samples", 20, "--proposal", "encoder", "--json")
    report = json.loads(capsys.readouterr().out)
    summary = json.loads((finished / "summary.json").read_text())
    assert report["nll"] == pytest.approx(summary["nll"], abs=1e-6)


def test_samples_are_pictures_or_arrays(finished, tmp_path):
    assert run("sample", finished, "--num", 5, "--out", tmp_path / "grid.png") == 0
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    assert run("sample", finished, "--num", 5, "--out", tmp_path / "a.npy") == 0
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (5, 64) and array.min() >= 0 and array.max() <= 16
    assert run("sample", finished, "--num", 5, "--out", tmp_path / "b.npy") == 0
    np.testing.assert_array_equal(array, np.load(tmp_path / "b.npy"))


def test_own_data_end_to_end(tmp_path, capsys):
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        x=generator.normal(5, 2, (60, 2, 3)).astype(np.float32),
        y=generator.integers(0, 3, 60),
    )
    out = tmp_path / "run"
    own = ["--likelihood", "auto", "--data", tmp_path / "mine.npz"]  # the recipe: for levels
    assert run("train", *QUICK, *own, "--out", out) == 0
    assert "Likelihood: normal" in capsys.readouterr().out
    assert run("sample", out, "--num", 4) == 0
    assert np.load(out / "samples.npy").shape == (4, 2, 3)
    assert "no images" in refused(capsys, "sample", out, "--out", tmp_path / "x.png")
    np.savez(tmp_path / "mine.npz", x=generator.normal(5, 2, (60, 2, 3)))
    assert "trained on" in refused(capsys, "evaluate", out)


def test_vamp_beside_planar_takes_the_remedy_and_says_so(tmp_path, capsys):
    options = ["--prior", "vamp", "--prior-components", 5, "--posterior", "planar"]
    assert run("train", *QUICK, *options, "--out", tmp_path / "run") == 0
    assert "posterior.base" in capsys.readouterr().out


def test_resume(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("train", *QUICK, "--epochs", 4, "--out", whole)
    run("train", *QUICK, "--resume", "--out", parts)
    run("train", "--resume", "--epochs", 4, "--out", parts)
    name = "checkpoint/state.safetensors"
    # The histories hold seconds; the weights must agree to the bit.
    from pyro_vaes.storage.tensors import read_groups

    (a, _), (b, _) = (read_groups(folder / name) for folder in (whole, parts))
    for group in ("model", "best", "optimizer", "generator"):
        assert all(torch.equal(a[group][key], b[group][key]) for key in a[group])
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run("train", "--resume", "--out", whole) == 0
    assert f"Run folder: {whole}" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == files


def test_config_file_and_precedence(tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 1\nlatent_dim: 3\nhidden_dims: [8]\nbeta: 0.5\n")
    out = tmp_path / "run"
    assert run("train", "--config", tmp_path / "my.yaml", "--latent-dim", 2, "--out", out) == 0
    text = (out / "config.yaml").read_text()
    assert "latent_dim: 2" in text and "beta: 0.5" in text
    # The folder's own file is a file of options like any other.
    assert run("train", "--config", out / "config.yaml", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "config.yaml").read_text() == text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nothing"], ["--data", "nothing", "digits"]),
        (["--data", "missing.npy"], ["--data", "missing.npy"]),
        (["--prior", "foo"], ["--prior", "foo", "mixture"]),
        (["--posterior", "foo"], ["--posterior", "foo", "iaf"]),
        (["--likelihood", "bernoulli"], ["--likelihood", "bernoulli"]),
        (["--prior-components", "0"], ["--prior-components", "0"]),
        (["--latent-dim", "0"], ["--latent-dim", "0"]),
        (["--latent-dim", "1", "--prior", "realnvp"], ["--prior", "at least 2"]),
        (["--epochs", "0"], ["--epochs", "0"]),
        (["--patience", "-1"], ["--patience", "-1"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
        (["--beta", "-1"], ["--beta", "-1"]),
        (["--beta", "nan"], ["--beta", "nan"]),
        (["--conditional", "maybe"], ["--conditional", "maybe"]),
        (["--warmup-epochs", "5", "--epochs", "5"], ["--warmup-epochs", "5"]),
        (["--conditional", "true", "--prior", "vamp", "--prior-components", "3"], ["10"]),
        (["--recipe", "foo"], ["--recipe", "foo", "course"]),
        (["--config", "missing.yaml"], ["--config", "missing.yaml"]),
        (["--nonsense", "1"], ["--nonsense"]),
    ],
)
def test_bad_options(capsys, tmp_path, options, words):
    out = tmp_path / "run"
    line = refused(capsys, "train", *options, "--out", out)
    for word in words:
        assert word in line
    assert not out.exists()


@pytest.mark.parametrize("option", [("--device", "cuda"), ("--mode", "cuda_graph")])
def test_a_machine_without_what_is_asked_for(capsys, tmp_path, option, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert option[0] in refused(capsys, "train", *option, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluation_where_it_is_asked_for(capsys, finished, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(capsys, "evaluate", finished, "--samples", 2, "--device", "cuda")
    assert "--device" in line and "got 'cuda'" in line
    assert run("evaluate", finished, "--samples", 2, "--device", "cpu") == 0


def bad_files(folder):
    x = np.random.default_rng(0).normal(size=(20, 4))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(folder / "gaps.npy", np.full_like(x, np.nan))
    np.save(folder / "inf.npy", np.where(x > 1, np.inf, x))
    np.save(folder / "none.npy", np.zeros((0, 4)))
    np.save(folder / "labelless.npy", x)
    (folder / "empty.npy").write_bytes(b"")
    (folder / "damaged.npy").write_bytes((folder / "gaps.npy").read_bytes()[:100])
    (folder / "pickle.npz").write_bytes(pickle.dumps({"x": 1}))
    (folder / "ragged.csv").write_text("1,2,3\n4,5\n")
    (folder / "words.txt").write_text("hello")


@pytest.mark.parametrize(
    "name",
    [
        "objects.npy",
        "gaps.npy",
        "inf.npy",
        "none.npy",
        "empty.npy",
        "damaged.npy",
        "pickle.npz",
        "ragged.csv",
        "words.txt",
    ],
)
def test_bad_data_files(capsys, tmp_path, name):
    bad_files(tmp_path)
    line = refused(capsys, "train", "--data", tmp_path / name, "--out", tmp_path / "run")
    assert "--data" in line and name in line
    assert not (tmp_path / "run").exists()


def test_conditional_without_labels(capsys, tmp_path):
    bad_files(tmp_path)
    options = ["--data", tmp_path / "labelless.npy", "--conditional", "true"]
    assert "labels" in refused(capsys, "train", *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_levels_outside_the_range_are_refused(capsys, tmp_path):
    np.save(tmp_path / "negative.npy", np.array([[-1, 2], [0, 1], [2, 2], [1, 0], [0, 0]] * 4))
    options = ["--data", tmp_path / "negative.npy", "--likelihood", "categorical"]
    line = refused(capsys, "train", *options, "--out", tmp_path / "run")
    assert "--likelihood" in line and "some values are negative" in line


def test_occupied_folders(capsys, tmp_path, finished):
    assert "--out" in refused(capsys, "train", *QUICK, "--out", finished)
    (tmp_path / "file").write_text("")
    assert "--out" in refused(capsys, "train", *QUICK, "--out", tmp_path / "file")
    line = refused(capsys, "train", "--resume", "--beta", 3, "--out", finished)
    assert "--beta" in line and "3" in line
    assert "--resume" in refused(capsys, "train", "--resume")


def test_labels_out_of_range(capsys, finished, conditional, tmp_path):
    assert run("sample", conditional, "--label", 9, "--num", 2, "--out", tmp_path / "a.npy") == 0
    for label in (10, -1):
        line = refused(capsys, "sample", conditional, "--label", label)
        assert "--label" in line and str(label) in line and "0 to 9" in line
    assert "--label" in refused(capsys, "sample", finished, "--label", 1)


@pytest.mark.parametrize("name", ["config.yaml", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "pickle"])
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_damaged_run_folders(capsys, tmp_path, finished, name, damage, command):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "altered":
        changed = whole.replace(b"latent_dim: 2", b"latent_dim: 3")
        path.write_bytes(changed if changed != whole else whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        path.write_bytes(pickle.dumps({"a": 1}))
    refused(capsys, command, folder)


def test_a_run_out_of_time_says_how_to_go_on(capsys, tmp_path):
    assert run("train", *QUICK, "--minutes", 1e-9, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "Stopped by --minutes after 1 epoch.\nTo resume: pyro-vaes train --resume --out" in out
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run("train", "--resume", "--out", tmp_path / "run") == 0
    assert "(all epochs done; " in capsys.readouterr().out
    for minutes in (0, "nan"):
        line = refused(capsys, "train", *QUICK, "--minutes", minutes, "--out", tmp_path / "other")
        assert "'--minutes'" in line and not (tmp_path / "other").exists()


def test_a_finished_run_is_evaluated_anew_only_if_asked_otherwise(tmp_path):
    out = tmp_path / "run"
    again = ["train", "--resume", "--out", out]
    assert run("train", *QUICK, "--proposal", "encoder", "--out", out) == 0
    made = (out / "summary.json").read_bytes()
    for same in ([], ["--samples", "20"], ["--proposal", "encoder", "--samples", "20"]):
        main([*map(str, again), *same])
        assert (out / "summary.json").read_bytes() == made
    for samples, proposal in ((40, "encoder"), (40, "refined")):
        assert run(*again, "--samples", samples, "--proposal", proposal) == 0
        summary = json.loads((out / "summary.json").read_text("utf-8"))
        assert (summary["num_samples"], summary["asked_proposal"]) == (samples, proposal)


def test_an_evaluation_out_of_time_is_of_some_rows_at_random(capsys, tmp_path):
    out = tmp_path / "run"
    assert run("train", *QUICK, "--evaluation-minutes", 1e-9, "--samples", 30, "--out", out) == 0
    assert "of 447 rows at random 32, for want of time" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert (summary["num_data"], summary["num_rows"]) == (32, 447)
    asked = ["evaluate", out, "--samples", 30, "--no-diagnostics"]
    assert run(*asked, "--minutes", 1e-9, "--json") == 0
    some = json.loads(capsys.readouterr().out)
    assert (some["num_data"], some["num_rows"]) == (32, 447)
    assert run(*asked, "--json", "--minutes", 60) == 0
    every = json.loads(capsys.readouterr().out)
    assert (every["num_data"], every["num_rows"]) == (447, 447)
    # The rows are a sample of all, not the first.
    assert abs(some["elbo"] - every["elbo"]) < 5 * some["elbo_se"]


def test_damaged_checkpoint_is_not_resumed(capsys, tmp_path, finished):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    refused(capsys, "train", "--resume", "--epochs", 4, "--out", folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    # A new run would overwrite the weights.
    path.unlink()
    line = refused(capsys, "train", "--resume", "--epochs", 4, "--out", folder)
    assert "checkpoint" in line and "weights" in line
    del before[path]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_data_that_are_gone_are_named_in_evaluation(capsys, tmp_path):
    source = tmp_path / "mine.npy"
    np.save(source, np.random.default_rng(0).normal(size=(20, 4)))
    options = ["--data", source, "--likelihood", "auto", "--out", tmp_path / "run"]
    assert run("train", *QUICK, *options) == 0
    source.unlink()
    line = refused(capsys, "evaluate", tmp_path / "run")
    assert str(source) in line and "trained on" in line


def test_an_option_without_effect_is_said_so(capsys, tmp_path):
    assert run("train", *QUICK, "--binarization", "dynamic", "--out", tmp_path / "run") == 0
    assert "--binarization has no effect with --data digits" in capsys.readouterr().out


def test_divergence_is_one_line_with_status_one(capsys, tmp_path):
    options = [*QUICK, "--learning-rate", "1e30", "--optimizer", "adam"]
    assert run("train", *options, "--out", tmp_path / "run") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "site" in lines[-1]


def test_help_and_module(tmp_path):
    command = [sys.executable, "-m", "pyro_vaes"]
    for arguments in ([], ["--help"], ["train", "--help"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        assert "train" in done.stdout
    done = subprocess.run([*command, "train", "--epochs", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_training_uses_the_digits_split():
    data = load_data("digits")
    assert [len(s) for s in (data.train, data.val, data.test)] == [1000, 350, 447]


def test_parts_lists_what_the_flags_take(capsys):
    from pyro_vaes.runs import schema as config
    from pyro_vaes.runs.registry import REGISTRY

    capsys.readouterr()
    assert run("parts") == 0
    text = capsys.readouterr().out
    for option, entries in REGISTRY.items():
        if option != "objective":
            choices = set(config.OPTIONS[option].choices) - {"auto", "none"}
            assert choices == set(entries)
        assert all(value in text for value in entries)
    assert all(line.endswith("]") for line in text.splitlines() if line.startswith("  "))
    # No mark-up, nor what is left of it.
    assert not any(mark in text for mark in ("`", "~", ":class:", ":func:", " ."))


def test_a_table_with_words_and_gaps_goes_in_and_comes_back(tmp_path, capsys):
    random = np.random.default_rng(0)
    days = np.datetime64("2020-01-01") + np.arange(120)
    frame = pd.DataFrame(
        {
            "who": np.arange(120) // 3,
            "island": random.choice(["Biscoe", "Dream"], 120),
            "sort": random.choice(["a", "b", "c"], 120),
            "mass": random.normal(4, 1, 120).round(2),
            "visits": random.negative_binomial(1, 0.1, 120),
            "day": days,
        }
    )
    frame = frame.mask((random.random(frame.shape) < 0.05) & (frame.columns != "who"))
    source, run = tmp_path / "birds.csv", tmp_path / "run"
    frame.to_csv(source, index=False)
    flags = ["--group", "who", "--types", "sort=ordinal", "--epochs", "2", "--samples", "20"]
    main(["train", "--data", str(source), *flags, "--out", str(run)])
    said = capsys.readouterr().out
    assert "ordinal: sort (3)" in said and "are gaps" in said and "Likelihood: table" in said
    main(["sample", str(run), "--num", "30", "--out", str(tmp_path / "made.csv")])
    made = pd.read_csv(tmp_path / "made.csv", parse_dates=["day"])
    assert list(made) == ["island", "sort", "mass", "visits", "day"]
    assert set(made["island"]) <= {"Biscoe", "Dream"} and made["visits"].dtype.kind == "i"
    main(
        ["score", str(run), "--data", str(tmp_path / "made.csv"), "--out", str(tmp_path / "s.csv")]
    )
    assert np.isfinite(pd.read_csv(tmp_path / "s.csv")["log_p"]).all()
    made.assign(island="Elba").to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["score", str(run), "--data", str(tmp_path / "other.csv"), "--out", "s.csv"])
    assert ended.value.code == 2
    assert "one of Biscoe, Dream; got 'Elba' in line 2" in capsys.readouterr().err
