"""One label map from many adapted networks: Chao, Chen, Lee, "Rethinking Ensemble-Distillation for Semantic
Segmentation Based Unsupervised Domain Adaption", CVPRW 2021; constants and tie rules from its released code.

A *member* is a network of the ensemble, a *claim* a pixel that the member chosen for class c labels c, a *policy* which
member is chosen for which class. All functions take one image; nothing waits for the device but the policy, which
lives on the CPU, and no copy of all members' maps is ever made: the largest temporary is that of one member.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.claims import Border, fuse_claims, require_num_classes
from adaptseg.tensors import likeliest

NOBODY = -1
"""Policy entry of a class that no member gives: it gets no labels."""


def unify(probabilities: Tensor, *, allowed: Tensor | None = None) -> Tensor:
    """Each member's likeliest class (eq. 1), the lowest of equals: members of any confidence on one scale.

    Args:
        probabilities: (T, C, H, W), softmax or anything that rises with it; without NaN.
        allowed: (T, C) bool, False for classes that a member lacks: it never gives them. None = all.

    Returns:
        (T, H, W) int64.
    """
    require_members(probabilities, allowed)
    rows = [None] * len(probabilities) if allowed is None else allowed
    return torch.stack([_likeliest(p, row) for p, row in zip(probabilities, rows, strict=True)])


def pixel_fusion(labels: Tensor, num_classes: int, *, allowed: Tensor | None = None) -> Tensor:
    """The class most members give (eq. 2, "Ours (Pixel)"), the lowest id of equals (released: the first maximum).

    Members are compared in pairs, which asks for no map per class.

    Args:
        labels: (T, H, W) integer in 0..255; a member abstains where it gives 255, or anything else from C on.
        num_classes: C, at most 255.
        allowed: (T, C) bool, False for classes that a member lacks: it abstains there (inferred). None = all.

    Returns:
        (H, W) int64, 255 where all abstain.
    """
    if labels.ndim != 3 or len(labels) == 0:
        raise AdaptSegError(f"labels are {tuple(labels.shape)}; at least one member's (T, H, W) is expected")
    require_num_classes(num_classes)
    votes = torch.where(labels < num_classes, labels, VOID).to(torch.uint8)
    if allowed is not None:
        _require_allowed(allowed, len(labels), num_classes)
        gives = F.pad(allowed, (0, 256 - num_classes)).to(labels.device)
        votes = torch.stack([vote.where(row[vote.long()], VOID) for vote, row in zip(votes, gives, strict=True)])
    # Count and class in one number: more votes win, then the lower class; 0 where the member abstains.
    kind = torch.int16 if len(labels) <= 127 else torch.int32
    best = torch.zeros(labels.shape[1:], dtype=kind, device=labels.device)
    for vote in votes:
        count = torch.zeros_like(best)
        for other in votes:
            count += other == vote
        best = torch.maximum(best, (count * 256 + (VOID - vote)) * (vote != VOID))
    return VOID - (best & 255).long()


def channel_fusion(
    probabilities: Tensor,
    policy: Tensor,
    *,
    window: int = 5,
    threshold: float | Tensor = 0.9,
    border: Border = "zero",
    filter_single: bool = True,
    allowed: Tensor | None = None,
) -> Tensor:
    """Each class from the member chosen for it (eq. 3, "Ours (Channel)"); see `fuse_claims` for the other arguments.

    Args:
        probabilities: (T, C, H, W).
        policy: (C,) integer on the CPU: the member of each class, -1 = nobody.
        allowed: (T, C) bool, False for classes that a member lacks. None = all.

    Returns:
        (H, W) int64, 255 = dropped.

    Raises:
        AdaptSegError: the policy does not cover every class, or names a member that there is not or that lacks the
            class.
    """
    evidence = evidence_from_probabilities(probabilities, policy, allowed=allowed)
    return fuse_claims(evidence, window=window, threshold=threshold, border=border, filter_single=filter_single).labels


def evidence_from_probabilities(
    probabilities: Tensor, policy: Tensor, *, allowed: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each class its claims (H, W) bool and certainties Q (H, W), one at a time; arguments of `channel_fusion`."""
    require_members(probabilities, allowed)
    members, classes = probabilities.shape[:2]
    chosen = checked_policy(policy, members, classes, allowed)
    labels = {
        t: _likeliest(probabilities[t], None if allowed is None else allowed[t]).to(torch.uint8)
        for t in {*chosen} - {NOBODY}
    }
    return (_of_class(c, member, labels, probabilities[max(member, 0), c]) for c, member in enumerate(chosen))


