"""Training: what is kept, when it stops, and that a resumed run is the same run."""

import copy
import json
import math
import sys
import types

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.tensors import named_tensors
from pyro_vaes.training import checkpoint, run_folder
from pyro_vaes.training.checkpoint import CHECKPOINT
from pyro_vaes.training.history import NonFiniteError
from pyro_vaes.training.run_folder import METRICS, RunFolder
from pyro_vaes.training.validation import validate


def make_vae(prior="standard", seed=0):
    torch.manual_seed(seed)
    posterior = pv.NormalPosterior(pv.MLP(6, [16]), 2)
    priors = {
        "standard": lambda: pv.NormalPrior(2),
        "vamp": lambda: pv.VampPrior(posterior, torch.rand(3, 6)),
        "mixture": lambda: pv.MixturePrior(2, 3),
    }
    likelihood = pv.CategoricalLikelihood(pv.MLP(2, [16]), (6,), 4)
    return pv.VAE(priors[prior](), posterior, likelihood)


def rows(n=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randint(0, 3, (n, 1), generator=generator)
    return (center + torch.randint(0, 2, (n, 6), generator=generator)).float()


TRAIN, VAL = rows(50, 1), rows(30, 2)


def fit(vae, **options):
    # Recorded steps, as in runs of a useful length.
    usual = {"epochs": 6, "batch_size": 16, "progress": False, "mode": "traced"}
    return pv.fit(vae, TRAIN, VAL, **{**usual, **options})


def tensors_equal(a, b):
    a, b = named_tensors(a), named_tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_improves_and_keeps_the_best():
    vae = make_vae()
    history = fit(vae, epochs=40, learning_rate=1e-2)
    losses = [record["val_loss"] for record in history.records]
    assert history.best_val_loss == min(losses) < losses[0] - 1
    assert losses[history.best_epoch - 1] == min(losses)
    # The weights in the VAE are the best ones: they validate to the same figure.
    again = validate(vae, pv.ELBO(), pv.Split(VAL), seed=0)
    assert again["val_loss"] == pytest.approx(history.best_val_loss, abs=1e-5)
    assert again["val_elbo"] == pytest.approx(
        again["val_reconstruction"] - again["val_kl"], abs=1e-6
    )


def test_fit_is_deterministic_and_leaves_the_generators():
    first, second = make_vae(), make_vae()
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(()))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fit(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    torch.manual_seed(6)
    fit(second)
    assert tensors_equal(first, second)
    third = make_vae()
    fit(third, seed=1)
    assert not tensors_equal(first, third)


def test_early_stopping():
    history = fit(make_vae(), epochs=500, patience=3, learning_rate=0.05)
    assert history.stopped == "patience"
    assert history.epochs - history.best_epoch == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamax", "schedule": "cosine", "clip_norm": 1.0},
        {"ema_decay": 0.9, "optimizer": "adamw", "weight_decay": 0.01},
        {"warmup_epochs": 4, "patience": 3},
        {"mode": "eager", "precision": "bf16"},
    ],
)
@pytest.mark.parametrize("prior", ["standard", pytest.param("vamp", marks=pytest.mark.slow)])
def test_resume_is_exact(tmp_path, options, prior, monkeypatch):
    whole = make_vae(prior)
    # The horizon of a schedule is the number of epochs asked for, so both runs ask for eight.
    expected = fit(whole, epochs=8, **options)
    killed, writes = make_vae(prior), 0
    write = RunFolder.write

    class Killed(BaseException):
        pass

    def write_and_die(self, state, improved, ended):
        nonlocal writes
        write(self, state, improved, ended)
        writes += 1
        if writes == 3:
            raise Killed

    monkeypatch.setattr(RunFolder, "write", write_and_die)
    # A checkpoint after each epoch, or after the first one only.
    seconds = 0.0 if prior == "standard" else 1e9
    monkeypatch.setattr(run_folder, "_CHECKPOINT_SECONDS", seconds)
    with pytest.raises(Killed):
        fit(killed, epochs=8, out=tmp_path, **options)
    monkeypatch.setattr(RunFolder, "write", write)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"epoch": 4, "half a li')  # killed while writing the next line
    resumed = make_vae(prior, seed=9)  # its weights come from the checkpoint
    history = fit(resumed, epochs=8, out=tmp_path, resume=True, **options)
    assert tensors_equal(whole, resumed)
    assert [r["val_loss"] for r in history.records] == [r["val_loss"] for r in expected.records]
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, history.epochs + 1))


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_a_precision_is_used_and_its_effect_on_the_bound_noted(mode):
    exact, rough = make_vae(), make_vae()
    assert fit(exact, mode=mode).precision_shift is None
    history = fit(rough, mode=mode, precision="bf16")
    assert not tensors_equal(exact, rough)
    assert 0 < abs(history.precision_shift) < 0.1
    # The note is of the weights that are kept, which stay in float32.
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        here = validate(rough, pv.ELBO(), pv.Split(VAL), seed=0)
    there = validate(rough, pv.ELBO(), pv.Split(VAL), seed=0)
    assert history.precision_shift == pytest.approx(here["val_elbo"] - there["val_elbo"])


