"""From the claims of all classes on an image's pixels to one label map: channel-wise fusion of ensemble-distillation
(Chao, Chen, Lee, CVPRW 2021; eq. 3 of the specification, constants and tie rules from the released code).

A *claim* is a pixel that the member chosen for class c labels c; `adaptseg.losses.fusion` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32

Border = Literal["zero", "valid"]
"""What a window mean divides by where the window leaves the image: `zero` (released): always window^2, so that with
window 5 and threshold 0.9 no contested pixel of the outer 2 rows can pass; `valid` (corrected): its pixels inside."""


class Fusion(NamedTuple):
    """Attributes: labels (H, W) int64, 255 = dropped; claims (H, W) uint8, n(p): by how many classes a pixel is
    claimed; certainty (H, W) float, u(p), what the threshold was compared with."""

    labels: Tensor
    claims: Tensor
    certainty: Tensor


def fuse_claims(
    evidence: Iterable[tuple[Tensor, Tensor]],
    *,
    window: int = 5,
    threshold: float | Tensor = 0.9,
    border: Border = "zero",
    filter_single: bool = True,
) -> Fusion:
    """Labels from the claims of all classes (eq. 3). Holds one class's maps at a time.

    A pixel with one claim takes that class and its certainty. Contested (two or more) and unclaimed pixels take the
    class with the most claims in the window around them, the lowest id of equals, and that class's mean certainty
    there. Labels whose certainty is below the threshold are dropped. Pixels with no claim in their whole window are
    dropped too (inferred: the release gives them class 0, which its threshold drops again).

    Args:
        evidence: per class, in order, claims (H, W) bool and certainties (H, W) floating.
        window: side of the window, odd: 5 (released), 35 in the successor "Rainbow UDA".
        threshold: one for all, or (C,); 0.9 (released), 0.7 with window 35.
        border: see `Border`.
        filter_single: False keeps pixels with one claim whatever their certainty (inferred).
    """
    if window < 1 or window % 2 == 0:
        raise AdaptSegError(f"window {window} given; an odd number of pixels, 1 or more, is expected")
    if border not in get_args(Border):
        raise AdaptSegError(f"border is '{border}'; one of {', '.join(get_args(Border))} is expected")
    # The smallest integers that hold window^2 claims; comparing and adding them is what takes the time.
    kind = torch.int8 if window**2 <= 127 else torch.int16 if window**2 <= 32767 else torch.int32
    classes, state = 0, None
    for c, (claim, certainty) in enumerate(evidence):
        classes = c + 1
        certainty = at_least_float32(certainty)
        if state is None:
            state = _Accumulator.empty(certainty, kind)
        # A class that claims nothing cannot win: on a CPU, where asking is free, most images lack many.
        if claim.device.type != "cpu" or bool(claim.any()):
            state.add(c, claim, certainty, window)
    if state is None:
        raise AdaptSegError("no class to fuse: the policy is empty")
    require_num_classes(classes)
    inside = _window_sum(torch.ones_like(state.mean), window) if border == "valid" else window**2
    single = state.claims == 1
    labels = torch.where(single, state.claiming, state.label).long()
    certainty = torch.where(single, state.certainty, state.mean / inside)
    fused = drop_below(labels, certainty, threshold, classes)
    return Fusion(fused if filter_single else torch.where(single, labels, fused), state.claims, certainty)


class _Accumulator(NamedTuple):
    """Of each pixel: number of claims, last claiming class, its certainty; most votes, their class, its window sum."""

    claims: Tensor
    claiming: Tensor
    certainty: Tensor
    votes: Tensor
    label: Tensor
    mean: Tensor

    @classmethod
    def empty(cls, like: Tensor, kind: torch.dtype) -> _Accumulator:
        void = torch.full_like(like, VOID, dtype=torch.uint8)
        zeros = torch.zeros_like(like)
        return cls(torch.zeros_like(void), void.clone(), zeros, zeros.to(kind), void, zeros.clone())

    def add(self, c: int, claim: Tensor, certainty: Tensor, window: int) -> None:
        self.claims.add_(claim)
        self.claiming.masked_fill_(claim, c)
        torch.where(claim, certainty, self.certainty, out=self.certainty)
        votes = _window_sum(claim.to(self.votes.dtype), window)
        better = votes > self.votes
        torch.maximum(votes, self.votes, out=self.votes)
        self.label.masked_fill_(better, c)
        torch.where(better, _window_sum(certainty, window), self.mean, out=self.mean)


def _window_sum(values: Tensor, window: int) -> Tensor:
    """Sums over window x window pixels, zeros outside. Sums of 1, 2, 4, ... neighbours, put together: log(window)
    additions an axis, and no difference of large sums as running totals would take."""
    for dim in (0, 1):
        length, radius = values.shape[dim], window // 2
        power = F.pad(values, (0, 0, radius, radius) if dim == 0 else (radius, radius))
        total, size, offset = None, 1, 0
        while True:
            if window & size:
                part = power.narrow(dim, offset, length)
                total = part if total is None else total + part
                offset += size
            if 2 * size > window:
                break
            rest = power.shape[dim] - size
            power = power.narrow(dim, 0, rest) + power.narrow(dim, size, rest)
            size *= 2
        assert total is not None
        values = total
    return values


def drop_below(labels: Tensor, certainty: Tensor, threshold: float | Tensor, classes: int) -> Tensor:
    """Labels (H, W) whose certainty (H, W) reaches the threshold, one for all or (C,); 255 elsewhere and where they
    were 255."""
    if isinstance(threshold, Tensor) and threshold.ndim > 0:
        if threshold.shape != (classes,):
            raise AdaptSegError(f"threshold is {tuple(threshold.shape)}; one number or ({classes},) is expected")
        # In the certainties' precision: 0.9 of a float32 softmax is below 0.9 of a float64 threshold.
        table = threshold.to(certainty)
        threshold = table[labels.clamp(max=classes - 1)]
    return torch.where(certainty >= threshold, labels, VOID)


def require_num_classes(classes: int) -> None:
    """Class ids must leave room for 255 = void."""
    if not 1 <= classes <= VOID:
        raise AdaptSegError(f"{classes} classes given; 1..{VOID} are possible, {VOID} itself means void")
