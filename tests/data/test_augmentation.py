"""Laws of the transforms of training batches."""

import math

import pytest
import torch

from pyro_vaes.data.augmentation import augment_images, binarize, compose, move_images

SHAPES = [(1, 8, 8), (3, 7, 12)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(shape=(1, 7, 7), n=4, seed=0):
    return torch.rand(n, *shape, generator=generator(seed), dtype=torch.float64)


def moved(x, right=0.0, down=0.0, angle=0.0, scale=1.0, shear=0.0):
    moves = (right, down, angle, scale, shear)
    return move_images(x, *(torch.full((len(x),), move, dtype=x.dtype) for move in moves))


def test_no_move_changes_nothing():
    for shape in SHAPES:
        x = images(shape)
        torch.testing.assert_close(moved(x), x)


def test_whole_shifts_are_slices_with_zeros_moving_in():
    x = images((2, 5, 9))
    result = moved(x, right=2.0, down=-1.0)
    expected = torch.zeros_like(x)
    expected[..., :-1, 2:] = x[..., 1:, :-2]
    torch.testing.assert_close(result, expected)


def test_half_a_pixel_is_the_cubic_between_four():
    x = images()
    inner, outer = 0.59375, -0.09375  # Keys' kernel at a = -3/4, half way
    expected = inner * (x[..., 1:-2] + x[..., 2:-1]) + outer * (x[..., :-3] + x[..., 3:])
    torch.testing.assert_close(moved(x, right=0.5)[..., 2:-1], expected)


def test_angles_turn_counter_clockwise():
    x = images()
    torch.testing.assert_close(moved(x, angle=math.pi / 2), torch.rot90(x, 1, (-2, -1)))


def test_angles_live_in_pixels_whatever_the_aspect():
    # A bar along the middle row of a wide image, turned upright, keeps its length in pixels.
    x = torch.zeros(1, 1, 7, 21, dtype=torch.float64)
    x[..., 3, 8:13] = 1
    expected = torch.zeros_like(x)
    expected[..., 1:6, 10] = 1
    torch.testing.assert_close(moved(x, angle=math.pi / 2), expected)


def test_scale_grows_about_the_centre():
    ramp = (torch.arange(9, dtype=torch.float64) - 4).expand(1, 1, 9, 9)
    torch.testing.assert_close(moved(ramp, scale=2.0), ramp / 2)


def test_shear_moves_each_row_by_its_distance_from_the_middle():
    x = images((1, 3, 6))
    result = moved(x, shear=1.0)
    torch.testing.assert_close(result[..., 1, :], x[..., 1, :])
    torch.testing.assert_close(result[..., 2, 1:], x[..., 2, :-1])
    torch.testing.assert_close(result[..., 0, :-1], x[..., 0, 1:])


def test_shift_comes_last():
    x = images()
    together = moved(x, right=1.0, down=2.0, angle=math.pi / 2)
    torch.testing.assert_close(together, moved(moved(x, angle=math.pi / 2), right=1.0, down=2.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_levels_stay_levels_and_flat_rows_flat(shape):
    x = torch.randint(0, 17, (50, *shape), generator=generator()).float()
    transform = augment_images(shape, num_levels=17)
    result = transform(x, generator())
    assert result.shape == x.shape and result.dtype == x.dtype
    assert torch.equal(result, result.round()) and result.min() >= 0 and result.max() <= 16
    assert not torch.equal(result, x)
    torch.testing.assert_close(transform(x.flatten(1), generator()), result.flatten(1))


def test_all_randomness_comes_from_the_generator():
    x, transform = images((1, 8, 8)), augment_images((1, 8, 8))
    state = torch.get_rng_state()
    source = generator()
    first, second = transform(x, source), transform(x, source)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, transform(x, generator())) and not torch.equal(first, second)


def test_each_image_of_a_batch_has_its_own_move():
    x = images(n=1).expand(5, 1, 7, 7)
    result = augment_images((1, 7, 7), probability=1.0)(x, generator())
    assert len(torch.unique(result, dim=0)) == 5


def test_only_some_images_are_moved():
    x = images(n=1).expand(4000, 1, 7, 7)
    result = augment_images((1, 7, 7), probability=0.3)(x, generator())
    moved_part = (result != x).flatten(1).any(1).double().mean()
    assert abs(moved_part - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    assert torch.equal(augment_images((1, 7, 7), probability=0.0)(x, generator()), x)


def test_moves_fill_their_range_evenly_and_no_more(monkeypatch):
    seen = []

    def watched(images, *moves):
        seen.append(moves)
        return images

    monkeypatch.setattr("pyro_vaes.data.augmentation.move_images", watched)
    x = torch.zeros(4000, 1, 9, 9, dtype=torch.float64)
    augment_images((1, 9, 9), max_shift=1.5, max_rotate=0, max_scale=0, max_shear=0)(x, generator())
    right, down, angle, scale, shear = seen[0]
    for shifts in (right, down):
        assert shifts.abs().max() <= 1.5
        assert abs(shifts.mean()) < 5 * 1.5 / math.sqrt(3 * 4000)
        assert abs(shifts.var() - 1.5**2 / 3) < 0.05
    assert abs(torch.corrcoef(torch.stack([right, down]))[0, 1]) < 0.1
    assert not angle.any() and not shear.any() and bool((scale == 1).all())


def test_strengths_of_zero_leave_the_images():
    x = torch.randint(0, 17, (20, 64), generator=generator()).float()
    still = augment_images(
        (1, 8, 8), max_shift=0, max_rotate=0, max_scale=0, max_shear=0, num_levels=17
    )
    assert torch.equal(still(x, generator()), x)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 8), {}),
        ((1, 0, 8), {}),
        ((1, 8, 8), {"max_shift": -1}),
        ((1, 8, 8), {"max_rotate": math.nan}),
        ((1, 8, 8), {"max_scale": math.inf}),
        ((1, 8, 8), {"num_levels": 1}),
    ],
)
def test_refusals(shape, options):
    with pytest.raises(ValueError, match=r"^Expected .*; got "):
        augment_images(shape, **options)


def test_a_batch_of_other_images_is_refused():
    with pytest.raises(ValueError, match=r"Expected images of shape \(1, 8, 8\); got \(49,\)"):
        augment_images((1, 8, 8))(torch.zeros(3, 49), generator())


def test_binarize_draws_with_the_elements_as_probabilities():
    p = torch.tensor([0.0, 0.2, 0.7, 1.0]).expand(20_000, 4)
    x = binarize(p, generator())
    assert x.dtype == p.dtype and set(x.unique().tolist()) == {0.0, 1.0}
    assert x[:, 0].sum() == 0 and x[:, 3].sum() == len(x)
    assert (x.mean(0) - p[0]).abs().max() < 5 * math.sqrt(0.25 / len(p))
    assert torch.equal(x, binarize(p, generator()))


def test_compose_applies_from_left_to_right():
    def add(x, g):
        return x + 1

    def double(x, g):
        return 2 * x

    x = torch.ones(2, 1)
    assert compose() is None and compose(None, None) is None and compose(None, add) is add
    assert compose(add, None, double)(x, generator()).tolist() == [[4.0], [4.0]]
