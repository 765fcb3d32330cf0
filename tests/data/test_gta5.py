"""GTA5 reader on tiny files in the official layout: palette PNGs of Cityscapes label ids."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.data import GTA5
from adaptseg.errors import AdaptSegError

H, W = 6, 8
KEYS = ["00001", "00002", "00003"]
OFFICIAL = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
            27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def ids(seed: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 35, size).astype(np.uint8)


def write_label(path: Path, values: np.ndarray) -> None:
    picture = Image.fromarray(values)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())  # makes it mode P
    path.parent.mkdir(exist_ok=True)
    picture.save(path)


def expected(values: np.ndarray) -> list[list[int]]:
    return [[OFFICIAL.get(int(v), 255) for v in row] for row in values]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "gta5"
    (folder / "images").mkdir(parents=True)
    for seed, key in enumerate(KEYS):
        Image.fromarray(np.full((H, W, 3), seed, np.uint8)).save(folder / "images" / f"{key}.png")
        write_label(folder / "labels" / f"{key}.png", ids(seed))
    return folder


def zipped(root: Path) -> list[str]:
    """One scene in the first part, two in the second, as the published parts split them."""
    paths = []
    for part, keys in (("01", KEYS[:1]), ("02", KEYS[1:])):
        for kind in ("images", "labels"):
            paths.append(str(root.parent / f"{part}_{kind}.zip"))
            with zipfile.ZipFile(paths[-1], "w") as file:
                for key in keys:
                    file.write(root / kind / f"{key}.png", f"{kind}/{key}.png")
    return paths


@pytest.mark.parametrize("packed", [False, True])
def test_reads_palette_labels(root: Path, packed: bool) -> None:
    scenes = pickle.loads(pickle.dumps(GTA5(zipped(root) if packed else str(root))))
    assert list(scenes.keys) == KEYS
    for seed, key in enumerate(KEYS):
        assert (scenes.image(key) == seed).all()
        assert scenes.size(key) == (H, W)
        np.testing.assert_array_equal(scenes.labels(key), expected(ids(seed)))


@pytest.mark.parametrize("packed", [False, True])
def test_label_of_another_size_is_refused_or_stretched(root: Path, packed: bool) -> None:
    write_label(root / "labels/00002.png", ids(9, (H // 2, W // 2)))
    where = zipped(root) if packed else str(root)
    with pytest.raises(AdaptSegError, match=r"labels/00002.png is 4x3 pixels, its image is 8x6; .*resize_labels: true"):
        GTA5(where).labels("00002")
    scenes = GTA5(where, resize_labels=True)
    stretched = expected(ids(9, (H // 2, W // 2)).repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(scenes.labels("00002"), stretched)
    np.testing.assert_array_equal(scenes.labels("00001"), expected(ids(0)))
    assert scenes.identity() != GTA5(where).identity()


def test_split_file(root: Path, tmp_path: Path) -> None:
    split = tmp_path / "train.txt"
    split.write_text("00003.png\n00001\n")
    assert list(GTA5(str(root), split=str(split)).keys) == ["00001", "00003"]
    assert list(GTA5(str(root), split=str(split), count=1).keys) == ["00001"]
    split.write_text("00009\n")
    with pytest.raises(AdaptSegError, match=r"lists 1 scenes \(of 1\) that .*gta5/images does not hold: 00009"):
        GTA5(str(root), split=str(split))


def test_traps(root: Path, tmp_path: Path) -> None:
    write_label(root / "labels/00001.png", np.full((H, W), 77, np.uint8))
    with pytest.raises(AdaptSegError, match=r"labels/00001.png: label ids 77 are unknown"):
        GTA5(str(root)).labels("00001")
    (root / "labels/00003.png").unlink()
    with pytest.raises(AdaptSegError, match=r"1 of 3 scenes have no label file in .*labels: 00003.png"):
        GTA5(str(root))
    with pytest.raises(
        AdaptSegError, match=r"nowhere/images does not exist; expected layout: .*images/<scene>.png and"
    ):
        GTA5(str(tmp_path / "nowhere"))
