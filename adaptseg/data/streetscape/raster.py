"""Polygons to pixels, all polygons of a picture at once.

Why not pillow's ImageDraw: which edge pixels it fills differs between its versions, and Streets is frozen to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

Points = Sequence[tuple[float, float]]

_MARGIN = 4.0
"""Crossings further out than this beside the picture are moved in: they fill nothing either way."""


_BAND = 1 << 18
"""Pixels painted at once, in whole rows: bounds the memory (about 10 MB) for pictures of any size."""


def fill_polygons(height: int, width: int, polygons: Sequence[tuple[int, Points]]) -> npt.NDArray[np.int32]:
    """Paint polygons over each other, later ones on top.

    A row is filled where its centre line is inside (even-odd rule); each run is widened by half a pixel to both sides,
    so that a pole thinner than a pixel still shows.

    Args:
        polygons: (value, corners as (x, y)); the centre of the pixel in row r, column c is (c + 0.5, r + 0.5).

    Returns:
        (height, width) int32, 0 where nothing was painted.
    """
    if not polygons:
        return np.zeros((height, width), np.int32)
    span, key = float(width + 2 * _MARGIN), _crossings(height, width, polygons)
    line = np.floor(key / span)  # polygon number * height + row
    x = key - line * span - _MARGIN
    first = np.clip(np.ceil(x[::2] - 1), 0, width).astype(np.int64)
    last = np.clip(np.floor(x[1::2]) + 1, 0, width).astype(np.int64)
    line = line[::2].astype(np.int64)
    seen = first < last
    polygon, row = np.divmod(line[seen], height)
    starts, lengths = row * width + first[seen], (last - first)[seen]
    top = np.empty(height * width, np.int32)
    band = max(_BAND // width, 1) * width
    for begin in range(0, top.size, band):
        inside = (starts >= begin) & (starts < begin + band)
        cells = top[begin : begin + band]
        cells[:] = _topmost(cells.size, starts[inside] - begin, lengths[inside], polygon[inside] + 1)
    values = np.array([0, *(value for value, _ in polygons)], np.int32)
    return np.take(values, top).reshape(height, width)


def _topmost(
    size: int, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """The highest rank of all runs that cover each of `size` cells, 0 where there is none.

    A run is covered by two overlapping blocks of 2**k cells, noted at their starts; blocks are then halved, level by
    level, down to single cells. That is a few whole-array maxima instead of a Python loop over ten thousand runs.
    """
    level = np.frexp(lengths)[1].astype(np.int64) - 1  # floor(log2), exact
    highest = int(level.max(initial=0))
    blocks = np.zeros((highest + 1, size), np.int32)
    for begin in (starts, starts + lengths - (1 << level)):
        np.maximum.at(blocks.reshape(-1), level * size + begin, ranks.astype(np.int32))
    for k in range(highest, 0, -1):
        half, whole, halves = 1 << (k - 1), blocks[k], blocks[k - 1]
        np.maximum(halves, whole, out=halves)
        np.maximum(halves[half:], whole[:-half], out=halves[half:])
    return blocks[0]


def _crossings(height: int, width: int, polygons: Sequence[tuple[int, Points]]) -> npt.NDArray[np.float64]:
    """Where edges cross the centre lines of rows, as sorted numbers (polygon * height + row) * (width + margins) + x.

    Closed polygons cross every line an even number of times: consecutive pairs are the runs to fill.
    """
    counts = np.array([len(points) for _, points in polygons])
    flat = chain.from_iterable(chain.from_iterable(points for _, points in polygons))
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
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - top, rows)
    x = x0[edge] + (row + 0.5 - y0[edge]) * slope[edge]
    x = np.clip(x, -_MARGIN + 1, width + _MARGIN - 1) + _MARGIN
    return np.sort((polygon[edge] * height + row) * float(width + 2 * _MARGIN) + x)
