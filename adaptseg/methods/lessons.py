"""What a teacher tells a student about target images, and how the student shows that it learnt it: pseudo-labels,
images mixed of both domains, masked images.

Shared by every method that learns from a teacher's labels, whoever the teacher and however many the students are.
Sources and constants: see `adaptseg.methods.self_training`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from adaptseg.augment.classmix import choose_half, class_mask, classes_present, paste
from adaptseg.augment.color import DRAWS, Blur, ColorJitter, Colors, strong_augmentation
from adaptseg.augment.masking import block_mask, grid_size, hidden_cells
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.pseudo_labels import Scope, confidence_weights, pseudo_labels, with_bought
from adaptseg.losses.reduce import any_over_ranks, mean_over_ranks
from adaptseg.methods.training_pass import TrainingPass
from adaptseg.networks import Segmenter, require, resize_logits_no_grad
from adaptseg.networks.teacher import TeacherNorm


@dataclass(frozen=True)
class Masking:
    """Masked-image consistency (MIC): the student labels target images of which it sees only some blocks.

    Attributes:
        block: side of a block in pixels (64 at Cityscapes' full size, 32 at half of it); or `token`: the network's own
            tokens, each of which gives way to its mask token (VFM-UDA), where its encoder has tokens.
        ratio: share of blocks that are hidden (0.7).
        weight: of the loss (1).
        augment: jitter and blur the masked image too (off for Cityscapes to ACDC and Dark Zurich).
    """

    block: int | Literal["token"] = 64
    ratio: float = 0.7
    weight: float = 1.0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.block != "token" and (isinstance(self.block, str) or self.block < 1):
            raise AdaptSegError(f"model.masking.block is {self.block}; 1 or more pixels, or 'token', are expected")
        if not 0 < self.ratio < 1:
            raise AdaptSegError(f"model.masking.ratio is {self.ratio}; a share inside (0, 1) is expected")
        if self.weight <= 0:
            raise AdaptSegError(
                f"model.masking.weight is {self.weight}; a positive number is expected, or model.masking: null"
            )

    def check(self, student: Segmenter) -> None:
        """Raise AdaptSegError unless `student` can be shown images masked like this."""
        if self.block == "token":
            require(student, "token_mask", "model.masking with block: token")


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

    def lessons(self, seed: int) -> Lessons:
        """How such a host makes lessons."""
        return Lessons(seed, self.confidence_threshold, self.confidence_scope, self.jitter, self.blur)


class Lesson(NamedTuple):
    """What a student shall say of some images: train ids (B, H, W) int64, and what each pixel counts (B, H, W)."""

    labels: Tensor
    weights: Tensor


class Masked(NamedTuple):
    """Images (B, 3, H, W) of which a part is hidden: in the picture, or by a mask (B, h, w) bool of hidden tokens."""

    image: Tensor
    token_mask: Tensor | None


class Exercise(NamedTuple):
    """Images (B, 3, H, W), the lesson they teach, and where they show the source (B, H, W) bool."""

    image: Tensor
    lesson: Lesson
    pasted: Tensor


@dataclass(frozen=True)
class Lessons:
    """How lessons are made of target images, and what a student is shown of them.

    Every random draw belongs to a sample, so any number of processes draws alike.

    Attributes:
        seed: of the draws.
        confidence_threshold, confidence_scope, jitter, blur: as in `SelfTraining`.
    """

    seed: int
    confidence_threshold: float
    confidence_scope: Scope
    jitter: ColorJitter | None
    blur: Blur | None

    @torch.no_grad()
    def taught(self, target: Target, logits: Tensor, *, fused: Tensor | None = None) -> tuple[Lesson, Tensor]:
        """A teacher's labels of the plain target images with what was bought, and the global share () of confident
        pixels. A collective.

        Args:
            target: the images with their trusted pixels and bought labels.
            logits: (B, C, h, w) of the teacher.
            fused: labels (B, H, W), 255 = none, in place of the likeliest classes of `logits`, which still say how
                confident the teacher is.
        """
        size = (target.image.shape[-2], target.image.shape[-1])
        # One image at a time: on a CPU, getting and giving back maps of a whole batch takes as long as the work.
        each = [
            pseudo_labels(resize_logits_no_grad(image, size), self.confidence_threshold) for image in logits.split(1)
        ]
        labels, confident = (torch.cat(parts) for parts in zip(*each, strict=True))
        labels = labels if fused is None else fused
        share = mean_over_ranks(confident.float().mean())
        weights = confidence_weights(confident, target.trusted, scope=self.confidence_scope, share=share)
        return Lesson(*with_bought(labels, weights, target.bought)), share

    def masked(self, target: Target, masking: Masking, samples: Sequence[int], student: Segmenter) -> Masked:
        """The target images, augmented if asked for, with most blocks in the mean colour or most tokens hidden.

        Args:
            target: the images.
            masking: what of them is hidden.
            samples: sample numbers.
            student: who will look at them; tokens are its own.
        """
        image = self._augmented(target.image, "masked", samples) if masking.augment else target.image
        size = (image.shape[-2], image.shape[-1])
        grid = student.token_grid(size) if masking.block == "token" else grid_size(size, masking.block)
        draws = uniform_draws(self.seed, "mask", samples, grid).to(image.device, non_blocking=True)
        if masking.block == "token":
            return Masked(image, hidden_cells(draws, masking.ratio))
        return Masked(image * block_mask(draws, size, masking.ratio)[:, None], None)

    def _augmented(self, images: Tensor, stream: str, samples: Sequence[int]) -> Tensor:
        return colored(images, Colors(self.jitter, self.blur), self.seed, stream, samples)


@dataclass(frozen=True)
class MixedLessons(Lessons):
    """Lessons that are practised on images mixed of both domains, too.

    Attributes:
        mix_scope: as in `SelfTraining`.
        num_classes: C.
    """

    mix_scope: Scope
    num_classes: int

    def __post_init__(self) -> None:
        if not 0 < self.confidence_threshold < 1:
            raise AdaptSegError(
                f"model.confidence_threshold is {self.confidence_threshold}; a probability inside (0, 1) is expected"
            )

    def mixed(self, source: Labelled, target: Target, lesson: Lesson, samples: Sequence[int]) -> Exercise:
        """ClassMix: half of the source's classes pasted onto the target, with strong colours."""
        pasted = self._pasted(source.labels, samples)
        image = self._augmented(paste(pasted, source.image, target.image), "mixed", samples)
        labels = paste(pasted, source.labels, lesson.labels)
        weights = paste(pasted, torch.ones_like(lesson.weights), lesson.weights)
        return Exercise(image, Lesson(labels, weights), pasted)

    def _pasted(self, labels: Tensor, samples: Sequence[int]) -> Tensor:
        """(B, H, W) bool: where the source lies over the target."""
        present = classes_present(labels, self.num_classes)
        if self.mix_scope == "batch":
            present = any_over_ranks(present.any(0, keepdim=True))
        priority = uniform_draws(self.seed, "classmix", samples, (present.shape[1],))
        return class_mask(labels, choose_half(present, priority.to(labels.device, non_blocking=True)))


def colored(images: Tensor, colors: Colors | None, seed: int, stream: str, samples: Sequence[int]) -> Tensor:
    """Normalised images (B, 3, H, W) in other colours; as they are for None.

    Args:
        seed, stream, samples: whose draws decide; see `uniform_draws`.
    """
    if colors is None:
        return images
    draws = uniform_draws(seed, f"augment/{stream}", samples, (DRAWS,))
    return strong_augmentation(
        images, draws, jitter=colors.jitter, blur=colors.blur, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def source_lesson(source: Labelled) -> Lesson:
    """The source's labels, each pixel at full weight."""
    return Lesson(source.labels, torch.ones_like(source.labels, dtype=torch.float32))


def mean_cross_entropy(log_p: Tensor, lesson: Lesson, class_weights: Tensor | None) -> Tensor:
    """Mean over *all* pixels, void and untrusted ones included; every process holds equally many.

    Args:
        log_p: (B, C, H, W) log-softmax.
        lesson: what it shall say.
        class_weights: (C,); None = 1.
    """
    total, _ = negative_log_likelihood(log_p, lesson.labels, class_weights=class_weights, pixel_weights=lesson.weights)
    return total / lesson.labels.numel()


def taught_cross_entropy(
    name: str, said: TrainingPass, lesson: Lesson, weights_of: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Tensor:
    """`mean_cross_entropy` of a pass: of each of its predictions over the pixels it speaks of, at its weight.

    Args:
        name: of the pass.
        said: the pass.
        lesson: what the network shall say of its images.
        weights_of: class weights (C,) or None, from the name of a loss, log-softmax and labels; `Method.weights_of`.
    """
    losses: list[Tensor] = []
    for prediction in said.predictions:
        seen = Lesson(prediction.term.view(lesson.labels), prediction.term.view(lesson.weights))
        weights = weights_of(prediction.called(name), prediction.log_p, seen.labels)
        losses.append(prediction.term.weight * mean_cross_entropy(prediction.log_p, seen, weights))
    return torch.stack(losses).sum()


def both_domains(batch: Batch, who: str) -> tuple[Labelled, Target]:
    """Source and target, or an AdaptSegError that says which of them `who` misses."""
    if batch.source is None or batch.target is None:
        missing = "source" if batch.source is None else "target"
        raise AdaptSegError(f"{who} needs both domains: data.{missing} is missing")
    return batch.source, batch.target


def domains_to_mix(batch: Batch, who: str) -> tuple[Labelled, Target]:
    """`both_domains`, whose images must be of one size."""
    source, target = both_domains(batch, who)
    if source.image.shape != target.image.shape:
        sizes = ["x".join(map(str, domain.image.shape[-2:])) for domain in (source, target)]
        raise AdaptSegError(
            f"{who} mixes source images of {sizes[0]} pixels into target images of {sizes[1]}: set data.crop, or "
            "data.source_size and data.target_size, so that they agree"
        )
    return source, target