def evidence_from_labels(labels: Tensor, certainty: Tensor, policy: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same where members are known by label maps and the probability of that label alone.

    The probability of a class where another one won is not known; it counts as 0 (inferred), so the certainty of
    contested pixels is a lower bound and at most as many pass as from probabilities.

    Args:
        labels: (T, H, W) integer, 255 = the member abstains.
        certainty: (T, H, W) in 0..1.
        policy: (C,) integer on the CPU.
    """
    if labels.ndim != 3 or labels.shape != certainty.shape:
        raise AdaptSegError(
            f"labels are {tuple(labels.shape)}, certainty {tuple(certainty.shape)}; both (T, H, W) are expected: "
            "bring members to one size first"
        )
    chosen = checked_policy(policy, len(labels), len(policy))
    by_member = dict(enumerate(labels))
    pairs = (_of_class(c, member, by_member, certainty[max(member, 0)]) for c, member in enumerate(chosen))
    return ((claim, torch.where(claim, values, 0.0)) for claim, values in pairs)


class ClassCertainty:
    """How certain a network is of each class, over a stream of images (eq. 4): the mean of the largest probability over
    all pixels where that class has it. Two tensors of state, which may be summed over processes.

    The released tool resizes logits to full size before the softmax, and measures a *student* distilled from each
    member, on target training images: members themselves are not on one scale.

    Attributes:
        total: (C,) float64, sum of the largest probabilities by likeliest class.
        pixels: (C,) int64.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str | None = None) -> None:
        require_num_classes(num_classes)
        self.total = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Add images (N, C, H, W)."""
        if probabilities.ndim != 4 or probabilities.shape[1] != len(self.total):
            raise AdaptSegError(
                f"probabilities are {tuple(probabilities.shape)}; (N, {len(self.total)}, H, W) is expected"
            )
        labels = likeliest(probabilities, 1).flatten()
        self.total.scatter_add_(0, labels, probabilities.amax(1).flatten().double())
        self.pixels.scatter_add_(0, labels, torch.ones_like(labels))

    def compute(self) -> Tensor:
        """(C,) float64, NaN for classes never predicted."""
        return self.total / self.pixels


def class_certainty(probabilities: Tensor) -> Tensor:
    """`ClassCertainty` of one batch: (N, C, H, W) -> (C,) float64, NaN for classes never predicted."""
    if probabilities.ndim != 4:
        raise AdaptSegError(f"probabilities are {tuple(probabilities.shape)}; (N, C, H, W) is expected")
    certainty = ClassCertainty(probabilities.shape[1], device=probabilities.device)
    certainty.update(probabilities)
    return certainty.compute()


def enough_pixels(pixels: Tensor, minimum_share: float) -> Tensor:
    """Guard for `select_policy` (inferred): does a class have this share of what the member predicts, and any pixel?

    From the claims of the members it keeps out members that never give a class; from the pixels of the distilled
    students, those that are certain of a handful of pixels.

    Args:
        pixels: (T, C) predicted pixels.
        minimum_share: in [0, 1).

    Returns:
        (T, C) bool.
    """
    if not 0 <= minimum_share < 1:
        raise AdaptSegError(f"minimum share {minimum_share} given; a share in [0, 1) is expected")
    return (pixels > 0) & (pixels >= minimum_share * pixels.sum(1, keepdim=True).double())


def select_policy(
    certainty: Tensor, *, allowed: Tensor | None = None, missing: Literal["raise", "nobody"] = "raise"
) -> Tensor:
    """For each class the member whose student is most certain of it (eq. 5), the first of equals.

    Args:
        certainty: (T, C), NaN where a member must not be chosen: it never predicts the class.
        allowed: (T, C) bool, False where a member lacks the class or a guard (`enough_pixels`) keeps it out.
        missing: a class without any candidate is an error, or gets nobody (-1) and no labels. (The release silently
            takes the first member.)

    Returns:
        (C,) int64 on the CPU, 0..T-1 or -1.
    """
    if certainty.ndim != 2 or len(certainty) == 0:
        raise AdaptSegError(f"certainty is {tuple(certainty.shape)}; at least one member's (T, C) is expected")
    if missing not in ("raise", "nobody"):
        raise AdaptSegError(f"missing is '{missing}'; raise or nobody is expected")
    candidates = _candidates(certainty, allowed).cpu()
    nobody = candidates.isneginf().all(0)
    if missing == "raise" and bool(nobody.any()):
        classes = [c for c, none in enumerate(nobody) if none]
        raise AdaptSegError(
            f"no member can be chosen for classes {classes}: none predicts them, or the guards keep all out; "
            "add a member, lower the minimum share, or give these classes to nobody"
        )
    return torch.where(nobody, NOBODY, likeliest(candidates, 0))


def policy_weights(certainty: Tensor, temperature: float, *, allowed: Tensor | None = None) -> Tensor:
    """A soft policy for `mean_probabilities` (inferred): softmax over members of certainty / temperature, which
    becomes `select_policy` as the temperature falls. Arguments as there; (T, C) float64, 0 where no member can be."""
    if not temperature > 0:
        raise AdaptSegError(f"temperature {temperature} given; a number above 0 is expected")
    return (_candidates(certainty, allowed) / temperature).softmax(0).nan_to_num(0.0)


def _candidates(certainty: Tensor, allowed: Tensor | None) -> Tensor:
    values = certainty.double().nan_to_num(-torch.inf, neginf=-torch.inf, posinf=torch.inf)
    if allowed is None:
        return values
    _require_allowed(allowed, *certainty.shape)
    return values.masked_fill(~allowed.to(values.device), -torch.inf)


def _of_class(c: int, member: int, labels: dict[int, Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
    if member == NOBODY:
        return torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values)
    return labels[member] == c, values


def _likeliest(probabilities: Tensor, allowed: Tensor | None) -> Tensor:
    """(H, W) of one member's (C, H, W) and (C,)."""
    if allowed is not None:
        probabilities = torch.where(allowed[:, None, None].to(probabilities.device), probabilities, -torch.inf)
    return likeliest(probabilities, 0)


