"""PNG label files inflated by zlib-ng ahead of Pillow.

Pillow's wheels for Linux inflate with the zlib of the system, which is mostly the original one: on the long runs of a
label map that takes longer than everything else that is done to the file.
"""

from __future__ import annotations

import struct

from zlib_ng import zlib_ng

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3


def stored(content: bytes) -> bytes | None:
    """A PNG of one channel with its pixels stored in place of compressed: Pillow decodes the same picture from it.

    Pillow still undoes the filters of the rows, which decide what the stored bytes mean.

    Returns:
        None for what is left to Pillow as it is: other kinds of files, and pixels that are broken or too few, so that
        errors are always Pillow's.
    """
    if len(content) < 33 or not content.startswith(_SIGNATURE):
        return None
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    if kind not in (_GREY, _PALETTE) or interlaced:
        return None
    begin, end, compressed = _pixels(content)
    size = height * (1 + (width * depth + 7) // 8)  # a row begins with the number of its filter
    inflate = zlib_ng.decompressobj()
    try:
        rows = inflate.decompress(compressed, size + 1)
    except zlib_ng.error:  # pyright: ignore[reportGeneralTypeIssues]  (a class, whatever its stub says)
        return None
    if len(rows) != size or not inflate.eof:
        return None
    plain = zlib_ng.compress(rows, 0)
    head = struct.pack(">I4s", len(plain), b"IDAT")
    return b"".join([content[:begin], head, plain, bytes(4), content[end:]])  # Pillow checks no CRC of pixels


def _pixels(content: bytes) -> tuple[int, int, bytes]:
    """Where the first run of IDAT chunks begins and ends, and their data; empty data if there is none."""
    begin = end = 0
    parts: list[bytes] = []
    position = len(_SIGNATURE)
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        after = position + 12 + length
        if name == b"IDAT":
            begin = begin or position
            parts.append(content[position + 8 : after - 4])
            end = after
        elif parts:
            break
        position = after
    return begin, end, b"".join(parts)
