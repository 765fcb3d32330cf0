"""Geometry and normalisation of scenes, against plain indexing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.transforms import Geometry, cut, draw_geometry, drawn_size, normalized, resized_image, resized_map
from adaptseg.errors import AdaptSegError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("flip", [False, True])
def test_cut_equals_indexing(flip: bool) -> None:
    values = torch.arange(5 * 7).reshape(5, 7)
    expected = values[1:4, 2:6]
    expected = expected.flip(-1) if flip else expected
    geometry = Geometry(1, 2, 3, 4, flip)
    assert torch.equal(cut(values, geometry, 255), expected)
    assert torch.equal(cut(values.expand(3, 5, 7), geometry, 255), expected.expand(3, 3, 4))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 4), (3, 9), (8, 9)])
def test_what_the_scene_lacks_is_padded_at_the_right_and_below(flip: bool, height: int, width: int) -> None:
    colors, fill = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7), torch.tensor([200, 210, 220])
    geometry = Geometry(1 if height < 5 else 0, 2 if width < 7 else 0, height, width, flip)
    for tensor, filling in ((colors, fill.view(3, 1, 1)), (colors[:1] % 2 == 0, False), (colors.long(), 255)):
        piece = cut(tensor, geometry, filling)  # type: ignore[arg-type]
        assert piece.dtype == tensor.dtype
        piece = piece.flip(-1) if flip else piece
        for channel in range(len(tensor)):
            for y in range(height):
                for x in range(width):
                    at = y + geometry.top, x + geometry.left
                    outside = filling[channel].item() if isinstance(filling, torch.Tensor) else filling
                    expected = tensor[channel][at] if at[0] < 5 and at[1] < 7 else outside
                    assert piece[channel, y, x] == expected


def test_factors_are_even_between_the_two_and_sides_round_down() -> None:
    sizes = [drawn_size((100, 37), (0.5, 2.0), np.random.default_rng(seed)) for seed in range(600)]
    heights = np.array([height for height, _ in sizes])
    assert (heights.min(), heights.max()) == (pytest.approx(50, abs=2), pytest.approx(199, abs=2))
    histogram, _ = np.histogram(heights, bins=5, range=(50, 200))
    assert histogram.min() > 85  # 120 expected, standard deviation 10
    for seed, size in enumerate(sizes):
        factor = np.random.default_rng(seed).uniform(0.5, 2.0)
        assert size == (int(100 * factor), int(37 * factor))
    assert drawn_size((3, 1), (0.1, 0.1), RNG) == (1, 1)


def test_a_crop_that_pads_begins_where_the_smaller_side_does() -> None:
    for seed in range(50):
        found = draw_geometry((6, 20), (9, 4), True, np.random.default_rng(seed), pads=True)
        assert (found.top, found.height, found.width) == (0, 9, 4)
        assert 0 <= found.left <= 16
        plain = draw_geometry((12, 20), (9, 4), True, np.random.default_rng(seed))
        assert draw_geometry((12, 20), (9, 4), True, np.random.default_rng(seed), pads=True) == plain


def test_crops_cover_every_place_evenly_and_half_are_mirrored() -> None:
    draws = [draw_geometry((6, 9), (4, 8), True, np.random.default_rng(seed)) for seed in range(1200)]
    assert {(d.height, d.width) for d in draws} == {(4, 8)}
    places = Counter((d.top, d.left) for d in draws)
    assert set(places) == {(top, left) for top in range(3) for left in range(2)}
    assert min(places.values()) > 150  # 200 expected, standard deviation 13
    assert 520 < sum(d.flip for d in draws) < 680


def test_whole_scenes_without_a_crop() -> None:
    assert draw_geometry((6, 9), None, False, RNG) == Geometry(0, 0, 6, 9, False)
    assert draw_geometry((6, 9), (6, 9), False, RNG) == Geometry(0, 0, 6, 9, False)


def test_the_mirror_does_not_move_the_crop() -> None:
    """`flip` may be switched without another order of crops."""
    for seed in range(20):
        plain = draw_geometry((40, 60), (10, 10), False, np.random.default_rng(seed))
        assert draw_geometry((40, 60), (10, 10), True, np.random.default_rng(seed))._replace(flip=False) == plain


@pytest.mark.parametrize("crop", [(7, 9), (6, 10)])
def test_a_crop_larger_than_the_scene_is_refused(crop: tuple[int, int]) -> None:
    with pytest.raises(AdaptSegError, match=rf"data\.crop \[{crop[0]}, {crop[1]}\] is larger than the scene of 6x9"):
        draw_geometry((6, 9), crop, False, RNG)


def test_images_keep_their_bytes_at_their_own_size() -> None:
    image = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    image.flags.writeable = False  # as decoded arrays may be
    for size in (None, (5, 7)):
        tensor = resized_image(image, size)
        np.testing.assert_array_equal(tensor.numpy(), image.transpose(2, 0, 1))
        tensor[:] = 0
    assert image.any()


def test_halving_averages() -> None:
    """Anti-aliased bilinear halving of constant 2x2 blocks leaves the inner blocks at their level."""
    levels = np.repeat(np.arange(0, 240, 40, np.uint8), 4)
    image = np.broadcast_to(levels[None, :, None], (24, 24, 3))
    small = resized_image(image, (12, 12))
    assert small.shape == (3, 12, 12)
    assert small.dtype == torch.uint8
    expected = levels.reshape(-1, 2).mean(1)
    assert (small.float() - torch.from_numpy(expected)).abs().max() <= 40 / 8 + 1  # a triangle of two pixels' radius
    assert torch.equal(small[:, 0], small[:, -1])


@pytest.mark.parametrize("size", [(9, 12), (40, 33)])
def test_bicubic_is_pillows(size: tuple[int, int]) -> None:
    """RIPU's release resizes pictures by Pillow."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    found = resized_image(image, size, "bicubic").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1  # both round once per axis
    other = resized_image(image, size).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(other - expected).max() > 5


def test_maps_take_the_pixel_under_the_centre() -> None:
    labels = RNG.integers(0, 20, (5, 7), np.uint8)
    labels.flags.writeable = False
    resized = resized_map(labels, (8, 3))
    assert resized.dtype == torch.int64
    for y in range(8):
        for x in range(3):
            assert resized[y, x] == labels[int((y + 0.5) * 5 / 8), int((x + 0.5) * 7 / 3)]
    unchanged = resized_map(labels, (5, 7))
    unchanged[:] = 99
    assert labels.max() < 20


def test_normalisation_equals_the_formula() -> None:
    image = torch.from_numpy(RNG.integers(0, 256, (3, 4, 6), np.uint8))
    result = normalized(image.flip(-1), IMAGENET_MEAN, IMAGENET_STD)
    expected = (image.flip(-1).double() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected.double(), rtol=1e-5, atol=1e-6)
