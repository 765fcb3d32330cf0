"""The final student of ensemble-distillation: trained on the fused labels of target images alone (Chao, Chen, Lee,
"Rethinking Ensemble-Distillation for Semantic Segmentation Based Unsupervised Domain Adaption", CVPRW 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.losses.hard_pixels import hard_pixel_loss
from adaptseg.losses.reduce import global_mean
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import Inference, resize_logits

Denominator = Literal["weights", "pixels"]
"""What the sum over hard pixels is divided by: the sum of their `weights` (released), or their number, as class weights
expect that set the scale of the loss themselves (GBW)."""


class EnsembleStudent(Method):
    """L = sum over hard pixels of w_c CE / sum over hard pixels of w_c, on the labels of `data.target_labels`.

    Args:
        network: factory of the student, called with the number of classes.
        class_table: filled in from the data.
        optimization: optimiser and schedule.
        inference: how whole scenes are predicted.
        init_from: checkpoint or run directory to start the weights from; published: the source-only network.
        seed: filled in from `seed_everything`.
        class_weights: `BatchBalance` is the published one; GBW is the alternative; null = 1 each.
        acceleration: compilation and memory format of the network.
        hard_share: of all pixels of the batch, the hardest are trained on; 0.2 (released), 1 = all.
        denominator: see `Denominator`.
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
        hard_share: float = 0.2,
        denominator: Denominator = "weights",
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
        if not 0 < hard_share <= 1:
            raise AdaptSegError(f"model.hard_share is {hard_share}; a share in (0, 1] is expected")
        if denominator not in get_args(Denominator):
            raise AdaptSegError(f"model.denominator is '{denominator}'; {' or '.join(get_args(Denominator))} expected")
        self.hard_share, self.denominator = hard_share, denominator

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        return ("target",)

    @property
    def descends(self) -> bool:
        return False

    def setup(self, stage: str) -> None:
        if stage == "fit" and pair_of(self.trainer).target_labels is None:
            raise AdaptSegError(
                "EnsembleStudent learns from labels of target images: say with data.target_labels where"
            )
        super().setup(stage)

    def step(self, batch: Batch) -> StepResult:
        if batch.target is None:
            raise AdaptSegError("EnsembleStudent learns from target images; give data.target")
        images, labels = batch.target.image, batch.target.bought
        height, width = images.shape[-2:]
        logits = self.student(images).logits.float()
        log_p = resize_logits(logits, (height, width), self.inference.align_corners).log_softmax(1)
        weights = self.weights_of("target", log_p, labels)
        total, weight, number = hard_pixel_loss(log_p, labels, share=self.hard_share, class_weights=weights)
        # Below one pixel of the least weight there is none: the sum is 0 then, whatever it is divided by.
        loss = global_mean(total, weight if self.denominator == "weights" else number, minimum=1e-3)
        return StepResult(loss, {"target": loss, "hard_share": number / labels.numel()})
