"""Decoding of image and label files: the modes that cameras and annotation tools write, the ways files are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adaptseg.data.scenes import Scenes, read_ids, read_image, read_size
from adaptseg.data.streets import Streets
from adaptseg.errors import AdaptSegError

SIZE = (6, 9)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
GREY = RNG.integers(0, 256, SIZE, np.uint8)
WIDE = RNG.integers(0, 65536, SIZE).astype(np.uint16)


def saved(path: Path, values: NDArray[np.generic]) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_rgb_comes_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if ending == ".webp" else {}))
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)
    assert read_size(path) == SIZE


def test_grey_is_repeated_and_transparency_dropped(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path / "l.png", GREY)), np.repeat(GREY[..., None], 3, 2))
    rgba = np.dstack([RGB, GREY])
    np.testing.assert_array_equal(read_image(saved(tmp_path / "rgba.png", rgba)), RGB)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    wide = WIDE.copy()
    wide[0, :4] = [0, 256, 257, 65535]
    image = read_image(saved(tmp_path / f"wide{ending}", wide))
    assert image[0, :4, 0].tolist() == [0, 0, 1, 255]
    np.testing.assert_array_equal(image, np.repeat((wide // 257).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255, 7])])
def test_palettes_with_and_without_transparency(tmp_path: Path, transparency: int | bytes | None) -> None:
    ids = RNG.integers(0, 4, SIZE, np.uint8)
    palette = RNG.integers(0, 256, (4, 3), np.uint8)
    picture = Image.fromarray(ids, "P")
    picture.putpalette(palette.tobytes())
    path = tmp_path / "p.png"
    picture.save(path, **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_image(path), palette[ids])
    np.testing.assert_array_equal(read_ids(path), ids)


def test_orientation_tags_are_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert read_size(path) == SIZE


def test_label_files_of_8_16_and_1_bit(tmp_path: Path) -> None:
    for name, ids in (("l", GREY), ("wide", WIDE), ("bit", GREY > 99)):
        np.testing.assert_array_equal(read_ids(saved(tmp_path / f"{name}.png", ids)), ids)


@pytest.mark.parametrize("values", [RGB, np.dstack([RGB, GREY])], ids=["RGB", "RGBA"])
def test_coloured_label_files_are_refused(tmp_path: Path, values: NDArray[np.uint8]) -> None:
    path = saved(tmp_path / "colours.png", values)
    with pytest.raises(AdaptSegError, match=rf"label file {path} has mode RGBA?; one channel of class ids is expected"):
        read_ids(path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".webp"])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    path, cut = saved(tmp_path / f"whole{ending}", RGB), tmp_path / f"cut{ending}"
    data = path.read_bytes()
    whole = read_image(path)
    spared = 20 if ending == ".png" else 0  # a checksum and the end mark carry no pixels
    for length in range(0, len(data), 3):
        cut.write_bytes(data[:length])
        if length >= len(data) - spared:
            np.testing.assert_array_equal(read_image(cut), whole)
            continue
        with pytest.raises(AdaptSegError) as error:
            read_image(cut)
        assert str(cut) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_cut_label_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "ids.png", GREY)
    path.write_bytes(path.read_bytes()[:70])
    assert read_size(path) == SIZE  # the header is whole
    with pytest.raises(AdaptSegError, match=r"ids\.png is truncated or broken"):
        read_ids(path)


@pytest.mark.parametrize("read", [read_image, read_ids, read_size])
def test_missing_files_folders_and_other_files_are_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(AdaptSegError, match=r"absent\.png does not exist"):
        read(tmp_path / "absent.png")
    with pytest.raises(AdaptSegError, match="is not a readable image"):
        read(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(AdaptSegError, match=r"text\.png is not a readable image"):
        read(tmp_path / "text.png")


def test_instances_are_refused_by_readers_without_them() -> None:
    class Bare(Streets):
        instances = Scenes.instances

    with pytest.raises(AdaptSegError, match="Bare has no instance labels"):
        Bare("game", "train", count=1, size=(32, 32)).instances("game_train_00000")
