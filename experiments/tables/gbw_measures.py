"""What gbw_study.py measures at a fixed state of a network: weights of a batch, and losses and gradients of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

from adaptseg.data import Scenes
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.transforms import normalized, resized_image, resized_map
from adaptseg.losses import gbw
from adaptseg.metrics import SegmentationMetrics
from adaptseg.networks import Segmenter, resize_logits

BATCHES = (2, 4, 8)
"""Scenes in a batch."""
GRADIENTS: tuple[gbw.Gradient, ...] = ("channel", "class_loss", "mean_residual")


class Said(NamedTuple):
    """What a network says of some scenes.

    Attributes:
        log_p: (8, C, H, W) log-softmax at the size of the labels; fewer scenes in the last one.
        labels: (8, H, W) int64, 255 = void.
    """

    log_p: Tensor
    labels: Tensor


@torch.no_grad()
def said(segmenter: Segmenter, scenes: Scenes, keys: Sequence[str]) -> Iterator[Said]:
    """Eight scenes after the other, whole and as they are. In eval mode a scene says the same in every batch, so that
    batches of different sizes are cut from the same numbers."""
    segmenter.eval()
    for first in range(0, len(keys), max(BATCHES)):
        some = keys[first : first + max(BATCHES)]
        images = [normalized(resized_image(scenes.image(key), None), IMAGENET_MEAN, IMAGENET_STD) for key in some]
        labels = torch.stack([resized_map(scenes.labels(key), scenes.size(key)) for key in some])
        logits = segmenter(torch.stack(images)).logits.float()
        yield Said(resize_logits(logits, labels.shape[1:]).log_softmax(1), labels)


def batch_statistics(every: Sequence[Said], gradient: gbw.Gradient, batch: int) -> list[gbw.Statistics]:
    """Of each batch of so many scenes in turn; what is left over at the end makes none."""
    return [
        gbw.statistics_from_log_probabilities(
            one.log_p[i : i + batch], one.labels[i : i + batch], gradient=gradient
        )
        for one in every
        for i in range(0, len(one.labels) - batch + 1, batch)
    ]  # fmt: skip


def class_losses(every: Sequence[Said]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a pixel of each class in nats, NaN where it has none, and its pixels: both (C,) float64."""
    classes = every[0].log_p.shape[1]
    losses, pixels = torch.zeros(2, classes + 1, dtype=torch.float64)  # the last entry takes the void
    for log_p, labels in every:
        bins = labels.clamp(max=classes)
        own = -log_p.gather(1, bins.clamp(max=classes - 1)[:, None])[:, 0].double()
        losses.scatter_add_(0, bins.flatten(), own.flatten())
        pixels.scatter_add_(0, bins.flatten(), torch.ones_like(own).flatten())
    return (losses / pixels)[:classes], pixels[:classes]


def mean_gradients(statistics: Sequence[gbw.Statistics], gradient: gbw.Gradient) -> Tensor:
    """(C,) g_c^2, the mean over the batches that show the class; NaN where none does."""
    squares = torch.stack([gbw.squared_gradients(one, gradient) for one in statistics]).double()
    present = torch.stack([one.pixels for one in statistics]) > 0
    return torch.where(present, squares, 0).sum(0) / present.sum(0)


def spread(weights: Tensor, pixels: Tensor, rare: Sequence[int], inverse: Tensor) -> dict[str, float | None]:
    """How unequal the weights of batches are. "Present" classes have a pixel in the batch; no other weight is used.

    Args:
        weights: (B, C) of B batches, >= 0.
        pixels: (B, C) labelled pixels.
        rare: train ids.
        inverse: (C,) what grows as a class gets rarer.

    Returns:
        All but the last three are means over batches.
        `smallest`, `largest`, `deviation`: of the weights of present classes. `pixel_mean`: weight of a labelled pixel.
        `on_absent`: per cent of the sum of weights that absent classes hold. `rank`: Spearman of present classes'
        weights and `inverse`, None where weights are equal in all batches.
        `zero`: per cent of present classes with weight 0, over all batches. `rare`: mean weight of the rare classes
        wherever they are present. `between`: standard deviation of one class's weight over the batches that show it,
        mean over the classes that two of them show.
    """
    weights, pixels = weights.double(), pixels.double()
    present = pixels > 0
    shown = [row[here] for row, here in zip(weights, present, strict=True)]
    ranks = [spearman(row, inverse[here]) for row, here in zip(shown, present, strict=True)]
    found = [rank for rank in ranks if rank is not None]
    columns = [weights[here, c] for c, here in enumerate(present.T) if int(here.sum()) > 1]

    def mean(values: Sequence[Tensor]) -> float:
        return float(torch.stack(list(values)).mean())

    return {
        "smallest": mean([row.min() for row in shown]),
        "largest": mean([row.max() for row in shown]),
        "deviation": mean([row.std(correction=0) for row in shown]),
        "pixel_mean": mean([gbw.pixel_mean(row, n) for row, n in zip(weights, pixels, strict=True)]),
        "on_absent": 100 * float((torch.where(present, 0, weights).sum(1) / weights.sum(1)).mean()),
        "rank": sum(found) / len(found) if found else None,
        "zero": 100 * float((torch.cat(shown) == 0).double().mean()),
        "rare": float(weights[:, rare][present[:, rare]].mean()),
        "between": mean([column.std(correction=0) for column in columns]),
    }


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Rank correlation of two (n,) over the places where both are numbers; None where one of them ranks nothing."""
    both = ~(a.isnan() | b.isnan())
    a, b = a[both].double(), b[both].double()
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return None
    found: Any = spearmanr(a.numpy(), b.numpy())
    return float(found.statistic)


def judged(segmenter: Segmenter, scenes: Scenes) -> dict[str, Any]:
    """mIoU, and IoU, recall and loss of each class by name, on whole scenes."""
    every = list(said(segmenter, scenes, scenes.keys))
    metrics = SegmentationMetrics(scenes.class_table)
    for log_p, labels in every:
        metrics.update(log_p.argmax(1), labels)
    scores, (losses, _) = metrics.compute(), class_losses(every)
    by_class = {"iou": scores["iou"], "recall": scores["recall"], "loss": losses}
    names = scenes.class_table.names
    return {
        "miou": float(scores["miou"]),
        **{name: dict(zip(names, values.tolist(), strict=True)) for name, values in by_class.items()},
    }
