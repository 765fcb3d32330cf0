"""Segmentation metrics with a stated rule for absent classes, and how evenly labels are spread over classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from adaptseg.classes import VOID, ClassTable
from adaptseg.errors import AdaptSegError


class SegmentationMetrics(Metric):
    """IoU per class over everything seen since the last reset, on every process together.

    Areas are summed over the whole data set in int64, so batching, order and world size change nothing. The rule for
    absent classes: a class with no pixel in the ground truth has IoU NaN and is left out of the mean and of the worst
    class; pixels wrongly predicted as it still count as misses of the classes they belong to. Void pixels (255)
    count nowhere.
    """

    full_state_update = False
    is_differentiable = False
    confusion: Tensor

    def __init__(self, class_table: ClassTable) -> None:
        super().__init__()
        self.class_table = class_table
        classes = class_table.num_classes
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add predicted (B, H, W) integer train ids, never void, and labels (B, H, W) integer with 255 = void.

        Raises:
            AdaptSegError: the shapes differ, or an id is outside the class table.
        """
        self.confusion += confusion_matrix(predicted, labels, self.class_table.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """All numbers in 0..1, float64, NaN where no labelled pixel defines them (everything but `worst_class`, when
        there was none at all):

        * `iou` (C,), `recall` (C,): NaN for absent classes
        * `miou` (): mean IoU of the classes present
        * `miou_<subset>` (): the same over each subset of classes that the class table declares
        * `worst` (), `worst_class` () int64: the lowest IoU of a class present and which (the first of equals; -1 when
          none is present)
        * `accuracy` (): share of labelled pixels predicted right
        """
        confusion = self.confusion
        iou = iou_from_confusion(confusion)
        truth = confusion.sum(1).double()
        hits = confusion.diagonal().double()
        worst, worst_class = torch.where(iou.isnan(), math.inf, iou).min(0)
        none = truth.sum() == 0
        return {
            "iou": iou,
            "recall": hits / truth,
            "miou": iou.nanmean(),
            **{f"miou_{name}": iou[self._indices(name)].nanmean() for name in self.class_table.subsets},
            "worst": torch.where(none, math.nan, worst),
            "worst_class": torch.where(none, -1, worst_class),
            "accuracy": hits.sum() / truth.sum(),
        }

    def _indices(self, subset: str) -> list[int]:
        return [self.class_table.names.index(name) for name in self.class_table.subsets[subset]]

    def absent(self) -> list[str]:
        """Names of the classes without a pixel in the ground truth so far (of this process, before synchronisation)."""
        present = self.confusion.sum(1).cpu() > 0
        return [name for name, here in zip(self.class_table.names, present.tolist(), strict=True) if not here]


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pixels by (true class, predicted class), exactly; void left out.

    Args:
        predicted: any shape, integer in 0..num_classes-1 (also where the label is void).
        labels: the same shape, integer in 0..num_classes-1 or 255.

    Returns:
        (C, C) int64, rows = truth.

    Raises:
        AdaptSegError: the shapes differ, or an id is outside its range.
    """
    if predicted.shape != labels.shape:
        raise AdaptSegError(f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape")
    for name, ids in (("predicted", predicted), ("labels", labels)):
        if ids.is_floating_point() or ids.is_complex():
            raise AdaptSegError(f"{name} ids are {ids.dtype}; integer train ids are expected")
    predicted, labels = predicted.long(), labels.long()
    counted = labels != VOID
    wrong_predicted = (predicted < 0) | (predicted >= num_classes)
    wrong_labels = counted & ((labels < 0) | (labels >= num_classes))
    if bool((wrong_predicted | wrong_labels).any()):
        name, ids = (
            ("predicted", predicted[wrong_predicted]) if wrong_predicted.any() else ("labels", labels[wrong_labels])
        )
        listed = ", ".join(str(value) for value in ids.unique()[:8].tolist())
        raise AdaptSegError(f"{name} ids {listed} are outside 0..{num_classes - 1}")
    pairs = labels[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def iou_from_confusion(confusion: Tensor) -> Tensor:
    """IoU = hits / (truth + predicted - hits) of a confusion matrix (C, C) with rows = truth: (C,) float64, NaN for a
    class absent from the ground truth, even when it was predicted."""
    confusion = confusion.double()
    hits, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return torch.where(truth > 0, hits / (truth + predicted - hits), math.nan)


def label_balance_entropy(counts: Tensor) -> float:
    """How evenly labels are spread over classes: H(n / sum n) / log C, from 0 (one class, or no label at all) to 1.

    Args:
        counts: (C,) labelled pixels per class, void left out; C >= 2.

    Raises:
        AdaptSegError: fewer than two classes, or a negative or non-finite count.
    """
    numbers = counts.detach().double().cpu()
    if numbers.ndim != 1 or len(numbers) < 2:
        raise AdaptSegError(
            f"counts have shape {tuple(numbers.shape)}; one number for each of at least 2 classes is expected"
        )
    if not bool((numbers.isfinite() & (numbers >= 0)).all()):
        raise AdaptSegError(f"counts must be finite and not negative, got {numbers.tolist()}")
    if numbers.sum() == 0:
        return 0.0
    shares = numbers / numbers.sum()
    return float(torch.special.entr(shares).sum()) / math.log(len(numbers))
