"""Adversarial adaptation of the output space: AdaptSegNet and AdvEnt are settings of one method.

AdaptSegNet: Tsai et al., CVPR 2018. AdvEnt: Vu et al., CVPR 2019. Constants and order of updates are those of the
released code; with masked consistency, of MIC's. Two things differ: logits are enlarged without aligned corners, and
means run over the global batch, so that any number of processes trains alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptseg.classes import ClassTable
from adaptseg.errors import AdaptSegError
from adaptseg.losses.adversarial import Objective
from adaptseg.losses.entropy import self_information
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.discriminators import Discriminators, DiscriminatorTraining
from adaptseg.methods.lessons import TaughtMasking
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.output_adaptation import Auxiliary, Levels, OutputAdaptation
from adaptseg.networks import Inference

Sees = Literal["probabilities", "self_information"]


class Adversarial(OutputAdaptation):
    """A discriminator learns to tell the domains by the student's predictions; the student learns to mislead it.

    In a step: the student's gradient, through frozen discriminators; the discriminators' gradient on the same, detached
    predictions; the student's update, then theirs. `global_step` counts the student's alone.

    State beyond `OutputAdaptation`'s: the discriminators with Adam's moments and their number of updates, in the
    checkpoint.

    Args:
        network: factory of the student, called with the number of classes.
        class_table: filled in from the data.
        optimization: optimiser and schedule of the student.
        inference: how whole scenes are predicted.
        init_from: checkpoint or run directory to start the student, and with it the teacher, from.
        seed: filled in from `seed_everything`.
        class_weights: of every cross-entropy, each solved for itself; null = 1 each.
        acceleration: compilation and memory format of the networks.
        sees: what the discriminators are shown: `probabilities` (AdaptSegNet) or `self_information` (AdvEnt).
        objective: `vanilla` or `least_squares` (AdaptSegNet's later single-level setting, and MIC's).
        adversarial_weight: of the main level's adversarial loss (0.001; 0.01 for single-level least squares).
        discriminator: how discriminators look and learn.
        auxiliary: the second level, an auxiliary head; null = single-level.
        target_weight: of the cross-entropy on bought target labels, beside the source's.
        least_bought: floor of that cross-entropy's denominator in pixels of the global batch.
        masking: MIC's masked-image consistency with a teacher of its own; null = none.
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
        sees: Sees = "probabilities",
        objective: Objective = "vanilla",
        adversarial_weight: float = 0.001,
        discriminator: DiscriminatorTraining = DiscriminatorTraining(),
        auxiliary: Auxiliary | None = None,
        target_weight: float = 1.0,
        least_bought: int = 1,
        masking: TaughtMasking | None = None,
    ) -> None:
        if adversarial_weight <= 0:
            raise AdaptSegError(
                f"model.adversarial_weight is {adversarial_weight}; a positive number is expected (without an "
                "adversarial loss, take class_path: Supervised)"
            )
        if sees not in ("probabilities", "self_information"):
            raise AdaptSegError(f"model.sees is '{sees}'; 'probabilities' or 'self_information' is expected")
        super().__init__(
            network=network,
            class_table=class_table,
            optimization=optimization,
            inference=inference,
            init_from=init_from,
            seed=seed,
            class_weights=class_weights,
            acceleration=acceleration,
            adaptation_weight=adversarial_weight,
            auxiliary=auxiliary,
            target_weight=target_weight,
            least_bought=least_bought,
            masking=masking,
        )
        self.sees: Sees = sees
        self.discriminators = Discriminators(
            [level.name for level in self.levels],
            class_table.num_classes,
            objective=objective,
            training=discriminator,
        )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.discriminators.follow_weights()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.discriminators.update(self.trainer.max_steps)

    def adaptation(self, source: Levels, target: Levels) -> tuple[Tensor, dict[str, Tensor]]:
        seen = {level.name: (self._shown(source[level.name]), self._shown(target[level.name])) for level in self.levels}
        fooled = {level.name: self.discriminators.fooled(level.name, seen[level.name][1]) for level in self.levels}
        learnt = self.discriminators.learn(seen)
        logs: dict[str, Tensor] = {}
        for name in seen:
            logs |= {f"adversarial/{name}": fooled[name].detach(), f"discriminator/{name}": learnt[name]}
        weighted = [level.adaptation * fooled[level.name] for level in self.levels]
        return torch.stack(weighted).sum(), logs

    def _shown(self, log_p: Tensor) -> Tensor:
        return log_p.exp() if self.sees == "probabilities" else self_information(log_p)
