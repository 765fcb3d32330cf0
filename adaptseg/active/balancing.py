"""CBDA's arithmetic: class weights from the labels bought so far, weighted scores, and the budget of each round.

The parts (weights from cumulative true labels, a maximum with epsilon) are from the paper's text; where its equations
could not be read the docstring says "inferred".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from adaptseg.active.windows import box_mean
from adaptseg.errors import AdaptSegError


def class_budget(
    total_budget: float,
    num_classes: int,
    *,
    target: Literal["total", "cumulative"] = "total",
    round: int,
    rounds: int,
) -> float:
    """Ideal number of labels per class, Bc (CBDA eq. 1; a uniform target is the paper's, the denominator inferred).

    Args:
        total_budget: B, pixels over all rounds.
        num_classes: C.
        target: "total": B/C in every round; "cumulative": i*B/(I*C), what should be spent by the end of round i.
        round: i in 1..rounds.
        rounds: I.

    Returns:
        Pixels per class, > 0.
    """
    if total_budget <= 0 or num_classes < 1:
        raise AdaptSegError(f"total_budget is {total_budget} for {num_classes} classes; both must be positive")
    _require_round(round, rounds)
    share = 1.0 if target == "total" else round / rounds
    return share * total_budget / num_classes


def class_balance_weights(counts: Tensor, class_budget: float, epsilon: float) -> Tensor:
    """Class weights W_c = max(1 - n_c / Bc, epsilon) (CBDA eq. 2; the linear form is inferred).

    Args:
        counts: (C,) true labels n_c bought in earlier rounds, void excluded; integer or floating, >= 0.
        class_budget: ideal labels per class Bc, > 0.
        epsilon: in (0, 1]; above 0, so that filled classes keep the order of their scores (inferred default 1e-2).

    Returns:
        (C,) float32 in [epsilon, 1].
    """
    if counts.ndim != 1 or not bool((counts >= 0).all()):
        raise AdaptSegError(
            f"counts have shape {tuple(counts.shape)}; give (C,) numbers of labels, none negative or NaN"
        )
    if not (math.isfinite(class_budget) and class_budget > 0):
        raise AdaptSegError(f"class_budget is {class_budget}; give a positive number of labels")
    if not 0 < epsilon <= 1:
        raise AdaptSegError(f"epsilon is {epsilon}; give a number above 0 and at most 1")
    return (1 - counts.double() / class_budget).clamp_min(epsilon).float()


def balance_scores(score: Tensor, weights: Tensor, predicted: Tensor) -> Tensor:
    """Weight each pixel's score by its predicted class: W[predicted] * max(score, 0) (class by prediction: inferred).

    Scores are clamped first: a weight below 1 would *raise* a negative score. Minus infinity (not choosable) stays.

    Args:
        score: (H, W) floating.
        weights: (C,) > 0.
        predicted: (H, W) integer classes in [0, C).

    Returns:
        (H, W) in the dtype of `score`.
    """
    return _weighted(score, _pixel_weights(score, weights, predicted))


def balance_scores_by_region(score: Tensor, weights: Tensor, predicted: Tensor, radius: int) -> Tensor:
    """Weight each score by its region's classes: sum_c q_c W_c instead of W[predicted] (inferred).

    q_c is the share of class c among the predictions inside the window of Chebyshev radius `radius`. Otherwise as
    `balance_scores`.
    """
    return _weighted(score, box_mean(_pixel_weights(score, weights, predicted), radius))


def round_budget(total: int, round: int, rounds_or_shares: int | Sequence[float], spent: int) -> int:
    """Pixels that round i may buy: the share due by its end minus what is spent, so that the total is met exactly.

    K_i = round(i*B/I) - spent for equal shares (inferred), round(B * (s_1 + ... + s_i)) - spent for given ones; never
    negative. Overspending in one round (whole regions) is taken from the next.

    Args:
        total: B, pixels over all rounds.
        round: i, from 1.
        rounds_or_shares: the number of rounds I, or the share of B for each, summing to 1.
        spent: pixels bought in earlier rounds, void included.
    """
    if total < 0 or spent < 0:
        raise AdaptSegError(f"total budget is {total} and spent {spent}; neither may be negative")
    if isinstance(rounds_or_shares, int):
        _require_round(round, rounds_or_shares)
        return max(0, _nearest(Fraction(total * round, rounds_or_shares)) - spent)
    shares = list(rounds_or_shares)
    _require_round(round, len(shares))
    if not all(s >= 0 for s in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise AdaptSegError(f"budget shares {shares} must be 0 or more and sum to 1; they sum to {math.fsum(shares):g}")
    due = total if round == len(shares) else min(total, _nearest(Fraction(math.fsum(shares[:round])) * total))
    return max(0, due - spent)


def _nearest(value: Fraction) -> int:
    return round(value)


def _require_round(round: int, rounds: int) -> None:
    if not 1 <= round <= rounds:
        raise AdaptSegError(f"round is {round} of {rounds}; rounds count from 1")


def _pixel_weights(score: Tensor, weights: Tensor, predicted: Tensor) -> Tensor:
    if score.ndim != 2 or predicted.shape != score.shape or predicted.is_floating_point():
        raise AdaptSegError(
            f"score is {tuple(score.shape)}, predicted {predicted.dtype} {tuple(predicted.shape)}; "
            "give (H, W) scores and integer classes of the same size"
        )
    if weights.ndim != 1 or not bool((weights > 0).all()):
        raise AdaptSegError(f"class weights have shape {tuple(weights.shape)}; give (C,) numbers above 0")
    if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < len(weights):
        raise AdaptSegError(
            f"predicted classes reach from {int(predicted.min())} to {int(predicted.max())}; "
            f"class weights are given for {len(weights)}"
        )
    return weights.to(score)[predicted.long()]


def _weighted(score: Tensor, weight: Tensor) -> Tensor:
    return torch.where(score == -math.inf, score, score.clamp_min(0) * weight.to(score))
