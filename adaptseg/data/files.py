"""What readers of image folders share: listing scenes by file name, choosing among them, decoding one label file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptseg.classes import VOID, ClassTable
from adaptseg.data.scenes import count_ids, read_ids, read_size
from adaptseg.errors import AdaptSegError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def find_files(folder: Path, endings: Sequence[str], *, layout: str) -> dict[str, str]:
    """Files below `folder` (recursively, through links, hidden ones left out) whose name ends in one of `endings`.

    Args:
        folder: where to look.
        endings: in lower case; the case of the file name does not matter.
        layout: how the data set should lie on disk, quoted in the error.

    Returns:
        {path below `folder` without the ending: the ending as the file spells it}, sorted by key.

    Raises:
        AdaptSegError: `folder` is no folder, or two files would be the same scene (a.jpg beside a.png).
    """
    if not folder.is_dir():
        raise AdaptSegError(f"folder {folder} does not exist; expected layout: {layout}")
    names: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        names += [(below / name).as_posix() for name in files]
    return keyed(names, endings, where=str(folder))


def keyed(names: Iterable[str], endings: Sequence[str], *, where: str) -> dict[str, str]:
    """The `names` (paths with `/`) that end in one of `endings`, as `find_files` returns them; hidden ones left out.

    Raises:
        AdaptSegError: two of them would be the same scene; says `where` they lie.
    """
    found: dict[str, str] = {}
    for name in names:
        base = name.rpartition("/")[2]
        ending = next((end for end in endings if base.lower().endswith(end)), None)
        if ending is None or len(base) == len(ending) or any(part.startswith(".") for part in name.split("/")):
            continue
        key, ending = name[: -len(ending)], name[-len(ending) :]
        if key in found:
            raise AdaptSegError(
                f"{where} holds both {key}{found[key]} and {key}{ending}, which would be one scene; remove one"
            )
        found[key] = ending
    return dict(sorted(found.items()))


def choose(keys: Sequence[str], count: int | None, *, source: str, layout: str) -> list[str]:
    """All of the sorted `keys`, or `count` of them spread evenly (the first `count` would be one city, one drive).

    Raises:
        AdaptSegError: there is no key at all, or fewer than `count`; names `source` and the `layout` expected.
    """
    if not keys:
        raise AdaptSegError(f"{source} holds no scene; expected layout: {layout}")
    if count is None:
        return list(keys)
    if not 1 <= count <= len(keys):
        raise AdaptSegError(f"count: {count} scenes asked for, {source} holds {len(keys)}; give 1 to {len(keys)}")
    return [keys[index * len(keys) // count] for index in range(count)]


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file, stripped; AdaptSegError when it is missing or no text."""
    if not path.is_file():
        raise AdaptSegError(f"split file {path} does not exist")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AdaptSegError(f"split file {path} is not UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def choose_listed(found: Collection[str], listed: Sequence[str], *, split: Path, folder: Path | str) -> list[str]:
    """The scenes that the text file `split` lists, sorted.

    Raises:
        AdaptSegError: the list is empty, names a scene twice, or names one that is not among `found` in `folder`.
    """
    if not listed:
        raise AdaptSegError(f"split file {split} is empty; write one scene per line, without file extension")
    if len(set(listed)) < len(listed):
        twice = sorted({key for key in listed if listed.count(key) > 1})
        raise AdaptSegError(f"split file {split} lists scenes twice: {_some(twice)}")
    if absent := [key for key in listed if key not in found]:
        raise AdaptSegError(
            f"split file {split} lists {len(absent)} scenes (of {len(listed)}) that {folder} does not hold: "
            f"{_some(absent)}; write one scene per line, without file extension"
        )
    return sorted(listed)


def require_labels(keys: Sequence[str], labels: Mapping[str, str], *, folder: Path | str, ending: str) -> None:
    """Raise AdaptSegError unless every one of `keys` has a label file `<folder>/<key><ending>` among those listed."""
    if missing := [f"{key}{ending}" for key in keys if key not in labels]:
        raise AdaptSegError(f"{len(missing)} of {len(keys)} scenes have no label file in {folder}: {_some(missing)}")


def read_train_ids(label_path: Path, image_path: Path, class_table: ClassTable) -> npt.NDArray[np.uint8]:
    """Decode a label file to train ids (H, W) uint8, 255 = void.

    Raises:
        AdaptSegError: names the file that is missing or broken, holds an id unknown to `class_table`, or has another
            size than its image.
    """
    raw = read_ids(label_path)
    check_same_size(raw.shape, label_path, image_path)
    return to_train_ids(raw, label_path, class_table)


def count_train_ids(
    label_path: Path, image_path: Path, class_table: ClassTable
) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
    """Size (H, W) of `read_train_ids` and its pixels of each train id, (256,) int64: `Scenes.label_counts` of a file.

    Raises:
        AdaptSegError: as `read_train_ids`, in the same words.
    """
    size, raw, pixels = count_ids(label_path)
    check_same_size(size, label_path, image_path)
    counts = np.zeros(VOID + 1, np.int64)
    np.add.at(counts, to_train_ids(raw, label_path, class_table), pixels)  # several raw ids may mean one class
    return size, counts


def to_train_ids(raw: npt.NDArray[np.integer], label_path: Path, class_table: ClassTable) -> npt.NDArray[np.uint8]:
    """`class_table.train_ids` of what a label file holds; AdaptSegError names the file and the ids it should not."""
    try:
        return class_table.train_ids(raw)
    except AdaptSegError as error:
        raise AdaptSegError(f"{label_path}: {error}") from error


def file_stamps(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """(size in bytes, time of the last change in ns) of each file: a cheap sign that it was rewritten.

    Raises:
        AdaptSegError: names a file that is missing.
    """
    stamps: list[tuple[int, int]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise AdaptSegError(f"file {path} cannot be read: {error.strerror}") from error
        stamps.append((status.st_size, status.st_mtime_ns))
    return stamps


def check_same_size(size: tuple[int, ...], label_path: Path, image_path: Path) -> None:
    """Raise AdaptSegError unless `size` (H, W) of labels is the one that the header of their image file states."""
    height, width = size
    image_height, image_width = read_size(image_path)
    if (height, width) != (image_height, image_width):
        raise AdaptSegError(
            f"{label_path} is {width}x{height} pixels, its image {image_path} is {image_width}x{image_height}; "
            "labels must have the size of their image"
        )


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
