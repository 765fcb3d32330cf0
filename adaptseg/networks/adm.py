"""The UNet of OpenAI's guided-diffusion ("ADM": Dhariwal and Nichol, NeurIPS 2021), read from its published files.

A module of our own, because diffusers' UNet2DModel cannot express every flag set: it fixes the channels of an attention
head where `num_heads` fixes their number, has no `num_heads_upsample`, takes the width of the timestep embedding from
the first level (half of `num_channels` in the 512x512 network), and has no float16 torso between float32 ends. Parts
bear the names of the published tensors, so a tensor's key is its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptseg.errors import AdaptSegError
from adaptseg.networks.adm_flags import GROUPS, AdmFlags
from adaptseg.networks.weights import misfit, read_torch_file

CLASSES = 1000
"""ImageNet's, under `class_cond`."""


class _Conv2d(nn.Conv2d):
    """Computes in the type of its input, whatever type its weights are kept in, with a border of zeros."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return functional.conv2d(input, weight, bias, self.stride, padding=self.kernel_size[0] // 2)


class _Pointwise(nn.Conv1d):
    """The same for a linear map of every cell of a list (B, C, N): the files hold it as a convolution of size 1."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        return functional.conv1d(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class _Norm(nn.GroupNorm):
    """In float32, whatever the type of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, input: Tensor) -> Tensor:
        return functional.group_norm(input.float(), GROUPS, self.weight, self.bias, self.eps).to(input.dtype)


class _Residual(nn.Module):
    """Two convolutions that the timestep (and class) steers; before them `factor` 2 doubles the grid, 0.5 halves it."""

    def __init__(self, inputs: int, outputs: int, flags: AdmFlags, torso: torch.dtype, factor: float = 1) -> None:
        super().__init__()
        self.factor, self.scales = factor, flags.use_scale_shift_norm
        first, second = (_Conv2d(c, outputs, 3, dtype=torso) for c in (inputs, outputs))
        self.in_layers = nn.Sequential(_Norm(inputs), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * flags.num_channels, outputs * (1 + self.scales)))
        self.out_layers = nn.Sequential(_Norm(outputs), nn.SiLU(), nn.Dropout(flags.dropout), second)
        self.skip_connection = nn.Identity() if inputs == outputs else _Conv2d(inputs, outputs, 1, dtype=torso)

    def forward(self, cells: Tensor, embedding: Tensor) -> Tensor:
        steering = self.emb_layers(embedding).to(cells.dtype)[:, :, None, None]
        hidden = self.in_layers[2](self._resized(self.in_layers[:2](cells)))
        if self.scales:
            scale, shift = steering.chunk(2, 1)
            hidden = self.out_layers[1:](self.out_layers[0](hidden) * (1 + scale) + shift)
        else:
            hidden = self.out_layers(hidden + steering)
        return self.skip_connection(self._resized(cells)) + hidden

    def _resized(self, cells: Tensor) -> Tensor:
        if self.factor == 1:
            return cells
        return functional.avg_pool2d(cells, 2) if self.factor < 1 else _doubled(cells)


def _doubled(cells: Tensor) -> Tensor:
    return functional.interpolate(cells, scale_factor=2.0, mode="nearest")


class _Down(nn.Module):
    """Halves the grid by a convolution."""

    def __init__(self, channels: int, torso: torch.dtype) -> None:
        super().__init__()
        self.op = _Conv2d(channels, channels, 3, stride=2, dtype=torso)

    def forward(self, cells: Tensor) -> Tensor:
        return self.op(cells)


class _Up(nn.Module):
    """Doubles the grid, then a convolution."""

    def __init__(self, channels: int, torso: torch.dtype) -> None:
        super().__init__()
        self.conv = _Conv2d(channels, channels, 3, dtype=torso)

    def forward(self, cells: Tensor) -> Tensor:
        return self.conv(_doubled(cells))


class _Attention(nn.Module):
    """Self-attention over the cells of a grid, added to them."""

    def __init__(self, channels: int, heads: int, *, heads_first: bool, torso: torch.dtype) -> None:
        super().__init__()
        self.heads, self.heads_first = heads, heads_first
        self.norm = _Norm(channels)
        self.qkv = _Pointwise(channels, 3 * channels, 1, dtype=torso)
        self.proj_out = _Pointwise(channels, channels, 1, dtype=torso)

    def forward(self, cells: Tensor) -> Tensor:
        flat = cells.flatten(2)
        order = (self.heads, 3) if self.heads_first else (3, self.heads)
        mixed = self.qkv(self.norm(flat)).unflatten(1, (*order, -1))  # 3 = query, key, value
        # Fast kernels want the channels of a head side by side.
        query, key, value = mixed.transpose(-1, -2).contiguous().unbind(2 if self.heads_first else 1)
        found = functional.scaled_dot_product_attention(query, key, value)
        return (flat + self.proj_out(found.transpose(-1, -2).flatten(1, 2))).view_as(cells)


class _Block(nn.ModuleList):
    """Parts one after the other, of which residual blocks are told the timestep."""

    def forward(self, cells: Tensor, embedding: Tensor) -> Tensor:
        for part in self:
            cells = part(cells, embedding) if isinstance(part, _Residual) else part(cells)
        return cells


class AdmUNet(nn.Module):
    """Noisy images and timesteps to predicted noise.

    Attributes:
        flags: the architecture.
        decoded: channels of the output of every `output_blocks`, coarsest first. Each is a residual block, its
            attention, and, for the last of a level but the finest, the step up.
    """

    def __init__(self, flags: AdmFlags) -> None:
        super().__init__()
        self.flags = flags
        self._torso = torch.float16 if flags.use_fp16 else torch.float32
        widths, embedding = flags.widths, 4 * flags.num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(flags.num_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label_emb = nn.Embedding(CLASSES, embedding) if flags.class_cond else None
        skips = self._make_input_blocks(widths)
        coarsest = widths[-1]
        middle = [self._residual(coarsest, coarsest), self._attention(coarsest, up=False)]
        self.middle_block = _Block([*middle, self._residual(coarsest, coarsest)])
        self.decoded = self._make_output_blocks(widths, skips)
        self.out = nn.Sequential(_Norm(widths[0]), nn.SiLU(), _Conv2d(widths[0], 6 if flags.learn_sigma else 3, 3))

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """The noise in images, and what `learn_sigma` adds.

        Args:
            images: (B, 3, H, W) float32, noisy images of the range [-1, 1]; sides are multiples of 2^(levels - 1).
            timesteps: (B,) int64, 0 to 999.
            labels: (B,) int64 classes, where and only where the flags say `class_cond`.

        Returns:
            (B, 3 or 6, H, W) float32.
        """
        embedding = self.time_embed(_sinusoids(timesteps, self.flags.num_channels))
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(labels)
        # Float16 convolutions on a CPU are slow, or missing.
        cells = images if images.device.type == "cpu" else images.to(self._torso)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            cells = block(cells, embedding)
            skips.append(cells)
        cells = self.middle_block(cells, embedding)
        for block in self.output_blocks:
            cells = block(torch.cat([cells, skips.pop()], 1), embedding)
        return self.out(cells.to(images.dtype))

    def _make_input_blocks(self, widths: tuple[int, ...]) -> list[int]:
        """Channels of what each of them hands to the way up."""
        channels = widths[0]
        self.input_blocks = nn.ModuleList([_Block([_Conv2d(3, channels, 3, dtype=self._torso)])])
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(self.flags.num_res_blocks):
                parts = [self._residual(channels, width), *self._attentions(level, up=False)]
                self.input_blocks.append(_Block(parts))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(_Block([self._step(channels, _Down, 0.5)]))
                skips.append(channels)
        return skips

    def _make_output_blocks(self, widths: tuple[int, ...], skips: list[int]) -> list[int]:
        self.output_blocks = nn.ModuleList()
        channels, decoded = widths[-1], list[int]()
        for level in reversed(range(len(widths))):
            for number in range(self.flags.num_res_blocks + 1):
                parts = [self._residual(channels + skips.pop(), widths[level]), *self._attentions(level, up=True)]
                channels = widths[level]
                if level and number == self.flags.num_res_blocks:
                    parts.append(self._step(channels, _Up, 2))
                self.output_blocks.append(_Block(parts))
                decoded.append(channels)
        return decoded

    def _residual(self, inputs: int, outputs: int, factor: float = 1) -> nn.Module:
        return _Residual(inputs, outputs, self.flags, self._torso, factor)

    def _step(self, channels: int, convolution: type[_Down | _Up], factor: float) -> nn.Module:
        if self.flags.resblock_updown:
            return self._residual(channels, channels, factor)
        return convolution(channels, self._torso)

    def _attentions(self, level: int, *, up: bool) -> list[nn.Module]:
        return [self._attention(self.flags.widths[level], up=up)] if self.flags.attends(level) else []

    def _attention(self, channels: int, *, up: bool) -> nn.Module:
        heads = self.flags.heads(channels, up=up)
        return _Attention(channels, heads, heads_first=not self.flags.use_new_attention_order, torso=self._torso)


def _sinusoids(timesteps: Tensor, channels: int) -> Tensor:
    """(B, channels) float32: cosines, then sines, of wavelengths 2 pi to 2 pi 10^4, the last of which is left out."""
    exponents = torch.arange(channels // 2, dtype=torch.float32, device=timesteps.device) / (channels // 2)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


def load_adm(file: str | Path, flags: AdmFlags) -> AdmUNet:
    """A network of a `.pt` file of the released code (a mapping of names to tensors, float32 or float16), on the CPU
    and in eval mode. The precision is that of the flags, whatever the file's. Nothing in the file is run.

    Raises:
        AdaptSegError: no such file, or tensors that are missing, left over or of another shape than the flags say; with
            them the flags that the tensors speak against.
    """
    file = Path(file)
    if not file.is_file():
        raise AdaptSegError(f"unet: {file} does not exist; with adm, a .pt file of guided-diffusion is expected")
    given = read_torch_file(file, "unet: file")
    if not isinstance(given, Mapping) or not given or not all(isinstance(value, Tensor) for value in given.values()):
        raise AdaptSegError(f"unet: {file} does not hold a mapping of names to tensors")
    with torch.device("meta"):
        network = AdmUNet(flags)
    wanted = network.state_dict()
    if found := misfit(given, wanted, shown=12):
        hint = _contradicted(given, flags)
        raise AdaptSegError(f"unet: {file} does not fit the flags of adm: it {found}{'; ' * bool(hint)}{hint}")
    network.load_state_dict({name: given[name].to(tensor.dtype) for name, tensor in wanted.items()}, assign=True)
    return network.eval()


def _contradicted(given: Mapping[str, Tensor], flags: AdmFlags) -> str:
    """Flags that differ from what the shapes of some tensors say, in words."""
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    apparent: dict[str, Any] = {"class_cond": "label_emb.weight" in shapes}
    block = "input_blocks.1.0"
    if {f"{block}.emb_layers.1.weight", f"{block}.out_layers.0.weight"} <= shapes.keys():
        steered, width = shapes[f"{block}.emb_layers.1.weight"][0], shapes[f"{block}.out_layers.0.weight"][0]
        apparent["use_scale_shift_norm"] = steered == 2 * width
    if "time_embed.0.weight" in shapes:
        apparent["num_channels"] = shapes["time_embed.0.weight"][-1]
    if "out.2.weight" in shapes:
        apparent["learn_sigma"] = shapes["out.2.weight"][0] == 6
    if any(name.endswith(".op.weight") for name in shapes):
        apparent["resblock_updown"] = False
    elif any(re.fullmatch(r"output_blocks\.\d+\.[12]\.emb_layers\.1\.weight", name) for name in shapes):
        apparent["resblock_updown"] = True
    wrong = [f"{name} {value}" for name, value in apparent.items() if value != getattr(flags, name)]
    return f"its tensors look like {', '.join(wrong)}" if wrong else ""
