"""Class statistics: counted right, once, for the data they are named after; the same in every process."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from PIL import Image
from small_pool import Pool

from adaptseg.classes import VOID, ClassTable, SemanticClass
from adaptseg.data import CamVid, Cityscapes, ClassStatistics, DomainPair, Folder, Scenes, Streets, statistics
from adaptseg.data.statistics import class_statistics, read_statistics
from adaptseg.errors import AdaptSegError

SIZE = (32, 64)


class Unreadable(Pool):
    """A pool whose label files are gone, though nothing else tells it from `Pool`."""

    def labels(self, key: str) -> NDArray[np.uint8]:
        raise AdaptSegError(f"the labels of {key} were read")

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "reader": f"{Pool.__module__}.{Pool.__qualname__}"}


class Renamed(Pool):
    """A pool with another class table."""

    def __init__(self) -> None:
        super().__init__()
        self.class_table = ClassTable("other", tuple(SemanticClass(name, (0, 0, 0)) for name in "abcx"))


def assert_same(left: ClassStatistics, right: ClassStatistics) -> None:
    assert left.keys == right.keys
    for a, b in ((left.counts, right.counts), (left.pixels, right.pixels)):
        assert a.dtype == b.dtype == np.int64
        np.testing.assert_array_equal(a, b)


def cache_file(cache: Path) -> Path:
    (path,) = (cache / "class_statistics").iterdir()  # no temporary file is left either
    return path


def test_counts_equal_a_naive_loop(tmp_path: Path) -> None:
    for scenes in (Pool(), Streets("game", "train", count=3, size=SIZE)):
        counted = class_statistics(scenes, tmp_path)
        assert counted.keys == tuple(scenes.keys)
        for row, key in enumerate(scenes.keys):
            labels = scenes.labels(key)
            assert counted.pixels[row] == labels.size
            for c in range(scenes.class_table.num_classes):
                assert counted.counts[row, c] == int((labels == c).sum())
        np.testing.assert_array_equal(counted.totals, counted.counts.sum(0))
        np.testing.assert_allclose(counted.frequencies, counted.totals / counted.counts.sum())
        assert counted.frequencies.sum() == pytest.approx(1)
        np.testing.assert_allclose(counted.shares[1], counted.counts[1] / counted.pixels[1])


def test_void_is_in_the_pixels_and_in_nothing_else(tmp_path: Path) -> None:
    void = np.full((4, 4), VOID, np.uint8)
    counted = class_statistics(Pool({"a": (4, 4)}, labels_of={"a": void}), tmp_path)
    assert counted.pixels.tolist() == [16]
    assert counted.totals.tolist() == counted.frequencies.tolist() == [0, 0, 0, 0]


def test_the_second_call_reads_no_label(tmp_path: Path) -> None:
    first = class_statistics(Pool(), tmp_path)
    assert_same(class_statistics(Unreadable(), tmp_path), first)
    assert_same(read_statistics(cache_file(tmp_path), Unreadable()), first)
    with pytest.raises(AdaptSegError, match="the labels of city/a were read"):
        class_statistics(Unreadable(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_data_find_no_cache(tmp_path: Path) -> None:
    looks = [Streets(look, "train", count=2, size=SIZE) for look in ("game", "street", "night")]
    looks += [Streets("game", "train", count=2, size=SIZE, seed=1), Streets("game", "train", count=2, size=(32, 66))]
    looks += [Streets("game", "val", count=2, size=SIZE), Streets("game", "train", count=1, size=SIZE)]
    for scenes in (*looks, Pool(), Renamed()):
        class_statistics(scenes, tmp_path)
    assert len(list((tmp_path / "class_statistics").iterdir())) == len(looks) + 2
    assert looks[0].identity() == Streets("game", "train", count=2, size=SIZE, cache=False).identity()


def rewritten(path: Path, labels: NDArray[np.uint8]) -> None:
    """Write a label file and let a second pass, which a fast test cannot wait for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    later = path.stat().st_mtime_ns + 10**9 if path.exists() else 10**18
    Image.fromarray(labels).save(path)
    os.utime(path, ns=(later, later))


def folder(root: Path) -> Scenes:
    rows = [{"name": name, "color": [0, 0, 0]} for name in ("a", "b")]
    (root / "classes.json").write_text(json.dumps({"classes": rows}))
    return Folder(str(root), classes="classes.json")


def camvid(root: Path) -> Scenes:
    return CamVid(str(root))


def cityscapes(root: Path) -> Scenes:
    return Cityscapes(str(root), "train")


@pytest.mark.parametrize(
    ("reader", "image", "label"),
    [
        (folder, "images/{}.png", "labels/{}.png"),
        (camvid, "train/{}.png", "trainannot/{}.png"),
        (cityscapes, "leftImg8bit/train/{}_leftImg8bit.png", "gtFine/train/{}_gtFine_labelIds.png"),
    ],
    ids=["folder", "camvid", "cityscapes"],
)
def test_a_rewritten_label_file_is_counted_anew(tmp_path: Path, reader: Any, image: str, label: str) -> None:
    for key in ("x", "y"):
        (tmp_path / image.format(key)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / image.format(key))
        rewritten(tmp_path / label.format(key), np.zeros((3, 4), np.uint8))
    cache = tmp_path / "cache"
    first = class_statistics(reader(tmp_path), cache)
    assert_same(class_statistics(reader(tmp_path), cache), first)
    assert len(list((cache / "class_statistics").iterdir())) == 1
    raw = {"folder": 1, "camvid": 1, "cityscapes": 8}[reader.__name__]  # of train id 1
    rewritten(tmp_path / label.format("y"), np.full((3, 4), raw, np.uint8))
    assert class_statistics(reader(tmp_path), cache).counts[:, 1].tolist() == [0, 12]
    scenes = reader(tmp_path)
    (tmp_path / label.format("y")).unlink()
    with pytest.raises(AdaptSegError, match="cannot be read: No such file"):
        scenes.identity()


