"""Strong augmentation: colour jitter, then blur (DACS, Tranheden et al., WACV 2021; constants of DAFormer, CVPR 2022).

Differences from the released code (GBW specification, 2.3), all deliberate: each image throws its own coins, where one
coin decides for the whole batch there, so that a process needs to know nothing of the images of others; the colour
formulas are torchvision's (the kornia 0.5.8 pinned there adds to the brightness and scales the contrast about black);
the blur kernel ends at four sigma. The released one is a tenth of the image wide, 51 taps at 512 pixels, and not
separated; what it has beyond four sigma changes images in [0, 1] by less than 6e-6 for sigma 0.15 to 1.15 (measured
4.7e-6, at sigma 1), and makes the blur about 30 times as dear.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adaptseg.augment.filters import gaussian_blur, turned_hue
from adaptseg.errors import AdaptSegError

_ORDERS = tuple(permutations(range(4)))


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in random order.

    Attributes:
        strength: s in 0..0.5. Factors of brightness, contrast and saturation lie in 1-s..1+s; hue turns by -s..s of a
            full circle. DAFormer: 0.2, DACS: 0.25.
        probability: of an image to be jittered at all. The release's `color_jitter_probability: 0.2` is the
            probability *not* to jitter.
        brightness, contrast, saturation: s of that one in 0..1; null = strength.
        hue: s of the hue in 0..0.5; null = strength.
        grey: probability of an image to lose its colours after that, jittered or not.
    """

    strength: float = 0.2
    probability: float = 0.8
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 0.5:
            raise AdaptSegError(
                f"model.jitter.strength is {self.strength}; 0 to 0.5 is expected (hue turns half a circle at most)"
            )
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise AdaptSegError(f"model.jitter.{name} is {value}; 0 to {most:g} is expected, or null")
        _require_probability("model.jitter.probability", self.probability)
        _require_probability("model.jitter.grey", self.grey)

    @property
    def strengths(self) -> tuple[float, float, float, float]:
        """Of brightness, contrast, saturation, hue."""
        own = (self.brightness, self.contrast, self.saturation, self.hue)
        brightness, contrast, saturation, hue = (self.strength if s is None else s for s in own)
        return brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Blur:
    """Gaussian blur of random width.

    Attributes:
        probability: of an image to be blurred.
        sigma: least and largest standard deviation, pixels.
    """

    probability: float = 0.5
    sigma: tuple[float, float] = (0.15, 1.15)

    def __post_init__(self) -> None:
        _require_probability("model.blur.probability", self.probability)
        if len(self.sigma) != 2 or not 0 < self.sigma[0] <= self.sigma[1] < math.inf:
            raise AdaptSegError(
                f"model.blur.sigma is {list(self.sigma)}; two positive numbers are expected, smaller first"
            )


@dataclass(frozen=True)
class Colors:
    """Jitter, then blur, of the images of one pass.

    Attributes:
        jitter: null = none.
        blur: null = none.
    """

    jitter: ColorJitter | None = None
    blur: Blur | None = None


class _Draws(NamedTuple):
    """What one image's uniform draws decide."""

    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: float
    blur: float
    sigma: float
    grey: float


DRAWS = len(_Draws._fields)
"""Uniform draws that `strong_augmentation` wants for an image."""


def strong_augmentation(
    images: Tensor,
    draws: Tensor,
    *,
    jitter: ColorJitter | None,
    blur: Blur | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """Jitter and blur images, each by its own draws: the result for an image does not depend on its companions.

    Jitter works on de-normalised images, clamped to [0, 1]; blur on normalised ones, as in the release. Both compute in
    float32, also under autocast, and do not wait for the device.

    Args:
        images: (B, 3, H, W) float32, normalised.
        draws: (B, `DRAWS`) uniform in [0, 1), on the CPU: they become plain numbers.
        jitter: None = never.
        blur: None = never.
        mean: of each RGB channel in [0, 1], as the images were normalised.
        std: likewise.

    Returns:
        (B, 3, H, W) float32, normalised. Images that get neither are copied bit for bit.
    """
    # A plain `device=` would wait for a CUDA device.
    center, scale = (torch.tensor(v).view(-1, 1, 1).to(images.device, non_blocking=True) for v in (mean, std))
    rows: list[list[float]] = draws.tolist()
    results: list[Tensor] = []
    with torch.autocast(images.device.type, enabled=False):
        for image, row in zip(images, rows, strict=True):
            draw = _Draws(*row)
            # At strength 0 the colours would still be rounded on their way through HSV.
            if jitter is not None and any(jitter.strengths) and draw.jitter < jitter.probability:
                colors = (image * scale + center).clamp(0, 1)
                image = (_jittered(colors, draw, jitter.strengths) - center) / scale
            if jitter is not None and draw.grey < jitter.grey:
                image = (F.rgb_to_grayscale(image * scale + center, num_output_channels=3) - center) / scale
            if blur is not None and draw.blur < blur.probability:
                image = gaussian_blur(image, _between(*blur.sigma, draw.sigma))
            results.append(image)
    return torch.stack(results)


def _jittered(image: Tensor, draw: _Draws, strengths: tuple[float, float, float, float]) -> Tensor:
    """(3, H, W) in [0, 1] with the four adjustments in the drawn one of their 24 orders."""
    for adjustment in _ORDERS[int(draw.order * len(_ORDERS))]:
        strength = strengths[adjustment]
        low, high = 1 - strength, 1 + strength
        if adjustment == 0:
            image = F.adjust_brightness(image, _between(low, high, draw.brightness))
        elif adjustment == 1:
            image = F.adjust_contrast(image, _between(low, high, draw.contrast))
        elif adjustment == 2:
            image = F.adjust_saturation(image, _between(low, high, draw.saturation))
        else:
            image = turned_hue(image, _between(-strength, strength, draw.hue))
    return image


def _between(low: float, high: float, draw: float) -> float:
    return low + draw * (high - low)


def _require_probability(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise AdaptSegError(f"{key} is {value}; a probability between 0 and 1 is expected")
