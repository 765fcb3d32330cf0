"""How much faster two processes score the pool than one, one thread each.

    python experiments/benchmarks/scoring_processes.py [--images 64] [--save .../results/scoring_processes.json]

A round of CBDA from its first image to its last pick, by the real callback and strategy: scoring a shared-out pool, the
all-reduced selection, one bit a pixel written. Weights do not matter. The first round renders the scenes and is left
out; of the others, the median. One and two processes take turns, each in a fresh run, so that both see the same
machine, which must have two idle cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from numpy.typing import NDArray

from adaptseg.active import CBDA
from adaptseg.classes import STREETS
from adaptseg.data import DomainPair, Streets
from adaptseg.lightning_cli import TRAINER_DEFAULTS
from adaptseg.methods import Supervised
from adaptseg.networks import SmpSegmenter

ROUNDS = 5


class TimedCBDA(CBDA):
    """Notes how long each query took on this process, until its last pixel was taken."""

    def __init__(self, budget: float) -> None:
        super().__init__(budget=budget, schedule=[(number + 1) / (ROUNDS + 1) for number in range(ROUNDS)])
        self.seconds: list[float] = []

    def query(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        trainer.strategy.barrier("begin together")
        began = time.perf_counter()
        yield from super().query(trainer, module, folder)
        trainer.strategy.barrier("the slowest counts")
        self.seconds.append(time.perf_counter() - began)


def network(classes: int) -> SmpSegmenter:
    """The network of the recipes on Streets with a norm that several processes may train."""
    return SmpSegmenter(classes, decoder="FPN", encoder="tu-mobilenetv3_small_100", decoder_channels=64, norm="group")


def work(processes: int, images: int, size: tuple[int, int], report: Path) -> None:
    """A fit of one step per round; every process runs this, the first writes the seconds of the later rounds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pool = Streets("street", "train", count=images, size=size)
    data = DomainPair(target=pool, source=None, batch_size=processes, tick=1, workers=0)
    acquisition = TimedCBDA(budget=0.05)
    trainer = Trainer(
        **TRAINER_DEFAULTS,
        max_steps=ROUNDS + 1,
        accelerator="cpu",
        devices=processes,
        strategy=DDPStrategy(broadcast_buffers=False) if processes > 1 else "auto",
        default_root_dir=report.parent / f"run{processes}",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[acquisition],
    )
    trainer.fit(Supervised(network=network, class_table=STREETS), data)
    if trainer.is_global_zero:
        report.write_text(json.dumps(acquisition.seconds[1:]))


def seconds_of(processes: int, images: int, size: tuple[int, int]) -> list[float]:
    """Seconds of each round after the first, in a fresh run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "seconds.json"
        command = [sys.executable, __file__, "--images", str(images), "--size", *map(str, size)]
        command += ["--work", str(processes), "--report", str(report)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return json.loads(report.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="of the pool")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("H", "W"))
    parser.add_argument("--runs", type=int, default=3, help="of each kind, taking turns")
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)  # the process that measures
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    height, width = arguments.size
    if arguments.work is not None:
        work(arguments.work, arguments.images, (height, width), arguments.report)
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.runs):
        for processes, found in seconds.items():
            found += seconds_of(processes, arguments.images, (height, width))
    one, two = (statistics.median(found) for found in seconds.values())
    result = {"images": arguments.images, "size": [height, width], "one": one, "two": two, "ratio": one / two}
    print(f"{arguments.images} images of {height}x{width}: one process {one:.2f} s a round, two {two:.2f} s")
    print(f"two processes are {one / two:.2f} times as fast (aim: at least 1.6)")
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
