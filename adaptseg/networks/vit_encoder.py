"""Plain vision transformers from timm as encoders: images of any size to maps of tokens, some of them hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.encoders import quietly
from adaptseg.networks.weights import first_line, load_encoder_weights


class TokenEncoder(nn.Module):
    """A timm transformer whose tokens are square patches of the image (DINOv2, DINOv3, CLIP, SigLIP, plain ViT).

    An image of any size is resized bilinearly to whole patches; timm resizes the position embedding to the patch grid
    (or computes it, where it rotates). Class and register tokens take part in the attention and are left out of maps.
    A map covers the image exactly, whatever its size: cell (i, j) of (h, w) is the share [i/h, (i+1)/h] x
    [j/w, (j+1)/w].

    `mask_token` (1, D) stands for a hidden patch. timm's models have none: it starts at zero, as DINOv2's did, or with
    what the weights file holds under that name (Meta's files of DINOv2 do, timm's do not).

    Args:
        encoder: timm's name of the model ("vit_base_patch14_dinov2", "vit_large_patch16_dinov3").
        weights: True: the hub's weights (cached after the first time); False: random; or a local .pth, .pt or
            .safetensors file, read when the encoder is made.
        scale: images are enlarged by it before they are cut into patches, sides rounded down to whole patches, at
            least one (VFM-UDA: 1.1, so 1024 pixels are 1120, 80 patches of 14).
        drop_path_rate: of the last block in training; it rises linearly from 0 over the blocks (timm's rule).

    Raises:
        AdaptSegError: an unknown name, a model without tokens of square patches, a number out of range, weights that
            cannot be had or do not fit.
    """

    def __init__(self, encoder: str, *, weights: bool | str, scale: float = 1.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        if scale <= 0:
            raise AdaptSegError(f"scale: {scale} given, a positive number expected")
        if not 0 <= drop_path_rate < 1:
            raise AdaptSegError(f"drop_path_rate: {drop_path_rate} given, a probability below 1 expected")
        self.model: Any = _make(encoder, from_hub=weights is True, drop_path_rate=drop_path_rate)
        self.scale, self.patch = scale, _patch(self.model, encoder)
        self.width, self.depth = int(self.model.embed_dim), len(self.model.blocks)
        # The classifier's layers would get no gradient.
        self.model.prune_intermediate_layers([self.depth - 1], prune_norm=False, prune_head=True)
        self.mask_token = nn.Parameter(torch.zeros(1, self.width))
        if isinstance(weights, str):
            load_encoder_weights(self, weights, optional=("mask_token",))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patches that images of `size` (H, W) are cut into."""
        # A share of a millionth of a patch lies within the rounding of side * scale.
        rows, columns = (max(int(side * self.scale / self.patch + 1e-6), 1) for side in size)
        return rows, columns

    def forward(self, images: Tensor, *, blocks: Sequence[int], token_mask: Tensor | None = None) -> list[Tensor]:
        """What some blocks say, each after the model's last norm, where it has one.

        Args:
            images: (B, 3, H, W), normalised.
            blocks: their numbers, rising, from 0 to depth - 1.
            token_mask: (B, h, w) bool of `grid`, True = hidden: the patch's embedding is replaced by `mask_token`
                before the position is added (as DINOv2 and VFM-UDA do). None hides nothing.

        Returns:
            a map (B, D, h, w) for each block.
        """
        rows, columns = self.grid((images.shape[-2], images.shape[-1]))
        if token_mask is not None and token_mask.shape != (len(images), rows, columns):
            raise AdaptSegError(
                f"token_mask: {tuple(token_mask.shape)} given, {(len(images), rows, columns)} expected for images of "
                f"{images.shape[-2]}x{images.shape[-1]} pixels"
            )
        size = (rows * self.patch, columns * self.patch)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear")

        def hide(module: nn.Module, inputs: Any, cells: Tensor) -> Tensor:
            # Also where nothing is hidden: so every pass depends on every parameter, which DDP asks for.
            hidden = cells.new_zeros(cells.shape[:3], dtype=torch.bool) if token_mask is None else token_mask
            return torch.where(hidden[..., None], self.mask_token.to(cells.dtype), cells)

        handle = self.model.patch_embed.register_forward_hook(hide)
        try:
            return self.model.forward_intermediates(
                images, indices=list(blocks), norm=True, output_fmt="NCHW", intermediates_only=True
            )
        finally:
            handle.remove()

    def layers(self) -> list[list[nn.Parameter]]:
        """All parameters from the image to the last block: what comes before the blocks, then each block; the norm
        after the last one belongs to it (inferred).
        """
        blocks = [list(block.parameters()) for block in self.model.blocks]
        blocks[-1] += self.model.norm.parameters()
        later = {id(parameter) for block in blocks for parameter in block}
        return [[parameter for parameter in self.parameters() if id(parameter) not in later], *blocks]


def _make(encoder: str, *, from_hub: bool, drop_path_rate: float) -> nn.Module:
    if not timm.is_model(encoder):
        raise AdaptSegError(
            f"encoder: '{encoder}' is no model of timm; a plain vision transformer is expected, such as "
            "'vit_base_patch14_dinov2'"
        )
    try:
        with quietly():
            return timm.create_model(
                encoder, pretrained=from_hub, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path_rate
            )
    # What timm and the hub's client raise has no common class.
    except TypeError as error:
        raise AdaptSegError(
            f"encoder: '{encoder}' does not read images of any size as patches ({first_line(error)}); a plain vision "
            "transformer is expected, such as 'vit_base_patch14_dinov2'"
        ) from error
    except Exception as error:
        advice = "; without access to the hub set weights: false or a local file" if from_hub else ""
        raise AdaptSegError(f"encoder '{encoder}' cannot be made: {first_line(error)}{advice}") from error


def _patch(model: Any, encoder: str) -> int:
    """Side of a patch, pixels."""
    has = all(hasattr(model, name) for name in ("blocks", "forward_intermediates", "prune_intermediate_layers"))
    if not has or not hasattr(getattr(model, "patch_embed", None), "patch_size"):
        raise AdaptSegError(
            f"encoder: '{encoder}' shows no intermediate layers of patch tokens; a plain vision transformer is "
            "expected, such as 'vit_base_patch14_dinov2', or SmpSegmenter for other encoders"
        )
    height, width = model.patch_embed.patch_size
    if height != width:
        raise AdaptSegError(f"encoder: '{encoder}' cuts patches of {height}x{width} pixels; square ones are expected")
    return height
