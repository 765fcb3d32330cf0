"""Bring-your-own folders: every image format, label encodings, splits, and each way they can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.data.folder import Folder
from adaptseg.errors import AdaptSegError

H, W = 4, 6
DRIVING = Path(__file__).parents[2].parent / "shared" / "data" / "driving"
TABLE = {
    "classes": [
        {"name": "ground", "color": [1, 2, 3], "raw_ids": [0, 7]},
        {"name": "thing", "color": [4, 5, 6], "thing": True, "raw_ids": [300]},
    ],
    "void_ids": [255],
}


def save_label(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def save_image(path: Path, size: tuple[int, int] = (W, H)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "classes.json").write_text(json.dumps(TABLE))
    for key in ("b", "day/a", "night/a"):
        save_image(tmp_path / f"images/{key}.png")
        save_label(tmp_path / f"labels/{key}.png", np.zeros((H, W), np.uint8))
    return tmp_path


def open_folder(root: Path, **changes) -> Folder:
    return Folder(str(root), **{"classes": "classes.json", **changes})


def test_keys_are_paths_without_extension(root: Path) -> None:
    scenes = open_folder(root)
    assert list(scenes.keys) == ["b", "day/a", "night/a"]
    assert scenes.class_table.names == ("ground", "thing")
    assert scenes.class_table.things.tolist() == [False, True]
    assert scenes.size("day/a") == (H, W)
    assert scenes.image("day/a").tolist() == [[[10, 20, 30]] * W] * H
    assert (scenes.labels("night/a") == 0).all()


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".JPG", ".PNG"])
def test_image_formats(root: Path, ending: str) -> None:
    save_image(root / f"images/frame.0001{ending}")  # a dot in the stem is part of the key
    save_label(root / "labels/frame.0001.png", np.full((H, W), 255, np.uint8))
    scenes = open_folder(root)
    assert "frame.0001" in scenes.keys
    assert scenes.image("frame.0001").shape == (H, W, 3)
    assert (scenes.labels("frame.0001") == 255).all()


def test_label_encodings(root: Path) -> None:
    sixteen = np.array([[0, 7, 300, 255, 0, 0]] * H, np.uint16)
    save_label(root / "labels/b.png", sixteen)
    np.testing.assert_array_equal(open_folder(root).labels("b"), [[0, 0, 1, 255, 0, 0]] * H)
    palette = Image.fromarray(np.array([[0, 7, 255, 7, 0, 0]] * H, np.uint8)).convert("P")
    palette.putdata([0, 7, 255, 7, 0, 0] * H)
    palette.putpalette([value // 3 for value in range(768)][::-1])
    palette.save(root / "labels/b.png")
    with Image.open(root / "labels/b.png") as written:
        assert written.mode == "P"
    np.testing.assert_array_equal(open_folder(root).labels("b"), [[0, 0, 255, 0, 0, 0]] * H)
    Image.new("1", (W, H), 0).save(root / "labels/b.png")
    assert (open_folder(root).labels("b") == 0).all()
    Image.new("RGB", (W, H)).save(root / "labels/b.png")
    with pytest.raises(AdaptSegError, match=r"labels/b.png has mode RGB"):
        open_folder(root).labels("b")


def test_without_labels(root: Path) -> None:
    scenes = open_folder(root, labels=None)
    assert not scenes.labelled
    with pytest.raises(AdaptSegError, match="labels: null"):
        scenes.labels("b")
    with pytest.raises(AdaptSegError, match="no instance labels"):
        scenes.instances("b")


def test_split_file(root: Path) -> None:
    (root / "splits").mkdir()
    split = root / "splits/train.txt"
    split.write_text("night/a\r\n\r\n  b  \r\n")
    assert list(open_folder(root, split="splits/train.txt").keys) == ["b", "night/a"]
    assert list(open_folder(root, split="splits/train.txt", count=1).keys) == ["b"]
    (root / "labels/day/a.png").unlink()  # outside the split: nobody asks for it
    assert len(open_folder(root, split="splits/train.txt").keys) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b\nc\nd.png\n", r"lists 2 scenes \(of 3\) that .*images does not hold: c, d.png; .*without file extension"),
        ("b\nb\n", "lists scenes twice: b"),
        (" \n\n", "is empty; write one scene per line"),
    ],
)
def test_split_errors(root: Path, text: str, message: str) -> None:
    (root / "train.txt").write_text(text)
    with pytest.raises(AdaptSegError, match=rf"train.txt {message}"):
        open_folder(root, split="train.txt")


def test_split_file_missing_or_binary(root: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"split file .*train.txt does not exist"):
        open_folder(root, split="train.txt")
    with pytest.raises(AdaptSegError, match=r"split file .*images/b.png is not UTF-8"):
        open_folder(root, split="images/b.png")


def test_two_images_of_one_scene(root: Path) -> None:
    save_image(root / "images/day/a.jpg")
    with pytest.raises(AdaptSegError, match=r"holds both day/a\.(png and day/a\.jpg|jpg and day/a\.png)"):
        open_folder(root)


def test_missing_labels_are_counted_and_named(root: Path) -> None:
    for number in range(6):
        save_image(root / f"images/z{number}.png")
    with pytest.raises(AdaptSegError, match=r"6 of 9 scenes .*: z0.png, z1.png, z2.png, z3.png, \.\.\.$"):
        open_folder(root)
    with pytest.raises(AdaptSegError, match=r"nolabels does not exist; .*or labels: null"):
        open_folder(root, labels="nolabels")


def test_missing_or_empty_images(root: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"frames does not exist; expected layout: .*frames/<scene>.png"):
        open_folder(root, images="frames")
    (root / "frames").mkdir()
    (root / "frames/notes.txt").write_text("no image")
    (root / "frames/.png").write_bytes(b"")
    with pytest.raises(AdaptSegError, match="frames holds no scene"):
        open_folder(root, images="frames")


def test_class_file_lookup(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(AdaptSegError, match=r"classes: no class table at .*/mine.yaml nor at mine.yaml"):
        open_folder(root, classes="mine.yaml")
    (elsewhere / "mine.yaml").write_text("classes: [{name: x, color: [0, 0, 0]}, {name: y, color: [0, 0, 1]}]")
    assert open_folder(root, classes="mine.yaml").class_table.names == ("x", "y")
    assert open_folder(root, classes=str(root / "classes.json")).class_table.num_classes == 2


def test_unknown_id_and_size_mismatch_name_files(root: Path) -> None:
    save_label(root / "labels/b.png", np.full((H, W), 9, np.uint8))
    save_label(root / "labels/day/a.png", np.zeros((W, H), np.uint8))
    scenes = open_folder(root)
    with pytest.raises(AdaptSegError, match=r"labels/b.png: label ids 9 are unknown to class table 'classes'"):
        scenes.labels("b")
    with pytest.raises(AdaptSegError, match=r"labels/day/a.png is 4x6 pixels, its image .*images/day/a.png is 6x4"):
        scenes.labels("day/a")


@pytest.mark.skipif(not DRIVING.is_dir(), reason="the shared driving images do not lie beside this repository")
@pytest.mark.parametrize(
    ("domain", "split", "count"), [("camvid", "train", 367), ("camvid", "dusk_test", None), ("pau", "val", None)]
)
def test_shared_driving_images(domain: str, split: str, count: int | None) -> None:
    scenes = Folder(str(DRIVING / domain), classes="../classes.json", split=f"splits/{split}.txt")
    listed = (DRIVING / domain / "splits" / f"{split}.txt").read_text().split()
    assert list(scenes.keys) == sorted(listed)
    if count is not None:
        assert len(scenes.keys) == count
    assert scenes.class_table.names[0] == "sky"
    assert scenes.class_table.colors[3].tolist() == [128, 64, 128]
    for key in (scenes.keys[0], scenes.keys[-1]):
        labels = scenes.labels(key)
        assert labels.shape == scenes.size(key) == scenes.image(key).shape[:2]
        assert set(np.unique(labels)) <= {*range(11), 255}
