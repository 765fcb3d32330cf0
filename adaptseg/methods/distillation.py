"""How a small student is distilled from a large teacher, as DUDA's two stages both do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.data.batch import Target
from adaptseg.errors import AdaptSegError
from adaptseg.losses.distillation import divergence, ramp
from adaptseg.losses.reduce import global_mean
from adaptseg.methods.lessons import Exercise

Gradual = Literal["online", "ramp", "chain"]


@dataclass(frozen=True)
class Distillation:
    """KL from the teacher's view of the plain target image to the small student's of the mixed one, where that shows
    the target. Form, temperature and schedule are inferred: the paper only says "gradual".

    Attributes:
        weight: of the loss.
        temperature: of both distributions.
        gradual: `online`: from the first step on; the target sharpens as the teacher learns. `ramp`: the weight grows
            from 0 to full between two steps. `chain`: large to medium to small, a training each: this one must start
            its large network from the one before (`model.large_from`); within it as `online`.
        ramp: first and last step of the ramp (1500 and 10000 of 40000).
        by_confidence: also multiply by the pseudo-label's confidence weight; else the loss acts where the teacher is
            not yet confident.
    """

    weight: float = 1.0
    temperature: float = 1.0
    gradual: Gradual = "online"
    ramp: tuple[int, int] = (1500, 10_000)
    by_confidence: bool = False

    def __post_init__(self) -> None:
        where = "model.distillation"
        if self.weight <= 0:
            raise AdaptSegError(f"{where}.weight is {self.weight}; a positive number is expected, or {where}: null")
        if self.temperature <= 0:
            raise AdaptSegError(f"{where}.temperature is {self.temperature}; a positive number is expected")
        if self.gradual not in get_args(Gradual):
            raise AdaptSegError(f"{where}.gradual is '{self.gradual}'; one of {', '.join(get_args(Gradual))} expected")
        if not 0 <= self.ramp[0] < self.ramp[1]:
            raise AdaptSegError(f"{where}.ramp is {list(self.ramp)}; two growing steps from 0 on are expected")

    def require_steps(self, max_steps: int) -> None:
        """Raise AdaptSegError where the ramp would not begin within the training."""
        if self.gradual == "ramp" and self.ramp[0] >= max_steps:
            raise AdaptSegError(
                f"model.distillation.ramp begins at step {self.ramp[0]}, but training ends at step {max_steps}: "
                "nothing would ever be distilled; lower it"
            )

    def weight_at(self, step: int) -> float:
        """Weight of the loss in the update after `step` updates."""
        return self.weight * (ramp(step, *self.ramp) if self.gradual == "ramp" else 1.0)

    def loss(
        self,
        teacher_log_p: Tensor,
        student_log_p: Tensor,
        mixed: Exercise,
        target: Target,
        *,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Mean divergence () over the pixels of the global batch for which the teacher speaks: of the target, trusted,
        not bought.

        Args:
            teacher_log_p: (B, C, H, W) of the plain target images.
            student_log_p: (B, C, H, W) of the mixed ones.
            mixed: the mixed images and their lesson.
            target: what is trusted and bought.
            class_weights: (C,), each pixel's by its label in the lesson; None = 1.
        """
        labels, confidence = mixed.lesson
        weights = confidence if self.by_confidence else None
        if class_weights is not None:
            # Fused labels may be void; the teachers still speak there.
            of_pixel = torch.cat([class_weights, class_weights.new_ones(VOID + 1 - len(class_weights))])[labels]
            weights = of_pixel if weights is None else weights * of_pixel
        mask = ~mixed.pasted & target.trusted & (target.bought == VOID)
        return global_mean(
            *divergence(teacher_log_p, student_log_p, mask, temperature=self.temperature, pixel_weights=weights)
        )
