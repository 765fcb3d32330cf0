"""Memory of a training pass: activations that are computed twice instead of kept.

One way for all encoders but plain transformers, which bring their own: smp has none, and timm's for convolutional
encoders would count each batch twice in the running statistics of batch norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from adaptseg.errors import AdaptSegError


def checkpoint_blocks(encoder: nn.Module) -> None:
    """Keep only the inputs of the encoder's blocks in training, and compute each block again in the backward pass.

    The gradient is the same, dropout and drop path included, and so are the running statistics of batch norms. A block
    is a member of a list or sequence of the encoder that has members of its own and is no sequence of blocks itself: a
    lone activation that works in place would overwrite the input that is kept.

    Raises:
        AdaptSegError: the encoder has no blocks.
    """
    blocks = list(_blocks(encoder))
    if not blocks:
        raise AdaptSegError(
            f"model.acceleration.checkpoint_encoder finds no sequence of blocks in a {type(encoder).__name__}; "
            "switch it off, or change the encoder"
        )
    for block in blocks:
        block.forward = partial(_checkpointed, block, block.forward)  # partial, not lambda: a teacher is a deep copy


def _blocks(module: nn.Module, *, listed: bool = False) -> Iterator[nn.Module]:
    for child in module.children():
        sequence = isinstance(child, (nn.ModuleList, nn.Sequential))
        stage = sequence and (isinstance(child, nn.ModuleList) or any(map(_has_members, child.children())))
        if listed and not stage and _has_members(child):
            yield child
        else:
            yield from _blocks(child, listed=sequence)


def _has_members(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    if torch.compiler.is_compiling():  # which computes values again, but writes to buffers and lists once
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    def compute(*inputs: Any) -> Any:
        # HRNet's blocks write into the list that they are given: each computation gets a list of its own.
        return forward(*(list(given) if isinstance(given, list) else given for given in inputs), **options)

    def passes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    # Inputs are handed over, not enclosed: they say whose random state to keep, and writing to them is noticed.
    return checkpoint(compute, *inputs, use_reentrant=False, context_fn=passes)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms inside count their batch in statistics that are thrown away: the first pass has counted it."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:  # also where the recomputation stops as soon as it has what it needs
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
