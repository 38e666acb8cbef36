"""Laws of data sets, splits, batches and pseudo-inputs."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import pyro_vaes.data.dataset
from pyro_vaes.core.errors import DataError
from pyro_vaes.data.augmentation import augment_images
from pyro_vaes.data.dataset import DataSet, load_data
from pyro_vaes.data.splits import Split, as_split, batches, labelled_pseudo_inputs, pseudo_inputs

EVENT_SHAPES = [(5,), (1, 20, 10), (3, 37, 41)]
N = 20


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(event_shape=(5,), n=N, seed=0):
    return torch.randn(n, *event_shape, generator=generator(seed))


class Items(Dataset):
    """A data set that is no TensorDataset."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def refused(match):
    """A DataError of one line that says what was expected."""
    return pytest.raises(DataError, match=rf"\A(?=[^\n]*\Z)(?=.*Expected ).*{match}")


# --- named sets --------------------------------------------------------------------------------


def test_digits_are_the_rows_of_scikit_learn_in_file_order():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    data = load_data("digits")
    splits = (data.train, data.val, data.test)
    assert [len(split) for split in splits] == [1000, 350, 447]
    np.testing.assert_array_equal(torch.cat([split.x for split in splits]).numpy(), x)
    np.testing.assert_array_equal(torch.cat([split.y for split in splits]).numpy(), y)
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64
    assert (data.kind, data.num_levels, data.num_labels) == ("levels", 17, 10)
    assert (data.event_shape, data.image_shape) == ((64,), (1, 8, 8))
    assert data.default_likelihood == "ordinal"


def test_describe_says_in_one_sentence_what_was_chosen_and_why():
    assert load_data("digits").describe() == (
        "digits: 1000 training, 350 validation and 447 test rows of shape (64,) with labels 0..9, "
        "taken for 17 levels because all values are whole numbers from 0 to 16; the default "
        "likelihood is ordinal."
    )


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(params=["mnist", "fashion_mnist"])
def torchvision_root(request, tmp_path, monkeypatch):
    """Small files as torchvision lays them out: 30 training and 8 test images."""
    monkeypatch.setattr(pyro_vaes.data.named, "_VALIDATION_ROWS", 10)
    folder = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[request.param] / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 30), ("t10k", 8)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        images[0, 0, :4] = 0, 127, 128, 255
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    return request.param, tmp_path, folder


