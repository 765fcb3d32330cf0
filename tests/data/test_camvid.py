"""CamVid reader on tiny files laid out as SegNet's authors distribute them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.data.camvid import CamVid
from adaptseg.errors import AdaptSegError

H, W = 4, 6
STEMS = ["0001TP_006690", "0006R0_f00930", "Seq05VD_f00000"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for number, stem in enumerate(STEMS):
            Image.fromarray(np.full((H, W, 3), number, np.uint8)).save(tmp_path / split / f"{stem}.png")
            Image.fromarray(ids(number)).save(tmp_path / f"{split}annot" / f"{stem}.png")
    return tmp_path


def ids(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 12, (H, W)).astype(np.uint8)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_reads_a_folder_without_list(root: Path, split) -> None:
    scenes = CamVid(str(root), split)
    assert list(scenes.keys) == STEMS
    assert scenes.labelled
    for number, stem in enumerate(STEMS):
        assert scenes.size(stem) == (H, W)
        assert (scenes.image(stem) == number).all()
        labels = scenes.labels(stem)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.where(ids(number) == 11, 255, ids(number)))


def test_list_with_its_authors_paths(root: Path) -> None:
    lines = [f"/SegNet/CamVid/train/{stem}.png /SegNet/CamVid/trainannot/{stem}.png" for stem in (STEMS[2], STEMS[0])]
    (root / "train.txt").write_text("\n".join(lines) + "\n\n")
    assert list(CamVid(str(root)).keys) == [STEMS[0], STEMS[2]]
    assert list(CamVid(str(root), "val").keys) == STEMS
    assert list(CamVid(str(root), count=1).keys) == [STEMS[0]]


def test_list_errors(root: Path) -> None:
    listing = root / "train.txt"
    listing.write_text("/SegNet/CamVid/train/absent.png /SegNet/CamVid/trainannot/absent.png\n")
    with pytest.raises(AdaptSegError, match=r"train.txt lists 1 scenes \(of 1\) that .* does not hold: absent"):
        CamVid(str(root))
    listing.write_text(f"a/{STEMS[0]}.png b/{STEMS[0]}.png\n" * 2)
    with pytest.raises(AdaptSegError, match=f"lists scenes twice: {STEMS[0]}"):
        CamVid(str(root))
    listing.write_text("\n")
    with pytest.raises(AdaptSegError, match=r"train.txt is empty"):
        CamVid(str(root))


def test_absent_folders_name_the_layout(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"/train does not exist; expected layout: .*/trainannot/<scene>.png"):
        CamVid(str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(AdaptSegError, match="holds no scene; expected layout"):
        CamVid(str(tmp_path))
    Image.new("RGB", (W, H)).save(tmp_path / "train/a.png")
    with pytest.raises(AdaptSegError, match="trainannot does not exist"):
        CamVid(str(tmp_path))
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(AdaptSegError, match=r"1 of 1 scenes have no label file in .*: a.png"):
        CamVid(str(tmp_path))


def test_unknown_id_names_the_file(root: Path) -> None:
    Image.fromarray(np.full((H, W), 12, np.uint8)).save(root / f"trainannot/{STEMS[0]}.png")
    with pytest.raises(AdaptSegError, match=rf"trainannot/{STEMS[0]}.png: label ids 12 are unknown to class table"):
        CamVid(str(root)).labels(STEMS[0])
