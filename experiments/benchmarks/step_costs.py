"""The largest costs of a training step beside the passes of its networks."""

from __future__ import annotations

import cProfile
import pstats
import time

from training_step import measure_step

from adaptseg.data import Batch
from adaptseg.methods import Method

PARTS = {
    "teacher's labels": ("methods/lessons.py", "taught"),
    "mixing and its colours": ("methods/lessons.py", "mixed"),
    "masking and its colours": ("methods/lessons.py", "masked"),
    "distillation": ("methods/distillation.py", "loss"),
    "class weights": ("methods/class_weights.py", "forward"),
    "fusing two scales": ("networks/hrda.py", "fuse"),
    "teacher's update": ("networks/teacher.py", "update"),
    "optimiser": ("optim/adam.py", "adam"),
    "clearing gradients": ("optim/optimizer.py", "zero_grad"),
    "hooks before the step": ("methods/training.py", "on_train_batch_start"),
    "log": ("methods/training.py", "log"),
}
"""What a step does that no bare pass does -> the end of a file's name, and the function in it."""


def largest_costs(method: Method, batches: list[Batch], count: int = 3) -> dict[str, float]:
    """Seconds of a step of `fit` of the largest of `PARTS`, as cProfile sees them: a little too long."""
    with cProfile.Profile(time.process_time) as seen:  # other work on the machine does not count
        measure_step(method, batches, lambda batch: None)
    seconds = dict.fromkeys(PARTS, 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(seen).stats.items():  # type: ignore[attr-defined]
        for part, (where, called) in PARTS.items():
            if file.endswith(where) and function == called:
                seconds[part] += cumulative / len(batches)
    largest = sorted(seconds, key=lambda part: -seconds[part])[:count]
    return {part: seconds[part] for part in largest}


def print_costs(name: str, costs: dict[str, float]) -> None:
    said = ", ".join(f"{part} {1e3 * taken:.1f} ms" for part, taken in costs.items())
    print(f"{name}: most time beside the passes: {said}")
