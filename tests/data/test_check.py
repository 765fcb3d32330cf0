"""Counting a data set: exact counts, the same for any number of processes; short ranges; the contact sheet's choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import H, W, picture, save

from adaptseg.classes import CITYSCAPES, VOID
from adaptseg.data import BDD100K, Cityscapes, Streets
from adaptseg.data.check import SplitReport, as_ranges, findings, look_at, table_problems
from adaptseg.data.counting import value_counts
from adaptseg.data.sheet import choose_scenes, frequency_bars, overlaid
from adaptseg.errors import AdaptSegError


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (5, 9), (4, 6), (33, 64)])
@pytest.mark.parametrize("top", [1, 20, 256])
def test_counts_are_those_of_a_loop(shape: tuple[int, ...], top: int) -> None:
    labels = np.random.default_rng(top).integers(0, top, shape).astype(np.uint8)
    counts = value_counts(labels)
    assert counts.dtype == np.int64
    assert counts.tolist() == [int((labels == value).sum()) for value in range(256)]
    np.testing.assert_array_equal(value_counts(labels.T), counts)  # not contiguous


def make(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(5):
        save(root / "images/10k/train" / f"{number}.jpg", picture())
        save(root / "labels/sem_seg/masks/train" / f"{number}.png", rng.integers(0, 19, (H, W)).astype(np.uint8))
    save(root / "images/10k/train/5.jpg", picture(2 * H, W))
    save(root / "labels/sem_seg/masks/train/5.png", np.full((2 * H, W), VOID, np.uint8))
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_a_split_adds_up(tmp_path: Path, workers: int) -> None:
    root = make(tmp_path)
    scenes = BDD100K(str(root), "train")
    everything = np.concatenate([scenes.labels(key).ravel() for key in scenes.keys])
    save(root / "labels/sem_seg/masks/train/1.png", np.full((H, W), 30, np.uint8))
    broken = root / "labels/sem_seg/masks/train/3.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    left_out = np.zeros(256, np.int64)
    report = SplitReport(class_table=scenes.class_table)
    for key, finding in zip(scenes.keys, findings(scenes, workers=workers, images=False), strict=True):
        assert (finding.problem is None) == (key not in ("1", "3"))
        if finding.counts is not None:
            left_out += value_counts(scenes.labels(key))
        report.add(finding)
    np.testing.assert_array_equal(report.counts, left_out)
    assert report.counts.sum() == len(everything) - 2 * H * W
    assert report.sizes == {(H, W): 3, (2 * H, W): 1}
    assert report.scenes == 6
    assert report.void_share == pytest.approx(2 / 5)
    assert report.frequencies.sum() == pytest.approx(1)
    assert report.values[-1] == VOID
    first, second = report.problems
    assert "1.png: label ids 30 are unknown to class table 'bdd100k'" in first
    assert "3.png is truncated or broken" in second


def test_images_are_decoded_on_request(tmp_path: Path) -> None:
    root = make(tmp_path)
    image = save(root / "images/10k/train/2.jpg", picture(64, 64))
    save(root / "labels/sem_seg/masks/train/2.png", np.zeros((64, 64), np.uint8))
    image.write_bytes(image.read_bytes()[:1500])
    scenes = BDD100K(str(root), "train")
    assert look_at(scenes, "2", images=False).problem is None
    assert "2.jpg is truncated or broken" in str(look_at(scenes, "2", images=True).problem)


def test_scenes_without_labels_have_a_size(tmp_path: Path) -> None:
    save(tmp_path / "leftImg8bit/test/a/a_1_leftImg8bit.png", picture())
    finding = look_at(Cityscapes(str(tmp_path), "test"), "a/a_1", images=True)
    assert finding == ((H, W), None, None)


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 4, 255], "0-2, 4, 255"), ([7, 8, 9], "7-9")]
)
def test_ranges(values: list[int], text: str) -> None:
    assert as_ranges(values) == text


def test_tables_that_differ() -> None:
    streets = Streets("game", "train", count=1).class_table
    assert table_problems([("source", CITYSCAPES), ("val", streets)]) == []
    assert table_problems([]) == []


def test_scenes_are_shared_out() -> None:
    first, second = Streets("game", "train", count=9), Streets("street", "val", count=2)
    chosen = choose_scenes({"source": first, "val": second}, 7)
    assert [name for name, _ in chosen] == ["source"] * 4 + ["val"] * 2  # there are no more
    assert [key for name, key in chosen if name == "source"] == [first.keys[i] for i in (0, 2, 4, 6)]
    assert len(choose_scenes({"source": first, "val": second}, 1)) == 1
    with pytest.raises(AdaptSegError, match=r"-n is 0; 1 or more"):
        choose_scenes({"source": first}, 0)


def test_overlay_blends_labels_and_leaves_void_clear(tmp_path: Path) -> None:
    image = np.full((H, 480, 3), 100, np.uint8)
    labels = np.zeros((H, 480), np.uint8)
    labels[:, 240:] = VOID
    for kind, values in (("images/10k/val/a.jpg", image), ("labels/sem_seg/masks/val/a.png", labels)):
        save(tmp_path / kind, values)
    picture_, shown = overlaid(BDD100K(str(tmp_path), "val"), "a")
    np.testing.assert_array_equal(shown, labels)
    road = (100 + np.array(CITYSCAPES.classes[0].color)) // 2
    np.testing.assert_array_equal(picture_[:, :240], np.broadcast_to(road, (H, 240, 3)))
    np.testing.assert_array_equal(picture_[:, 240:], image[:, 240:])


def test_bars_of_nothing_are_drawn_all_the_same() -> None:
    report = SplitReport(class_table=CITYSCAPES)
    assert frequency_bars(CITYSCAPES.names, {"val": report}).axes
    report.counts[3] = 5
    (axis,) = frequency_bars(CITYSCAPES.names, {"val": report}).axes
    assert [bar.get_width() for bar in axis.patches] == [0, 0, 0, 100, *[0] * 15]
