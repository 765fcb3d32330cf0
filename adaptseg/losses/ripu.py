"""The two auxiliary losses of RIPU (Xie et al., CVPR 2022), from its released code: consistency at label boundaries of
the source, negative learning on the target.

Both take log-probabilities, so that one log-softmax serves all losses of a step, and return a sum and a count for
`adaptseg.losses.reduce.global_mean`. Both work image by image, in a processor's cache, and write their gradient by hand
on the way: recording the operations costs several times as much.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32

_EPSILON = 1e-6  # inside the logarithm, as released


def boundary_consistency(
    log_probabilities: Tensor, labels: Tensor, *, ignore_index: int = VOID
) -> tuple[Tensor, Tensor]:
    """How much predictions at label boundaries differ from their neighbourhood (RIPU, L_cr; released weight 0.1).

    d(y,x) = sum_c |p_c - mean3x3(p_c)|, the mean over 9 pixels with the image's edge repeated outwards, summed over
    `boundary_pixels(labels)`. The "kl" variant of the released code is not offered.

    Args:
        log_probabilities: (B, C, H, W), log-softmax at the resolution of the labels.
        labels: (B, H, W) integer class ids.
        ignore_index: label of pixels that are left out.

    Returns:
        total () with gradient, count () int64 of boundary pixels.
    """
    boundary = boundary_pixels(labels, ignore_index=ignore_index)
    total: Tensor = _MaskedDeviation.apply(at_least_float32(log_probabilities), boundary)
    return total, boundary.sum()


def boundary_pixels(labels: Tensor, *, ignore_index: int = VOID) -> Tensor:
    """Where the 8-neighbour Laplacian of the label *ids* (zeros outside the image) is not zero, void left out.

    To the letter of the released code, with its oddities: pixels at the image's edge belong to a boundary unless their
    class is 0, and a pixel whose neighbours' ids happen to average its own does not.

    Args:
        labels: (B, H, W) integer, 0..255.

    Returns:
        (B, H, W) bool.
    """
    padded = F.pad(labels.to(torch.int16), (1, 1, 1, 1))  # nine ids sum to at most 9 * 255
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    return (sums != 9 * padded[:, 1:-1, 1:-1]) & (labels != ignore_index)


def negative_learning(log_probabilities: Tensor, threshold: float = 0.05) -> tuple[Tensor, Tensor]:
    """Push classes that are improbable already further down (RIPU, L_nl; released weight 1.0).

    total = - sum m log(1 - p + 1e-6) over all images, classes and pixels, m = [p < threshold]; count = sum m. With
    many similar probabilities (1/19 > 0.05) the count may be 0.

    Args:
        log_probabilities: (B, C, H, W), log-softmax over C.
        threshold: in (0, 1]; no gradient flows through the comparison.

    Returns:
        total () with gradient, count () int64 of (pixel, class) pairs.
    """
    if not 0 < threshold <= 1:
        raise AdaptSegError(f"negative learning: threshold {threshold} is outside (0, 1]")
    total, count = _NegativeLearning.apply(at_least_float32(log_probabilities), threshold)
    return total, count


class _MaskedDeviation(torch.autograd.Function):
    """sum over masked pixels and channels of |p - box(p) / 9|."""

    @staticmethod
    def forward(ctx: Any, log_probabilities: Tensor, mask: Tensor) -> Tensor:
        slope = torch.empty_like(log_probabilities) if ctx.needs_input_grad[0] else None
        total = log_probabilities.new_zeros(())
        for index, (log_p, masked) in enumerate(zip(log_probabilities, mask, strict=True)):
            p = log_p.exp()
            deviation = _box_sum(p).mul_(-1 / 9).add_(p).mul_(masked)
            if slope is not None:
                sign = deviation.sign().to(torch.int8)
                # d/dp = sign - box^T(sign) / 9, in ninths: integers between -18 and 18, exact in int8. dp/dlog p = p.
                torch.mul(p, (9 * sign).sub_(_box_sum(sign)), out=slope[index])
            total += deviation.abs_().sum()
        if slope is not None:
            ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * (gradients[0] / 9), None


class _NegativeLearning(torch.autograd.Function):
    """(- sum m log(1 - p + eps), sum m). As masked p of one pixel sum to at most 1, the product of its 1 - p + eps
    cannot underflow: one logarithm serves all classes of a pixel."""

    @staticmethod
    def forward(ctx: Any, log_probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        slope = torch.empty_like(log_probabilities) if ctx.needs_input_grad[0] else None
        total = log_probabilities.new_zeros(())
        count = torch.zeros((), dtype=torch.int64, device=log_probabilities.device)
        for index, log_p in enumerate(log_probabilities):
            p = log_p.exp()
            # As numbers rather than bool: torch's float kernels are several times faster here.
            mask = torch.lt(p, threshold, out=torch.empty_like(p))
            complement = (_EPSILON - p).mul_(mask).add_(1)
            total -= complement.prod(dim=0).log_().sum()
            count += mask.sum(dim=0).long().sum()  # exact beyond 2^24 pairs
            if slope is not None:
                torch.mul(mask.div_(complement), p, out=slope[index])
        if slope is not None:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0], None


def _box_sum(values: Tensor) -> Tensor:
    """3x3 sums over the last two axes with the edge repeated outwards. Along one axis this is the symmetric matrix
    tridiagonal(1, 1, 1) + 1 in both corners, hence it is its own transpose and serves the gradient too."""
    for axis in (-1, -2):
        last = values.shape[axis] - 1
        sums = values.clone()
        sums.narrow(axis, 1, last).add_(values.narrow(axis, 0, last))
        sums.narrow(axis, 0, last).add_(values.narrow(axis, 1, last))
        sums.narrow(axis, 0, 1).add_(values.narrow(axis, 0, 1))
        sums.narrow(axis, last, 1).add_(values.narrow(axis, last, 1))
        values = sums
    return values
