"""Self-training on an unlabelled target: DACS, DAFormer, HRDA and MIC are settings of one method.

DACS: Tranheden, Olsson, Pinto, Svensson, "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021.
DAFormer: Hoyer, Dai, Van Gool, CVPR 2022. MIC: Hoyer, Dai, Wang, Van Gool, "Masked Image Consistency", CVPR 2023.
Constants are those of the released code. Two things differ: every random draw belongs to a sample, not to a batch, and
shares are counted over the global batch, so that any number of processes trains alike; the teacher's batch norms use
the student's statistics (`teacher_norm: batch` for the released way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

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
from adaptseg.losses.reduce import any_over_ranks, global_mean, mean_over_ranks
from adaptseg.losses.ripu import boundary_consistency, negative_learning
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.frozen_features import FeatureDistance, FrozenFeatures
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.training_pass import TrainingPass, loss_names
from adaptseg.networks import Inference, Segmenter, resize_logits
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


class Lesson(NamedTuple):
    """What the student shall say of some images: train ids (B, H, W) int64, and what each pixel counts (B, H, W)."""

    labels: Tensor
    weights: Tensor


class SelfTraining(Method):
    """L = CE(source) + CE(ClassMix of source and target | teacher's labels) [+ masked consistency + feature distance].

    Pixel losses are means over *all* pixels, void and untrusted ones included, as released. Bought labels of the target
    replace pseudo-labels at full weight, so any acquisition lies over this method.

    State beyond the student's: the teacher and its number of updates, in the checkpoint.

    Args:
        network: factory of the student, called with the number of classes.
        class_table: filled in from the data.
        optimization: optimiser and schedule.
        inference: how whole scenes are predicted.
        init_from: checkpoint or run directory to start the student, and with it the teacher, from.
        seed: filled in from `seed_everything`.
        class_weights: of the cross-entropies on source, mixed and masked images, each solved for itself.
        acceleration: compilation and memory format of student and teacher.
        alpha: how slowly the teacher follows (DACS 0.99, DAFormer and MIC 0.999).
        teacher_norm: `copied` statistics of the student, or `batch` as released; see `EMATeacher`.
        burn_in: share of max_steps that learns from the source alone, while the teacher already follows: for networks
            that start from random weights, whose first labels are noise (inferred; published hosts start from ImageNet
            and use 0).
        confidence_threshold: probability above which a pseudo-label counts as confident (0.968).
        confidence_scope: the share of confident pixels weighs the pseudo-labels of the whole `batch` (released) or of
            each `image` by itself.
        mix_scope: ClassMix draws half of the classes of each `image` (the paper) or of the whole `batch` (DAFormer's
            release, admittedly an accident).
        jitter: colour jitter of mixed and masked images; null = none.
        blur: Gaussian blur of the same; null = none.
        masking: MIC's masked-image consistency; null = none.
        feature_distance: DAFormer's distance to ImageNet features; null = none. Needs pre-trained weights.
        consistency_weight: of RIPU's boundary consistency on the source.
        negative_weight: of RIPU's negative learning on the mixed image (inferred: RIPU has no mixed images).
        negative_threshold: probability below which a class counts as excluded.
        evaluate: the network that is scored and that scores the pool: `student` (as published) or `teacher`.
    """

    def __init__(
        self,
        *,
        network: Callable[[int], nn.Module],
        class_table: ClassTable,
        optimization: Optimization = Optimization(),
        inference: Inference = Inference(),
        init_from: str | None = None,
        seed: int = 0,
        class_weights: ClassWeights | None = None,
        acceleration: Acceleration = Acceleration(),
        alpha: float = 0.999,
        teacher_norm: TeacherNorm = "copied",
        burn_in: float = 0.0,
        confidence_threshold: float = 0.968,
        confidence_scope: Scope = "batch",
        mix_scope: Scope = "image",
        jitter: ColorJitter | None = ColorJitter(),
        blur: Blur | None = Blur(),
        masking: Masking | None = None,
        feature_distance: FeatureDistance | None = None,
        consistency_weight: float = 0.0,
        negative_weight: float = 0.0,
        negative_threshold: float = 0.05,
        evaluate: Literal["student", "teacher"] = "student",
    ) -> None:
        super().__init__(
            network=network,
            class_table=class_table,
            optimization=optimization,
            inference=inference,
            init_from=init_from,
            seed=seed,
            class_weights=class_weights,
            acceleration=acceleration,
        )
        if not 0 < confidence_threshold < 1:
            raise AdaptSegError(
                f"model.confidence_threshold is {confidence_threshold}; a probability inside (0, 1) is expected"
            )
        if not 0 <= burn_in < 1:
            raise AdaptSegError(f"model.burn_in is {burn_in}; a share of max_steps inside [0, 1) is expected")
        self.burn_in, self.burn_in_steps = burn_in, 0
        self.teacher = EMATeacher(self.student, alpha=alpha, norm=teacher_norm)
        self.confidence_threshold = confidence_threshold
        self.confidence_scope: Scope = confidence_scope
        self.mix_scope: Scope = mix_scope
        self.jitter, self.blur, self.masking = jitter, blur, masking
        self.consistency_weight, self.negative_weight = consistency_weight, negative_weight
        self.negative_threshold, self.evaluate = negative_threshold, evaluate
        self.frozen = None if feature_distance is None else FrozenFeatures(feature_distance, network, class_table)

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        passes = ("source", "mixed") if self.masking is None else ("source", "mixed", "masked")
        return loss_names(self.student, passes)

    def saved_networks(self) -> dict[str, tuple[str, Segmenter]]:
        return {**super().saved_networks(), "teacher": ("teacher.network.", self.teacher.network)}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.burn_in_steps = round(self.burn_in * self.trainer.max_steps)

    @property
    def evaluated(self) -> Segmenter:
        return self.student if self.evaluate == "student" else self.teacher.network

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.teacher.update(self.student)

    # ---- one step

    def step(self, batch: Batch) -> StepResult:
        source, target = _both_domains(batch)
        loss, logs = self._source_loss(source, batch.samples)
        if self.teacher.updates < self.burn_in_steps:
            return StepResult(loss, logs)
        self.descend(loss)
        lesson, logs["confidence"] = self._taught(target)
        loss, mixed_logs = self._mixed_loss(source, target, lesson, batch.samples)
        logs |= mixed_logs
        if self.masking is not None:
            self.descend(loss)
            masked = self._masked_loss(target, lesson, batch.samples)
            logs["masked"] = masked.detach()
            loss = self.masking.weight * masked
        return StepResult(loss, logs)

    def _source_loss(self, source: Labelled, samples: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.said("source", source.image, samples)
        loss = self._cross_entropy("source", said, Lesson(source.labels, torch.ones_like(said.log_p[:, 0])))
        logs = {"source": loss.detach()}
        if self.consistency_weight:
            consistency = global_mean(*boundary_consistency(said.log_p, source.labels))
            loss = loss + self.consistency_weight * consistency
            logs["consistency"] = consistency.detach()
        if self.frozen is not None:
            distance = self.frozen.distance(said.output, source)
            loss = loss + self.frozen.settings.weight * distance
            logs["feature_distance"] = distance.detach()
        return loss, logs

    @torch.no_grad()
    def _taught(self, target: Target) -> tuple[Lesson, Tensor]:
        """The teacher's labels of the plain target images with what was bought, and the mean confidence weight."""
        height, width = target.image.shape[-2:]
        logits = resize_logits(self.teacher.logits(target.image), (height, width))
        labels, confident = pseudo_labels(logits, self.confidence_threshold)
        share = mean_over_ranks(confident.float().mean())
        weights = confidence_weights(confident, target.trusted, scope=self.confidence_scope, share=share)
        return Lesson(*with_bought(labels, weights, target.bought)), share

    def _mixed_loss(
        self, source: Labelled, target: Target, lesson: Lesson, samples: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pasted = self._pasted(source.labels, samples)
        image = self._augmented(paste(pasted, source.image, target.image), "mixed", samples)
        labels = paste(pasted, source.labels, lesson.labels)
        weights = paste(pasted, torch.ones_like(lesson.weights), lesson.weights)
        said = self.said("mixed", image, samples)
        loss = self._cross_entropy("mixed", said, Lesson(labels, weights))
        logs = {"mixed": loss.detach()}
        if self.negative_weight:
            negative = global_mean(*negative_learning(said.log_p, self.negative_threshold))
            loss = loss + self.negative_weight * negative
            logs["negative"] = negative.detach()
        return loss, logs

    def _masked_loss(self, target: Target, lesson: Lesson, samples: Sequence[int]) -> Tensor:
        assert self.masking is not None
        image = self._augmented(target.image, "masked", samples) if self.masking.augment else target.image
        size = (image.shape[-2], image.shape[-1])
        draws = uniform_draws(self.seed, "mask", samples, grid_size(size, self.masking.block))
        kept = block_mask(draws.to(image.device, non_blocking=True), size, self.masking.ratio)
        return self._cross_entropy("masked", self.said("masked", image * kept[:, None], samples), lesson)

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

    def _cross_entropy(self, name: str, said: TrainingPass, lesson: Lesson) -> Tensor:
        """Mean over all pixels, of each prediction those it speaks of; every process holds equally many."""
        losses: list[Tensor] = []
        for prediction in said.predictions:
            labels, weights = prediction.term.view(lesson.labels), prediction.term.view(lesson.weights)
            class_weights = self.weights_of(prediction.called(name), prediction.log_p, labels)
            total, _ = negative_log_likelihood(
                prediction.log_p, labels, class_weights=class_weights, pixel_weights=weights
            )
            losses.append(prediction.term.weight * total / labels.numel())
        return torch.stack(losses).sum()


def _both_domains(batch: Batch) -> tuple[Labelled, Target]:
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
