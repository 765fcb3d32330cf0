"""Windows on a grid of pixels or cells: where they lie, cutting them out, putting them back, averaging overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

Corner = tuple[int, int]
"""Top row and left column."""


def window_corners(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Corner]:
    """Corners of windows that cover `size`, row by row, `stride` apart; the last of a row or column is moved back
    inside. The window must fit into the size.
    """
    rows, columns = (_offsets(s, w, d) for s, w, d in zip(size, window, stride, strict=True))
    return list(product(rows, columns))


def _offsets(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]


def cut_windows(maps: Tensor, corners: Sequence[Corner], window: tuple[int, int]) -> Tensor:
    """(B, ..., H, W) to (B, ..., *window): the part of map b that begins at corner b."""
    height, width = window
    return torch.stack([m[..., y : y + height, x : x + width] for m, (y, x) in zip(maps, corners, strict=True)])


def place_windows(windows: Tensor, corners: Sequence[Corner], size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size): the inverse of `cut_windows`, zero outside."""
    height, width = windows.shape[-2:]
    return torch.stack(
        [
            F.pad(window, (x, size[1] - width - x, y, size[0] - height - y))
            for window, (y, x) in zip(windows, corners, strict=True)
        ]
    )


class WindowMean:
    """Mean over overlapping windows, added one by one.

    Args:
        shape: (B, C, H, W) of the result.
        dtype, device: of the sum.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.total = torch.zeros(shape, dtype=dtype, device=device)
        self.count = torch.zeros(shape[-2:], dtype=dtype, device=device)

    def add(self, corner: Corner, window: Tensor) -> None:
        """(B, C, h, w) whose first row and column are `corner`."""
        rows, columns = (slice(c, c + s) for c, s in zip(corner, window.shape[-2:], strict=True))
        self.total[..., rows, columns] += window
        self.count[rows, columns] += 1

    def mean(self) -> Tensor:
        """(B, C, H, W); call once, when every cell was seen."""
        return self.total.div_(self.count)
