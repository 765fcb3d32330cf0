"""BDD100K on tiny files in both releases' layouts, as folders and zips."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import H, W, break_member, pack, picture, save

from adaptseg.classes import VOID
from adaptseg.data import BDD100K
from adaptseg.errors import AdaptSegError

KEYS = ["0a0a0b1a-7c39d841", "b1c81faa-3df17267"]
LABELS = np.append(np.arange(19), [VOID] * (H * W - 19)).reshape(H, W).astype(np.uint8)


def make(root: Path, *, old: bool) -> Path:
    for split in ("train", "val", "test"):
        for key in KEYS:
            save(root / ("seg/images" if old else "images/10k") / split / f"{key}.jpg", picture())
            if split == "test":
                continue
            if old:
                save(root / "seg/labels" / split / f"{key}_train_id.png", LABELS)
                save(root / "seg/color_labels" / split / f"{key}_train_color.png", picture())
            else:
                save(root / "labels/sem_seg/masks" / split / f"{key}.png", LABELS)
                save(root / "labels/sem_seg/colormaps" / split / f"{key}.png", picture())
    return root


def zipped(root: Path, *, old: bool) -> str | list[str]:
    if old:
        return pack(root, root.parent / "bdd100k_seg.zip", prefix="bdd100k/")
    images = pack(root, root.parent / "bdd100k_images_10k.zip", prefix="bdd100k/", inside="images")
    archive = root.parent / "bdd100k_sem_seg_labels_trainval.zip"
    return [images, pack(root, archive, prefix="bdd100k/", inside="labels")]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_train_ids_as_they_are(tmp_path: Path, old: bool, packed: bool) -> None:
    root = make(tmp_path / "bdd100k", old=old)
    given = zipped(root, old=old) if packed else str(root)
    for split in ("train", "val"):
        scenes = pickle.loads(pickle.dumps(BDD100K(given, split)))
        assert list(scenes.keys) == KEYS
        np.testing.assert_array_equal(scenes.labels(KEYS[1]), LABELS)
        assert scenes.size(KEYS[0]) == scenes.image(KEYS[0]).shape[:2] == (H, W)
    test = BDD100K(given, "test", count=1)
    assert (len(test.keys), test.labelled) == (1, False)
    with pytest.raises(AdaptSegError, match="annotation of split 'test' is not public"):
        test.labels(KEYS[0])


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    root = make(tmp_path / "bdd100k", old=False)
    save(root / "labels/sem_seg/masks/val" / f"{KEYS[0]}.png", np.full((H, W), 19, np.uint8))
    with pytest.raises(AdaptSegError, match=r"label ids 19 are unknown to class table 'bdd100k'"):
        BDD100K(str(root), "val").labels(KEYS[0])
    archives = zipped(root, old=False)
    member = f"bdd100k/labels/sem_seg/masks/train/{KEYS[0]}.png"
    break_member(Path(archives[1]), member)
    with pytest.raises(AdaptSegError, match=rf"member {member} is broken"):
        BDD100K(archives, "train").labels(KEYS[0])
    (root / "labels/sem_seg/masks/val" / f"{KEYS[1]}.png").unlink()
    with pytest.raises(AdaptSegError, match=rf"1 of 2 scenes have no label file in .*masks/val: {KEYS[1]}.png"):
        BDD100K(str(root), "val")
    make(root, old=True)
    with pytest.raises(AdaptSegError, match=r"holds both images/10k/train and seg/images/train; remove one"):
        BDD100K(str(root), "train")
    with pytest.raises(AdaptSegError, match=r"images/10k/val does not exist; expected layout: .*images/10k/val/<sc"):
        BDD100K(str(tmp_path / "nowhere"), "val")
