"""Properties over drawn shapes, sizes, types and labels; and damage at drawn places of every file.

Hypothesis draws the same examples at each run: what passes once passes always.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry import LIKELIHOODS, POSTERIORS, PRIORS, data, make_vae

import pyro_vaes as pv
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import load_data
from pyro_vaes.runs.build import build
from pyro_vaes.runs.options import ConfigError
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import RunConfig, from_values, read_config, to_yaml
from pyro_vaes.storage import tensors as storage
from pyro_vaes.storage.files import CONFIG, RunFolderError
from pyro_vaes.storage.tensors import named_tensors, write_tensors
from pyro_vaes.storage.weights import WEIGHTS
from pyro_vaes.training.checkpoint import CHECKPOINT
from pyro_vaes.training.history import NonFiniteError


def drawn(examples: int) -> Any:
    """So many examples, the same ones always, however long each takes."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def one_line(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text


def attempt(read: Callable[[], Any], *refusals: type[Exception]) -> Any:
    """What was read; None if it was refused, which must be in one line."""
    try:
        return read()
    except refusals as error:
        refusal = error
    assert one_line(refusal)
    return None


# --- models ---------------------------------------------------------------------------------------

OWN = {
    role: [name for name, case in table.items() if case.own]
    for role, table in (("prior", PRIORS), ("posterior", POSTERIORS), ("likelihood", LIKELIHOODS))
}
TYPES = {
    "real": [torch.float32, torch.float64],
    "levels": [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8],
    "binary": [torch.float32, torch.int64, torch.bool],
    "counts": [torch.float32, torch.float64, torch.int64],
    "mixed": [torch.float32, torch.float64],
}


