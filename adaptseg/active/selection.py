"""Which pixels to buy: the best regions of one image, or the best pixels of the whole pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adaptseg.active.global_selection import GlobalSelector
from adaptseg.active.ranks import checked_map, score_keys, tie_rank
from adaptseg.errors import AdaptSegError

__all__ = ["GlobalSelector", "noise_within_best", "select_regions"]

_CHUNK = 1 << 15  # candidates filtered at once; between two filters the scan meets pixels that were blanked meanwhile


def select_regions(
    score: torch.Tensor,
    count: int,
    *,
    suppress_radius: int,
    forbidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pick `count` region centres: the best pixel, then the best outside the square around it, and so on.

    The result, order included, is that of the greedy loop "take the largest score (ties: lowest flat index), blank the
    square of Chebyshev radius `suppress_radius` around it"; RIPU's selection (released code), with r = 2k for regions
    of radius k. It is found by one scan over sorted candidates: a pick blanks at most (2r+1)^2 pixels, so
    the best count * (2r+1)^2 of them always suffice.

    Args:
        score: (H, W) floating, higher = buy; plus infinity is allowed, minus infinity = not choosable. Any device.
        count: picks wanted, 0 or more.
        suppress_radius: pixels; 0 blanks the picked pixel only.
        forbidden: (H, W) bool, True = never a centre.

    Returns:
        (n, 2) int64 positions (y, x) on the CPU in pick order; n < count when no choosable pixel is left.

    Raises:
        AdaptSegError: a NaN anywhere, a negative count or radius, or wrong shapes or dtypes.
    """
    if score.ndim != 2:
        raise AdaptSegError(f"score has shape {tuple(score.shape)}; give (H, W)")
    if count < 0 or suppress_radius < 0:
        raise AdaptSegError(f"count is {count} and suppress_radius {suppress_radius}; both must be 0 or more")
    values, choosable = checked_map(score, forbidden, "score")
    height, width = score.shape
    radius = min(suppress_radius, max(height, width))  # a larger square blanks no more
    order = _best(values.numpy().reshape(-1), choosable.reshape(-1), count * (2 * radius + 1) ** 2)
    picked = order[:count] if radius == 0 else _independent(order, (height, width), radius, count)
    return torch.as_tensor(np.stack(np.divmod(picked, max(width, 1)), axis=1))


def noise_within_best(
    score: torch.Tensor, count: int, noise: torch.Tensor, *, salt: int, forbidden: torch.Tensor | None = None
) -> torch.Tensor:
    """The `noise` at the `count` best choosable pixels of one image, minus infinity elsewhere: picking by the result
    picks at random among the best (PixelPick, Shin et al., ICCVW 2021: the top 5 % of an image).

    Args:
        score: (H, W) floating, higher = buy; minus infinity = not choosable. Any device. Compared as float32.
        count: how many belong to the best; all choosable pixels if there are fewer. Equal scores: by a hash.
        noise: (H, W) floating, finite.
        salt: starts the hash of ties, see `ranks.salt_of`.
        forbidden: (H, W) bool, True = not choosable.

    Returns:
        (H, W) in the dtype of `noise`, on the CPU.

    Raises:
        AdaptSegError: a NaN in the score, a negative count, or wrong shapes or dtypes.
    """
    if score.ndim != 2 or noise.shape != score.shape or count < 0:
        raise AdaptSegError(
            f"score is {tuple(score.shape)}, noise {tuple(noise.shape)}, count {count}; give two (H, W) and 0 or more"
        )
    values, choosable = checked_map(score, forbidden, "score")
    candidates = np.flatnonzero(choosable).astype(np.uint32)
    # The total order of the selection over the pool: score, then hash.
    ranks = score_keys(values, choosable).reshape(-1)[candidates].astype(np.uint64) << np.uint64(32)
    ranks |= tie_rank(salt, candidates)
    if 0 < count < len(candidates):
        candidates = candidates[np.argpartition(ranks, len(ranks) - count)[len(ranks) - count :]]
    candidates = candidates[:count]
    kept = torch.full(score.shape, -torch.inf, dtype=noise.dtype)
    flat = torch.as_tensor(candidates.astype(np.int64))
    kept.view(-1)[flat] = noise.cpu().reshape(-1)[flat]
    return kept


def _best(values: npt.NDArray[Any], choosable: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.int64]:
    """Flat indices of the `most` best choosable values, sorted by (value descending, index ascending)."""
    candidates = np.flatnonzero(choosable)
    if most == 0:
        return candidates[:0]
    losses = -values[candidates]
    if most < len(losses):
        threshold = np.partition(losses, most - 1)[most - 1]
        better, equal = np.flatnonzero(losses < threshold), np.flatnonzero(losses == threshold)
        # Of the values equal to the threshold only the first by index belong to the best: long ties cost nothing.
        kept = np.sort(np.concatenate([better, equal[: most - len(better)]]))
        candidates, losses = candidates[kept], losses[kept]
    return candidates[np.argsort(losses, kind="stable")]


def _independent(order: npt.NDArray[np.int64], size: tuple[int, int], radius: int, count: int) -> npt.NDArray[np.int64]:
    """The first `count` members of the lexicographically first set with pairwise distance > radius."""
    height, width = size
    side, stride = 2 * radius + 1, width + 2 * radius
    # A padded bitmap needs no clipping at the borders: a pixel's square starts at its own unpadded coordinates.
    blanked = bytearray((height + 2 * radius) * stride)
    centre = radius * stride + radius
    row = b"\x01" * side
    corners: list[int] = []
    for corner in _open_corners(order // width * stride + order % width, blanked, centre):
        if len(corners) == count:
            break
        corners.append(corner)
        for start in range(corner, corner + side * stride, stride):
            blanked[start : start + side] = row
    y, x = np.divmod(np.array(corners, np.int64), stride)
    return y * width + x


def _open_corners(corners: npt.NDArray[np.int64], blanked: bytearray, centre: int) -> Iterator[int]:
    """Those corners whose centre is still open when its turn comes."""
    bitmap = np.frombuffer(blanked, np.uint8)
    for start in range(0, len(corners), _CHUNK):
        chunk = corners[start : start + _CHUNK]
        for corner in chunk[bitmap[chunk + centre] == 0].tolist():
            if not blanked[corner + centre]:
                yield corner
