"""Dark Zurich reader on tiny files in the official layout."""

import pickle
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from adaptseg.data import DarkZurich
from adaptseg.errors import AdaptSegError

H, W = 4, 6
IMAGES = {
    "train/night": "GOPR0345/GOPR0345_frame_000001", "train/twilight": "GOPR0348/GOPR0348_frame_000002",
    "train/day": "GOPR0345/GOPR0345_frame_000001", "val/night": "GOPR0356/GOPR0356_frame_000321",
    "test/night": "GP010376/GP010376_frame_000003",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "dark_zurich"
    for value, (place, scene) in enumerate(IMAGES.items()):
        image = folder / "rgb_anon" / place / f"{scene}_rgb_anon.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((H, W, 3), value, np.uint8)).save(image)
    label = folder / "gt/val/night" / f"{IMAGES['val/night']}_gt_labelIds.png"
    label.parent.mkdir(parents=True)
    Image.fromarray(np.full((H, W), 26, np.uint8)).save(label)
    return folder


def zipped(root: Path) -> list[str]:
    """One archive a split, as published: images and labels together."""
    paths = []
    for split in ("train", "val", "test"):
        paths.append(str(root.parent / f"Dark_Zurich_{split}_anon.zip"))
        with zipfile.ZipFile(paths[-1], "w") as file:
            for member in sorted(root.rglob("*.png")):
                name = member.relative_to(root).as_posix()
                if f"/{split}/" in name:
                    file.write(member, name)
    return paths


@pytest.mark.parametrize("packed", [False, True])
def test_reads_every_split(root: Path, packed: bool) -> None:
    where = zipped(root) if packed else str(root)
    splits: list[tuple[int, Literal["train", "val", "test"]]] = [(0, "train"), (3, "val"), (4, "test")]
    for value, split in splits:
        scenes = pickle.loads(pickle.dumps(DarkZurich(where, split)))
        assert list(scenes.keys) == [f"night/{IMAGES[f'{split}/night']}"]
        key = scenes.keys[0]
        assert (scenes.image(key) == value).all()
        assert scenes.size(key) == (H, W)
        assert scenes.labelled == (split == "val")
        if split == "val":
            assert (scenes.labels(key) == 13).all()  # car
            assert len(scenes.identity()["stamps"]) == 1
        else:
            with pytest.raises(AdaptSegError, match=rf"split '{split}' has no public annotation"):
                scenes.labels(key)


def test_same_frame_name_at_other_times_is_another_scene(root: Path) -> None:
    scenes = DarkZurich(str(root), "train", times=("night", "day", "twilight"))
    assert list(scenes.keys) == [f"{time}/{IMAGES[f'train/{time}']}" for time in ("day", "night", "twilight")]
    assert [int(scenes.image(key)[0, 0, 0]) for key in scenes.keys] == [2, 0, 1]


def test_traps(root: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"times is \['day'\]; some of night.* for split 'val'"):
        DarkZurich(str(root), "val", times=("day",))
    for times in ((), ("day", "day"), ("noon",)):
        with pytest.raises(AdaptSegError, match=r"times is .*; some of night, twilight, day"):
            DarkZurich(str(root), "train", times=times)  # type: ignore[arg-type]
    label = root / "gt/val/night" / f"{IMAGES['val/night']}_gt_labelIds.png"
    label.write_bytes(label.read_bytes()[:50])
    with pytest.raises(AdaptSegError, match=r"GOPR0356_frame_000321_gt_labelIds.png is truncated or broken"):
        DarkZurich(str(root), "val").labels(f"night/{IMAGES['val/night']}")
    label.unlink()
    with pytest.raises(AdaptSegError, match=r"1 of 1 scenes have no label file in .*gt/val/night: GOPR0356"):
        DarkZurich(str(root), "val")
    with pytest.raises(AdaptSegError, match=r"nowhere/rgb_anon/test/night does not exist; expected layout"):
        DarkZurich(str(root / "nowhere"), "test")