def test_resume_of_absent_finished_and_longer_runs(tmp_path):
    out = tmp_path / "run"
    first = make_vae()
    fit(first, epochs=3, out=out, resume=True)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = make_vae()
    history = fit(again, epochs=3, out=out, resume=True)
    assert history.epochs == 3
    assert tensors_equal(first, again)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    longer, whole = make_vae(), make_vae()
    fit(longer, epochs=5, out=out, resume=True)
    fit(whole, epochs=5)
    assert tensors_equal(longer, whole)


def test_a_resumed_run_takes_the_threads_it_had(tmp_path):
    """Sums are split by thread, so that rounding depends on their number."""
    used = []

    def note(*_):
        used.append(torch.get_num_threads())

    def watched(**options):
        vae = make_vae()
        vae.posterior.register_forward_pre_hook(note)
        return fit(vae, out=tmp_path / "run", mode="eager", **options)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert watched(epochs=1).threads == 2
        torch.set_num_threads(1)
        assert watched(epochs=2, resume=True).threads == 2
        assert used[-1] == 2 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_other_runs_are_refused(tmp_path):
    fit(make_vae(), epochs=2, out=tmp_path)
    with pytest.raises(RunFolderError, match="which holds files"):
        fit(make_vae(), epochs=2, out=tmp_path)
    with pytest.raises(RunFolderError, match="learning_rate"):
        fit(make_vae(), epochs=4, out=tmp_path, resume=True, learning_rate=0.5)
    with pytest.raises(RunFolderError, match="data"):
        pv.fit(
            make_vae(),
            VAL,
            TRAIN,
            epochs=4,
            batch_size=16,
            mode="traced",
            out=tmp_path,
            resume=True,
            progress=False,
        )
    with pytest.raises(RunFolderError, match="architecture"):
        fit(make_vae("vamp"), epochs=4, out=tmp_path, resume=True)


def test_interrupt_saves_and_resumes(tmp_path, monkeypatch):
    whole = make_vae()
    fit(whole, epochs=5)
    vae, steps = make_vae(), 0
    update = pv.FastSVI.update

    def interrupted(self, *args):
        nonlocal steps
        steps += 1
        if steps == 10:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(pv.FastSVI, "update", interrupted)
    assert fit(vae, epochs=5, out=tmp_path).stopped == "interrupted"
    monkeypatch.setattr(pv.FastSVI, "update", update)
    resumed = make_vae()
    assert fit(resumed, epochs=5, out=tmp_path, resume=True).stopped == "epochs"
    assert tensors_equal(whole, resumed)


