"""Memory of a training pass: activations that are computed twice instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from adaptseg.errors import AdaptSegError


def checkpoint_blocks(encoder: nn.Module) -> None:
    """Keep only the inputs of the encoder's blocks in training, and compute each block again in the backward pass.

    The gradient is the same, dropout and drop path included. A block is a member of a list or sequence of the encoder
    that has members of its own: a lone activation that works in place would overwrite the input that is kept.

    Raises:
        AdaptSegError: the encoder has batch norms that learn, which would count each batch twice; or no blocks.
    """
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        raise AdaptSegError(
            "model.acceleration.checkpoint_encoder would show each batch twice to the encoder's batch norms; set "
            "model.network.init_args.norm: frozen or group, or take an encoder without them, as mit_b5"
        )
    blocks = list(_blocks(encoder))
    if not blocks:
        raise AdaptSegError(
            f"model.acceleration.checkpoint_encoder finds no sequence of blocks in a {type(encoder).__name__}; "
            "switch it off, or change the encoder"
        )
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward)  # partial, not lambda: a teacher is a deep copy


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from (block for block in child.children() if any(True for _ in block.children()))
        else:
            yield from _blocks(child)


def _checkpointed(forward: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False) if torch.is_grad_enabled() else forward(*inputs)
