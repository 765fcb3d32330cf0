"""CamVid's original release on tiny colour files, as folders and as the two zips."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import break_member, pack, picture, save

from adaptseg.classes import VOID
from adaptseg.data import CamVidRaw
from adaptseg.data.camvid_raw import segnet_split
from adaptseg.errors import AdaptSegError

# label_colors.txt of the release: its 32 names and colours.
COLORS = """64 128 64 Animal|192 0 128 Archway|0 128 192 Bicyclist|0 128 64 Bridge|128 0 0 Building|64 0 128 Car
64 0 192 CartLuggagePram|192 128 64 Child|192 192 128 Column_Pole|64 64 128 Fence|128 0 192 LaneMkgsDriv
192 0 64 LaneMkgsNonDriv|128 128 64 Misc_Text|192 0 192 MotorcycleScooter|128 64 64 OtherMoving
64 192 128 ParkingBlock|64 64 0 Pedestrian|128 64 128 Road|128 128 192 RoadShoulder|0 0 192 Sidewalk
192 128 128 SignSymbol|128 128 128 Sky|64 128 192 SUVPickupTruck|0 0 64 TrafficCone|0 64 64 TrafficLight
192 64 128 Train|128 128 0 Tree|192 128 192 Truck_Bus|64 0 64 Tunnel|192 192 0 VegetationMisc|0 0 0 Void
64 192 0 Wall""".replace("\n", "|").split("|")
PALETTE = {row.split()[3]: tuple(map(int, row.split()[:3])) for row in COLORS}
GROUPS = {
    "sky": "Sky", "building": "Building Bridge Wall Tunnel Archway", "pole": "Column_Pole TrafficCone",
    "road": "Road LaneMkgsDriv LaneMkgsNonDriv", "pavement": "Sidewalk ParkingBlock RoadShoulder",
    "tree": "Tree VegetationMisc", "sign": "SignSymbol Misc_Text TrafficLight", "fence": "Fence",
    "car": "Car SUVPickupTruck Truck_Bus Train OtherMoving",
    "pedestrian": "Pedestrian Child CartLuggagePram Animal", "bicyclist": "Bicyclist MotorcycleScooter",
}  # fmt: skip
KEYS = ["0001TP_006690", "0001TP_008550", "0006R0_f00930", "0016E5_07959", "0016E5_08190", "Seq05VD_f00000"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "camvid"
    colors = np.array(list(PALETTE.values()), np.uint8).reshape(4, 8, 3)
    for key in KEYS:
        save(folder / "701_StillsRaw_full" / f"{key}.png", picture(4, 8))
        save(folder / "LabeledApproved_full" / f"{key}_L.png", colors)
    return folder


def zipped(root: Path) -> list[str]:
    """The one archive has a folder at its top, the other has none."""
    images = pack(root, root.parent / "701_StillsRaw_full.zip", inside="701_StillsRaw_full")
    return [images, pack(root / "LabeledApproved_full", root.parent / "LabeledApproved_full.zip")]


@pytest.mark.parametrize("packed", [False, True])
def test_all_32_colours_become_segnets_classes(root: Path, packed: bool) -> None:
    scenes = pickle.loads(pickle.dumps(CamVidRaw(zipped(root) if packed else str(root), "all")))
    assert list(scenes.keys) == KEYS
    group = {name: train_id for train_id, names in enumerate(GROUPS.values()) for name in names.split()}
    expected = [group.get(name, VOID) for name in PALETTE]
    assert expected.count(VOID) == 1
    np.testing.assert_array_equal(scenes.labels(KEYS[0]).ravel(), expected)
    assert scenes.labels(KEYS[0]).dtype == np.uint8
    assert scenes.class_table.names == tuple(GROUPS)
    assert scenes.size(KEYS[0]) == scenes.image(KEYS[0]).shape[:2] == (4, 8)
    assert scenes.identity()["stamps"]


def test_splits_are_segnets(root: Path, tmp_path: Path) -> None:
    given = {split: list(CamVidRaw(str(root), split).keys) for split in ("train", "val", "test")}
    assert given == {
        "train": ["0001TP_006690", "0006R0_f00930", "0016E5_08190"],
        "val": ["0016E5_07959"],
        "test": ["0001TP_008550", "Seq05VD_f00000"],
    }
    listing = tmp_path / "mine.txt"
    listing.write_text("0016E5_08190.png\n0001TP_006690\n")
    assert list(CamVidRaw(str(root), "all", stems=str(listing)).keys) == ["0001TP_006690", "0016E5_08190"]
    with pytest.raises(AdaptSegError, match=r"stems and split 'val' exclude each other; set split: all"):
        CamVidRaw(str(root), "val", stems=str(listing))


DRIVING = Path(__file__).parents[2].parent / "shared" / "data" / "driving" / "camvid" / "splits"


@pytest.mark.skipif(not DRIVING.is_dir(), reason="the shared driving images do not lie beside this repository")
@pytest.mark.parametrize("split", ["train", "val"])
def test_segnets_own_lists_follow_the_rule(split: str) -> None:
    assert {segnet_split(key) for key in (DRIVING / f"{split}.txt").read_text().split()} == {split}


def test_what_is_wrong_is_one_line(root: Path) -> None:
    labels = root / "LabeledApproved_full"
    save(labels / f"{KEYS[0]}_L.png", np.full((4, 8, 3), (128, 64, 127), np.uint8))
    save(labels / f"{KEYS[1]}_L.png", np.full((4, 8, 3), (192, 192, 192), np.uint8))
    save(labels / f"{KEYS[2]}_L.png", np.zeros((8, 4, 3), np.uint8))
    scenes = CamVidRaw(str(root), "all")
    messages = [
        r"colours \(128, 64, 127\) are none of CamVid's 32",
        r"\(192, 192, 192\)",
        r"is 4x8 pixels, its image .* is 8x4",
    ]
    for key, message in zip(KEYS, messages, strict=False):
        with pytest.raises(AdaptSegError, match=message):
            scenes.labels(key)
    archives = zipped(root)
    break_member(Path(archives[1]), f"{KEYS[3]}_L.png")
    with pytest.raises(AdaptSegError, match=rf"LabeledApproved_full.zip: member {KEYS[3]}_L.png is broken"):
        CamVidRaw(archives, "all").labels(KEYS[3])
    (labels / f"{KEYS[4]}_L.png").unlink()
    with pytest.raises(AdaptSegError, match=rf"1 of 6 scenes have no label file in .*: {KEYS[4]}_L.png"):
        CamVidRaw(str(root), "all")
