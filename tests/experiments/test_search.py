"""A search tries what it is asked to, chooses by validation, and looks at the test rows once."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.cli.app import main
from pyro_vaes.experiments import runs
from pyro_vaes.experiments.searching import search
from pyro_vaes.experiments.searching.points import (
    Candidate,
    Range,
    Search,
    points_of,
    rungs_of,
)
from pyro_vaes.runs import summary
from pyro_vaes.runs.build import build
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import read_config
from pyro_vaes.storage.tensors import named_tensors

QUICK = ("--recipe", "course", "--hidden-dims", "8", "--epochs", "20", "--batch-size", "500")
QUICK += ("--samples", "30", "--proposal", "encoder", "--workers", "1")


def run(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


# --- points and rungs -----------------------------------------------------------------------------


def test_a_grid_is_every_point_once():
    points = points_of({"prior": ("standard", "vamp"), "latent_dim": (2, 4, 8)}, None)
    assert len(points) == len({str(point) for point in points}) == 6
    assert points[0] == {"prior": "standard", "latent_dim": 2}


def test_random_points_lie_in_their_ranges_and_are_spread_evenly_in_the_logarithm():
    axes = {"learning_rate": Range(1e-4, 1e-2, False), "latent_dim": Range(2, 5, True)}
    points = points_of(axes, 400)
    rates = np.array([point["learning_rate"] for point in points])
    assert len(points) == 400 and rates.min() >= 1e-4 and rates.max() <= 1e-2
    # Half are below the geometric mean, to four standard errors; evenly drawn ones would be 9 %.
    assert abs((rates < 1e-3).mean() - 0.5) < 4 * 0.5 / 20
    assert {point["latent_dim"] for point in points} == {2, 3, 4, 5}
    assert points == points_of(axes, 400)
    zero = points_of({"weight_decay": Range(0.0, 1.0, False)}, 200)
    assert abs(np.mean([point["weight_decay"] for point in zero]) - 0.5) < 4 * 0.29 / 14


def test_random_points_of_a_small_grid_end_where_it_does():
    points = points_of({"prior": ("standard", "vamp"), "latent_dim": (2, 4)}, 50)
    assert len(points) == 4


def test_a_range_has_no_grid():
    with pytest.raises(ConfigError, match=r"'--learning-rate': expected --num"):
        points_of({"learning_rate": Range(0.1, 1.0, False)}, None)


@pytest.mark.parametrize(
    ("count", "epochs", "factor", "rungs"),
    [
        (2, 300, 3, [(2, 300)]),
        (9, 300, 3, [(9, 100), (3, 300)]),
        (20, 300, 3, [(20, 33), (7, 100), (3, 300)]),
        (500, 300, 3, [(500, 33), (167, 100), (56, 300)]),
        (20, 25, 3, [(20, 25)]),
        (20, 300, 1, [(20, 300)]),
        (8, 40, 2, [(8, 10), (4, 20), (2, 40)]),
    ],
)
def test_rungs_multiply_epochs_and_keep_two_to_the_end(count, epochs, factor, rungs):
    assert rungs_of(count, epochs, factor) == rungs


def test_candidates_are_ranked_by_how_far_they_came_then_by_validation():
    def candidate(rung, elbo, nll=None):
        figures = {"nll": nll, "share_unreliable": 0.0}
        return Candidate({}, rung, result={"training": {"val_elbo": elbo}, "figures": figures})

    best, close = candidate(1, -99.0, nll=90.0), candidate(1, -95.0, nll=91.0)
    early, failed = candidate(0, -50.0, nll=40.0), Candidate({}, 1, result={"error": "NaN"})
    unknown = candidate(1, -90.0, nll=None)
    ranked = search._ranked([early, failed, close, best, unknown], 1)
    assert ranked[:2] == [best, close] and ranked[-1] is early
    assert math.isinf(failed.score(True)) and math.isinf(unknown.score(True))
    # Before the last rung the ELBO decides, whatever a few draws say of log p(x).
    equals = [candidate(0, -3.0, nll=1.0), candidate(0, -2.0, nll=2.0)]
    assert search._ranked(equals, 1) == equals[::-1] and search._ranked(equals, 0) == equals


def test_each_rung_keeps_the_best_by_what_it_is_said_to_be_ranked_by(tmp_path, monkeypatch):
    def performed(runs_, **_options):
        # The smaller z, the better the ELBO and the worse log p(x).
        sizes = {run.key: run.config.network.latent_dim for run in runs_}
        figures = {key: {"nll": -size, "share_unreliable": 0.0} for key, size in sizes.items()}
        return {k: {"figures": figures[k], "training": {"val_elbo": -n}} for k, n in sizes.items()}

    seen = []
    monkeypatch.setattr(search, "run_all", performed)
    monkeypatch.setattr(search, "write_table", lambda asked, order, rungs: seen.extend(order))
    monkeypatch.setattr(search, "_best", lambda *_: {})
    monkeypatch.setattr(search, "write_page", lambda *_: tmp_path)
    axes = {"latent_dim": (2, 3, 4, 5, 6, 7)}
    asked = Search(axes, {"epochs": 60}, tmp_path / "out", tmp_path / "runs", recipe="course")
    search.search(asked, lambda _line: None)
    assert [c.point["latent_dim"] for c in seen] == [3, 2, 4, 5, 6, 7]


def test_a_search_makes_of_data_and_options_what_train_makes_of_them(tmp_path):
    """Conditions make a model conditional, and a warm-up in steps fits each rung."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(100, 3)), columns=["a", "b", "age"])
    table.assign(site=random.choice(["x", "y"], 100)).to_csv(tmp_path / "t.csv", index=False)
    data = pv.load_data(tmp_path / "t.csv", label_column=["site", "age"])
    asked = Search({}, {"warmup_steps": 20, "epochs": 30}, tmp_path, tmp_path, recipe="course")
    config, remarks = asked.configured({}, data=data)
    assert config.data.conditional and config.objective.warmup_steps == 20
    assert any("site, age" in line for line in remarks)
    # 60 rows train, in one step an epoch.
    assert asked.config({}, 10, data).objective.warmup_steps == 5


