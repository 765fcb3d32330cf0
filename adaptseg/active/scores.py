"""Acquisition scores: how much one would like to know the label of a pixel. Higher = buy; natural logarithm; float32.

Scores are computed class by class, so a 19 x 1024 x 2048 map costs a few (H, W) maps beside itself. Inputs of 16 bits
are widened to float32; float64 is computed in float64. The result is always float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from adaptseg.active.windows import box_mean, require_radius, window_area, window_sum
from adaptseg.errors import AdaptSegError

Denominator = Literal["paper", "released"]
"""Of `balanced_entropy`."""
RELEASED_EPSILON = 1e-6
"""Inside RIPU's logarithms (released code). It makes the entropy of a certain distribution -1e-6 instead of 0."""


def entropy(probabilities: Tensor, *, dim: int = -3) -> Tensor:
    """Entropy -sum_c p_c log p_c over `dim`, with 0 log 0 = 0; in [0, log C].

    Args:
        probabilities: (..., C, H, W) by default; they sum to 1 over `dim`.
        dim: the class dimension, which the result lacks.
    """
    return _entropy(probabilities, dim).float()


def margin(probabilities: Tensor, *, dim: int = -3) -> Tensor:
    """Second largest minus largest probability over `dim`: in [-1, 0], 0 where the two best classes tie."""
    if probabilities.shape[dim] < 2:
        raise AdaptSegError(f"margin needs two classes; dimension {dim} of {tuple(probabilities.shape)} has fewer")
    first, *others = _wide(probabilities).unbind(dim)
    second = torch.full_like(first, -math.inf)
    for p in others:
        second = torch.maximum(second, torch.minimum(first, p))
        first = torch.maximum(first, p)
    return (second - first).float()


def least_confidence(probabilities: Tensor, *, dim: int = -3) -> Tensor:
    """One minus the largest probability over `dim`: in [0, 1 - 1/C]."""
    return (1 - _wide(probabilities).amax(dim)).float()


def mutual_information(draws: Tensor, *, dim: int = -3) -> Tensor:
    """What the label would tell about the model (BALD): entropy of the mean draw minus mean entropy of the draws.

    Args:
        draws: (K, ..., C, H, W) probabilities of K stochastic passes.
        dim: the class dimension of `draws`; not 0.

    Returns:
        (..., H, W) in [0, log min(C, K)]; rounding below 0 is clamped.
    """
    dim = _require_draws(draws, dim)
    information = RunningInformation(len(draws), dim=dim)
    for draw in draws:
        information.add(draw)
    return information.result()


class RunningScore(Protocol):
    """A score of stochastic passes (..., C, H, W) that come one by one."""

    def add(self, draw: Tensor) -> None: ...

    def result(self) -> Tensor: ...


class RunningInformation:
    """`mutual_information` of draws that come one by one: it holds as much as one draw, whatever their number.

    Args:
        draws: how many there will be.
        dim: the class dimension of a draw, counted from the end.
    """

    def __init__(self, draws: int, *, dim: int = -3) -> None:
        self._draws, self._dim = draws, dim
        self._mean = self._mean_entropy = torch.zeros(())

    def add(self, draw: Tensor) -> None:
        """One more draw (..., C, H, W)."""
        self._mean = self._mean + _wide(draw) / self._draws
        self._mean_entropy = self._mean_entropy + _entropy(draw, self._dim) / self._draws

    def result(self) -> Tensor:
        """(..., H, W) once all draws are added."""
        return (_entropy(self._mean, self._dim) - self._mean_entropy).clamp_min(0).float()


def edald(draws: Tensor, fixed: Tensor, *, dim: int = -3) -> Tensor:
    """Two-stage eDALD's score: mutual information of the draws plus entropy of the fixed pass (also eBALD).

    Args:
        draws: (K, ..., C, H, W) probabilities of K passes, each with its own noise (eBALD: dropout).
        fixed: (..., C, H, W) probabilities of the pass with the fixed noise (eBALD: without dropout).
        dim: the class dimension of `draws`; not 0.

    Returns:
        (..., H, W) in [0, log min(C, K) + log C].
    """
    dim = _require_draws(draws, dim, fixed)
    return mutual_information(draws, dim=dim) + entropy(fixed, dim=dim)


def edald_released(draws: Tensor, fixed: Tensor, *, dim: int = -3) -> Tensor:
    """What the released code computes for eDALD: it exponentiates probabilities as if they were their logarithms.

    In place of the information stands sum_c mean_k q log q - m log m, q = exp(p), m = mean_k q: about a quarter of it,
    so that the order is nearly that of the entropy, here -sum_c p log(p + 1e-8). Arguments as of `edald`.
    """
    dim = _require_draws(draws, dim, fixed)
    total = torch.zeros_like(_wide(fixed.select(dim, 0)))
    for p, q in zip(_wide(fixed).unbind(dim), _wide(draws).unbind(dim), strict=True):
        q = q.exp()
        m = q.mean(0)
        total += ((q * q.log()).mean(0) - m * m.log()).clamp_min(0) - p * (p + 1e-8).log()
    return total.float()


