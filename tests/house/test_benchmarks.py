"""Every benchmark runs at toy size, writes what it promises, and its ratios are what they say."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("harness")


def run(script: str, *flags: str) -> str:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Each row: script, flags, the files it writes, contenders that must be in the first of them.
TOYS = [
    pytest.param(
        "steps.py",
        ["--work", "vamp"],
        ["steps_vamp"],
        ["textbook Pyro", "hand-written PyTorch", "pyro_vaes eager", "pyro_vaes traced"],
        id="steps",
    ),
    pytest.param(
        "evaluate.py",
        [],
        ["evaluate", "evaluate_memory"],
        ["pyro_vaes log_marginal", "pyro_vaes evaluate"],
        id="evaluate",
    ),
    pytest.param(
        "proposals.py",
        [],
        ["proposals_cost"],
        ["encoder", "auto"],
        id="proposals",
    ),
    pytest.param(
        "growth.py",
        ["--curve", "K"],
        ["growth_K"],
        ["textbook Pyro", "hand-written PyTorch", "pyro_vaes traced"],
        id="growth",
    ),
    pytest.param(
        "together.py",
        [],
        ["together"],
        ["one after another, traced", "pyro_vaes together, traced"],
        id="together",
    ),
    pytest.param(
        "combinations.py",
        [],
        ["combinations", "combinations_memory"],
        ["of an IAF posterior", "of its base", "ordinal", "discretised logistic"],
        id="combinations",
    ),
    pytest.param(
        "course_job.py",
        [],
        ["course_job"],
        [
            "course loop",
            "course loop, pictures",
            "pyro_vaes train",
            "pyro_vaes train, encoder's draws",
        ],
        id="course_job",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "flags", "files", "contenders"), TOYS)
def test_toy_run_writes_records_header_and_picture(
    script: str,
    flags: list[str],
    files: list[str],
    contenders: list[str],
    tmp_path: Path,
    harness: Any,
) -> None:
    run(script, "--toy", "--out", str(tmp_path), *flags)
    for name in files:
        records, facts = harness.read(tmp_path / f"{name}.csv")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert facts["command"].startswith(f"python benchmarks/{script} --toy")
        assert {"date", "versions", "machine", "threads"} <= facts.keys()
        assert "torch" in facts["versions"]
        for record in records:
            measured = record.get("seconds") or record["megabytes"]
            assert float(measured) >= 0
    found = {record["contender"] for record in harness.read(tmp_path / f"{files[0]}.csv")[0]}
    assert set(contenders) <= found


@pytest.mark.slow
def test_two_processes_are_timed_side_by_side(tmp_path: Path, harness: Any) -> None:
    run("side_by_side.py", "--toy", "--out", str(tmp_path))
    records, facts = harness.read(tmp_path / "side_by_side.csv")
    assert [record["contender"] for record in records] == ["one thread"]
    assert float(records[0]["seconds"]) > 0 and facts["work"] == "mnist, traced steps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "work", "contender"),
    [("numpyro", "digits", "NumPyro, scan"), ("pythae", "vamp", "pythae")],
)
def test_peer_runs(peer: str, work: str, contender: str, tmp_path: Path, harness: Any) -> None:
    pytest.importorskip(peer)
    run("steps.py", "--toy", "--out", str(tmp_path), "--work", work, "--only", contender)
    records, _ = harness.read(tmp_path / f"steps_{work}.csv")
    assert {record["contender"] for record in records} == {contender}


@pytest.mark.slow
def test_a_table_of_the_digits_is_a_study_that_names_its_command(tmp_path: Path) -> None:
    flags = ["recipes", "--quick", "--seeds", "1", "--samples", "30", "--workers", "1"]
    places = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    page = run("digits.py", *flags, *places)
    assert page.strip() == (tmp_path / "recipes.md").read_text().strip()
    assert "Made by `python benchmarks/digits.py recipes --seeds 1 --samples 30 --quick`" in page
    assert all(f"| {name} | " in page for name in ("default", "digits-conv", "course"))


def test_ratio_is_taken_round_by_round(harness: Any) -> None:
    # The machine slows down from round to round; the ratio does not change.
    records = [
        {"contender": name, "round": number, "seconds": factor * (1 + number)}
        for name, factor in (("ours", 1.0), ("theirs", 4.0))
        for number in range(9)
    ]
    assert harness.ratio(records, "ours", "theirs") == pytest.approx((0.25, 0.25, 0.25))
    assert harness.ratio(records, "ours", "absent") is None


def test_compare_times_the_units_and_keeps_stores_apart(harness: Any) -> None:
    import pyro
    import torch

    seen: dict[str, int] = {}

    def contender(name: str, seconds: float) -> Any:
        def make() -> Any:
            def work(units: int) -> float:
                pyro.param(name, torch.zeros(()))
                seen[name] = max(seen.get(name, 0), len(pyro.get_param_store()))
                return seconds * units

            return work

        return harness.Contender(name, make, granule=3)

    records = harness.compare(
        [contender("slow", 0.02), contender("fast", 0.01)],
        rounds=3,
        block_seconds=0.1,
        say=lambda line: None,
    )
    assert [r["contender"] for r in records] == ["slow"] * 3 + ["fast"] * 3
    assert {r["seconds"] for r in records} == {0.02, 0.01}
    assert seen == {"slow": 1, "fast": 1}
    assert harness.ratio(records, "fast", "slow") == pytest.approx((0.5, 0.5, 0.5))


def test_records_survive_writing(harness: Any, tmp_path: Path) -> None:
    records = [{"contender": "a, b", "round": 0, "seconds": 1 / 3}]
    path = harness.write(tmp_path, "x", records, {"command": "python x: y", "machine": "m"})
    read, facts = harness.read(path)
    assert facts == {"command": "python x: y", "machine": "m"}
    assert read[0]["contender"] == "a, b"
    assert float(read[0]["seconds"]) == pytest.approx(1 / 3, rel=1e-5)


def test_table_says_what_was_reached(harness: Any, tmp_path: Path) -> None:
    table = importlib.import_module("table")
    target = next(t for t in table.TARGETS if t.file == "together")
    records = [
        {"work": target.work, "contender": name, "round": number, "seconds": seconds}
        for name, seconds in ((target.ours, 0.5), (target.theirs, 1.0))
        for number in range(3)
    ]
    harness.write(tmp_path, "together", records, {})
    line = next(line for line in table.targets(tmp_path).splitlines() if target.title in line)
    assert "0.50" in line
    assert line.endswith("| yes |")
    assert table.targets(tmp_path).count("not measured") == len(table.TARGETS) - 1


def test_peak_memory_sees_what_was_held_for_a_moment(harness: Any) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak cannot be reset here")
    # From the system itself: an allocator may hand out what earlier tests have given back to it.
    with harness.PeakMemory() as memory, mmap.mmap(-1, 64_000_000) as held:
        for place in range(0, len(held), mmap.PAGESIZE):
            held[place] = 1
    assert 50e6 < memory.bytes < 120e6


def test_peers_and_ours_compute_the_same_bound(
    harness: Any, monkeypatch: pytest.MonkeyPatch, float64: None
) -> None:
    """With equal weights and noise, all contenders minimise one loss: the race is fair."""
    import torch
    from pyro.infer import Trace_ELBO

    works, peers = (importlib.import_module(name) for name in ("works", "peers_torch"))
    for work in (works.DIGITS.toy(), works.VAMP.toy()):
        x = work.data()[0].double()
        mine = works.our_vae(work)
        losses = []
        for kind in (peers.TextbookPyro, peers.HandWritten):
            other = kind(work)
            for network, part in (
                (other.encoder, mine.posterior),
                (other.decoder, mine.likelihood),
            ):
                values = [*part.network.parameters(), *part.head.parameters()]
                for to, value in zip(network.parameters(), values, strict=True):
                    to.data.copy_(value)
            if work.components:
                other.pseudo_inputs.data.copy_(mine.prior.pseudo_inputs)
            torch.manual_seed(0)
            if kind is peers.HandWritten:
                losses.append(other(x).item())
            else:
                losses.append(Trace_ELBO().loss(other.model, other.guide, x))
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(mine.model, mine.guide, x))
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        assert losses[0] == pytest.approx(losses[2], rel=1e-9)


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture
def tables(harness: Any) -> Any:
    return importlib.import_module("tables")


def test_cells_of_tables_are_computed_once_and_none_is_begun_after_the_minutes(
    tables: Any, tmp_path: Path
) -> None:
    def never() -> None:
        raise AssertionError

    cells = tables.Cells(tmp_path, toy=True)
    assert cells("a", 1, "b")(lambda: [1.0, 2.0]).tolist() == [1.0, 2.0]
    late = tables.Cells(tmp_path, toy=True, minutes=-1.0)
    assert late("a", 1, "b")(never).tolist() == [1.0, 2.0]
    with pytest.raises(tables.OutOfTime):
        late("a", 2, "b")(never)


def test_differences_of_tables_are_paired_and_seeds_are_no_rows(tables: Any) -> None:
    import numpy as np

    base = {(0, 0): np.array([1.0, 5.0, 9.0])}
    runs = {(0, seed): base[0, 0] + np.array([0.1, 0.2, 0.6]) + 0.3 * seed for seed in (0, 1)}
    found = tables.paired(runs, base, "minus")
    assert (found["splits"], found["seeds"]) == (1, 2)
    assert found["minus"] == pytest.approx(0.45)
    assert found["paired s.e."] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / 3**0.5)
    assert found["median difference"] == pytest.approx(0.35)


def test_a_transformed_table_has_the_log_p_of_the_table(tables: Any) -> None:
    """Of a normal for the transformed rows, by quadrature over the rows as they are."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=400) ** 2 + 1.0, "b": random.normal(size=400)})
    data, gained = tables._transformed(frame, 0, "Yeo-Johnson")
    plain, nothing = tables._transformed(frame, 0, "none")
    assert not nothing.any() and len(data.test) == len(plain.test) == len(gained)
    # The slope, by differences between neighbours in one column.
    moved, rows = data.test.x[:, 0].double().numpy(), plain.test.x[:, 0].double().numpy()
    order = np.argsort(rows)
    slopes = np.log(np.diff(moved[order]) / np.diff(rows[order]))
    other, there = data.test.x[:, 1].double().numpy(), plain.test.x[:, 1].double().numpy()
    second = np.log(np.diff(np.sort(other)) / np.diff(np.sort(there))).mean()
    assert slopes.mean() + second == pytest.approx(gained.mean(), abs=0.3)


