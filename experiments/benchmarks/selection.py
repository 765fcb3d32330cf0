"""Speed and memory of choosing pixels: `select_regions` against the plain loop, `GlobalSelector` on a stream of maps.

    python experiments/benchmarks/selection.py                   # 1024 x 2048; 100 and 200 maps, 1.6 GB of scratch
    python experiments/benchmarks/selection.py --maps 20 40 --save selection.json

Anonymous memory is RssAnon above the start (Linux), sampled every 2 ms and after each map. The floor of GlobalSelector
is one write and two reads of 4 bytes a pixel, measured with plain files of the same size in the same folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptseg.active.selection import GlobalSelector, select_regions


def ripu_like(height: int, width: int, seed: int) -> torch.Tensor:
    """A smooth field clamped at its 58th percentile: the share of non-positive scores that RIPU gives."""
    generator = torch.Generator().manual_seed(seed)

    def noise(cell: int) -> torch.Tensor:
        grid = torch.randn(1, 1, height // cell, width // cell, generator=generator)
        return torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)[0, 0]

    field = noise(16) + 0.3 * noise(4)
    return (field - float(np.quantile(field.numpy(), 0.58))).clamp_min(0)


def loop(score: torch.Tensor, count: int, radius: int) -> list[tuple[int, int]]:
    """The single-argmax loop, in place."""
    picks, width = [], score.shape[1]
    for _ in range(count):
        y, x = divmod(int(score.argmax()), width)
        picks.append((y, x))
        score[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = -torch.inf
    return picks


def seconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def regions(height: int, width: int, count: int, radius: int) -> list[dict[str, Any]]:
    rows = []
    fields = {
        "ripu-like": ripu_like(height, width, 0),
        "random": torch.rand(height, width),
        "zeros": torch.zeros(height, width),
    }
    for name, score in fields.items():
        start = time.perf_counter()
        expected = loop(score.clone(), count, radius)
        slow = time.perf_counter() - start
        assert [tuple(p) for p in select_regions(score, count, suppress_radius=radius).tolist()] == expected
        fast = seconds(lambda score=score: select_regions(score, count, suppress_radius=radius), 5)
        whole = seconds(lambda score=score: select_regions(score, score.numel(), suppress_radius=radius), 2)
        rows.append(
            {"field": name, "loop_s": slow, "select_regions_s": fast, "ratio": slow / fast, "whole_image_s": whole}
        )
        print(
            f"{name:10s}  loop {slow:7.3f} s  select_regions {fast:7.4f} s  ratio {slow / fast:6.1f}  "
            f"whole image {whole:6.3f} s"
        )
    return rows


def anonymous_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; this benchmark needs Linux")


class PeakMemory:
    """Largest anonymous memory above the start, while the context lasts."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.sample()

    def sample(self) -> None:
        self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_: object) -> None:
        self.sample()
        self._stop.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        return (self.peak - self.start) / 1e6


def stream(bases: list[torch.Tensor], maps: int) -> Iterator[torch.Tensor]:
    """Different maps at the cost of a copy; exact zeros stay zeros."""
    for i in range(maps):
        yield bases[i % len(bases)].roll(37 * i, 1).mul_(1 + 0.01 * i)


def whole_pool(bases: list[torch.Tensor], maps: int, share: float, folder: Path) -> dict[str, Any]:
    pixels = bases[0].numel()
    count = int(share * maps * pixels)
    adding = chosen = 0
    with PeakMemory() as memory, GlobalSelector(count, scratch=folder, seed=0) as selector:
        for i, score in enumerate(stream(bases, maps)):
            start = time.perf_counter()
            selector.add(f"{i:05d}", score)
            adding += time.perf_counter() - start
            memory.sample()
        start = time.perf_counter()
        chosen = sum(len(yx) for _, yx in selector.finish())
        finishing = time.perf_counter() - start
    assert chosen == count
    floor = disk_floor(maps, pixels, folder)
    return {
        "maps": maps,
        "peak_MB": memory.megabytes,
        "add_ms": 1e3 * adding / maps,
        "finish_ms": 1e3 * finishing / maps,
        "floor_ms": 1e3 * floor / maps,
    }


def disk_floor(maps: int, pixels: int, folder: Path) -> float:
    data = np.ones(pixels, np.uint32).view(np.uint8)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start = time.perf_counter()
        for _ in range(maps):
            file.write(data.data)
        for _ in range(2):
            file.seek(0)
            for _ in range(maps):
                file.readinto(data.data)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--picks", type=int, default=2331, help="picks per image; 2331 = RIPU at 5 %% in 5 rounds")
    parser.add_argument("--radius", type=int, default=2, help="suppression radius")
    parser.add_argument("--maps", type=int, nargs="*", default=(100, 200), help="pool sizes")
    parser.add_argument("--share", type=float, default=0.2, help="share of the pool's pixels to choose")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    height, width = arguments.size

    result: dict[str, Any] = {"size": [height, width], "threads": torch.get_num_threads()}
    print(f"{arguments.picks} picks, radius {arguments.radius}, {height} x {width}, {torch.get_num_threads()} threads")
    result["regions"] = regions(height, width, arguments.picks, arguments.radius)

    print(f"\n{arguments.share:.0%} of all pixels, per map: add, finish, floor (write once, read twice)")
    result["pool"] = []
    variants = {
        "smooth": [
            torch.nn.functional.softplus(ripu_like(height, width, s)) + 1e-3 * torch.rand(height, width)
            for s in range(2)
        ],
        "58 % zeros, threshold above": [ripu_like(height, width, s) for s in range(2)],
        "95 % zeros, threshold in the ties": [ripu_like(height, width, s).sub(1).clamp_min(0) for s in range(2)],
    }
    for name, bases in variants.items():
        whole_pool(bases, 2, arguments.share, arguments.scratch)  # the allocator's and numpy's first-use costs
        for maps in arguments.maps:
            row = {"field": name, **whole_pool(bases, maps, arguments.share, arguments.scratch)}
            result["pool"].append(row)
            print(
                f"{name:34s} {maps:5d} maps  peak {row['peak_MB']:6.1f} MB  add {row['add_ms']:5.1f} ms  "
                f"finish {row['finish_ms']:5.1f} ms  floor {row['floor_ms']:5.1f} ms"
            )
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
