"""Which classes a small network has not yet learnt from a large one, without labels, and the class weights made of it
(DUDA, arXiv 2504.09814, WACV 2026: stage 2, "inconsistency-based class-wise loss balancing").

The paper's equations could not be read. Stated: the inconsistency compares large and small network on unlabelled target
training images after pre-adaptation, follows the gap of their true IoU, and poorly adapted classes weigh more. All else
is inferred and can be switched.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32

Kind = Literal["iou", "recall"]
"""Of the pixels A the large network gives class c and B the small one does: 1 - |A and B| / |A or B|, that is one minus
the small network's IoU with the large one for reference; or 1 - |A and B| / |A|."""

Normalisation = Literal["mean1", "minmax", "max", "softmax"]
"""I' = I / mean I, (I - min) / (max - min), I / max, or |V| softmax(I / temperature), over the classes V present."""


def class_inconsistency(confusion: Tensor, *, kind: Kind = "iou") -> Tensor:
    """How differently two networks see each class (inferred).

    Args:
        confusion: (C, C) pixel counts, rows = large network, columns = small one; untrusted pixels left out.
        kind: see `Kind`.

    Returns:
        (C,) float64 in 0..1, 0 = agreement; NaN where it is 0/0: neither network (`recall`: the large one) predicts it.
    """
    _require_confusion(confusion)
    if kind not in get_args(Kind):
        raise AdaptSegError(f"inconsistency: kind is '{kind}'; one of {', '.join(get_args(Kind))} is expected")
    counts = confusion.double()
    both, large, small = counts.diagonal(), counts.sum(1), counts.sum(0)
    return 1 - both / (large + small - both if kind == "iou" else large)


