"""How many label files a second `adaptseg data check` reads on one core, beside Pillow's bare decoding of them.

    python experiments/benchmarks/data_check.py [--files 12] [--save experiments/benchmarks/results/data_check.json]

Label files of 1024x2048. As Cityscapes has them, 8-bit grey PNG, which Pillow writes with filtered rows: `scenes` are
Streets' rendered labels, `coarse` are blocks of 64 pixels, `ragged` have a random outline in every row, more than any
real scene. As GTA5 has them: `palette`, the rendered labels as palette PNG, which Pillow writes without filters.

All times are the processor's (`time.process_time`), medians over the files in one run, each kind in a process of its
own, since what a process did before decides what fresh memory costs it. `pillow_ms` opens and loads the file and does
nothing else, with the zlib that is named in the results; `pixels_ms` reads train ids and counts those, as for a reader
whose labels are no file of ids.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, features

from adaptseg.classes import CITYSCAPES
from adaptseg.data import GTA5, Cityscapes, Scenes, Streets
from adaptseg.data.check import findings
from adaptseg.data.counting import value_counts

SIZE = (1024, 2048)
ROUNDS = 5
"""How often every file is read."""


def scenes(count: int) -> list[np.ndarray]:
    streets = Streets("street", "val", count=count, size=SIZE)
    return [streets.labels(key) for key in streets.keys]


def coarse(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 19, (count, SIZE[0] // 64, SIZE[1] // 64)).astype(np.uint8)
    return [block.repeat(64, 0).repeat(64, 1) for block in blocks]


def ragged(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    result = []
    for labels in coarse(count):
        shift = rng.integers(0, 4, SIZE[0])
        result.append(np.stack([np.roll(row, step) for row, step in zip(labels, shift, strict=True)]))
    return result


def raw_ids(labels: np.ndarray) -> Image.Image:
    """Train ids as a grey picture of Cityscapes' label ids."""
    table = np.zeros(256, np.uint8)
    table[:19] = [c.raw_ids[0] for c in CITYSCAPES.classes]
    return Image.fromarray(table[labels])


def written(path: Path, picture: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def cityscapes(root: Path, maps: list[np.ndarray]) -> tuple[Scenes, list[Path]]:
    """A data set in Cityscapes' layout, and its label files."""
    files = []
    for number, labels in enumerate(maps):
        written(root / f"leftImg8bit/train/a/a_{number:03d}_leftImg8bit.png", Image.new("RGB", SIZE[::-1]))
        files.append(written(root / f"gtFine/train/a/a_{number:03d}_gtFine_labelIds.png", raw_ids(labels)))
    return Cityscapes(str(root), "train"), files


def gta5(root: Path, maps: list[np.ndarray]) -> tuple[Scenes, list[Path]]:
    """The same in GTA5's."""
    files = []
    for number, labels in enumerate(maps):
        picture = raw_ids(labels)
        picture.putpalette(CITYSCAPES.colors.tobytes())  # makes it a palette picture of the same ids
        written(root / f"images/{number:05d}.png", Image.new("RGB", SIZE[::-1]))
        files.append(written(root / f"labels/{number:05d}.png", picture))
    return GTA5(str(root)), files


CASES: dict[str, tuple[Callable[..., tuple[Scenes, list[Path]]], Callable[[int], list[np.ndarray]]]] = {
    "scenes": (cityscapes, scenes),
    "coarse": (cityscapes, coarse),
    "ragged": (cityscapes, ragged),
    "palette": (gta5, scenes),
}


def checked(data: Scenes, files: list[Path]) -> Iterator[object]:
    for _ in range(ROUNDS):
        yield from findings(data, workers=1, images=False)


def loaded(data: Scenes, files: list[Path]) -> Iterator[object]:
    for path in files * ROUNDS:
        with Image.open(path) as picture:
            yield picture.load()


def counted_by_pixel(data: Scenes, files: list[Path]) -> Iterator[object]:
    for key in list(data.keys) * ROUNDS:
        yield value_counts(data.labels(key))


def median_ms(make: Callable[..., Iterable[object]], *arguments: object) -> float:
    """Of the processor's time from one item to the next; the first one warms up."""
    times = [time.process_time() for _ in make(*arguments)]
    return 1e3 * statistics.median(after - before for before, after in pairwise(times))


def alone(make: Callable[..., Iterable[object]], data: Scenes, files: list[Path]) -> float:
    """`median_ms` in a process that did nothing before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(median_ms, make, data, files).result()


def measured(write: Callable[..., tuple[Scenes, list[Path]]], maps: list[np.ndarray]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        data, files = write(Path(folder), maps)
        whole, bare = alone(checked, data, files), alone(loaded, data, files)
        return {
            "files_per_second": 1e3 / whole,
            "whole_ms": whole,
            "pillow_files_per_second": 1e3 / bare,
            "pillow_ms": bare,
            "pixels_ms": alone(counted_by_pixel, data, files),
            "bytes_per_file": statistics.fmean(file.stat().st_size for file in files),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    cases = {name: measured(write, maps(arguments.files)) for name, (write, maps) in CASES.items()}
    for name, row in cases.items():
        print(f"{name:8s} " + "  ".join(f"{key} {value:,.1f}" for key, value in row.items()))
    if arguments.save:
        result = {"zlib of Pillow": features.version("zlib"), "cases": cases}
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
