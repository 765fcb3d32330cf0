"""What a small network learns from a large one's probabilities (DUDA, arXiv 2504.09814; Hinton et al., 2015).

That the small student is distilled from the large teacher is stated; the form of the loss and its temperature are
inferred. Two habits of public code are avoided: a mean over the batch alone, which lets the loss grow with the image,
and logits where log-probabilities belong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32


def divergence(
    teacher_log_p: Tensor,
    student_log_p: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    pixel_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """T^2 * sum over masked pixels of weight * KL(teacher || student), and how many pixels are masked in (inferred).

    The caller divides (`adaptseg.losses.reduce.global_mean`). Weights multiply the sum and never enter the count.

    Args:
        teacher_log_p, student_log_p: (B, C, H, W) finite log-softmax at one size; gradients flow into the student's
            alone. Half precision is computed in float32.
        mask: (B, H, W) bool: the pixels for which the teacher speaks.
        temperature: T; both distributions are softened to softmax(z / T).
        pixel_weights: finite, broadcastable to (B, H, W), or None = 1; constants.

    Returns:
        total () with gradient, count () int64; 0 and 0 where nothing is masked in.
    """
    if teacher_log_p.shape != student_log_p.shape or mask.shape != student_log_p[:, 0].shape:
        raise AdaptSegError(
            f"distillation: teacher {tuple(teacher_log_p.shape)}, student {tuple(student_log_p.shape)}, mask "
            f"{tuple(mask.shape)}; give (B, C, H, W) twice, at one size, and (B, H, W)"
        )
    if not temperature > 0:
        raise AdaptSegError(f"distillation: temperature {temperature} given; a number above 0 is expected")
    teacher, student = at_least_float32(teacher_log_p.detach()), at_least_float32(student_log_p)
    if temperature != 1:  # a log-softmax is logits shifted by a constant, which the next softmax ignores
        teacher, student = (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    by_pixel = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    weights = mask.to(by_pixel.dtype)
    if pixel_weights is not None:
        weights = weights * pixel_weights.detach()
    return temperature**2 * (by_pixel * weights).sum(), mask.sum()


def mean_log_probabilities(log_p: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """log(sum_k w_k p_k) of several teachers, stable where all are nearly 0 (inferred: w = 1 / K).

    Args:
        log_p: K tensors (B, C, H, W), log-softmax.
        weights: K positive numbers, divided here by their sum; None = equal.
    """
    if not log_p:
        raise AdaptSegError("no teacher to average")
    shares = [1.0] * len(log_p) if weights is None else list(weights)
    if len(shares) != len(log_p) or min(shares) <= 0:
        raise AdaptSegError(f"weights of teachers are {shares}; {len(log_p)} positive numbers are expected")
    if len(log_p) == 1:
        return log_p[0]
    total = sum(shares)
    shifted = [p + math.log(share / total) for p, share in zip(log_p, shares, strict=True)]
    mean = shifted[0]
    for other in shifted[1:]:
        mean = torch.logaddexp(mean, other)
    return mean


def ramp(step: int, first: int, last: int) -> float:
    """0 up to step `first`, then linear to 1 at step `last` (inferred: DUDA's "gradual" distillation)."""
    return min(1.0, max(0.0, (step - first) / (last - first)))
