"""Switches that make a network faster without changing what it computes beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Acceleration:
    """How the networks of a method are executed.

    Attributes:
        compile: `torch.compile` every network in place; the first steps take minutes, and again for each image size.
        channels_last: keep weights, and with them feature maps, in NHWC order, which tensor cores and many CPU kernels
            prefer.
    """

    compile: bool = False
    channels_last: bool = False

    def arrange(self, network: nn.Module) -> None:
        """The memory format of a new network; compilation waits until its weights are where they stay."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