def test_a_run_out_of_time_stops_after_an_epoch_and_goes_on_from_there(tmp_path):
    whole = make_vae()
    expected = fit(whole, epochs=4)
    for epochs in (1, 2, 3):
        vae = make_vae()
        history = fit(vae, epochs=4, out=tmp_path, resume=True, minutes=1e-9)
        assert (history.stopped, history.epochs) == ("time", epochs)
        assert tensors_equal(vae, pv.load(tmp_path))
    # The last epoch is an end of its own; a run with time left ends by itself.
    assert fit(vae, epochs=4, out=tmp_path, resume=True, minutes=1e-9).stopped == "epochs"
    assert tensors_equal(whole, vae)
    assert fit(make_vae(), epochs=4, minutes=60).stopped == expected.stopped == "epochs"
    for minutes in (0, math.nan):
        with pytest.raises(ValueError, match="minutes above 0"):
            fit(make_vae(), minutes=minutes)


def test_steps_are_recorded_from_the_number_on_at_which_it_pays():
    assert fit(make_vae(), epochs=49, patience=1, learning_rate=1.0, mode="auto").mode == "eager"
    assert fit(make_vae(), epochs=50, patience=1, learning_rate=1.0, mode="auto").mode == "traced"


def test_batch_norms_are_not_recorded():
    """Their averages would see the batch once more, and a resumed run another one."""
    vae = make_vae()
    vae.likelihood.network = torch.nn.Sequential(vae.likelihood.network, torch.nn.BatchNorm1d(16))
    assert fit(vae, epochs=50, patience=1, learning_rate=1.0, mode="auto").mode == "eager"


def test_a_run_begun_in_graphs_goes_on_without_them(tmp_path, monkeypatch):
    """On a machine without a GPU, or by several processes."""
    fit(make_vae(), epochs=2, mode="auto", out=tmp_path)
    read = checkpoint.read_checkpoint

    def on_a_gpu(path):
        groups, record = read(path)
        record["history"]["mode"] = "cuda_graph"
        return groups, record

    monkeypatch.setattr(run_folder, "read_checkpoint", on_a_gpu)
    assert fit(make_vae(), epochs=4, mode="auto", out=tmp_path, resume=True).mode == "traced"


def test_warmup_is_followed_and_choice_begins_after_it():
    history = fit(make_vae(), epochs=6, warmup_epochs=3)
    weights = [record["kl_weight"] for record in history.records]
    assert weights[0] < weights[1] < weights[2] < weights[3] == 1.0
    assert history.best_epoch >= 3
    with pytest.raises(ValueError, match="shorter than the training"):
        fit(make_vae(), epochs=3, warmup_epochs=3)
    steps = fit(make_vae(), epochs=6, warmup_steps=12)
    assert [r["kl_weight"] for r in steps.records] == weights


def test_validation_is_at_full_weight():
    vae = make_vae()
    objective = pv.BetaELBO(4.0)
    objective.warmup.fill_(0.0)
    figures = validate(vae, objective, pv.Split(VAL), seed=0)
    expected = 4 * figures["val_kl"] - figures["val_reconstruction"]
    assert figures["val_loss"] == pytest.approx(expected, abs=1e-4)
    assert float(objective.warmup) == 0.0


def test_nan_names_the_site_and_keeps_the_last_good_weights(tmp_path):
    vae = make_vae()
    with pytest.raises(NonFiniteError, match=r"site 'z' in the guide"):
        fit(vae, learning_rate=1e30, epochs=50, out=tmp_path)
    assert all(torch.isfinite(p).all() for p in vae.parameters())


def test_nan_in_a_later_epoch_leaves_the_best_weights_in_the_folder(tmp_path, monkeypatch):
    whole = make_vae()
    epochs = fit(whole, epochs=4).records
    assert min(epochs, key=lambda record: record["val_loss"]) == epochs[-1]
    update = pv.FastSVI.update
    steps = []

    def spoiled(self, *batch):
        steps.append(1)
        loss = update(self, *batch)
        return loss * math.nan if len(steps) > 4 * 4 else loss

    monkeypatch.setattr(pv.FastSVI, "update", spoiled)
    with pytest.raises(NonFiniteError, match="epoch 5"):
        fit(make_vae(), epochs=9, out=tmp_path)
    assert tensors_equal(pv.load(tmp_path), whole)


