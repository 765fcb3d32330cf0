"""What a student is shown and what it shall say of it: a teacher's labels, images mixed of both domains, masked images.

Shared by every method that learns from a teacher's labels, whoever the teacher and however many the students are.
Sources and constants: see `adaptseg.methods.self_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adaptseg.augment.classmix import choose_half, class_mask, classes_present, paste
from adaptseg.augment.color import DRAWS, Blur, ColorJitter, strong_augmentation
from adaptseg.augment.masking import block_mask, grid_size
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.pseudo_labels import Scope, confidence_weights, pseudo_labels, with_bought
from adaptseg.losses.reduce import any_over_ranks, mean_over_ranks
from adaptseg.networks import Output, resize_logits


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


class Lesson(NamedTuple):
    """What a student shall say of some images: train ids (B, H, W) int64, and what each pixel counts (B, H, W)."""

    labels: Tensor
    weights: Tensor


class Exercise(NamedTuple):
    """Images (B, 3, H, W), the lesson they teach, and where they show the source (B, H, W) bool."""

    image: Tensor
    lesson: Lesson
    pasted: Tensor


@dataclass(frozen=True)
class Lessons:
    """How a method makes lessons and exercises; arguments as in `SelfTraining`, which names them in its errors.

    Every random draw belongs to a sample, so any number of processes draws alike.
    """

    class_table: ClassTable
    seed: int
    confidence_threshold: float
    confidence_scope: Scope
    mix_scope: Scope
    jitter: ColorJitter | None
    blur: Blur | None

    def __post_init__(self) -> None:
        if not 0 < self.confidence_threshold < 1:
            raise AdaptSegError(
                f"model.confidence_threshold is {self.confidence_threshold}; a probability inside (0, 1) is expected"
            )

    @torch.no_grad()
    def taught(self, target: Target, logits: Tensor, *, fused: Tensor | None = None) -> tuple[Lesson, Tensor]:
        """A teacher's labels of the plain target images with what was bought, and the mean confidence weight ().

        Args:
            target: the images' trusted pixels and bought labels.
            logits: (B, C, H, W) of the teacher at the size of the images.
            fused: labels (B, H, W), 255 = none, in place of the likeliest classes of `logits`, which still say how
                confident the teacher is.
        """
        labels, confident = pseudo_labels(logits, self.confidence_threshold)
        labels = labels if fused is None else fused
        share = mean_over_ranks(confident.float().mean())
        weights = confidence_weights(confident, target.trusted, scope=self.confidence_scope, share=share)
        return Lesson(*with_bought(labels, weights, target.bought)), share

    def mixed(self, source: Labelled, target: Target, lesson: Lesson, samples: Sequence[int]) -> Exercise:
        """Half of the source's classes pasted onto the target, with strong colours."""
        pasted = self._pasted(source.labels, samples)
        image = self._augmented(paste(pasted, source.image, target.image), "mixed", samples)
        labels = paste(pasted, source.labels, lesson.labels)
        weights = paste(pasted, torch.ones_like(lesson.weights), lesson.weights)
        return Exercise(image, Lesson(labels, weights), pasted)

    def masked(self, target: Target, masking: Masking, samples: Sequence[int]) -> Tensor:
        """The target images with most of their blocks hidden (B, 3, H, W)."""
        image = self._augmented(target.image, "masked", samples) if masking.augment else target.image
        size = (image.shape[-2], image.shape[-1])
        draws = uniform_draws(self.seed, "mask", samples, grid_size(size, masking.block))
        kept = block_mask(draws.to(image.device, non_blocking=True), size, masking.ratio)
        return image * kept[:, None]

    def _pasted(self, labels: Tensor, samples: Sequence[int]) -> Tensor:
        """(B, H, W) bool: where ClassMix puts the source over the target."""
        present = classes_present(labels, self.class_table.num_classes)
        if self.mix_scope == "batch":
            present = any_over_ranks(present.any(0, keepdim=True))
        priority = uniform_draws(self.seed, "classmix", samples, (present.shape[1],))
        return class_mask(labels, choose_half(present, priority.to(labels.device, non_blocking=True)))

    def _augmented(self, images: Tensor, stream: str, samples: Sequence[int]) -> Tensor:
        draws = uniform_draws(self.seed, f"augment/{stream}", samples, (DRAWS,))
        return strong_augmentation(
            images, draws, jitter=self.jitter, blur=self.blur, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )


def log_probabilities(output: Output, images: Tensor) -> Tensor:
    """(B, C, H, W) float32 log-softmax at the size of the images."""
    height, width = images.shape[-2:]
    return resize_logits(output.logits.float(), (height, width)).log_softmax(1)


def source_lesson(source: Labelled) -> Lesson:
    """The source's labels, each pixel at full weight."""
    return Lesson(source.labels, torch.ones_like(source.image[:, 0]))


def taught_cross_entropy(log_p: Tensor, lesson: Lesson, class_weights: Tensor | None) -> Tensor:
    """Mean over *all* pixels, void and untrusted ones included, as released; every process holds equally many.

    Args:
        log_p: (B, C, H, W) log-softmax.
        lesson: what it shall say.
        class_weights: (C,) or None = 1.
    """
    total, _ = negative_log_likelihood(log_p, lesson.labels, class_weights=class_weights, pixel_weights=lesson.weights)
    return total / lesson.labels.numel()


def both_domains(batch: Batch) -> tuple[Labelled, Target]:
    """Source and target of a batch; AdaptSegError if one is missing or their images differ in size."""
    if batch.source is None or batch.target is None:
        missing = "source" if batch.source is None else "target"
        raise AdaptSegError(f"self-training needs both domains: data.{missing} is missing")
    if batch.source.image.shape != batch.target.image.shape:
        sizes = ["x".join(map(str, domain.image.shape[-2:])) for domain in (batch.source, batch.target)]
        raise AdaptSegError(
            f"self-training mixes source images of {sizes[0]} pixels into target images of {sizes[1]}: set data.crop, "
            "or data.source_size and data.target_size, so that they agree"
        )
    return batch.source, batch.target
