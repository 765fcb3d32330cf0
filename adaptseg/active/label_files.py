"""How the label store spells its files (names, key rules, PNG, manifests), and the view that reads them.

`adaptseg.active.labels` is the public side. What data loader workers import ends here.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from adaptseg.classes import VOID, ClassTable
from adaptseg.errors import AdaptSegError
from adaptseg.storage import read_json

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

REGISTRY = "registry.json"
_BOUGHT = ".bought"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_ROUND = re.compile(r"round_(\d{3,})(\.json|\.partial)?")


class Manifest(TypedDict):
    """`round_NNN.json`. Pixel numbers are those of this round alone; `spent` includes void."""

    round: int
    config_hash: str
    query_checksum: str
    seed: int | None
    images: int
    spent: int
    void: int
    class_counts: list[int]
    class_table: str


@dataclass(frozen=True, eq=False)
class RoundTotals:
    """What one round bought, on one rank or in sum: pixels spent, void among them, images, pixels per class (C,)."""

    spent: int
    void: int
    images: int
    class_counts: Counts

    @classmethod
    def zero(cls, num_classes: int) -> RoundTotals:
        return cls(0, 0, 0, np.zeros(num_classes, np.int64))

    @classmethod
    def of(cls, labels: Labels, bought: Mask, num_classes: int) -> RoundTotals:
        """The totals of one image's answer."""
        counts = np.bincount(labels[bought], minlength=VOID + 1).astype(np.int64)
        return cls(int(counts.sum()), int(counts[VOID]), 1, counts[:num_classes])

    def __add__(self, other: RoundTotals) -> RoundTotals:
        return RoundTotals(
            self.spent + other.spent,
            self.void + other.void,
            self.images + other.images,
            self.class_counts + other.class_counts,
        )


def round_name(number: int) -> str:
    return f"round_{number:03d}"


def partial_folder(directory: Path, number: int) -> Path:
    return directory / f"{round_name(number)}.partial"


def manifest_file(directory: Path, number: int) -> Path:
    return directory / f"{round_name(number)}.json"


def round_files(directory: Path) -> Iterator[tuple[int, Path]]:
    """(round number, path) of every manifest, round folder and partial folder."""
    for path in directory.glob("round_*"):
        if (match := _ROUND.fullmatch(path.name)) is not None:
            yield int(match[1]), path


def answer_files(folder: Path, key: str) -> tuple[Path, Path]:
    """The label file and the bought-mask of an image in a round's folder."""
    return folder / f"{key}.png", folder / f"{key}{_BOUGHT}.png"


def count_files(folder: Path) -> tuple[int, int]:
    """Number of label files and of bought-masks in a round's folder, sub-folders included."""
    kinds = Counter(path.name.endswith(f"{_BOUGHT}.png") for path in folder.rglob("*.png"))
    return kinds[False], kinds[True]


def check_keys(keys: Iterable[str]) -> None:
    """Raise AdaptSegError for a key that is no safe relative path, or whose files would be those of another key."""
    files: set[str] = set()
    folders: set[str] = set()
    for key in keys:
        if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise AdaptSegError(f"image key '{key}' is not a relative path without '..'; rename the scene")
        if key.endswith(_BOUGHT):
            raise AdaptSegError(f"image key '{key}' ends with '{_BOUGHT}', which marks bought-masks; rename the scene")
        files.update(f"{key}{suffix}.png" for suffix in ("", _BOUGHT))
        folders.update(str(folder) for folder in PurePosixPath(key).parents)
    if collisions := sorted(files & folders):
        raise AdaptSegError(f"image keys collide: '{collisions[0]}' is a file of one and a folder of another; rename")


