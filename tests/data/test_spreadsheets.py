"""Tables as they come: separators, headers, indices, labels, and errors that name the cell."""

import gzip

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import load_data
from pyro_vaes.data.splits import as_split

X = np.random.default_rng(0).normal(size=(20, 3)).round(4)


def table(separator=",", header=("a", "b", "c"), rows=X, extra=None):
    lines = [] if header is None else [separator.join(header)]
    for i, row in enumerate(rows):
        cells = [*map(str, row.tolist())]
        lines.append(separator.join([*([] if extra is None else [str(extra[i])]), *cells]))
    return "\n".join(lines) + "\n"


def loaded(tmp_path, text, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return load_data(path, **options)


def test_every_separator_and_suffix_gives_the_same_data(tmp_path):
    expected = load_data(X).digest
    for separator, name in ((",", "a.csv"), (";", "b.csv"), ("\t", "c.tsv"), ("|", "d.csv")):
        data = loaded(tmp_path, table(separator), name)
        assert data.digest == expected
        assert ("separated by" in data.describe()) == (separator != ",")
    assert loaded(tmp_path, table(), "e.csv.gz").digest == expected
    assert loaded(tmp_path, table("\t"), "f.tsv.gz").digest == expected
    commas = table(";").replace(".", ",")
    data = loaded(tmp_path, commas, "g.csv")
    assert data.digest == expected and "decimal commas" in data.describe()
    assert loaded(tmp_path, table().replace("\n", "\r\n\r\n"), "h.csv").digest == expected


def test_a_header_of_numbers(tmp_path):
    counted = table(header=("0", "1", "2"))
    data = loaded(tmp_path, counted)
    assert data.digest == load_data(X).digest and "taken for a header" in data.describe()
    whole = loaded(tmp_path, counted, header=False)
    assert sum(map(len, (whole.train, whole.val, whole.test))) == 21
    years = table(header=("2001", "2002", "2003"))
    assert sum(map(len, (s := loaded(tmp_path, years), s.val, s.test)[1:])) == 8
    assert loaded(tmp_path, years, header=True).digest == load_data(X).digest


def test_an_index_is_left_out_and_that_is_said(tmp_path):
    for name in ("", "Unnamed: 0", "index", "Id"):
        for start in (0, 1):
            text = table(header=(name, "a", "b", "c"), extra=range(start, 20 + start))
            data = loaded(tmp_path, text)
            assert data.digest == load_data(X).digest
            assert "index" in data.describe()
    frame = tmp_path / "frame.csv"
    pd.DataFrame(X).to_csv(frame)
    assert load_data(frame).digest == load_data(X).digest
    kept = loaded(tmp_path, table(header=("id", "a", "b", "c"), extra=range(0, 40, 2)))
    assert kept.event_shape == (4,) and "not for an index" in kept.describe()
    assert loaded(
        tmp_path, table(header=("id", "a", "b", "c"), extra=range(0, 40, 2)), drop=["id"]
    ).event_shape == (3,)


@pytest.mark.parametrize(
    ("name", "values", "taken"),
    [
        ("species", ["cat", "dog"] * 10, True),
        ("target", [0, 1] * 10, True),
        ("target", np.arange(20) / 7, False),
        ("Class", [1, 2] * 10, True),
        ("y", [0, 1] * 10, True),
    ],
)
def test_columns_of_labels_are_said(tmp_path, name, values, taken):
    text = table(header=(name, "a", "b", "c"), extra=values)
    data = loaded(tmp_path, text)
    assert (data.num_labels is not None) == taken
    assert data.event_shape == ((3,) if taken else (4,))
    assert f"column {name!r} was taken for" in data.describe()
    if not isinstance(values[0], str):
        assert loaded(tmp_path, text, label_column="").event_shape == (4,)


def test_any_column_may_be_the_label(tmp_path):
    text = table(header=("sex", "a", "b", "c"), extra=["m", "f"] * 10)
    data = loaded(tmp_path, text, label_column="sex")
    assert data.label_names == ("f", "m")
    with pytest.raises(DataError, match="column called 'no'; got sex, a, b, c"):
        loaded(tmp_path, text, label_column="no")


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("red", r"number in line 4, column 'b' \(B\); got 'red'"),
        ("inf", r"line 4, column 'b' \(B\); got inf"),
    ],
)
def test_errors_name_the_cell_as_a_spreadsheet_does(tmp_path, cell, match):
    lines = table().splitlines()
    first, _, third = lines[3].split(",")
    lines[3] = f"{first},{cell},{third}"
    with pytest.raises(DataError, match=match):
        loaded(tmp_path, "\n".join(lines))


