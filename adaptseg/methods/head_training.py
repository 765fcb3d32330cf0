"""How a pixel head learns within one round of labels (two-stage eDALD; specification 2.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adaptseg.errors import AdaptSegError


@dataclass(frozen=True)
class HeadTraining:
    """How the head learns within one round (released code).

    Attributes:
        lr: Adam's rate.
        least_lr: to which it swings down and up again.
        half_period: passes over the pool from the highest to the lowest rate: a cosine without restarts, as torch's
            `CosineAnnealingLR` runs on beyond its T_max.
        weight_decay: L2.
        patience: labelled batches in a row without a new least loss after which the head rests until the next round;
            null = it learns to the round's end.
        first_passes: passes over the pool before patience is counted.
        dropout: on the logits in training; what BALD and its kin draw with.
    """

    lr: float = 1e-3
    least_lr: float = 1e-6
    half_period: float = 5.0
    weight_decay: float = 1e-5
    patience: int | None = 50
    first_passes: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise AdaptSegError(f"model.training.dropout is {self.dropout}; a probability in [0, 1) is expected")
        if self.first_passes < 0 or (self.patience is not None and self.patience < 0):
            raise AdaptSegError(
                f"model.training has patience {self.patience} and first_passes {self.first_passes}; 0 or more expected"
            )
        if not 0 < self.least_lr <= self.lr or self.half_period <= 0:
            raise AdaptSegError(
                f"model.training has lr {self.lr}, least_lr {self.least_lr} and half_period {self.half_period}; "
                "0 < least_lr <= lr and a positive half_period are expected"
            )

    def rate(self, passes: int) -> float:
        """Learning rate during pass number `passes` (from 0) of a round."""
        return self.least_lr + (self.lr - self.least_lr) * (1 + math.cos(math.pi * passes / self.half_period)) / 2
