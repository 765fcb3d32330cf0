"""What the classes weigh in a cross-entropy: by the gradient of the loss itself (GBW), by how often the source shows
them, or as given. Any method takes one of these as `class_weights`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adaptseg.classes import ClassTable
from adaptseg.data.statistics import ClassStatistics
from adaptseg.errors import AdaptSegError
from adaptseg.losses import frequency, gbw, hard_pixels


class ClassWeights(nn.Module, ABC):
    """Weights (C,) for the pixel cross-entropies of a method.

    Weights multiply each pixel's loss before the mean over pixels; nothing is divided by their sum.

    Attributes:
        latest: loss -> the weights (C,) it got last, for the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, Tensor] = {}

    @abstractmethod
    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        """Called once, before a checkpoint is read and the first step is made.

        Args:
            class_table: the classes that are weighed.
            losses: the names that `forward` will be called with.
            statistics: counts the classes of the source on first use; under DDP all processes call it, or none.
        """

    def forward(
        self, loss: str, log_probabilities: Tensor, labels: Tensor, *, objective: gbw.Objective = "cross_entropy"
    ) -> Tensor:
        """Weights (C,) float32 without gradient, from the log-softmax (B, C, H, W) and labels (B, H, W) of a loss.

        Args:
            objective: which loss it is, for weights from its gradient.
        """
        weights = self.latest[loss] = self._weights(loss, log_probabilities.detach(), labels, objective)
        return weights

    @abstractmethod
    def _weights(self, loss: str, log_probabilities: Tensor, labels: Tensor, objective: gbw.Objective) -> Tensor: ...


class GBW(ClassWeights):
    """Gradient-based class weights (arXiv 2407.01327, by its released code): classes whose loss pulls hardest weigh
    most.

    Solved anew for each loss of each step. The defaults are the released scaling; with it and a regulariser of 1 the
    weights are nearly uniform, and the regulariser's meaning changes with crop and batch size (its unit is one over
    pixels). `gradient: mean_residual, relative: true` is free of both.

    State: none, unless `smoothing`; then the running statistics of each loss, in the checkpoint.

    Args:
        regularization: lambda, pulls the weights towards 1; positive.
        gradient: what measures a class's pull; see `adaptseg.losses.gbw.class_weights`.
        relative: the regulariser counts in units of the mean squared gradient (inferred).
        budget: the weights sum to the number of `classes` (released) or, over the `present` ones, to theirs.
        min_pixels: classes with fewer pixels in the batch pull nothing: one stray pixel would outweigh everything.
        known_only: classes that the source never shows get no weight and no share of the budget (inferred).
        renormalise: divide the weights by their mean over labelled pixels: the loss keeps its scale (inferred).
        smoothing: share of the running statistics that stays at each step, 0 = none (released).
        synchronise: solve on the global batch, so that any number of processes weighs alike; off = each process on its
            own part.
    """

    def __init__(
        self,
        *,
        regularization: float = 1.0,
        gradient: gbw.Gradient = "channel",
        relative: bool = False,
        budget: gbw.Budget = "classes",
        min_pixels: int = 0,
        known_only: bool = False,
        renormalise: bool = False,
        smoothing: float = 0.0,
        synchronise: bool = True,
    ) -> None:
        super().__init__()
        where = "model.class_weights"
        if regularization <= 0:
            raise AdaptSegError(f"{where}.regularization is {regularization}; a positive number is expected")
        if min_pixels < 0:
            raise AdaptSegError(f"{where}.min_pixels is {min_pixels}; 0 or more pixels are expected")
        if not 0 <= smoothing < 1:
            raise AdaptSegError(f"{where}.smoothing is {smoothing}; a share inside [0, 1) is expected")
        self.regularization, self.relative = regularization, relative
        self.gradient: gbw.Gradient = gradient
        self.budget: gbw.Budget = budget
        self.min_pixels, self.known_only, self.renormalise = min_pixels, known_only, renormalise
        self.smoothing, self.synchronise = smoothing, synchronise
        self.known: Tensor | None
        self.register_buffer("known", None, persistent=False)

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        if self.known_only:
            self.known = torch.from_numpy(statistics().totals > 0)
        if self.smoothing:
            for loss in losses:
                for name in gbw.Statistics._fields:
                    self.register_buffer(f"{loss}_{name}", torch.zeros(class_table.num_classes))
                self.register_buffer(f"{loss}_share", torch.zeros(()))

    def _weights(self, loss: str, log_probabilities: Tensor, labels: Tensor, objective: gbw.Objective) -> Tensor:
        statistics = gbw.statistics_from_log_probabilities(
            log_probabilities,
            labels,
            objective=objective,
            gradient=self.gradient,
            min_pixels=self.min_pixels,
            valid_classes=self.known,
            synchronise=self.synchronise,
        )
        if self.smoothing:
            statistics = self._averaged(loss, statistics)
        return gbw.weights_from(
            statistics,
            regularization=self.regularization,
            gradient=self.gradient,
            relative=self.relative,
            budget=self.budget,
            valid_classes=self.known,
            renormalise=self.renormalise,
        )

    def _averaged(self, loss: str, statistics: gbw.Statistics) -> gbw.Statistics:
        """The exponential mean of the loss's statistics so far; early ones are not drawn towards the zeros it began
        with."""
        share = self.get_buffer(f"{loss}_share")
        share.mul_(self.smoothing).add_(1 - self.smoothing)
        means: list[Tensor] = []
        for name, value in statistics._asdict().items():
            running = self.get_buffer(f"{loss}_{name}")
            running.mul_(self.smoothing).add_(value, alpha=1 - self.smoothing)
            means.append(running / share)
        return gbw.Statistics(*means)


