"""Who answers a query. The ground truth of the pool is reachable through this file and no other."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import VOID
from adaptseg.data.resize import resize_nearest
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Oracle(ABC):
    """Labels pixels on request. Write a subclass to ask people; it may take as long as it likes."""

    def bind(self, scenes: Scenes) -> None:  # noqa: B027 - an oracle that asks people needs no pool
        """Called once, before the first question, with the pool."""

    @abstractmethod
    def answer(self, key: str, bought: Mask) -> Labels:
        """(H, W) uint8 train ids of the pixels of `bought` (H, W) bool; 255 outside, and inside where void.

        Must give the same answer again when a killed run asks again.
        """

    def void(self, key: str, size: tuple[int, int]) -> Mask:
        """(H, W) bool: pixels that would be answered with void. Known in simulations only."""
        raise AdaptSegError(
            f"{type(self).__name__} cannot know void pixels before they are bought; set active.forbid_void to false"
        )

    def truth(self, key: str, size: tuple[int, int]) -> Labels | None:
        """(H, W) uint8 train ids for pictures only; None when there is no ground truth."""
        return None


class GroundTruth(Oracle):
    """Simulates an annotator without faults: the pool's own labels, on the pool grid by nearest neighbour."""

    def __init__(self) -> None:
        self._scenes: Scenes | None = None

    def bind(self, scenes: Scenes) -> None:
        """AdaptSegError when the pool has no labels to simulate with."""
        if not scenes.labelled:
            raise AdaptSegError(
                f"active.oracle {type(self).__name__}: the pool ({type(scenes).__name__}) has no ground truth to "
                "simulate the oracle with; give a labelled target set, or an oracle that asks people"
            )
        self._scenes = scenes

    def answer(self, key: str, bought: Mask) -> Labels:
        return _where(bought, self._labels(key, bought.shape))

    def void(self, key: str, size: tuple[int, int]) -> Mask:
        return self._labels(key, size) == VOID

    def truth(self, key: str, size: tuple[int, int]) -> Labels:
        return self._labels(key, size)

    def _labels(self, key: str, size: tuple[int, ...]) -> Labels:
        height, width = size
        return resize_nearest(self._pool.labels(key), (height, width))

    @property
    def _pool(self) -> Scenes:
        if self._scenes is None:
            raise RuntimeError(f"{type(self).__name__} was asked before bind()")
        return self._scenes


class NoisyGroundTruth(GroundTruth):
    """Simulates an annotator who errs. Void is never mistaken, nor is a class mistaken for void.

    Errors depend on (seed, image, pixels asked for together) alone, so a resumed run gets the same answers. The wrong
    class is uniform over the other classes.

    Args:
        error_rate: probability of an error per unit, 0 to 1.
        unit: "component": people err by region, so each 4-connected group of pixels bought together gets, with this
            probability, one wrong class in place of its most frequent class (ties: lowest id); "pixel": every answered
            pixel errs on its own.
        seed: of the errors.
    """

    def __init__(self, *, error_rate: float, unit: Literal["component", "pixel"] = "component", seed: int = 0) -> None:
        super().__init__()
        if not 0 <= error_rate <= 1:
            raise AdaptSegError(f"active.oracle error_rate is {error_rate}; give a number from 0 to 1")
        if unit not in ("component", "pixel"):
            raise AdaptSegError(f"active.oracle unit is '{unit}'; give 'component' or 'pixel'")
        self.error_rate, self.unit, self.seed = error_rate, unit, seed

    def answer(self, key: str, bought: Mask) -> Labels:
        answer = super().answer(key, bought)
        num_classes = self._pool.class_table.num_classes
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        # One fixed draw per pixel of the image; a component uses the draw of its first pixel.
        errs = generator.random(bought.shape, np.float32) < self.error_rate
        offset = generator.integers(1, num_classes, bought.shape)
        asked = np.flatnonzero(bought)
        labels = answer.flat[asked]
        if self.unit == "pixel":
            first, wrong = asked, labels != VOID
        else:
            member = components(bought)
            first = asked[member]
            wrong = (labels == _majority(member, labels, num_classes)) & (labels != VOID)
        wrong &= errs.flat[first]
        labels[wrong] = (labels[wrong] + offset.flat[first[wrong]]) % num_classes
        answer.flat[asked] = labels
        return answer


def components(mask: Mask) -> npt.NDArray[np.int64]:
    """4-connected components of a mask (H, W) bool with n true pixels, numbered in reading order 0..n-1.

    Returns:
        (n,) int64: for each true pixel the number of the first pixel of its component.
    """
    parent = np.arange(np.count_nonzero(mask))
    number = np.full(mask.shape, -1)
    number[mask] = parent
    right, down = mask[:, :-1] & mask[:, 1:], mask[:-1] & mask[1:]
    a = np.concatenate([number[:, :-1][right], number[:-1][down]])
    b = np.concatenate([number[:, 1:][right], number[1:][down]])
    while True:
        # Roots of neighbours that still differ are joined, the later one under the earlier; then paths are shortened.
        root_a, root_b = parent[a], parent[b]
        differ = root_a != root_b
        if not differ.any():
            return parent
        a, b, root_a, root_b = a[differ], b[differ], root_a[differ], root_b[differ]
        np.minimum.at(parent, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        while not np.array_equal(shorter := parent[parent], parent):
            parent = shorter


def _majority(member: npt.NDArray[np.int64], labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """(n,) most frequent class of each pixel's component, void not counted; ties: lowest id."""
    _, component = np.unique(member, return_inverse=True)
    counted = labels != VOID
    cells = component[counted] * num_classes + labels[counted]
    counts = np.bincount(cells, minlength=(component.max(initial=-1) + 1) * num_classes)
    return counts.reshape(-1, num_classes).argmax(1)[component]


def _where(bought: Mask, labels: Labels) -> Labels:
    return np.where(bought, labels, np.uint8(VOID))