def test_our_figures_of_tables_are_above_what_has_no_structure(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    z = random.normal(size=(150, 1))
    x = np.concatenate([z, -z, z], 1) + 0.2 * random.normal(size=(150, 3))
    data = tables.pv.load_data(x, kind="real")
    found = tables.classical(data)
    assert found.shape == (len(tables.CLASSICAL), len(data.test))
    assert any(np.array_equal(found[-1], row) for row in found[:-1])
    vae = tables.ours(tables.Cells(tmp_path, toy=True), data, 0)
    ours = tables.log_p(vae, data.test)
    assert ours.mean() > found[-1].mean() - 0.5
    # Other parts get the model that is there; other options train another one.
    monkeypatch.setattr(tables, "train", lambda *a, **k: pytest.fail("trained again"))
    again = tables.ours(tables.Cells(tmp_path, toy=True), data, 0)
    assert np.array_equal(tables.log_p(again, data.test), ours)
    with pytest.raises(pytest.fail.Exception, match="again"):
        tables.ours(tables.Cells(tmp_path, toy=True), data, 0, latent_dim=1)


# --- published figures ----------------------------------------------------------------------------


@pytest.fixture
def published(harness: Any) -> Any:
    return importlib.import_module("published")


def test_published_rows_are_the_models_of_the_literature(published: Any) -> None:
    ours = "digits-conv-full"
    for row in (row for name, row in published.ROWS.items() if name != ours):
        *before, config = published.configurations(row, 3, Path("there"))
        assert [earlier.training.epochs for earlier in before] == list(row.restarts)
        network, training = config.network, config.training
        residual = "residual" in row.title
        expected = ("residual_conv", (256,), 40) if residual else ("gated", (300, 300), 40)
        expected = (*expected[:2], 80) if "two levels" in row.title else expected
        assert (network.kind, network.hidden_dims, network.latent_dim) == expected
        falling = "step size falling" in row.title or row.start is not None
        assert (training.schedule == "cosine") == falling
        said = {
            "600 epochs": 600,
            "falling twice": 600,
            "10 epochs": 10,
            "full covariances": 30,
            "draws": 200,
            "300 epochs": 300,
            "Fashion": 100,
        }
        epochs = next((n for part, n in said.items() if part in row.title), 300)
        assert training.epochs == (epochs if falling else 2000)
        if not falling:
            assert (training.batch_size, training.learning_rate) == (100, 5e-4)
            assert (config.objective.warmup_epochs, training.ema_decay) == (100, 0)
        assert training.patience == (300 if "epochs more" in row.title else 50)
        assert (config.data.augment > 0) == ("images moved" in row.title)
        assert (training.seed, config.data.root) == (3, "there")
        assert (config.data.source == "mnist") == row.title.startswith("MNIST")
        assert (config.parts.prior == "standard") == ("standard prior" in row.title)


def test_published_table_says_what_the_budget_cut(
    published: Any, harness: Any, tmp_path: Path
) -> None:
    import pyro_vaes as pv

    records = [{"val_elbo": -90.0 + epoch, "seconds": 2.0} for epoch in range(3)]
    runs = []
    for seed, (stopped, best) in enumerate([("patience", 2), ("time", 3), ("time", None)]):
        history = pv.History(records, best, 0.0, stopped, "traced", "cpu")
        record = published.record_of("mnist-vamp", published.ROWS["mnist-vamp"], seed, history)
        nll = {"nll": 82.0 + seed, "nll_se": 0.25, "neg_elbo": 84.0, "samples": 5000}
        runs.append(record | (nll if best else {}))
    harness.write(tmp_path, "published_mnist-vamp", runs, harness.header())
    text = published.table(tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("| MNIST"))
    # Two seeds have a figure: their mean and its standard error, next to the published one.
    seeds = "| 0.25 | 0.50 | 3 | 84.00 | 88.33 |"
    assert f"| 82.43 ± 0.06 (VampPrior) | 82.50 | k-hat unknown {seeds}" in line
    assert "early stopping, **cut by the time budget**" in line
    assert "cut seed 0" not in text
    assert "cut seed 1 after 3 epochs: not its final figure" in text
    assert "cut seed 2 after 3 epochs, within the KL warm-up: not its final figure" in text
    assert "arXiv:2004.04795" in text
    # These say nothing of their threads.
    assert ", cpu, traced steps" in text


def test_every_goal_is_below_what_was_published_and_said_to_be_reached_or_not(
    published: Any, harness: Any, tmp_path: Path
) -> None:
    import pyro_vaes as pv

    rows = {name: row for name, row in published.ROWS.items() if row.goal is not None}
    goals = {"mnist-realnvp": 80.4, "mnist-realnvp-full": 80.4}
    goals |= {"mnist-residual-realnvp": 78.5}
    goals |= {"mnist-two-levels": 81.2, "mnist-two-levels-full": 81.2}
    goals |= {"mnist-two-levels-restarted": 81.2}
    goals |= {"mnist-two-levels-residual": 79.5, "digits-conv-full": 80}
    goals |= {f"fashion-realnvp{which}": 226 for which in ("", "-long", "-full")}
    assert {name: row.goal for name, row in rows.items()} == goals
    for row in rows.values():
        assert row.goal <= row.published + 0.01 and row.source and row.model
        (config,) = published.configurations(row, 0, Path("there"))
        for other in row.compared:
            theirs = published.configurations(published.ROWS[other], 0, Path("there"))[-1]
            same = ("batch_size", "learning_rate", "schedule", "epochs", "optimizer")
            assert all(
                getattr(config.training, key) == getattr(theirs.training, key) for key in same
            )
    history = pv.History([{"val_elbo": -90.0, "seconds": 2.0}], 1, 0.0, "epochs", "traced", "cpu")
    for nlls, said in (([80.0, 80.2], "reached"), ([81.0], "missed by 0.60"), ([], "not evalu")):
        runs = [
            published.record_of("mnist-realnvp", rows["mnist-realnvp"], seed, history)
            | ({"nll": nlls[seed], "nll_se": 0.2, "neg_elbo": 84.0} if nlls else {})
            for seed in range(max(1, len(nlls)))
        ]
        harness.write(tmp_path, "published_mnist-realnvp", runs, harness.header())
        assert f"Goal: below 80.4, {said}" in published.table(tmp_path)
        assert ("| none yet | none yet |" in published.table(tmp_path)) == (not nlls)


@pytest.mark.parametrize(
    ("shares", "cell"),
    [
        ([0.01, 0.02], "82.00 | 2.0%"),
        ([0.01, 0.0526], "82.00 † | 5.3%"),
        ([0.0, None], "82.00 | k-hat unknown"),
        ([None, None], "82.00 | k-hat unknown"),
    ],
)
def test_published_table_marks_estimates_that_are_unreliable(
    published: Any, harness: Any, tmp_path: Path, shares: list[float | None], cell: str
) -> None:
    import pyro_vaes as pv

    row, history = (
        published.ROWS["mnist-vamp"],
        pv.History([{"val_elbo": -90.0, "seconds": 2.0}], 1, stopped="epochs"),
    )
    runs = [
        published.record_of("mnist-vamp", row, seed, history)
        | {"nll": 82.0, "nll_se": 0.2, "neg_elbo": 84.0, "share_unreliable": share}
        for seed, share in enumerate(shares)
    ]
    harness.write(tmp_path, "published_mnist-vamp", runs, harness.header())
    page = published.table(tmp_path)
    assert f"| {cell} | 0.20 |" in page
    assert ("Not to be trusted" in page) == ("†" in cell)


def test_committed_figures_keep_the_identity_of_what_they_are_compared_with(
    published: Any, harness: Any
) -> None:
    found = sorted(harness.RESULTS.glob("published_[!c]*.csv"))
    assert len(found) > 10
    for path in found:
        row = published.ROWS[path.stem.removeprefix("published_")]
        for run in harness.read(path)[0]:
            figures = float(run["published"]), run["published_model"], run["source"]
            assert figures == (row.published, row.model, row.source)
            assert run["title"] == row.title
    assert all(row.model for row in published.ROWS.values())
    # The page is what the CSVs say.
    page = (harness.RESULTS / "published.md").read_text("utf-8")
    assert page == published.table(harness.RESULTS)


def test_the_toy_of_every_row_is_small(published: Any, tmp_path: Path) -> None:
    from pyro_vaes.runs.build import build

    for name, row in published.ROWS.items():
        toy = published.toy(row, tmp_path / "toy.npz")
        config = published.configurations(toy, 0, tmp_path)[-1]
        vae, _ = build(config, published.pv.load_data(config.data.source))
        assert sum(p.numel() for p in vae.parameters()) < 30_000, name
        assert config.parts.prior_flows <= 2 and config.training.mode == "traced", name


@pytest.mark.slow
def test_a_run_cut_by_its_budget_goes_on_as_if_it_had_not_been(
    published: Any, tmp_path: Path
) -> None:
    import pyro_vaes as pv

    source = str(published.toy_data(tmp_path / "toy.npz"))
    row = published.Row("toy", "mnist-vamp", {**published.TOY, "data": source}, None)
    configs, data = published.configurations(row, 0, tmp_path), pv.load_data(source)
    for _ in range(2):
        _, history = published.trained(configs, data, tmp_path / "cut", 1e-9)
        assert history.stopped == "time"
    assert history.epochs == 2
    _, history = published.trained(configs, data, tmp_path / "cut")
    vae, whole = published.trained(configs, data, tmp_path / "whole")
    figures = ("train_loss", "val_elbo", "val_kl", "kl_weight")
    assert [[r[k] for k in figures] for r in history.records] == [
        [r[k] for k in figures] for r in whole.records
    ]
    assert whole.best_epoch == history.best_epoch
    # What is evaluated are the weights kept, and once.
    found = published.evaluated(vae, data, whole, tmp_path / "whole", 10)
    again, _ = published.trained(configs, data, tmp_path / "whole")
    assert published.evaluated(again, data, whole, tmp_path / "whole", 10) == found
    assert pv.evaluate(again, data.test, num_samples=10).nll == found["nll"]


def test_a_restarted_run_is_one_run_cut_or_not(published: Any, tmp_path: Path) -> None:
    import pyro_vaes as pv

    source = str(published.toy_data(tmp_path / "toy.npz"))
    flags = {**published.TOY, "data": source, "schedule": "cosine"}
    row = published.Row("toy", "mnist-standard", flags, None, restarts=(4,))
    configs, data = published.configurations(row, 0, tmp_path), pv.load_data(source)
    _, whole = published.trained(configs, data, tmp_path / "whole")
    rates = [record["learning_rate"] for record in whole.records]
    assert len(rates) == 6
    # Falls to nearly zero in four epochs, then continues from the middle of six.
    assert rates[:4] == sorted(rates[:4], reverse=True) and rates[4] > 2 * rates[3] > 0
    stopped = None
    for _ in range(10):
        _, cut = published.trained(configs, data, tmp_path / "cut", 1e-9)
        stopped = cut.stopped
        if stopped != "time":
            break
    assert stopped == "epochs"
    assert [r["val_elbo"] for r in cut.records] == [r["val_elbo"] for r in whole.records]


def test_a_row_may_start_from_another_one(published: Any, tmp_path: Path) -> None:
    import pyro_vaes as pv
    from pyro_vaes.runs.build import build

    source = str(published.toy_data(tmp_path / "toy.npz"))
    flags = {**published.TOY, "data": source, "warmup_epochs": 0.0}
    first = published.Row("toy", "mnist-vamp", flags, None)
    data = pv.load_data(source)
    base, base_history = published.trained(
        published.configurations(first, 0, tmp_path), data, tmp_path / "a"
    )
    further = {**flags, "posterior": "full_normal", "train_samples": 2, "epochs": 2}
    second = dataclasses.replace(first, flags=further)
    configs = published.configurations(second, 0, tmp_path)
    vae, _ = build(configs[0], data)
    published.begin_at(vae, tmp_path / "a")
    # A full covariance begins as the diagonal one: the same model until it is trained.
    x = data.test.x
    assert torch.equal(vae.posterior(x).mean, base.posterior(x).mean)
    torch.testing.assert_close(
        vae.prior().log_prob(vae.encode(x)), base.prior().log_prob(base.encode(x))
    )
    # Trained by next to nothing, it still validates as the one it starts from.
    still = dataclasses.replace(first, flags={**further, "train_samples": 1, "learning_rate": 1e-9})
    configs_of_still = published.configurations(still, 0, tmp_path)
    _, history = published.trained(configs_of_still, data, tmp_path / "b", start=tmp_path / "a")
    assert history.records[0]["val_elbo"] == pytest.approx(
        base_history.records[base_history.best_epoch - 1]["val_elbo"], abs=1e-3
    )
    _, whole = published.trained(configs, data, tmp_path / "whole", start=tmp_path / "a")
    for _ in range(3):  # Resuming does not start again.
        _, cut = published.trained(configs, data, tmp_path / "cut", 1e-9, tmp_path / "a")
    assert [r["val_elbo"] for r in cut.records] == [r["val_elbo"] for r in whole.records]
    with pytest.raises(ValueError, match="all weights of"):
        published.begin_at(base, tmp_path / "whole")


def test_the_curve_of_a_bound_without_a_kl_weight(
    published: Any, harness: Any, tmp_path: Path
) -> None:
    import pyro_vaes as pv

    records = [
        {"epoch": epoch, "val_elbo": -90.0 + epoch, "train_loss": 91.0, "seconds": 2.0}
        for epoch in (1, 2)
    ]
    name = "mnist-many-samples"
    history = pv.History(records, 2)
    published.curve(tmp_path, name, {0: history}, harness.header())
    points, _ = harness.read(tmp_path / f"published_curve_{name}.csv")
    assert [(p["val_neg_elbo"], p["kl_weight"]) for p in points] == [("89", ""), ("88", "")]


@pytest.mark.slow
def test_published_toy_run_writes_figures_curve_and_table(tmp_path: Path, harness: Any) -> None:
    flags = ["mnist-standard", "--toy", "--seeds", "2", "--out", str(tmp_path)]
    assert "| toy, mnist-standard | - |" in run("published.py", *flags)
    records, facts = harness.read(tmp_path / "published_mnist-standard.csv")
    assert [record["seed"] for record in records] == ["0", "1"]
    assert facts["command"] == "python benchmarks/published.py mnist-standard --toy --seeds 2"
    points, _ = harness.read(tmp_path / "published_curve_mnist-standard.csv")
    assert [point["epoch"] for point in points] == list("123456" * 2)
    assert (tmp_path / "published_mnist-standard.png").stat().st_size > 1000
    best = int(records[1]["best_epoch"]) - 1
    assert points[6 + best]["val_neg_elbo"] == records[1]["val_neg_elbo"]
    assert "all epochs" in (tmp_path / "published.md").read_text()
    # The same command again trains and evaluates nothing.
    run("published.py", *flags)
    assert harness.read(tmp_path / "published_mnist-standard.csv")[0] == records


@pytest.mark.slow
def test_loading_is_measured_for_each_kind_of_file(tmp_path: Path, harness: Any) -> None:
    run("loading.py", "--toy", "--out", str(tmp_path))
    records, _ = harness.read(tmp_path / "loading.csv")
    assert {"float32 .npy", "bytes .npy", ".npz", ".csv"} <= {record["file"] for record in records}
    assert {record["way"] for record in records} == {"plain", "load_data", "in files"}
    assert all(float(r["time over plain"]) > 0 for r in records if r["way"] == "load_data")
