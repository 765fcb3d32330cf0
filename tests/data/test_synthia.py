"""SYNTHIA reader on tiny files in the official layout: label PNGs of three channels of 16 bits."""

import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.classes import CITYSCAPES, CITYSCAPES_16
from adaptseg.data import Synthia
from adaptseg.data.synthia import read_wide
from adaptseg.errors import AdaptSegError

H, W = 6, 8
KEYS = ["0000000", "0000001"]
PUBLISHED = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14,
             19: 15, 20: 16, 12: 17, 11: 18}  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(row: bytes, above: bytes, step: int, kind: int) -> bytes:
    """One row by a filter of the PNG specification, section 9: none, sub, up, average, Paeth."""
    out = bytearray([kind])
    for i, value in enumerate(row):
        left, up, corner = row[i - step] if i >= step else 0, above[i], above[i - step] if i >= step else 0
        nearest = min((left, up, corner), key=lambda near: abs(left + up - corner - near))  # ties: left, up, corner
        out.append((value - (0, left, up, (left + up) // 2, nearest)[kind]) % 256)
    return bytes(out)


def wide_png(values: np.ndarray) -> bytes:
    """A PNG of (H, W, 3 or 4) uint16, written from the specification; its rows use all filters in turn."""
    height, width, channels = values.shape
    rows = [row.astype(">u2").tobytes() for row in values]
    above = [bytes(len(rows[0])), *rows]
    data = b"".join(_filtered(row, above[y], 2 * channels, y % 5) for y, row in enumerate(rows))
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def annotation(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids, numbers = rng.integers(0, 23, (H, W)), rng.integers(0, 3, (H, W)) * 700  # numbers beyond a byte
    return np.stack([ids, numbers, rng.integers(0, 65536, (H, W))], -1).astype(np.uint16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "RAND_CITYSCAPES"
    (folder / "RGB").mkdir(parents=True)
    (folder / "GT/LABELS").mkdir(parents=True)
    for seed, key in enumerate(KEYS):
        Image.fromarray(np.full((H, W, 3), seed, np.uint8)).save(folder / "RGB" / f"{key}.png")
        (folder / "GT/LABELS" / f"{key}.png").write_bytes(wide_png(annotation(seed)))
    return folder


def zipped(root: Path) -> str:
    path = root.parent / "RAND_CITYSCAPES.zip"
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(root.rglob("*.png")):
            file.write(member, member.relative_to(root.parent).as_posix())
    return str(path)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_survive_every_filter(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(channels).integers(0, 65536, (13, 9, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(wide_png(values))
    read = read_wide(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("packed", [False, True])
def test_first_channel_is_the_class_second_the_instance(root: Path, packed: bool) -> None:
    scenes = pickle.loads(pickle.dumps(Synthia(zipped(root) if packed else str(root))))
    assert list(scenes.keys) == KEYS
    CITYSCAPES.require_same(scenes.class_table, "source")
    for seed, key in enumerate(KEYS):
        ids, numbers = annotation(seed)[..., 0].astype(int), annotation(seed)[..., 1].astype(int)
        train = np.vectorize(lambda v: PUBLISHED.get(v, 255))(ids)
        np.testing.assert_array_equal(scenes.labels(key), train)
        assert scenes.labels(key).dtype == np.uint8
        things = (train >= 11) & (train <= 18) & (numbers > 0)
        np.testing.assert_array_equal(scenes.instances(key), np.where(things, ids * 65536 + numbers, 0))
        assert scenes.instances(key).dtype == np.int32
        assert (scenes.image(key) == seed).all()
        assert scenes.size(key) == (H, W)


def test_sixteen_classes_fit_the_target_of_sixteen(root: Path) -> None:
    scenes = Synthia(str(root), classes=16)
    CITYSCAPES_16.require_same(scenes.class_table, "source")
    # Train ids of the release, and of the whole table's classes behind them.
    order = {
        3: 0,
        4: 1,
        2: 2,
        21: 3,
        5: 4,
        7: 5,
        15: 6,
        9: 7,
        6: 8,
        1: 9,
        10: 10,
        17: 11,
        8: 12,
        19: 13,
        12: 14,
        11: 15,
    }
    for seed, key in enumerate(KEYS):
        ids = annotation(seed)[..., 0].astype(int)
        np.testing.assert_array_equal(scenes.labels(key), np.vectorize(lambda v: order.get(v, 255))(ids))
    assert set(scenes.class_table.subsets) == {"13"}
    assert len(scenes.class_table.subsets["13"]) == 13


def test_rewritten_labels_have_another_identity(root: Path) -> None:
    before = Synthia(str(root)).identity()
    (root / "GT/LABELS/0000001.png").write_bytes(wide_png(np.zeros((H, W, 3), np.uint16)))
    assert Synthia(str(root)).identity() != before


def test_traps(root: Path, tmp_path: Path) -> None:
    label, key = root / "GT/LABELS/0000000.png", "0000000"
    scenes = Synthia(str(root))
    whole = label.read_bytes()
    label.write_bytes(wide_png(np.full((H, W, 3), 23, np.uint16)))
    with pytest.raises(AdaptSegError, match=r"LABELS/0000000.png: label ids 23 are unknown to class table 'synthia'"):
        scenes.labels(key)
    label.write_bytes(wide_png(np.zeros((H, W + 1, 3), np.uint16)))
    with pytest.raises(AdaptSegError, match=r"0000000.png is 9x6 pixels, its image .* is 8x6"):
        scenes.labels(key)
    label.write_bytes(whole[:60])
    with pytest.raises(AdaptSegError, match=r"LABELS/0000000.png is truncated or broken"):
        scenes.labels(key)
    for values in (np.zeros((H, W), np.uint8), np.zeros((H, W, 3), np.uint8), np.zeros((H, W), np.uint16)):
        Image.fromarray(values).save(label)
        with pytest.raises(AdaptSegError, match=r"0000000.png has mode .*, not three channels of 16 bits"):
            scenes.labels(key)
    label.write_bytes(b"text")
    with pytest.raises(AdaptSegError, match=r"0000000.png is not a readable image"):
        scenes.labels(key)
    label.unlink()
    with pytest.raises(AdaptSegError, match=r"0000000.png does not exist"):
        scenes.labels(key)
    with pytest.raises(AdaptSegError, match=r"1 of 2 scenes have no label file in .*GT/LABELS: 0000000.png"):
        Synthia(str(root))
    with pytest.raises(AdaptSegError, match=r"nowhere/RGB does not exist; expected layout: "):
        Synthia(str(tmp_path / "nowhere"))
