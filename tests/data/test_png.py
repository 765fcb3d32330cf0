"""PNG files with stored pixels: the same picture for every depth, filter and damage, or left to Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from adaptseg.data.png import stored

HEIGHT, WIDTH = 9, 13


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*, depth: int = 8, kind: int = 0, channels: int = 1, interlaced: int = 0, rows: int = HEIGHT) -> bytes:
    """Random bytes behind random filters, whatever picture that is, in several IDAT chunks."""
    rng = np.random.default_rng(depth)
    lines = rng.integers(0, 256, (rows, 1 + (WIDTH * depth * channels + 7) // 8), np.uint8)
    lines[:, 0] = np.arange(rows) % 5
    data = zlib.compress(lines.tobytes())
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, interlaced)),
            chunk(b"PLTE", bytes(range(256)) * 3) if kind == 3 else b"",
            *(chunk(b"IDAT", data[start : start + 20]) for start in range(0, len(data), 20)),
            chunk(b"tEXt", b"Comment\0labels"),
            chunk(b"IEND", b""),
        ]
    )


def decoded(content: bytes) -> tuple[str, tuple[int, int], bytes] | str:
    """What Pillow makes of a file, or how it refuses."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.mode, picture.size, picture.tobytes()
    except UnidentifiedImageError:
        return "no image"
    except (OSError, SyntaxError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize(("depth", "kind"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_pillow_decodes_the_same_picture(depth: int, kind: int) -> None:
    content = png(depth=depth, kind=kind)
    ready = stored(content)
    assert ready is not None
    assert not isinstance(decoded(content), str)
    assert decoded(ready) == decoded(content)


def test_more_than_one_block() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (300, 500), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    ready = stored(buffer.getvalue())
    assert ready is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(ready))), labels)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image" * 9,
        png(interlaced=1),
        png(kind=2, channels=3),
        png(kind=4, channels=2),
        png(rows=HEIGHT - 1),
        png(rows=HEIGHT + 1),
        png()[:33],
    ],
    ids=["empty", "no PNG", "interlaced", "RGB", "grey with alpha", "row too few", "row too many", "no pixels"],
)
def test_other_files_are_left_to_pillow(content: bytes) -> None:
    assert stored(content) is None


def test_damage_never_changes_the_picture_or_the_refusal() -> None:
    content = png()
    damaged = [content[:length] for length in range(len(content))]
    damaged += [content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :] for i in range(len(content))]
    ready = [(stored(each), each) for each in damaged]
    assert sum(result is not None for result, _ in ready) > 20  # damage behind the pixels, or to their checksums
    for result, each in ready:
        if result is not None:
            assert decoded(result) == decoded(each)
