"""From sums over pixels to means whose gradient does not depend on how many processes share the batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def global_mean(total: Tensor, count: Tensor, *, minimum: float = 1.0) -> Tensor:
    """`total` over the count of the whole global batch, so that one process and many train alike.

    DDP averages gradients over ranks. Dividing each rank's sum by its own count would weigh a pixel by how few others
    its rank holds; here every rank divides by the count of all ranks and multiplies by their number, which the average
    undoes. The value on one rank is therefore its share times the world size: the mean over ranks is the loss.

    A collective: every rank must call it, in the same order, also with a count of 0. It does not wait for the device.

    Args:
        total: () sum over this rank's pixels, with gradient.
        count: () what it is divided by, any dtype, on the device of `total`; no gradient flows into it.
        minimum: lower bound of the denominator: a sum over nothing becomes 0 instead of 0/0, and a larger bound keeps
            a lone labelled pixel from carrying the full loss (CBDA specification, traps 7 and 8).

    Returns:
        () of the dtype of `total`.
    """
    everywhere = count.detach().clone()
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(everywhere)
        ranks = dist.get_world_size()
    return total * ranks / everywhere.to(total.dtype).clamp(min=minimum)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over all processes of a tensor without gradient: for shares of equally large parts. A collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_over_ranks(flags: Tensor) -> Tensor:
    """Elementwise or of a bool tensor over all processes. A collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return flags
    anywhere = flags.to(torch.uint8)
    dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
    return anywhere.bool()


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32 (a softmax, a logarithm, 1e-6 need it under autocast); others unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over all processes of a tensor without gradient. A collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def gathered(values: Tensor) -> Tensor:
    """The (n,) values of all processes in rank order, without gradient; n must be the same on each. A collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
