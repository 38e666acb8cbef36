"""Studies: their grids, what is claimed, and that no run is done twice."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from registry import make_vae
from scipy import stats

import pyro_vaes as pv
from pyro_vaes.cli.app import main
from pyro_vaes.course.studies import conditional, depth
from pyro_vaes.course.studies.base import course_study
from pyro_vaes.course.studies.posteriors import families, fitted_banana
from pyro_vaes.course.studies.table import BEYOND, STUDIES
from pyro_vaes.experiments import measures, pages, schedule
from pyro_vaes.experiments import runs as study_runs
from pyro_vaes.experiments.claims import Comparison, claims, holm
from pyro_vaes.experiments.outcomes import Difference, Outcome
from pyro_vaes.experiments.page import Page
from pyro_vaes.experiments.pages import Settings, write_pages
from pyro_vaes.experiments.study import Cell, configuration
from pyro_vaes.runs import run
from pyro_vaes.runs.build import build
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.schema import digest, flatten
from pyro_vaes.storage.files import FolderInUseError, RunFolderError
from pyro_vaes.training.history import NonFiniteError

ALL = {**STUDIES, **BEYOND}


def configured(cell: Cell, seed: int = 0, **options: Any) -> Any:
    cell = dataclasses.replace(cell, options={**cell.options, **options})
    return configuration(STUDIES["vae"], cell, "digits", "data", "levels", seed, quick=False)


# --- the grids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("quick", [True, False])
def test_every_cell_of_a_grid_is_a_model_of_its_own(name, quick):
    data = pv.load_data("digits")
    cells = ALL[name].grid(data, quick)
    configs = [configured(cell) for cell in cells]
    assert len({digest(config) for config in configs}) == len(configs)
    assert len({cell.label for cell in cells}) == len(cells)
    assert ALL[name].reference in ("", *(cell.label for cell in cells))
    assert set(ALL[name].measures) <= measures.MEASURES.keys()
    for config in configs[:: len(configs) if quick else 4]:
        build(config, data)


def test_grids_are_those_of_the_assignment():
    data = pv.load_data("digits")
    betas = {cell.factors["beta"] for cell in STUDIES["beta"].grid(data, False)}
    assert betas >= {0, 0.5, 1, 10}
    counts = {cell.factors["K"] for cell in STUDIES["components"].grid(data, False)}
    assert counts == {0, 1, 10, 50, 200, 500}  # 0: the standard prior


# --- claims -------------------------------------------------------------------------------------


def outcome(unreliable: float = 0.0, **log_marginal: Any) -> Outcome:
    """An outcome of cells with these log-likelihoods, a row for each seed."""
    values = {(k, s): np.array(v) for k, rows in log_marginal.items() for s, v in enumerate(rows)}
    table = pd.DataFrame(
        [
            {"label": k, "seed": s, "nll": -v.mean(), "share_unreliable": unreliable}
            for (k, s), v in values.items()
        ]
    )
    data: Any = None
    return Outcome("test", data, table, values, {})


def two_cells(gap: float, seeds: int, spread: float = 0.1) -> dict[str, list[np.ndarray]]:
    """Two models that differ by a gap, which varies over the seeds, on the same test rows."""
    generator = np.random.default_rng(0)
    common = 50 * generator.normal(size=400)  # How hard each datum is: the same for both.
    shifts = gap + spread * generator.normal(size=seeds)
    a = [common + generator.normal(size=400) for _ in range(seeds)]
    return {
        "a": a,
        "b": [v + shift + generator.normal(size=400) for v, shift in zip(a, shifts, strict=True)],
    }


def test_a_comparison_is_the_mean_over_rows_for_each_seed():
    cells = two_cells(0.5, 6)
    o = outcome(**cells)
    gaps = np.stack(cells["b"]) - np.stack(cells["a"])
    gap = o.paired("a", "b")
    assert gap.mean == pytest.approx(gaps.mean())
    assert gap.seeds == 6
    assert gap.error == pytest.approx(gaps.mean(1).std(ddof=1) / math.sqrt(6))
    assert gap.rows == pytest.approx(gaps.mean(0).std(ddof=1) / 20)
    assert gap.p == pytest.approx(stats.ttest_1samp(gaps.mean(1), 0.0).pvalue)
    assert gap.error < 0.2 < np.std(cells["a"][0]) / 20  # What an unpaired comparison would have.
    assert o.compared("a", "b").startswith("NLL is 0.")
    assert o.compared("a", "b").endswith("nats higher with a than with b")


def test_p_values_at_the_edges():
    assert Difference.of(np.array([0.3])).p == 1  # One seed says nothing about others.
    assert Difference.of(np.zeros(5)).p == 1
    assert Difference.of(np.full(5, 0.25)).p == 0
    # Two standard errors of three seeds are no discovery.
    assert Difference(2.0, 1.0, 3).p == pytest.approx(0.18, abs=0.01)


def test_claims_hold_their_level():
    """Of studies where nothing differs, at most one in twenty claims anything."""
    generator = np.random.default_rng(0)
    comparisons = [Comparison("a", "b"), Comparison("a", "c"), Comparison("b", "c")]
    claimed = 0
    for _ in range(200):
        cells = {k: generator.normal(size=(5, 1)) + generator.normal(size=(1, 20)) for k in "abc"}
        claimed += any(c.holds for c in claims(outcome(**cells), comparisons))
    assert claimed <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)
    assert claimed > 0


def test_what_differs_is_claimed_from_five_seeds_on():
    (claim,) = claims(outcome(**two_cells(0.5, 5)), [Comparison("a", "b")])
    assert claim.holds
    assert str(claim).endswith("over 5 seeds, corrected: **claimed**.")
    (few,) = claims(outcome(**two_cells(0.5, 4)), [Comparison("a", "b")])
    assert not few.holds
    assert str(few).endswith("not tested: 4 of at least 5 seeds.")
    (small,) = claims(outcome(**two_cells(0.01, 5)), [Comparison("a", "b")])
    assert str(small).endswith("**no difference is claimed**.")


@pytest.mark.parametrize("share", [0.06, math.nan])
def test_what_is_unreliable_supports_no_claim(share):
    o = outcome(unreliable=share, **two_cells(0.5, 5))
    (claim,) = claims(o, [Comparison("a", "b")])
    assert not claim.holds
    assert "not tested: *a* and *b* †" in str(claim)
    assert o.marked("a") == "a †"
    assert not outcome(unreliable=0.05, **two_cells(0.5, 5)).untrusted("a")


def test_the_best_is_chosen_on_validation():
    o = outcome(**two_cells(0.5, 5))
    o.table["val_elbo"] = o.table["label"].map({"a": -1.0, "b": -2.0})
    assert o.chosen(["b", "a", "absent"]) == "a"
    assert o.chosen(["absent"]) is None
    (claim,) = claims(o, [Comparison(("a", "b"), "b"), Comparison("absent", "b")])
    assert (claim.a, claim.b) == ("a", "b")


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 1.0, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([]) == []


def test_a_study_names_three_comparisons_at_most():
    for study in ALL.values():
        assert len(study.comparisons) <= 3
    four = (Comparison("a", "b"),) * 4
    with pytest.raises(ValueError, match="at most 3 comparisons in a study; got 4"):
        dataclasses.replace(STUDIES["vae"], comparisons=four)


@pytest.mark.parametrize("name", ALL)
def test_the_cells_that_comparisons_name_are_there(name):
    labels = {cell.label for cell in ALL[name].grid(pv.load_data("digits"), False)}
    for comparison in ALL[name].comparisons:
        for side in (comparison.a, comparison.b):
            assert {side} <= labels if isinstance(side, str) else set(side) <= labels


def test_levels_are_compared_at_equal_numbers_of_parameters():
    data, study = pv.load_data("digits"), ALL["depth"]
    counts = []
    for cell in study.grid(data, False):
        config = configuration(study, cell, "digits", "data", "levels", 0, False)
        assert config.network.latent_dim == 16
        counts.append(sum(p.numel() for p in build(config, data)[0].parameters()))
    assert max(counts) < 1.01 * min(counts)


def test_draws_given_the_top_level_share_it(monkeypatch):
    link = pv.NormalPosterior(pv.MLP(2, [8]), 3)
    prior = pv.ChainPrior(pv.MixturePrior(2, 3), link)
    vae = make_vae(latent_dim=5)
    vae.prior, seen = prior, []
    monkeypatch.setattr(type(vae), "decode", lambda self, z: seen.append(z) or z)
    depth._given_top(vae)
    (z,) = seen
    assert z.shape == (10, 5)
    assert torch.allclose(z[:, :2], z[:1, :2].expand(10, 2))
    assert (z[:, 2:].std(0) > 0.1).all()


# --- measures -----------------------------------------------------------------------------------


def test_reliability_of_events_that_come_true_as_often_as_said(float64):
    probability = torch.rand(200_000)
    happened = torch.rand(200_000) < probability
    found = measures.reliability(probability, happened)
    assert found["calibration_error"] < 0.01
    assert sum(found["counts"]) == 200_000
    half = measures.reliability(probability, torch.rand(200_000) < 0.5)
    # |p - 1/2| averaged over ten bins of p.
    assert half["calibration_error"] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "likelihood", ["categorical", "ordinal", "beta_binomial", "discretized_logistic"]
)
def test_the_calibration_of_every_likelihood_with_levels_is_known(likelihood):
    data = pv.load_data("digits")
    vae, _ = build(configured(Cell("", {"likelihood": likelihood})), data)
    found = measures.calibration(vae, data, 1)
    assert sum(found["counts"]) == data.test.x.numel()
    # What the decoder says of each pixel, summed up by drawing from it.
    torch.manual_seed(0)
    with torch.no_grad():
        draws = vae.p_x(vae.q_z(data.test.x).sample()).sample()
    said = np.average(found["expected"], weights=found["counts"])
    assert said == pytest.approx((draws >= 9).double().mean().item(), abs=0.02)


def test_the_kl_of_levels_adds_up_and_one_level_has_it_all():
    data = pv.load_data("digits")
    options = {"levels": (2, 2, 3), "latent_dim": 7, "hidden_dims": (8,), "input_scaling": "auto"}
    vae, _ = build(configured(Cell("", options)), data)
    with torch.no_grad():  # Away from the start, where each level is at its prior.
        for parameter in vae.posterior.links.parameters():
            parameter.add_(0.1)
    found = measures.level_kls(vae, data, 100)
    assert list(found) == ["kl_level_1", "kl_level_2", "kl_level_3"]
    seen = pv.evaluate(vae, data.test, num_samples=50, proposal="encoder")
    assert sum(found.values()) == pytest.approx(seen.kl, rel=0.05)
    assert list(found.values()) == pytest.approx(seen.level_kls[::-1], rel=0.15, abs=0.02)
    single, _ = build(configured(Cell("", {"latent_dim": 2, "hidden_dims": (8,)})), data)
    (kl,) = measures.level_kls(single, data, 100).values()
    assert kl == pytest.approx(pv.evaluate(single, data.test, num_samples=50).kl, rel=0.05)


def test_components_that_are_used_are_counted():
    data = pv.load_data("digits")
    vae, _ = build(configured(Cell("", {"prior": "mixture", "prior_components": 5})), data)
    prior: Any = vae.prior
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([9.0, -99, -99, -99, -99]))
    assert measures.components_used(vae, data, 1)["components_used"] == pytest.approx(1)
    with torch.no_grad():  # Five copies of one are one.
        for parameter in prior.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    assert measures.components_used(vae, data, 1)["components_used"] == pytest.approx(1)
    with torch.no_grad():  # Two copies on one side of the codes, three on the other.
        prior.loc.zero_()
        prior.loc[:, 0] = torch.tensor([50.0, 50, -50, -50, -50])
        prior.logits.copy_(torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]).log())
    assert 1.5 < measures.components_used(vae, data, 1)["components_used"] < 2.01


def test_the_banana_has_the_gap_of_its_family():
    diagonal = fitted_banana("diagonal", steps=400)
    assert 0.3 < diagonal.gap < 3
    # The true posterior is a density.
    cell = 25 / 119**2
    assert diagonal.density.sum().item() * cell == pytest.approx(1, abs=0.02)
    # It is its own mirror image, so the best full covariance has no correlation.
    full = fitted_banana("full covariance", steps=400)
    assert full.gap == pytest.approx(diagonal.gap, abs=0.06)
    assert len(families()) == 6


# --- findings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [k for k in ALL if k not in ("vae", "posteriors")])
@pytest.mark.parametrize("seed", [0, 1])
def test_findings_say_only_numbers_of_their_table(name, seed, monkeypatch):
    """Whatever the figures are: for runs that nobody made, and for others with the signs turned."""
    study, data = ALL[name], pv.load_data("digits")
    draw = np.random.default_rng(seed)
    keys = [
        "nll",
        "elbo",
        "kl",
        "reconstruction",
        "nll_train",
        "val_elbo",
        "gap",
        "components_used",
    ]
    keys += ["pseudo_inputs_moved", "generated_accuracy", "class_accuracy_real", *study.columns]
    rows, values = [], {}
    for cell in study.grid(data, False):
        for run_seed in range(3):
            figures = {key: draw.uniform(0, 90) for key in keys}
            figures |= {"share_unreliable": draw.choice([0.0, 0.2]), "pareto_k_median": 0.2}
            log_marginal = -figures["nll"] + draw.normal(size=20)
            figures["nll"] = -log_marginal.mean()
            rows.append({"label": cell.label, "seed": run_seed, **cell.factors, **figures})
            values[cell.label, run_seed] = log_marginal
    o = Outcome(name, data, pd.DataFrame(rows), values, {})
    monkeypatch.setattr(conditional, "_said", lambda o, label: draw.uniform(0, 30, (10, 10)))
    o.shown = pages.table_of(o, study)
    findings = study.findings(o)
    page = Page("", "", o.shown, pages.notes_of(o), [], findings, [], "", "")
    assert page.unfounded() == []
    assert len(findings) >= 2 and "nan" not in " ".join(findings)
    # A number from elsewhere is found.
    assert dataclasses.replace(page, findings=["It is 0.12345 nats."]).unfounded() == ["0.12345"]


# --- running ------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch) -> Settings:
    """A small study of two cells on small data of one's own."""
    x = torch.randint(0, 4, (60, 4, 4)).numpy()
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(60) % 3)
    options = {"epochs": 2, "hidden_dims": (8,), "latent_dim": 2}

    def draw(o: Outcome) -> Any:
        from matplotlib.figure import Figure

        assert o.vae("one").posterior.latent_dim == 2
        assert len(o.history("two")[0]) == 2
        return {"nothing": (Figure(), "nothing")}

    tiny = course_study(
        "Tiny",
        "What?",
        lambda data, quick: [
            Cell("one", options, {"beta": 1}),
            Cell("two", {**options, "beta": 2.0}, {"beta": 2}),
        ],
        draw,
        lambda o: [f"{o.compared('one', 'two')}."],
        {"active_units": "active units", "nll_train": "training NLL"},
        ("training_rows",),
        comparisons=(Comparison("one", "two"),),
    )
    monkeypatch.setitem(STUDIES, "tiny", tiny)
    out, runs = tmp_path / "out", tmp_path / "runs"
    return Settings(
        data=str(tmp_path / "own.npz"),
        seeds=2,
        samples=20,
        proposal="encoder",
        out=out,
        runs=runs,
        workers=1,
    )


