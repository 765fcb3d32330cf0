"""What RIPU's scores cost over the softmax that every prediction of the pool makes anyway.

    python experiments/benchmarks/scores.py                  # 19 classes, 1024 x 2048
    python experiments/benchmarks/scores.py --repeats 9 --save scores.json

The map is a smooth field of logits, up-sampled from stride 8 as a network's are. Softmax and scores take turns, so that
a busy machine slows them alike; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adaptseg.active.scores import ripu
from adaptseg.networks import resize_logits


def seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    height, width = arguments.size

    cells = 3 * torch.randn(1, arguments.classes, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    logits = resize_logits(cells, (height, width), align_corners=True)
    probabilities = logits.softmax(1)[0]
    calls: dict[str, Callable[[], Tensor]] = {
        "softmax": partial(logits.softmax, 1),
        "region, radius 1": partial(ripu, probabilities, 1),
        "pixel, radius 32": partial(ripu, probabilities, 32, mode="pixel"),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # the allocator's first-use costs
    for _ in range(arguments.repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))

    result = {"size": [arguments.classes, height, width], "threads": torch.get_num_threads()}
    for name in list(calls)[1:]:
        ratio = statistics.median(mine / softmax for mine, softmax in zip(times[name], times["softmax"], strict=True))
        result[name] = {"seconds": statistics.median(times[name]), "ratio": ratio}
        print(f"RIPU, {name}: {result[name]['seconds']:.3f} s, {ratio:.2f} times the softmax")
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