def test_unlabelled_scenes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "x.png")
    folder_table = {"classes": [{"name": name, "color": [0, 0, 0]} for name in ("a", "b")]}
    (tmp_path / "classes.json").write_text(json.dumps(folder_table))
    scenes = Folder(str(tmp_path), classes="classes.json", labels=None)
    assert scenes.identity()["keys"] == ["x"]
    with pytest.raises(AdaptSegError, match="Folder has no labels"):
        class_statistics(scenes, tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.9, -1])
def test_a_broken_cache_file_is_counted_anew_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: float
) -> None:
    expected = class_statistics(Pool(), tmp_path)
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))] if 0 < kept < 1 else whole[: int(kept)])
    assert capsys.readouterr().out == ""
    assert_same(class_statistics(Pool(), tmp_path), expected)
    assert "truncated or broken" in (said := capsys.readouterr().out)
    assert str(path) in said
    assert "counting anew" in said
    assert cache_file(tmp_path).read_bytes() == whole
    class_statistics(Unreadable(), tmp_path)
    assert capsys.readouterr().out == ""


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    class_statistics(Pool(), tmp_path)
    path = cache_file(tmp_path)
    content = bytearray(path.read_bytes())
    position = bytes(content).index(b"counts.npy") + 200  # inside the array
    content[position] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(AdaptSegError, match="truncated or broken"):
        read_statistics(path, Pool())


def saved(path: Path, **changes: Any) -> Path:
    arrays = {
        "keys": np.array(Pool().keys),
        "classes": np.array(list("abcd")),
        "counts": np.ones((4, 4), np.int64),
        "pixels": np.full(4, 9),
    }
    np.savez(path, **{**arrays, **changes})
    return path


def test_statistics_of_something_else_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.npz")
    assert read_statistics(path, Pool()).keys == tuple(Pool().keys)
    with pytest.raises(AdaptSegError, match=r"count the classes a, b, c, d; class table 'other' has a, b, c, x"):
        read_statistics(path, Renamed())
    with pytest.raises(AdaptSegError, match=r"another data set: 4 scenes from 'city/a' on; Pool has 1 scenes from 'z'"):
        read_statistics(path, Pool({"z": (4, 4)}))
    with pytest.raises(AdaptSegError, match="do not exist"):
        read_statistics(tmp_path / "none.npz", Pool())
    for changes in (
        {"counts": np.ones((3, 4), np.int64)},
        {"counts": np.ones((4, 4))},
        {"pixels": np.ones((4, 1), np.int64)},
        {"keys": np.array([{}], dtype=object)},
    ):
        with pytest.raises(AdaptSegError, match="broken"):
            read_statistics(saved(tmp_path / "t.npz", **changes), Pool())
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    for content in (stream.getvalue(), pickle.dumps(3), b"text"):
        (tmp_path / "u.npz").write_bytes(content)
        with pytest.raises(AdaptSegError, match="broken"):
            read_statistics(tmp_path / "u.npz", Pool())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(AdaptSegError, match=r"point data\.cache to another folder"):
        class_statistics(Pool(), tmp_path / "cache")


def test_what_takes_long_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class_statistics(Pool(), tmp_path / "quick")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(statistics, "_PATIENCE", 0.0)
    class_statistics(Pool(), tmp_path / "slow")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "counting the classes of 4 scenes, kept in" in lines[0]


# ---- the domain pair


def test_a_domain_pair_counts_its_source_once(tmp_path: Path) -> None:
    data = DomainPair(source=Pool(), target=Unreadable(), cache=str(tmp_path))
    first = data.source_statistics()
    assert data.source_statistics() is first
    other = DomainPair(source=Unreadable(), target=None, cache=str(tmp_path))
    assert_same(other.source_statistics(), first)
    given = DomainPair(source=Unreadable(), target=None, cache="nowhere", statistics=str(cache_file(tmp_path)))
    assert_same(given.source_statistics(), first)
    with pytest.raises(AdaptSegError, match=r"data\.source is missing"):
        DomainPair(target=Pool(), cache=str(tmp_path)).source_statistics()
    wrong = DomainPair(source=Renamed(), target=None, statistics=str(cache_file(tmp_path)))
    with pytest.raises(AdaptSegError, match="class table 'other'"):
        wrong.source_statistics()


# ---- two processes


def _rank(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}/meet", rank=rank, world_size=2)
    cache = Path(meeting) / f"disk{rank}"  # as on two machines
    counted = class_statistics(Unreadable() if rank else Pool(), cache)
    np.save(Path(meeting) / f"{rank}.npy", counted.counts)
    assert cache.exists() == (rank == 0)
    with pytest.raises(AdaptSegError, match="the labels of city/a were read"):
        class_statistics(Pool() if rank else Unreadable(), cache / "other")
    dist.destroy_process_group()


@pytest.mark.slow
def test_process_zero_counts_for_all(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    expected = class_statistics(Pool(), tmp_path / "cache").counts
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), expected)
