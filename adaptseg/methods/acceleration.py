"""Switches that make a network faster or smaller without changing what it computes beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks import Segmenter


@dataclass(frozen=True)
class Acceleration:
    """How the networks of a method are executed.

    Attributes:
        compile: `torch.compile` every network in place; the first steps take minutes, and again for each image size.
        channels_last: keep weights, and with them feature maps, in NHWC order, which tensor cores and many CPU kernels
            prefer.
        checkpoint_encoder: keep no activations inside the encoder's blocks in training but compute them again for the
            gradient: less memory, one more forward pass of the encoder.
        shared_backward: sum the losses of a step's passes and make one backward pass, as most releases do, instead of
            one after each pass: the same gradient, while the activations of all passes live at once.
    """

    compile: bool = False
    channels_last: bool = False
    checkpoint_encoder: bool = False
    shared_backward: bool = False

    def arrange(self, network: nn.Module) -> None:
        """Memory format and activations of a new network; compilation waits until its weights are where they stay."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.checkpoint_encoder:
            if not isinstance(network, Segmenter):
                raise AdaptSegError(
                    "model.acceleration.checkpoint_encoder is for networks of segmentation; "
                    f"{type(network).__name__} has no encoder: set it to false"
                )
            network.checkpoint_encoder()
