"""Sums and means over the square window round each pixel, clipped at the border of the image (pure)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from adaptseg.errors import AdaptSegError


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the window of Chebyshev radius `radius` around each pixel, borders by the true number of pixels.

    Args:
        x: (..., H, W) floating.
        radius: 0 or more; the cost grows with its logarithm.

    Returns:
        (..., H, W) float32.
    """
    require_radius(radius)
    x = x if x.dtype == torch.float64 else x.float()
    return (window_sum(x, radius) / window_area(x, radius)).float()


def require_radius(radius: int) -> None:
    """AdaptSegError for a negative one."""
    if radius < 0:
        raise AdaptSegError(f"radius is {radius}; give 0 or more pixels")


def window_area(x: Tensor, radius: int) -> Tensor:
    """(H, W) float32: how many pixels of the window lie inside the image."""
    rows, columns = (_sum_along(torch.ones(n, device=x.device), radius, 0) for n in x.shape[-2:])
    return rows[:, None] * columns


def window_sum(x: Tensor, radius: int) -> Tensor:
    """Sum over the square window, zeros outside; exact for integers that fit the dtype."""
    return _sum_along(_sum_along(x, radius, -1), radius, -2)


def _sum_along(x: Tensor, radius: int, dim: int) -> Tensor:
    """Sliding sum of 2 * radius + 1 neighbours along one dimension, put together from runs of length 1, 2, 4, ...

    Unlike a difference of cumulative sums this never cancels, so that float32 keeps its precision; and it takes
    about 2 log2(2k+1) additions where the plain sum takes 2k.
    """
    length = x.shape[dim]
    radius = min(radius, max(length - 1, 0))
    pad = [0, 0] * (-dim if dim < 0 else x.ndim - dim)
    pad[-2:] = [radius, radius]
    runs, run = functional.pad(x, pad), 1  # runs[i] = sum of `run` neighbours from i on
    missing, offset = 2 * radius + 1, 0
    total = torch.zeros_like(x)
    while missing:
        if missing & 1:
            total += runs.narrow(dim, offset, length)
            offset += run
        missing >>= 1
        if missing:
            rest = runs.shape[dim] - run
            runs, run = runs.narrow(dim, 0, rest) + runs.narrow(dim, run, rest), 2 * run
    return total
