"""Swap every batch norm of a network for one that works with tiny batches."""

from __future__ import annotations

from typing import Literal, get_args

from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct, freeze_batch_norm_2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

Norm = Literal["batch", "frozen", "group", "frozen_without_eps"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def replace_batch_norm(module: nn.Module, norm: Norm) -> None:
    """Replace every `BatchNorm2d` inside `module` (timm's batch norm with activation included), in place.

    * batch: nothing changes.
    * frozen: scale, shift and statistics become buffers: no gradient, no update, the same in `train()` and `eval()`.
      Keys in the state dict stay, so weights trained with batch norm load; eps is the replaced layer's. A layer
      without pre-trained statistics freezes at mean 0, variance 1, scale 1, shift 0, that is, at the identity (this
      is what RIPU's released decoder does).
    * frozen_without_eps: the same with eps 0, as RIPU's release has it, which amplifies channels of tiny variance more
      than the pre-training did. For parity alone; a variance of 0 would divide by it.
    * group: group norm with `groups(channels)` groups, freshly initialised.
    """
    if norm in ("frozen", "frozen_without_eps"):
        freeze_batch_norm_2d(module)
        for layer in module.modules():
            if norm == "frozen_without_eps" and isinstance(layer, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
                layer.eps = 0.0  # pyright: ignore[reportArgumentType]
    elif norm == "group":
        _group(module)


def _group(module: nn.Module) -> None:
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _group(child)
        elif isinstance(child, BatchNormAct2d):
            layer = GroupNormAct(child.weight.numel(), groups(child.weight.numel()), apply_act=False)
            layer.drop, layer.act = child.get_submodule("drop"), child.get_submodule("act")
            setattr(module, name, layer)
        else:
            setattr(module, name, nn.GroupNorm(groups(child.num_features), child.num_features))


def groups(channels: int) -> int:
    """Groups for a group norm: the largest divisor of `channels` up to 32 that leaves four or more channels a group.

    32 is the published default (Wu and He 2018, section 4). The floor of four is ours: with one channel a group, a
    globally pooled 1x1 map is its own mean and would be normalised to zero.
    """
    return max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 4), default=1)
