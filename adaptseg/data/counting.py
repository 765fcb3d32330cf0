"""How many pixels of each value a label map holds, fast enough for whole data sets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def value_counts(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(256,) int64 pixels of each value in labels of any shape.

    `bincount` widens what it counts to 8 bytes a number: two pixels are counted as one number of 16 bits, in half the
    time.
    """
    flat = np.ascontiguousarray(labels).reshape(-1)
    even = len(flat) // 2 * 2
    pairs = np.bincount(flat[:even].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    return (pairs.sum(0) + pairs.sum(1) + np.bincount(flat[even:], minlength=256)).astype(np.int64)
