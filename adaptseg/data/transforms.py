"""From a scene's arrays to network tensors: scale, crop, flip, normalise. Random parameters come from a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adaptseg.classes import VOID
from adaptseg.data.resize import resize_nearest
from adaptseg.errors import AdaptSegError

Filter = Literal["bilinear", "bicubic"]
"""By which images are resized, as torchvision calls them."""


class Geometry(NamedTuple):
    """What is cut from a resized scene, the same for its image and its label maps. What it has beyond the
    scene, at the right and below, is padding."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def drawn_size(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int]:
    """`size` times a factor drawn uniformly between the two of `scale`, rounded down as in PixelPick's release; a side
    keeps one pixel at least."""
    factor = float(rng.uniform(*scale))
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def draw_geometry(
    size: tuple[int, int], crop: tuple[int, int] | None, flip: bool, rng: np.random.Generator, *, pads: bool = False
) -> Geometry:
    """A uniformly placed crop (the whole scene if `crop` is None) and, if `flip`, a mirror image half of the time. With
    `pads` a side of the crop may be larger than the scene's; it then begins where the scene does."""
    height, width = crop or size
    if not pads and (height > size[0] or width > size[1]):
        raise AdaptSegError(f"data.crop {list(crop or ())} is larger than the scene of {size[0]}x{size[1]} pixels")
    top = int(rng.integers(max(size[0] - height, 0) + 1))
    left = int(rng.integers(max(size[1] - width, 0) + 1))
    return Geometry(top, left, height, width, flip and bool(rng.random() < 0.5))


def redrawn(draw: Callable[[], Geometry], accepts: Callable[[Geometry], bool], redraws: int) -> Geometry:
    """Draw until accepted, `redraws` more times at most; the last one is kept, accepted or not."""
    geometry = draw()
    for _ in range(redraws):
        if accepts(geometry):
            break
        geometry = draw()
    return geometry


def is_varied(labels: Tensor, max_class_share: float) -> bool:
    """Whether no class fills more than `max_class_share` of the non-void pixels of a crop (h, w) int64, which must have
    some."""
    counts = torch.bincount(labels.flatten(), minlength=VOID + 1)[:VOID]
    total = int(counts.sum())
    return total > 0 and int(counts.max()) <= max_class_share * total


def class_share(labels: Tensor, class_id: int) -> float:
    """Share of a class in all pixels of a crop (h, w) int64, void included."""
    return int((labels == class_id).sum()) / labels.numel()


def trusted_map(size: tuple[int, int], margins: tuple[float, float, float, float]) -> Tensor:
    """(*size) bool, False within the margins: top, bottom, left and right as shares of the height or width, each
    rounded to whole pixels."""
    (height, width), (top, bottom, left, right) = size, margins
    trusted = torch.zeros(size, dtype=torch.bool)
    rows = slice(round(top * height), height - round(bottom * height))
    columns = slice(round(left * width), width - round(right * width))
    trusted[rows, columns] = True
    return trusted


def resized_image(image: NDArray[np.uint8], size: tuple[int, int] | None, filter: Filter = "bilinear") -> Tensor:
    """(H, W, 3) uint8 to (3, *size) uint8 with anti-aliasing; unchanged if `size` is None or equal."""
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: decoded arrays may be read-only
    if size is None or tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return F.resize(tensor, list(size), interpolation=F.InterpolationMode(filter), antialias=True)


def resized_map(values: NDArray[np.generic], size: tuple[int, int]) -> Tensor:
    """(H, W) integer or bool map to (*size) int64, nearest neighbour."""
    return torch.from_numpy(resize_nearest(values, size).astype(np.int64))


def cut(tensor: Tensor, geometry: Geometry, fill: int | Tensor) -> Tensor:
    """Crop, pad and mirror (..., H, W); padding holds `fill`: a number, or what broadcasts, such as (3, 1, 1)."""
    height, width = min(geometry.height, tensor.shape[-2]), min(geometry.width, tensor.shape[-1])
    piece = F.crop(tensor, geometry.top, geometry.left, height, width)
    if (height, width) != (geometry.height, geometry.width):
        padded = tensor.new_empty(*tensor.shape[:-2], geometry.height, geometry.width)
        padded[:] = fill
        padded[..., :height, :width] = piece
        piece = padded
    return F.horizontal_flip(piece) if geometry.flip else piece


def normalized(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(3, H, W) uint8 to float32: RGB / 255, minus mean, over std."""
    return F.normalize(F.to_dtype(image.contiguous(), torch.float32, scale=True), list(mean), list(std))
