"""Nearest-neighbour resize of label maps, one convention for the whole house."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_Array = TypeVar("_Array", bound=npt.NDArray[Any])


def resize_nearest(labels: _Array, size: tuple[int, int]) -> _Array:
    """Resize (h, w, ...) of any dtype to (H, W, ...): each target pixel takes the source pixel under its centre.

    Source index = floor((i + 0.5) * native / size), in exact integer arithmetic; what torch calls "nearest-exact".
    The array itself comes back when the sizes agree.
    """
    native = labels.shape[:2]
    if native == tuple(size):
        return labels
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(size, native, strict=True))
    return labels[rows[:, None], columns]  # type: ignore[return-value]
