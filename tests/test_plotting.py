"""Pictures: what is in them, and that nothing in them hides anything else."""

import itertools

import numpy as np
import pytest
import torch

import pyro_vaes as pv
from pyro_vaes import plotting
from pyro_vaes.plotting import apart


def make_vae(latent_dim, event_shape=(6,), num_levels=4):
    torch.manual_seed(0)
    size = int(np.prod(event_shape))
    return pv.VAE(
        pv.NormalPrior(latent_dim),
        pv.NormalPosterior(pv.MLP(size, [16]), latent_dim, list(event_shape)),
        pv.CategoricalLikelihood(pv.MLP(latent_dim, [16]), list(event_shape), num_levels),
    )


def drawn(figure):
    """The axes of a figure, once it has been laid out."""
    plotting.FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def records(train, val=None):
    val = val or train
    return [
        {"epoch": i + 1, "train_loss": a, "val_loss": b}
        for i, (a, b) in enumerate(zip(train, val, strict=True))
    ]


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_names_of_labels_do_not_hide_each_other(latent_dim):
    # One datum for all labels: without care, all names would be in one place.
    split = pv.Split(torch.ones(40, 6), torch.arange(40) % 8)
    axes = drawn(plotting.latent_space(make_vae(latent_dim), split))
    assert [text.get_text() for text in axes.texts] == list("01234567")
    places = [axes.transAxes.inverted().transform(text.get_window_extent()) for text in axes.texts]
    for a, b in itertools.combinations([place.mean(0) for place in places], 2):
        assert np.hypot(*(a - b)) > 0.03


def test_latent_space_of_one_dimension_shows_the_density_of_the_prior():
    split = pv.Split(torch.randint(0, 4, (40, 6)).float(), torch.arange(40) % 3)
    axes = drawn(plotting.latent_space(make_vae(1), split))
    top = max(path.vertices[:, 1].max() for path in axes.collections[0].get_paths())
    assert top == pytest.approx(1 / np.sqrt(2 * np.pi), rel=0.1)
    lines = [np.unique(points.get_offsets()[:, 1]) for points in axes.collections[1:]]
    assert len(lines) == len(np.unique(np.concatenate(lines))) == 3


def test_latent_space_without_labels_and_of_a_single_datum():
    for split in (pv.Split(torch.ones(7, 6)), pv.Split(torch.ones(1, 6))):
        axes = drawn(plotting.latent_space(make_vae(3), split))
        assert len(axes.collections[-1].get_offsets()) == len(split)


@pytest.mark.parametrize("val", [[8.0, 5.0, 4.0], [9.0, 5.0, 3.999], [9.0, 5.0, 4.1]])
def test_names_of_learning_curves_do_not_hide_each_other(val):
    axes = drawn(plotting.learning_curves(records([9.0, 5.0, 4.0], val), 3))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert {text.get_text().strip() for text in axes.texts} == {"training", "validation", "kept"}
    below, above = sorted(boxes[:2], key=lambda box: box.y0)
    assert below.y1 < above.y0 + 1
    assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("best", [1, 10])
def test_the_kept_epoch_is_named_inside_the_picture(best):
    axes = drawn(plotting.learning_curves(records(list(range(10, 0, -1))), best))
    (kept,) = (text for text in axes.texts if text.get_text().strip() == "kept")
    outside = axes.get_window_extent()
    box = kept.get_window_extent()
    assert outside.x0 <= box.x0 and box.x1 <= outside.x1


@pytest.mark.parametrize("shape", [(1, 20, 10), (3, 37, 41), (1, 8, 8)])
def test_a_grid_holds_each_image_whole(shape, tmp_path):
    images = torch.rand(7, *shape)
    figure = plotting.image_grid(images, shape, columns=3, value_range=(0.0, 1.0))
    sheet = figure.axes[0].images[0].get_array()
    gap = max(1, shape[1] // 8)
    top, left = shape[1] + gap, shape[2] + gap  # of the second row's second image
    found = torch.as_tensor(np.array(sheet[top : top + shape[1], left : left + shape[2]]))
    expected = images[4].permute(1, 2, 0) if shape[0] == 3 else 1 - images[4][0]
    torch.testing.assert_close(found.float(), expected)
    path = plotting.save_figure(figure, tmp_path / "new" / "grid.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_reconstructions_stand_under_their_data():
    vae = make_vae(2, (1, 4, 4))
    x = torch.randint(0, 4, (5, 1, 4, 4)).float()
    sheet = plotting.reconstructions(vae, pv.Split(x), (1, 4, 4)).axes[0].images[0].get_array()
    low, high = x.min(), x.max()
    for row, images in enumerate((x, vae.reconstruct(x))):
        expected = 1 - ((images - low) / (high - low)).clamp(0, 1)
        for column in range(5):
            found = sheet[row * 5 : row * 5 + 4, column * 5 : column * 5 + 4]
            np.testing.assert_allclose(found, expected[column, 0].numpy(), atol=1e-6)


def test_names_of_lines_that_end_together_stand_clear_of_each_other():
    from matplotlib import pyplot

    from pyro_vaes.experiments.panels import name_ends

    figure, ax = pyplot.subplots()
    ax.set_yscale("log")
    ends = [(2.0, y, f"line {y}", "k") for y in (1e-4, 1.01e-4, 1.02e-4, 1.0, 1e3)]
    for x, y, _, _ in ends:
        ax.plot([1, x], [y, y])
    name_ends(ax, ends, 8)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    pyplot.close(figure)
    assert len(boxes) == 5
    for below, above in itertools.pairwise(boxes):
        assert below.y0 < above.y0
        assert below.y1 <= above.y0 + 2  # Descenders may touch.


def test_no_names_need_no_room():
    assert apart([], 1.0).size == 0
    assert apart([[0.0, 0.0], [0.0, 0.0]], 1.0).shape == (2, 2)
