"""Candidate pixels of the whole pool, spread over processes, and the best of them by a total order (no Lightning)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from adaptseg.distributed import gather, is_distributed


@dataclass(frozen=True)
class Points:
    """Pixels of the pool, sorted by (image, flat).

    Attributes:
        image: (n,) int64 index of the pixel's image in the pool's order.
        flat: (n,) int64 position y * W + x.
    """

    image: NDArray[np.int64]
    flat: NDArray[np.int64]

    @staticmethod
    def of(parts: list[tuple[int, NDArray[np.int64]]]) -> Points:
        """From (image index, flat positions) of several images."""
        image = [np.full(len(flat), index, np.int64) for index, flat in parts]
        flat = [flat for _, flat in parts]
        points = Points(_concatenated(image), _concatenated(flat))
        return points.at(np.lexsort((points.flat, points.image)))

    def __len__(self) -> int:
        return len(self.image)

    def at(self, which: NDArray[Any]) -> Points:
        """Those points: indices or a mask."""
        return Points(self.image[which], self.flat[which])

    def of_image(self, index: int) -> NDArray[np.int64]:
        """Flat positions of one image."""
        first, last = np.searchsorted(self.image, [index, index + 1])
        return self.flat[first:last]


def merged(points: Points, *columns: NDArray[Any]) -> tuple[Points, list[NDArray[Any]]] | None:
    """The points of all processes with their columns (n, ...), sorted, on process 0; None elsewhere. A collective."""
    parts = _gather_on_first((points, columns))
    if parts is None:
        return None
    everything = Points(np.concatenate([p.image for p, _ in parts]), np.concatenate([p.flat for p, _ in parts]))
    order = np.lexsort((everything.flat, everything.image))
    joined = [np.concatenate([own[i] for _, own in parts])[order] for i in range(len(columns))]
    return everything.at(order), joined


def announced(points: Points | None) -> Points:
    """What process 0 gives, on every process. A collective."""
    found = gather(points)[0]
    assert found is not None
    return found


def best(points: Points, score: NDArray[np.float32], count: int) -> Points:
    """The `count` points of the largest score, all if there are fewer; equal scores: the first by (image, flat)."""
    return points.at(best_rows(points, score, count))


def best_rows(points: Points, score: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Which points `best` takes, ascending."""
    order = np.lexsort((points.flat, points.image, -score.astype(np.float64)))[:count]
    return np.sort(order)


def _gather_on_first(item: Any) -> list[Any] | None:
    if not is_distributed():
        return [item]
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(item, parts)
    return parts


def _concatenated(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
