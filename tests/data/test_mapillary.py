"""Mapillary Vistas on tiny files in the layouts of both releases, as folders and zips."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import V12, V20, H, W, break_member, mapillary, pack, palette_labels

from adaptseg.classes import CITYSCAPES, VOID
from adaptseg.data import Mapillary
from adaptseg.data.mapillary_classes import CLASSES
from adaptseg.errors import AdaptSegError

KEYS = ["a-_1", "b2"]
# The table for v1.2 that published code on both data sets shares; all other classes are void.
SHARED = {
    "road": "flat--bike-lane flat--crosswalk-plain flat--parking flat--rail-track flat--road flat--service-lane "
    "marking--crosswalk-zebra marking--general",
    "sidewalk": "barrier--curb flat--curb-cut flat--pedestrian-area flat--sidewalk",
    "building": "structure--bridge structure--building structure--tunnel", "wall": "barrier--wall",
    "fence": "barrier--fence barrier--guard-rail", "pole": "support--pole support--utility-pole",
    "traffic light": "object--traffic-light", "traffic sign": "support--traffic-sign-frame traffic-sign--front",
    "vegetation": "nature--vegetation", "terrain": "nature--sand nature--snow nature--terrain", "sky": "nature--sky",
    "person": "human--person", "rider": "rider--bicyclist rider--motorcyclist rider--other-rider",
    "car": "vehicle--car", "truck": "vehicle--truck", "bus": "vehicle--bus", "train": "vehicle--on-rails",
    "motorcycle": "vehicle--motorcycle", "bicycle": "vehicle--bicycle",
}  # fmt: skip


def expected(name: str) -> int:
    """By the shared table, spelled by the ends of the names."""
    for train_id, endings in enumerate(SHARED.values()):
        if any(name == ending or name.endswith(f"-{ending}") for ending in endings.split()):
            return train_id
    return VOID


def test_the_table_of_v12_is_the_shared_one() -> None:
    assert (len(V12), len(V20), len(CLASSES)) == (66, 124, 129)
    train_ids = {c: i for i, c in enumerate(CITYSCAPES.names)} | {None: VOID}
    assert [train_ids[CLASSES[name]] for name in V12] == [expected(name) for name in V12]
    for name in set(V12) & set(V20):
        assert train_ids[CLASSES[name]] == expected(name)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("version", "alone"), [("v1.2", False), ("v1.2", True), ("v2.0", False)])
def test_labels_follow_the_names_of_the_config(tmp_path: Path, version, alone: bool, packed: bool) -> None:
    root = mapillary(tmp_path / "mapillary", version, alone=alone)
    given = pack(root, tmp_path / "vistas.zip", prefix="mapillary/") if packed else str(root)
    names = V12 if version == "v1.2" else V20
    train_ids = np.array([CITYSCAPES.names.index(mapped) if (mapped := CLASSES[n]) else VOID for n in names])
    for split in ("train", "val"):
        scenes = pickle.loads(pickle.dumps(Mapillary(given, split, version=version)))
        assert list(scenes.keys) == KEYS
        assert scenes.class_table.fingerprint == CITYSCAPES.fingerprint
        for number, key in enumerate(KEYS):
            raw = (np.arange(H * W).reshape(H, W) * 3 + number) % len(names)
            np.testing.assert_array_equal(scenes.labels(key), train_ids[raw])
            is_thing = np.isin(train_ids[raw], np.flatnonzero(CITYSCAPES.things))
            np.testing.assert_array_equal(scenes.instances(key), np.where(is_thing, raw * 256 + 2, 0))
        assert scenes.size("b2") == scenes.image("b2").shape[:2] == (H, W)
    test = Mapillary(given, "test", version=version)
    assert (list(test.keys), test.labelled) == (["t1"], False)
    with pytest.raises(AdaptSegError, match="annotation of split 'test' is not public"):
        test.labels("t1")


def test_releases_mixed_up_are_one_line(tmp_path: Path) -> None:
    root = mapillary(tmp_path / "mapillary")
    palette_labels(root / "validation/v1.2/labels/b2.png", np.full((H, W), 123))
    with pytest.raises(AdaptSegError, match=r"b2.png: label ids 123 are unknown .*v1.2 has ids 0 to 65.*version: v2.0"):
        Mapillary(str(root), "val").labels("b2")
    (root / "config_v1.2.json").write_text(json.dumps({"labels": [{"name": name} for name in V20]}))
    with pytest.raises(AdaptSegError, match=r"names 124 classes, v1.2 has 66; set version: v2.0"):
        Mapillary(str(root), "val")
    with pytest.raises(AdaptSegError, match=r"config_v2.0.json does not exist; it is part of Mapillary Vistas"):
        Mapillary(str(root), "val", version="v2.0")


def test_what_is_wrong_with_the_config_is_one_line(tmp_path: Path) -> None:
    root = mapillary(tmp_path / "mapillary")
    config = root / "config_v1.2.json"
    config.write_text(json.dumps({"labels": [{"name": name} for name in [*V12[:-1], "void--new"]]}))
    with pytest.raises(AdaptSegError, match=r"config_v1.2.json names 1 unknown classes: void--new"):
        Mapillary(str(root), "train")
    config.write_text(json.dumps({"labels": [{"name": name} for name in V12[:-1]]}))
    with pytest.raises(AdaptSegError, match=r"names 65 classes, v1.2 has 66; the file of the release"):
        Mapillary(str(root), "train")
    for text in ("{", "[]", "{}", '{"labels": [1]}'):
        config.write_text(text)
        with pytest.raises(AdaptSegError, match=r"config_v1.2.json is no config of Mapillary Vistas"):
            Mapillary(str(root), "train")


def test_broken_members_and_missing_labels_are_one_line(tmp_path: Path) -> None:
    root = mapillary(tmp_path / "mapillary")
    archive = pack(root, tmp_path / "vistas.zip")
    break_member(Path(archive), "training/v1.2/labels/b2.png")
    with pytest.raises(AdaptSegError, match=r"vistas.zip: member training/v1.2/labels/b2.png is broken"):
        Mapillary(archive, "train").labels("b2")
    (root / "training/v1.2/labels/b2.png").unlink()
    with pytest.raises(AdaptSegError, match=r"1 of 2 scenes have no label file in .*v1.2/labels: b2.png"):
        Mapillary(str(root), "train")
