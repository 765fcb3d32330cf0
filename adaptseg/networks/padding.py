"""Images of any size through a network that digests multiples of its stride: pad, then bring the maps back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pad(images: Tensor, multiple: int, smallest: int = 1) -> Tensor:
    """Images (B, 3, H, W) with rows and columns repeated at the bottom and right, up to sizes the network can digest.

    Repeated, not zero: global pooling and batch statistics then see more of the border, not a grey slab.
    """
    height, width = images.shape[-2:]
    lacking = (0, _excess(width, multiple, smallest), 0, _excess(height, multiple, smallest))
    return F.pad(images, lacking, mode="replicate")


def _excess(side: int, multiple: int, smallest: int) -> int:
    """Pixels that `side` lacks to the next size the network can digest."""
    return _cells(max(side, smallest), multiple) * multiple - side


def _cells(side: int, stride: int) -> int:
    """Side over stride, rounded up; in whole numbers, since an exported graph cannot hold `math.ceil`."""
    return -(-side // stride)


def cut(cells: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """The cells of a padded grid that touch the image of `size` pixels."""
    return cells[..., : _cells(size[0], stride), : _cells(size[1], stride)]


def onto_image(cells: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Cells of `stride` pixels, (B, C, h', w'), to (B, C, ceil(H/stride), ceil(W/stride)) that fill (H, W) exactly."""
    for dim, side in ((-2, size[0]), (-1, size[1])):
        if side % stride:
            cells = _resample(cells, dim, side / stride)
    return cut(cells, stride, size)


def _resample(cells: Tensor, dim: int, extent: float) -> Tensor:
    """Linear interpolation of the first `extent` cells along `dim` to ceil(extent) cells.

    Written out because `F.interpolate` copies, whatever its scale factor, when it finds the two sizes equal.
    """
    count, last = math.ceil(extent), cells.shape[dim] - 1
    centres = (torch.arange(count, device=cells.device) + 0.5) * (extent / count) - 0.5
    left = centres.floor().clamp(0, last).long()
    share = (centres - left).clamp(0, 1).to(cells.dtype)
    right = (left + 1).clamp(max=last)
    shape = (count, 1) if dim == -2 else (count,)
    return torch.lerp(cells.index_select(dim, left), cells.index_select(dim, right), share.reshape(shape))