def test_a_row_of_gaps_is_no_blank_line(tmp_path):
    lines = table().splitlines()
    lines[3] = ",,"
    data = loaded(tmp_path, "\n".join(lines))
    whole = torch.cat([data.train.x, data.val.x, data.test.x])
    assert len(whole) == 20 and whole.isnan().all(1).sum() == 1


@pytest.mark.parametrize("cell", ["", "NA", "nan", " ", '" "', "N/A"])
def test_cells_without_a_value_are_gaps_and_counted(tmp_path, cell):
    lines = table().splitlines()
    first, _, third = lines[3].split(",")
    lines[3] = f"{first},{cell},{third}"
    data = loaded(tmp_path, "\n".join(lines))
    whole = torch.cat([data.train.x, data.val.x, data.test.x])
    assert whole.isnan().sum() == 1 and whole[:, 1].isnan().any()
    assert "1 of 60 values (1.7%) are gaps" in data.describe()
    with pytest.raises(DataError, match=r"without gaps .*got 1 of 60"):
        loaded(tmp_path, "\n".join(lines), missing="refuse")


def test_columns_beyond_z_have_two_letters(tmp_path):
    rows = np.ones((5, 30)).astype(object)
    rows[2, 27] = "x"
    with pytest.raises(DataError, match=r"line 3, column AB; got 'x'"):
        loaded(tmp_path, table(header=None, rows=rows))


def test_truth_is_a_number(tmp_path):
    text = table(header=("ok", "a", "b", "c"), extra=[True, False] * 10)
    assert loaded(tmp_path, text).event_shape == (4,)


def test_data_frames(tmp_path):
    frame = pd.DataFrame(X, columns=list("abc"), index=np.arange(20) + 7).assign(
        label=["u", "v"] * 10
    )
    data = load_data(frame)
    assert data.event_shape == (3,) and data.label_names == ("u", "v")
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "t.parquet")
    assert load_data(tmp_path / "t.parquet").digest == data.digest


def test_an_index_with_a_name_is_no_column_and_that_is_said():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 2)), columns=["a", "b"])
    assert "index" not in load_data(frame).describe()
    data = load_data(frame.assign(c=frame["a"] / 7).set_index("c"))
    assert "The index of the frame, 'c', was left out." in data.describe()
    assert data.event_shape == (2,)


def test_labels_of_any_kind_are_numbered_and_that_is_said():
    x = torch.randn(40, 2)
    classes = np.arange(40) % 2
    for names, labels in (
        (("cat", "dog"), np.array(["cat", "dog"])[classes]),
        (("-1", "1"), 2 * classes - 1),
        (("1000000000", "1000000001"), 10**9 + classes),
        (("90210", "90211"), (90210 + classes).astype(float)),
    ):
        for source in ((x, labels), {"x": x, "label": labels}):
            data = load_data(source)
            assert data.label_names == names and data.num_labels == 2
            assert f"0 is {names[0]}, 1 is {names[1]}" in data.describe()
        order = load_data((x, classes))
        assert torch.equal(data.train.y, order.train.y)
    for kept in (classes, classes + 1, classes.astype(bool), classes.astype(np.uint8)):
        assert load_data((x, kept)).label_names is None


def test_splits_share_the_numbers_of_their_classes():
    x = torch.randn(4, 2)
    words = {"train": ["a", "c"] * 2, "val": ["b"] * 4, "test": ["c"] * 4}
    parts = {f"{name}_x": x for name in words} | {f"{name}_y": words[name] for name in words}
    data = load_data(parts)
    assert data.label_names == ("a", "b", "c")
    assert data.val.y.tolist() == [1] * 4
    assert data.labels == (0, 2)
    assert "No training row has the label b" in data.describe()


