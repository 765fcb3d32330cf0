"""A data set's root as folder or as zips: the same files either way, safe to pickle and fork, every trap one line."""

import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.data.archives import Root
from adaptseg.data.cityscapes import Cityscapes
from adaptseg.data.scenes import read_image, read_size
from adaptseg.errors import AdaptSegError

KEYS = ["aachen/aachen_000000_000019", "bochum/bochum_000000_000313"]


def pack(folder: Path, archive: Path, *tops: str, prefix: str = "") -> str:
    """Zip whole folders of a layout; also the tests of other readers do it by hand like this."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for top in tops:
            for path in sorted((folder / top).rglob("*")):
                file.write(path, prefix + path.relative_to(folder).as_posix())
        file.writestr(f"__MACOSX/{tops[0]}/train/aachen/aachen_000000_000019_leftImg8bit.png", b"finder")
        file.writestr("README", b"not of the layout")
    return str(archive)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    folder = tmp_path / "cityscapes"
    rng = np.random.default_rng(0)
    for key in KEYS:
        image = folder / "leftImg8bit/train" / f"{key}_leftImg8bit.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).save(image)
        for kind, dtype in (("labelIds", np.uint8), ("instanceIds", np.uint16)):
            label = folder / "gtFine/train" / f"{key}_gtFine_{kind}.png"
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 34, (5, 7)).astype(dtype)).save(label)
    return folder


@pytest.fixture
def archives(layout: Path, tmp_path: Path) -> list[str]:
    images = pack(layout, tmp_path / "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    return [images, pack(layout, tmp_path / "gtFine_trainvaltest.zip", "gtFine")]


def test_zips_give_what_the_folder_gives(layout: Path, archives: list[str]) -> None:
    folder, zipped = Cityscapes(str(layout), "train"), Cityscapes(archives, "train")
    assert zipped.keys == folder.keys == KEYS
    for key in KEYS:
        np.testing.assert_array_equal(zipped.image(key), folder.image(key))
        np.testing.assert_array_equal(zipped.labels(key), folder.labels(key))
        np.testing.assert_array_equal(zipped.instances(key), folder.instances(key))
        assert zipped.size(key) == (5, 7)


def test_one_zip_whose_layout_begins_deeper(layout: Path, tmp_path: Path) -> None:
    path = pack(layout, tmp_path / "all.ZIP", "leftImg8bit", "gtFine", prefix="data/cityscapes/")
    assert Cityscapes(path, "train").labels(KEYS[0]).shape == (5, 7)


def _shape(scenes: Cityscapes) -> tuple[int, ...]:
    return scenes.labels(KEYS[1]).shape


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_survives_pickling_and_worker_processes(archives: list[str], start: str) -> None:
    scenes = Cityscapes(archives, "train")
    scenes.image(KEYS[0])  # the parent has the archives open already
    assert _shape(pickle.loads(pickle.dumps(scenes))) == (5, 7)
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(_shape, [scenes] * 8) == [(5, 7)] * 8
    assert scenes.image(KEYS[1]).shape == (5, 7, 3)


def test_threads_share_an_archive(archives: list[str]) -> None:
    scenes = Cityscapes(archives, "train")
    alone = [scenes.labels(key) for key in KEYS]
    with ThreadPoolExecutor(8) as pool:
        for index, labels in enumerate(pool.map(scenes.labels, KEYS * 50)):
            np.testing.assert_array_equal(labels, alone[index % 2])


def test_identity_changes_with_the_labels_only(layout: Path, archives: list[str], tmp_path: Path) -> None:
    before = Cityscapes(archives, "train").identity()
    Image.fromarray(np.full((5, 7), 7, np.uint8)).save(layout / "gtFine/train" / f"{KEYS[0]}_gtFine_labelIds.png")
    pack(layout, tmp_path / "gtFine_trainvaltest.zip", "gtFine")
    again = Cityscapes(archives, "train")
    assert again.identity() != before
    assert (again.labels(KEYS[0]) == 0).all()  # read from the new archive, not through the old one's listing


def test_what_is_wrong_with_an_archive_is_one_line(archives: list[str], layout: Path, tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"absent.zip cannot be read"):
        Cityscapes([archives[0], str(tmp_path / "absent.zip")], "train")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(Path(archives[1]).read_bytes()[:-40])
    with pytest.raises(AdaptSegError, match=r"archive .*broken.zip is no readable zip file"):
        Cityscapes([archives[0], str(broken)], "train")
    with pytest.raises(AdaptSegError, match=r"trainvaltest.zip both hold leftImg8bit/train/aachen"):
        Root([archives[0], pack(layout, tmp_path / "twice_trainvaltest.zip", "leftImg8bit")], ["leftImg8bit/train"])
    for root in ([], [str(layout)], [archives[0], str(layout)]):
        with pytest.raises(AdaptSegError, match=r"one folder, one .zip file or a list of .zip files is expected"):
            Root(root, ["leftImg8bit"])
    with pytest.raises(
        AdaptSegError, match=r"no file below gtFine/train in .*leftImg8bit_\w+.zip; expected layout: gtF"
    ):
        Cityscapes(archives[:1], "train")
    with pytest.raises(AdaptSegError, match=r"no file below leftImg8bit/val in .*; expected layout: leftImg8bit/val"):
        Cityscapes(archives, "val")


def test_broken_member_names_archive_and_member(archives: list[str]) -> None:
    path = Path(archives[0])
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(f"leftImg8bit/train/{KEYS[0]}_leftImg8bit.png")
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 20
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    scenes = Cityscapes(archives, "train")
    message = r"archive .*leftImg8bit_trainvaltest.zip: member leftImg8bit/train/aachen/\w+.png is broken: "
    with pytest.raises(AdaptSegError, match=message) as caught:
        scenes.image(KEYS[0])
    assert "\n" not in str(caught.value)
    assert scenes.image(KEYS[1]).shape == (5, 7, 3)


def test_member_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("top/images/a.png", b"text")
    root = Root(str(path), ["images"])
    for read, name in ((read_image, root.file("images/a.png")), (read_size, root.header("images/a.png"))):
        with pytest.raises(AdaptSegError, match=r"file .*a.zip/top/images/a.png is not a readable image"):
            read(name)
    with pytest.raises(AdaptSegError, match=r"file images/b.png does not exist in .*a.zip"):
        root.file("images/b.png")
    (tmp_path / "folder.zip").mkdir()  # a folder may be called so
    assert Root(str(tmp_path / "folder.zip"), ["images"]).file("images/a.png") == tmp_path / "folder.zip/images/a.png"
