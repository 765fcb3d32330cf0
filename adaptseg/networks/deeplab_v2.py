"""DeepLab-v2: a dilated ResNet and a sum of dilated classifiers (Chen et al., TPAMI 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.encoder_decoder import EncoderDecoder
from adaptseg.networks.encoders import levels, make_encoder, spell
from adaptseg.networks.normalization import Norm

_STRIDE = 8


class DeepLabV2(EncoderDecoder):
    """The network of most methods before DAFormer: an encoder dilated to stride 8 and a head without norm or dropout.

    Images may have any size; see `EncoderDecoder`. Logits have stride 8. The original dilates every block of the last
    two stages by 2 and 4, which is what smp's "resnet101" does; "tu-resnet101c" has the deep stem (three 3x3
    convolutions) and leaves the first block of each stage at the dilation of the stage before, as DAFormer's release.
    RIPU's (Xie et al., CVPR 2022) is "tu-resnet101.tv_in1k" with all four dilations and `norm: frozen_without_eps`; its
    biases start as torch draws them, ours at zero.

    Args:
        num_classes: C; linked from the data.
        encoder: name of an smp encoder or "tu-" and a timm name that can be dilated.
        weights: of the encoder. True: ImageNet weights from the hub (cached after the first time); False: random; or a
            local .pth, .pt or .safetensors file, read when the network is made.
        dilations: of the 3x3 convolutions whose sum are the logits. (6, 12, 18, 24) in the paper and in RIPU; (6, 12)
            in AdaptSegNet and its heirs, DAFormer's code base among them, where a return inside the loop over the four
            was kept for comparability.
        auxiliary_dilations: of a second head on the stage before the last (conv4 in ResNet's paper), whose logits come
            as `auxiliary["conv4"]`, stride 8; the multi-level adversarial methods train on it. None: no such head.
        norm: "batch", "frozen", "group" or "frozen_without_eps", of the encoder; see `replace_batch_norm`.

    Raises:
        AdaptSegError: an unknown name, an encoder that cannot be dilated to stride 8, a number out of range, weights
            that are not there or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "resnet101",
        weights: bool | str = False,
        dilations: tuple[int, ...] = (6, 12),
        auxiliary_dilations: tuple[int, ...] | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__(num_classes, norm=norm, called="DeepLabV2")
        self._init_args = {
            "num_classes": num_classes,
            "encoder": encoder,
            "weights": False,
            "dilations": list(dilations),
            "auxiliary_dilations": None if auxiliary_dilations is None else list(auxiliary_dilations),
            "norm": norm,
        }
        found = levels(encoder, _STRIDE)
        if [level.stride for level in found[-2:]] != [_STRIDE, _STRIDE]:
            raise AdaptSegError(
                f"encoder: '{encoder}', dilated, has levels of strides {spell(found)}; DeepLabV2 needs the last two at "
                f"stride {_STRIDE}"
            )
        self.head = DilatedSum(found[-1].channels, num_classes, dilations)
        self.auxiliary_head = (
            None
            if auxiliary_dilations is None
            else DilatedSum(found[-2].channels, num_classes, auxiliary_dilations, argument="auxiliary_dilations")
        )
        self.encoder = make_encoder(encoder, from_hub=weights is True, output_stride=_STRIDE)
        self._complete(encoder, weights)

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        auxiliary = {} if self.auxiliary_head is None else {"conv4": self.auxiliary_head(features[-2])}
        return self.head(features[-1]), auxiliary

    @property
    def auxiliary_logits(self) -> frozenset[str]:
        """See `Segmenter.auxiliary_logits`."""
        return frozenset() if self.auxiliary_head is None else frozenset({"conv4"})

    def config(self) -> dict[str, Any]:
        """See `Segmenter.config`."""
        return {"class_path": "adaptseg.networks.DeepLabV2", "init_args": dict(self._init_args)}


class DilatedSum(nn.Module):
    """Sum of 3x3 convolutions of several dilations, (B, in_channels, h, w) to (B, num_classes, h, w).

    Weights start normal with standard deviation 0.01, biases at zero, as in DAFormer's released code.

    Args:
        argument: the setting that `dilations` came from, for messages.
    """

    def __init__(
        self, in_channels: int, num_classes: int, dilations: Sequence[int], *, argument: str = "dilations"
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise AdaptSegError(f"{argument}: {list(dilations)} given, one or more positive numbers expected")
        self.branches = nn.ModuleList(nn.Conv2d(in_channels, num_classes, 3, padding=d, dilation=d) for d in dilations)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(branch.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            first = first + other
        return first
