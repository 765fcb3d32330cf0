"""DUDA, stage 2: the small student alone is fine-tuned by frozen teachers; classes it adapted poorly weigh more.

That there is such a stage and that its class weights come from the inconsistency of large and small network is stated;
that the large networks are frozen in it, and the weight of each loss, is inferred.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adaptseg.augment.color import Blur, ColorJitter
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch
from adaptseg.errors import AdaptSegError
from adaptseg.losses.distillation import mean_log_probabilities
from adaptseg.losses.pseudo_labels import Scope
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.distillation import Distillation
from adaptseg.methods.frozen_teachers import FrozenTeachers, Fusion, Teacher
from adaptseg.methods.lessons import MixedLessons, domains_to_mix, source_lesson, taught_cross_entropy
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.training_pass import loss_names
from adaptseg.networks import Inference


class FineTuning(Method):
    """L = w_s CE(source) + CE(ClassMix of source and target | frozen teachers' labels) + distillation.

    With `class_weights: InconsistencyWeights` this is DUDA's stage 2; without any, plain distillation.

    State: the student's weights alone. The teachers are read from their files, which must still exist at a resume.

    Args:
        network: factory of the student, called with the number of classes.
        teachers: finished networks, at least one; their mean probability teaches (inferred).
        class_table: filled in from the data.
        optimization: optimiser and schedule.
        inference: how whole scenes are predicted.
        init_from: run directory or checkpoint of stage 1, whose student is fine-tuned.
        from_scratch: the student starts as `network` makes it, in place of `init_from`: distillation after the fact,
            a baseline and not DUDA.
        seed: filled in from `seed_everything`.
        class_weights: of all losses, those of distillation included.
        acceleration: compilation and memory format of the student.
        fusion: labels by several teachers in another way than the mean; the distillation keeps the mean.
        distillation: from teachers to student; null = their labels alone. Its ramp counts the steps of this stage.
        source_weight: of the source's cross-entropy (inferred: 1).
        confidence_threshold, confidence_scope, mix_scope, jitter, blur: see `SelfTraining`.
    """

    def __init__(
        self,
        *,
        network: Callable[[int], nn.Module],
        teachers: list[Teacher],
        class_table: ClassTable,
        optimization: Optimization = Optimization(),
        inference: Inference = Inference(),
        init_from: str | None = None,
        from_scratch: bool = False,
        seed: int = 0,
        class_weights: ClassWeights | None = None,
        acceleration: Acceleration = Acceleration(),
        fusion: Fusion | None = None,
        distillation: Distillation | None = Distillation(),
        source_weight: float = 1.0,
        confidence_threshold: float = 0.968,
        confidence_scope: Scope = "batch",
        mix_scope: Scope = "image",
        jitter: ColorJitter | None = ColorJitter(),
        blur: Blur | None = Blur(),
    ) -> None:
        if (init_from is None) != from_scratch:
            raise AdaptSegError(
                "fine-tuning continues a small student: name the run of stage 1 in model.init_from, or set "
                f"model.from_scratch: true for plain distillation; they are {init_from} and {from_scratch}"
            )
        if not teachers:
            raise AdaptSegError("model.teachers is empty: fine-tuning needs the run of stage 1, or another teacher")
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
        if source_weight < 0:
            raise AdaptSegError(f"model.source_weight is {source_weight}; 0 or more is expected")
        if distillation is not None and distillation.gradual == "chain":
            raise AdaptSegError("model.distillation.gradual 'chain' belongs to stage 1; use 'online' or 'ramp' here")
        self.lessons = MixedLessons(
            seed, confidence_threshold, confidence_scope, jitter, blur, mix_scope, class_table.num_classes
        )
        self.distillation, self.source_weight, self.fusion = distillation, source_weight, fusion
        self.teachers = FrozenTeachers(teachers, class_table)
        if fusion is not None:
            fusion.check(len(teachers), class_table.num_classes)

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        return loss_names(self.student, ("source", "mixed"))

    @property
    def descends(self) -> bool:
        return self.source_weight > 0

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.distillation is not None:
            self.distillation.require_steps(self.trainer.max_steps)

    def step(self, batch: Batch) -> StepResult:
        source, target = domains_to_mix(batch, "fine-tuning")
        logs: dict[str, Tensor] = {}
        if self.source_weight:
            said = self.said("source", source.image, batch.samples)
            loss = taught_cross_entropy("source", said, source_lesson(source), self.weights_of)
            logs["source"] = loss.detach()
            self.descend(self.source_weight * loss)
            del said, loss  # and with them what is left of their graph
        each = self.teachers.log_probabilities(target.image)
        teacher_log_p = mean_log_probabilities(each, self.teachers.weights)
        fused = None if self.fusion is None else self.fusion.labels(torch.stack(each).exp())
        lesson, logs["confidence"] = self.lessons.taught(target, teacher_log_p, fused=fused)
        mixed = self.lessons.mixed(source, target, lesson, batch.samples)
        said = self.said("mixed", mixed.image, batch.samples)
        loss = taught_cross_entropy("mixed", said, mixed.lesson, self.weights_of)
        logs["mixed"] = loss.detach()
        if self.distillation is not None:
            weights = None if self.class_weights is None else self.class_weights.latest["mixed"]
            divergence = self.distillation.loss(teacher_log_p, said.log_p, mixed, target, class_weights=weights)
            logs["distillation"] = divergence.detach()
            loss = loss + self.distillation.weight_at(self.global_step) * divergence
        return StepResult(loss, logs)
