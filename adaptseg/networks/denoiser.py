"""The network of a diffusion model: predicts the noise in a noisy image (DDPM: Ho, Jain, Abbeel, NeurIPS 2020).

Images of a denoiser lie in [-1, 1]. `diffusers` is imported when a denoiser is made, not before: that takes seconds,
and no other recipe needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.networks.load import rebuild

TIMESTEPS = 1000
"""Noise levels of the diffusion process: 0 is almost clean, 999 almost noise (DDPM, section 4)."""


@cache
def _signal() -> Tensor:
    """(1000,) float32: alpha bar, the share of the image's variance at each timestep under linear betas."""
    betas = np.linspace(1e-4, 0.02, TIMESTEPS)  # DDPM, section 4; accumulated in float64
    return torch.from_numpy(np.cumprod(1 - betas)).float()


def noised(images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, equation 4).

    Args:
        images: x_0, (B, 3, H, W) in [-1, 1].
        noise: of the same shape (or one that broadcasts to it), standard normal.
        timesteps: (B,) int64 in 0 .. 999.
    """
    signal = _signal().to(images.device)[timesteps.to(images.device)].to(images.dtype)[:, None, None, None]
    return signal.sqrt() * images + (1 - signal).sqrt() * noise


def centred(images: Tensor) -> Tensor:
    """ImageNet-normalised images (B, 3, H, W) to the denoiser's range [-1, 1]."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 2 * (images * std + mean) - 1


class Denoiser(nn.Module):
    """diffusers' UNet2DModel, small enough by default to train on images of 128x128 on a CPU.

    Args:
        channels: of each level, fine to coarse; the grid halves from one level to the next. Multiples of 8.
        layers: residual blocks of a level on the way down; the way up has one more (ADM: 2).
        attention: numbers of the levels with self-attention, 0 = the finest (ADM: those of 32x32, 16x16 and 8x8 cells).
        head_dim: channels of an attention head (ADM: 64); divides the channels of levels with attention and of the
            coarsest, whose middle block always has it.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 128),
        layers: int = 1,
        attention: Sequence[int] = (3,),
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        _check_shape(channels, layers, attention, head_dim)
        self._init_args = {
            "channels": list(channels),
            "layers": layers,
            "attention": list(attention),
            "head_dim": head_dim,
        }
        kinds = ["Attn" if level in attention else "" for level in range(len(channels))]
        self.unet: Any = diffusers_module().UNet2DModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            attention_head_dim=head_dim,
            norm_num_groups=math.gcd(32, *channels),
        )

    def forward(self, images: Tensor, timesteps: Tensor) -> Tensor:
        """Predicted noise (B, 3, H, W) in images (B, 3, H, W), noised up to timesteps (B,) int64."""
        check_size((images.shape[-2], images.shape[-1]), patch_size(self.unet))
        return self.unet(images, timesteps).sample

    def config(self) -> dict[str, Any]:
        """{"class_path": ..., "init_args": {...}} of plain types that rebuilds the architecture with random weights."""
        return {"class_path": "adaptseg.networks.Denoiser", "init_args": dict(self._init_args)}

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters: no part of a denoiser starts from pre-trained weights."""
        return self.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """None."""
        return iter(())


def _check_shape(channels: Sequence[int], layers: int, attention: Sequence[int], head_dim: int) -> None:
    if not channels or any(width < 8 or width % 8 for width in channels):
        raise AdaptSegError(f"model.channels is {list(channels)}; multiples of 8, one for each level, are expected")
    if layers < 1:
        raise AdaptSegError(f"model.layers is {layers}; 1 or more residual blocks a level are expected")
    if unknown := [level for level in attention if not 0 <= level < len(channels)]:
        raise AdaptSegError(
            f"model.attention names level {unknown[0]}; {len(channels)} channels make levels 0 to {len(channels) - 1}"
        )
    attending = {*attention, len(channels) - 1}
    if head_dim < 1 or any(channels[level] % head_dim for level in attending):
        widths = sorted({channels[level] for level in attending})
        raise AdaptSegError(f"model.head_dim is {head_dim}; it must divide {', '.join(map(str, widths))} channels")


def patch_size(unet: Any) -> int:
    """Pixels along a side of the coarsest cell of a UNet2DModel."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def check_size(size: tuple[int, int], patch: int) -> None:
    """Raise AdaptSegError unless both sides are multiples of `patch` pixels."""
    if min(size) < patch or any(side % patch for side in size):
        raise AdaptSegError(
            f"images of {size[0]}x{size[1]} pixels given; the network needs multiples of {patch}, {patch} or more: set "
            "data.target_size (and data.source_size, data.crop)"
        )


def load_denoiser(checkpoint_or_run_dir: str | Path) -> Denoiser:
    """The averaged network of a `Denoising` run, on the CPU and in eval mode, without a hub.

    Raises:
        AdaptSegError: no such file, or a checkpoint of another method.
    """
    denoiser = rebuild(checkpoint_or_run_dir, "denoiser")
    if not isinstance(denoiser, Denoiser):
        raise AdaptSegError(f"{checkpoint_or_run_dir}: its network 'denoiser' is a {type(denoiser).__name__}")
    return denoiser


def diffusers_module() -> Any:
    import diffusers

    return diffusers