def divergence_by_class(large_logits: Tensor, small_logits: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """The third kind, "kl" (inferred): sums over a batch of KL(large || small) by the large network's likeliest class.

    Summed over a data set, total / pixels is the inconsistency (NaN where the large network never predicts a class).

    Args:
        large_logits, small_logits: (B, C, H, W), resized to one size.
        trusted: (B, H, W) bool; other pixels are left out.

    Returns:
        total (C,) float64, pixels (C,) int64; no gradient.
    """
    if large_logits.shape != small_logits.shape or trusted.shape != large_logits[:, 0].shape:
        raise AdaptSegError(
            f"inconsistency: logits are {tuple(large_logits.shape)} and {tuple(small_logits.shape)}, trusted "
            f"{tuple(trusted.shape)}; give (B, C, H, W) twice, at one size, and (B, H, W)"
        )
    classes = large_logits.shape[1]
    with torch.no_grad(), torch.autocast(large_logits.device.type, enabled=False):
        large = at_least_float32(large_logits).log_softmax(1)
        small = at_least_float32(small_logits).log_softmax(1)
        divergence = (large.exp() * (large - small)).sum(1).double()
        # One more bin for untrusted pixels: indexing them away would wait for the device.
        bins = torch.where(trusted, large.argmax(1), classes).flatten()
        total = torch.zeros(classes + 1, dtype=torch.float64, device=bins.device)
        pixels = torch.zeros(classes + 1, dtype=torch.int64, device=bins.device)
        total.scatter_add_(0, bins, divergence.flatten())
        pixels.scatter_add_(0, bins, torch.ones_like(bins))
    return total[:classes], pixels[:classes]


def present_classes(confusion: Tensor, *, minimum: int = 0) -> Tensor:
    """(C,) bool: classes that the two networks together give more than `minimum` pixels, |A| + |B| (inferred)."""
    _require_confusion(confusion)
    return confusion.sum(0) + confusion.sum(1) > minimum


def inconsistency_weights(
    inconsistency: Tensor,
    *,
    present: Tensor | None = None,
    normalisation: Normalisation = "mean1",
    temperature: float = 1.0,
    strength: float = 1.0,
    bounds: tuple[float, float] = (0.25, 4.0),
    keep_mean: bool = True,
) -> Tensor:
    """Class weights of the fine-tuning stage: (1 - strength) + strength * I' within bounds (inferred).

    Multiply the loss of a pixel with the weight of its class and divide by the number of pixels, as
    `adaptseg.losses.pixel` does, never by the sum of weights. Computed once, between two stages.

    Args:
        inconsistency: (C,) >= 0, NaN = not known.
        present: (C,) bool: the classes V that are normalised (`present_classes`, and the domain pair's own); None =
            all. Classes outside, and those of unknown inconsistency, weigh 1.
        normalisation: see `Normalisation`.
        temperature: of `softmax`, above 0.
        strength: beta, 0 = all weigh 1.
        bounds: lowest and highest weight, around 1.
        keep_mean: make the mean over V exactly 1, so that learning rates keep their meaning: the nearest such weights
            within the bounds (least squares). False: only clip; then `max` and `minmax` lower the whole loss.

    Returns:
        (C,) float32. All 1 where all classes agree fully, or none is present.
    """
    _check_weighting(inconsistency, present, normalisation, temperature, bounds)
    values = inconsistency.double()
    known = ~values.isnan() if present is None else present.to(values.device) & ~values.isnan()
    given = values[known]
    if not bool((given.isfinite() & (given >= 0)).all()):
        raise AdaptSegError(f"inconsistency must be finite and not negative, got {[float(value) for value in given]}")
    weights = torch.ones_like(values)
    if bool((given > 0).any()):
        wanted = (1 - strength) + strength * _normalised(given, normalisation, temperature)
        low, high = bounds
        weights[known] = _with_mean_one(wanted, low, high) if keep_mean else wanted.clamp(low, high)
    return weights.float()


def _normalised(values: Tensor, normalisation: Normalisation, temperature: float) -> Tensor:
    """(V,), at least one of them above 0."""
    if normalisation == "mean1":
        return values / values.mean()
    if normalisation == "max":
        return values / values.max()
    if normalisation == "softmax":
        return len(values) * (values / temperature).softmax(0)
    spread = values.max() - values.min()
    return (values - values.min()) / spread if bool(spread > 0) else torch.ones_like(values)  # 0/0: no class is ahead


def _with_mean_one(wanted: Tensor, low: float, high: float) -> Tensor:
    """clip(wanted + s) with the s that makes its mean 1: the projection onto {low <= w <= high, mean w = 1}.

    The mean rises with s, in straight pieces between the shifts at which an entry meets a bound."""
    shifts = torch.cat([low - wanted, high - wanted]).sort().values
    means = (wanted + shifts[:, None]).clamp(low, high).mean(1)
    after = int((means < 1).sum().clamp(1, len(means) - 1))
    below, above = means[after - 1], means[after]
    share = (1 - below) / (above - below) if bool(above > below) else torch.zeros_like(below)
    return (wanted + torch.lerp(shifts[after - 1], shifts[after], share)).clamp(low, high)


def _require_confusion(confusion: Tensor) -> None:
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or len(confusion) == 0:
        raise AdaptSegError(f"inconsistency: confusion is {tuple(confusion.shape)}; (C, C) pixel counts are expected")


def _check_weighting(
    inconsistency: Tensor,
    present: Tensor | None,
    normalisation: str,
    temperature: float,
    bounds: tuple[float, float],
) -> None:
    if inconsistency.ndim != 1:
        raise AdaptSegError(f"inconsistency is {tuple(inconsistency.shape)}; (C,) is expected")
    if present is not None and (present.shape != inconsistency.shape or present.dtype != torch.bool):
        raise AdaptSegError(f"present is {present.dtype} {tuple(present.shape)}; bool ({len(inconsistency)},) expected")
    if normalisation not in get_args(Normalisation):
        raise AdaptSegError(f"normalisation is '{normalisation}'; one of {', '.join(get_args(Normalisation))} expected")
    if not temperature > 0:
        raise AdaptSegError(f"temperature {temperature} given; a number above 0 is expected")
    low, high = bounds
    if not 0 <= low <= 1 <= high < math.inf:
        raise AdaptSegError(f"bounds {bounds} given; 0 <= lowest <= 1 <= highest is expected")
