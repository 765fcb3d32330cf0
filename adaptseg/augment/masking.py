"""Masks of masked image consistency (MIC, Hoyer et al., CVPR 2023): which pixels or tokens the student may see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.errors import AdaptSegError


def grid_size(size: tuple[int, int], block: int) -> tuple[int, int]:
    """How many blocks cover an image, in height and width: sides over `block`, rounded, at least 1.

    Rounds halves to the even number, as Python's `round` does, which the released code calls: 160 pixels in blocks
    of 64 are 2, 224 are 4. Blocks of an image whose sides are no multiples are therefore not exactly `block` wide.

    Args:
        size: height and width of the images, pixels.
        block: side of a block, pixels.

    Raises:
        AdaptSegError: `block` is below 1.
    """
    if block < 1:
        raise AdaptSegError(f"mask block of {block} pixels given; a whole number of 1 or more is expected")
    height, width = size
    return max(round(height / block), 1), max(round(width / block), 1)


def hidden_cells(draws: Tensor, ratio: float) -> Tensor:
    """Hide each cell of a grid with probability `ratio`, independently: the cells whose draw is below it.

    Args:
        draws: (B, h, w) uniform in [0, 1).
        ratio: share of the cells that is hidden, 0 (none) to 1 (all).

    Returns:
        (B, h, w) bool on the device of `draws`, True = hidden.

    Raises:
        AdaptSegError: `ratio` is outside 0..1.
    """
    if not 0 <= ratio <= 1:
        raise AdaptSegError(f"mask ratio {ratio} given; a share of blocks between 0 and 1 is expected")
    return draws < ratio


def block_mask(draws: Tensor, size: tuple[int, int], ratio: float) -> Tensor:
    """Hide each block with probability `ratio`, independently.

    The masked image is mask * normalised image: hidden pixels have the mean colour, 0.

    Args:
        draws: (B, h, w) uniform in [0, 1), with (h, w) of `grid_size`; a block is kept if its draw is at least `ratio`.
        size: height and width of the images, pixels.
        ratio: share of the blocks that is hidden, 0 (none) to 1 (all).

    Returns:
        (B, H, W) bool on the device of `draws`, True = kept; nearest-neighbour up-sampling of the grid.

    Raises:
        AdaptSegError: `ratio` is outside 0..1.
    """
    kept = (~hidden_cells(draws, ratio)).to(torch.uint8)  # interpolation knows no bool
    return F.interpolate(kept.unsqueeze(1), size, mode="nearest").squeeze(1).bool()
