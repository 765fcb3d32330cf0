"""Frozen features of two convolutions, and a pixel classifier on them: what tests of low budgets run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptseg.errors import AdaptSegError
from adaptseg.networks import PixelSegmenter
from adaptseg.networks.feature_maps import FeatureMaps


class ConvFeatures(FeatureMaps):
    """Maps of 4 channels at stride 2 and of 3 at stride 4 (rounded up) of any image; draws add noise to it.

    Args:
        seed: of the weights and of the noise.
        constant: all features are equal.
    """

    def __init__(self, seed: int = 0, constant: bool = False) -> None:
        super().__init__([4, 3], seed)
        self.constant = constant
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 3, 3, 2, 1)
        self.requires_grad_(False).train(False)

    def _maps(self, images: Tensor, draw: int) -> list[Tensor]:
        self.forwards += len(images)
        shown = images + 0.3 * self._noise(images, draw) if draw else images
        fine = functional.elu(self.fine(shown))
        maps = [fine, self.coarse(fine)]
        return [torch.ones_like(m) for m in maps] if self.constant else maps

    def check(self, size: tuple[int, int]) -> None:
        if min(size) < 4:
            raise AdaptSegError(f"images of {size} are smaller than 4 pixels")

    def identity(self) -> dict[str, Any]:
        return {"features": "conv", "seed": self.seed, "constant": self.constant}

    def config(self) -> dict[str, Any]:
        return {"class_path": "small_features.ConvFeatures", "init_args": {"seed": self.seed}}


def conv_network(constant: bool = False) -> Callable[[int], PixelSegmenter]:
    """A factory as `model.network` takes it."""
    return lambda classes: PixelSegmenter(classes, ConvFeatures(constant=constant), hidden=[6, 5])
