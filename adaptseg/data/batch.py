"""What one optimiser step sees. Methods and acquisition meet only here: a target scene may carry bought labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Labelled(NamedTuple):
    """Scenes with labels: the source domain in training; validation and test sets.

    Attributes:
        keys: B scene names.
        image: (B, 3, H, W) float32, normalised.
        labels: (B, H', W') int64 train ids, 255 = void. H' x W' = H x W in training, native size in evaluation.
        instances: (B, H, W) int64, 0 = none; None unless the data module was asked for instances.
    """

    keys: list[str]
    image: Tensor
    labels: Tensor
    instances: Tensor | None = None


class Target(NamedTuple):
    """Target training scenes: never ground truth, only what was bought.

    Attributes:
        keys: B scene names.
        image: (B, 3, H, W) float32, normalised.
        trusted: (B, H, W) bool, False where a pixel must give no pseudo-label (margins of the picture).
        bought: (B, H, W) int64 train ids, 255 wherever nothing was bought or the answer was void.
        bought_pixels: how many of `bought` are not 255, counted before the batch moves to a device, so that a method
            can skip an unlabelled batch without waiting for the device.
    """

    keys: list[str]
    image: Tensor
    trusted: Tensor
    bought: Tensor
    bought_pixels: int


class Batch(NamedTuple):
    """One training batch.

    Attributes:
        source: None for target-only data.
        target: None for source-only training.
        samples: global sample number of each of the B positions, in any domain. A method derives the random draws of a
            position from it, so that one process and many draw alike; empty where a batch was made by hand.
    """

    source: Labelled | None
    target: Target | None
    samples: Sequence[int] = ()
