"""Class weights from how differently a large and a small network see the target (DUDA, stage 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from adaptseg.classes import ClassTable
from adaptseg.data.statistics import ClassStatistics
from adaptseg.errors import AdaptSegError
from adaptseg.losses.inconsistency import (
    Normalisation,
    class_inconsistency,
    inconsistency_weights,
    present_classes,
)
from adaptseg.measurement import Measurement
from adaptseg.methods.class_weights import ConstantWeights


class InconsistencyWeights(ConstantWeights):
    """Weights measured once, between the two stages, by `MeasureInconsistency`; see `adaptseg.losses.inconsistency`.

    Args:
        measurement: the `inconsistency.json` of that job.
        kind: what counts as inconsistent: `iou`, `recall`, or `kl`, which the measurement must hold (inferred: `iou`).
        normalisation: of the inconsistencies (inferred: `mean1`, which keeps the scale of the loss).
        temperature: of `softmax`.
        strength: beta; 0 would weigh nothing and is refused.
        bounds: lowest and highest weight.
        keep_mean: make the mean over present classes exactly 1.
        min_pixels: classes that the two networks together give no more pixels weigh 1.
        known_only: classes that the source never shows (SYNTHIA's truck, train, terrain) weigh 1 and are left out of
            the normalisation.
    """

    def __init__(
        self,
        measurement: str,
        *,
        kind: Literal["iou", "recall", "kl"] = "iou",
        normalisation: Normalisation = "mean1",
        temperature: float = 1.0,
        strength: float = 1.0,
        bounds: tuple[float, float] = (0.25, 4.0),
        keep_mean: bool = True,
        min_pixels: int = 0,
        known_only: bool = False,
    ) -> None:
        super().__init__()
        if strength <= 0:
            raise AdaptSegError(
                f"model.class_weights.strength is {strength}; a positive number is expected, or class_weights: null"
            )
        self.path, self.measurement = measurement, Measurement.read(measurement)
        self.kind: Literal["iou", "recall", "kl"] = kind
        self.normalisation: Normalisation = normalisation
        self.temperature, self.strength, self.bounds = temperature, strength, bounds
        self.keep_mean, self.min_pixels, self.known_only = keep_mean, min_pixels, known_only

    def prepare(
        self, class_table: ClassTable, losses: Sequence[str], statistics: Callable[[], ClassStatistics]
    ) -> None:
        if self.measurement.classes != list(class_table.names):
            raise AdaptSegError(
                f"model.class_weights.measurement {self.path} is about {', '.join(self.measurement.classes)}; "
                f"class table '{class_table.name}' has {', '.join(class_table.names)}"
            )
        present = present_classes(self.measurement.confusion, minimum=self.min_pixels)
        if self.known_only:
            present &= torch.from_numpy(statistics().totals > 0)
        self.weights = inconsistency_weights(
            self._inconsistency(),
            present=present,
            normalisation=self.normalisation,
            temperature=self.temperature,
            strength=self.strength,
            bounds=self.bounds,
            keep_mean=self.keep_mean,
        )

    def _inconsistency(self) -> Tensor:
        if self.kind != "kl":
            return class_inconsistency(self.measurement.confusion, kind=self.kind)
        if self.measurement.divergence is None:
            raise AdaptSegError(
                f"model.class_weights.kind is 'kl', but {self.path} was measured without it: "
                "measure with the job's `divergence: true`"
            )
        return self.measurement.divergence