def test_tensorboard_is_told_and_closed(tmp_path, monkeypatch):
    told, closed = [], []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, epoch):
            told.append((name, value, epoch))

        def close(self):
            closed.append(len(told))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = fit(make_vae(), epochs=3, out=tmp_path)
    losses = [value for name, value, _ in told if name == "val_loss"]
    assert losses == [record["val_loss"] for record in history.records]
    assert closed == [len(told)]


def test_a_folder_with_weights_and_no_checkpoint_is_not_begun_anew(tmp_path):
    fit(make_vae(), out=tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunFolderError, match="checkpoint"):
        fit(make_vae(), out=tmp_path, resume=True)


@pytest.mark.parametrize("where", [{"train": 40}, {"val": 20}])
def test_values_beyond_the_levels_are_refused_wherever_they_are(where):
    data = {"train": TRAIN.clone(), "val": VAL.clone()}
    for name, row in where.items():
        data[name][row, 2] = 9.0
    with pytest.raises(ValueError, match=f"the likelihood's levels.*in row {row} "):
        pv.fit(make_vae(), **data, epochs=1, progress=False)


def test_moving_average_is_what_is_kept():
    plain, averaged = make_vae(), make_vae()
    pv.fit(plain, TRAIN, epochs=3, batch_size=16, progress=False)
    pv.fit(averaged, TRAIN, epochs=3, batch_size=16, progress=False, ema_decay=0.99)
    start = make_vae()

    def distance(vae):
        pairs = zip(vae.parameters(), start.parameters(), strict=True)
        return sum((a - b).square().sum().item() for a, b in pairs)

    assert 0 < distance(averaged) < distance(plain)


def test_pyro_losses_and_all_sources_of_data():
    for objective in (
        Trace_ELBO(),
        RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ):
        history = fit(make_vae(), epochs=2, objective=objective)
        assert math.isfinite(history.records[-1]["val_loss"])
    dataset = torch.utils.data.TensorDataset(TRAIN)
    loader = torch.utils.data.DataLoader(dataset, batch_size=7)
    for source in (TRAIN.numpy(), dataset, loader, (TRAIN, torch.zeros(50, dtype=torch.long))):
        assert pv.fit(make_vae(), source, epochs=1, progress=False).epochs == 1


def test_splits_drawn_anew_at_each_batch():
    def binarize(x, generator):
        return (torch.rand(x.shape, generator=generator) < x).to(x.dtype)

    def run():
        torch.manual_seed(0)
        posterior = pv.NormalPosterior(pv.MLP(6, [8]), 2)
        vae = pv.VAE(pv.NormalPrior(2), posterior, pv.BernoulliLikelihood(pv.MLP(2, [8]), (6,)))
        grey = pv.Split(
            torch.rand(40, 6, generator=torch.Generator().manual_seed(1)), None, binarize
        )
        history = pv.fit(vae, grey, grey, epochs=3, progress=False)
        return history.records[-1]["val_loss"], pv.evaluate(
            vae, grey, num_samples=5, proposal="encoder"
        ).nll

    assert run() == run()