def balanced_entropy(draws: Tensor, *, dim: int = -3, denominator: Denominator) -> Tensor:
    """BalEntAcq (Woo, ICLR 2023): a Beta distribution per class, matched to mean and unbiased variance of the draws.

    With its entropy h_c, mean m_c and H = entropy(m): balance = (sum_c m_c h_c + H) / (H + log 2), or, "released", over
    (sum_c m_c h_c + 2 H). The score is 1 / balance where that is >= 0, else the balance. Computed in float64.

    Args:
        draws: (K, ..., C, H, W) probabilities of K >= 2 passes.
        dim: the class dimension of `draws`; not 0.

    Returns:
        (..., H, W); -inf, so bought last if at all, where no Beta distribution has these moments (draws near one-hot,
        whether they agree or not); NaN where a draw is.
        Classes of mean below 1e-9 add nothing (inferred: the floor of the moments alone would rule out their pixels).
    """
    dim = _require_draws(draws, dim)
    _require_balance(len(draws), denominator)
    wide = (p.double() for p in draws.unbind(dim))
    return _balance(((p.mean(0), p.var(0)) for p in wide), denominator)


class RunningBalance:
    """`balanced_entropy` of draws that come one by one: it holds as much as four draws (mean and squared deviations in
    float64), whatever their number.

    Args:
        draws: how many there will be, 2 or more.
        dim: the class dimension of a draw, counted from the end.
        denominator: as of `balanced_entropy`.
    """

    def __init__(self, draws: int, *, dim: int = -3, denominator: Denominator = "paper") -> None:
        _require_balance(draws, denominator)
        self._draws, self._dim = draws, dim
        self._denominator: Denominator = denominator
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)
        self._added = 0

    def add(self, draw: Tensor) -> None:
        """One more draw (..., C, H, W)."""
        # Welford's update: the difference of two sums of squares would lose the small variances that matter here.
        self._added += 1
        gap = draw.double() - self._mean
        self._mean = self._mean + gap / self._added
        self._squares = self._squares + gap * (draw.double() - self._mean)

    def result(self) -> Tensor:
        """(..., H, W) once all draws are added."""
        variance = self._squares / (self._draws - 1)
        moments = zip(self._mean.unbind(self._dim), variance.unbind(self._dim), strict=True)
        return _balance(moments, self._denominator)


def _require_balance(draws: int, denominator: str) -> None:
    if draws < 2 or denominator not in ("paper", "released"):
        raise AdaptSegError(f"{draws} draws, denominator {denominator!r}; give 2 or more, 'paper' or 'released'")


def _balance(moments: Iterable[tuple[Tensor, Tensor]], denominator: Denominator) -> Tensor:
    """`balanced_entropy` from mean and unbiased variance (..., H, W) float64 of each class."""
    differential = total = torch.zeros((), dtype=torch.float64)
    for m, v in moments:
        v, share = v.clamp_min(1e-9), m.clamp_min(1e-9)
        a = share.square() * (1 - share) / v - share
        b = (1 / share - 1) * a
        log_beta = (a + 1).lgamma() + b.lgamma() - (a + b + 1).lgamma()
        h = log_beta - a * (a + 1).digamma() - (b - 1) * b.digamma() + (a + b - 1) * (a + b + 1).digamma()
        part = (share * h).clamp_max(0).where((a > 0) & (b > 0), math.nan)
        differential = differential + part.where(m > 1e-9, 0.0)
        total = total - torch.xlogy(m, m)
    balance = differential + total
    balance = balance / (total + math.log(2) if denominator == "paper" else balance + total)
    score = torch.where(balance >= 0, 1 / balance, balance)
    return score.where(score.isfinite(), -math.inf).where(total.isfinite(), math.nan).float()


def power_score(score: Tensor, uniform: Tensor, beta: float = 1.0) -> Tensor:
    """PowerBALD / PowerDALD: beta log(score) + Gumbel noise, whose top b are a draw without replacement ~ score^beta.

    Args:
        score: >= 0, any shape, e.g. `mutual_information`; below 1e-9 it counts as 1e-9.
        uniform: random numbers in [0, 1), same shape (`random_score`).
        beta: 0 = random, infinite = the score's own order.
    """
    if uniform.shape != score.shape or not beta >= 0:
        raise AdaptSegError(f"uniform {tuple(uniform.shape)}, beta {beta}; give {tuple(score.shape)} and beta >= 0")
    u = uniform.double().clamp(2.0**-53, 1 - 2.0**-53)
    return (beta * _wide(score).clamp_min(1e-9).log() - (-u.log()).log()).float()


def power_score_released(score: Tensor, uniform: Tensor) -> Tensor:
    """The released PowerBALD / PowerDALD: log(score) plus a heavy-tailed Pareto(1, 1) draw 1 / (1 - uniform)."""
    return (_wide(score).clamp_min(1e-9).log() + 1 / (1 - uniform.double()).clamp_min(2.0**-53)).float()