class BatchBalance(ClassWeights):
    """Weights of the batch at hand, raised for classes that are rare in it or often absent; see
    `adaptseg.losses.hard_pixels.batch_balance` (ensemble-distillation, by its released code).

    State: how often each class was absent of late, in the checkpoint.

    Args:
        boost: of rare and of absent classes; weights go up to its square.
        few_pixels: a class with fewer than this per image is rare.
        momentum: share of the running mean of absences that stays at each step.
    """

    def __init__(self, *, boost: float = 7.0, few_pixels: int = 64 * 64, momentum: float = 0.9) -> None:
        super().__init__()
        where = "model.class_weights"
        if boost < 1 or few_pixels < 0:
            raise AdaptSegError(f"{where}: boost {boost}, few_pixels {few_pixels} given; from 1 and from 0 on expected")
        if not 0 <= momentum < 1:
            raise AdaptSegError(f"{where}.momentum is {momentum}; a share inside [0, 1) is expected")
        self.boost, self.few_pixels, self.momentum = boost, few_pixels, momentum

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        for loss in losses:
            self.register_buffer(f"{loss}_often", torch.ones(class_table.num_classes))

    def _weights(self, loss: str, log_probabilities: Tensor, labels: Tensor, objective: gbw.Objective) -> Tensor:
        often = self.get_buffer(f"{loss}_often")
        weights, later = hard_pixels.batch_balance(
            labels, often, boost=self.boost, few_pixels=self.few_pixels, momentum=self.momentum
        )
        often.copy_(later)
        return weights


class ConstantWeights(ClassWeights):
    """Weights that are known before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", None, persistent=False)

    def _weights(self, loss: str, log_probabilities: Tensor, labels: Tensor, objective: gbw.Objective) -> Tensor:
        return self.weights


class InverseFrequency(ConstantWeights):
    """(1 / frequency) ** power of each class in the source's labels, mean 1 over the classes that occur.

    Args:
        power: 1 = inverse frequency, 0.5 = its square root, 0 = uniform.
    """

    def __init__(self, *, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        self.weights = frequency.inverse_frequency(torch.from_numpy(statistics().totals), power=self.power)


class MedianFrequency(ConstantWeights):
    """Median frequency over frequency of each class in the source's labels (Eigen and Fergus, ICCV 2015)."""

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        counted = statistics()
        shown_in = (counted.counts > 0).T @ counted.pixels
        self.weights = frequency.median_frequency(torch.from_numpy(counted.totals), torch.from_numpy(shown_in))


class EffectiveNumber(ConstantWeights):
    """Inverse effective number of source pixels of each class (Cui, Jia, Lin, Song, Belongie, CVPR 2019).

    Args:
        beta: inside [0, 1); 0 = uniform, towards 1 = inverse frequency. It matters where 1 / (1 - beta) is of the size
            of the pixel counts.
    """

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        self.weights = frequency.effective_number(torch.from_numpy(statistics().totals), self.beta)


class FixedWeights(ConstantWeights):
    """Weights as given, in train-id order.

    Args:
        weights: one number per class, 0 or more.
    """

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        if wrong := [weight for weight in weights if not 0 <= weight < math.inf]:
            raise AdaptSegError(f"model.class_weights.weights holds {wrong[0]}; finite numbers from 0 on are expected")
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        if len(self.weights) != class_table.num_classes:
            raise AdaptSegError(
                f"model.class_weights.weights has {len(self.weights)} numbers; class table '{class_table.name}' has "
                f"{class_table.num_classes} classes"
            )
