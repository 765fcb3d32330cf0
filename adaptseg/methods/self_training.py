"""Self-training on an unlabelled target: DACS, DAFormer, HRDA, MIC and VFM-UDA are settings of one method.

DACS: Tranheden, Olsson, Pinto, Svensson, "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021.
DAFormer: Hoyer, Dai, Van Gool, CVPR 2022. MIC: Hoyer, Dai, Wang, Van Gool, "Masked Image Consistency", CVPR 2023.
VFM-UDA: Englert et al., CVPR workshops 2024; VFM-UDA++: arXiv 2503.10685.
Constants are those of the released code. Two things differ: every random draw belongs to a sample, not to a batch, and
shares are counted over the global batch, so that any number of processes trains alike; the teacher's batch norms use
the student's statistics (`teacher_norm: batch` for the released way).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from adaptseg.augment.color import Blur, ColorJitter, Colors
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pseudo_labels import Scope
from adaptseg.losses.reduce import global_mean
from adaptseg.losses.ripu import boundary_consistency, negative_learning
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.frozen_features import FeatureDistance, FrozenFeatures
from adaptseg.methods.lessons import (
    Exercise,
    Lesson,
    Masking,
    MixedLessons,
    colored,
    domains_to_mix,
    source_lesson,
    taught_cross_entropy,
)
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.projected_features import ProjectedDistance, ProjectedFeatures
from adaptseg.methods.training_pass import loss_names
from adaptseg.networks import Inference, Segmenter, predict_probabilities
from adaptseg.networks.teacher import EMATeacher, TeacherNorm


class SelfTraining(Method):
    """L = CE(source) + CE(ClassMix of source and target | teacher's labels) [+ masked consistency + feature distance].

    Pixel losses are means over *all* pixels, void and untrusted ones included, as released. Bought labels of the target
    replace pseudo-labels at full weight, so any acquisition lies over this method.

    State beyond the student's: the teacher and its number of updates, and the projection of a `ProjectedDistance`, in
    the checkpoint.

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
        feature_distance: DAFormer's distance to ImageNet features (`FeatureDistance`), or VFM-UDA++'s to those of
            another frozen encoder (`ProjectedDistance`, told by its `encoder`); null = none. Needs pre-trained weights.
        mirror: the teacher labels each image by the mean of its probabilities for it and for its mirror image
            (VFM-UDA), which costs a second pass of it.
        source_colors: of source images by themselves; null = as they are.
        target_colors: of target images before they are mixed; null = as they are. The teacher sees them as they are.
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
        feature_distance: FeatureDistance | ProjectedDistance | None = None,
        mirror: bool = False,
        source_colors: Colors | None = None,
        target_colors: Colors | None = None,
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
        self.lessons = MixedLessons(
            seed, confidence_threshold, confidence_scope, jitter, blur, mix_scope, class_table.num_classes
        )
        if not 0 <= burn_in < 1:
            raise AdaptSegError(f"model.burn_in is {burn_in}; a share of max_steps inside [0, 1) is expected")
        self.burn_in, self.burn_in_steps = burn_in, 0
        self.teacher = EMATeacher(self.student, alpha=alpha, norm=teacher_norm)
        self.masking = masking
        if masking is not None:
            masking.check(self.student)
        self.consistency_weight, self.negative_weight = consistency_weight, negative_weight
        self.negative_threshold, self.evaluate = negative_threshold, evaluate
        self.mirror, self.source_colors, self.target_colors = mirror, source_colors, target_colors
        self.frozen = self.projected = None
        if isinstance(feature_distance, ProjectedDistance):
            self.projected = ProjectedFeatures(feature_distance, self.student)
        elif feature_distance is not None:
            self.frozen = FrozenFeatures(feature_distance, network, class_table)

    @property
    def leader(self) -> Segmenter:
        """The student that the teacher follows."""
        return self.student

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        passes = ("source", "mixed") if self.masking is None else ("source", "mixed", "masked")
        return loss_names(self.leader, passes)

    def saved_networks(self) -> dict[str, tuple[str, Segmenter]]:
        return {**super().saved_networks(), "teacher": ("teacher.network.", self.teacher.network)}

    @property
    def companions(self) -> Iterable[nn.Parameter]:
        return () if self.projected is None else self.projected.projection.parameters()

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
        self.teacher.update(self.leader)

    # ---- one step

    def step(self, batch: Batch) -> StepResult:
        source, target = domains_to_mix(batch, "self-training")
        burns_in = self.teacher.updates < self.burn_in_steps
        near = {"source": source.image} if burns_in else {"source": source.image, "target": target.image}
        presence, distances = self._stay_near(near, batch.samples)
        loss, logs = self._source_loss(source, batch.samples)
        logs |= distances
        if burns_in:
            return StepResult(loss + presence, logs)
        self.descend(loss)
        lesson, logs["confidence"] = self.lessons.taught(target, self._teacher_logits(target))
        shown = target._replace(image=colored(target.image, self.target_colors, self.seed, "target", batch.samples))
        mixed = self.lessons.mixed(source, shown, lesson, batch.samples)
        loss, target_logs = self._target_loss(mixed, target, lesson, batch.samples)
        return StepResult(loss + presence, {**logs, **target_logs})

    def _teacher_logits(self, target: Target) -> Tensor:
        """(B, C, h, w) float32 of the plain target images."""
        if not self.mirror:
            return self.teacher.logits(target.image)
        size = (target.image.shape[-2], target.image.shape[-1])
        both = predict_probabilities(self.teacher.network, target.image, size=size, inference=Inference(flip=True))
        return both.log()

    def _stay_near(
        self, domains: Mapping[str, Tensor], samples: Sequence[int]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Descend the distance to the projected features of a frozen encoder, on images (B, 3, H, W) of each domain.

        Returns:
            what the step's last loss must be given, and scalars to log.
        """
        if self.projected is None:
            return 0.0, {}
        settings, logs = self.projected.settings, dict[str, Tensor]()
        for domain, images in domains.items():
            seen = colored(images, settings.colors, self.seed, f"near/{domain}", samples)
            distance = self.projected.distance(self.student, seen, images)
            self.descend(settings.weight * distance)
            logs[f"feature_distance_{domain}"] = distance.detach()
        return self.projected.presence(), logs

    def _source_loss(self, source: Labelled, samples: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        image = colored(source.image, self.source_colors, self.seed, "source", samples)
        said = self.said("source", image, samples, by=self.leader)
        loss = taught_cross_entropy("source", said, source_lesson(source), self.weights_of)
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

    def _target_loss(
        self, mixed: Exercise, target: Target, lesson: Lesson, samples: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses on mixed and masked images; all but the last are descended."""
        loss, logs = self._mixed_loss(mixed, samples)
        if self.masking is not None:
            self.descend(loss)
            image, token_mask = self.lessons.masked(target, self.masking, samples, self.leader)
            said = self.said("masked", image, samples, by=self.leader, token_mask=token_mask)
            masked = taught_cross_entropy("masked", said, lesson, self.weights_of)
            logs["masked"] = masked.detach()
            loss = self.masking.weight * masked
        return loss, logs

    def _mixed_loss(self, mixed: Exercise, samples: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.said("mixed", mixed.image, samples, by=self.leader)
        loss = taught_cross_entropy("mixed", said, mixed.lesson, self.weights_of)
        logs = {"mixed": loss.detach()}
        if self.negative_weight:
            negative = global_mean(*negative_learning(said.log_p, self.negative_threshold))
            loss = loss + self.negative_weight * negative
            logs["negative"] = negative.detach()
        return loss, logs
