"""DeepLab-v3+ with the wide separable head that RIPU and its heirs were published with (Chen et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.encoder_decoder import EncoderDecoder
from adaptseg.networks.encoders import levels, make_encoder, spell
from adaptseg.networks.normalization import Norm
from adaptseg.networks.segmenter import resize_logits

_STRIDE, _FINE = 8, 4


class WideDeepLabV3Plus(EncoderDecoder):
    """An encoder dilated to stride 8, and separable ASPP joined with a shortcut from stride 4.

    Images may have any size; see `EncoderDecoder`. Logits have stride 4. smp's DeepLabV3Plus (in `SmpSegmenter`)
    has 256 channels, its dropout elsewhere, and a separable convolution less.

    RIPU's released network (Xie et al., CVPR 2022) is `encoder: tu-resnet101.tv_in1k` (torchvision's weights; the first
    block of a dilated stage keeps the dilation of the stage before, which smp's "resnet101" does not), `norm:
    frozen_without_eps` and `align_corners: true`. Two of its quirks: norms of the head are frozen before they have seen
    anything, hence do nothing, and published numbers belong to that; with live norms in the head (`head_norm`) it is
    another, better network.

    Args:
        num_classes: C; linked from the data.
        encoder: name of an smp encoder or "tu-" and a timm name that can be dilated, with a map at stride 4.
        weights: of the encoder. True: ImageNet weights from the hub (cached after the first time); False: random; or a
            local .pth, .pt or .safetensors file, read when the network is made.
        channels: width of every branch and of the decoder.
        shortcut_channels: what the stride-4 map is reduced to.
        dilations: of the branches; 1 is a 1x1 convolution, others are separable 3x3 ones.
        dropout: of whole channels before the classifier.
        norm: "batch", "frozen", "group" or "frozen_without_eps", of the encoder; see `replace_batch_norm`.
        head_norm: the same, of the head; None: as `norm`. Frozen ones do nothing here.
        align_corners: geometry of the up-sampling inside the head; True is RIPU's.

    Raises:
        AdaptSegError: an unknown name, an encoder without maps at strides 4 and 8, a number out of range, weights that
            are not there or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "resnet101",
        weights: bool | str = False,
        channels: int = 512,
        shortcut_channels: int = 48,
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        dropout: float = 0.1,
        norm: Norm = "batch",
        head_norm: Norm | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__(num_classes, norm=norm, head_norm=head_norm, called="WideDeepLabV3Plus")
        self._init_args = {
            "num_classes": num_classes,
            "encoder": encoder,
            "weights": False,
            "channels": channels,
            "shortcut_channels": shortcut_channels,
            "dilations": list(dilations),
            "dropout": dropout,
            "norm": norm,
            "head_norm": head_norm,
            "align_corners": align_corners,
        }
        found = levels(encoder, _STRIDE)
        strides = [level.stride for level in found]
        if strides[-1] != _STRIDE or _FINE not in strides:
            raise AdaptSegError(
                f"encoder: '{encoder}', dilated, has levels of strides {spell(found)}; WideDeepLabV3Plus needs one at "
                f"stride {_FINE} and the last at stride {_STRIDE}"
            )
        self._fine = strides.index(_FINE) - len(found)  # from the end: smp puts the image before the maps
        self.head = SeparableHead(
            found[-1].channels,
            found[self._fine].channels,
            num_classes,
            channels=channels,
            shortcut_channels=shortcut_channels,
            dilations=dilations,
            dropout=dropout,
            align_corners=align_corners,
        )
        self.encoder = make_encoder(encoder, from_hub=weights is True, output_stride=_STRIDE)
        self._complete(encoder, weights)

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(features[-1], features[self._fine]), {}

    def config(self) -> dict[str, Any]:
        """See `Segmenter.config`."""
        return {"class_path": "adaptseg.networks.WideDeepLabV3Plus", "init_args": dict(self._init_args)}


class SeparableHead(nn.Module):
    """Last map (B, coarse_channels, h, w) and fine map (B, fine_channels, H, W) to logits (B, num_classes, H, W).

    Branches of several dilations and one of the image's mean are fused by a 3x3 convolution, resized to the fine map,
    and decoded together with a 1x1 reduction of it. Every convolution starts Kaiming-normal over the fan-in, as in
    RIPU's released code; only the classifier has a bias. Arguments as of `WideDeepLabV3Plus`.
    """

    def __init__(
        self,
        coarse_channels: int,
        fine_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        shortcut_channels: int = 48,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        for name, given in (("channels", channels), ("shortcut_channels", shortcut_channels)):
            if given < 1:
                raise AdaptSegError(f"{name}: {given} given, a positive number expected")
        if not dilations or min(dilations) < 1:
            raise AdaptSegError(f"dilations: {list(dilations)} given, one or more positive numbers expected")
        if not 0 <= dropout < 1:
            raise AdaptSegError(f"dropout: {dropout} given, a probability below 1 expected")
        self.branches = nn.ModuleList(
            _block(coarse_channels, channels) if d == 1 else _separable(coarse_channels, channels, d) for d in dilations
        )
        self.mean = _block(coarse_channels, channels)
        self.bottleneck = _block(channels * (len(dilations) + 1), channels, 3)
        self.shortcut = _block(fine_channels, shortcut_channels)
        self.decoder = nn.Sequential(
            _separable(channels + shortcut_channels, channels, 1), _separable(channels, channels, 1)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.align_corners = align_corners
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        mean = self.mean(F.adaptive_avg_pool2d(coarse, 1)).expand(-1, -1, *coarse.shape[-2:])
        context = self.bottleneck(torch.cat([*(branch(coarse) for branch in self.branches), mean], 1))
        context = resize_logits(context, (fine.shape[-2], fine.shape[-1]), self.align_corners)
        decoded = self.decoder(torch.cat([context, self.shortcut(fine)], 1))
        return self.classifier(self.dropout(decoded))


def _separable(in_channels: int, channels: int, dilation: int) -> nn.Sequential:
    """A 3x3 convolution split into a depth-wise and a point-wise one, each with norm and ReLU."""
    return nn.Sequential(
        *_block(in_channels, in_channels, 3, dilation=dilation, groups=in_channels), *_block(in_channels, channels)
    )


def _block(in_channels: int, channels: int, kernel: int = 1, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            channels,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