def test_folders_of_pictures(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        folder = tmp_path / "set" / ("cats" if i < 4 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    data = load_data(tmp_path / "set")
    assert data.image_shape == (3, 6, 5) and data.label_names == ("cats", "dogs")
    assert data.digest == load_data((pixels, np.arange(8) // 4)).digest
    assert load_data(str(tmp_path / "set" / "cats")).num_labels is None
    Image.fromarray(pixels[0, :3]).save(tmp_path / "set" / "cats" / "small.png")
    with pytest.raises(DataError, match="one size; got 5x3, 5x6"):
        load_data(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one for each class; got neither"):
        load_data(tmp_path / "empty")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_upright_as_their_cameras_say(tmp_path, suffix):
    from PIL import Image

    upright = np.zeros((5, 16, 8), np.uint8)
    upright[:, :8] = 255
    for i, pixels in enumerate(upright):
        lying = Image.fromarray(np.rot90(pixels) if i else pixels).convert("RGB")
        lying.getexif()[0x0112] = 6 if i else 1  # To be turned by 90 degrees, clockwise.
        lying.save(tmp_path / f"{i}.{suffix}", exif=lying.getexif(), quality=100)
    data = load_data(tmp_path)
    assert data.image_shape == (3, 16, 8)
    assert "turned upright, as their EXIF orientation says" in data.describe()
    seen = torch.cat([data.train.x, data.val.x, data.test.x]).reshape(5, 3, 16, 8)
    assert (seen[:, :, :7] > 200).all() and (seen[:, :, 9:] < 50).all()


def test_a_damaged_exif_block_says_nothing(tmp_path):
    from PIL import Image

    for i in range(5):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png", exif=b"no such block")
    assert "upright" not in load_data(tmp_path, image_shape=(1, 4, 4)).describe()


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [("uint16", "png"), ("uint16", "tif"), ("int32", "tif"), ("float32", "tif")],
)
def test_pictures_of_more_than_a_byte_are_not_cut_off(tmp_path, dtype, suffix):
    from PIL import Image

    for i in range(5):
        Image.fromarray((np.arange(20).reshape(4, 5) * 50 + i).astype(dtype)).save(
            tmp_path / f"{i}.{suffix}"
        )
    with pytest.raises(DataError, match=f"8 bits a channel; got more in 0.{suffix}"):
        load_data(tmp_path)


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 5), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.tif")
    assert "left out" not in load_data(tmp_path).describe().lower()
    Image.fromarray(pixels[0]).save(
        tmp_path / "0.tif", save_all=True, append_images=[Image.fromarray(pixels[1])]
    )
    (tmp_path / ".hidden").write_text("")
    deeper = tmp_path / "deeper" / "notes.txt"
    deeper.parent.mkdir()
    deeper.write_text("")
    said = load_data(tmp_path).describe()
    assert "several frames or pages the first was taken" in said
    assert f"deeper: {deeper.relative_to(tmp_path)}." in said
    clear = Image.fromarray(pixels[2])
    clear.save(tmp_path / "clear.png", transparency=3)
    data = load_data(tmp_path)
    assert "transparency was left out" in data.describe() and data.image_shape == (1, 6, 5)


def test_columns_without_names_have_letters(tmp_path):
    rows = "".join(f"{i / 7:.3f},{i % 3},{i % 5 / 7:.2f}\n" for i in range(30))
    (tmp_path / "a.csv").write_text(rows)
    data = load_data(tmp_path / "a.csv", group="B", drop=["C"])
    assert data.event_shape == (1,)
    groups = [set((data.places[split] % 3).tolist()) for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == 3
    with pytest.raises(DataError, match="column called '1'; got A, B, C"):
        load_data(tmp_path / "a.csv", drop=["1"])
    # It would stay among the data.
    with pytest.raises(DataError, match="a first row of names in a table with a column of labels"):
        load_data(tmp_path / "a.csv", label_column="B")
    assert load_data(tmp_path / "a.csv", label_column="").event_shape == (3,)


def test_sparse_matrices_are_read():
    sparse = pytest.importorskip("scipy.sparse")
    counts = np.random.default_rng(0).integers(0, 3, (20, 4))
    expected = load_data(counts).digest
    assert load_data(sparse.csr_matrix(counts)).digest == expected
    assert load_data(torch.from_numpy(counts).to_sparse()).digest == expected


def test_what_is_odd_about_real_data_is_said():
    x = torch.randn(60, 3)
    assert not load_data(x).notes
    x[:, 1] = 5.5
    assert "element 1 is always 5.5" in load_data(x).describe()
    x = torch.randn(60, 3)
    x[::2, 2] = 1e30
    x[1::2, 2] = torch.randn(30)
    x[::2, 2][1:] = torch.randn(29)
    found = [load_data(x, seed=seed).describe() for seed in range(6)]
    assert any("A value of 1e+30 in element 2" in text for text in found)


def test_columns_that_blanks_align(tmp_path):
    expected = loaded(tmp_path, table())
    text = table(separator="  ").replace(" -", "-")
    data = loaded(tmp_path, text)
    assert data.digest == expected.digest and "separated by spaces" in data.describe()
    nameless = loaded(tmp_path, table(separator=" \t", header=None).replace("\t", " "))
    assert nameless.digest == loaded(tmp_path, table(header=None)).digest
    # One column with a name of two words is no two columns.
    lone = "body mass\n" + "\n".join(map(str, X[:, 0])) + "\n"
    assert loaded(tmp_path, lone).event_shape == (1,)
    with pytest.raises(DataError, match=r"Expected 3 cells in line 22; got 2"):
        loaded(tmp_path, table(separator=" ") + "1.5 2.5\n")


def test_a_first_row_taken_for_data_is_said(tmp_path):
    for header in (None, ("1", "2", "3")):
        assert "first row was taken for data" in loaded(tmp_path, table(header=header)).describe()
    for options in ({"header": False}, {"header": True}):
        said = loaded(tmp_path, table(header=("1", "2", "3")), **options).describe()
        assert "first row" not in said
    assert "first row" not in loaded(tmp_path, table()).describe()


def test_separators_of_thousands_are_refused_with_their_place(tmp_path):
    text = 'a,b\n1.5,"1,000"\n' + '2.5,"2,500.5"\n1.5,7\n' * 9
    with pytest.raises(DataError, match=r"thousands; got '1,000' in line 2, column 'b' \(B\)"):
        loaded(tmp_path, text)
    words = "a,b\n" + '1.5,"x, y"\n2.5,"1,000"\n' * 9
    assert loaded(tmp_path, words).kind == "table"


def test_lines_that_end_in_a_separator(tmp_path):
    text = table().replace("\n", ",\n")
    data = loaded(tmp_path, text)
    assert data.digest == loaded(tmp_path, table()).digest
    assert "without a name was left out: it is empty" in data.describe()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_has_its_line(encoding, tmp_path):
    (tmp_path / "t.csv").write_bytes(table(header=("é", "b", "c")).encode(encoding))
    with pytest.raises(DataError, match=r"Expected text in UTF-8.*Save it as UTF-8"):
        load_data(tmp_path / "t.csv")


def test_columns_of_two_values_are_said_among_real_ones():
    rows = np.column_stack([X, np.arange(20) % 2, np.full(20, 3.0)])
    said = load_data(rows).describe()
    assert "1 of 5 elements have two values only (element 3: 0 and 1)" in said
    assert "two values" not in load_data(X).describe()
    assert "two values" not in load_data((X > 0).astype(float)).describe()  # These are binary.


def test_large_unsigned_numbers_stay_positive():
    rows = np.array([[2**63 + 5, 1], [2**63 + 2**60, 2]] * 10, dtype=np.uint64)
    data = load_data(rows)
    assert data.train.x.min() >= 0 and data.train.x.max() > 9e18
    labels = np.full(20, 2**63 + 5, dtype=np.uint64)
    with pytest.raises(DataError, match=r"whole numbers of at least 0; got 9\.2"):
        as_split(X, labels)


def test_a_header_is_of_a_text_file_alone():
    frame = pd.DataFrame({"a": range(20), "b": range(20)})
    for source in (frame, np.ones((20, 2))):
        with pytest.raises(DataError, match="Expected a text file of rows with header; got "):
            load_data(source, header=False)
