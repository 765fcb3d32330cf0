"""What a training step costs over the bare passes of its network, and how fast the input pipeline alone is.

    python experiments/benchmarks/training_step.py [--recipe configs/cbda_20pct.yaml] [--steps 30]

Bare = forward, up-sampled cross-entropy, backward of the same network on the same source and target batches. Step =
the whole of `fit` per step: loading excluded (batches are prepared), optimiser, schedule, logging and hooks included.
Ratios are medians over steps of one run, the variants taking turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from torch import Tensor

from adaptseg.classes import STREETS
from adaptseg.data import Batch, DomainPair, Streets
from adaptseg.methods import Method, Optimization, Supervised
from adaptseg.networks import Segmenter, SmpSegmenter, resize_logits


def prepared_batches(size: int, count: int) -> list[Batch]:
    """Batches of the demo, with a tenth of the target's pixels bought."""
    data = DomainPair(source=Streets("game", "train"), target=Streets("street", "train"), batch_size=size, workers=0)
    data.trainer = Trainer(max_steps=count, logger=False, enable_checkpointing=False, accelerator="cpu")
    data.tick_steps = count
    batches = list(data.train_dataloader())
    result = []
    for batch in batches:
        labels = batch.source.labels
        bought = torch.where(torch.rand(labels.shape) < 0.1, labels, torch.full_like(labels, 255))
        count = int((bought != 255).sum())
        result.append(batch._replace(target=batch.target._replace(bought=bought, bought_pixels=count)))
    return result


def demo_network(classes: int) -> SmpSegmenter:
    """The network of all recipes on Streets."""
    return SmpSegmenter(classes, decoder="FPN", encoder="tu-mobilenetv3_small_100", decoder_channels=64)


def bare_step(network: SmpSegmenter, batch: Batch) -> None:
    """Forward and backward of both domains, nothing else."""
    losses = [cross_entropy(network, batch.source.image, batch.source.labels)]
    losses.append(cross_entropy(network, batch.target.image, batch.target.bought))
    torch.stack(losses).sum().backward()
    network.zero_grad()


def cross_entropy(network: Segmenter, images: Tensor, labels: Tensor) -> Tensor:
    logits = resize_logits(network(images).logits, (labels.shape[-2], labels.shape[-1]))
    return F.cross_entropy(logits, labels, ignore_index=255)


class BetweenSteps(Callback):
    """Times each step of a fit and runs the bare passes between two of them, so that both see the same machine."""

    def __init__(self, bare: Callable[[Batch], None]) -> None:
        self.bare = bare
        self.step_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Method, batch: Batch, batch_idx: int) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Method, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        self.step_seconds.append(time.perf_counter() - self.began)
        began = time.perf_counter()
        self.bare(batch)
        self.bare_seconds.append(time.perf_counter() - began)


def measure_supervised(batches: list[Batch], *, consistency: float, negative: float) -> tuple[float, float]:
    """Median seconds of (a step of fit, the bare passes)."""
    method = Supervised(
        network=demo_network,
        class_table=STREETS,
        optimization=Optimization(name="adamw", lr=1e-4, head_lr_factor=1.0),
        consistency_weight=consistency,
        negative_weight=negative,
    )
    network = demo_network(STREETS.num_classes).train()
    return measure_step(method, batches, lambda batch: bare_step(network, batch))


def measure_step(method: Method, batches: list[Batch], bare: Callable[[Batch], None]) -> tuple[float, float]:
    """Median seconds of (a step of fit with this method, the bare passes beside it)."""
    watch = BetweenSteps(bare)
    trainer = Trainer(
        max_steps=len(batches),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=20,
        callbacks=[watch],
    )
    trainer.fit(method, train_dataloaders=torch.utils.data.DataLoader(batches, batch_size=None))
    return statistics.median(watch.step_seconds[3:]), statistics.median(watch.bare_seconds[3:])


def pipeline_rate(size: int, passes: int, *, cache: bool) -> float:
    """Images per second of the demo's input pipeline alone, both domains counted, in one process."""
    source, target = (Streets(look, "train", count=60) for look in ("game", "street"))
    data = DomainPair(source=source, target=target, batch_size=size, flip=True, workers=0)
    steps = passes * 60 // size
    data.trainer = Trainer(max_steps=steps, logger=False, enable_checkpointing=False, accelerator="cpu")
    data.tick_steps = steps
    began, images = time.perf_counter(), 0
    for number, _ in enumerate(data.train_dataloader(), 1):
        if cache and number * size == 60:  # the first pass renders, later ones read the cache
            began, images = time.perf_counter(), 0
            continue
        images += 2 * size
    return images / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = prepared_batches(arguments.batch_size, arguments.steps)
    rates, result = {}, {}
    for name, consistency, negative in (("cross-entropy", 0.0, 0.0), ("with RIPU's losses", 0.1, 1.0)):
        step, bare = measure_supervised(batches, consistency=consistency, negative=negative)
        rates[name] = 2 * arguments.batch_size / step
        result[name] = {"step": step, "bare": bare, "ratio": step / bare}
        print(f"{name:20s} step {1e3 * step:7.1f} ms  bare {1e3 * bare:7.1f} ms  ratio {step / bare:.3f}")
    for name, cache in (("rendering", False), ("cached", True)):
        rate = pipeline_rate(arguments.batch_size, 1 if not cache else 3, cache=cache)
        needed = rates["with RIPU's losses"]
        result[f"pipeline, {name}"] = {"images_per_second": rate, "ratio": rate / needed}
        print(f"pipeline, {name:9s} {rate:7.1f} images/s per worker, {rate / needed:.1f} times what the step consumes")
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
