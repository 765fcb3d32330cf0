"""How many pixels of each class every scene holds: counted once, kept in a cache, the same in every process."""

from __future__ import annotations

import io
import os
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptseg.console import say
from adaptseg.data.scenes import Scenes
from adaptseg.distributed import gather, is_distributed
from adaptseg.errors import AdaptSegError
from adaptseg.storage import atomic_write, content_hash

Item = TypeVar("Item")

_FORMAT = 1
"""Part of a cache file's name: to be raised when what is counted, or how it is written, changes."""

_PATIENCE = 2.0
"""Seconds of counting before anything is shown."""


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Pixels of each class in each scene, at native size.

    Attributes:
        keys: n scene names, in the order of the data set.
        counts: (n, C) int64, pixels of class c in scene i.
        pixels: (n,) int64, all pixels of scene i, void included.
    """

    keys: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]

    @property
    def totals(self) -> npt.NDArray[np.int64]:
        """(C,) int64: pixels of each class over all scenes."""
        return self.counts.sum(0)

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """(C,) float64: share of each class in the labelled pixels of all scenes; zeros where nothing is labelled."""
        return self.totals / max(int(self.totals.sum()), 1)

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """(n, C) float64: share of each class in all pixels of each scene, void included."""
        return self.counts / self.pixels[:, None]


def class_statistics(scenes: Scenes, cache: Path) -> ClassStatistics:
    """Statistics of a data set: counted from its label files on first use, afterwards read from `cache`.

    The cache file is named by the hash of `scenes.identity()`, so other scenes, another class table or rewritten label
    files are counted anew. It appears whole or not at all; one that is broken all the same is counted anew and said
    so. Under DDP process zero does all of this and sends the arrays to the others, whose disk may be another: every
    process must call.

    Raises:
        AdaptSegError: in every process, when the scenes have no labels, a label file cannot be read, or `cache` cannot
            be written to.
    """
    if not scenes.labelled:
        raise AdaptSegError(f"{type(scenes).__name__} has no labels to count classes from; give labelled scenes")
    outcome: ClassStatistics | AdaptSegError | None = None
    if not is_distributed() or dist.get_rank() == 0:
        try:
            outcome = _cached(scenes, cache)
        except AdaptSegError as error:
            outcome = error  # raised below, where the others do not wait for process zero in vain
    outcome = gather(outcome)[0]
    if isinstance(outcome, AdaptSegError):
        raise outcome
    assert outcome is not None
    return outcome


def read_statistics(path: Path, scenes: Scenes) -> ClassStatistics:
    """Read a file that `class_statistics` wrote.

    Raises:
        AdaptSegError: names the file that is missing, truncated or broken, or was counted on other scenes or with
            other classes than `scenes`.
    """
    try:
        keys, names, counts, pixels = _arrays(path)
    except FileNotFoundError:
        raise AdaptSegError(f"class statistics {path} do not exist") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AdaptSegError(f"class statistics {path} are truncated or broken: {error}") from error
    table = scenes.class_table
    if names != table.names:
        raise AdaptSegError(
            f"class statistics {path} count the classes {', '.join(names)}; class table '{table.name}' has "
            f"{', '.join(table.names)}"
        )
    if keys != tuple(scenes.keys):
        raise AdaptSegError(
            f"class statistics {path} are of another data set: {len(keys)} scenes from '{keys[0] if keys else ''}' on; "
            f"{type(scenes).__name__} has {len(scenes.keys)} scenes from '{scenes.keys[0]}' on"
        )
    return ClassStatistics(keys, counts, pixels)


def _arrays(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Keys, class names, counts and pixels as the file has them, if their shapes fit together."""
    with path.open("rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is not an .npz archive")
        keys, names = (tuple(str(text) for text in file[name]) for name in ("keys", "classes"))
        counts, pixels = file["counts"], file["pixels"]
    if counts.shape != (len(keys), len(names)) or pixels.shape != (len(keys),):
        raise ValueError(f"{len(keys)} keys, counts of shape {counts.shape}, pixels of shape {pixels.shape}")
    if counts.dtype != np.int64 or pixels.dtype != np.int64:
        raise ValueError(f"counts are {counts.dtype} and pixels {pixels.dtype}, both should be int64")
    return keys, names, counts, pixels


def _cached(scenes: Scenes, cache: Path) -> ClassStatistics:
    name = content_hash({"format": _FORMAT, "identity": scenes.identity()})
    path = cache / "class_statistics" / f"{name}.npz"
    if path.exists():
        try:
            return read_statistics(path, scenes)
        except AdaptSegError as error:
            say(f"{error}; counting anew")
    statistics = _counted(scenes, path)
    content = io.BytesIO()
    np.savez(
        content,
        keys=np.array(statistics.keys),
        classes=np.array(scenes.class_table.names),
        counts=statistics.counts,
        pixels=statistics.pixels,
    )
    try:
        atomic_write(path, content.getvalue())
    except OSError as error:
        raise AdaptSegError(
            f"class statistics cannot be written to {path} ({error.strerror}); point data.cache to another folder"
        ) from error
    return statistics


def _counted(scenes: Scenes, path: Path) -> ClassStatistics:
    classes = scenes.class_table.num_classes

    def count(key: str) -> tuple[npt.NDArray[np.int64], int]:
        (height, width), counts = scenes.label_counts(key)
        return counts[:classes], height * width

    # Decoding a file releases the interpreter's lock, so threads suffice and nothing is copied to other processes.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        note = f"counting the classes of {len(scenes.keys)} scenes, kept in {path}"
        rows = list(_watched(pool.map(count, scenes.keys), len(scenes.keys), note))
    counts, pixels = zip(*rows, strict=True)
    return ClassStatistics(tuple(scenes.keys), np.stack(counts).astype(np.int64), np.array(pixels, np.int64))


def _watched(items: Iterable[Item], total: int, note: str) -> Iterator[Item]:
    """Iterate; once that takes long, print `note`, and on a terminal draw a bar below it."""
    console = Console()
    columns = (TextColumn("counting classes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task("", total=total)
    began, noted = time.monotonic(), False
    try:
        for item in items:
            yield item
            progress.advance(task)
            if not noted and time.monotonic() - began > _PATIENCE:
                noted = True
                say(note)
                if console.is_terminal:
                    progress.start()
    finally:
        if progress.live.is_started:  # stopping a bar that never started prints an empty line
            progress.stop()
