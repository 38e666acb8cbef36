"""Shapes of distributions over elements."""

from __future__ import annotations

import pytest
import torch
from torch import Size

from pyro_vaes.distributions.elements import joined_shape


@pytest.mark.parametrize(
    "shapes",
    [
        [()],
        [(3,), ()],
        [(2, 3), (3,), (2, 3)],
        [(3,), (2, 3)],
        [(1, 3), (2, 1)],
        [(5, 1, 3), (2, 3), (1,)],
        [(0,), (1,)],
        [(4, 0, 3), (0, 3)],
    ],
)
def test_joined_shapes_are_those_of_torch(shapes):
    sizes = [Size(shape) for shape in shapes]
    joined = joined_shape(*sizes)
    assert joined == torch.broadcast_shapes(*sizes) and isinstance(joined, Size)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RuntimeError, match="broadcast"):
        joined_shape(Size((2, 3)), Size((2,)))
