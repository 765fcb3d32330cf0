"""Pseudo-labels from a teacher, and how much each pixel of them counts (Tranheden et al., DACS, WACV 2021)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError

Scope = Literal["batch", "image"]


def pseudo_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The likeliest class of each pixel, of equal ones the lowest, and whether its probability reaches the threshold.

    The class is that of the largest logit, also where a softmax would round two of them to one probability.

    Args:
        logits: (B, C, H, W) of at least float32, at the resolution the labels shall have.
        threshold: probability in (0, 1), 0.968 in DACS.

    Returns:
        labels (B, H, W) int64, no pixel void; confident (B, H, W) bool.
    """
    if not 0 < threshold < 1:
        raise AdaptSegError(f"confidence threshold {threshold} given; a probability inside (0, 1) is expected")
    classes = logits.shape[1]
    behind = logits - logits.amax(1, keepdim=True)
    # The largest probability is 1 / sum of exp(behind). On a CPU torch's exp takes four times as long as its exp2.
    confident = (behind * math.log2(math.e)).exp2_().sum(1).reciprocal_() >= threshold
    # As `adaptseg.tensors.likeliest`, in floats: twice as fast, at four times the memory.
    countdown = torch.arange(classes, 0, -1, dtype=logits.dtype, device=logits.device).view(-1, 1, 1)
    return classes - behind.eq_(0).mul_(countdown).amax(1).clamp_(min=1).long(), confident


def confidence_weights(confident: Tensor, trusted: Tensor, *, scope: Scope, share: Tensor | None = None) -> Tensor:
    """Weight of each pseudo-label: the share of confident pixels, in trusted pixels; 0 elsewhere.

    The share is counted over all pixels, untrusted ones included, as released.

    Args:
        confident: (B, H, W) bool.
        trusted: (B, H, W) bool; False where a pixel must give no pseudo-label.
        scope: `batch`: one share for all images (released); `image`: each image its own.
        share: () the share in the global batch, where processes hold parts of it; only for `batch`.

    Returns:
        (B, H, W) float32 in [0, 1].
    """
    values = confident.float()
    if scope == "image":
        shares = values.mean((1, 2), keepdim=True)
    else:
        shares = values.mean() if share is None else share
    return torch.where(trusted, shares, 0.0)


def with_bought(labels: Tensor, weights: Tensor, bought: Tensor) -> tuple[Tensor, Tensor]:
    """Bought labels replace pseudo-labels at full weight, in untrusted pixels too.

    Args:
        labels, weights: (B, H, W), from `pseudo_labels` and `confidence_weights`.
        bought: (B, H, W) int64, 255 where nothing was bought.

    Returns:
        labels and weights, as given where nothing was bought.
    """
    known = bought != VOID
    return torch.where(known, bought, labels), torch.where(known, 1.0, weights)
