"""Simulated annotators against naive loops and SciPy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from adaptseg.active.oracles import GroundTruth, NoisyGroundTruth, Oracle, components
from adaptseg.classes import CAMVID
from adaptseg.data.resize import resize_nearest
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError

C = CAMVID.num_classes


class Pool(Scenes):
    """Random labels in blocks of 4 pixels, so that components have several classes, a sixth of them void."""

    def __init__(self, size: tuple[int, int] = (40, 60), labelled: bool = True) -> None:
        self.keys = ("a", "b/c")
        self.class_table = CAMVID
        self.labelled = labelled
        self._size = size

    def image(self, key: str):
        return np.zeros((*self._size, 3), np.uint8)

    def labels(self, key: str):
        rng = np.random.default_rng(len(key))
        height, width = self._size
        blocks = rng.integers(0, C, (-(-height // 4), -(-width // 4))).astype(np.uint8)
        blocks[rng.random(blocks.shape) < 1 / 6] = 255
        return blocks.repeat(4, 0).repeat(4, 1)[:height, :width]

    def size(self, key: str):
        return self._size


def bound(oracle: Oracle, pool: Scenes | None = None) -> Oracle:
    oracle.bind(pool or Pool())
    return oracle


def squares(rng: np.random.Generator, size: tuple[int, int], count: int, radius: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    for y, x in zip(rng.integers(0, size[0], count), rng.integers(0, size[1], count), strict=True):
        mask[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    return mask


@pytest.mark.parametrize("size", [(40, 60), (20, 30), (13, 71), (80, 120)])
def test_ground_truth_answers_on_the_pool_grid(size: tuple[int, int]):
    pool, rng = Pool(), np.random.default_rng(0)
    oracle = bound(GroundTruth(), pool)
    bought = rng.random(size) < 0.3
    truth = resize_nearest(pool.labels("b/c"), size)
    answer = oracle.answer("b/c", bought)
    assert answer.dtype == np.uint8
    for y in range(size[0]):
        for x in range(size[1]):
            assert answer[y, x] == (truth[y, x] if bought[y, x] else 255)
    np.testing.assert_array_equal(oracle.void("b/c", size), truth == 255)
    np.testing.assert_array_equal(oracle.truth("b/c", size), truth)
    assert (oracle.answer("a", np.zeros(size, bool)) == 255).all()


@pytest.mark.parametrize("oracle", [GroundTruth(), NoisyGroundTruth(error_rate=0.1)])
def test_pool_without_labels(oracle: Oracle):
    with pytest.raises(AdaptSegError, match=r"the pool \(Pool\) has no ground truth to simulate the oracle with"):
        oracle.bind(Pool(labelled=False))
    with pytest.raises(RuntimeError, match="before bind"):
        oracle.answer("a", np.ones((4, 4), bool))


def test_an_oracle_of_people_needs_only_answer():
    class People(Oracle):
        def answer(self, key, bought):
            return np.where(bought, 3, 255).astype(np.uint8)

    oracle = bound(People(), Pool(labelled=False))
    assert oracle.truth("a", (4, 4)) is None
    with pytest.raises(AdaptSegError, match=r"People cannot know void .* active\.forbid_void"):
        oracle.void("a", (4, 4))


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan"), float("inf")])
def test_error_rate_is_a_probability(rate: float):
    with pytest.raises(AdaptSegError, match=r"error_rate is .* from 0 to 1"):
        NoisyGroundTruth(error_rate=rate)


def test_unknown_unit():
    with pytest.raises(AdaptSegError, match="unit is 'image'; give 'component' or 'pixel'"):
        NoisyGroundTruth(error_rate=0.5, unit="image")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("unit", ["pixel", "component"])
def test_no_errors_is_ground_truth(unit):
    bought = squares(np.random.default_rng(0), (40, 60), 30, 1)
    noisy, exact = bound(NoisyGroundTruth(error_rate=0, unit=unit)), bound(GroundTruth())
    np.testing.assert_array_equal(noisy.answer("a", bought), exact.answer("a", bought))


@pytest.mark.parametrize("unit", ["pixel", "component"])
@pytest.mark.parametrize("size", [(40, 60), (25, 33)])
def test_noise_depends_on_seed_and_key_alone(unit, size: tuple[int, int]):
    bought = squares(np.random.default_rng(0), size, 30, 1)
    oracle = bound(NoisyGroundTruth(error_rate=0.5, seed=3, unit=unit))
    first = oracle.answer("a", bought)
    oracle.answer("b/c", bought)
    np.random.seed(0)  # noqa: NPY002 - global state must not matter
    np.testing.assert_array_equal(oracle.answer("a", bought), first)
    fresh = bound(NoisyGroundTruth(error_rate=0.5, seed=3, unit=unit))
    np.testing.assert_array_equal(fresh.answer("a", bought), first)
    other = bound(NoisyGroundTruth(error_rate=0.5, seed=4, unit=unit))
    assert (other.answer("a", bought) != first).any()
    assert (fresh.truth("a", size) == GroundTruth.truth(oracle, "a", size)).all()  # pictures show no noise
    if unit == "pixel":  # whatever is asked together
        half = bought.copy()
        half[: size[0] // 2] = False
        np.testing.assert_array_equal(oracle.answer("a", half), np.where(half, first, 255))
    else:  # components far apart do not influence each other
        labelled, _ = ndimage.label(bought)
        part = labelled % 2 == 1
        np.testing.assert_array_equal(oracle.answer("a", part), np.where(part, first, 255))


def test_pixel_errors_have_the_stated_rate_and_are_uniform_over_other_classes():
    size = (300, 400)
    oracle = bound(NoisyGroundTruth(error_rate=0.3, unit="pixel"), Pool(size))
    bought = np.random.default_rng(0).random(size) < 0.8
    truth, answer = oracle.truth("a", size), oracle.answer("a", bought)
    assert truth is not None
    assert ((answer == 255) == ~(bought & (truth != 255))).all()
    asked = bought & (truth != 255)
    wrong = asked & (answer != truth)
    n = asked.sum()
    assert abs(wrong.sum() / n - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)
    assert answer[asked].max() < C
    offsets = np.bincount((answer[wrong].astype(int) - truth[wrong]) % C, minlength=C)
    assert offsets[0] == 0
    assert (np.abs(offsets[1:] / wrong.sum() - 1 / (C - 1)) < 0.01).all()


@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_component_errors(rate: float):
    rng = np.random.default_rng(1)
    size = (400, 600)
    oracle = bound(NoisyGroundTruth(error_rate=rate), Pool(size))
    bought = squares(rng, size, 1500, 1)
    truth, answer = oracle.truth("a", size), oracle.answer("a", bought)
    assert truth is not None
    labelled, count = ndimage.label(bought)  # SciPy's default structure is 4-connected
    erred = possible = 0
    for index, where in enumerate(ndimage.find_objects(labelled), 1):
        inside = labelled[where] == index
        true, given = truth[where][inside], answer[where][inside]
        counted = Counter(int(value) for value in true if value != 255)
        assert ((given == 255) == (true == 255)).all()
        if not counted:
            continue
        possible += 1
        majority = min(counted, key=lambda value: (-counted[value], value))
        changed = given != true
        if changed.any():
            erred += 1
            np.testing.assert_array_equal(changed, true == majority)
            assert len(set(given[changed].tolist())) == 1
    assert count > 700
    assert (answer[~bought] == 255).all()
    assert abs(erred / possible - rate) <= 5 * np.sqrt(rate * (1 - rate) / possible)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.59, 0.7, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (30, 41)])
def test_components_equal_scipy(density: float, size: tuple[int, int]):
    mask = np.random.default_rng(int(density * 100)).random(size) < density
    first = components(mask)
    labelled = ndimage.label(mask)[0][mask]
    expected = np.array([np.flatnonzero(labelled == value)[0] for value in labelled], np.int64)
    np.testing.assert_array_equal(first, expected)


def test_components_of_a_spiral():
    # The longest path in a square: label propagation would need as many passes as it has pixels.
    n = 61
    mask = np.zeros((n, n), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for length in [n - 1, *(v for k in range(n - 1, 1, -2) for v in (k, k))]:
        for _ in range(length):
            y, x = y + dy, x + dx
            if not (0 <= y < n and 0 <= x < n):
                break
            mask[y, x] = True
        dy, dx = dx, -dy
    _, count = ndimage.label(mask)
    assert (count, mask.sum() > n * n // 2 - n) == (1, True)
    assert (components(mask) == 0).all()


def test_components_of_nothing():
    assert components(np.zeros((0, 5), bool)).shape == (0,)
    assert components(np.zeros((3, 5), bool)).shape == (0,)
