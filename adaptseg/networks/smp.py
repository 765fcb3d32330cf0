"""Networks from segmentation-models-pytorch: any of its decoders on any smp or timm encoder, by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.encoder_decoder import EncoderDecoder
from adaptseg.networks.encoders import making
from adaptseg.networks.normalization import Norm

Decoder = Literal[
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN",
    "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer",
]  # fmt: skip


@dataclass(frozen=True)
class _Decoder:
    """How one smp model spells what our arguments mean.

    Attributes:
        width: the constructor arguments that follow from `decoder_channels`; None: the decoder has no such dial.
        dropout: the argument that takes `dropout`; None: the decoder has no dropout.
        output_stride: the argument that takes `output_stride`; None: the encoder is never dilated.
        output_strides: the values it may take, the default first.
        upsampling: whether the model up-samples its logits at the end, which we switch off.
        smallest: least height and width the decoder can digest, pixels.
    """

    model: Callable[..., nn.Module]
    width: Callable[[int], dict[str, Any]] | None = None
    dropout: str | None = None
    output_stride: str | None = None
    output_strides: tuple[int, ...] = ()
    upsampling: bool = True
    smallest: int = 1


def _pyramid(channels: int) -> dict[str, Any]:
    return {"decoder_channels": tuple(max(16, channels >> i) for i in range(5))}


def _plain(channels: int) -> dict[str, Any]:
    return {"decoder_channels": channels}


_DECODERS: dict[Decoder, _Decoder] = {
    "Unet": _Decoder(smp.Unet, _pyramid, upsampling=False),
    "UnetPlusPlus": _Decoder(smp.UnetPlusPlus, _pyramid, upsampling=False),
    "MAnet": _Decoder(smp.MAnet, _pyramid, upsampling=False),
    "Linknet": _Decoder(smp.Linknet, upsampling=False),
    "FPN": _Decoder(
        smp.FPN,
        lambda c: {"decoder_pyramid_channels": c, "decoder_segmentation_channels": c // 2},
        dropout="decoder_dropout",
    ),
    "PSPNet": _Decoder(smp.PSPNet, lambda c: {"psp_out_channels": c}, "psp_dropout", "output_stride", (8, 16)),
    # Feature pyramid attention pools the stride-16 map three times.
    "PAN": _Decoder(smp.PAN, _plain, None, "encoder_output_stride", (16,), smallest=128),
    "DeepLabV3": _Decoder(smp.DeepLabV3, _plain, "decoder_aspp_dropout", "encoder_output_stride", (8, 16)),
    "DeepLabV3Plus": _Decoder(smp.DeepLabV3Plus, _plain, "decoder_aspp_dropout", "encoder_output_stride", (16, 8)),
    "UPerNet": _Decoder(smp.UPerNet, _plain),
    "Segformer": _Decoder(smp.Segformer, lambda c: {"decoder_segmentation_channels": c}),
}


class SmpSegmenter(EncoderDecoder):
    """An smp decoder on an smp or timm encoder, with logits at the decoder's own stride.

    Native strides: 1 for Unet, UnetPlusPlus, MAnet, Linknet; 4 for FPN, PAN, DeepLabV3Plus, UPerNet, Segformer; the
    output stride for PSPNet and DeepLabV3.

    Images may have any size; see `EncoderDecoder`.

    Args:
        num_classes: C; linked from the data.
        decoder: name of an smp model. DPT is left out: it takes plain vision transformers only.
        encoder: name of an smp encoder ("resnet101", "mit_b5") or "tu-" and a timm name ("tu-convnext_tiny").
        weights: True: ImageNet weights from the hub (cached after the first time); False: random; or a local .pth,
            .pt or .safetensors file, read when the network is made.
        output_stride: stride of the encoder's last map, by dilation, for DeepLabV3 (default 8), DeepLabV3Plus (16),
            PSPNet (8, on all five encoder stages as published, where smp's default is three) and PAN (16 only).
        decoder_channels: width of the decoder's widest layer. In the Unet family it halves with every finer layer,
            down to 16; FPN takes multiples of 64, half of it after the pyramid. None: smp's default (256; PSPNet 512,
            PAN 32). Linknet has none.
        norm: "batch", "frozen" or "group", in encoder and decoder alike; see `replace_batch_norm`.
        dropout: probability before the last convolution, for FPN, PSPNet, DeepLabV3 and DeepLabV3Plus. None: smp's
            default (0.2, 0.2, 0.5, 0.5). DeepLabV3 and DeepLabV3Plus have it in their pyramid, convolutions before the
            classifier.
        last_dropout: probability of each value that the classifier reads, for any decoder (last-layer dropout, by which
            Didari et al., 2024, draw for BalEntAcq: with `dropout: 0` by it alone).

    Raises:
        AdaptSegError: an unknown name, an argument the decoder or encoder cannot honour, weights that are not there
            or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        decoder: Decoder = "DeepLabV3Plus",
        encoder: str = "resnet101",
        weights: bool | str = False,
        output_stride: Literal[8, 16] | None = None,
        decoder_channels: int | None = None,
        norm: Norm = "batch",
        dropout: float | None = None,
        last_dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, norm=norm, called=f"decoder {decoder}")
        if decoder not in _DECODERS:
            raise AdaptSegError(f"decoder: '{decoder}' given, one of {', '.join(_DECODERS)} expected")
        self._init_args = {
            "num_classes": num_classes,
            "decoder": decoder,
            "encoder": encoder,
            "weights": False,
            "output_stride": output_stride,
            "decoder_channels": decoder_channels,
            "norm": norm,
            "dropout": dropout,
            "last_dropout": last_dropout,
        }
        if not 0 <= last_dropout < 1:
            raise AdaptSegError(f"last_dropout: {last_dropout} given, a probability below 1 expected")
        arguments = _decoder_arguments(decoder, output_stride, decoder_channels, dropout)
        model = _make(decoder, encoder, num_classes, arguments, from_hub=weights is True)
        # smp's own names, so that state dicts of smp models load; smp's wrapper class itself is dropped.
        self.encoder = model.get_submodule("encoder")
        self.decoder = model.get_submodule("decoder")
        self.last_dropout = nn.Dropout(last_dropout)
        self.segmentation_head = model.get_submodule("segmentation_head")
        self._complete(encoder, weights, smallest=_DECODERS[decoder].smallest)

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.segmentation_head(self.last_dropout(self.decoder(features))), {}

    def config(self) -> dict[str, Any]:
        """See `Segmenter.config`."""
        return {"class_path": "adaptseg.networks.SmpSegmenter", "init_args": dict(self._init_args)}


