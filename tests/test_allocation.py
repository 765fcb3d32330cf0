"""Freed memory stays in the process: more rounds of the same maps need no new pages."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from adaptseg.allocation import keep_freed_memory


def new_pages(maps: int) -> int:
    """Pages that the system hands out while maps of 8 MiB are made and freed, all at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(2**21) for _ in range(maps)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_more_rounds_need_no_new_pages() -> None:
    keep_freed_memory()
    new_pages(8)
    new_pages(8)  # glibc may still move what was mapped before into the heap
    assert new_pages(8) * resource.getpagesize() < 32 * 2**20  # of 64 MiB
