"""Polygons to pixels, all polygons of a picture at once.

Why not pillow's ImageDraw: which edge pixels it fills differs between its versions, and Streets is frozen to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Points = Sequence[tuple[float, float]]

_MARGIN = 4.0
"""Crossings further out than this beside the picture are moved in: they fill nothing either way."""


_BAND = 1 << 18
"""Pixels painted at once, in whole rows: bounds the memory (about 10 MB) for pictures of any size."""


def fill_polygons(height: int, width: int, polygons: Sequence[Points]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Paint polygons over each other, later ones on top.

    A row is filled where its centre line is inside (even-odd rule); each run is widened by half a pixel to both sides,
    so that a pole thinner than a pixel still shows.

    Args:
        polygons: their corners (x, y); the centre of the pixel in row r, column c is (c + 0.5, r + 0.5).

    Returns:
        (height, width), the number of the topmost polygon, counted from 1, or 0 where there is none. The integers are
        the smallest that hold it: most of the time below is memory traffic.
    """
    dtype = np.min_scalar_type(len(polygons))
    if not polygons:
        return np.zeros((height, width), dtype)
    span, key = float(width + 2 * _MARGIN), _crossings(height, width, polygons)
    line = np.floor(key[::2] / span)  # polygon number * height + row, the same at both ends of a run
    base = line * span
    first = np.clip(np.ceil(key[::2] - base - _MARGIN - 1), 0, width).astype(np.int64)
    last = np.clip(np.floor(key[1::2] - base - _MARGIN) + 1, 0, width).astype(np.int64)
    seen = first < last
    line, first, lengths = line.astype(np.int64)[seen], first[seen], (last - first)[seen]
    polygon = line // height
    starts = (line - polygon * height) * width + first
    ranks = (polygon + 1).astype(dtype)
    top = np.empty(height * width, dtype)
    band = max(_BAND // width, 1) * width
    for begin in range(0, top.size, band):
        inside = slice(None) if band >= top.size else (starts >= begin) & (starts < begin + band)
        cells = top[begin : begin + band]
        cells[:] = _topmost(cells.size, starts[inside] - begin, lengths[inside], ranks[inside])
    return top.reshape(height, width)


def _topmost(
    size: int,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    ranks: npt.NDArray[np.unsignedinteger[Any]],
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The highest rank of all runs that cover each of `size` cells, 0 where there is none.

    A run is covered by two overlapping blocks of 2**k cells, noted at their starts; blocks are then halved, level by
    level, down to single cells. That is a few whole-array maxima instead of a Python loop over ten thousand runs.
    """
    level = np.frexp(lengths)[1].astype(np.int64) - 1  # floor(log2), exact
    highest = int(level.max(initial=0))
    blocks = np.zeros((highest + 1, size), ranks.dtype)
    for begin in (starts, starts + lengths - (1 << level)):
        np.maximum.at(blocks.reshape(-1), level * size + begin, ranks)
    for k in range(highest, 0, -1):
        half, whole, halves = 1 << (k - 1), blocks[k], blocks[k - 1]
        np.maximum(halves, whole, out=halves)
        np.maximum(halves[half:], whole[:-half], out=halves[half:])
    return blocks[0]


def _crossings(height: int, width: int, polygons: Sequence[Points]) -> npt.NDArray[np.float64]:
    """Where edges cross the centre lines of rows, as sorted numbers (polygon * height + row) * (width + margins) + x.

    Closed polygons cross every line an even number of times: consecutive pairs are the runs to fill.
    """
    counts = np.array([len(points) for points in polygons])
    flat = chain.from_iterable(chain.from_iterable(polygons))
    corners = np.fromiter(flat, np.float64, 2 * int(counts.sum())).reshape(-1, 2)
    following = np.arange(1, len(corners) + 1)
    ends = np.cumsum(counts)
    following[ends - 1] = ends - counts
    x0, y0 = corners.T
    x1, y1 = corners[following].T
    top = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    rows = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64) - top
    crossing = rows > 0
    rows, top = rows[crossing], top[crossing]
    x0, y0, polygon = x0[crossing], y0[crossing], np.repeat(np.arange(len(polygons)), counts)[crossing]
    slope = (x1[crossing] - x0) / (y1[crossing] - y0)
    row = np.arange(rows.sum())
    row -= np.repeat(np.cumsum(rows) - rows - top, rows)
    x = row + 0.5
    x -= np.repeat(y0, rows)
    x *= np.repeat(slope, rows)
    x += np.repeat(x0, rows)
    np.clip(x, -_MARGIN + 1, width + _MARGIN - 1, out=x)
    x += _MARGIN
    row += np.repeat(polygon * height, rows)
    x += row * float(width + 2 * _MARGIN)
    x.sort(kind="stable")  # along an edge x only rises or falls with the row: runs that a merge sort makes use of
    return x