def test_labels_reach_conditional_vaes_only():
    labels = torch.arange(50) % 3
    posterior = pv.NormalPosterior(pv.MLP(9, [8]), 2, num_labels=3)
    likelihood = pv.CategoricalLikelihood(pv.MLP(5, [8]), (6,), 4, num_labels=3)
    vae = pv.VAE(pv.NormalPrior(2), posterior, likelihood)
    pv.fit(vae, (TRAIN, labels), epochs=2, progress=False)
    with pytest.raises(ValueError, match="Expected labels"):
        pv.fit(vae, TRAIN, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"patience": 0}, "patience"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"schedule": "steps"}, "schedule"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"device": "tpu"}, "device"),
        ({"warmup_epochs": 1, "warmup_steps": 1}, "both"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(make_vae(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_stops_training_and_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    from pyro_vaes.storage import files as folders

    writes, fsync = 0, folders.os.fsync

    def full(descriptor):
        nonlocal writes
        writes += 1
        if writes > 6:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(run_folder, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        fit(make_vae(), epochs=20, out=tmp_path)
    monkeypatch.undo()
    resumed, whole = make_vae(), make_vae()
    fit(resumed, epochs=20, out=tmp_path, resume=True)
    fit(whole, epochs=20)
    assert tensors_equal(whole, resumed)


def test_checkpoint_follows_each_epoch(tmp_path):
    fit(make_vae(), epochs=2, out=tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2


def test_the_mode_that_was_used_is_recorded(monkeypatch):
    monkeypatch.setattr("pyro_vaes.inference.recording.shutil.which", lambda name: None)
    with pytest.warns(UserWarning, match="eager"):
        history = fit(make_vae(), epochs=1, mode="compiled")
    assert history.mode == "eager"


# --- whatever the caller's state, numbers and data are --------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.set_grad_enabled(False),
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
)
def test_training_depends_on_no_global_state(state):
    plain, other = make_vae(), make_vae()
    fit(plain, epochs=2)
    before = torch.is_grad_enabled()
    with state():
        fit(other, epochs=2)
    torch.set_grad_enabled(before)
    assert tensors_equal(plain, other)
    assert not tensors_equal(plain, make_vae())


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        vae = make_vae()
        objective = pv.BetaELBO(2)
    with pytest.raises(ValueError, match=r"VAE .* made under torch\.inference_mode"):
        fit(vae)
    with pytest.raises(ValueError, match=r"objective .* made under torch\.inference_mode"):
        fit(make_vae(), objective=objective)


def test_a_loaded_model_trains_as_a_new_one_does(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5))
    network.in_features, network.out_features = 6, 8
    vae = make_vae()
    vae.posterior.network = network
    vae.posterior.head = torch.nn.Linear(8, 4)
    twin = copy.deepcopy(vae).eval()
    for each in (vae, twin):
        fit(each, epochs=2, mode="eager")
    assert tensors_equal(vae, twin)


def test_numbers_of_any_kind_are_options(tmp_path):
    plain, other = make_vae(), make_vae()
    fit(plain, epochs=2, learning_rate=0.125, ema_decay=0.5, clip_norm=1.0, seed=3, warmup_epochs=1)
    fit(
        other,
        epochs=np.int64(2),
        learning_rate=torch.tensor(0.125),
        ema_decay=np.float32(0.5),
        clip_norm=np.float64(1),
        seed=torch.tensor(3),
        warmup_epochs=np.int64(1),
        out=tmp_path / "run",
        record={"mean": np.float32(0.5), "digest": "x"},
    )
    assert tensors_equal(plain, other)
    with pytest.raises(ValueError, match="facts that JSON can hold"):
        fit(make_vae(), record={"x": object()})
    with pytest.raises(ValueError, match="learning_rate to be a number; got '1e-3'"):
        fit(make_vae(), learning_rate="1e-3")


@pytest.mark.parametrize("objective", [pv.ELBO, pv.InfoELBO, "elbo", torch.nn.MSELoss()])
def test_what_is_no_objective_is_refused(objective):
    with pytest.raises(ValueError, match="Expected objective to be one of"):
        fit(make_vae(), objective=objective)


def test_a_batch_of_one_is_refused_before_a_batch_norm_meets_it():
    vae = make_vae()
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8))
    network.in_features, network.out_features = 6, 8
    vae.posterior.network = network
    vae.posterior.head = torch.nn.Linear(8, 4)
    before = copy.deepcopy(vae)
    with pytest.raises(
        ValueError, match="2 data in a batch for BatchNorm1d; got 1 in the last one"
    ):
        pv.fit(vae, TRAIN[:33], batch_size=32, epochs=1, progress=False)
    assert tensors_equal(vae, before)
    pv.fit(vae, TRAIN[:34], batch_size=32, epochs=1, progress=False)


def test_an_error_names_the_data_where_they_are_the_cause():
    def real():
        torch.manual_seed(0)
        likelihood = pv.NormalLikelihood(pv.MLP(2, [8]), (2,))
        return pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.MLP(2, [8]), 2), likelihood)

    x = torch.randn(50, 2)
    x[7, 1] = 1e30
    with pytest.warns(UserWarning, match="far from the 0 and 1"):  # noqa: SIM117
        with pytest.raises(NonFiniteError, match=r"value 1e\+30 in row 7, element 1"):
            pv.fit(real(), x, epochs=2, progress=False)
    with pytest.warns(UserWarning, match=r"Element 0 .* call likelihood\.initialize_from"):  # noqa: SIM117
        with pytest.raises(NonFiniteError, match="far from the 0 and 1"):
            pv.fit(real(), 1e25 * (1 + torch.rand(50, 2)), epochs=2, progress=False)
    vae = real()
    vae.likelihood.initialize_from(1e25 * (1 + torch.rand(50, 2)))
    pv.fit(vae, 1e25 * (1 + torch.rand(50, 2)), epochs=2, progress=False)


