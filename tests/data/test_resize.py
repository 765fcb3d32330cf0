"""Nearest-neighbour resize against exact fractions, Pillow and torch."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from PIL import Image

from adaptseg.data.resize import resize_nearest

SIZES = [((1, 1), (3, 4)), ((5, 7), (5, 14)), ((8, 6), (4, 3)), ((7, 9), (3, 11)), ((6, 6), (1, 1)), ((11, 3), (33, 2))]


def naive(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    result = np.empty((*size, *labels.shape[2:]), labels.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            row = floor((y + Fraction(1, 2)) * labels.shape[0] / size[0])
            column = floor((x + Fraction(1, 2)) * labels.shape[1] / size[1])
            result[y, x] = labels[row, column]
    return result


@pytest.mark.parametrize(("native", "size"), SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
def test_equals_exact_arithmetic(native: tuple[int, int], size: tuple[int, int], dtype: type):
    labels = np.random.default_rng(0).integers(0, 200, native).astype(dtype)
    resized = resize_nearest(labels, size)
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, naive(labels, size))


@pytest.mark.parametrize("seed", range(20))
def test_random_sizes(seed: int):
    rng = np.random.default_rng(seed)
    native, size = (tuple(int(v) for v in rng.integers(1, 40, 2)) for _ in range(2))
    labels = rng.integers(0, 256, native).astype(np.uint8)
    np.testing.assert_array_equal(resize_nearest(labels, size), naive(labels, size))


@pytest.mark.parametrize(("native", "size"), [((8, 12), (4, 6)), ((6, 10), (18, 20)), ((9, 15), (3, 5))])
def test_agrees_with_pillow_and_torch_where_no_rounding_is_involved(native: tuple[int, int], size: tuple[int, int]):
    labels = np.random.default_rng(0).integers(0, 256, native).astype(np.uint8)
    ours = resize_nearest(labels, size)
    pillow = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(ours, np.asarray(pillow))
    tensor = torch.from_numpy(labels)[None, None]
    exact = torch.nn.functional.interpolate(tensor, size, mode="nearest-exact")
    np.testing.assert_array_equal(ours, exact[0, 0].numpy())


def test_equal_sizes_are_the_identity():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert resize_nearest(labels, (3, 4)) is labels
    assert resize_nearest(labels, (3, 5)) is not labels


def test_further_axes_are_kept():
    values = np.random.default_rng(0).random((4, 5, 3))
    np.testing.assert_array_equal(resize_nearest(values, (7, 2)), naive(values, (7, 2)))
