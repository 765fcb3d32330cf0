"""The architecture of a UNet of guided-diffusion ("ADM": Dhariwal and Nichol, NeurIPS 2021), by its released flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adaptseg.errors import AdaptSegError

GROUPS = 32
"""Of every group norm."""

_MULTIPLIERS: Mapping[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Image size -> `channel_mult` where none is given (released code)."""


@dataclass(frozen=True)
class AdmFlags:
    """The architecture, under the names and with the defaults of the released scripts.

    The flags of heads and `use_new_attention_order` leave no trace in a file, so a wrong one goes unnoticed. The noise
    schedule is no flag: features noise images by the linear one, as the published 256x256 networks expect.

    Args:
        image_size: side in pixels on which `attention_resolutions` count; networks run on other sizes, too.
        num_channels: those of a level are this times its multiplier, a multiple of 32.
        num_res_blocks: residual blocks of a level on the way down; the way up has one more.
        channel_mult: one multiplier a level, fine to coarse; None: the released one of image_size 64, 128, 256 or 512.
        attention_resolutions: sides in cells of the levels with self-attention; the middle block always has it.
        num_heads: of an attention, where `num_head_channels` is -1.
        num_heads_upsample: the same on the way up; -1: `num_heads`.
        num_head_channels: of each head, however many; -1: by `num_heads`.
        use_scale_shift_norm: the timestep scales and shifts normalised cells; False: it is added before the norm.
        resblock_updown: grids change inside residual blocks; False: by a convolution.
        use_new_attention_order: channels by query, key, value and then head; False: by head first.
        learn_sigma: six channels out, the last three of which say the variance.
        class_cond: knows a class of ImageNet.
        dropout: in training; frozen features have none.
        use_fp16: convolutions hold float16, which they compute in on a GPU. On a CPU they compute in float32 from the
            float16 weights. Norms, timestep embedding and output are float32.

    Raises:
        AdaptSegError: a value that no network can have.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] | None = None
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    dropout: float = 0.0
    use_fp16: bool = False

    def __post_init__(self) -> None:
        if self.num_channels < 2 or self.num_channels % 2 or self.num_res_blocks < 1:
            raise AdaptSegError(
                f"adm: num_channels {self.num_channels} and num_res_blocks {self.num_res_blocks} given; an even number "
                "and 1 or more are expected"
            )
        if not self._multipliers:
            raise AdaptSegError(
                f"adm.channel_mult: one multiplier a level is expected; image_size {self.image_size} has no released "
                f"ones ({', '.join(map(str, _MULTIPLIERS))} have)"
            )
        if wrong := [width for width in self.widths if width < GROUPS or width % GROUPS]:
            raise AdaptSegError(f"adm.num_channels and channel_mult make {wrong[0]} channels; multiples of 32 expected")
        if self.image_size < 1 or self.image_size % 2 ** (len(self.widths) - 1):
            raise AdaptSegError(f"adm.image_size: {self.image_size} cannot be halved {len(self.widths) - 1} times")
        if wrong := [side for side in self.attention_resolutions if side not in self._sides]:
            raise AdaptSegError(f"adm.attention_resolutions: {wrong[0]} given; levels are {self._sides} cells wide")
        if not 0 <= self.dropout < 1:
            raise AdaptSegError(f"adm.dropout: {self.dropout} given; 0 to less than 1 expected")
        for level, width in enumerate(self.widths):
            if self.attends(level) or level == len(self.widths) - 1:
                self._check_heads(width)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, fine to coarse."""
        return tuple(int(multiplier * self.num_channels) for multiplier in self._multipliers)

    def attends(self, level: int) -> bool:
        """Whether the residual blocks of a level, 0 = the finest, are followed by self-attention."""
        return self._sides[level] in self.attention_resolutions

    def heads(self, channels: int, *, up: bool) -> int:
        """Heads of an attention on so many channels, on the way up or not."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return self.num_heads_upsample if up and self.num_heads_upsample != -1 else self.num_heads

    def architecture(self) -> dict[str, Any]:
        """Plain values that, with the weights, decide what the network says in eval mode."""
        values = {**asdict(self), "channel_mult": list(self.widths)}
        values["attention_resolutions"] = sorted(self.attention_resolutions)
        del values["dropout"]
        return values

    @property
    def _multipliers(self) -> tuple[float, ...]:
        return tuple(_MULTIPLIERS.get(self.image_size, ()) if self.channel_mult is None else self.channel_mult)

    @property
    def _sides(self) -> list[int]:
        return [self.image_size >> level for level in range(len(self._multipliers))]

    def _check_heads(self, width: int) -> None:
        if self.num_head_channels != -1:
            if self.num_head_channels < 1 or width % self.num_head_channels:
                raise AdaptSegError(f"adm.num_head_channels: {self.num_head_channels} does not divide {width} channels")
            return
        for up in (False, True):
            if (heads := self.heads(width, up=up)) < 1 or width % heads:
                raise AdaptSegError(
                    f"adm.num_heads{'_upsample' * up}: {width} channels cannot be shared by {heads} heads"
                )
