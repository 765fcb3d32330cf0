"""DUDA, stage 1: a large teacher, a large student and a small student adapt together (arXiv 2504.09814, WACV 2026).

Self-training ties teacher and student to one architecture, so a small student gets a small teacher and poor labels.
Here the teacher is the average of a *large* student, and its labels teach both students. Stated: the three networks,
the average, cross-entropy on source and pseudo-labels for both students, distillation to the small one. The equations
could not be read: what a docstring calls inferred is our reading. Stage 2: `adaptseg.methods.fine_tuning`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from adaptseg.augment.color import Blur, ColorJitter
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.errors import AdaptSegError
from adaptseg.losses.distillation import mean_log_probabilities
from adaptseg.losses.pseudo_labels import Scope
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import StepResult, made, start_from
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.distillation import Distillation
from adaptseg.methods.frozen_features import FeatureDistance
from adaptseg.methods.frozen_teachers import FrozenTeachers, Teacher
from adaptseg.methods.lessons import Exercise, Masking, domains_to_mix, source_lesson, taught_cross_entropy
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.self_training import SelfTraining
from adaptseg.methods.training_pass import loss_names
from adaptseg.networks import Inference, Segmenter, resize_logits_no_grad
from adaptseg.networks.teacher import TeacherNorm


class DUDA(SelfTraining):
    """Self-training of a large network, with a small student beside it.

    Large student: the losses of `SelfTraining` with all its switches. Small student: CE(source) + CE(the same mixed
    images | the same labels) + distillation. The small one touches neither large student nor teacher. Its network is
    `student` wherever one network is asked for: it is scored, scores the pool, and is exported; the others are
    "large" and "teacher".

    State beyond the small student's: large student, teacher and its number of updates, in the checkpoint.

    Args:
        network: factory of the small student, called with the number of classes.
        large: factory of the large student, and with it of the teacher.
        class_table: filled in from the data.
        optimization: optimiser and schedule of both students; one optimiser, groups of their own.
        inference: how whole scenes are predicted.
        init_from: checkpoint or run directory whose student the small student starts from.
        large_from: checkpoint or run directory whose *student* the large student starts from, and the teacher with it.
        seed: filled in from `seed_everything`.
        class_weights: of all cross-entropies of both students, each solved for itself.
        acceleration: compilation and memory format of all networks.
        distillation: from teacher to small student; null = its labels alone.
        teachers: finished networks that teach as well; the mean of their probabilities and the teacher's counts.
        small_masking: the small student also learns from masked images (inferred: the paper's form is not known; off =
            masking belongs to the host, as feature distance and RIPU's losses do).
        alpha, teacher_norm, burn_in, confidence_threshold, confidence_scope, mix_scope, jitter, blur, masking,
            feature_distance, consistency_weight, negative_weight, negative_threshold: see `SelfTraining`.
        evaluate: the network that is scored and that scores the pool.
    """

    first_network = ("model.large", "model.large_from")

    def __init__(
        self,
        *,
        network: Callable[[int], nn.Module],
        large: Callable[[int], nn.Module],
        class_table: ClassTable,
        optimization: Optimization = Optimization(),
        inference: Inference = Inference(),
        init_from: str | None = None,
        large_from: str | None = None,
        seed: int = 0,
        class_weights: ClassWeights | None = None,
        acceleration: Acceleration = Acceleration(),
        distillation: Distillation | None = Distillation(),
        teachers: list[Teacher] | None = None,
        small_masking: bool = False,
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
        evaluate: Literal["student", "large", "teacher"] = "student",
    ) -> None:
        super().__init__(
            network=large,
            class_table=class_table,
            optimization=optimization,
            inference=inference,
            init_from=large_from,
            seed=seed,
            class_weights=class_weights,
            acceleration=acceleration,
            alpha=alpha,
            teacher_norm=teacher_norm,
            burn_in=burn_in,
            confidence_threshold=confidence_threshold,
            confidence_scope=confidence_scope,
            mix_scope=mix_scope,
            jitter=jitter,
            blur=blur,
            masking=masking,
            feature_distance=feature_distance,
            consistency_weight=consistency_weight,
            negative_weight=negative_weight,
            negative_threshold=negative_threshold,
        )
        if distillation is not None and distillation.gradual == "chain" and large_from is None:
            raise AdaptSegError(
                "model.distillation.gradual is 'chain', but the large network starts anew: name the training of the "
                "larger pair, whose student it is, in model.large_from, or choose 'online'"
            )
        if small_masking and masking is None:
            raise AdaptSegError("model.small_masking needs masked images: set model.masking")
        # The host above built the network that the teacher averages; from here on the student is the small one.
        self.large = self.student
        self.student = made(network, class_table, "model.network")
        acceleration.arrange(self.student)
        if small_masking and masking is not None:
            masking.check(self.student)
        if init_from is not None:
            start_from(self.student, init_from, class_table, keys=("model.network", "model.init_from"))
        self.distillation, self.small_masking = distillation, small_masking
        self.colleagues = FrozenTeachers(teachers, class_table) if teachers else None
        self.scored: Literal["student", "large", "teacher"] = evaluate

    @property
    def leader(self) -> Segmenter:
        return self.large

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        passes = ["small_source", "small_mixed", *(["small_masked"] if self.small_masking else [])]
        return (*super().weighted_losses, *loss_names(self.student, passes))

    def saved_networks(self) -> dict[str, tuple[str, Segmenter]]:
        return {**super().saved_networks(), "large": ("large.", self.large)}

    @property
    def evaluated(self) -> Segmenter:
        return {"student": self.student, "large": self.large, "teacher": self.teacher.network}[self.scored]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.distillation is not None:
            self.distillation.require_steps(self.trainer.max_steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = self.optimization.build(self.student, self.trainer.max_steps, beside=self.large)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- one step

    def step(self, batch: Batch) -> StepResult:
        """The last loss holds one pass of each student: under DDP every trainable parameter must have a part in it."""
        source, target = domains_to_mix(batch, "DUDA")
        samples = batch.samples
        loss, logs = self._source_loss(source, samples)
        small = self._small_source_loss(source, samples, logs)
        if self.teacher.updates < self.burn_in_steps:
            return StepResult(loss + small, logs)
        self.descend(loss)
        self.descend(small)
        del loss, small  # and with them what is left of their graphs
        logits = self._teacher_logits(target)
        lesson, logs["confidence"] = self.lessons.taught(target, logits)
        mixed = self.lessons.mixed(source, target, lesson, samples)
        if self.small_masking:
            assert self.masking is not None
            image, token_mask = self.lessons.masked(target, self.masking, samples, self.student)
            said = self.said("small_masked", image, samples, token_mask=token_mask)
            masked = taught_cross_entropy("small_masked", said, lesson, self.weights_of)
            logs["small_masked"] = masked.detach()
            self.descend(self.masking.weight * masked)
            del said, masked
        loss, target_logs = self._target_loss(mixed, target, lesson, samples)
        small = self._small_mixed_loss(mixed, target, samples, logits, logs)
        return StepResult(loss + small, {**logs, **target_logs})

    @torch.no_grad()
    def _teacher_logits(self, target: Target) -> Tensor:
        """(B, C, H, W) float32 at the size of the plain target images; the mean with those of `teachers`, if any."""
        height, width = target.image.shape[-2:]
        own = resize_logits_no_grad(self.teacher.logits(target.image), (height, width))
        if self.colleagues is None:
            return own
        said = [own.log_softmax(1), *self.colleagues.log_probabilities(target.image)]
        return mean_log_probabilities(said, [1.0, *self.colleagues.weights])

    def _small_source_loss(self, source: Labelled, samples: Sequence[int], logs: dict[str, Tensor]) -> Tensor:
        said = self.said("small_source", source.image, samples)
        loss = taught_cross_entropy("small_source", said, source_lesson(source), self.weights_of)
        logs["small_source"] = loss.detach()
        return loss

    def _small_mixed_loss(
        self, mixed: Exercise, target: Target, samples: Sequence[int], logits: Tensor, logs: dict[str, Tensor]
    ) -> Tensor:
        said = self.said("small_mixed", mixed.image, samples)
        loss = taught_cross_entropy("small_mixed", said, mixed.lesson, self.weights_of)
        logs["small_mixed"] = loss.detach()
        if self.distillation is not None:
            divergence = self.distillation.loss(logits.log_softmax(1), said.log_p, mixed, target)
            logs["distillation"] = divergence.detach()
            # The teacher counts the steps; the number is the same on every process and after a resume.
            loss = loss + self.distillation.weight_at(self.teacher.updates) * divergence
        return loss
