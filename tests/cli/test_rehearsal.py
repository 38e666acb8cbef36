"""What the command line says before it trains: a plan, and its options."""

import re

import pytest

from pyro_vaes.cli.app import main
from pyro_vaes.cli.rehearsal import size_text

QUICK = ["--recipe", "course", "--epochs", "300", "--hidden-dims", "16", "--latent-dim", "3"]


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


def seconds(text):
    value, unit = re.fullmatch(r"([\d.e+]+) (ms|s|min|h)", text).groups()
    return float(value) * {"ms": 1e-3, "s": 1, "min": 60, "h": 3600}[unit]


def test_a_rehearsal_says_what_would_be_built_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "train", *QUICK, "--prior", "vamp", "--dry-run", "--out", "run")
    assert status == 0 and list(tmp_path.iterdir()) == []
    # 64-16 and two heads of 3; pseudo-inputs of 64; 3-16-64 and the thresholds.
    vae = dict(re.findall(r"^  (posterior|prior|in all) .*?([\d,]+) parameters", out, re.M))
    assert int(vae["posterior"].replace(",", "")) == 64 * 16 + 16 + 2 * (16 * 3 + 3)
    pseudo = re.search(r"VampPrior, ([\d,]+) parameters", out)[1]
    assert int(pseudo.replace(",", "")) % 64 == 0
    assert "3 units of z" in out and "steps are traced" in out
    epoch, steps, each, val = re.search(
        r"an epoch   about (.*?): (\d+) steps of (.*?) and (.*?) of validation", out
    ).groups()
    assert int(steps) == 16
    assert seconds(epoch) == pytest.approx(16 * seconds(each) + seconds(val), rel=0.02)
    whole = re.search(r"at most (.*?), 300 epochs", out)[1]
    assert seconds(whole) == pytest.approx(300 * seconds(epoch), rel=0.02)


def test_the_bytes_of_a_batch_grow_with_it(capsys):
    found = []
    for size in (10, 100):
        _, out, _ = run(capsys, "train", *QUICK, "--dry-run", "--batch-size", size)
        value, unit = re.search(r"([\d.]+) (kB|MB) a batch", out).groups()
        found.append(float(value) * {"kB": 1, "MB": 1000}[unit])
    assert 5 < found[1] / found[0] < 15


def test_a_rehearsal_is_refused_where_the_training_would_be(capsys, tmp_path):
    for wrong in (["--prior", "none"], ["--data", "no.csv"], ["--out", tmp_path.parent]):
        status, out, err = run(capsys, "train", *QUICK, "--dry-run", *wrong)
        assert status == 2 and len(err.splitlines()) == 1 and not out


def test_a_long_training_is_timed_uncompiled(capsys):
    _, out, _ = run(capsys, "train", *QUICK, "--epochs", "9000", "--dry-run", "--device", "cpu")
    assert "steps are traced, compiled ones may be faster" in out


def test_printed_options_are_those_of_the_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, first, _ = run(capsys, "train", *QUICK, "--prior", "vamp", "--print-config")
    assert status == 0 and "prior: vamp" in first and "hidden_dims: [16]" in first
    (tmp_path / "file.yaml").write_text(first)
    assert run(capsys, "train", "--config", "file.yaml", "--print-config") == (0, first, "")
    # A remark does not get into the YAML.
    status, out, err = run(capsys, "train", "--epochs", "10", "--print-config")
    assert status == 0 and "is shortened to 5" in err and "shortened" not in out
    assert run(capsys, "train", "--warmup-epochs", "350", "--print-config")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (1e4, "10 kB"), (5.48e6, "5.48 MB"), (3e12, "3e+03 GB")]
)
def test_sizes_are_said_in_their_unit(count, text):
    assert size_text(count) == text
