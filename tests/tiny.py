"""The smallest real network and recipe that the suite trains: no batch norm, no dropout, stride 4."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adaptseg.networks import Output, Segmenter


class TinySegmenter(Segmenter):
    """Two convolutions at stride 4 and a linear classifier."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__(num_classes)
        self.width = width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        self._refuse_unsupported(crop=crop, token_mask=token_mask)
        features = self.encoder(images)
        return Output(self.head(features), [features], {})

    def config(self) -> dict[str, Any]:
        return {"class_path": "tiny.TinySegmenter", "init_args": {"num_classes": self.num_classes, "width": self.width}}

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        return self.head.parameters()


class DroppingSegmenter(TinySegmenter):
    """The same with dropout of channels and of values."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__(num_classes, width)
        self.head = nn.Sequential(nn.Dropout2d(0.3), nn.Dropout(0.2), self.head)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "class_path": "tiny.DroppingSegmenter"}


class PoisonedOnSecond(TinySegmenter):
    """NaN in training, on the second of two processes alone."""

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        output = super().forward(images, crop=crop, token_mask=token_mask)
        poison = math.nan if self.training and os.environ.get("LOCAL_RANK") == "1" else 1.0
        return output._replace(logits=output.logits * poison)


def tiny_network(num_classes: int) -> TinySegmenter:
    """A factory as `model.network` takes it, with weights that depend on nothing but this line."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return TinySegmenter(num_classes)


def tiny_flags(*, steps: int = 20, scenes: int = 4, size: tuple[int, int] = (32, 64)) -> list[str]:
    """Flags that shrink any recipe on Streets to a few seconds: `adaptseg fit --config X.yaml *tiny_flags()`."""
    flags = [
        "--model.network", "tiny.TinySegmenter",
        "--trainer.max_steps", str(steps),
        "--trainer.accelerator", "cpu",
        "--data.batch_size", "2",
        "--data.workers", "0",
    ]  # fmt: skip
    for split in ("source", "target", "val", "test"):
        flags += [f"--data.{split}.count", str(scenes), f"--data.{split}.size", f"[{size[0]}, {size[1]}]"]
    return flags
