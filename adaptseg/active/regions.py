"""Squares of pixels: what is bought around a picked centre, and what is blocked around what was bought."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def squares(size: tuple[int, int], yx: Tensor, radius: int) -> NDArray[np.bool_]:
    """Union of the squares of Chebyshev radius `radius` around centres `yx` (n, 2) int64, clipped: (H, W) bool."""
    mask = np.zeros(size, bool)
    mask[yx[:, 0].numpy(), yx[:, 1].numpy()] = True
    return dilate(mask, radius)


def dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels of (H, W) within Chebyshev distance `radius` of a true one.

    By running sums along each axis, so the cost does not grow with the radius (RIPU-PA blocks 65x65 squares).
    """
    if radius == 0:
        return mask.copy()
    for axis in (0, 1):
        length = mask.shape[axis]
        ends = np.arange(length)
        total = np.concatenate(
            [np.zeros_like(mask.take([0], axis), np.int32), np.cumsum(mask, axis, dtype=np.int32)], axis
        )
        upper = total.take(np.minimum(ends + radius + 1, length), axis)
        mask = upper > total.take(np.maximum(ends - radius, 0), axis)
    return mask
