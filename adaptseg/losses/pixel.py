"""Cross-entropy over labelled pixels, as a sum and a count."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.losses.reduce import at_least_float32


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    ignore_index: int = VOID,
) -> tuple[Tensor, Tensor]:
    """Sum over valid pixels of class weight * pixel weight * (-log softmax(logits)[label]), and how many are valid.

    The caller divides (`adaptseg.losses.reduce.global_mean`), by this count or by another. Weights multiply the sum and
    never enter the count: dividing by the sum of weights, as torch's weighted mean does, would cancel their total and
    with it the learning rate they were tuned for (GBW specification, trap T1). Its hosts divide by *all* pixels,
    ignored ones included: pass `labels.numel()` for that.

    Args:
        logits: (B, C, H, W); half precision is computed in float32, also under autocast.
        labels: (B, H, W) int64 in 0..C-1, or `ignore_index`.
        class_weights: (C,) or None = 1.
        pixel_weights: finite, broadcastable to (B, H, W), or None = 1; constants, no gradient flows into them.
        ignore_index: label of pixels that are left out.

    Returns:
        total () with gradient, count () int64.
    """
    return negative_log_likelihood(
        at_least_float32(logits).log_softmax(1),
        labels,
        class_weights=class_weights,
        pixel_weights=pixel_weights,
        ignore_index=ignore_index,
    )


def negative_log_likelihood(
    log_probabilities: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    ignore_index: int = VOID,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy` from log-softmax (B, C, H, W), for callers that need the probabilities as well: a softmax over
    full-size logits is the dearest part of a pixel loss, and exp() of this one is nearly free.
    """
    if class_weights is not None:
        class_weights = class_weights.to(log_probabilities.dtype)
    # Summed outside: torch's own sum over pixels uses atomics on CUDA and differs from run to run.
    loss = F.nll_loss(log_probabilities, labels, class_weights, ignore_index=ignore_index, reduction="none")
    if pixel_weights is not None:
        loss = loss * pixel_weights.detach()
    return loss.sum(), (labels != ignore_index).sum()
