"""Vision foundation models as networks: a plain transformer of timm with a light head (VFM-UDA, VFM-UDA++)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.segmenter import Argument, Output, Segmenter
from adaptseg.networks.vit_encoder import TokenEncoder
from adaptseg.networks.vit_heads import LEVELS, LightHead, PyramidHead, TokenPyramid


class TokenSegmenter(Segmenter):
    """What networks on a plain transformer share; not one itself.

    Images of any size are resized to whole patches, so that all maps cover them exactly; see `TokenEncoder`. Tokens can
    be hidden. A subclass makes its head after calling this constructor.

    Args:
        num_classes: C; linked from the data.
        encoder, weights, scale, drop_path_rate: see `TokenEncoder`.
        width_divisor: what the head divides the encoder's width by.
    """

    accepts: ClassVar[frozenset[Argument]] = frozenset({"token_mask"})

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str,
        weights: bool | str,
        scale: float,
        drop_path_rate: float,
        width_divisor: int,
    ) -> None:
        super().__init__(num_classes)
        self.encoder = TokenEncoder(encoder, weights=weights, scale=scale, drop_path_rate=drop_path_rate)
        if self.tokens.width % width_divisor:
            raise AdaptSegError(
                f"encoder: '{encoder}' has tokens of width {self.tokens.width}; {type(self).__name__} needs a "
                f"multiple of {width_divisor}"
            )
        self.pretrained = weights is not False
        self._init_args = {
            "num_classes": num_classes,
            "encoder": encoder,
            "weights": False,
            "scale": scale,
            "drop_path_rate": drop_path_rate,
        }

    @property
    def tokens(self) -> TokenEncoder:
        """The encoder."""
        return cast(TokenEncoder, self.encoder)

    @abstractmethod
    def _features(self, images: Tensor, token_mask: Tensor | None) -> list[Tensor]:
        """`Output.features`."""

    @abstractmethod
    def _logits(self, features: list[Tensor]) -> Tensor:
        """(B, C, h, w)."""

    def forward(
        self, images: Tensor, *, crop: Tensor | tuple[int, ...] | None = None, token_mask: Tensor | None = None
    ) -> Output:
        """See `Segmenter.forward`; `token_mask` has the shape of `token_grid`."""
        self._refuse_unsupported(crop=crop, token_mask=token_mask)
        features = self._features(images, token_mask)
        return Output(self._logits(features), features, {})

    def encoded(self, images: Tensor) -> list[Tensor]:
        return self._features(images, None)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.tokens.grid(size)

    def encoder_layers(self) -> list[list[nn.Parameter]]:
        return self.tokens.layers()

    def checkpoint_encoder(self) -> None:
        self.tokens.model.set_grad_checkpointing()

    def config(self) -> dict[str, Any]:
        """See `Segmenter.config`."""
        return {"class_path": f"adaptseg.networks.{type(self).__name__}", "init_args": dict(self._init_args)}


class ViTSegmenter(TokenSegmenter):
    """VFM-UDA's network: the tokens of the last block and a light head; logits at a quarter of a patch.

    `Output.features` is the one map of tokens.

    Args:
        num_classes: C; linked from the data.
        encoder: timm's name of a plain transformer ("vit_base_patch14_dinov2", "vit_large_patch16_dinov3").
        weights: of the encoder. True: the hub's (cached after the first time); False: random; or a local .pth, .pt or
            .safetensors file, read when the network is made.
        scale: images are enlarged by it before they are cut into patches (VFM-UDA 1.1: 1024 pixels are 80 patches).
        drop_path_rate: of the last block in training, rising linearly from 0 (VFM-UDA 0).

    Raises:
        AdaptSegError: see `TokenEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "vit_base_patch14_dinov2",
        weights: bool | str = False,
        scale: float = 1.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes,
            encoder=encoder,
            weights=weights,
            scale=scale,
            drop_path_rate=drop_path_rate,
            width_divisor=4,
        )
        self.head = LightHead(self.tokens.width, num_classes)

    def _features(self, images: Tensor, token_mask: Tensor | None) -> list[Tensor]:
        return self.tokens(images, blocks=[self.tokens.depth - 1], token_mask=token_mask)

    def _logits(self, features: list[Tensor]) -> Tensor:
        return self.head(features[-1])


class PyramidViTSegmenter(TokenSegmenter):
    """VFM-UDA++'s network without its adapter: levels at a quarter, a half, one and two patches from four blocks, and a
    head that climbs them; logits at a quarter of a patch.

    `Output.features` are the four levels, fine to coarse. The layers that make them count as head: they start from
    random weights and learn at its rate.

    Args:
        num_classes, encoder, weights, scale, drop_path_rate: as for `ViTSegmenter`.
        blocks: the four blocks that the levels come from, counted from 0, rising, the encoder's last among them. None:
            the last of each quarter of the encoder (inferred; for 12 blocks 2, 5, 8, 11).

    Raises:
        AdaptSegError: see `TokenEncoder`; an encoder of fewer than four blocks, or blocks that it does not have.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "vit_base_patch14_dinov2",
        weights: bool | str = False,
        scale: float = 1.0,
        drop_path_rate: float = 0.0,
        blocks: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            encoder=encoder,
            weights=weights,
            scale=scale,
            drop_path_rate=drop_path_rate,
            width_divisor=8,
        )
        depth = self.tokens.depth
        if depth < LEVELS:
            raise AdaptSegError(
                f"encoder: '{encoder}' has {depth} blocks; a pyramid of {LEVELS} levels needs {LEVELS}: take "
                "ViTSegmenter, or a deeper encoder"
            )
        chosen = [depth * (k + 1) // LEVELS - 1 for k in range(LEVELS)] if blocks is None else list(blocks)
        rising = chosen == sorted({block for block in chosen if block >= 0})
        if len(chosen) != LEVELS or not rising or chosen[-1] != depth - 1:  # what comes after would learn nothing
            raise AdaptSegError(
                f"blocks: {chosen} given, {LEVELS} rising numbers expected of which the last is {depth - 1}, the last "
                f"block of '{encoder}'"
            )
        self.blocks = chosen
        self._init_args["blocks"] = chosen
        self.pyramid = TokenPyramid(self.tokens.width)
        self.head = PyramidHead(self.tokens.width, num_classes)

    def _features(self, images: Tensor, token_mask: Tensor | None) -> list[Tensor]:
        return self.pyramid(self.tokens(images, blocks=self.blocks, token_mask=token_mask))

    def _logits(self, features: list[Tensor]) -> Tensor:
        return self.head(features)
