"""The two auxiliary losses of RIPU (Xie et al., CVPR 2022), from its released code: consistency at label boundaries of
the source, negative learning on the target.

Both take probabilities, so that one softmax serves all losses of a step, and return a sum and a count for
`adaptseg.losses.reduce.global_mean`. Both write their gradient by hand: it is cheaper than recording the operations
(1.8 against 5.6 ms and 5.3 against 28 ms, forward and backward, (2, 19, 128, 256) on one CPU core).
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


def boundary_consistency(probabilities: Tensor, labels: Tensor, *, ignore_index: int = VOID) -> tuple[Tensor, Tensor]:
    """How much predictions at label boundaries differ from their neighbourhood (RIPU, L_cr; released weight 0.1).

    d(y,x) = sum_c |p_c - mean3x3(p_c)|, the mean over 9 pixels with the image's edge repeated outwards, summed over
    `boundary_pixels(labels)`. The "kl" variant of the released code is not offered.

    Args:
        probabilities: (B, C, H, W), softmax at the resolution of the labels.
        labels: (B, H, W) integer class ids.
        ignore_index: label of pixels that are left out.

    Returns:
        total () with gradient, count () int64 of boundary pixels.
    """
    boundary = boundary_pixels(labels, ignore_index=ignore_index)
    total: Tensor = _MaskedDeviation.apply(at_least_float32(probabilities), boundary)
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


def negative_learning(probabilities: Tensor, threshold: float = 0.05) -> tuple[Tensor, Tensor]:
    """Push classes that are improbable already further down (RIPU, L_nl; released weight 1.0).

    total = - sum m log(1 - p + 1e-6) over all images, classes and pixels, m = [p < threshold]; count = sum m. With
    many similar probabilities (1/19 > 0.05) the count may be 0.

    Args:
        probabilities: (B, C, H, W), softmax over C.
        threshold: in (0, 1]; no gradient flows through the comparison.

    Returns:
        total () with gradient, count () int64 of (pixel, class) pairs.
    """
    if not 0 < threshold <= 1:
        raise AdaptSegError(f"negative learning: threshold {threshold} is outside (0, 1]")
    total, count = _NegativeLearning.apply(at_least_float32(probabilities), threshold)
    return total, count


class _MaskedDeviation(torch.autograd.Function):
    """sum over masked pixels and channels of |p - box(p) / 9|."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, mask: Tensor) -> Tensor:
        deviation = _box_sum(probabilities).mul_(-1 / 9).add_(probabilities).mul_(mask[:, None])
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(deviation.sign().to(torch.int8))  # a quarter of the memory, all the gradient needs
        return deviation.abs_().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (sign,) = ctx.saved_tensors
        # d/dp = sign - box^T(sign) / 9, in ninths: integers between -18 and 18, exact in int8.
        return (9 * sign - _box_sum(sign)).to(gradient.dtype).mul_(gradient / 9), None


class _NegativeLearning(torch.autograd.Function):
    """(- sum m log(1 - p + eps), sum m). As masked p of one pixel sum to at most 1, the product of its 1 - p + eps
    cannot underflow: one logarithm serves all classes of a pixel."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        # As numbers rather than bool: torch's float kernels are several times faster here.
        mask = torch.lt(probabilities, threshold, out=torch.empty_like(probabilities))
        complement = (_EPSILON - probabilities).mul_(mask).add_(1)
        total = -complement.prod(dim=1).log_().sum()
        count = mask.sum(dim=1).long().sum()  # exact beyond 2^24 pairs
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(mask.div_(complement))
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