@st.composite
def problems(draw: Any, modes: tuple[str, ...]) -> dict[str, Any]:
    """A VAE of any parts and sizes, and data that it takes, in any type."""
    likelihood = draw(st.sampled_from(OWN["likelihood"]))
    support = LIKELIHOODS[likelihood].support
    # No more elements than the registry's autoregressive rows have units; a table's are in a row.
    most = 1 if likelihood.startswith("table") else 3
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=most)
    shape = tuple(draw(shapes.filter(lambda sizes: math.prod(sizes) <= 8)))
    n, labels = draw(st.integers(1, 7)), draw(st.sampled_from([0, 1, 2, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if support == "real":
        # Microns or millions, but not a whole-number type: that is refused elsewhere.
        x = torch.randn(n, *shape, generator=generator) * draw(st.sampled_from([1e-6, 1.0, 1e4]))
    else:
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            x = data(likelihood, n, *shape)
    return {
        "prior": draw(st.sampled_from(OWN["prior"])),
        "posterior": draw(st.sampled_from(OWN["posterior"])),
        "likelihood": likelihood,
        "latent_dim": draw(st.integers(2, 3)),
        "event_shape": shape,
        "num_labels": labels,
        "x": x.to(draw(st.sampled_from(TYPES[support]))),
        "y": torch.randint(0, labels, (n,), generator=generator) if labels else None,
        "batch_size": draw(st.integers(1, 8)),
        "mode": draw(st.sampled_from(modes)),
        "double": draw(st.booleans()),
    }


def check_model(problem: dict[str, Any], folder: Path) -> None:
    """Trains for an epoch, evaluates, saves and loads, and sees to what holds for any model."""
    x, y, n = problem["x"], problem["y"], len(problem["x"])
    torch.manual_seed(0)
    names = ("latent_dim", "event_shape", "num_labels")
    parts = [problem[role] for role in ("prior", "posterior", "likelihood")]
    vae = make_vae(*parts, **{name: problem[name] for name in names})
    vae = vae.double() if problem["double"] else vae
    rows = x if y is None else (x, y)
    options = {"batch_size": problem["batch_size"], "mode": problem["mode"]}
    try:
        with warnings.catch_warnings():  # Nobody gave the likelihood the units of these data.
            warnings.filterwarnings("ignore", ".*far from the 0 and 1 that the likelihood")
            history = pv.fit(vae, rows, rows, epochs=1, out=folder, progress=False, **options)
    except NonFiniteError as error:
        # Nobody scaled these data: what a network makes of them may be too large for any float.
        if x.abs().max() > 1e3 and re.search("site|far from the 0 and 1", str(error)):
            return
        raise
    assert math.isfinite(history.best_val_loss)
    assert all(p.isfinite().all() for p in vae.parameters())
    report = pv.evaluate(vae, rows, num_samples=3, proposal="encoder", diagnostics=False)
    assert report.num_data == n
    # Jensen's inequality holds for each datum's own draws, whatever the model.
    slack = 1e-4 * (1 + abs(report.elbo))
    assert math.isfinite(report.nll) and report.nll <= -report.elbo + slack
    assert report.elbo == pytest.approx(report.reconstruction - report.kl, rel=1e-4, abs=slack)
    json.dumps(report.to_dict(), allow_nan=False)
    again = pv.load(folder)
    other = pv.evaluate(again, rows, num_samples=3, proposal="encoder", diagnostics=False)
    assert (other.nll, other.elbo) == (report.nll, report.elbo)
    labels = None if y is None else y[:1].expand(2)
    draws = again.sample(2, labels)
    assert draws.shape == (2, *problem["event_shape"])
    assert draws.isfinite().all() and again.dtype == vae.dtype


@drawn(8)
@given(problem=problems(("eager",)))
def test_any_model_trains_evaluates_and_comes_back(tmp_path_factory: Any, problem: Any) -> None:
    check_model(problem, tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@drawn(80)
@given(problem=problems(("eager", "traced")))
def test_many_models_train_evaluate_and_come_back(tmp_path_factory: Any, problem: Any) -> None:
    check_model(problem, tmp_path_factory.mktemp("model"))


# --- damage ---------------------------------------------------------------------------------------


@st.composite
def damages(draw: Any) -> Callable[[bytes], bytes]:
    """What a disk or a network does to a file, anywhere in it, with more of it at both ends."""
    kind = draw(st.sampled_from(["truncate", "flip", "zero", "insert", "remove", "repeat", "swap"]))
    where = draw(
        st.one_of(
            st.tuples(st.just("start"), st.integers(0, 200)),
            st.tuples(st.just("end"), st.integers(1, 200)),
            st.tuples(st.just("share"), st.floats(0, 0.999)),
        )
    )
    length, bit = draw(st.integers(1, 64)), draw(st.integers(0, 7))
    noise = draw(st.binary(min_size=1, max_size=16))

    def damage(whole: bytes) -> bytes:
        side, value = where
        place = {"start": value, "end": len(whole) - value, "share": int(value * len(whole))}[side]
        i = min(max(int(place), 0), len(whole) - 1)
        j = min(i + length, len(whole))
        return {
            "truncate": lambda: whole[:i],
            "flip": lambda: whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :],
            "zero": lambda: whole[:i] + bytes(j - i) + whole[j:],
            "insert": lambda: whole[:i] + noise + whole[i:],
            "remove": lambda: whole[:i] + whole[j:],
            "repeat": lambda: whole[:j] + whole[i:j] + whole[j:],
            "swap": lambda: whole[j:] + whole[:j],
        }[kind]()

    return damage


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig, Any]:
    """A run folder of a training that a configuration describes."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = load_data(torch.randint(0, 4, (30, 3)).float())
    sizes = {"hidden_dims": [4], "latent_dim": 2, "prior": "vamp", "prior_components": 3}
    config = from_values({**sizes, "epochs": 2, "warmup_epochs": 0})
    go_on(folder, config, data)
    (folder / CONFIG).write_text(to_yaml(config))
    return folder, config, data


def go_on(folder: Path, config: RunConfig, data: Any) -> Any:
    torch.manual_seed(0)
    vae, _ = build(config, data)
    train(vae, data, config, out=folder, resume=True, progress=False)
    return vae


def damaged(small_run: Any, place: Path, name: str | Path, damage: Any) -> Path | None:
    """A copy of the run with one file damaged; None if the damage changes nothing."""
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small_run[0], folder)
    whole = (folder / name).read_bytes()
    changed = damage(whole)
    (folder / name).write_bytes(changed)
    return None if changed == whole else folder


@drawn(80)
@given(damage=damages())
def test_damaged_weights_are_refused(small_run: Any, tmp_path_factory: Any, damage: Any) -> None:
    folder = damaged(small_run, tmp_path_factory.getbasetemp() / "weights", WEIGHTS, damage)
    if folder is not None:
        with pytest.raises(RunFolderError) as caught:
            pv.load(folder)
        assert one_line(caught.value)


@drawn(40)
@given(damage=damages())
def test_a_damaged_checkpoint_is_refused(
    small_run: Any, tmp_path_factory: Any, damage: Any
) -> None:
    _, config, data = small_run
    folder = damaged(small_run, tmp_path_factory.getbasetemp() / "state", CHECKPOINT, damage)
    if folder is not None:
        before = (folder / WEIGHTS).read_bytes()
        with pytest.raises(RunFolderError) as caught:
            go_on(folder, config, data)
        assert one_line(caught.value)
        assert (folder / WEIGHTS).read_bytes() == before


@drawn(80)
@given(damage=damages())
def test_a_damaged_configuration_is_refused_or_means_the_same(
    small_run: Any, tmp_path_factory: Any, damage: Any
) -> None:
    _, config, _ = small_run
    folder = damaged(small_run, tmp_path_factory.getbasetemp() / "config", CONFIG, damage)
    if folder is None:
        return
    # A comment or a space more is nothing; an equal value in another notation may be refused.
    if attempt(lambda: read_config(folder), ConfigError, RunFolderError) == config:
        attempt(lambda: pv.load(folder), RunFolderError)
    else:
        with pytest.raises(RunFolderError) as caught:
            pv.load(folder)
        assert one_line(caught.value)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The user's own data in each form."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 3, 12)
    np.save(folder / "a.npy", x)
    np.savez(folder / "b.npz", x=x, y=y)
    np.savez_compressed(folder / "c.npz", x=x, y=y)
    table = "\n".join(",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True))
    (folder / "d.csv").write_text(f"height,width,depth,label\n{table}\n")
    (folder / "e.csv").write_text(f"{table}\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a.npy", "b.npz", "c.npz", "d.csv", "e.csv"])
@drawn(60)
@given(damage=damages())
def test_damaged_data_are_refused_or_still_numbers(
    name: str, files: dict[str, bytes], tmp_path_factory: Any, damage: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(damage(files[name]))
    data = attempt(lambda: load_data(path), DataError)
    if data is None:
        return
    # Numbers carry no digest: a changed digit is a number. What comes out is whole all the same.
    for split in (data.train, data.val, data.test):
        assert not split.x.isinf().any() and len(split) > 0  # An empty cell is a gap.
        assert split.y is None or (split.y >= 0).all()


# --- files made to deceive ------------------------------------------------------------------------

BOMB = {"class": "MLP", "arguments": {"in_features": 2**40, "hidden_dims": [2**40]}}
HOSTILE: dict[str, Any] = {
    "a list for a record": [],
    "a word for a record": "record",
    "a number for an architecture": {"architecture": 3},
    "a list for an architecture": {"architecture": [1, 2]},
    "another class": {"architecture": {"class": "os.system", "arguments": {"command": "true"}}},
    "a part for a VAE": {"architecture": {"class": "NormalPrior", "arguments": {"latent_dim": 2}}},
    "arguments of another": {"architecture": {"class": "VAE", "arguments": {"prior": 1}}},
    "no arguments": {"architecture": {"class": "VAE"}},
    "a reference to nothing": {"architecture": {"ref": 7}},
    "a reference to a word": {"architecture": {"ref": "x"}},
    "no type": {"architecture": {"tensor": [2], "dtype": "nn"}},
    "a negative size": {"architecture": {"tensor": [-2], "dtype": "float32"}},
    "a size beyond memory": {"architecture": {"tensor": [2**50], "dtype": "float32"}},
    "a network beyond memory": {"architecture": BOMB},
    "a type that is none": {"architecture": {"tensor": [2], "dtype": 5}},
}


def forge(path: Path, record: str) -> None:
    """Writes weights with a record of any text, and a digest that is right: anyone can make one."""
    tensors = named_tensors(make_vae())
    entry = {"record": record, "digest": storage._digest(record, tensors)}
    path.write_bytes(safetensors.torch.save(tensors, {storage._ENTRY: json.dumps(entry)}))


@pytest.mark.parametrize("case", HOSTILE)
def test_a_record_made_to_deceive_is_refused(case: str, tmp_path: Path) -> None:
    record = HOSTILE[case]
    version = {"format": storage._FORMAT}
    forge(tmp_path / WEIGHTS, json.dumps(record | version if isinstance(record, dict) else record))
    with pytest.raises(RunFolderError) as caught:
        pv.load(tmp_path)
    assert one_line(caught.value)


@pytest.mark.parametrize("depth", [300, 5_000, 100_000])
def test_a_record_without_end_is_refused(depth: int, tmp_path: Path) -> None:
    deep = '{"dict": {"a": ' * depth + "1" + "}}" * depth
    forge(tmp_path / WEIGHTS, f'{{"format": {storage._FORMAT}, "architecture": {deep}}}')
    with pytest.raises(RunFolderError) as caught:
        pv.load(tmp_path)
    assert one_line(caught.value)


@pytest.mark.parametrize("lack", ["options", "identity", "history"])
def test_a_checkpoint_that_lacks_something_is_refused(
    lack: str, small_run: Any, tmp_path: Path
) -> None:
    run, config, data = small_run
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    tensors, record = storage.read_tensors(folder / CHECKPOINT)
    write_tensors(folder / CHECKPOINT, tensors, {k: v for k, v in record.items() if k != lack})
    with pytest.raises(RunFolderError, match="checkpoint"):
        go_on(folder, config, data)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: None if name.startswith("model/") else name,
        lambda name: None if name == "generator/cpu" else name,
        lambda name: name.replace("optimizer/0/", "optimizer/99/"),
        lambda name: name.replace("optimizer/0/", "optimizer/zero/"),
        lambda name: name.replace("optimizer/0/", "optimizer/0/0/"),
    ],
)
def test_a_checkpoint_of_other_tensors_is_refused(
    change: Callable[[str], str | None], small_run: Any, tmp_path: Path
) -> None:
    run, config, data = small_run
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    tensors, record = storage.read_tensors(folder / CHECKPOINT)
    changed = {change(name): tensor for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in changed.items() if name is not None}
    write_tensors(folder / CHECKPOINT, named, record)
    with pytest.raises(RunFolderError) as caught:
        go_on(folder, config, data)
    assert one_line(caught.value)
