"""`label_counts` of every reader that counts its file of ids: what counting `labels` gives, and the same refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from layouts import V12, H, W, pack, palette_labels, picture, save

from adaptseg.classes import CITYSCAPES
from adaptseg.data import ACDC, BDD100K, GTA5, CamVid, Cityscapes, DarkZurich, Folder, Mapillary, PascalContext, Scenes
from adaptseg.data.ade_bedroom import ADE20KBedrooms
from adaptseg.data.counting import value_counts
from adaptseg.errors import AdaptSegError


class Layout(NamedTuple):
    """Where the image and the labels of one scene lie, and who reads them."""

    image: str
    labels: str
    open: Callable[[str], Scenes]
    packed: bool = False


_GTA5 = "images/00001.png", "labels/00001.png"
_CITYSCAPES = "leftImg8bit/train/a/a_1_leftImg8bit.png", "gtFine/train/a/a_1_gtFine_labelIds.png"
LAYOUTS = {
    "cityscapes": Layout(*_CITYSCAPES, lambda root: Cityscapes(root, "train")),
    "cityscapes, zip": Layout(*_CITYSCAPES, lambda root: Cityscapes(root, "train"), packed=True),
    "bdd100k": Layout("images/10k/val/1.jpg", "labels/sem_seg/masks/val/1.png", lambda root: BDD100K(root, "val")),
    "acdc": Layout(
        "rgb_anon/fog/val/d/1_rgb_anon.png",
        "gt/fog/val/d/1_gt_labelIds.png",
        lambda root: ACDC(root, "val", conditions=("fog",)),
    ),
    "dark zurich": Layout(
        "rgb_anon/val/night/d/1_rgb_anon.png",
        "gt/val/night/d/1_gt_labelIds.png",
        lambda root: DarkZurich(root, "val"),
    ),
    "camvid": Layout("val/1.png", "valannot/1.png", lambda root: CamVid(root, "val")),
    "folder": Layout("images/1.jpg", "labels/1.png", lambda root: Folder(root, classes="classes.json")),
    "gta5": Layout(*_GTA5, GTA5),
    "gta5, zip": Layout(*_GTA5, GTA5, packed=True),
    "gta5, stretched": Layout(*_GTA5, lambda root: GTA5(root, resize_labels=True)),
    "mapillary": Layout("validation/images/1.jpg", "validation/v1.2/labels/1.png", lambda root: Mapillary(root, "val")),
    "ade20k": Layout(
        "images/training/ADE_train_1.jpg",
        "annotations/training/ADE_train_1.png",
        lambda root: ADE20KBedrooms(root, "train"),
    ),
    "pascal context": Layout(
        "JPEGImages/1.jpg", "SegmentationClassContext/1.png", lambda root: PascalContext(root, "val", labels="png")
    ),
}


def known_ids(root: Path) -> np.ndarray:
    """Ids that every one of the readers knows, several of one class among them."""
    ids = np.random.default_rng(0).choice([0, 1, 2, 3, 4, 7, 8, 11], (H, W)).astype(np.uint8)
    ids[0, :2] = 7, 8
    return ids


def grey(path: Path) -> None:
    save(path, known_ids(path))


def palette(path: Path) -> None:
    palette_labels(path, known_ids(path))


def sixteen_bits(path: Path) -> None:
    save(path, known_ids(path).astype(np.uint16))


def one_bit(path: Path) -> None:
    save(path, known_ids(path) > 3)


def unknown(path: Path) -> None:
    save(path, np.arange(200, 200 + H * W).reshape(H, W).astype(np.uint8))


def unknown_of_16_bits(path: Path) -> None:
    save(path, np.full((H, W), 40000, np.uint16))


def other_size(path: Path) -> None:
    save(path, known_ids(path)[:, ::2])


def other_size_and_unknown(path: Path) -> None:
    save(path, np.full((H, 2 * W), 250, np.uint8))


def colours(path: Path) -> None:
    save(path, picture())


def cut_off(path: Path) -> None:
    save(path, known_ids(path))
    path.write_bytes(path.read_bytes()[:-30])


def no_image(path: Path) -> None:
    path.write_bytes(b"no image")


def outcome(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except AdaptSegError as error:
        return str(error)


def counted_pixel_by_pixel(scenes: Scenes) -> tuple[tuple[int, ...], list[int]]:
    labels = scenes.labels(scenes.keys[0])
    return labels.shape, value_counts(labels).tolist()


def counted(scenes: Scenes) -> tuple[tuple[int, ...], list[int]]:
    size, counts = scenes.label_counts(scenes.keys[0])
    assert counts.dtype == np.int64
    return size, counts.tolist()


def opened(layout: Layout, root: Path, write: Callable[[Path], object]) -> Scenes:
    """One scene whose label file is what `write` makes it."""
    for path in (root / layout.image, root / layout.labels):
        path.parent.mkdir(parents=True)
    save(root / layout.image, picture())
    write(root / layout.labels)
    table = {"classes": [{"name": f"c{i}", "color": [i, i, i], "raw_ids": [i, i + 7]} for i in range(7)]}
    (root / "classes.json").write_text(json.dumps(table))
    (root / "config_v1.2.json").write_text(json.dumps({"labels": [{"name": name} for name in V12]}))
    (root / "sceneCategories.txt").write_text("ADE_train_1 bedroom\n")
    lists = root / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("1\n")
    return layout.open(pack(root, root.parent / "all.zip") if layout.packed else str(root))


@pytest.mark.parametrize(
    "write",
    [
        grey,
        palette,
        sixteen_bits,
        one_bit,
        unknown,
        unknown_of_16_bits,
        other_size,
        other_size_and_unknown,
        colours,
        cut_off,
        no_image,
    ],
)
@pytest.mark.parametrize("reader", LAYOUTS)
def test_counts_are_those_of_the_labels(tmp_path: Path, reader: str, write: Callable[[Path], object]) -> None:
    scenes = opened(LAYOUTS[reader], tmp_path / "root", write)
    expected = outcome(lambda: counted_pixel_by_pixel(scenes))
    assert outcome(lambda: counted(scenes)) == expected
    sound = write in (grey, palette, sixteen_bits, one_bit) or (reader == "gta5, stretched" and write is other_size)
    assert isinstance(expected, tuple) == sound, expected


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("reader", [name for name, layout in LAYOUTS.items() if not layout.packed])
def test_missing_files_are_named_alike(tmp_path: Path, reader: str, kind: str) -> None:
    layout = LAYOUTS[reader]
    scenes = opened(layout, tmp_path / "root", grey)
    missing = tmp_path / "root" / getattr(layout, kind)
    missing.unlink()
    with pytest.raises(AdaptSegError, match="does not exist") as refusal:
        scenes.label_counts(scenes.keys[0])
    assert str(missing) in str(refusal.value)
    assert str(refusal.value) == outcome(lambda: counted_pixel_by_pixel(scenes))


def test_splits_without_labels_refuse_alike(tmp_path: Path) -> None:
    save(tmp_path / "leftImg8bit/test/a/a_1_leftImg8bit.png", picture())
    scenes = Cityscapes(str(tmp_path), "test")
    with pytest.raises(AdaptSegError, match="annotation of split 'test' is not public"):
        scenes.label_counts("a/a_1")


def test_counts_of_a_class_are_added_up(tmp_path: Path) -> None:
    ids = np.full((H, W), 7, np.uint8)
    ids[0, :3] = 0, 1, 8  # void, void, pavement
    layout = LAYOUTS["cityscapes"]
    scenes = opened(layout, tmp_path / "root", lambda path: save(path, ids))
    size, counts = scenes.label_counts("a/a_1")
    assert size == (H, W)
    assert CITYSCAPES.names[:2] == ("road", "sidewalk")
    assert (counts[0], counts[1], counts[255], counts.sum()) == (H * W - 3, 1, 2, H * W)
