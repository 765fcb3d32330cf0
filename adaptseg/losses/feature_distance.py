"""Distance of encoder features to a frozen encoder's: on things (Hoyer, Dai, Van Gool, DAFormer, CVPR 2022, 3.2), or
everywhere through a projection (VFM-UDA++, arXiv 2503.10685).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32


def feature_distance(
    features: Tensor,
    reference: Tensor,
    labels: Tensor,
    things: Tensor,
    *,
    min_share: float = 0.75,
    ignore_index: int = VOID,
) -> tuple[Tensor, Tensor]:
    """Sum of the Euclidean distance |F - F_ref| over channels in cells of the chosen classes, and how many they are.

    The caller divides (`adaptseg.losses.reduce.global_mean`), so that a batch without such a cell gives 0, where the
    released code logs NaN. The gradient is finite everywhere, 0 where F = F_ref.

    Args:
        features: (B, D, h, w), the last level of the student's encoder; half precision is computed in float32.
        reference: (B, D, h, w) of the frozen encoder on the same images; a constant.
        labels: (B, H, W) int64 in 0..C-1, or `ignore_index`.
        things: (C,) bool, the classes that count, on the device of the labels.
        min_share: a cell belongs to a class that has at least this share of its pixels, in (0, 1] (released: 0.75).
        ignore_index: label of void pixels.

    Returns:
        total () with gradient, count () int64 of cells.
    """
    if features.ndim != 4 or features.shape != reference.shape or len(features) != len(labels):
        raise AdaptSegError(
            f"feature distance: features {tuple(features.shape)}, reference {tuple(reference.shape)}, labels "
            f"{tuple(labels.shape)}; give the same (B, D, h, w) twice and (B, H, W)"
        )
    size = (features.shape[-2], features.shape[-1])
    majority = majority_labels(labels, size, len(things), min_share, ignore_index=ignore_index)
    bins = torch.where(majority != ignore_index, majority, len(things))
    chosen = F.pad(things, (0, 1)).index_select(0, bins.flatten()).view(bins.shape)
    difference = at_least_float32(features) - at_least_float32(reference.detach())
    squares = difference.square().sum(1)
    apart = chosen & (squares > 0)  # the slope of the root is infinite at 0: NaN, even times 0
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0).sum(), chosen.sum()


def projected_distance(features: Tensor, reference: Tensor) -> Tensor:
    """Mean over positions of 0.9 (1 - cosine similarity) + 0.1 (mean over channels of the smooth L1 distance).

    As released by VFM-UDA++; smooth L1 turns from squares to absolute values at 1. Every position of every process
    counts alike, so the mean over processes is the loss.

    Args:
        features: (B, D, h, w), projected to the reference's channels; half precision is computed in float32.
        reference: (B, D, h, w) of the frozen encoder; a constant.

    Returns:
        () with gradient.
    """
    if features.ndim != 4 or features.shape != reference.shape:
        raise AdaptSegError(
            f"projected distance: features {tuple(features.shape)}, reference {tuple(reference.shape)}; give the same "
            "(B, D, h, w) twice"
        )
    own, fixed = at_least_float32(features), at_least_float32(reference.detach())
    apart = F.smooth_l1_loss(own, fixed, reduction="none").mean(1)
    return (0.9 * (1 - F.cosine_similarity(own, fixed, dim=1)) + 0.1 * apart).mean()


@torch.no_grad()
def majority_labels(
    labels: Tensor, size: tuple[int, int], num_classes: int, min_share: float, *, ignore_index: int = VOID
) -> Tensor:
    """The class that holds at least `min_share` of each cell of a coarser grid, else `ignore_index`.

    Void is a bin of its own, as released. Pixel (y, x) belongs to cell (floor(y h / H), floor(x w / W)): the blocks of
    the release where the label size is a multiple of the grid's; otherwise cells differ by a pixel in size (inferred;
    the release has only multiples).

    Args:
        labels: (B, H, W) int64 in 0..num_classes-1, or `ignore_index`.
        size: (h, w), at most (H, W).
        num_classes: C.
        min_share: in (0, 1]; above 0.5 no two classes can have it.

    Returns:
        (B, h, w) int64.
    """
    if not 0 < min_share <= 1:
        raise AdaptSegError(f"majority labels: min_share is {min_share}; a share in (0, 1] is expected")
    if labels.ndim != 3 or size[0] > labels.shape[1] or size[1] > labels.shape[2]:
        raise AdaptSegError(
            f"majority labels: a grid of {size} cells for labels {tuple(labels.shape)}; labels must be (B, H, W) and "
            "no coarser than the grid"
        )
    # One histogram over (image, row, column, class): one-hot maps would be as large as the logits.
    shape = (len(labels), *size, num_classes + 1)
    image, row, column = (
        torch.arange(length, device=labels.device) * cells // length * math.prod(shape[axis + 1 :])
        for axis, (length, cells) in enumerate(zip(labels.shape, shape[:3], strict=True))
    )
    bins = torch.where(labels != ignore_index, labels, num_classes).add_(row[:, None] + column)
    bins = bins.add_(image[:, None, None]).flatten()
    counts = torch.zeros(math.prod(shape), dtype=torch.int64, device=labels.device)
    counts = counts.scatter_add_(0, bins, torch.ones_like(bins)).view(shape)
    largest, winner = counts.max(-1)
    enough = largest >= min_share * counts.sum(-1)
    return torch.where(enough & (winner < num_classes), winner, ignore_index)
