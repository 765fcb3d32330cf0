"""What a label costs a person: work counted in whole numbers, and a model that turns it into seconds (pure)."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from adaptseg.active.windows import box_mean
from adaptseg.errors import AdaptSegError


@dataclass(frozen=True)
class Work:
    """What was asked of a person. Whole numbers, so that processes add up to the same sum in any order.

    Attributes:
        clicks: single pixels that were named.
        regions: squares that were labelled inside.
        region_classes: distinct classes of each region, summed; void is one of them.
        region_borders: pairs of neighbouring pixels of a region whose classes differ, summed over regions: the length
            of what has to be drawn inside them.
        images: whole images.
    """

    clicks: int = 0
    regions: int = 0
    region_classes: int = 0
    region_borders: int = 0
    images: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class LabelCost:
    """Seconds of a person's time. The numbers differ between tools and people by far more than their last digit: set
    your own where you have them.

    Attributes:
        click_seconds: to name one given pixel. 2.4: naming and clicking the first instance of a class in an image
            (Bearman et al., "What's the Point", ECCV 2016); pressing a key for a given pixel is no slower.
        region_seconds: for every region, whatever is in it (inferred: nothing beyond its classes).
        class_seconds: for each distinct class inside a region (inferred: a click each).
        border_seconds: for each pair of neighbouring pixels inside a region whose classes differ (inferred: an image of
            Cityscapes has some 10^5 such pairs, and all its time is spent on them).
        image_seconds: for a whole image. 5400: fine annotation and quality control of one image took more than 1.5 h on
            average (Cordts et al., "The Cityscapes Dataset", CVPR 2016, section 2.2).
    """

    click_seconds: float = 2.4
    region_seconds: float = 0.0
    class_seconds: float = 2.4
    border_seconds: float = 0.05
    image_seconds: float = 5400.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise AdaptSegError(f"active.cost.{field.name} is {value}; a number of seconds, 0 or more, is expected")
        for name, least in (
            ("click_seconds", self.click_seconds),
            ("region_seconds + class_seconds", self.region_seconds + self.class_seconds),
            ("image_seconds", self.image_seconds),
        ):
            if least == 0:
                raise AdaptSegError(f"active.cost.{name} is 0; labels that cost nothing cannot be compared")

    def hours(self, work: Work) -> float:
        """Hours that this work takes."""
        regions = self.region(work.regions, work.region_classes, work.region_borders)
        return (self.click_seconds * work.clicks + regions + self.image_seconds * work.images) / 3600

    def region(self, regions: float, classes: float, borders: float) -> float:
        """Seconds of that many regions with these sums of distinct classes and of borders."""
        return self.region_seconds * regions + self.class_seconds * classes + self.border_seconds * borders

    def region_map(self, predicted: Tensor, num_classes: int, radius: int) -> Tensor:
        """(H, W) float32 seconds, > 0, of the region round each pixel if the predicted classes (H, W) were its labels:
        an estimate that needs no label.
        """
        classes, borders = region_content(predicted, num_classes, radius)
        return self.region_seconds + self.class_seconds * classes.float() + self.border_seconds * borders.float()


def work_of_regions(labels: Tensor, asked: Tensor, centres: Tensor, radius: int) -> Work:
    """What was asked of a person who labelled squares, from the answers.

    Args:
        labels: (H, W) integer answers; void counts as a class like any other.
        asked: (H, W) bool, the pixels that were asked for; others belong to no region.
        centres: (n, 2) int64 of squares that do not overlap.
        radius: Chebyshev radius k of the squares, clipped at the border.
    """
    padded = functional.pad(labels.long().masked_fill(~asked, -1), [radius] * 4, value=-1)
    reach = torch.arange(2 * radius + 1)
    rows, columns = centres[:, :1] + reach, centres[:, 1:] + reach
    inside = padded[rows[:, :, None], columns[:, None, :]]  # (n, side, side)
    ordered = inside.flatten(1).sort(1).values
    distinct = (ordered[:, 1:] > ordered[:, :-1]).sum() + (ordered[:, 0] >= 0).sum()
    borders = _borders(inside.movedim(0, -1))
    return Work(regions=len(centres), region_classes=int(distinct), region_borders=sum(int(b.sum()) for b in borders))


def region_content(classes: Tensor, num_classes: int, radius: int) -> tuple[Tensor, Tensor]:
    """Distinct classes and borders of the square of Chebyshev radius `radius` round each pixel, clipped.

    Args:
        classes: (H, W) integer in [0, num_classes).
        radius: k, 0 or more.

    Returns:
        (H, W) int64 distinct classes, (H, W) int64 pairs of 4-neighbours, both inside the square, of unlike class.
    """
    if classes.ndim != 2 or classes.is_floating_point() or radius < 0:
        raise AdaptSegError(
            f"classes are {classes.dtype} {tuple(classes.shape)}, radius {radius}; give integer (H, W) and 0 or more"
        )
    distinct = torch.zeros(classes.shape, dtype=torch.int64, device=classes.device)
    for c in torch.bincount(classes.flatten(), minlength=num_classes).nonzero().flatten():
        distinct += box_mean((classes == c).float(), radius) > 0
    down, right = _borders(classes)
    return distinct, _square_sums(right, radius, classes.shape) + _square_sums(down, radius, classes.shape)


def _borders(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Of (H, W, ...) classes, below 0 = no region: which pairs of rows (H - 1, W, ...) and of columns differ."""
    down = (classes[1:] != classes[:-1]) & (classes[1:] >= 0) & (classes[:-1] >= 0)
    right = (classes[:, 1:] != classes[:, :-1]) & (classes[:, 1:] >= 0) & (classes[:, :-1] >= 0)
    return down, right


def _square_sums(pairs: Tensor, radius: int, size: torch.Size) -> Tensor:
    """How many of `pairs` lie inside the clipped square round each pixel of an image of `size`: (H, W) int64.

    `pairs` is one shorter than the image along the axis of the pairs, of which both members must be inside.
    """
    total = torch.zeros(pairs.shape[0] + 1, pairs.shape[1] + 1, dtype=torch.int64, device=pairs.device)
    total[1:, 1:] = pairs.long().cumsum(0).cumsum(1)
    ends: list[tuple[Tensor, Tensor]] = []
    for length, entries in zip(size, pairs.shape, strict=True):
        at = torch.arange(length, device=pairs.device)
        after = at + radius + 1 - (length - entries)
        ends.append(((at - radius).clamp(0, entries), after.clamp(0, entries)))
    (top, bottom), (left, right) = ends
    rows = total[bottom] - total[top]
    return rows[:, right] - rows[:, left]
