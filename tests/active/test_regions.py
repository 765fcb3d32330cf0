"""Squares of pixels against naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adaptseg.active.regions import dilate, squares


def naive_dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    result = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        result[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
    return result


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (6, 11), (16, 5)])
@pytest.mark.parametrize("radius", [0, 1, 2, 4, 40])
def test_dilate_equals_a_loop_over_pixels(size: tuple[int, int], radius: int) -> None:
    rng = np.random.default_rng(radius * 100 + size[0])
    for density in (0.0, 0.03, 0.3, 1.0):
        mask = rng.random(size) < density
        dilated = dilate(mask, radius)
        assert dilated.dtype == bool
        np.testing.assert_array_equal(dilated, naive_dilate(mask, radius))


def test_dilate_leaves_its_argument_alone() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = True
    for radius in (0, 1):
        dilated = dilate(mask, radius)
        dilated[:] = True
        assert mask.sum() == 1


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_squares_are_the_union_of_clipped_squares(radius: int) -> None:
    size, yx = (9, 13), torch.tensor([[0, 0], [8, 12], [4, 6], [4, 7], [4, 6]])
    expected = np.zeros(size, bool)
    for y, x in yx.tolist():
        for row in range(size[0]):
            for column in range(size[1]):
                expected[row, column] |= max(abs(row - y), abs(column - x)) <= radius
    np.testing.assert_array_equal(squares(size, yx, radius), expected)


def test_no_centres_buy_nothing() -> None:
    assert not squares((5, 6), torch.empty((0, 2), dtype=torch.int64), 2).any()
