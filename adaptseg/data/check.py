"""What a data set really holds: every label file decoded and counted, everything unreadable found."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adaptseg.allocation import keep_freed_memory
from adaptseg.classes import VOID, ClassTable
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError


class Finding(NamedTuple):
    """One scene: its size (None if unknown), its pixels per train id (256,), or None without labels, what is wrong."""

    size: tuple[int, int] | None
    counts: npt.NDArray[np.int64] | None
    problem: str | None


@dataclass
class SplitReport:
    """What the scenes of one split add up to.

    Attributes:
        class_table: its classes; None if the reader could not be opened.
        scenes: how many were looked at.
        sizes: (H, W) -> scenes of that size.
        counts: (256,) int64 pixels of each train id, 255 = void.
        problems: one line each.
    """

    class_table: ClassTable | None = None
    scenes: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(VOID + 1, np.int64))
    problems: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.scenes += 1
        if finding.size is not None:
            self.sizes[finding.size] += 1
        if finding.counts is not None:
            self.counts += finding.counts
        if finding.problem is not None:
            self.problems.append(finding.problem)

    @property
    def values(self) -> list[int]:
        """Train ids that occur, void included."""
        return np.flatnonzero(self.counts).tolist()

    @property
    def void_share(self) -> float:
        """Share of void in all labelled files' pixels; 0 without labels."""
        return float(self.counts[VOID] / max(int(self.counts.sum()), 1))

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """(C,) share of each class in the pixels that are not void; zeros without any."""
        assert self.class_table is not None
        counts = self.counts[: self.class_table.num_classes]
        return counts / max(int(counts.sum()), 1)


def look_at(scenes: Scenes, key: str, *, images: bool) -> Finding:
    """Decode one scene's labels, which also reads the header of its image; with `images`, decode that as well."""
    try:
        counts = None
        if scenes.labelled:
            size, counts = scenes.label_counts(key)
        else:
            size = scenes.size(key)
        if images:
            scenes.image(key)
    except AdaptSegError as error:
        return Finding(None, None, str(error))
    return Finding(size, counts, None)


def findings(scenes: Scenes, *, workers: int, images: bool) -> Iterator[Finding]:
    """`look_at` of every scene in the order of its keys, by so many processes (1 = this one).

    Raises:
        AdaptSegError: a process died, for want of memory most likely.
    """
    if workers == 1:
        keep_freed_memory()
        yield from (look_at(scenes, key, images=images) for key in scenes.keys)
        return
    # Spawned, not forked: the progress bar of the parent has a thread.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_receive, initargs=(scenes, images)) as pool:
        try:
            yield from pool.map(_look, scenes.keys, chunksize=max(1, min(16, len(scenes.keys) // (4 * workers))))
        except BrokenProcessPool as error:
            raise AdaptSegError(f"a process of --workers {workers} died ({error}); give fewer of them") from error


_received: tuple[Scenes, bool]


def _receive(scenes: Scenes, images: bool) -> None:
    """Once a process: scenes of large data sets take a while to send."""
    global _received
    _received = scenes, images
    keep_freed_memory()


def _look(key: str) -> Finding:
    scenes, images = _received
    return look_at(scenes, key, images=images)


def as_ranges(values: Sequence[int]) -> str:
    """Ascending whole numbers in short: 0-8, 10, 255."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def table_problems(tables: Iterable[tuple[str, ClassTable]]) -> list[str]:
    """Splits whose classes differ from the first one's."""
    problems: list[str] = []
    given = list(tables)
    for name, table in given[1:]:
        try:
            given[0][1].require_same(table, f"data.{name}")
        except AdaptSegError as error:
            problems.append(str(error))
    return problems
