"""Pascal-Context on tiny files: the release's MATLAB labels, pictures of 59 classes, official lists."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import picture, save
from scipy.io import savemat

from adaptseg.classes import VOID
from adaptseg.data import PascalContext
from adaptseg.data.pascal_context import PASCAL_CONTEXT, PASCAL_CONTEXT_PNG
from adaptseg.errors import AdaptSegError

# Specification, section 3.
NAMES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor, sky, grass, ground, road, building, tree, water, mountain, wall, "
    "floor, track, keyboard, ceiling"
)
IDS = [
    2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427, 360, 187, 189, 324, 44,
    420, 445, 259, 440, 158, 415, 220, 68,
]  # fmt: skip
# A few of the 59 classes by their position in the pictures of mmsegmentation's converter.
POSITIONS = {1: "aeroplane", 6: "bicycle", 11: "building", 14: "car", 50: "table", 55: "tvmonitor", 57: "water"}
KEYS = ["2008_000002", "2008_000003", "2010_000001"]
H, W = 20, 23  # 460 pixels: every id once


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, key in enumerate(KEYS):
        save(tmp_path / "JPEGImages" / f"{key}.jpg", picture(H, W))
        ids = np.roll(np.arange(H * W), number).reshape(H, W)
        (tmp_path / "trainval").mkdir(exist_ok=True)
        savemat(tmp_path / "trainval" / f"{key}.mat", {"LabelMap": ids.astype(np.uint16)}, do_compression=True)
        save(tmp_path / "SegmentationClassContext" / f"{key}.png", (ids % 60).astype(np.uint8))
    lists = tmp_path / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join([KEYS[2], KEYS[0]]) + "\n")
    (lists / "val.txt").write_text(KEYS[1] + "\n")
    return tmp_path


def test_every_id_of_the_release_becomes_its_class(root: Path) -> None:
    scenes = pickle.loads(pickle.dumps(PascalContext(str(root), "train")))
    assert list(scenes.keys) == [KEYS[0], KEYS[2]]
    assert scenes.class_table.names == tuple(NAMES.split(", "))
    expected = np.full(H * W, VOID)
    expected[IDS] = np.arange(33)
    np.testing.assert_array_equal(scenes.labels(KEYS[0]).ravel(), expected)
    assert scenes.labels(KEYS[0]).dtype == np.uint8
    assert scenes.size(KEYS[0]) == scenes.image(KEYS[0]).shape[:2] == (H, W)
    assert list(PascalContext(str(root), "val").keys) == [KEYS[1]]
    assert list(PascalContext(str(root), "train", count=1).keys) == [KEYS[0]]


def test_pictures_of_59_classes_speak_the_same_33(root: Path) -> None:
    scenes = PascalContext(str(root), "train", labels="png")
    labels = scenes.labels(KEYS[0]).ravel()[:60]
    assert sorted(labels[labels != VOID]) == list(range(33))
    names = {i: scenes.class_table.names[labels[i]] for i in POSITIONS}
    assert names == POSITIONS
    assert labels[0] == VOID
    assert PASCAL_CONTEXT.fingerprint == PASCAL_CONTEXT_PNG.fingerprint
    assert scenes.identity() != PascalContext(str(root), "train").identity()


def test_colours_are_vocs_where_voc_has_the_class() -> None:
    known = {"aeroplane": (128, 0, 0), "bicycle": (0, 128, 0), "car": (128, 128, 128), "person": (192, 128, 128),
             "tvmonitor": (0, 64, 128)}  # fmt: skip
    assert {c.name: c.color for c in PASCAL_CONTEXT.classes if c.name in known} == known
    assert len({c.color for c in PASCAL_CONTEXT.classes}) == 33


def test_own_list_and_missing_list(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("JPEGImages/2008_000003.jpg\n")
    assert list(PascalContext(str(root), "train", listing=str(own)).keys) == [KEYS[1]]
    own.write_text("2009_000009\n")
    with pytest.raises(AdaptSegError, match=r"lists 1 scenes \(of 1\) that .*JPEGImages does not hold: 2009_000009"):
        PascalContext(str(root), "train", listing=str(own))
    (root / "ImageSets" / "SegmentationContext" / "val.txt").unlink()
    with pytest.raises(AdaptSegError, match=r"split file .*ImageSets/SegmentationContext/val.txt does not exist"):
        PascalContext(str(root), "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": np.zeros((H, W), np.uint16)}, r"\.mat holds labels; the variable LabelMap of the release"),
        ({"LabelMap": np.full((H, W), 460, np.uint16)}, r"label ids 460 are unknown to class table 'pascal context'"),
        ({"LabelMap": np.zeros((W, H), np.uint16)}, r"is 20x23 pixels, its image .* is 23x20"),
        ({"LabelMap": np.zeros((H, W))}, r"LabelMap is float64 \(20, 23\); integers \(H, W\) are expected"),
        ({"LabelMap": np.zeros((H, W, 2), np.uint8)}, r"LabelMap is uint8 \(20, 23, 2\)"),
    ],
    ids=["key", "id", "size", "type", "shape"],
)
def test_wrong_label_maps_are_one_line(root: Path, content: dict[str, np.ndarray], message: str) -> None:
    savemat(root / "trainval" / f"{KEYS[0]}.mat", content)
    with pytest.raises(AdaptSegError, match=message):
        PascalContext(str(root), "train").labels(KEYS[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:200],
        lambda raw: b"",
        lambda raw: b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400),
        lambda raw: raw[:300] + bytes(255 - b for b in raw[300:320]) + raw[320:],
        lambda raw: b"<html>" * 99,
    ],
    ids=["truncated", "empty", "7.3", "flipped", "web page"],
)
def test_unreadable_files_are_named(root: Path, damage) -> None:
    path = root / "trainval" / f"{KEYS[0]}.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AdaptSegError, match=r"label file .*2008_000002.mat is no readable MATLAB file"):
        PascalContext(str(root), "train").labels(KEYS[0])


def test_missing_labels_are_named(root: Path) -> None:
    (root / "trainval" / f"{KEYS[2]}.mat").unlink()
    with pytest.raises(AdaptSegError, match=r"1 of 2 scenes have no label file in .*trainval: 2010_000001.mat"):
        PascalContext(str(root), "train")
    with pytest.raises(AdaptSegError, match=r"does not exist; expected layout: .*JPEGImages/<scene>.jpg"):
        PascalContext(str(root / "elsewhere"), "train")
