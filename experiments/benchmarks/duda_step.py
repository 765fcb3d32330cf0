"""What a DUDA step costs over the bare passes of its networks, in time and memory; what measuring costs over inference.

    python experiments/benchmarks/duda_step.py [--steps 20] [--save FILE]

Bare = the large teacher's forward pass, and forward, up-sampled cross-entropy and backward of the large student for
source, mixed (and masked) images and of the small student for source and mixed ones, one after the other. Ratios are
medians over steps of one run, step and bare taking turns. Memory is the peak of resident memory above what was resident
before the first step, each in a process of its own, over that of the large network's self-training plus 1.2 times the
small network's bare step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from self_training_step import _resident, _Watch, quiet
from step_costs import largest_costs, print_costs
from training_step import cross_entropy, measure_step, prepared_batches

from adaptseg import networks
from adaptseg.classes import STREETS
from adaptseg.data import Batch, DomainPair, Streets
from adaptseg.measure import measure
from adaptseg.methods import DUDA, Masking, Optimization, SelfTraining
from adaptseg.networks import Inference, SmpSegmenter

VARIANTS: dict[str, dict[str, Any]] = {"DUDA on DAFormer": {}, "DUDA on MIC": {"masking": Masking(block=16)}}
RATES = Optimization(name="adamw", lr=1e-4, head_lr_factor=1.0)


def large(classes: int) -> SmpSegmenter:
    return SmpSegmenter(classes, decoder="FPN", encoder="tu-mobilenetv3_large_100", decoder_channels=128)


def small(classes: int) -> SmpSegmenter:
    return SmpSegmenter(classes, decoder="FPN", encoder="tu-mobilenetv3_small_050", decoder_channels=64)


def duda(settings: dict[str, Any]) -> DUDA:
    return DUDA(network=small, large=large, class_table=STREETS, optimization=RATES, **settings)


class Bare:
    """The passes of a step and nothing else."""

    def __init__(self, *, of_large: int, of_small: int) -> None:
        self.teacher = large(STREETS.num_classes).eval() if of_large else None
        self.students = [
            (make(STREETS.num_classes).train(), n) for make, n in ((large, of_large), (small, of_small)) if n
        ]

    def __call__(self, batch: Batch) -> None:
        assert batch.source is not None
        assert batch.target is not None
        if self.teacher is not None:
            with torch.no_grad():
                self.teacher(batch.target.image)
        for student, passes in self.students:
            for number in range(passes):
                image = batch.target.image if number else batch.source.image
                cross_entropy(student, image, batch.source.labels).backward()
            student.zero_grad()


def peak_memory(kind: str, name: str, batch_size: int) -> int:
    """Bytes, measured in a fresh process; `kind` is duda, host (self-training of the large network) or small."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (kind, name, batch_size))


def _peak(kind: str, name: str, batch_size: int) -> int:
    quiet()
    batches, settings = prepared_batches(batch_size, 5), VARIANTS[name]
    host = SelfTraining(network=large, class_table=STREETS, optimization=RATES, **settings) if kind == "host" else None
    method = duda(settings) if kind == "duda" else host
    passes = Bare(of_large=0, of_small=2)
    before, watch = _resident(), _Watch()
    with watch:
        if method is None:
            for batch in batches:
                passes(batch)
        else:
            measure_step(method, batches, lambda batch: None)
    return watch.highest - before


def measuring(count: int) -> float:
    """Seconds of measuring over those of both networks' bare inference, the median of three turns."""
    data = DomainPair(target=Streets("street", "train", count=count), workers=0)
    networks_ = [make(STREETS.num_classes).eval() for make in (large, small)]
    images = [batch.image for batch in data.pool_loader(0, 1)]  # rendered and kept from here on
    ratios: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        for image in images:
            size = (image.shape[-2], image.shape[-1])
            for network in networks_:
                networks.predict_probabilities(network, image, size=size, inference=Inference())
        bare = time.perf_counter() - began
        began = time.perf_counter()
        for _ in data.pool_loader(0, 1):
            pass
        loading = time.perf_counter() - began
        began = time.perf_counter()
        measure(networks_[0], networks_[1], data)
        ratios.append((time.perf_counter() - began - loading) / bare)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    quiet()
    batches = prepared_batches(arguments.batch_size, arguments.steps)
    result: dict[str, Any] = {}
    for name, settings in VARIANTS.items():
        bare = Bare(of_large=3 if "masking" in settings else 2, of_small=2)
        step, passes = measure_step(duda(settings), batches, bare)
        kinds = ("duda", "host", "small")
        peaks = {kind: peak_memory(kind, name, arguments.batch_size) for kind in kinds}
        memory = peaks["duda"] / (peaks["host"] + 1.2 * peaks["small"])
        result[name] = {"step": step, "bare": passes, "ratio": step / passes, "memory_ratio": memory}
        print(
            f"{name:18s} step {1e3 * step:7.1f} ms  bare {1e3 * passes:7.1f} ms  ratio {step / passes:.3f}   memory "
            f"{peaks['duda'] >> 20} MB, host {peaks['host'] >> 20}, small {peaks['small'] >> 20}, ratio {memory:.2f}"
        )
        print_costs(name, largest_costs(duda(settings), batches[:5]))
    result["measuring"] = {"ratio": measuring(12)}
    print(f"measuring over bare inference, loading apart: {result['measuring']['ratio']:.3f}")
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
