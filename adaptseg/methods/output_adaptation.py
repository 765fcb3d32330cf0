"""What hosts share that adapt by the form of the student's output: AdaptSegNet, AdvEnt and MinEnt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Target
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.reduce import global_mean
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.lessons import TaughtMasking, both_domains, mean_cross_entropy
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import Inference, Segmenter, resize_logits
from adaptseg.networks.teacher import EMATeacher

Levels = Mapping[str, Tensor]
"""Name of a level -> log-softmax (B, C, H, W) float32 at the size of the images."""

MAIN, AUXILIARY = "main", "auxiliary"


@dataclass(frozen=True)
class Auxiliary:
    """A second level: an auxiliary head of the network is trained and adapted like the main one, at its own weights.

    Attributes:
        output: its name in the network's auxiliary outputs; DeepLabV2 with `auxiliary_dilations` has conv4.
        source_weight: of its cross-entropies, relative to the main ones (0.1).
        adaptation_weight: of its adversarial or entropy loss (0.0002).
    """

    output: str = "conv4"
    source_weight: float = 0.1
    adaptation_weight: float = 0.0002

    def __post_init__(self) -> None:
        for name, value in (("source", self.source_weight), ("adaptation", self.adaptation_weight)):
            if value <= 0:
                raise AdaptSegError(
                    f"model.auxiliary.{name}_weight is {value}; a positive number is expected, or model.auxiliary: null"
                )


class Level(NamedTuple):
    """One of the student's predictions: its name, the weight of its cross-entropies, and that of its adaptation."""

    name: str
    cross_entropy: float
    adaptation: float