def _decoder_arguments(
    decoder: Decoder, output_stride: int | None, decoder_channels: int | None, dropout: float | None
) -> dict[str, Any]:
    """smp's constructor arguments for what the user asked of the decoder."""
    spec = _DECODERS[decoder]
    arguments: dict[str, Any] = {"upsampling": 1} if spec.upsampling else {}
    if decoder == "PSPNet":
        arguments["encoder_depth"] = 5
    if output_stride is not None and output_stride not in spec.output_strides:
        allowed = " or ".join(map(str, spec.output_strides)) or "only null"
        raise AdaptSegError(f"output_stride: {output_stride} given, decoder {decoder} takes {allowed}")
    if spec.output_stride:
        arguments[spec.output_stride] = output_stride or spec.output_strides[0]
    if decoder_channels is not None:
        if spec.width is None or decoder_channels < 1:
            allowed = "null" if spec.width is None else "a positive number"
            raise AdaptSegError(f"decoder_channels: {decoder_channels} given, decoder {decoder} takes {allowed}")
        arguments |= spec.width(decoder_channels)
    if dropout is not None:
        if spec.dropout is None or not 0 <= dropout < 1:
            allowed = "null" if spec.dropout is None else "a probability below 1"
            raise AdaptSegError(f"dropout: {dropout} given, decoder {decoder} takes {allowed}")
        arguments[spec.dropout] = dropout
    return arguments


def _make(decoder: Decoder, encoder: str, classes: int, arguments: dict[str, Any], *, from_hub: bool) -> nn.Module:
    with making(f"decoder {decoder} on encoder '{encoder}'", encoder, from_hub=from_hub):
        return _DECODERS[decoder].model(
            encoder_name=encoder, encoder_weights="imagenet" if from_hub else None, classes=classes, **arguments
        )