def test_what_train_would_remark_is_said(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.normal(size=(60, 3)).astype("float32"))
    options = {"data": str(tmp_path / "x.npy"), "epochs": 2, "pseudo_inputs": "mean"}
    asked = Search({"prior": ("standard", "vamp")}, options, tmp_path, tmp_path)
    candidates = search._candidates(asked)
    said = search._checked(asked, pv.load_data(tmp_path / "x.npy"), candidates)
    effect = "--pseudo-inputs has no effect with --prior standard. (1 of 2 configurations)"
    assert effect in said and any(line.endswith("training has 2.") for line in said)


def test_a_start_that_is_kept_has_a_validation_elbo_too(tmp_path):
    """The recipe for tables keeps its start if no epoch is better, which no record describes."""
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 2)) @ random.normal(size=(2, 4)) + random.normal(size=(120, 4))
    np.save(tmp_path / "x.npy", x.astype("float32"))
    asked = {"data": str(tmp_path / "x.npy"), "epochs": 2, "learning_rate": 1.0, "latent_dim": 2}
    asked |= {"ema_decay": 0.0, "hidden_dims": (8,), "transform": "none"}
    config = Search({}, asked, tmp_path, tmp_path, recipe="table").config({})
    data = pv.load_data(tmp_path / "x.npy")
    run_ = runs.Run(config, runs.contents_of(data), tmp_path / "runs", 30, (), "encoder", "val")
    (found,) = runs.perform((run_,))
    assert found["training"]["best_epoch"] == 0
    close = found["figures"]["elbo_se"]
    assert found["training"]["val_elbo"] == pytest.approx(found["figures"]["elbo"], abs=close)