class OutputAdaptation(Method):
    """L = sum over levels of w (CE(source) + w_t CE(target | bought)) + lambda A(source, target) [+ masked images].

    A subclass writes A as `adaptation`. Cross-entropies of source and bought labels are means over labelled pixels of
    the global batch, as in the original releases; that of masked images over all pixels, as in MIC's.

    State beyond the student's: with `masking`, the teacher and its number of updates, in the checkpoint.

    Args:
        adaptation_weight: lambda of the main level; positive.
        auxiliary, target_weight, least_bought, masking: see the subclasses. The others are those of `Method`.
    """

    def __init__(
        self,
        *,
        network: Callable[[int], nn.Module],
        class_table: ClassTable,
        optimization: Optimization,
        inference: Inference,
        init_from: str | None,
        seed: int,
        class_weights: ClassWeights | None,
        acceleration: Acceleration,
        adaptation_weight: float,
        auxiliary: Auxiliary | None,
        target_weight: float,
        least_bought: int,
        masking: TaughtMasking | None,
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
        if least_bought < 1:
            raise AdaptSegError(f"model.least_bought is {least_bought}; 1 or more pixels are expected")
        _require_levels(self.student, auxiliary)
        self.auxiliary, self.target_weight, self.least_bought = auxiliary, target_weight, least_bought
        self.levels = [Level(MAIN, 1.0, adaptation_weight)]
        if auxiliary is not None:
            self.levels.append(Level(AUXILIARY, auxiliary.source_weight, auxiliary.adaptation_weight))
        self.masking = masking
        if masking is not None:
            masking.check(self.student)
        self.teacher = (
            None if masking is None else EMATeacher(self.student, alpha=masking.alpha, norm=masking.teacher_norm)
        )

    @abstractmethod
    def adaptation(self, source: Levels, target: Levels) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over levels of what adapts the student, and scalars to log.

        Args:
            source: what the student says of the source, detached.
            target: what it says of the target, with gradient.
        """

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        domains = ("source", "target") if self.masking is None else ("source", "target", "masked")
        return tuple(_named(domain, level) for domain in domains for level in self.levels)

    def saved_networks(self) -> dict[str, tuple[str, Segmenter]]:
        saved = super().saved_networks()
        return saved if self.teacher is None else {**saved, "teacher": ("teacher.network.", self.teacher.network)}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.teacher is not None:
            self.teacher.update(self.student)

    # ---- one step

    def step(self, batch: Batch) -> StepResult:
        source, target = both_domains(batch, type(self).__name__)
        said_of_source = self._levels_of(source.image)
        loss, logs = self._cross_entropies("source", said_of_source, source.labels)
        self.descend(loss)
        said_of_source = {name: log_p.detach() for name, log_p in said_of_source.items()}
        said_of_target = self._levels_of(target.image)
        bought, bought_logs = self._cross_entropies("target", said_of_target, target.bought, minimum=self.least_bought)
        adaptation, adaptation_logs = self.adaptation(said_of_source, said_of_target)
        loss = self.target_weight * bought + adaptation
        logs |= bought_logs | adaptation_logs
        if self.masking is not None:
            self.descend(loss)
            loss, masked_logs = self._masked_loss(target, batch.samples, self.masking)
            logs |= masked_logs
        return StepResult(loss, logs)

    def _levels_of(self, images: Tensor, token_mask: Tensor | None = None) -> dict[str, Tensor]:
        output = self.student(images, token_mask=token_mask)
        levels = {MAIN: output.logits}
        if self.auxiliary is not None:
            levels[AUXILIARY] = output.auxiliary[self.auxiliary.output]
        size = (images.shape[-2], images.shape[-1])
        geometry = self.inference.align_corners
        return {name: resize_logits(logits.float(), size, geometry).log_softmax(1) for name, logits in levels.items()}

    def _cross_entropies(
        self, domain: str, said: Levels, labels: Tensor, *, minimum: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses: dict[str, Tensor] = {}
        for level in self.levels:
            log_p, name = said[level.name], _named(domain, level)
            weights = self.weights_of(name, log_p, labels)
            losses[name] = global_mean(*negative_log_likelihood(log_p, labels, class_weights=weights), minimum=minimum)
        return self._summed(losses.values()), {name: loss.detach() for name, loss in losses.items()}

    def _masked_loss(
        self, target: Target, samples: Sequence[int], masking: TaughtMasking
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As MIC's release: the auxiliary head labels masked images too; unlike there, at the pixel weights."""
        assert self.teacher is not None
        lessons = masking.lessons(self.seed)
        lesson, share = lessons.taught(target, self.teacher.logits(target.image))
        said = self._levels_of(*lessons.masked(target, masking, samples, self.student))
        losses: dict[str, Tensor] = {}
        for level in self.levels:
            log_p, name = said[level.name], _named("masked", level)
            losses[name] = mean_cross_entropy(log_p, lesson, self.weights_of(name, log_p, lesson.labels))
        logs = {"confidence": share, **{name: loss.detach() for name, loss in losses.items()}}
        return masking.weight * self._summed(losses.values()), logs

    def _summed(self, losses: Iterable[Tensor]) -> Tensor:
        """Cross-entropies of the levels, in their order, at their weights."""
        weighted = [level.cross_entropy * loss for level, loss in zip(self.levels, losses, strict=True)]
        return torch.stack(weighted).sum()


def _named(loss: str, level: Level) -> str:
    return loss if level.name == MAIN else f"{loss}_{level.name}"


def _require_levels(student: Segmenter, auxiliary: Auxiliary | None) -> None:
    """Every head must be trained: an output that is not there trains nothing, one that is not named stays random, and
    DDP would wait for its gradient.
    """
    has = sorted(student.auxiliary_logits)
    asked = [] if auxiliary is None else [auxiliary.output]
    if has != asked:
        raise AdaptSegError(
            f"model.auxiliary trains {', '.join(asked) or 'no auxiliary output'}, but {type(student).__name__} has "
            f"{', '.join(has) or 'none'}: set model.auxiliary and the network's auxiliary head (DeepLabV2: "
            "auxiliary_dilations) both or neither"
        )
