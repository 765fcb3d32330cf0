"""DAFormer: every level of a hierarchical encoder, fused with context (Hoyer, Dai and Van Gool, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.encoder_decoder import EncoderDecoder
from adaptseg.networks.encoders import levels, make_encoder, spell
from adaptseg.networks.normalization import Norm
from adaptseg.networks.segmenter import resize_logits

Fusion = Literal["aspp", "conv1x1"]

_STRIDES = [4, 8, 16, 32]


class DAFormer(EncoderDecoder):
    """The DAFormer head on an encoder whose last four levels have strides 4, 8, 16 and 32; logits at stride 4.

    Images may have any size; see `EncoderDecoder`. The published network is MiT-B5 with the defaults below. smp's MiT
    drops paths in training at a rate that rises linearly from 0 to 0.1 over its blocks, as published.

    Args:
        num_classes: C; linked from the data.
        encoder: name of an smp encoder ("mit_b0" to "mit_b5") or "tu-" and a timm name ("tu-convnext_tiny").
        weights: of the encoder. True: ImageNet weights from the hub (cached after the first time); False: random; or a
            local .pth, .pt or .safetensors file, read when the network is made.
        channels: width of the head.
        dilations: one branch of the ASPP each, for `fusion: aspp`.
        dropout: probability of dropping a whole channel before the classifier.
        norm: "batch", "frozen" or "group", in encoder and head alike; see `replace_batch_norm`.
        fusion: "aspp", or "conv1x1" without any context (SegFormer's; HRDA's attention head).

    Raises:
        AdaptSegError: an unknown name, an encoder with other levels, a number out of range, weights that are not there
            or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "mit_b5",
        weights: bool | str = False,
        channels: int = 256,
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        dropout: float = 0.1,
        norm: Norm = "batch",
        fusion: Fusion = "aspp",
    ) -> None:
        super().__init__(num_classes, norm=norm, called="DAFormer")
        self._init_args = {
            "num_classes": num_classes,
            "encoder": encoder,
            "weights": False,
            "channels": channels,
            "dilations": list(dilations),
            "dropout": dropout,
            "norm": norm,
            "fusion": fusion,
        }
        found = levels(encoder)
        if [level.stride for level in found[-4:]] != _STRIDES:
            raise AdaptSegError(
                f"encoder: '{encoder}' has levels of strides {spell(found)}; DAFormer needs its last four at strides "
                "4, 8, 16, 32"
            )
        self.head = DAFormerHead(
            [level.channels for level in found[-4:]],
            num_classes,
            channels=channels,
            dilations=dilations,
            dropout=dropout,
            fusion=fusion,
        )
        self.encoder = make_encoder(encoder, from_hub=weights is True)
        self._complete(encoder, weights)

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(features[-4:]), {}

    def config(self) -> dict[str, Any]:
        """See `Segmenter.config`."""
        return {"class_path": "adaptseg.networks.DAFormer", "init_args": dict(self._init_args)}


class DAFormerHead(nn.Module):
    """Maps of an encoder, (B, in_channels[i], h_i, w_i) fine to coarse, to logits (B, C, h_0, w_0).

    Each level is embedded linearly, all are resized to the finest, concatenated, fused, and classified (paper, section
    3.2 and figure 3). Convolutions before a norm start Kaiming-normal over the fan-out, the classifier normal with
    standard deviation 0.01, the embeddings as torch starts linear layers: all as in the released code.

    Args:
        in_channels: one number a level.
        num_classes: C.
        channels, dilations, dropout, fusion: see `DAFormer`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
        fusion: Fusion = "aspp",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise AdaptSegError(f"channels: {channels} given, a positive number expected")
        if not 0 <= dropout < 1:
            raise AdaptSegError(f"dropout: {dropout} given, a probability below 1 expected")
        if fusion not in ("aspp", "conv1x1"):
            raise AdaptSegError(f"fusion: '{fusion}' given, one of aspp, conv1x1 expected")
        concatenated = channels * len(in_channels)
        self.embed = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.fuse = _Aspp(concatenated, channels, dilations) if fusion == "aspp" else _block(concatenated, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = (features[0].shape[-2], features[0].shape[-1])
        embedded = [embed(level) for embed, level in zip(self.embed, features, strict=True)]
        fused = self.fuse(torch.cat([resize_logits(level, size) for level in embedded], 1))
        return self.classifier(self.dropout(fused))


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling: branches of other reach beside one another, then one convolution over all.

    A branch is a 3x3 convolution split into a depth-wise and a point-wise one, or, at dilation 1, a 1x1 convolution;
    there is no branch for the image's mean.
    """

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise AdaptSegError(f"dilations: {list(dilations)} given, one or more positive numbers expected")
        self.branches = nn.ModuleList(
            _block(in_channels, channels, 1)
            if dilation == 1
            else nn.Sequential(
                *_block(in_channels, in_channels, 3, dilation=dilation, groups=in_channels),
                *_block(in_channels, channels, 1),
            )
            for dilation in dilations
        )
        self.bottleneck = _block(channels * len(dilations), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(torch.cat([branch(x) for branch in self.branches], 1))


def _block(in_channels: int, channels: int, kernel: int, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, norm, ReLU."""
    convolution = nn.Conv2d(
        in_channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
