"""Fusion rules that channel-wise fusion is compared with (the vote is in `adaptseg.losses.fusion`): averages, on the
members' own scales or on a common one, and claims painted over one another. Of the released code and its successor's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.claims import drop_below
from adaptseg.losses.fusion import NOBODY, checked_policy, require_members
from adaptseg.losses.reduce import at_least_float32
from adaptseg.tensors import likeliest


def mean_probabilities(probabilities: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Average of the members' probabilities: the soft baseline ("EnD"), and the target of multi-teacher distillation.

    Args:
        probabilities: (T, C, H, W).
        weights: (T,), or (T, C) per class, >= 0; pass the members' `allowed` mask to average each class over those
            that have it. The result is then normalised over classes again (inferred). A class without weight gets 0.
            None = the plain mean.

    Returns:
        (C, H, W) float32 or better.
    """
    require_members(probabilities)
    members, classes = probabilities.shape[:2]
    if weights is None:
        shares = probabilities.new_full(
            (members, classes), 1 / members, dtype=at_least_float32(probabilities[:0]).dtype
        )
    else:
        if weights.shape not in ((members,), (members, classes)):
            raise AdaptSegError(f"weights are {tuple(weights.shape)}; ({members},) or ({members}, {classes}) expected")
        given = weights.to(at_least_float32(probabilities[:0]).dtype).reshape(members, -1).expand(members, classes)
        shares = (given / given.sum(0)).nan_to_num(0.0)
    total = torch.zeros_like(probabilities[0], dtype=shares.dtype)
    for member, share in zip(probabilities, shares, strict=True):
        total.addcmul_(member.to(shares.dtype), share[:, None, None])
    return total if weights is None else total / total.sum(0).clamp(min=torch.finfo(total.dtype).tiny)


def rank_profile(probabilities: Tensor) -> Tensor:
    """Mean over members and pixels of the class probabilities sorted downwards: (T, C, H, W) -> (C,).

    Of a data set: the average over its images (which mean the paper's successor takes is not known; inferred)."""
    require_members(probabilities)
    sorted_means = [at_least_float32(p).sort(0, descending=True).values.mean((1, 2)) for p in probabilities]
    return torch.stack(sorted_means).mean(0)


def rank_mean(probabilities: Tensor, profile: Tensor) -> Tensor:
    """Soft unification: each member keeps the order of its classes and gets the common profile; then the mean.

    Args:
        probabilities: (T, C, H, W); of equal ones the lowest class ranks first.
        profile: (C,) falling, from `rank_profile`.

    Returns:
        (C, H, W).
    """
    require_members(probabilities)
    ranked = profile[:, None, None].expand(probabilities.shape[1:])
    total = torch.zeros_like(ranked, memory_format=torch.contiguous_format)
    for member in probabilities:
        total.scatter_add_(0, member.sort(dim=0, descending=True, stable=True).indices, ranked)
    return total / len(probabilities)


def confident_labels(probabilities: Tensor, threshold: float | Tensor) -> Tensor:
    """Likeliest class where its probability reaches the threshold, else 255: (C, H, W) -> (H, W) int64.

    With `mean_probabilities` the baseline "certainty" (of members, or of distilled students: "EnD-PL").

    Args:
        probabilities: (C, H, W).
        threshold: one for all, or (C,).
    """
    labels = likeliest(probabilities, 0)
    return drop_below(labels, at_least_float32(probabilities).amax(0), threshold, len(probabilities))


def priority_fusion(labels: Tensor, policy: Tensor, order: Tensor) -> Tensor:
    """Claims painted one class over the other, from weak to strong (the early variant; its order is inferred).

    Args:
        labels: (T, H, W) integer, from `unify`.
        policy: (C,) integer on the CPU, 0..T-1 or -1.
        order: (C,) integer on the CPU, a permutation of the classes; later ones overwrite earlier ones.

    Returns:
        (H, W) int64, 255 where nobody claims.
    """
    chosen = checked_policy(policy, len(labels), len(policy))
    painted = [int(c) for c in order]
    if sorted(painted) != list(range(len(chosen))):
        raise AdaptSegError(f"order is {painted}; each of 0..{len(chosen) - 1} once is expected")
    fused = torch.full(labels.shape[1:], VOID, dtype=torch.int64, device=labels.device)
    for c in painted:
        if chosen[c] != NOBODY:
            fused = torch.where(labels[chosen[c]] == c, c, fused)
    return fused
