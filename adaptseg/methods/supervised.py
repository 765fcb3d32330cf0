"""Supervised training on the source and on whatever target labels were bought; with RIPU's two extra losses if asked.

RIPU: Xie, Yuan, Li, Liu, Cheng, "Towards Fewer Annotations: Active Learning via Region Impurity and Prediction
Uncertainty for Domain Adaptive Semantic Segmentation", CVPR 2022, section 3.3. Differs from the release: denominators
are those of the global batch, so any number of processes descends the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adaptseg.augment.color import Colors
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Target
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.reduce import global_mean
from adaptseg.losses.ripu import boundary_consistency, negative_learning
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.lessons import colored
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.training_pass import TrainingPass, loss_names
from adaptseg.networks import Inference


class Supervised(Method):
    """L = CE(source) + w_t CE(target | bought) + w_c L_consistency(source) + w_n L_negative(target).

    Args:
        network: factory of the student, called with the number of classes.
        class_table: filled in from the data.
        optimization: optimiser and schedule.
        inference: how whole scenes are predicted.
        init_from: checkpoint or run directory to start the weights from.
        seed: filled in from `seed_everything`.
        class_weights: of both cross-entropies; null = 1 each.
        acceleration: compilation and memory format of the network.
        source_weight: of the source cross-entropy.
        source_colors: of source images; null = as they are.
        target_colors: of target images in training, never when they are scored; null = as they are. PixelPick's are in
            `configs/paper/pixelpick/`.
        target_weight: of the cross-entropy on bought target labels; 0 makes no target pass unless w_n needs it.
        least_bought: floor of that cross-entropy's denominator in pixels of the global batch. 1 is the mean over
            bought pixels; a larger floor keeps a lone pixel from carrying the full loss. The same for a detail crop.
        consistency_weight: of RIPU's boundary consistency on the source (release: 0.1).
        negative_weight: of RIPU's negative learning on all target pixels (release: 1).
        negative_threshold: probability below which a class counts as excluded (release: 0.05).
        fresh_rounds: start anew on all labels after every round (PixelPick): from the weights that training began with
            ("inferred": the release draws the head's anew), an optimiser without memory, and, by as many
            `optimization.restarts` as there are rounds, the whole schedule. Those weights are no part of the state: a
            resumed run makes them again from the same seed and files.
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
        source_weight: float = 1.0,
        source_colors: Colors | None = None,
        target_colors: Colors | None = None,
        target_weight: float = 1.0,
        least_bought: int = 1,
        consistency_weight: float = 0.0,
        negative_weight: float = 0.0,
        negative_threshold: float = 0.05,
        fresh_rounds: bool = False,
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
        if not 0 < negative_threshold < 1:
            raise AdaptSegError(
                f"model.negative_threshold is {negative_threshold}; a probability inside (0, 1) is expected"
            )
        if least_bought < 1:
            raise AdaptSegError(f"model.least_bought is {least_bought}; 1 or more pixels are expected")
        self.source_weight, self.target_weight, self.least_bought = source_weight, target_weight, least_bought
        self.consistency_weight, self.negative_weight = consistency_weight, negative_weight
        self.negative_threshold, self.fresh_rounds = negative_threshold, fresh_rounds
        self.source_colors, self.target_colors = source_colors, target_colors
        self._first: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            data = pair_of(self.trainer)
            for name, colors in (("source", self.source_colors), ("target", self.target_colors)):
                if colors is not None and getattr(data, name) is None:
                    raise AdaptSegError(f"model.{name}_colors changes images of data.{name}, which is null; drop one")
        if stage == "fit" and self.fresh_rounds:  # a checkpoint is read after this
            if all(getattr(callback, "state_key", None) != "active" for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
                raise AdaptSegError("model.fresh_rounds is about rounds of bought labels; give an `active:` block")
            self._first = {name: value.detach().cpu().clone() for name, value in self.student.state_dict().items()}

    def on_labels_bought(self, round: int) -> None:
        """With `fresh_rounds`, forget what the labels of earlier rounds taught."""
        if not self.fresh_rounds or round == 1:
            return
        self.student.load_state_dict(self._first)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        optimizer.state.clear()

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        return loss_names(self.student, ("source", "target"))

    @property
    def descends(self) -> bool:
        return False

    def step(self, batch: Batch) -> StepResult:
        losses: dict[str, Tensor] = {}
        weights = {
            "source": self.source_weight,
            "consistency": self.consistency_weight,
            "target": self.target_weight,
            "negative": self.negative_weight,
        }
        if batch.source is not None:
            image = colored(batch.source.image, self.source_colors, self.seed, "source", batch.samples)
            said = self.said("source", image, batch.samples)
            losses["source"] = self._cross_entropy("source", said, batch.source.labels)
            if self.consistency_weight:
                losses["consistency"] = global_mean(*boundary_consistency(said.log_p, batch.source.labels))
        if batch.target is not None and (self.target_weight or self.negative_weight):
            losses |= self._target_losses(batch.target, batch.samples, alone=batch.source is None)
        if not losses:
            raise AdaptSegError(
                "nothing to learn from: there is no data.source, and target_weight and negative_weight are 0; "
                "give a source or a weight"
            )
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return StepResult(loss, losses)

    def _target_losses(self, target: Target, samples: Sequence[int], *, alone: bool) -> dict[str, Tensor]:
        # Synchronised batch norm and class weights wait for every rank in every pass, so there all make it or none.
        together = self.class_weights is not None
        together = together or any(isinstance(module, nn.SyncBatchNorm) for module in self.student.modules())
        if not (alone or self.negative_weight or target.bought_pixels or together):
            # No pass without labels, as in the release; but every rank takes part in the mean, others may have some.
            nothing = torch.zeros((), device=target.image.device)
            means = [
                global_mean(nothing, nothing.long(), minimum=self.least_bought)
                for _ in loss_names(self.student, ("target",))
            ]
            return {"target": torch.stack(means).sum()}
        image = colored(target.image, self.target_colors, self.seed, "target", samples)
        said = self.said("target", image, samples)
        losses = {"target": self._cross_entropy("target", said, target.bought, minimum=self.least_bought)}
        if self.negative_weight:
            losses["negative"] = global_mean(*negative_learning(said.log_p, self.negative_threshold))
        return losses

    def _cross_entropy(self, name: str, said: TrainingPass, labels: Tensor, *, minimum: float = 1.0) -> Tensor:
        losses: list[Tensor] = []
        for prediction in said.predictions:
            seen = prediction.term.view(labels)
            weights = self.weights_of(prediction.called(name), prediction.log_p, seen)
            sums = negative_log_likelihood(prediction.log_p, seen, class_weights=weights)
            losses.append(prediction.term.weight * global_mean(*sums, minimum=minimum))
        return torch.stack(losses).sum()
