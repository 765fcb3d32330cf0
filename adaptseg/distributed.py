"""The few collectives that code outside Lightning's loops needs; each is the identity in a single process."""
# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sum an int64 array over all processes; sums wrap at 2**64. Every process must call it."""
    if not is_distributed():
        return counts
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(counts, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return total.cpu().numpy()


def gather(item: T) -> list[T]:
    """One picklable item per process, in rank order. Every process must call it."""
    if not is_distributed():
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def barrier() -> None:
    """Wait for every process."""
    if is_distributed():
        dist.barrier()