def region_impurity(predicted: Tensor, num_classes: int, radius: int) -> Tensor:
    """RIPU's region impurity: entropy of the predicted classes inside the window around each pixel.

    -sum_c q_c log(q_c + 1e-6), q_c = share of class c among the window's pixels inside the image (released code; not
    divided by log C). A pure window scores -1e-6, not 0.

    Args:
        predicted: (H, W) integer classes in [0, num_classes).
        num_classes: C.
        radius: Chebyshev radius k of the window, side 2k+1; clipped at the border.

    Returns:
        (H, W) float32 in [-1e-6, log C].
    """
    if predicted.ndim != 2 or predicted.is_floating_point():
        raise AdaptSegError(f"predicted is {predicted.dtype} {tuple(predicted.shape)}; give integer (H, W)")
    require_radius(radius)
    if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < num_classes:
        raise AdaptSegError(
            f"predicted classes reach from {int(predicted.min())} to {int(predicted.max())} of {num_classes}"
        )
    area = window_area(predicted, radius)
    # Counts reach (2k+1)^2; 16 bits halve the memory traffic while they last.
    counts = torch.int16 if (2 * radius + 1) ** 2 < 1 << 15 else torch.int32
    impurity = torch.zeros_like(area)
    for c in torch.bincount(predicted.flatten(), minlength=num_classes).nonzero().flatten():
        share = window_sum((predicted == c).to(counts), radius) / area
        impurity.addcmul_(share, (share + RELEASED_EPSILON).log_(), value=-1)
    return impurity


def prediction_uncertainty(probabilities: Tensor, radius: int) -> Tensor:
    """RIPU's prediction uncertainty: mean entropy inside the window around each pixel.

    The entropy is -sum_c p_c log(p_c + 1e-6) (released code; not divided by log C), so that a certain pixel has -1e-6.

    Args:
        probabilities: (C, H, W).
        radius: Chebyshev radius of the window; clipped at the border.

    Returns:
        (H, W) float32 in [-1e-6, log C].
    """
    return box_mean(_released_entropy(probabilities), radius)


def ripu(probabilities: Tensor, radius: int, *, mode: Literal["region", "pixel"] = "region") -> Tensor:
    """RIPU's score (Xie et al., CVPR 2022; formulas from the released code).

    "region": region impurity x prediction uncertainty, each divided by log C.
    "pixel": region impurity x entropy of the pixel itself, neither divided (published with radius 32).

    Either factor is clamped at 0: the released 1e-6 lets both fall to -1e-6, and a negative score times a class weight
    below 1 would rank saturated classes first.

    Args:
        probabilities: (C, H, W), C >= 2.
        radius: Chebyshev radius k of the window.

    Returns:
        (H, W) float32 >= 0.
    """
    if probabilities.ndim != 3 or len(probabilities) < 2:
        raise AdaptSegError(f"probabilities have shape {tuple(probabilities.shape)}; give (C, H, W) with C >= 2")
    num_classes = len(probabilities)
    impurity = region_impurity(_predicted(probabilities), num_classes, radius).clamp_min(0)
    if mode == "pixel":
        return impurity * _released_entropy(probabilities).clamp_min(0).float()
    uncertainty = prediction_uncertainty(probabilities, radius).clamp_min(0)
    return impurity * uncertainty / math.log(num_classes) ** 2


def random_score(size: tuple[int, int], *, seed: int, round: int, key: str) -> Tensor:
    """Uniform (H, W) float32 in [0, 1): the random baseline, a pure function of its arguments on every machine."""
    digest = hashlib.blake2b(f"{seed}/{round}/{key}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return torch.as_tensor(generator.random(size, dtype=np.float32))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    parts = _wide(probabilities).unbind(dim)
    total = torch.zeros_like(parts[0])
    for p in parts:
        total = total - torch.xlogy(p, p)
    return total


def _require_draws(draws: Tensor, dim: int, fixed: Tensor | None = None) -> int:
    """The class dimension counted from the end, where it is the same one for a single pass."""
    dim = dim - draws.ndim if dim >= 0 else dim
    if not -draws.ndim < dim < 0 or len(draws) == 0:
        raise AdaptSegError(f"draws {tuple(draws.shape)} with class dimension {dim}; give (K, ..., C, H, W) with K > 0")
    if fixed is not None and fixed.shape != draws.shape[1:]:
        raise AdaptSegError(f"fixed is {tuple(fixed.shape)}; give the shape of one draw, {tuple(draws.shape[1:])}")
    return dim


def _predicted(probabilities: Tensor) -> Tensor:
    """The most probable class, the first of equals; class by class, since argmax over a leading dimension strides."""
    best = probabilities[0]
    predicted = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for c, p in enumerate(probabilities):
        predicted.masked_fill_(p > best, c)
        best = torch.maximum(best, p)
    return predicted


def _released_entropy(probabilities: Tensor) -> Tensor:
    if probabilities.ndim != 3:
        raise AdaptSegError(f"probabilities have shape {tuple(probabilities.shape)}; give (C, H, W)")
    parts = _wide(probabilities).unbind(0)
    total = torch.zeros_like(parts[0])
    for p in parts:
        total.addcmul_(p, (p + RELEASED_EPSILON).log_(), value=-1)
    return total
