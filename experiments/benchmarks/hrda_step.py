"""What a self-training step with HRDA costs over the bare passes of the wrapped network, and so for inference.

    python experiments/benchmarks/hrda_step.py [--steps 20] [--save FILE]

Bare step = HRDA's networks on what it shows them, one after the other, and nothing else: for the teacher, the context
with the attention head and all windows of an image together, forward; for each pass of the student, context with
attention head and detail crop, forward, up-sampled cross-entropy of both scales, and backward. Bare inference =
context with attention head, and windows, forward. Ratios are medians of one run, the two taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from self_training_step import quiet
from step_costs import largest_costs, print_costs
from torch import Tensor
from training_step import cross_entropy, demo_network, measure_step, prepared_batches

from adaptseg.classes import STREETS
from adaptseg.data import Batch
from adaptseg.methods import Masking, Optimization, SelfTraining
from adaptseg.networks import HRDA, Inference, predict_probabilities, resize_logits
from adaptseg.networks.windows import window_corners

VARIANTS: dict[str, dict[str, Any]] = {"HRDA": {}, "MIC on HRDA": {"masking": Masking(block=16)}}
DETAIL = (64, 128)
"""Of Streets' 128x256, as in the recipe."""


def network(classes: int) -> HRDA:
    """The network of `configs/hrda.yaml`."""
    return HRDA(classes, segmenter=demo_network, detail=DETAIL, attention_channels=64)


def scaled(images: Tensor) -> Tensor:
    """The context of normalised images."""
    return F.avg_pool2d(images, 2)


def windows(images: Tensor) -> Tensor:
    corners = window_corners((128, 256), DETAIL, (DETAIL[0] // 2, DETAIL[1] // 2))
    return torch.cat([images[..., y : y + DETAIL[0], x : x + DETAIL[1]] for y, x in corners])


class Bare:
    """The passes of a step and nothing else."""

    def __init__(self, *, masked: bool) -> None:
        self.student, self.teacher = network(STREETS.num_classes).train(), network(STREETS.num_classes).eval()
        self.masked = masked

    def __call__(self, batch: Batch) -> None:
        assert batch.source is not None
        assert batch.target is not None
        read(self.teacher, batch.target.image)
        labels = batch.source.labels
        for image in [batch.source.image, batch.target.image] + ([batch.target.image] if self.masked else []):
            output = self.student.segmenter(scaled(image))
            attention = self.student.attention(output.features[-4:])
            logits = resize_logits(output.logits, (labels.shape[-2], labels.shape[-1]))
            whole = F.cross_entropy(logits, labels, ignore_index=255)
            detail = cross_entropy(self.student.segmenter, image[..., 32:96, 64:192], labels[:, 32:96, 64:192])
            (0.9 * whole + 0.1 * detail + attention.mean()).backward()
        self.student.zero_grad()


@torch.no_grad()
def read(wrapped: HRDA, images: Tensor) -> None:
    """All that HRDA's networks see of whole images."""
    wrapped.attention(wrapped.segmenter(scaled(images)).features[-4:])
    wrapped.segmenter(windows(images))


def method(settings: dict[str, Any]) -> SelfTraining:
    rates = Optimization(name="adamw", lr=1e-4, head_lr_factor=1.0)
    return SelfTraining(network=network, class_table=STREETS, optimization=rates, **settings)


def inference_seconds(images: Tensor, repeats: int) -> tuple[float, float]:
    """Median seconds of (probabilities at image size, the bare passes)."""
    wrapped = network(STREETS.num_classes).eval()

    def whole() -> None:
        predict_probabilities(wrapped, images, size=(128, 256), inference=Inference())

    def bare() -> None:
        read(wrapped, images)

    seconds: dict[Callable[[], None], list[float]] = {whole: [], bare: []}
    for _ in range(repeats):
        for run, taken in seconds.items():
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[whole][2:]), statistics.median(seconds[bare][2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    quiet()
    batches = prepared_batches(arguments.batch_size, arguments.steps)
    result: dict[str, dict[str, float]] = {}
    for name, settings in VARIANTS.items():
        step, bare = measure_step(method(settings), batches, Bare(masked="masking" in settings))
        print_costs(name, largest_costs(method(settings), batches[:5]))
        result[name] = {"step": step, "bare": bare, "ratio": step / bare}
    target = batches[0].target
    assert target is not None
    taken, bare = inference_seconds(target.image, arguments.steps)
    result["inference"] = {"step": taken, "bare": bare, "ratio": taken / bare}
    for name, row in result.items():
        print(f"{name:12s} {1e3 * row['step']:7.1f} ms  bare {1e3 * row['bare']:7.1f} ms  ratio {row['ratio']:.3f}")
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
