"""RIPU's source sampling: scenes drawn for a class, the less often seen so far in a sub-epoch the likelier.

RIPU: Xie et al., CVPR 2022, released code (its data sets' constructors). What is drawn is a sequence that depends on
the seed and the labels alone, so that a resume and any number of processes see the same; it differs from the release in
three points. There the finished list of the whole run is shuffled once more, which changes the order, not what is in
it; every pass over a class's scenes is shuffled here, every one but the first there; and after a reshuffle the release
skips the first scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adaptseg.classes import ClassTable
from adaptseg.data.sampling import generator
from adaptseg.data.statistics import ClassStatistics
from adaptseg.errors import AdaptSegError


@dataclass(frozen=True)
class ClassBalancedSampling:
    """How a source scene is drawn for a class.

    Args:
        sub_epoch: draws after which the count of seen classes begins anew; RIPU: 3000.

    Raises:
        AdaptSegError: an argument is outside what is allowed.
    """

    sub_epoch: int = 3000

    def __post_init__(self) -> None:
        if self.sub_epoch < 1:
            raise AdaptSegError(
                f"data.class_balanced_sampling.sub_epoch is {self.sub_epoch}; a positive number is expected"
            )


class DrawnScenes(NamedTuple):
    """A stretch of the sequence, small enough for every worker to have a copy.

    Attributes:
        first: sample number of the first draw.
        scenes: (n,) int32, the scene behind sample `first + i`.
    """

    first: int
    scenes: npt.NDArray[np.int32]

    def scene(self, sample: int) -> int:
        return int(self.scenes[sample - self.first])


class BalancedScenes:
    """The sequence of scenes; whole sub-epochs of it are drawn when asked for, and kept (4 bytes a sample).

    Args:
        rule: the settings.
        statistics: of the source.
        seed: of the run.

    Raises:
        AdaptSegError: the source has no labelled pixel.
    """

    def __init__(self, rule: ClassBalancedSampling, statistics: ClassStatistics, *, seed: int) -> None:
        self._rule, self._seed = rule, seed
        self._shown = statistics.counts > 0
        self._candidates = [np.flatnonzero(column).astype(np.int32) for column in self._shown.T]
        if not self._shown.any():
            raise AdaptSegError("data.source has no labelled pixel: class-balanced sampling has nothing to draw")
        self._queues = [_Queue(c, scenes, seed) for c, scenes in enumerate(self._candidates)]
        self._drawn = np.empty(0, np.int32)

    def between(self, first: int, last: int) -> DrawnScenes:
        """The scenes of sample numbers `first` to `last` - 1."""
        while len(self._drawn) < last:
            self._drawn = np.concatenate([self._drawn, self._sub_epoch(len(self._drawn) // self._rule.sub_epoch)])
        return DrawnScenes(first, self._drawn[first:last].copy())

    def _sub_epoch(self, number: int) -> npt.NDArray[np.int32]:
        drawn = np.empty(self._rule.sub_epoch, np.int32)
        numbers = generator(self._seed, "class balance", number).random(len(drawn))
        seen = np.zeros(len(self._queues))
        present = np.array([len(scenes) > 0 for scenes in self._candidates])
        for position, random in enumerate(numbers):
            cumulative = class_probabilities(seen, present).cumsum()
            # Times the last sum, not 1: rounding may leave that sum below 1, beyond which is no class.
            class_id = int(np.searchsorted(cumulative, random * cumulative[-1], side="right"))
            drawn[position] = self._queues[class_id].next()
            seen += self._shown[drawn[position]]
        return drawn

    def notes(self, class_table: ClassTable) -> list[str]:
        """What a user should know of the data: absent classes, by name."""
        absent = [name for name, scenes in zip(class_table.names, self._candidates, strict=True) if not len(scenes)]
        return [f"class-balanced sampling: no source scene shows {', '.join(absent)}; never drawn"] if absent else []


class _Queue:
    """The scenes of one class, each once a pass, shuffled anew every pass."""

    def __init__(self, class_id: int, scenes: npt.NDArray[np.int32], seed: int) -> None:
        self._class_id, self._scenes, self._seed = class_id, scenes, seed
        self._passes = 0
        self._left: list[int] = []

    def next(self) -> int:
        if not self._left:
            order = generator(self._seed, f"class balance/{self._class_id}", self._passes).permutation(self._scenes)
            self._left = order.tolist()[::-1]
            self._passes += 1
        return self._left.pop()


def class_probabilities(seen: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """p(c) ~ 1 / log(1.01 + f_c) over the present classes, 0 for the others.

    Args:
        seen: (C,) how many scenes drawn so far show class c; f_c is its share of their sum, 0 before the first draw.
        present: (C,) which classes occur at all, at least one.

    Returns:
        (C,) float64, sum 1.
    """
    shares = seen / max(seen.sum(), 1)
    weights = np.where(present, 1 / np.log(1.01 + shares), 0.0)
    return weights / weights.sum()
