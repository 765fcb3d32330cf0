"""The few collectives that code outside Lightning's loops needs; each is the identity in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: list[int], modulus: int | None = None) -> list[int]:
    """Element-wise sum of integers over all ranks; int64, wrapped to [0, modulus) if given. Call it on every rank."""
    if world_size() == 1:
        return values if modulus is None else [value % modulus for value in values]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)  # int64 wraps at 2**64, which any power-of-two modulus below divides
    summed = tensor.tolist()
    return summed if modulus is None else [value % modulus for value in summed]


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()
