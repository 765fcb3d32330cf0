"""What a teacher tells a student about target images, and how the student shows that it learnt it: pseudo-labels,
strong augmentation, masked images. Self-training and the hosts of masked-image consistency share these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adaptseg.augment.color import DRAWS, Blur, ColorJitter, strong_augmentation
from adaptseg.augment.masking import block_mask, grid_size
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.pseudo_labels import Scope, confidence_weights, pseudo_labels, with_bought
from adaptseg.losses.reduce import mean_over_ranks
from adaptseg.networks import resize_logits
from adaptseg.networks.teacher import EMATeacher, TeacherNorm


@dataclass(frozen=True)
class Masking:
    """Masked-image consistency (MIC): the student labels target images of which it sees only some blocks.

    Attributes:
        block: side of a block in pixels (64 at Cityscapes' full size, 32 at half of it).
        ratio: share of blocks that are hidden (0.7).
        weight: of the loss (1).
        augment: jitter and blur the masked image too (off for Cityscapes to ACDC and Dark Zurich).
    """

    block: int = 64
    ratio: float = 0.7
    weight: float = 1.0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.block < 1:
            raise AdaptSegError(f"model.masking.block is {self.block}; 1 or more pixels are expected")
        if not 0 < self.ratio < 1:
            raise AdaptSegError(f"model.masking.ratio is {self.ratio}; a share inside (0, 1) is expected")
        if self.weight <= 0:
            raise AdaptSegError(
                f"model.masking.weight is {self.weight}; a positive number is expected, or model.masking: null"
            )


@dataclass(frozen=True)
class TaughtMasking(Masking):
    """Masked-image consistency over a host that has no teacher: it brings its own.

    Attributes:
        alpha: how slowly the teacher follows (0.999).
        teacher_norm: `copied` statistics of the student, or `batch` as released; see `EMATeacher`.
        confidence_threshold: probability from which a pseudo-label counts as confident (0.968).
        confidence_scope: the share of confident pixels weighs the pseudo-labels of the whole `batch` (released) or of
            each `image` by itself.
        jitter: colour jitter of masked images; null = none.
        blur: Gaussian blur of the same; null = none.
    """

    alpha: float = 0.999
    teacher_norm: TeacherNorm = "copied"
    confidence_threshold: float = 0.968
    confidence_scope: Scope = "batch"
    jitter: ColorJitter | None = ColorJitter()
    blur: Blur | None = Blur()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise AdaptSegError(f"model.masking.alpha is {self.alpha}; a share inside [0, 1) is expected")
        if not 0 < self.confidence_threshold < 1:
            raise AdaptSegError(
                f"model.masking.confidence_threshold is {self.confidence_threshold}; a probability inside (0, 1) is "
                "expected"
            )


class Lesson(NamedTuple):
    """What the student shall say of some images: train ids (B, H, W) int64, and what each pixel counts (B, H, W)."""

    labels: Tensor
    weights: Tensor


@torch.no_grad()
def lesson_of(teacher: EMATeacher, target: Target, *, threshold: float, scope: Scope) -> tuple[Lesson, Tensor]:
    """The teacher's labels of the plain target images with what was bought, and the global share () of confident
    pixels. A collective.

    Args:
        threshold, scope: see `pseudo_labels` and `confidence_weights`.
    """
    height, width = target.image.shape[-2:]
    logits = resize_logits(teacher.logits(target.image), (height, width))
    labels, confident = pseudo_labels(logits, threshold)
    share = mean_over_ranks(confident.float().mean())
    weights = confidence_weights(confident, target.trusted, scope=scope, share=share)
    return Lesson(*with_bought(labels, weights, target.bought)), share


def augmented(
    images: Tensor, stream: str, seed: int, samples: Sequence[int], *, jitter: ColorJitter | None, blur: Blur | None
) -> Tensor:
    """Normalised images (B, 3, H, W) with the jitter and blur that belong to (seed, stream, sample)."""
    draws = uniform_draws(seed, f"augment/{stream}", samples, (DRAWS,))
    return strong_augmentation(images, draws, jitter=jitter, blur=blur, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def masked(
    images: Tensor,
    masking: Masking,
    seed: int,
    samples: Sequence[int],
    *,
    jitter: ColorJitter | None,
    blur: Blur | None,
) -> Tensor:
    """What the student sees of target images (B, 3, H, W): augmented if asked for, most blocks in the mean colour."""
    if masking.augment:
        images = augmented(images, "masked", seed, samples, jitter=jitter, blur=blur)
    size = (images.shape[-2], images.shape[-1])
    draws = uniform_draws(seed, "mask", samples, grid_size(size, masking.block))
    kept = block_mask(draws.to(images.device, non_blocking=True), size, masking.ratio)
    return images * kept[:, None]


def log_probabilities_of(logits: Tensor, images: Tensor) -> Tensor:
    """Logits (B, C, h, w) to their float32 log-softmax (B, C, H, W) at the size of the images."""
    height, width = images.shape[-2:]
    return resize_logits(logits.float(), (height, width)).log_softmax(1)


def mean_cross_entropy(log_p: Tensor, lesson: Lesson, class_weights: Tensor | None) -> Tensor:
    """Mean over *all* pixels, void and untrusted ones included; every process holds equally many."""
    total, _ = negative_log_likelihood(log_p, lesson.labels, class_weights=class_weights, pixel_weights=lesson.weights)
    return total / lesson.labels.numel()


def both_domains(batch: Batch, who: str) -> tuple[Labelled, Target]:
    """Source and target, or an AdaptSegError that says which of them `who` misses."""
    if batch.source is None or batch.target is None:
        missing = "source" if batch.source is None else "target"
        raise AdaptSegError(f"{who} needs both domains: data.{missing} is missing")
    return batch.source, batch.target
