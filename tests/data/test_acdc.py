"""ACDC reader on tiny files in the official layout."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.data import ACDC
from adaptseg.errors import AdaptSegError

H, W = 4, 6
SCENES = {"fog": "GOPR0475/GOPR0475_frame_000041", "night": "GOPR0351/GOPR0351_frame_000159",
          "rain": "GOPR0400/GOPR0400_frame_000100", "snow": "GOPR0122/GOPR0122_frame_000230"}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "acdc"
    for value, (condition, scene) in enumerate(SCENES.items()):
        for split in ("train", "val", "test", "train_ref"):
            ending = "rgb_ref_anon" if split.endswith("_ref") else "rgb_anon"
            image = folder / "rgb_anon" / condition / split / f"{scene}_{ending}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((H, W, 3), value, np.uint8)).save(image)
            if split in ("train", "val"):
                for kind, raw in (("labelIds", 23 + value), ("labelTrainIds", 99), ("invIds", 99)):
                    label = folder / "gt" / condition / split / f"{scene}_gt_{kind}.png"
                    label.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((H, W), raw, np.uint8)).save(label)
    return folder


def zipped(root: Path) -> list[str]:
    paths = []
    for name, top in (("rgb_anon_trainvaltest.zip", "rgb_anon"), ("gt_trainval.zip", "gt")):
        paths.append(str(root.parent / name))
        with zipfile.ZipFile(paths[-1], "w") as file:
            for member in sorted((root / top).rglob("*.png")):
                file.write(member, member.relative_to(root).as_posix())
    return paths


@pytest.mark.parametrize("packed", [False, True])
def test_all_conditions_in_one_split(root: Path, packed: bool) -> None:
    scenes = pickle.loads(pickle.dumps(ACDC(zipped(root) if packed else str(root), "val")))
    assert list(scenes.keys) == [f"{condition}/{scene}" for condition, scene in SCENES.items()]
    assert scenes.labelled
    for value, key in enumerate(scenes.keys):
        assert (scenes.image(key) == value).all()
        assert scenes.size(key) == (H, W)
        assert (scenes.labels(key) == 10 + value).all()  # sky, person, rider, car
    assert scenes.identity() != ACDC(str(root), "train").identity()


@pytest.mark.parametrize("packed", [False, True])
def test_conditions_and_splits_without_labels(root: Path, packed: bool) -> None:
    where = zipped(root) if packed else str(root)
    assert list(ACDC(where, "train", conditions=("snow", "fog")).keys) == [f"{c}/{SCENES[c]}" for c in ("fog", "snow")]
    assert len(ACDC(where, "train", count=2).keys) == 2
    for split in ("test", "train_ref"):
        scenes = ACDC(where, split, conditions=("rain",))
        assert not scenes.labelled
        assert list(scenes.keys) == [f"rain/{SCENES['rain']}"]
        assert (scenes.image(scenes.keys[0]) == 2).all()
        assert "stamps" not in scenes.identity()
        with pytest.raises(AdaptSegError, match=rf"split '{split}' has no public annotation .*rain/GOPR0400"):
            scenes.labels(scenes.keys[0])


def test_traps(root: Path, tmp_path: Path) -> None:
    for conditions in ((), ("fog", "fog"), ("hail",)):
        with pytest.raises(AdaptSegError, match=r"conditions is \[.*\]; some of fog, night, rain, snow, each once"):
            ACDC(str(root), "train", conditions=conditions)  # type: ignore[arg-type]
    label = root / "gt/fog/train" / f"{SCENES['fog']}_gt_labelIds.png"
    Image.fromarray(np.zeros((H, W + 1), np.uint8)).save(label)
    with pytest.raises(AdaptSegError, match=r"labelIds.png is 7x4 pixels, its image .*rgb_anon.png is 6x4"):
        ACDC(str(root), "train").labels(f"fog/{SCENES['fog']}")
    label.unlink()
    with pytest.raises(AdaptSegError, match=r"1 of 1 scenes have no label file in .*gt/fog/train: GOPR0475"):
        ACDC(str(root), "train")
    assert len(ACDC(str(root), "train", conditions=("night",)).keys) == 1  # what is not asked for is not looked at
    with pytest.raises(
        AdaptSegError, match=r"rgb_anon/fog/val_ref does not exist; expected layout: .*rgb_ref_anon.png"
    ):
        ACDC(str(root), "val_ref")
    (root / "rgb_anon/fog/val_ref").mkdir()
    with pytest.raises(AdaptSegError, match=r"rgb_anon/fog/val_ref holds no scene; expected layout"):
        ACDC(str(root), "val_ref")