def checked_policy(policy: Tensor, members: int, classes: int, allowed: Tensor | None = None) -> list[int]:
    """The policy as a list, if it covers every class with members that there are and that have the class."""
    if policy.shape != (classes,) or policy.is_floating_point():
        raise AdaptSegError(
            f"policy is {policy.dtype} {tuple(policy.shape)}; one member for each of the {classes} classes is expected"
        )
    chosen = [int(member) for member in policy]
    for c, member in enumerate(chosen):
        if not NOBODY <= member < members:
            raise AdaptSegError(
                f"policy: class {c} from member {member}; there are members 0..{members - 1}, and {NOBODY} = nobody"
            )
        if allowed is not None and member != NOBODY and not bool(allowed[member, c]):
            raise AdaptSegError(f"policy: class {c} from member {member}, which does not have it; choose another")
    return chosen


def require_members(probabilities: Tensor, allowed: Tensor | None = None) -> None:
    """Probabilities (T, C, H, W) and a mask (T, C) that fits them."""
    if probabilities.ndim != 4 or len(probabilities) == 0 or not probabilities.is_floating_point():
        raise AdaptSegError(
            f"probabilities are {probabilities.dtype} {tuple(probabilities.shape)}; floating (T, C, H, W) of at least "
            "one member is expected"
        )
    require_num_classes(probabilities.shape[1])
    if allowed is not None:
        _require_allowed(allowed, *probabilities.shape[:2])


def _require_allowed(allowed: Tensor, members: int, classes: int) -> None:
    if allowed.shape != (members, classes) or allowed.dtype != torch.bool:
        raise AdaptSegError(
            f"allowed is {allowed.dtype} {tuple(allowed.shape)}; bool ({members}, {classes}) is expected"
        )
