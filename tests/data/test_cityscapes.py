"""Cityscapes reader on tiny files in the official layout."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.classes import CITYSCAPES
from adaptseg.data.cityscapes import Cityscapes
from adaptseg.errors import AdaptSegError

H, W = 5, 7
OFFICIAL = {  # cityscapesScripts helpers/labels.py: id -> trainId of the evaluated classes
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10,
    24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


def scene_ids(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 34, (H, W)).astype(np.uint8)


def write_scene(root: Path, split: str, key: str, *, kind: str = "gtFine", seed: int = 0) -> np.ndarray:
    image = root / "leftImg8bit" / split / f"{key}_leftImg8bit.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((H, W, 3), seed, np.uint8)).save(image)
    ids = scene_ids(seed)
    label = root / kind / split / f"{key}_{kind}_labelIds.png"
    label.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(label)
    instances = np.where(ids >= 24, ids.astype(np.uint16) * 1000 + seed, ids).astype(np.uint16)
    instances[0, 0] = 26  # a group of cars: no single instance
    Image.fromarray(instances).save(root / kind / split / f"{key}_{kind}_instanceIds.png")
    return ids


KEYS = ["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "bochum/bochum_000000_000313"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, key in enumerate(reversed(KEYS)):
        write_scene(tmp_path, "train", key, seed=2 - seed)
    return tmp_path


def test_reads_images_and_maps_label_ids(root: Path) -> None:
    scenes = Cityscapes(str(root), "train")
    assert list(scenes.keys) == KEYS
    assert scenes.labelled
    for seed, key in enumerate(KEYS):
        assert scenes.size(key) == (H, W)
        image = scenes.image(key)
        assert image.shape == (H, W, 3)
        assert image.dtype == np.uint8
        assert (image == seed).all()
        labels = scenes.labels(key)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, [[OFFICIAL.get(int(v), 255) for v in row] for row in scene_ids(seed)])


def test_three_classes_may_be_void(root: Path) -> None:
    scenes, key = Cityscapes(str(root), "train", classes=16), KEYS[0]
    raw, labels = scene_ids(0), scenes.labels(key)
    absent = np.isin(raw, [22, 27, 31])  # terrain, truck, train
    whole = Cityscapes(str(root), "train").labels(key)
    assert absent.any()
    assert scenes.class_table.num_classes == 16
    names = np.array([*CITYSCAPES.names, *[""] * 237])
    np.testing.assert_array_equal(labels == 255, absent | (whole == 255))
    kept = labels != 255
    np.testing.assert_array_equal(np.array(scenes.class_table.names)[labels[kept]], names[whole[kept]])
    assert scenes.identity() != Cityscapes(str(root), "train").identity()


def test_instances_keep_official_ids_and_leave_groups_out(root: Path) -> None:
    scenes = Cityscapes(str(root), "train")
    ids, instances = scene_ids(2), scenes.instances(KEYS[2])
    assert instances.dtype == np.int32
    expected = np.where(ids >= 24, ids.astype(np.int32) * 1000 + 2, 0)
    expected[0, 0] = 0
    np.testing.assert_array_equal(instances, expected)


def test_survives_pickling(root: Path) -> None:
    scenes = pickle.loads(pickle.dumps(Cityscapes(str(root), "train")))
    assert scenes.labels(KEYS[0]).shape == (H, W)


def test_hidden_files_are_not_scenes(root: Path) -> None:
    (root / "leftImg8bit/train/aachen/._aachen_000009_000019_leftImg8bit.png").write_bytes(b"finder")
    assert list(Cityscapes(str(root), "train").keys) == KEYS


def test_test_split_has_no_labels(tmp_path: Path) -> None:
    write_scene(tmp_path, "test", "berlin/berlin_000000_000019")
    scenes = Cityscapes(str(tmp_path), "test")
    assert not scenes.labelled
    assert scenes.image(scenes.keys[0]).shape == (H, W, 3)
    for read in (scenes.labels, scenes.instances):
        with pytest.raises(AdaptSegError, match="not public"):
            read(scenes.keys[0])


def test_coarse_labels(tmp_path: Path) -> None:
    write_scene(tmp_path, "train_extra", "augsburg/augsburg_000000_000000", kind="gtCoarse", seed=3)
    scenes = Cityscapes(str(tmp_path), "train_extra", labels="coarse")
    assert scenes.labels(scenes.keys[0]).shape == (H, W)
    with pytest.raises(AdaptSegError, match="labels: coarse"):
        Cityscapes(str(tmp_path), "train_extra")


def test_count_spreads_over_cities(root: Path) -> None:
    assert list(Cityscapes(str(root), "train", count=1).keys) == KEYS[:1]
    assert list(Cityscapes(str(root), "train", count=3).keys) == KEYS
    write_scene(root, "train", "zurich/zurich_000000_000019")
    assert list(Cityscapes(str(root), "train", count=2).keys) == [KEYS[0], KEYS[2]]
    for count in (0, -1, 5):
        with pytest.raises(AdaptSegError, match=rf"count: {count} .* holds 4; give 1 to 4"):
            Cityscapes(str(root), "train", count=count)


def test_missing_root_and_empty_split_name_folder_and_layout(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"nowhere/leftImg8bit/train does not exist.*<city>/<scene>_leftImg8bit"):
        Cityscapes(str(tmp_path / "nowhere"), "train")
    (tmp_path / "leftImg8bit/val").mkdir(parents=True)
    with pytest.raises(AdaptSegError, match=r"split 'val' .* holds no scene; expected layout"):
        Cityscapes(str(tmp_path), "val")


def test_missing_label_is_named_at_construction(root: Path) -> None:
    (root / "gtFine/train" / f"{KEYS[1]}_gtFine_labelIds.png").unlink()
    with pytest.raises(AdaptSegError, match=rf"1 of 3 scenes have no label file in .*: {KEYS[1]}_gtFine_labelIds.png$"):
        Cityscapes(str(root), "train")
    assert list(Cityscapes(str(root), "train", count=1).keys) == KEYS[:1]  # only the scenes used are asked for


def test_folder_of_train_ids_only_says_what_was_looked_for(root: Path) -> None:
    for path in sorted((root / "gtFine").rglob("*_labelIds.png")):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(AdaptSegError, match=r"only \*_gtFine_labelTrainIds.png; looked for .*_gtFine_labelIds.png"):
        Cityscapes(str(root), "train")


def test_unknown_id_and_wrong_size_name_the_file(root: Path) -> None:
    path = root / "gtFine/train" / f"{KEYS[0]}_gtFine_labelIds.png"
    Image.fromarray(np.full((H, W), 77, np.uint8)).save(path)
    scenes = Cityscapes(str(root), "train")
    with pytest.raises(AdaptSegError, match=r"aachen_000000_000019_gtFine_labelIds.png: label ids 77 are unknown"):
        scenes.labels(KEYS[0])
    Image.fromarray(np.zeros((H, W + 1), np.uint8)).save(path)
    with pytest.raises(AdaptSegError, match=r"labelIds.png is 8x5 pixels, its image .*leftImg8bit.png is 7x5"):
        scenes.labels(KEYS[0])
    instances = root / "gtFine/train" / f"{KEYS[0]}_gtFine_instanceIds.png"
    Image.fromarray(np.zeros((H + 1, W), np.uint16)).save(instances)
    with pytest.raises(AdaptSegError, match=r"instanceIds.png is 7x6 pixels"):
        scenes.instances(KEYS[0])
    instances.unlink()
    with pytest.raises(AdaptSegError, match=r"instanceIds.png does not exist"):
        scenes.instances(KEYS[0])


def test_truncated_image_is_named(root: Path) -> None:
    scenes = Cityscapes(str(root), "train")
    path = root / "leftImg8bit/train" / f"{KEYS[0]}_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:44])
    with pytest.raises(AdaptSegError, match=r"aachen_000000_000019_leftImg8bit.png is truncated or broken"):
        scenes.image(KEYS[0])