def test_values_that_single_precision_cannot_tell_apart_are_refused():
    x = 1.6e9 + torch.arange(50.0, dtype=torch.float64)[:, None]
    vae = pv.VAE(
        pv.NormalPrior(2),
        pv.NormalPosterior(pv.MLP(1, [8]), 2),
        pv.NormalLikelihood(pv.MLP(2, [8]), (1,)),
    )
    with pytest.raises(DataError, match="single precision can distinguish"):
        pv.fit(vae, x, epochs=1, progress=False)
    vae.likelihood.initialize_from(x)
    vae.double()
    vae.likelihood.initialize_from(x)
    pv.fit(vae, x, epochs=1, progress=False)


def test_splits_are_checked_like_everything_else():
    gap = torch.randn(9, 3)
    gap[3, 1] = math.nan
    for wrong in (torch.full((9, 3), math.inf), torch.zeros(0, 3), torch.zeros(3)):
        with pytest.raises(DataError):
            pv.Split(wrong)
    assert pv.Split(gap).x.isnan().nonzero().tolist() == [[3, 1]]
    split = pv.Split(np.ones((4, 2)), np.array([0, 1, 1, 0], "uint8"))
    assert split.y.dtype == torch.long and isinstance(split.x, torch.Tensor)


def test_what_layers_count_stays_where_a_prior_is_refitted() -> None:
    """Batch statistics of a frozen posterior moved with the data of the refit."""

    class Counting(torch.nn.Sequential):
        in_features, out_features = 4, 8

    network = Counting(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    posterior = pv.NormalPosterior(network, 2)
    vae = pv.VAE(pv.NormalPrior(2), posterior, pv.NormalLikelihood(pv.MLP(2, [8]), (4,)))
    x = torch.randn(60, 4)
    pv.fit(vae, x, epochs=1, progress=False)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    pv.refit_prior(vae, pv.MixturePrior(2, 3), x + 1, epochs=1, progress=False)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(module.training for module in vae.modules())


@pytest.mark.slow
def test_a_refitted_prior_lowers_the_rate_and_moves_no_other_part() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    posterior = pv.NormalPosterior(pv.MLP(4, [8]), 2)
    vae = pv.VAE(pv.NormalPrior(2), posterior, pv.NormalLikelihood(pv.MLP(2, [8]), (4,)))
    with torch.no_grad():
        posterior.head.bias[:2] += 2  # Far from its prior.
    frozen = next(vae.likelihood.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    options = dict(epochs=30, learning_rate=0.02, progress=False)
    flow = pv.FlowPrior(2, pv.flows.realnvp(2, 4))
    better, history = pv.refit_prior(vae, flow, x, x, **options)
    assert history.epochs == 30
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(p.requires_grad == (p is not frozen) for p in vae.parameters())
    old, new = (pv.evaluate(v, x, num_samples=100, diagnostics=False) for v in (vae, better))
    assert new.kl < old.kl - 1
    assert new.reconstruction == pytest.approx(old.reconstruction)
