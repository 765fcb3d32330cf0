"""Which scene is drawn when: the global order of samples is a pure function of (seed, sample number).

Sample number n = micro-batch * batch_size + position in the global batch. Scene choice and augmentation draw
from `generator(seed, stream, n)` alone, so the order survives a resume and does not depend on the number of processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """An independent random generator for (seed, stream name, counters...)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *counters])))


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: str, epoch: int, length: int) -> np.ndarray:
    return generator(seed, f"order/{stream}", epoch).permutation(length)


def scene_index(sample: int, length: int, *, seed: int, stream: str) -> int:
    """Index of the scene behind sample number `sample` when `length` scenes are shuffled anew every pass."""
    epoch, offset = divmod(sample, length)
    return int(_permutation(seed, stream, epoch, length)[offset])


class StepSampler(Sampler[list[int]]):
    """Batch sampler over sample numbers: one tick of micro-batches, this rank's slice of each.

    `len` is the whole tick even when iteration starts inside it: Lightning counts the batches that a resumed tick has
    already seen.

    Args:
        tick: [first, last) micro-batches of the tick.
        start: first micro-batch to serve; `tick[0]` except after a resume inside the tick.
        batch_size: global batch size; divisible by `world_size`.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, tick: tuple[int, int], *, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.tick, self.start = tick, start
        self.batch_size, self.rank, self.share = batch_size, rank, batch_size // world_size

    def __len__(self) -> int:
        return self.tick[1] - self.tick[0]

    def __iter__(self) -> Iterator[list[int]]:
        for micro_batch in range(self.start, self.tick[1]):
            first = micro_batch * self.batch_size + self.rank * self.share
            yield list(range(first, first + self.share))


def uniform_draws(seed: int, stream: str, samples: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Uniform random numbers for the samples of a batch, whatever process holds them and whatever was drawn before.

    Args:
        seed: of the run.
        stream: name of what the numbers are for; streams are independent.
        samples: sample numbers, 0 or more.
        shape: of one sample's numbers; () is a single one.

    Returns:
        (len(samples), *shape) float32 on the CPU in [0, 1); row i comes from `generator(seed, stream, samples[i])`.
    """
    draws = np.empty((len(samples), *shape), np.float32)
    for row, sample in enumerate(samples):
        draws[row] = generator(seed, stream, sample).random(shape, dtype=np.float32)
    return torch.from_numpy(draws)


def normal_draws(seed: int, stream: str, samples: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal random numbers for the samples of a batch; otherwise as `uniform_draws`.

    Returns:
        (len(samples), *shape) float32 on the CPU; row i comes from `generator(seed, stream, samples[i])`.
    """
    draws = np.empty((len(samples), *shape), np.float32)
    for row, sample in enumerate(samples):
        draws[row] = generator(seed, stream, sample).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(draws)
