"""ClassMix: paste half of an image's classes onto another image (Olsson et al., WACV 2021; across domains: DACS).

Void (255) counts as a class that may be chosen, as in the released code. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptseg.classes import VOID


def classes_present(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes each image has.

    Args:
        labels: (B, H, W) uint8 or int64 in 0..C-1, or 255.
        num_classes: C.

    Returns:
        (B, C + 1) bool; the last column is void.

    Raises:
        IndexError or RuntimeError (a device assertion on CUDA): a label between C and 254.
    """
    bins = _bins(labels, num_classes)
    present = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    return present.scatter_(1, bins, True)


def choose_half(present: Tensor, priority: Tensor) -> Tensor:
    """The half of the present classes, rounded up, that has the highest priority; each image chooses for itself.

    DACS offers an image the classes it has itself. The DAFormer family offers every image the classes of the whole
    batch (GBW specification, 2.3): pass `present.any(0, keepdim=True)` for that. An image may then choose classes
    that it lacks.

    Args:
        present: (B, C + 1) or (1, C + 1) bool, of `classes_present`.
        priority: (B, C + 1) uniform draws, on the device of `present`; of equal ones the lower class wins.

    Returns:
        (B, C + 1) bool with ceil(n / 2) of the n present classes of each row.
    """
    # A draw is never negative: absent classes come last.
    order = torch.argsort(torch.where(present, priority, -1.0), dim=1, descending=True, stable=True)
    half = (present.sum(1, keepdim=True) + 1) // 2
    first = torch.arange(priority.shape[1], device=priority.device) < half
    return torch.zeros_like(priority, dtype=torch.bool).scatter_(1, order, first.expand_as(order))


def class_mask(labels: Tensor, chosen: Tensor) -> Tensor:
    """Pixels of the chosen classes.

    Args:
        labels: (B, H, W) uint8 or int64 in 0..C-1, or 255.
        chosen: (B, C + 1) bool, of `choose_half`.

    Returns:
        (B, H, W) bool.
    """
    return chosen.gather(1, _bins(labels, chosen.shape[1] - 1)).view(labels.shape)


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """`source` where the mask is set, `target` elsewhere.

    Args:
        mask: (B, H, W) bool, of `class_mask`.
        source: images (B, 3, H, W), or labels or weights (B, H, W).
        target: of the same shape.
    """
    return torch.where(mask.unsqueeze(1) if source.ndim == 4 else mask, source, target)


def _bins(labels: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) labels to (B, H * W) int64 with void as bin C: scatter and gather need no boolean indexing then."""
    bins = labels.long().flatten(1)
    return torch.where(bins == VOID, num_classes, bins)
