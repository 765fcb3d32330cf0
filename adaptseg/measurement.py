"""What `MeasureInconsistency` found between the two stages of DUDA, and the file it is kept in."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptseg import storage
from adaptseg.errors import AdaptSegError
from adaptseg.losses.inconsistency import class_inconsistency, inconsistency_weights, present_classes


@dataclass(frozen=True)
class Measurement:
    """What `MeasureInconsistency` found.

    Attributes:
        classes: names in train-id order.
        images: how many were read.
        confusion: (C, C) int64 pixel counts, rows = large network, columns = small one; untrusted pixels left out.
        divergence: (C,) float64 mean KL(large || small) by the large network's class, NaN where it never gives it; None
            where it was not asked for.
        large, small: which networks these were; for the reader.
    """

    classes: list[str]
    images: int
    confusion: Tensor
    divergence: Tensor | None
    large: str
    small: str

    def write(self, path: str | Path) -> None:
        """As one JSON, by rename. `inconsistency` and `weights` are for the reader, by the defaults of
        `adaptseg.losses.inconsistency`; only the counts and the divergence are read back.
        """
        kinds = {kind: class_inconsistency(self.confusion, kind=kind) for kind in ("iou", "recall")}
        if self.divergence is not None:
            kinds["kl"] = self.divergence
        present = present_classes(self.confusion)
        weights = {kind: inconsistency_weights(values, present=present) for kind, values in kinds.items()}
        document = asdict(self) | {
            "confusion": self.confusion.tolist(),
            "divergence": None if self.divergence is None else _or_null(self.divergence),
            "inconsistency": {kind: _or_null(values) for kind, values in kinds.items()},
            "weights": {kind: _or_null(values) for kind, values in weights.items()},
        }
        storage.atomic_json(path, document)

    @classmethod
    def read(cls, path: str | Path) -> Measurement:
        """AdaptSegError if the file is missing or holds something else."""
        document = storage.read_json(path)
        try:
            classes = [str(name) for name in document["classes"]]
            confusion = torch.tensor(document["confusion"], dtype=torch.int64)
            divergence = document["divergence"]
            if divergence is not None:
                values = [math.nan if value is None else value for value in divergence]
                divergence = torch.tensor(values, dtype=torch.float64)
            if confusion.shape != (len(classes), len(classes)) or int(confusion.min()) < 0:
                raise ValueError("its counts do not fit its classes")
            return cls(classes, int(document["images"]), confusion, divergence, document["large"], document["small"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise AdaptSegError(f"{path} was not written by the job MeasureInconsistency: {error}") from error


def _or_null(values: Tensor) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