def test_torchvision_sets(torchvision_root):
    name, root, folder = torchvision_root
    raw = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    raw = torch.tensor(raw.reshape(30, 784)).float()
    grey, threshold, dynamic = (
        load_data(name, root=root, binarization=mode) for mode in ("grey", "threshold", "dynamic")
    )
    for data in (grey, threshold, dynamic):
        assert [len(s) for s in (data.train, data.val, data.test)] == [20, 10, 8]
        assert data.image_shape == (1, 28, 28) and data.num_labels == 10
        # The last training images are for validation.
        assert data.val.y.tolist() == list(range(10))
    assert (grey.kind, grey.num_levels) == ("levels", 256)
    assert torch.equal(torch.cat([grey.train.x, grey.val.x]), raw)
    assert threshold.kind == dynamic.kind == "binary" and threshold.num_levels is None
    assert threshold.train.x[0, :4].tolist() == [0, 0, 1, 1] and threshold.train.transform is None
    torch.testing.assert_close(dynamic.train.x, raw[:20] / 255)
    for split in (dynamic.val, dynamic.test):
        assert split.transform is None and set(split.x.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(dynamic.val.x, threshold.val.x)
    assert "drawn anew" in dynamic.describe()
    assert load_data(name, root=root).digest == dynamic.digest  # the default, the same draw again
    source = generator()
    (first, _), (second, _) = (next(batches(dynamic.train, 20, source)) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)


def test_static_images_are_drawn_once_from_one_seed(torchvision_root):
    name, root, _ = torchvision_root
    static, dynamic = (load_data(name, root=root, binarization=m) for m in ("static", "dynamic"))
    assert static.kind == "binary" and "drawn anew" not in static.describe()
    assert static.train.transform is None
    assert set(static.train.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(static.train.x, dynamic.train.frozen(0).x)
    for split in ("val", "test"):
        assert torch.equal(getattr(static, split).x, getattr(dynamic, split).x)
    assert load_data(name, root=root, binarization="static").digest == static.digest


class FakeCIFAR10:
    """Torchvision's class, as far as it is used: images with channels last, labels in a list."""

    def __init__(self, root, train, download):
        assert download
        count = 30 if train else 8
        self.data = np.random.default_rng(train).integers(0, 256, (count, 32, 32, 3), np.uint8)
        self.targets = [i % 10 for i in range(count)]


def test_cifar_has_channels_first(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(pyro_vaes.data.named, "_VALIDATION_ROWS", 10)
    monkeypatch.setattr(datasets, "CIFAR10", FakeCIFAR10)
    data = load_data("cifar10", root=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [20, 10, 8]
    assert (data.kind, data.num_levels, data.num_labels) == ("levels", 256, 10)
    assert data.image_shape == (3, 32, 32) and data.event_shape == (3072,)
    original = FakeCIFAR10(tmp_path, True, True).data[25]
    assert torch.equal(data.val.x[5].reshape(3, 32, 32), torch.tensor(original).permute(2, 0, 1))
    assert data.val.y[5] == 5
    with refused("binarization= only with fashion_mnist, mnist, omniglot"):
        load_data("cifar10", root=tmp_path, binarization="static")


def test_cifar_without_network_is_one_line_and_nothing_left_behind(tmp_path, monkeypatch):
    from torchvision.datasets import cifar

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", unreachable)
    with refused("cifar-10-batches-py, or a network to fetch them from; got neither .no network"):
        load_data("cifar10", root=tmp_path / "new")
    assert not list(tmp_path.iterdir())


ALPHABETS = {"background": ("Greek", "Arcadian"), "evaluation": ("Tengwar",)}


@pytest.fixture
def omniglot_root(tmp_path, monkeypatch):
    """Small archives as torchvision lays them out: 3 alphabets of 4 characters, 5 drawers each."""
    import io
    import zipfile

    from PIL import Image
    from torchvision import datasets

    folder, rng, sums = tmp_path / "omniglot-py", np.random.default_rng(0), {}
    folder.mkdir()
    for part, alphabets in ALPHABETS.items():
        archive = folder / f"images_{part}.zip"
        with zipfile.ZipFile(archive, "w") as files:
            for alphabet, character, drawer in itertools.product(alphabets, "1234", "54321"):
                ink, file = rng.random((105, 105)) < 0.1, io.BytesIO()
                ink[:15, :15] = [[True] * 8 + [False] * 7] * 15
                Image.fromarray(~ink).save(file, "png")
                name = f"images_{part}/{alphabet}/character0{character}/{drawer}.png"
                files.writestr(name, file.getvalue())
            files.extractall(folder)
        sums[archive.stem] = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums)
    return tmp_path


def test_omniglot_is_made_smaller_by_area_and_split_by_one_seed(omniglot_root):
    from PIL import Image

    grey = load_data("omniglot", root=omniglot_root, binarization="grey")
    assert (grey.kind, grey.num_levels, grey.image_shape) == ("levels", 256, (1, 28, 28))
    assert [len(s) for s in (grey.train, grey.val, grey.test)] == [43, 2, 15]
    assert grey.label_names == ("Arcadian", "Greek", "Tengwar") and grey.num_labels == 3
    x, y = (torch.cat([getattr(s, k) for s in (grey.train, grey.val, grey.test)]) for k in "xy")
    # Eight columns of ink: two small pixels, and half a column of 3.75 in the third.
    first_row = torch.tensor([255.0, 255.0, 255 * 0.5 / 3.75, 0.0])
    assert (x.reshape(-1, 28, 28)[:, :4, :4] - first_row).abs().max() <= 1
    assert y.bincount().tolist() == [20, 20, 20]
    file = omniglot_root / "omniglot-py/images_evaluation/Tengwar/character02/3.png"
    ink = 255 * (1 - torch.tensor(np.array(Image.open(file)), dtype=torch.float64))
    areas = ink.repeat_interleave(4, 0).repeat_interleave(4, 1).reshape(28, 15, 28, 15)
    apart = (x - areas.mean((1, 3)).reshape(784)).abs().amax(-1)
    assert (apart <= 0.5).sum() == 1 and y[apart.argmin()] == 2
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert grey.test.y.tolist() == [[0, 1, 2][i // 20] for i in order[:15].tolist()]


def test_omniglot_is_binarised_as_mnist_is(omniglot_root):
    dynamic = load_data("omniglot", root=omniglot_root)
    assert dynamic.kind == "binary" and dynamic.train.transform is not None
    assert set(dynamic.test.x.unique().tolist()) == {0.0, 1.0}
    assert load_data("omniglot", root=omniglot_root).digest == dynamic.digest
    static = load_data("omniglot", root=omniglot_root, binarization="static")
    assert static.train.transform is None and torch.equal(static.val.x, dynamic.val.x)


def test_omniglot_without_network_is_one_line_and_nothing_left_behind(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with refused("omniglot-py, or a network to fetch them from; got neither .*no network"):
        load_data("omniglot", root=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_damaged_torchvision_files_are_named(torchvision_root):
    name, root, folder = torchvision_root
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with refused("damaged"):
        load_data(name, root=root)


def test_without_network_one_line_and_nothing_left_behind(tmp_path, monkeypatch):
    import urllib.error

    from torchvision.datasets import mnist

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(mnist, "download_and_extract_archive", unreachable)
    with refused("no network"):
        load_data("mnist", root=tmp_path / "new")
    assert not list(tmp_path.iterdir())


# --- the user's own data -----------------------------------------------------------------------


def forms(x, y):
    """The same rows and labels in every form that holds both."""
    pairs = list(zip(x, y.tolist(), strict=True))
    return {
        "tuple": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "mapping": {"x": x, "y": y},
        "tensor data set": TensorDataset(x, y),
        "data set": Items(pairs),
        "subset": Subset(Items([*pairs, (x[0], 0)]), range(len(x))),
        "iterable data set": Stream(pairs),
        "loader": DataLoader(TensorDataset(x, y), batch_size=6, drop_last=True),
        "shuffled loader": DataLoader(Items(pairs), batch_size=6, shuffle=True, drop_last=True),
        "iterable loader": DataLoader(Stream(pairs), batch_size=6),
        "batch sampler": DataLoader(
            Items(pairs), batch_sampler=[list(range(i, i + 5)) for i in range(0, len(x), 5)]
        ),
    }


@pytest.mark.parametrize("event_shape", EVENT_SHAPES, ids=str)
def test_every_form_gives_the_same_data(event_shape):
    x, y = rows(event_shape), torch.arange(N) % 3
    reference = load_data(x, labels=y)
    assert reference.event_shape == event_shape and reference.num_labels == 3
    state = torch.get_rng_state()
    for form, source in forms(x, y).items():
        assert load_data(source).digest == reference.digest, form
        if not isinstance(source, dict):
            split = as_split(source)
            assert torch.equal(split.x, x) and torch.equal(split.y, y), form
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("event_shape", EVENT_SHAPES, ids=str)
def test_every_form_without_labels(event_shape, tmp_path):
    x = rows(event_shape)
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "x.npz", x.numpy())
    reference = load_data(x)
    assert reference.num_labels is None and reference.train.y is None
    sources = [x.numpy(), x.double(), (x,), TensorDataset(x), Items(list(x)), {"x": x}]
    sources += [Items([(row,) for row in x]), DataLoader(Items(list(x)), 7), x.tolist()]
    sources += [tmp_path / "x.npy", str(tmp_path / "x.npz")]
    for source in sources:
        assert load_data(source).digest == reference.digest


def test_a_sampler_that_chooses_rows_is_kept():
    x = rows()
    loader = DataLoader(TensorDataset(x), batch_size=4, sampler=SubsetRandomSampler([3, 5, 8]))
    chosen = as_split(loader).x
    assert sorted(chosen[:, 0].tolist()) == sorted(x[[3, 5, 8], 0].tolist())
    again = RandomSampler(x, replacement=True, generator=generator())
    drawn = as_split(DataLoader(TensorDataset(x), batch_size=4, sampler=again)).x
    assert len(drawn) == N and len(drawn.unique(dim=0)) < N


def test_splits_partition_the_rows_and_keep_their_labels():
    x = torch.arange(100.0).unsqueeze(1) + 0.5
    data = load_data(x, labels=torch.arange(100), val_fraction=0.1, test_fraction=0.25)
    splits = (data.train, data.val, data.test)
    assert [len(split) for split in splits] == [65, 10, 25]
    assert sorted(torch.cat([split.x for split in splits]).flatten().tolist()) == x[:, 0].tolist()
    for split in splits:
        assert torch.equal(split.x[:, 0], split.y + 0.5)
    again = load_data(x, labels=torch.arange(100), val_fraction=0.1, test_fraction=0.25)
    assert again.digest == data.digest
    other = load_data(x, labels=torch.arange(100), val_fraction=0.4, test_fraction=0.25)
    assert torch.equal(other.test.x, data.test.x)
    assert not torch.equal(load_data(x, test_fraction=0.25, seed=1).test.x, data.test.x)


def test_no_split_is_ever_empty():
    for n in range(3, 12):
        data = load_data(rows(n=n), val_fraction=0.01, test_fraction=0.01)
        assert min(len(data.train), len(data.val), len(data.test)) == 1
    for n, fractions in ((2, (0.2, 0.2)), (3, (0.5, 0.4))):
        with refused(f"got {n}"):
            load_data(rows(n=n), val_fraction=fractions[0], test_fraction=fractions[1])
    for fractions in ((0, 0.2), (0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.2)):
        with refused("val_fraction"):
            load_data(rows(), val_fraction=fractions[0], test_fraction=fractions[1])


def test_own_splits_are_kept(tmp_path):
    parts = {f"{s}_x": rows(n=n, seed=n) for s, n in (("train", 6), ("val", 2), ("test", 1))}
    labels = {f"{s}_y": torch.arange(n) for s, n in (("train", 6), ("val", 2), ("test", 1))}
    np.savez(tmp_path / "own.npz", **{k: v.numpy() for k, v in (parts | labels).items()})
    for source in (parts | labels, tmp_path / "own.npz"):
        data = load_data(source)
        for name in ("train", "val", "test"):
            assert torch.equal(getattr(data, name).x, parts[f"{name}_x"])
            assert torch.equal(getattr(data, name).y, labels[f"{name}_y"])
        assert data.num_labels == 6
    with refused("all of train_x, val_x, test_x"):
        load_data({key: parts[key] for key in ("train_x", "test_x")})
    with refused("labels for all splits or none"):
        load_data(parts | {"train_y": labels["train_y"]})
    with refused("rows of one shape"):
        load_data(parts | {"val_x": rows((4,))})
    with refused("train_y"):
        load_data(parts, labels=torch.arange(6))


def test_csv(tmp_path):
    x, y = rows((3,)), torch.arange(N) % 4
    plain, headed = tmp_path / "plain.csv", tmp_path / "headed.csv"
    np.savetxt(plain, x.numpy(), delimiter=",", fmt="%.9g")
    assert load_data(plain).digest == load_data(x).digest
    with headed.open("w", encoding="utf-8-sig") as file:  # a spreadsheet's byte order mark
        file.write('"Label",a,b,c\n')
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            file.write(f"{label},{row[0]!r},{row[1]!r},{row[2]!r}\n")
    data = load_data(headed)
    assert data.digest == load_data(x, labels=y).digest and data.name == "headed.csv"


@pytest.mark.parametrize(
    ("event_shape", "image_shape"),
    [
        ((5,), None),
        ((20, 10), (1, 20, 10)),
        ((1, 20, 10), (1, 20, 10)),
        ((3, 37, 41), (3, 37, 41)),
        ((2, 8, 8), (2, 8, 8)),
        ((4, 8, 8), (4, 8, 8)),
        ((20, 10, 3), (3, 20, 10)),
        ((5, 8, 8), None),
        ((3, 3), None),
        ((2, 3, 8, 8), None),
    ],
    ids=str,
)
def test_image_shapes(event_shape, image_shape):
    data = load_data(torch.randint(0, 256, (N, *event_shape), dtype=torch.uint8))
    assert data.image_shape == image_shape
    assert ("taken for images" in data.describe()) == (
        len(event_shape) in (2, 3) and bool(image_shape)
    )
    # What is not shown to be an image by its type is not moved about for one.
    assert load_data(rows(event_shape)).image_shape is None


def test_channels_that_stand_last_are_moved():
    x = torch.randint(0, 256, (N, 8, 10, 3), dtype=torch.uint8)
    moved = x.movedim(-1, 1)
    for source in (x, x.numpy(), (x.float(), None)):
        asked = None if source is x or isinstance(source, np.ndarray) else (3, 8, 10)
        data = load_data(source, image_shape=asked)
        assert data.digest == load_data(moved.contiguous()).digest
    # Rows of another shape are read as they lie, images of that shape with them.
    assert load_data(moved.flatten(1), image_shape=(3, 8, 10)).event_shape == (240,)
    assert load_data(x, image_shape=()).event_shape == (8, 10, 3)
    assert load_data(rows((8, 10)), image_shape=(8, 10)).image_shape == (1, 8, 10)


def test_image_shape_of_flat_rows_is_told():
    assert load_data(rows((24,)), image_shape=[1, 4, 6]).image_shape == (1, 4, 6)
    with refused("image_shape"):
        load_data(rows((24,)), image_shape=(1, 4, 5))


# --- kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0, 1], {}, ("binary", None, "bernoulli", "0 or 1")),
        ([False, True], {}, ("binary", None, "bernoulli", "0 or 1")),
        ([0, 3], {}, ("levels", 4, "ordinal", "whole numbers from 0 to 3")),
        ([7, 255], {}, ("levels", 256, "ordinal", "whole numbers from 7 to 255")),
        ([0, 256], {}, ("counts", None, "negative_binomial", "more than 256 levels, and 50% of")),
        ([1, 256], {}, ("real", None, "normal", "more than 256 levels (if they are counts, say")),
        ([0, 3], {"kind": "counts"}, ("counts", None, "negative_binomial", "asked")),
        ([-1, 1], {}, ("real", None, "normal", "negative")),
        ([0, 0.5], {}, ("real", None, "normal", "not whole numbers")),
        ([0, 1], {"kind": "levels"}, ("levels", 2, "ordinal", "asked")),
        ([0, 1], {"kind": "real"}, ("real", None, "normal", "asked")),
        ([0, 3], {"num_levels": 17}, ("levels", 17, "ordinal", "asked")),
        ([0, 300], {"kind": "levels"}, ("levels", 301, "ordinal", "asked")),
    ],
)
def test_kinds(values, options, expected):
    x = np.array(values).repeat(10)[:, None]
    data = load_data(x, **options)
    assert (data.kind, data.num_levels, data.default_likelihood) == expected[:3]
    assert expected[3] in data.describe()


def test_the_highest_level_and_label_count_wherever_they_are():
    x = torch.zeros(6, 2)
    for part in ("train", "val", "test"):
        parts = {f"{name}_x": x.clone() for name in ("train", "val", "test")}
        parts[f"{part}_x"][1, 1] = 9
        labels = {f"{name}_y": torch.zeros(6) for name in ("train", "val", "test")}
        labels[f"{part}_y"][2] = 4
        data = load_data(parts | labels)
        assert data.num_levels == 10 and data.num_labels == 5


@pytest.mark.parametrize(
    ("values", "options", "match"),
    [
        ([0, -1], {"kind": "levels"}, "whole numbers from 0.*got values from -1"),
        ([0, 0.5], {"kind": "levels"}, "fractions"),
        ([0, 17], {"num_levels": 17}, "from 0 to 16; got values from 0 to 17"),
        ([0, 1], {"num_levels": 1}, "num_levels of at least 2"),
        ([0, 2], {"kind": "binary"}, "0 and 1"),
        ([0, 1], {"kind": "words"}, "binary, levels, counts, real"),
        ([0, 1], {"kind": "binary", "num_levels": 2}, "num_levels only"),
        ([0, 1e5], {"kind": "levels"}, "from 0 to 65535"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(values, options, match):
    with refused(match):
        load_data(np.array(values).repeat(10)[:, None], **options)


# --- refusals ----------------------------------------------------------------------------------

GOOD = rows()
BAD = {
    "no rows": (torch.zeros(0, 5), "numbers in them"),
    "no columns": (torch.zeros(5, 0), "numbers in them"),
    "one dimension": (torch.zeros(5), r"shape \(n, \.\.\.\)"),
    "a number": (3.0, r"shape \(n, \.\.\.\)"),
    "gaps alone": (np.full((9, 1), np.nan), "gaps .* alone"),
    "infinity": (np.array([[1.0], [np.inf], [2.0]]), "infinity .*row 1"),
    "beyond float32": (np.full((9, 1), 1e300), "float32"),
    "complex array": (np.ones((9, 1), complex), "complex"),
    "complex tensor": (torch.ones(9, 1, dtype=torch.complex64), "complex"),
    "objects": (np.full((9, 1), None), "object"),
    "strings": (np.full((9, 1), "a"), "U1"),
    "dates": (np.full((9, 1), np.datetime64("2020-01-01")), "datetime"),
    "ragged": ([[1.0, 2.0], [3.0]], "one length"),
    "nothing": (None, "object"),
    "three things": ((GOOD, GOOD, GOOD), r"\(x, y\); got 3"),
    "left over": ({"x": GOOD, "weights": GOOD}, "got also weights"),
    "two labels": ({"x": GOOD, "y": GOOD[:, 0], "label": GOOD[:, 0]}, "got y, label"),
    "mapping": ({"a": GOOD, "b": GOOD}, "called x .*got a, b"),
    "empty mapping": ({}, "called x"),
    "too few labels": ((GOOD, torch.zeros(N - 1)), "label for each of 20 rows"),
    "labels in blocks": ((GOOD, torch.zeros(N, 3, 1)), "label for each of 20 rows"),
    "conditions with gaps": ((GOOD, torch.zeros(N, 3) + torch.nan), "conditions that are all"),
    "real labels": ((GOOD, torch.full((N,), 0.5)), "whole numbers of at least 0; got 0.5"),
    "NaN labels": ((GOOD, torch.full((N,), float("nan"))), "whole numbers of at least 0; got nan"),
    "labels of objects": ((GOOD, [object()] * N), "labels that are real numbers; got dtype obj"),
    "masked labels": ((GOOD, np.ma.masked_equal(np.arange(N) % 2, 1)), "masked"),
    "unix times": (1.6e9 + np.arange(50.0)[:, None], "single precision can distinguish.*Subtract"),
    "too large": (1e39 * GOOD.double(), "single precision can distinguish.*in another unit"),
    "too small": (1e-50 * GOOD.double(), "single precision can distinguish.*in another unit"),
    "whole unix times": (
        1_600_000_000 + np.arange(50)[:, None],
        "single precision can distinguish",
    ),
    "empty data set": (Items([]), "at least one row"),
    "ragged data set": (Items([torch.zeros(2), torch.zeros(3)]), "one shape"),
    "data set of pictures": (Items([object()] * 3), "transform that makes tensors"),
    "data set of dicts": (Items([{"x": 1.0}] * 3), "items x"),
    "data set of triples": (Items([(1.0, 2.0, 3.0)] * 3), "got 3"),
    "loader without batches": (DataLoader(TensorDataset(GOOD), batch_size=None), "batch_size=None"),
    "unknown name": ("digit", "cifar10, digits, fashion_mnist, mnist, omniglot, .*got 'digit'"),
    "a set without a package": ("caltech101_silhouettes", "mnist, omniglot, .*got 'caltech101"),
    "other file": ("x.pt", r"\.npy, \.npz, .*got 'x.pt'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused(case):
    source, match = BAD[case]
    with refused(match):
        load_data(source)
    with refused(""):
        # Some are kept in double precision there, some are no data.
        kept = ("gaps alone", "beyond float32", "unix times", "too large", "too small")
        if case in (*kept, "left over", "two labels"):
            raise DataError("Expected ")
        as_split(source)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def bad_files(folder):
    good = folder / "good.npy"
    np.save(good, rows().numpy())
    np.savez(folder / "good.npz", x=rows().numpy())
    whole, zipped = good.read_bytes(), (folder / "good.npz").read_bytes()
    np.save(folder / "objects.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    np.savez(folder / "objects.npz", x=np.array([[Bomb()]], dtype=object))
    np.save(folder / "inf.npy", np.array([[np.inf], [1.0], [2.0]]))
    contents = {
        "empty.npy": b"",
        "empty.npz": b"",
        "empty.csv": b"",
        "cut.npy": whole[:-10],
        "header.npy": whole[:20],
        "noise.npy": b"no array at all",
        "huge.npy": whole.replace(b"(20, 5)", b"(99999999999999, 5)"),
        "cut.npz": zipped[: len(zipped) // 2],
        "flipped.npz": zipped[:200] + bytes([zipped[200] ^ 255]) + zipped[201:],
        "ragged.csv": b"1,2,3\n4,5\n6,7,8\n",
        "label-gap.csv": b"label,a\n0,1\n,2\n",
        "words.csv": b"a,b\n1,2\nred,3\n",
        "header-only.csv": b"a,b\n",
        "blank.csv": b"\n\n",
        "binary.csv": bytes(range(128, 256)),
        "short-header.csv": b"a,b\n1,2,3\n4,5,6\n",
        "index.csv": b",a,b\n5,1,2\n5,3,4\n",
        "two-labels.csv": b"label,y,a\n0,0,1\n1,1,2\n",
        "real-label.csv": b"x,y\n0.5,0.5\n1.5,1.5\n1,1\n",
        "infinite.csv": b"a,b\n1,2\ninf,3\n4,5\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.npy").mkdir()
    return ["missing.npy", "missing.csv", *(path.name for path in sorted(folder.iterdir()))]


def test_bad_files_are_refused_by_name(tmp_path):
    names = [name for name in bad_files(tmp_path) if not name.startswith("good")]
    assert len(names) > 25
    for name in names:
        with refused("") as caught:
            load_data(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)), name
    with refused("Rename column 'y'"):
        load_data(tmp_path / "real-label.csv")
    with refused("ending in .csv, .*; got .txt"):
        load_data(tmp_path / "x.txt")


def test_options_that_do_not_belong_are_refused():
    with refused("no labels"):
        load_data("digits", labels=torch.zeros(1797))
    with refused("binarization= only"):
        load_data(rows(), binarization="grey")
    with refused("labels once"):
        load_data((rows(), torch.zeros(N)), labels=torch.zeros(N))


def test_unknown_binarization(tmp_path):
    with refused("dynamic, static, threshold, grey"):
        load_data("mnist", root=tmp_path, binarization="half")
    assert not list(tmp_path.iterdir())


# --- splits and batches ------------------------------------------------------------------------


def test_as_split_keeps_precision_and_splits():
    x = rows().double()
    assert as_split(x).x.data_ptr() == x.data_ptr()  # no copy
    assert as_split(x.numpy()).x.dtype == torch.float64
    assert as_split(x.to(torch.uint8)).x.dtype == torch.uint8  # Until a batch needs them.
    for dtype in (torch.int64, torch.bool, torch.float16, torch.bfloat16):
        assert as_split(x.to(dtype)).x.dtype == torch.float32
    for dtype in (np.uint8, np.uint32, np.float16, np.longdouble, ">f4", ">i2", bool):
        array = np.arange(6).astype(dtype)[:, None]
        np.testing.assert_array_equal(as_split(array).x.numpy(), array)
    split = Split(x)
    assert as_split(split) is split
    labelled = as_split(split, torch.arange(N))
    assert labelled.x is x and labelled.y.tolist() == list(range(N))
    with refused("labels once"):
        as_split(labelled, torch.arange(N))
    with refused("Pass its .train"):
        as_split(load_data("digits"))
    with refused("load_data"):
        as_split("digits")
    with refused("label for each"):
        Split(x, torch.zeros(3))


def test_arrays_are_copied_and_gradients_left_behind():
    array = rows().numpy()
    array.flags.writeable = False
    split = as_split(array)
    split.x.add_(1)
    assert np.array_equal(array, rows().numpy())
    assert not as_split(rows().requires_grad_()).x.requires_grad


def test_batches_in_order():
    x, y = rows(), torch.arange(N)
    parts = list(batches(Split(x, y, lambda x, g: x * 0), 6))
    assert [len(part) for part, _ in parts] == [6, 6, 6, 2]
    assert torch.equal(torch.cat([part for part, _ in parts]), x)
    assert torch.equal(torch.cat([labels for _, labels in parts]), y)
    assert [labels for _, labels in batches(Split(x), 15)] == [None, None]


def test_batches_shuffle_rows_with_their_labels():
    x = torch.arange(float(N)).unsqueeze(1)
    split = Split(x, torch.arange(N))
    source = generator()
    epochs = []
    for _ in range(2):
        parts = list(batches(split, 6, source))
        for part, labels in parts:
            assert torch.equal(part[:, 0].long(), labels)
        epochs.append(torch.cat([labels for _, labels in parts]))
        assert epochs[-1].sort().values.tolist() == list(range(N))
    assert not torch.equal(*epochs) and not torch.equal(epochs[0], torch.arange(N))


def test_batches_resume_from_the_state_of_the_generator():
    split = Split(rows((1, 8, 8)), None, augment_images((1, 8, 8)))
    source = generator()
    list(batches(split, 6, source))
    state = source.get_state()
    expected = [x for x, _ in batches(split, 6, source)]
    resumed = torch.Generator()
    resumed.set_state(state)
    for x, (again, _) in zip(expected, batches(split, 6, resumed), strict=True):
        assert torch.equal(x, again)


def test_batches_apply_the_transform_with_the_generator():
    split = Split(torch.zeros(N, 2), None, lambda x, g: x + torch.rand(1, generator=g))
    drawn = [float(x[0, 0]) for x, _ in batches(split, 6, generator())]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_batch_sizes_that_make_no_sense(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        batches(Split(rows()), batch_size)  # at the call


def test_frozen_draws_the_transform_once():
    split = Split(torch.full((100, 4), 0.5), None, pyro_vaes.data.augmentation.binarize)
    frozen = split.frozen(3)
    assert frozen.transform is None and set(frozen.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(frozen.x, split.frozen(3).x) and not torch.equal(frozen.x, split.frozen(4).x)
    assert frozen.frozen() is frozen


def test_digest_sees_values_labels_and_shapes():
    x, y = rows((4,)), torch.arange(N)
    one = load_data(x, labels=y)
    changed = x.clone()
    changed[3, 1] += 1
    others = [
        load_data(changed, labels=y),
        load_data(x, labels=y.flip(0)),
        load_data(x),
        load_data(x.reshape(N, 2, 2), labels=y),
    ]
    digests = [one.digest, *(other.digest for other in others)]
    assert len(set(digests)) == len(digests) and all(len(d) == 64 for d in digests)


def test_augmented_data_keep_their_kind():
    digits = load_data("digits").augmented(max_rotate=0.0)
    x, _ = next(batches(digits.train, 64, generator()))
    assert x.shape == (64, 64) and torch.equal(x, x.round()) and x.max() <= 16
    assert digits.val.transform is None
    binary = load_data(rows((1, 8, 8)) > 0, image_shape=(1, 8, 8)).augmented()
    x, _ = next(batches(binary.train, N, generator()))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    with refused("images to augment"):
        load_data(rows()).augmented()


def test_grey_images_are_moved_before_they_are_binarised(torchvision_root):
    name, root, _ = torchvision_root
    data = load_data(name, root=root)
    x, _ = next(batches(data.augmented().train, 20, generator()))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    # Moved far away, nothing is left; binarised first and moved by a fraction, it would be grey.
    far = dataclasses.replace(
        data.train,
        transform=pyro_vaes.data.augmentation.compose(lambda x, g: x * 0, data.train.transform),
    )
    assert next(batches(far, 20, generator()))[0].sum() == 0


# --- pseudo-inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["data", "mean", "random"])
@pytest.mark.parametrize("event_shape", EVENT_SHAPES, ids=str)
@pytest.mark.parametrize("num", [1, N, 3 * N + 1])
def test_pseudo_inputs_are_distinct_and_within_the_data(init, event_shape, num):
    x = rows(event_shape)
    u = pseudo_inputs(x, num, init, generator())
    assert u.shape == (num, *event_shape) and u.dtype == x.dtype
    assert (u >= x.amin(0)).all() and (u <= x.amax(0)).all()
    assert len(u.flatten(1).unique(dim=0)) == num
    assert torch.equal(u, pseudo_inputs(Split(x), num, init, generator()))
    assert not torch.equal(u, pseudo_inputs(x, num, init, generator(1)))


def test_pseudo_inputs_from_data_are_rows():
    x = rows()
    u = pseudo_inputs(x, N, "data", generator())
    assert torch.equal(u.sort(0).values, x.sort(0).values) and not torch.equal(u, x)
    more = pseudo_inputs(x, 3 * N, "data", generator())
    assert torch.equal(more[:N].sort(0).values, x.sort(0).values)
    distance = torch.cdist(more, x).min(1)
    assert distance.values[N:].min() > 0 and distance.values.max() < 0.2
    assert (distance.indices.bincount() == 3).all()  # every row as often


def test_pseudo_inputs_from_the_mean_and_at_random():
    x = rows((3,), 1000) * torch.tensor([1.0, 10.0, 0.0]) + 5
    u = pseudo_inputs(x, 2000, "mean", generator())
    torch.testing.assert_close(u.mean(0), x.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(u.std(0), 0.01 * x.std(0), rtol=0.1, atol=1e-9)
    u = pseudo_inputs(x, 2000, "random", generator())
    spread = (x.amax(0) - x.amin(0)) / 12**0.5
    torch.testing.assert_close(u.std(0), spread, rtol=0.05, atol=1e-9)


def test_pseudo_inputs_refuse_nonsense():
    for num in (0, -3):
        with pytest.raises(ValueError, match=f"num .*got {num}"):
            pseudo_inputs(rows(), num)
    with pytest.raises(ValueError, match="data, mean, random; got 'best'"):
        pseudo_inputs(rows(), 3, "best")


def test_labelled_pseudo_inputs_carry_the_label_of_their_rows():
    y = torch.arange(N) % 3
    split = Split(y.unsqueeze(1).float(), y)
    for num, init in itertools.product((3, 7, 50), ("data", "mean", "random")):
        u, labels = labelled_pseudo_inputs(split, num, init, generator())
        assert (u[:, 0] - labels).abs().max() < 0.2 and len(labels) == num
        assert len(u.unique()) == num  # Equal ones would never part.
        counts = labels.bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    gap = Split(rows(), torch.arange(N) % 2 * 2)
    assert labelled_pseudo_inputs(gap, 3)[1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="3 labels; got num=2"):
        labelled_pseudo_inputs(split, 2)
    with refused("labels; got one without"):
        labelled_pseudo_inputs(Split(rows()), 2)


def test_a_data_set_of_the_users_own_making():
    split = Split(rows())
    data = DataSet("mine", split, split, split, "real")
    assert data.event_shape == (5,) and "mine: 20 training" in data.describe()


# --- weights --------------------------------------------------------------------------------------


def test_an_epoch_draws_rows_by_their_weights():
    x = torch.arange(4.0)[:, None]
    split = Split(x, torch.arange(4), weights=[0.0, 1.0, 2.0, 5.0])
    source = torch.Generator().manual_seed(0)
    epochs = [list(batches(split, 3, source)) for _ in range(2000)]
    assert all([len(rows) for rows, _ in epoch] == [3, 1] for epoch in epochs)
    drawn = torch.cat([rows[:, 0] for epoch in epochs for rows, _ in epoch]).long()
    labels = torch.cat([y for epoch in epochs for _, y in epoch])
    assert torch.equal(drawn, labels)
    share = drawn.bincount(minlength=4) / len(drawn)
    # Of 8000 draws, within four errors.
    torch.testing.assert_close(share, torch.tensor([0, 1, 2, 5]) / 8, atol=0.025, rtol=0)
    assert share[0] == 0


def test_rows_in_order_come_as_often_as_their_weights_say():
    split = Split(torch.arange(6.0)[:, None], weights=torch.tensor([3, 0, 1, 1, 0, 1]))
    (rows, _), *_ = batches(split, 6)
    assert rows[:, 0].tolist() == [0, 0, 0, 2, 3, 5]
    alike = Split(torch.arange(6.0)[:, None], weights=[0.25] * 6)
    assert torch.equal(next(batches(alike, 6))[0], alike.x)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], "ab"])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(DataError, match="weight"):
        Split(torch.zeros(2, 1), weights=weights)


def frame_of_weights(**columns):
    random = np.random.default_rng(0)
    numbers = {"a": random.normal(size=40), "b": random.normal(size=40)}
    return pd.DataFrame({**numbers, "w": np.arange(40.0), **columns})


@pytest.mark.parametrize("columns", [{}, {"town": ["x", "y"] * 20}])
@pytest.mark.parametrize("by_name", [True, False])
def test_weights_of_a_table_stay_with_their_rows_and_are_no_data(columns, by_name):
    frame = frame_of_weights(**columns)
    rows = frame if by_name else frame.drop(columns="w")
    data = load_data(rows, weights="w" if by_name else frame["w"], label_column="")
    assert data.columns.names == ("a", "b", *columns)
    for name in ("train", "val"):
        split = getattr(data, name)
        assert torch.equal(split.weights, data.places[name].double())
        assert torch.equal(
            split.x[:, 0], torch.tensor(frame["a"].to_numpy()[data.places[name]]).float()
        )
    assert data.test.weights is None and "alike in testing" in data.describe()
    assert data.digest != load_data(rows, weights=np.ones(40), label_column="").digest


@pytest.mark.parametrize(
    ("cell", "said"),
    [(-1.0, "got -1.0"), (np.nan, "got none"), (np.inf, "got inf"), ("much", "much")],
)
def test_a_weight_that_is_none_is_refused_with_its_line(cell, said, tmp_path):
    frame = frame_of_weights().astype({"w": object})
    frame.loc[7, "w"] = cell
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=rf"weight of 0 or more.*{said}.* in line 9, column 'w'"):
        load_data(tmp_path / "t.csv", weights="w")


def test_weights_that_cannot_be_had_are_refused():
    with pytest.raises(DataError, match="column called 'v'; got a, b, w"):
        load_data(frame_of_weights(), weights="v")
    with pytest.raises(DataError, match="a table with a column of weights called 'w'"):
        load_data(torch.zeros(30, 2), weights="w")
    with pytest.raises(DataError, match="weight for each of 30 rows"):
        load_data(torch.rand(30, 2), weights=[1.0])
    with pytest.raises(DataError, match="no weights= with digits"):
        load_data("digits", weights="w")
    parts = {f"{s}_x": torch.rand(5, 2) for s in ("train", "val", "test")}
    with pytest.raises(DataError, match="no weights of data that bring their splits"):
        load_data(parts, weights=[1.0] * 15)


@pytest.mark.parametrize(
    "options",
    [
        {"header": False},
        {"label_column": "y"},
        {"label_column": ""},
        {"drop": ["a"]},
        {"types": {"a": "real"}},
    ],
)
def test_what_only_a_table_has_is_refused_of_other_data(options, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    said = f"Expected a t.* with {next(iter(options))}.*; got "
    for source, name in ((x, "ndarray"), (tmp_path / "x.npy", "x.npy"), ("digits", "digits")):
        with pytest.raises(DataError, match=said + name):
            load_data(source, **options)


def test_groups_of_data_without_columns_are_refused_in_words():
    with pytest.raises(DataError, match="a table with a column of groups called 'g'; got none"):
        load_data(torch.randn(30, 2), group="g")


def test_splits_that_are_known_are_made_in_no_other_way():
    for options in ({"val_fraction": 0.1}, {"test_fraction": 0.1}, {"seed": 1}, {"group": [1]}):
        with pytest.raises(DataError, match=rf"no {next(iter(options))}= with digits"):
            load_data("digits", **options)
    parts = {f"{s}_x": torch.rand(5, 2) for s in ("train", "val", "test")}
    with pytest.raises(DataError, match="no val_fraction or test_fraction of data that"):
        load_data(parts, val_fraction=0.1)


def test_weights_are_part_of_what_a_run_was_started_with():
    digests = []
    for weights in (None, [1.0, 2.0], [2.0, 1.0]):
        digest = hashlib.sha256()
        Split(torch.zeros(2, 1), weights=weights).digest(digest)
        digests.append(digest.hexdigest())
    assert len(set(digests)) == 3


def test_each_row_is_known_by_its_place_in_the_source():
    x = np.random.default_rng(0).normal(size=(30, 2)).astype("float32")
    data = load_data(x, seed=3)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(data, name).x, x[data.places[name]])
    assert sorted(torch.cat(list(data.places.values())).tolist()) == list(range(30))
    assert load_data({"train_x": x, "val_x": x, "test_x": x}).places is None
