"""How many label files a second `adaptseg data check` reads on one core, and where the time goes.

    python experiments/benchmarks/data_check.py [--files 12] [--save experiments/benchmarks/results/data_check.json]

Label files of 1024x2048 as Cityscapes has them, 8-bit grey PNG: `scenes` are Streets' rendered labels, `coarse` are
blocks of 64 pixels, `ragged` have a random outline in every row, more than any real scene. Decoding is Pillow's and
sets the limit; the rest is mapping to train ids, the image's header, and counting. Medians of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adaptseg.classes import CITYSCAPES
from adaptseg.data import Cityscapes, Streets
from adaptseg.data.check import look_at
from adaptseg.data.counting import value_counts
from adaptseg.data.scenes import read_ids

SIZE = (1024, 2048)


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


def written(root: Path, maps: list[np.ndarray]) -> Cityscapes:
    """A data set in Cityscapes' layout with these train ids as label ids."""
    raw_ids = np.full(256, 0, np.uint8)
    raw_ids[:19] = [c.raw_ids[0] for c in CITYSCAPES.classes]
    for number, labels in enumerate(maps):
        key = f"a/a_{number:03d}"
        for kind, ending, content in (
            ("leftImg8bit", "leftImg8bit", np.zeros((*SIZE, 3), np.uint8)),
            ("gtFine", "gtFine_labelIds", raw_ids[labels]),
        ):
            path = root / kind / "train" / f"{key}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    return Cityscapes(str(root), "train")


def median_ms(call: Callable[[Any], Any], items: list[Any]) -> float:
    seconds = []
    for item in items:
        began = time.perf_counter()
        call(item)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def measured(maps: list[np.ndarray]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        data = written(Path(folder), maps)
        keys = list(data.keys)
        files = [Path(folder) / "gtFine/train" / f"{key}_gtFine_labelIds.png" for key in keys]
        look_at(data, keys[0], images=False)  # warm
        whole = median_ms(lambda key: look_at(data, key, images=False), keys)
        decode = median_ms(read_ids, files)
        raw = [read_ids(file) for file in files]
        return {
            "files_per_second": 1e3 / whole,
            "whole_ms": whole,
            "decode_ms": decode,
            "decode_files_per_second": 1e3 / decode,
            "map_ms": median_ms(data.class_table.train_ids, raw),
            "count_ms": median_ms(value_counts, raw),
            "bincount_ms": median_ms(lambda labels: np.bincount(labels.ravel(), minlength=256), raw),
            "bytes_per_file": statistics.fmean(file.stat().st_size for file in files),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    result = {make.__name__: measured(make(arguments.files)) for make in (scenes, coarse, ragged)}
    for name, row in result.items():
        print(f"{name:8s} " + "  ".join(f"{key} {value:,.1f}" for key, value in row.items()))
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
