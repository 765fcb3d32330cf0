"""What a self-training step costs over the bare passes of its networks, in time and in memory.

    python experiments/benchmarks/self_training_step.py [--steps 30] [--save FILE]

Bare = the teacher's forward pass, and forward, up-sampled cross-entropy and backward of the student for each of the
method's passes (source, mixed, and masked where there is one), one after the other. Step = the whole of `fit` per step
with prepared batches. Ratios are medians over steps of one run, step and bare taking turns. Memory is the peak of
resident memory above what was resident before the first step, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from step_costs import largest_costs, print_costs
from training_step import cross_entropy, demo_network, measure_step, prepared_batches

from adaptseg.allocation import keep_freed_memory
from adaptseg.classes import STREETS
from adaptseg.data import Batch
from adaptseg.methods import GBW, Masking, Optimization, SelfTraining

VARIANTS: dict[str, dict[str, Any]] = {
    "DACS or DAFormer": {},
    "MIC": {"masking": Masking(block=16)},
    "MIC with GBW": {"masking": Masking(block=16), "gbw": True},
}


def method(*, gbw: bool = False, masking: Masking | None = None) -> SelfTraining:
    return SelfTraining(
        network=demo_network,
        class_table=STREETS,
        optimization=Optimization(name="adamw", lr=1e-4, head_lr_factor=1.0),
        masking=masking,
        class_weights=GBW() if gbw else None,
    )


class Bare:
    """The passes of a step and nothing else."""

    def __init__(self, *, masked: bool) -> None:
        self.student, self.teacher = demo_network(STREETS.num_classes).train(), demo_network(STREETS.num_classes).eval()
        self.masked = masked

    def __call__(self, batch: Batch) -> None:
        with torch.no_grad():
            self.teacher(batch.target.image)
        images = [batch.source.image, batch.target.image] + ([batch.target.image] if self.masked else [])
        for image in images:
            cross_entropy(self.student, image, batch.source.labels).backward()
        self.student.zero_grad()


def peak_memory(name: str, batch_size: int, *, bare: bool) -> int:
    """Bytes, measured in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, batch_size, bare))


def _peak(name: str, batch_size: int, bare: bool) -> int:
    quiet()
    batches = prepared_batches(batch_size, 5)
    settings = VARIANTS[name]
    network, passes = method(**settings), Bare(masked="masking" in settings)
    before = _resident()
    watch = _Watch()
    with watch:
        if bare:
            for batch in batches:
                passes(batch)
        else:
            measure_step(network, batches, lambda batch: None)
    return watch.highest - before


class _Watch:
    """The highest resident memory inside a `with` block; ru_maxrss would remember what came before."""

    def __enter__(self) -> None:
        self.highest, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while not self.done.wait(0.001):
            self.highest = max(self.highest, _resident())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def quiet() -> None:
    """As the command line would: few words, and freed memory stays."""
    keep_freed_memory()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    quiet()
    batches = prepared_batches(arguments.batch_size, arguments.steps)
    result: dict[str, dict[str, float]] = {}
    for name, settings in VARIANTS.items():
        step, bare = measure_step(method(**settings), batches, Bare(masked="masking" in settings))
        memory = [peak_memory(name, arguments.batch_size, bare=only) for only in (False, True)]
        result[name] = {"step": step, "bare": bare, "ratio": step / bare, "memory_ratio": memory[0] / memory[1]}
        print(
            f"{name:18s} step {1e3 * step:7.1f} ms  bare {1e3 * bare:7.1f} ms  ratio {step / bare:.3f}   "
            f"memory {memory[0] >> 20} over {memory[1] >> 20} MB, ratio {memory[0] / memory[1]:.2f}"
        )
        print_costs(name, largest_costs(method(**settings), batches[:5]))
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
