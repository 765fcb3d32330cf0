"""Hue and blur of one image in few passes over memory: torchvision's results, to rounding, at a fraction of its time.

Its hue goes through HSV and back, its blur through a convolution with three groups, which CPUs do badly (ten to twenty
times as slowly at 512x512): together they were a fifth of what a self-training step cost beyond its networks.
"""

# pyright: strict

from __future__ import annotations

import math

import torch
from torch import Tensor


def turned_hue(image: Tensor, turn: float) -> Tensor:
    """The image in HSV with another hue.

    HSV's hue is a place on a circle of length 6, with red at 0, green at 2, blue at 4. A channel has the largest value
    up to a distance of 1 from its own place, the smallest from 2 on, and falls linearly between: no need to ask in
    which sixth of the circle a pixel lies.

    Args:
        image: (3, H, W) RGB in [0, 1].
        turn: share of the circle, -1 to 1.
    """
    red, green, blue = image.unbind()
    low, high = image.amin(0), image.amax(0)
    span = high - low
    from_green, from_blue = (blue - red).add_(span, alpha=2), (red - green).add_(span, alpha=4)
    hue = torch.where(high == red, green - blue, torch.where(high == green, from_green, from_blue))
    # Grey has no hue: the numerator of red is 0, and 0 over anything small.
    hue.div_(span.clamp(min=torch.finfo(span.dtype).tiny)).add_(6 * turn)
    away = torch.stack([hue, hue - 2, hue - 4])
    away.sub_((away / 6).round_(), alpha=6).abs_().clamp_(1, 2)
    return torch.addcmul(low.add_(span, alpha=2), span, away, value=-1)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blurred along rows, then columns, by a kernel that ends at four sigma; the border is reflected.

    Args:
        image: (3, H, W).
        sigma: standard deviation, pixels.
    """
    for dim in (2, 1):
        # A border can be reflected up to the far side.
        radius = min(math.ceil(4 * sigma), image.shape[dim] - 1)
        image = _weighted_neighbours(image, dim, _half_gaussian(radius, sigma))
    return image


def _half_gaussian(radius: int, sigma: float) -> list[float]:
    """Weights at distance 0 to radius; both sides together sum to 1."""
    half = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(radius + 1)]
    total = half[0] + 2 * sum(half[1:])
    return [weight / total for weight in half]


def _weighted_neighbours(image: Tensor, dim: int, half: list[float]) -> Tensor:
    """Sum of an image's copies, moved along `dim` by each distance either way."""
    side, radius = image.shape[dim], len(half) - 1
    before = image.narrow(dim, 1, radius).flip(dim)
    after = image.narrow(dim, side - 1 - radius, radius).flip(dim)
    padded = torch.cat([before, image, after], dim)
    result = image * half[0]
    for distance, weight in enumerate(half[1:], 1):
        for first in (radius - distance, radius + distance):
            result.add_(padded.narrow(dim, first, side), alpha=weight)
    return result