def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the trainings from here on."""
    count: list[int] = []
    train = run.train
    monkeypatch.setattr(
        study_runs, "train", lambda *args, **kwargs: count.append(1) or train(*args, **kwargs)
    )
    return count


def test_a_study_writes_table_figures_and_findings_and_runs_nothing_twice(small, monkeypatch):
    count = trained(monkeypatch)
    (path,) = write_pages({"tiny": STUDIES["tiny"]}, small)
    assert len(count) == 4
    text = path.read_text()
    assert Page.read(path.with_suffix(".json")).markdown() == text
    assert text.startswith("# Tiny\n\nWhat?\n\n## Findings\n\n- ")
    assert "![nothing](tiny_nothing.png)" in text
    assert (small.out / "tiny_nothing.png").exists()
    assert "`pyro-vaes study tiny --data" in text
    assert "## Claims" in text and "not tested: " in text
    assert "| † |" not in text and text.count("†") >= 3 and "† Not to be trusted" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    table = pd.read_csv(small.out / "tiny.csv")
    assert list(table["label"]) == ["one", "one", "two", "two"]
    assert list(table["seed"]) == [0, 1, 0, 1]
    assert (table["num_samples"] == 20).all()
    assert {"nll", "elbo", "active_units", "seconds", "nll_train", "beta", "gap"} <= set(table)
    # Each figure is that of the run's own folder.
    vae = pv.load(small.runs / table["run"][0])
    data = pv.load_data(small.data)
    again = pv.evaluate(vae, data.test, num_samples=20, proposal="encoder", train=data.train)
    assert table["nll"][0] == pytest.approx(again.nll, rel=1e-5)
    before = path.read_text(), (small.out / "tiny.csv").read_text()
    write_pages({"tiny": STUDIES["tiny"]}, small)
    assert len(count) == 4
    assert (path.read_text(), (small.out / "tiny.csv").read_text()) == before
    # More samples ask for another evaluation, not for another training; another seed for two.
    write_pages({"tiny": STUDIES["tiny"]}, small._replace(samples=30))
    assert len(count) == 4
    write_pages({"tiny": STUDIES["tiny"]}, small._replace(samples=30, seeds=3))
    assert len(count) == 6


def test_a_killed_study_goes_on_where_it_was(small, monkeypatch):
    undisturbed = small._replace(out=small.out / "a", runs=small.runs / "a")
    disturbed = small._replace(out=small.out / "b", runs=small.runs / "b")
    write_pages({"tiny": STUDIES["tiny"]}, undisturbed)
    measure, count = study_runs._measure, []

    def killed(*args: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(study_runs, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        write_pages({"tiny": STUDIES["tiny"]}, disturbed)
    assert not (disturbed.out / "tiny.csv").exists()
    monkeypatch.setattr(study_runs, "_measure", measure)
    write_pages({"tiny": STUDIES["tiny"]}, disturbed)
    tables = [pd.read_csv(s.out / "tiny.csv") for s in (undisturbed, disturbed)]
    timed = [c for c in tables[0] if "seconds" in c]
    pd.testing.assert_frame_equal(*(table.drop(columns=timed) for table in tables))


def test_workers_find_what_one_process_finds(small):
    write_pages({"tiny": STUDIES["tiny"]}, small)
    several = small._replace(runs=small.runs / "2", out=small.out / "2", workers=2, seeds=1)
    write_pages({"tiny": STUDIES["tiny"]}, several)
    one, two = (pd.read_csv(s.out / "tiny.csv") for s in (small, several))
    assert list(two["nll"]) == [one["nll"][0], one["nll"][2]]


def test_models_of_one_architecture_train_together(small, monkeypatch):
    monkeypatch.setattr(schedule, "_TOGETHER_FROM", 4)
    count = trained(monkeypatch)
    write_pages({"tiny": STUDIES["tiny"]}, small)
    assert not count  # All four went through one program.
    together = pd.read_csv(small.out / "tiny.csv")
    monkeypatch.setattr(schedule, "_TOGETHER_FROM", 99)
    alone = small._replace(runs=small.runs / "alone", out=small.out / "alone")
    write_pages({"tiny": STUDIES["tiny"]}, alone)
    assert len(count) == 4
    figures = ["nll", "elbo", "kl"]
    expected = pd.read_csv(alone.out / "tiny.csv")[figures]
    pd.testing.assert_frame_equal(together[figures], expected, rtol=1e-3, atol=1e-2)
    # A run that trained in company is a run folder like any other.
    evaluated = pv.load(small.runs / together["run"][0])
    assert evaluated.posterior.latent_dim == 2


@pytest.mark.parametrize("last", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_models_that_were_trained_together_are_not_trained_again(small, monkeypatch, last):
    monkeypatch.setattr(schedule, "_TOGETHER_FROM", 4)
    measure, left, count = study_runs._measure, iter(range(last - 1)), trained(monkeypatch)

    def killed(*args: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(study_runs, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        write_pages({"tiny": STUDIES["tiny"]}, small)
    monkeypatch.setattr(study_runs, "_measure", measure)
    monkeypatch.setattr(study_runs, "fit_many", None)
    write_pages({"tiny": STUDIES["tiny"]}, small)
    assert not count and len(pd.read_csv(small.out / "tiny.csv")) == 4


def test_a_study_is_written_by_one_process_and_cleared_of_what_a_killed_one_left(small):
    small.out.mkdir()
    ours, theirs = (small.out / f".partial-1-{name}.png" for name in ("tiny_vae", "beta_tiny"))
    for path in (ours, theirs):
        path.write_bytes(b"half")
    lock = FileLock(small.out / ".lock-tiny")
    with lock, pytest.raises(FolderInUseError, match=r"alone; got \S+tiny, which another one"):
        write_pages({"tiny": STUDIES["tiny"]}, small)
    write_pages({"tiny": STUDIES["tiny"]}, small)
    assert not ours.exists() and theirs.exists()
    assert not list(small.out.glob(".lock*"))


def test_a_run_that_fails_is_told_of_and_the_others_stand(small, monkeypatch):
    def fail(run: Any, data: Any) -> Any:
        if run.config.objective.beta == 2.0 and run.config.training.seed == 1:
            raise NonFiniteError("the value of site 'z' is not finite")
        return train(run, data)

    train = study_runs._train
    monkeypatch.setattr(study_runs, "_train", fail)
    (path,) = write_pages({"tiny": STUDIES["tiny"]}, small)
    assert "No figures: two, seed 1: the value of site 'z' is not finite" in path.read_text()
    assert pd.read_csv(small.out / "tiny.csv")["nll"].isna().tolist() == [False] * 3 + [True]


def test_runs_are_known_by_their_options_and_shared_by_studies(tmp_path):
    runs = {
        digest(configured(cell))
        for name in ("vae", "beta", "priors", "components", "posteriors", "flow_priors")
        for cell in STUDIES[name].grid(pv.load_data("digits"), False)
        if flatten(configured(cell)) == flatten(configured(Cell("VAE", {})))
    }
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "Invalid value for 'NAME': expected one of vae, beta, .*; got 'nonsense'"),
        (["vae", "--seeds", "0"], "--seeds"),
        (["vae", "--data", "absent.npy"], "absent.npy"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["study", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    import re

    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_a_study_says_what_its_data_lack(tmp_path):
    torch.manual_seed(0)
    np.save(tmp_path / "own.npy", torch.randn(50, 3).numpy())
    settings = Settings(data=str(tmp_path / "own.npy"), out=tmp_path, runs=tmp_path)
    with pytest.raises(ConfigError, match="expected data with labels for the study 'conditional'"):
        write_pages({"conditional": STUDIES["conditional"]}, settings)
    with pytest.raises(ConfigError, match="expected data with levels for the study 'info'"):
        write_pages({"info": STUDIES["info"]}, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["own.npy"]


def test_results_survive_a_damaged_file(small):
    write_pages({"tiny": STUDIES["tiny"]}, small)
    run = next(path for path in Path(small.runs).rglob("result.json"))
    whole = json.loads(run.read_text())
    run.write_text("{")
    write_pages({"tiny": STUDIES["tiny"]}, small)
    again = json.loads(run.read_text())
    assert again["figures"] == whole["figures"]


NONSENSE = [
    "[" * 100_000,
    "[]",
    "{}",
    {"figures": {}},
    {"figures": {"num_samples": 20}},
    {"figures": {"num_samples": 20, "nll": "<b>", "elbo": 1.0, "kl": 1.0}},
    {"log_marginal": "text"},
    {"log_marginal": []},
    {"log_marginal": [1.0]},
    {"log_marginal": None},
    {"training": None},
    {"training": {"epochs": "x"}},
    {"measures": {"training_rows": 3}},
    {"measures": []},
    {"versions": None},
    {"evaluate_seconds": "x"},
]


SOME = [pytest.param(n, marks=pytest.mark.slow) if i % 8 else n for i, n in enumerate(NONSENSE)]


@pytest.mark.parametrize("nonsense", SOME, ids=lambda value: str(value)[:40])
def test_results_that_are_nonsense_are_measured_anew(nonsense, small):
    one = small._replace(seeds=1)
    write_pages({"tiny": STUDIES["tiny"]}, one)
    expected = (one.out / "tiny.csv").read_text()
    path = next(Path(one.runs).rglob("result.json"))
    whole = json.loads(path.read_text())
    path.write_text(nonsense if isinstance(nonsense, str) else json.dumps({**whole, **nonsense}))
    write_pages({"tiny": STUDIES["tiny"]}, one)
    found = json.loads(path.read_text())
    assert found["figures"] == whole["figures"]
    assert found["log_marginal"] == whole["log_marginal"]
    assert len((one.out / "tiny.csv").read_text()) == pytest.approx(len(expected), abs=60)


def test_a_study_of_other_data_runs_anew(small, monkeypatch):
    """Whatever their name: the same file with other contents is other data."""
    count = trained(monkeypatch)
    write_pages({"tiny": STUDIES["tiny"]}, small)
    before = pd.read_csv(small.out / "tiny.csv")
    x, y = (np.load(small.data)[name] for name in "xy")
    np.savez(small.data, x=3 - x, y=y)
    write_pages({"tiny": STUDIES["tiny"]}, small)
    assert len(count) == 8
    after = pd.read_csv(small.out / "tiny.csv")
    afresh = small._replace(runs=small.runs / "2", out=small.out / "2")
    write_pages({"tiny": STUDIES["tiny"]}, afresh)
    assert list(after["nll"]) == list(pd.read_csv(afresh.out / "tiny.csv")["nll"])
    assert list(after["nll"]) != list(before["nll"])
    # And the same contents elsewhere are the same data.
    moved = Path(small.data).with_name("moved.npz")
    np.savez(moved, x=x, y=y)
    del count[:]
    write_pages({"tiny": STUDIES["tiny"]}, small._replace(data=str(moved)))
    assert not count
    assert list(pd.read_csv(small.out / "tiny.csv")["nll"]) == list(before["nll"])


@pytest.mark.slow
def test_a_study_of_another_version_runs_anew_and_says_which(small, monkeypatch):
    count = trained(monkeypatch)
    write_pages({"tiny": STUDIES["tiny"]}, small)
    monkeypatch.setattr(study_runs, "__version__", "99.0")
    write_pages({"tiny": STUDIES["tiny"]}, small)
    assert len(count) == 8


def test_the_page_names_the_versions_of_its_runs(small):
    write_pages({"tiny": STUDIES["tiny"]}, small)
    first, second = sorted(Path(small.runs).rglob("result.json"))[:2]
    for path, version in ((first, "1.0"), (second, "2.0")):
        result = json.loads(path.read_text())
        result["versions"]["torch"] = version
        path.write_text(json.dumps(result))
    (page,) = write_pages({"tiny": STUDIES["tiny"]}, small)
    assert f"torch 1.0 and 2.0 and {torch.__version__}" in page.read_text()
    assert {"1.0", "2.0"} < set(pd.read_csv(small.out / "tiny.csv", dtype=str)["torch"])


def test_data_that_change_under_a_study_are_noticed(small, monkeypatch):
    monkeypatch.setattr(study_runs, "data_of", lambda config: pv.load_data("digits"))
    with pytest.raises(RunFolderError, match="have changed since"):
        write_pages({"tiny": STUDIES["tiny"]}, small)


def test_freed_memory_is_kept_where_there_is_a_glibc():
    import subprocess
    import sys

    program = """if True:
        import resource, torch
        from pyro_vaes.runs.memory import keep_freed_memory
        kept = keep_freed_memory()
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for turn in range(2):
            before = faults()
            for _ in range(50):
                torch.ones(1_000_000).exp().sum()
        print(int(kept), faults() - before)
    """
    if sys.platform != "linux":
        pytest.skip("glibc is Linux's")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    kept, faults = map(int, done.stdout.split())
    # 4 MB are a thousand pages: each of the hundred tensors would be allocated again.
    assert not kept or faults < 5000
