"""The loss of ensemble-distillation's final student: hard pixels alone, weighted by class (Chao, Chen, Lee, CVPRW 2021;
eq. 6 of the specification, from the released code).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import gathered, sum_over_ranks


def hard_pixel_loss(
    log_probabilities: Tensor, labels: Tensor, *, share: float, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted cross-entropy over the hard pixels of the global batch: those whose weighted loss reaches the
    (1 - share) quantile over *all* pixels, of which unlabelled ones count as 0.

    Where fewer than `share` of the pixels are labelled, that quantile is 0 and all labelled ones are hard. The quantile
    is interpolated linearly, as NumPy's. Under DDP every process must call this.

    Args:
        log_probabilities: (B, C, H, W).
        labels: (B, H, W) int64, 255 = unlabelled.
        share: of the pixels, in (0, 1]; released: 0.2.
        class_weights: (C,) or None = 1.

    Returns:
        Of this process' hard pixels: the sum of weight * loss, () with gradient; the sum of weights, (); their number,
        () int64.
    """
    if not 0 < share <= 1:
        raise AdaptSegError(f"share of hard pixels is {share}; a share in (0, 1] is expected")
    if class_weights is not None:
        class_weights = class_weights.to(log_probabilities.dtype)
    loss = F.nll_loss(log_probabilities, labels, class_weights, ignore_index=VOID, reduction="none")
    labelled = labels != VOID
    hard = labelled
    if share < 1:
        everywhere = gathered(loss.detach().flatten())
        # A pixel reaches the interpolated value exactly if it reaches the next larger one of the two around it.
        position = math.ceil((1 - share) * (everywhere.numel() - 1) - 1e-9)
        hard = labelled & (loss.detach() >= everywhere.kthvalue(position + 1).values)
    weights = torch.ones_like(loss)
    if class_weights is not None:
        weights = class_weights[labels.clamp(max=len(class_weights) - 1)]
    return (loss * hard).sum(), (weights * hard).sum(), hard.sum()


def batch_balance(
    labels: Tensor, often: Tensor, *, boost: float = 7.0, few_pixels: int = 64 * 64, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Class weights w_c = a_c o_c of one global batch: a_c is `boost` for classes with few pixels in it ("class
    balance"), o_c the running mean of `boost` in batches without the class, 1 in those with it ("often balance").

    Under DDP every process must call this.

    Args:
        labels: (B, H, W) int64, 255 = unlabelled; before hard pixels are chosen.
        often: (C,) the running means so far; they start at 1.
        boost: of rare classes; 7 in the released code, so that weights go up to 49.
        few_pixels: a class with fewer than this per image of the batch is rare; absent ones are too.
        momentum: share of the running means that stays.

    Returns:
        The weights (C,) and the running means (C,) after this batch.
    """
    classes = len(often)
    counts = torch.zeros(VOID + 2, dtype=torch.float64, device=labels.device)
    flat = labels.flatten()
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float64))
    counts[VOID + 1] = len(labels)
    counts = sum_over_ranks(counts)
    pixels, images = counts[:classes], counts[VOID + 1]
    often = momentum * often + (1 - momentum) * torch.where(pixels == 0, boost, 1.0).to(often.dtype)
    return torch.where(pixels < few_pixels * images, boost, 1.0).to(often.dtype) * often, often
