"""How a process keeps memory on the CPU."""

# pyright: strict

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt(3), as its malloc.h numbers them."""


def keep_freed_memory() -> None:
    """Keep what is freed for the next step, instead of giving it back to the system; nothing where malloc is no glibc.

    By default glibc gives back what lies free at the end of the heap from about 20 MB on: each step's maps then come as
    new pages, which the system clears one by one. That was a seventh of a self-training step on Streets and of its bare
    passes, and came and went with the order of allocations; `data check` had a thousand such pages a label file. Blocks
    above 32 MiB (glibc's limit) still go back at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