def test_an_option_without_effect_makes_no_other_model(tmp_path):
    axes = {"prior": ("standard", "vamp"), "prior_components": (5, 10)}
    asked = Search(axes, {}, tmp_path, tmp_path, recipe="course")
    assert [c.point for c in search._candidates(asked)] == [
        {"prior": "standard"},
        {"prior": "vamp", "prior_components": 5},
        {"prior": "vamp", "prior_components": 10},
    ]


def test_a_shorter_rung_shortens_the_warmup_that_was_asked_for(tmp_path):
    asked = Search({}, {"warmup_epochs": 60.0, "epochs": 90}, tmp_path, tmp_path, recipe="course")
    assert asked.config({}).objective.warmup_epochs == 60
    short = asked.config({}, 30)
    assert (short.training.epochs, short.objective.warmup_epochs) == (30, 15)


# --- the whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search, what it evaluated, and the command."""
    folder = tmp_path_factory.mktemp("search")
    rows = {"runs": [], "summary": []}
    patch = pytest.MonkeyPatch()
    for name, module in (("runs", runs), ("summary", summary)):

        def counted(vae, split, *args, _name=name, _real=module.evaluate, **options):
            rows[_name].append(len(split))
            return _real(vae, split, *args, **options)

        patch.setattr(module, "evaluate", counted)
    command = ["search", *QUICK, "--prior", "standard,vamp", "--latent-dim", "2,3"]
    command += ["--learning-rate", "0.01,1e-5", "--factor", "2"]
    command += ["--out", folder / "out", "--runs", folder / "runs"]
    assert run(*command) == 0
    yield folder / "out", rows, command
    patch.undo()


def test_the_winner_has_the_best_validation_and_the_test_is_looked_at_once(searched):
    out, rows, _ = searched
    table = pd.read_csv(out / "search.csv")
    # 8 models for 10 epochs, 4 for 20.
    assert sorted(table["epochs"]) == [10] * 4 + [20] * 4
    assert table["epochs"].is_monotonic_decreasing
    last = table[table["epochs"] == 20]
    assert last["val_nll"].iloc[0] == last["val_nll"].min()
    assert table[table["epochs"] == 10]["val_nll"].isna().all()
    # A rate of 1e-5 learns nothing in so few steps.
    assert (last["learning_rate"] == 0.01).all()
    # 350 rows validate, 447 test.
    assert rows["runs"] == [350] * 12 and rows["summary"] == [447]


def test_the_best_run_is_ready_to_use(searched, capsys):
    out, _, _ = searched
    best = out / "best"
    vae = pv.load(best)
    test = pv.load_data("digits").test
    found = json.loads((best / "summary.json").read_text())
    assert found["split"] == "test" and found["epochs"] == 20
    again = pv.evaluate(vae, test, num_samples=30, proposal="encoder")
    assert again.nll == pytest.approx(found["nll"], abs=1e-6)
    assert run("sample", best, "--num", 4) == 0
    assert run("train", "--resume", "--out", best) == 0


def test_the_best_run_is_the_one_that_train_would_make(searched):
    best = searched[0] / "best"
    config = read_config(best)
    torch.manual_seed(config.training.seed)
    data = pv.load_data("digits")
    vae, _ = build(config, data)
    train(vae, data, config, progress=False)
    ours, theirs = named_tensors(vae), named_tensors(pv.load(best))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_page_says_how_to_get_there(searched):
    out, _, _ = searched
    page = (out / "search.md").read_text()
    assert "8 configurations: 8 for 10 epochs, then 4 for 20 epochs." in page
    assert "## The best: --prior " in page and "NOT TO BE TRUSTED" in page
    assert page.count("| 20 |") == 4 and (out / "search.png").stat().st_size > 5000


