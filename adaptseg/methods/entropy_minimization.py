"""MinEnt: the student shall be as sure on the target as it is on the source.

Vu, Jain, Bucher, Cord, Pérez, "ADVENT", CVPR 2019, section 3.1. Constants are those of the released code; with masked
consistency, of MIC's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adaptseg.classes import ClassTable
from adaptseg.errors import AdaptSegError
from adaptseg.losses.entropy import normalised_entropy
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.lessons import TaughtMasking
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.output_adaptation import MAIN, Auxiliary, Levels, OutputAdaptation
from adaptseg.networks import Inference
from adaptseg.tensors import likeliest


class EntropyMinimization(OutputAdaptation):
    """The target's mean normalised entropy is descended directly.

    Args:
        network: factory of the student, called with the number of classes.
        class_table: filled in from the data.
        optimization: optimiser and schedule of the student.
        inference: how whole scenes are predicted.
        init_from: checkpoint or run directory to start the student, and with it the teacher, from.
        seed: filled in from `seed_everything`.
        class_weights: of every cross-entropy (`weigh_entropy`: and the entropy), each solved for itself; null = 1 each.
        acceleration: compilation and memory format of the networks.
        entropy_weight: of the main level's entropy (0.001).
        weigh_entropy: class weights multiply the entropy too: a pixel counts for its likeliest class, and GBW solves
            the weights from the entropy's own gradient (inferred; the release weighs the source alone). Needs
            `class_weights`.
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
        entropy_weight: float = 0.001,
        weigh_entropy: bool = False,
        auxiliary: Auxiliary | None = None,
        target_weight: float = 1.0,
        least_bought: int = 1,
        masking: TaughtMasking | None = None,
    ) -> None:
        if entropy_weight <= 0:
            raise AdaptSegError(
                f"model.entropy_weight is {entropy_weight}; a positive number is expected (without an entropy loss, "
                "take class_path: Supervised)"
            )
        if weigh_entropy and class_weights is None:
            raise AdaptSegError(
                "model.weigh_entropy is true, but there are no weights: set model.class_weights, e.g. GBW"
            )
        super().__init__(
            network=network,
            class_table=class_table,
            optimization=optimization,
            inference=inference,
            init_from=init_from,
            seed=seed,
            class_weights=class_weights,
            acceleration=acceleration,
            adaptation_weight=entropy_weight,
            auxiliary=auxiliary,
            target_weight=target_weight,
            least_bought=least_bought,
            masking=masking,
        )
        self.weigh_entropy = weigh_entropy

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        entropies = [_named(level.name) for level in self.levels] if self.weigh_entropy else []
        return (*super().weighted_losses, *entropies)

    def adaptation(self, source: Levels, target: Levels) -> tuple[Tensor, dict[str, Tensor]]:
        losses = {_named(name): self._entropy(_named(name), log_p) for name, log_p in target.items()}
        weighted = [level.adaptation * losses[_named(level.name)] for level in self.levels]
        return torch.stack(weighted).sum(), {name: loss.detach() for name, loss in losses.items()}

    def _entropy(self, name: str, log_p: Tensor) -> Tensor:
        """Mean over all pixels; every process holds equally many."""
        entropy = normalised_entropy(log_p)
        if self.weigh_entropy:
            predicted = likeliest(log_p.detach(), 1)
            weights = self.weights_of(name, log_p, predicted, objective="entropy")
            assert weights is not None
            entropy = entropy * weights[predicted]
        return entropy.mean()


def _named(level: str) -> str:
    return "entropy" if level == MAIN else f"entropy_{level}"