def encode_png(array: Labels | Mask) -> bytes:
    """uint8 as 8-bit grey, bool as 1-bit. Mostly constant maps: the fastest compression level is small enough."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_labels(path: Path, size: tuple[int, int]) -> Labels:
    """Decode a label file; AdaptSegError names a broken one or one of another size or kind."""
    return cast(Labels, _read(path, size, np.uint8))


def read_mask(path: Path, size: tuple[int, int]) -> Mask:
    """Decode a bought-mask; AdaptSegError names a broken one or one of another size or kind."""
    return cast(Mask, _read(path, size, np.bool_))


def _read(path: Path, size: tuple[int, int], dtype: type[np.generic]) -> npt.NDArray[Any]:
    try:
        data = path.read_bytes()
        # Decoding alone neither compares PNG's own checksums nor misses the end of the file.
        if not data.endswith(_PNG_END):
            raise ValueError("its end is missing")
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()
        array = np.array(Image.open(io.BytesIO(data), formats=["PNG"]))
    except (OSError, SyntaxError, ValueError) as error:
        raise AdaptSegError(f"{path} is missing, truncated or broken: {error}; restore the file") from error
    if array.shape != size or array.dtype != dtype:
        raise AdaptSegError(
            f"{path} holds {array.shape} {array.dtype}; {size} {np.dtype(dtype)} is expected; restore the file"
        )
    return array


@dataclass(frozen=True)
class LabelView:
    """The labels of rounds 1..`round`, whatever comes later: what data loader workers get. Cheap to pickle."""

    folder: Path
    round: int
    sizes: Mapping[str, tuple[int, int]]

    def labels(self, key: str) -> Labels:
        """(H, W) uint8 train ids; 255 where nothing was bought and where the bought pixel is void."""
        size = self._size(key)
        labels = np.full(size, VOID, np.uint8)
        for label_file, _ in self._answers(key):
            # A pixel is bought once and 255 is the largest value, so the minimum is the union.
            np.minimum(labels, read_labels(label_file, size), out=labels)
        return labels

    def bought(self, key: str) -> Mask:
        """(H, W) bool: pixels a label was bought for, void included."""
        size = self._size(key)
        bought = np.zeros(size, np.bool_)
        for _, mask_file in self._answers(key):
            bought |= read_mask(mask_file, size)
        return bought

    def has(self, key: str) -> bool:
        """Whether a label was bought for any pixel, without reading it."""
        return any(True for _ in self._answers(key))

    def _size(self, key: str) -> tuple[int, int]:
        if key not in self.sizes:
            raise AdaptSegError(f"image '{key}' is not in the pool of label store {self.folder}")
        return self.sizes[key]

    def _answers(self, key: str) -> Iterator[tuple[Path, Path]]:
        for number in range(1, self.round + 1):
            label_file, mask_file = answer_files(self.folder / round_name(number), key)
            if label_file.exists():
                yield label_file, mask_file


def read_manifest(directory: Path, number: int, table: ClassTable) -> Manifest:
    """Read the manifest of a round and check it in itself; AdaptSegError names the file and what does not match."""
    path = manifest_file(directory, number)
    raw: Any = read_json(path)
    kinds: dict[str, type] = {
        **dict.fromkeys(("round", "images", "spent", "void"), int),
        **dict.fromkeys(("config_hash", "query_checksum", "class_table"), str),
        "class_counts": list,
    }
    for name, kind in kinds.items():
        if not isinstance(raw, dict) or not isinstance(cast(dict[str, Any], raw).get(name), kind):
            raise AdaptSegError(f"{path} is not the manifest of a round: '{name}' is missing or of the wrong type")
    manifest = cast(Manifest, raw)
    problem = None
    if manifest["round"] != number:
        problem = f"it is about round {manifest['round']}"
    elif manifest["class_table"] != table.fingerprint:
        problem = f"its class table {manifest['class_table']} is not {table.fingerprint}"
    elif len(manifest["class_counts"]) != table.num_classes:
        problem = f"it counts {len(manifest['class_counts'])} classes, not {table.num_classes}"
    elif sum(manifest["class_counts"]) + manifest["void"] != manifest["spent"]:
        problem = "its class counts and void do not sum to spent"
    if problem:
        raise AdaptSegError(f"{path} does not match the label store: {problem}; restore the file")
    return manifest
