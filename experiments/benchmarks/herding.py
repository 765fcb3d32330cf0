"""What exact herding costs: against the plain loop, over the number of points, and in memory.

    python experiments/benchmarks/herding.py [--picks 2000] [--save herding.json]

The plain loop has the whole kernel in memory and its buffers in place, and evaluates every gain for every pick. Both
work in float64 where gains decide. Features are unit vectors, half random and half in clusters; the length scale is
two-stage eDALD's. Single runs of one process: only ratios, counts and the exponent are to be read.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptseg.active.herding import TIE_TOLERANCE, HerdingSearch, max_herding, median_length_scale


def features(n: int, channels: int) -> Tensor:
    """(n, channels) unit vectors, half of them around 60 centres."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n, channels, generator=generator)
    centres = torch.randn(60, channels, generator=generator)
    points[::2] = 0.6 * points[::2] + centres[torch.randint(60, (len(points[::2]),), generator=generator)]
    return functional.normalize(points, dim=1)


def length_scale(points: Tensor) -> float:
    return median_length_scale(points, generator=torch.Generator().manual_seed(0))


def plain_loop(points: Tensor, picks: int, scale: float) -> list[int]:
    """Greedy coverage with a stored kernel and in-place buffers, as a careful first version would be written."""
    x = points.double()
    norms = x.square().sum(1)
    kernel = torch.addmm(norms + norms[:, None], x, x.T, alpha=-2).clamp_(min=0).mul_(-1 / scale**2).exp_()
    covered, gained, indices = x.new_zeros(len(x)), torch.empty_like(kernel), []
    gains, chosen = x.new_empty(len(x)), torch.zeros(len(x), dtype=torch.bool)
    for _ in range(picks):
        torch.sub(kernel, covered, out=gained).clamp_(min=0)
        torch.sum(gained, 1, out=gains).masked_fill_(chosen, -math.inf)
        best = int((gains >= gains.max() - TIE_TOLERANCE * len(x)).int().argmax())
        indices.append(best)
        chosen[best] = True
        torch.maximum(covered, kernel[best], out=covered)
    return indices


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def against_plain(n: int, picks: int, plain_picks: int) -> dict[str, Any]:
    """The plain loop's cost a pick is constant, so a part of its picks tells the rest; indices are compared there."""
    points = features(n, 64)
    scale = length_scale(points)

    def ours() -> tuple[HerdingSearch, Tensor]:
        search = HerdingSearch(points, scale, None, None, 256)
        return search, search.pick(picks)[0]

    seconds, (search, indices) = timed(ours)
    plain, expected = timed(lambda: plain_loop(points, plain_picks, scale))
    return {
        "n": n,
        "picks": picks,
        "seconds": seconds,
        "plain_seconds": plain * picks / plain_picks,
        "plain_picks": plain_picks,
        "ratio": plain * picks / plain_picks / seconds,
        "same": indices[:plain_picks].tolist() == expected,
        "kernel_rows_over_n": search.kernel_rows / n,
    }


def growth(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Seconds of choosing half of the points, and the exponent of n fitted to them."""
    seconds = []
    for n in sizes:
        points = features(n, 64)
        scale = length_scale(points)
        seconds.append(timed(lambda x=points, s=scale: max_herding(x, len(x) // 2, length_scale=s))[0])
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    exponent = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return {"n": sizes, "seconds": seconds, "exponent": exponent}


def peak_memory(n: int, channels: int, picks: int) -> dict[str, Any]:
    """Largest resident memory above that before the search, which is the largest so far: run this first."""
    points = features(n, channels)
    scale = length_scale(points)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, _ = timed(lambda: max_herding(points, picks, length_scale=scale))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    return {"n": n, "channels": channels, "picks": picks, "seconds": seconds, "extra_GB": extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, default=2000)
    parser.add_argument("--plain-picks", type=int, default=2000, help="picks that the plain loop really makes")
    parser.add_argument("--memory-points", type=int, default=50_000)
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()

    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    row = result["memory"] = peak_memory(arguments.memory_points, 256, 5)
    print(
        f"n {row['n']:,}, D {row['channels']}: {row['extra_GB']:.2f} GB above start, {row['seconds']:.0f} s", flush=True
    )
    row = result["growth"] = growth((1000, 2000, 4000, 8000))
    print(f"seconds {', '.join(f'{s:.2f}' for s in row['seconds'])}: exponent {row['exponent']:.2f}", flush=True)
    row = result["plain"] = against_plain(4000, arguments.picks, min(arguments.picks, arguments.plain_picks))
    print(
        f"n {row['n']:,}, {row['picks']:,} picks: {row['seconds']:.1f} s, plain {row['plain_seconds']:.0f} s, ratio "
        f"{row['ratio']:.1f}, same indices {row['same']}, kernel rows {row['kernel_rows_over_n']:.1f} n"
    )
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
