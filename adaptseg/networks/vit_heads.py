"""Light heads for plain transformers: from maps of tokens to logits at about a quarter of the image.

Light: VFM-UDA (Englert et al., CVPR workshops 2024, arXiv 2406.09896), layer by layer as released. Pyramid: VFM-UDA++
(arXiv 2503.10685), whose four levels come from an adapter with a compiled operator there, and from intermediate blocks
by plain convolutions here (inferred).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

LEVELS = 4
"""Levels of a pyramid, at strides of a quarter, a half, one and two patches."""


class LightHead(nn.Sequential):
    """Tokens (B, D, h, w) to logits (B, C, 4h, 4w): two transposed convolutions, one convolution, a classifier.

    Args:
        width: D, a multiple of 4.
        num_classes: C.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        half, quarter = width // 2, width // 4
        super().__init__(
            nn.ConvTranspose2d(width, half, 2, stride=2, bias=False),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2, bias=False),
            LayerNorm2d(quarter),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            LayerNorm2d(quarter),
            _classifier(quarter, num_classes),
        )


class TokenPyramid(nn.Module):
    """Four maps (B, D, h, w) from early to late blocks to four levels (B, D, ., .), fine to coarse: 4h, 2h, h and
    ceil(h / 2) rows. The first is up-sampled twice by transposed convolutions, the second once, the last down-sampled
    by a strided convolution; a norm ends each level. Inferred, see above.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            (
                nn.Sequential(_doubled(width), LayerNorm2d(width), nn.GELU(), _doubled(width), LayerNorm2d(width)),
                nn.Sequential(_doubled(width), LayerNorm2d(width)),
                LayerNorm2d(width),
                nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), LayerNorm2d(width)),
            )
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [level(cells) for level, cells in zip(self.levels, maps, strict=True)]


class PyramidHead(nn.Module):
    """Levels (B, D, h_i, w_i), fine to coarse, to logits (B, C, h_0, w_0), from the coarsest level up.

    The widths are D/2, D/4, D/8: at each step the coarse map is up-sampled by a transposed convolution, the finer level
    reduced by a 1x1 convolution, and their sum smoothed by a 3x3 one, normalised and rectified; a last 3x3 convolution
    follows. As released, but with layer norms, which need no batch, in place of batch norms.

    Args:
        width: D, a multiple of 8.
        num_classes: C.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        widths = [width >> step for step in range(LEVELS)]
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.reduce = nn.ModuleList(nn.Conv2d(width, narrow, 1) for narrow in widths[1:])
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(narrow, narrow, 3, padding=1), LayerNorm2d(narrow), nn.ReLU())
            for narrow in widths[1:]
        )
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                transposed = isinstance(module, nn.ConvTranspose2d)  # torch counts its fans the other way round
                nn.init.kaiming_uniform_(module.weight, mode="fan_out" if transposed else "fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        self.classifier = _classifier(widths[-1], num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *finer, fused = levels
        steps = zip(reversed(finer), self.enlarge, self.reduce, self.smooth, strict=True)
        for level, enlarge, reduce, smooth in steps:
            height, width = level.shape[-2:]
            # The coarsest level has half a cell too many where the patch grid is odd.
            fused = smooth(enlarge(fused)[..., :height, :width] + reduce(level))
        return self.classifier(self.last(fused))


def projection(width: int, reference: int) -> nn.Sequential:
    """The head (B, width, h, w) to (B, reference, h, w) that compares features of one encoder with another's."""
    return nn.Sequential(
        nn.Conv2d(width, 4 * width, 1), LayerNorm2d(4 * width), nn.GELU(), nn.Conv2d(4 * width, reference, 1)
    )


def _doubled(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def _classifier(width: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, num_classes, 1, bias=False)
    torch.nn.init.normal_(layer.weight, std=0.1)
    return layer
