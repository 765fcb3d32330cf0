"""The discriminator of AdaptSegNet and AdvEnt: which domain does this part of a prediction come from?"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from adaptseg.errors import AdaptSegError

LEAST_SIDE = 32
"""Pixels that a map must have in height and width: five layers halve it."""


class Discriminator(nn.Module):
    """Fully convolutional: five 4x4 convolutions of stride 2, leaky ReLU of slope 0.2 between them, no norm (Tsai et
    al., CVPR 2018, "Discriminator"; initialised by torch's defaults, as released).

    Args:
        num_classes: C, the channels of the maps it judges.
        width: channels of the first layer, 64 as released; the next three double them.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        if num_classes < 2:
            raise AdaptSegError(f"discriminator: num_classes {num_classes} given, at least 2 expected")
        if width < 1:
            raise AdaptSegError(f"discriminator: width {width} given, a positive number expected")
        self.num_classes = num_classes
        widths = [num_classes, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Raw scores (B, 1, H // 32, W // 32) of class maps (B, C, H, W).

        Raises:
            AdaptSegError: another number of channels, or maps below 32x32.
        """
        if maps.ndim != 4 or maps.shape[1] != self.num_classes:
            raise AdaptSegError(
                f"a discriminator of {self.num_classes} classes was given maps {tuple(maps.shape)}; it judges "
                f"(B, {self.num_classes}, H, W)"
            )
        if min(maps.shape[-2:]) < LEAST_SIDE:
            size = "x".join(map(str, maps.shape[-2:]))
            raise AdaptSegError(
                f"the discriminator was given maps of {size} pixels; it needs {LEAST_SIDE}x{LEAST_SIDE} or more: "
                "enlarge data.crop, data.source_size or data.target_size"
            )
        return self.layers(maps)
