"""ADE-Bed's archive and the bedrooms of ADE20K's benchmark, on tiny files in both layouts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import H, W, pack, picture, save

from adaptseg.classes import VOID
from adaptseg.data import ADE20KBedrooms, ADEBedroom
from adaptseg.data.ade_bedroom import ADE20K_BEDROOM, ADE_BEDROOM
from adaptseg.errors import AdaptSegError

NAMES = (
    "wall bed floor table lamp ceiling painting windowpane pillow curtain cushion door chair cabinet chest mirror rug "
    "armchair book sconce plant wardrobe clock light flower vase fan box shelf television"
)
"""The specification's order (section 3)."""
# objectInfo150.txt of the benchmark: its first twenty-five names, and a few of the rest, by id.
FIRST = (
    "wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door table mountain "
    "plant curtain chair car water painting sofa shelf"
)
LATER = {28: "mirror", 37: "lamp", 45: "chest", 58: "pillow", 83: "light", 90: "television", 136: "vase", 149: "clock"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number in range(3):
            folder = tmp_path / "ADE_Bed_256" / "real" / split
            save(folder / f"ADE_{number}.jpg", picture())
            ids = (np.arange(H * W).reshape(H, W) + number) % 31
            np.save(folder / f"ADE_{number}.npy", np.where(ids == 30, VOID, ids).astype(np.uint8))
    return tmp_path / "ADE_Bed_256"


@pytest.fixture
def benchmark_root(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    lines, ids = [], np.arange(151, dtype=np.uint8)[:, None]
    for folder, split in (("training", "train"), ("validation", "val")):
        for number, category in enumerate(["bedroom", "street", "bedroom"], 1):
            key = f"ADE_{split}_{number:08d}"
            save(root / "images" / folder / f"{key}.jpg", picture(151, 2 + number))
            save(
                root / "annotations" / folder / f"{key}.png",
                ids.repeat(2 + number, 1),
            )
            lines.append(f"{key} {category}")
    (root / "sceneCategories.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tables_have_the_papers_order_and_the_benchmarks_ids() -> None:
    assert ADE_BEDROOM.names == ADE20K_BEDROOM.names == tuple(NAMES.split())
    assert len({c.color for c in ADE_BEDROOM.classes}) == 30
    ids = dict(enumerate(FIRST.split(), 1)) | LATER
    mapped = ADE20K_BEDROOM.train_ids(np.array([list(ids)]))[0]
    names = [None if t == VOID else ADE20K_BEDROOM.names[t] for t in mapped]
    assert names == [name if name in ADE_BEDROOM.names else None for name in ids.values()]


def test_archive_is_read_as_it_is(archive: Path) -> None:
    scenes = pickle.loads(pickle.dumps(ADEBedroom(str(archive), "train")))
    assert list(scenes.keys) == ["ADE_0", "ADE_1", "ADE_2"]
    assert scenes.size("ADE_0") == scenes.image("ADE_0").shape[:2] == (H, W)
    labels = scenes.labels("ADE_1")
    assert (labels.dtype, labels[0, 0], labels.ravel()[29], labels.ravel()[30]) == (np.uint8, 1, VOID, 0)
    assert list(ADEBedroom(str(archive), "test", count=1).keys) == ["ADE_0"]
    assert scenes.identity()["stamps"] != ADEBedroom(str(archive), "train", count=2).identity()["stamps"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((H, W), 30, np.uint8), r"ADE_0.npy: label ids 30 are unknown to class table 'ade bedroom'"),
        (np.zeros((H, W + 1), np.uint8), r"ADE_0.npy is 9x6 pixels, its image .*ADE_0.jpg is 8x6"),
        (np.zeros((H, W), np.int64), r"ADE_0.npy holds int64 \(6, 8\); \(height, width\) uint8 is expected"),
        (np.zeros((H, W, 1), np.uint8), r"holds uint8 \(6, 8, 1\)"),
        (np.array([{}], object), r"ADE_0.npy is no readable NumPy array"),
    ],
    ids=["id", "size", "type", "shape", "pickle"],
)
def test_wrong_arrays_are_one_line(archive: Path, wrong: np.ndarray, message: str) -> None:
    np.save(archive / "real" / "train" / "ADE_0.npy", wrong, allow_pickle=True)
    with pytest.raises(AdaptSegError, match=message):
        ADEBedroom(str(archive), "train").labels("ADE_0")


def test_missing_and_broken_files_are_named(archive: Path) -> None:
    path = archive / "real" / "train" / "ADE_0.npy"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AdaptSegError, match=r"ADE_0.npy is no readable NumPy array"):
        ADEBedroom(str(archive), "train").labels("ADE_0")
    np.savez(path, np.zeros(1))
    path.with_name("ADE_0.npy.npz").rename(path)
    with pytest.raises(AdaptSegError, match=r"ADE_0.npy holds an archive of arrays"):
        ADEBedroom(str(archive), "train").labels("ADE_0")
    path.unlink()
    with pytest.raises(AdaptSegError, match=r"1 of 3 scenes have no label file in .*train: ADE_0.npy"):
        ADEBedroom(str(archive), "train")
    with pytest.raises(AdaptSegError, match=r"does not exist; expected layout: .*real/test/<scene>.jpg"):
        ADEBedroom(str(archive / "real"), "test")


@pytest.mark.parametrize("packed", [False, True])
def test_bedrooms_of_the_benchmark(benchmark_root: Path, packed: bool) -> None:
    name = "ADEChallengeData2016"
    root = pack(benchmark_root.parent, benchmark_root.parent / f"{name}.zip") if packed else str(benchmark_root)
    scenes = pickle.loads(pickle.dumps(ADE20KBedrooms(root, "train")))
    assert list(scenes.keys) == ["ADE_train_00000001", "ADE_train_00000003"]
    assert [scenes.size(key) for key in scenes.keys] == [(151, 3), (151, 5)]
    labels = scenes.labels(scenes.keys[0])
    assert labels.shape == scenes.image(scenes.keys[0]).shape[:2]
    column = labels[:, 0]
    assert sorted(column[column != VOID]) == list(range(30))
    assert [int(column[raw]) for raw in (1, 8, 4, 16, 37)] == [0, 1, 2, 3, 4]
    assert scenes.identity()["stamps"]


def test_categories_decide(benchmark_root: Path) -> None:
    listing = benchmark_root / "sceneCategories.txt"
    listing.write_text("ADE_train_00000001 street\n")
    with pytest.raises(AdaptSegError, match=r"ADE20K split 'train', category bedroom, in .* holds no scene"):
        ADE20KBedrooms(str(benchmark_root), "train")
    listing.write_text("ADE_train_00000001\n")
    with pytest.raises(AdaptSegError, match=r'has the line "ADE_train_00000001"; "scene category" is expected'):
        ADE20KBedrooms(str(benchmark_root), "train")
    listing.unlink()
    with pytest.raises(AdaptSegError, match=r"sceneCategories.txt does not exist; it is part of the benchmark"):
        ADE20KBedrooms(str(benchmark_root), "train")