def test_the_same_command_trains_and_looks_no_more(searched):
    out, rows, command = searched
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".png"}
    counts = {name: len(found) for name, found in rows.items()}
    assert run(*command) == 0
    assert {name: len(found) for name, found in rows.items()} == counts
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("options", "again"),
    [({}, False), ({"samples": 40}, True), ({"proposal": "auto"}, True)],
)
def test_other_draws_make_other_test_figures(options, again, tmp_path, monkeypatch):
    """The folder of the best run has figures as the last command asks, not those of the first."""
    for folder in (tmp_path / "run", tmp_path / "out" / "best"):
        folder.mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", search.WEIGHTS):
            (folder / name).touch()
    first = {"num_samples": 30, "asked_proposal": "encoder"}
    made = tuple(first.values())
    monkeypatch.setattr(search, "finished", lambda *args: first if args[2:] == made else None)
    monkeypatch.setattr(search, "load", lambda _: None)
    monkeypatch.setattr(search, "summarise", lambda *args: {"draws": args[-2:]})
    given = {"samples": 30, "proposal": "encoder", **options}
    asked = Search({}, {}, tmp_path / "out", tmp_path, **given)
    run_ = SimpleNamespace(folder=tmp_path / "run", config=asked.config({}))
    training = {"best_epoch": 1, "stopped": "epochs", "mode": "eager"}
    found = search._best(asked, None, Candidate({}, run=run_, result={"training": training}))
    assert found == ({"draws": (asked.samples, asked.proposal)} if again else first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", "standard,none"], "'--prior': expected one of"),
        (["--prior", "standard"], "two configurations at least"),
        (["--latent-dim", "2,2"], "each value once; got 2,2"),
        (["--latent-dim", "2..8"], "expected --num with a range"),
        (["--latent-dim", "8..2", "--num", "3"], "LOW below HIGH; got 8..2"),
        (["--latent-dim", "0..8", "--num", "3"], "'--latent-dim': expected a whole number"),
        (["--latent-dim", "2,4", "--conditional-prior", "true"], "--latent-dim 2: Invalid value"),
        (["--beta", "1,2", "--alpha", "0.5"], "--beta 1.0: "),
        (["--latent-dim", "2,4", "--data", "no.csv"], "'--data' (no.csv)"),
        (["--latent-dim", "2,4", "--seed", "0,1"], "'--seed': expected a whole number"),
        (["--latent-dim", "2,4", "--conditional", "true,false"], "'--conditional': expected true"),
        (["--latent-dim", "2,4", "--warmup-epochs", "20"], "'--warmup-epochs'"),
        (["--latent-dim", "2,4", "--num", "1"], "--num"),
        (["--latent-dim", "2,4", "--mode", "cuda_graph", "--device", "cpu"], "'--mode': expected"),
    ],
)
def test_what_cannot_be_searched_is_refused_and_nothing_written(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run("search", *QUICK, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_of_rows_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = np.random.default_rng(0).normal(size=(40, 3))
    pd.DataFrame(table, columns=["a", "b", "w"]).abs().to_csv("x.csv", index=False)
    rows = ["--data", "x.csv", "--weights", "w", "--latent-dim", "1,2"]
    assert run("search", *rows, "--out", "out") == 2
    assert "'--weights': expected none with search" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_run_of_the_users_own_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "best").mkdir(parents=True)
    assert run("search", *QUICK, "--latent-dim", "2,4", "--out", "mine") == 2
    assert "whose best/ would be overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "best"]


def test_sizes_with_commas_go_between_slashes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        search, "search", lambda asked_, say: asked.append(asked_) or tmp_path / "x"
    )
    (tmp_path / "x").write_text("page")
    assert run("search", "--hidden-dims", "8/8,16", "--ema-decay", "0..0.9", "--num", 4) == 0
    assert asked[0].axes == {"hidden_dims": ((8,), (8, 16)), "ema_decay": Range(0.0, 0.9, False)}
