"""What every data set is to the rest of adaptseg: named scenes with an image, labels and, perhaps, instances."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from adaptseg.classes import ClassTable
from adaptseg.data.counting import value_counts
from adaptseg.data.png import stored
from adaptseg.errors import AdaptSegError


class Scenes(ABC):
    """One split of one data set. A reader subclass is numpy and pillow only, cheap to pickle (workers copy it), and
    opens no file in its constructor beyond listing folders.

    Attributes:
        keys: unique scene names in a fixed, sorted order; they become file names in label stores and predictions, so
            they hold no extension, and `/` only to make sub-folders.
        class_table: how label files are spelled.
        labelled: whether `labels` can be asked for.
    """

    keys: Sequence[str]
    class_table: ClassTable
    labelled: bool = True

    @abstractmethod
    def image(self, key: str) -> npt.NDArray[np.uint8]:
        """RGB (H, W, 3) uint8 at native size. AdaptSegError names an unreadable file."""

    @abstractmethod
    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        """Train ids (H, W) uint8, 255 = void, at native size. AdaptSegError names the file and what is wrong."""

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        """Size (H, W) of `labels(key)` and its pixels of each train id, (256,) int64; the errors are those of `labels`.

        A reader whose labels are one file of ids overrides it with `files.count_train_ids`, which maps what was counted
        in place of every pixel."""
        labels = self.labels(key)
        return (labels.shape[0], labels.shape[1]), value_counts(labels)

    @abstractmethod
    def size(self, key: str) -> tuple[int, int]:
        """(H, W) of the scene, from the file header alone."""

    def identity(self) -> dict[str, Any]:
        """What decides the labels, in plain types: a cache of something counted on them is named by its hash. A reader
        adds its settings and, where it reads files, the stamps of its label files (`files.file_stamps`)."""
        reader = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"reader": reader, "keys": list(self.keys), "class_table": self.class_table.to_dict()}

    def instances(self, key: str) -> npt.NDArray[np.int32]:
        """Instance ids (H, W) int32: 0 = no instance, else unique within the scene."""
        raise AdaptSegError(f"{type(self).__name__} has no instance labels (asked for scene '{key}')")


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode an image file fully to RGB (H, W, 3) uint8. Transparency is dropped, 16-bit grey is scaled to 8 bit, and a
    camera's orientation tag is not applied, since label files are drawn on the stored pixels.

    Raises:
        AdaptSegError: missing, unreadable or truncated file.
    """
    with _open(path) as picture:
        if picture.mode == "F":
            raise AdaptSegError(f"image {path} holds floating-point values; 8- or 16-bit images are expected")
        if picture.mode.startswith("I"):  # Pillow would clip 16-bit values to 255
            wide = np.asarray(_decode(picture.convert, "I", path=path))
            grey = (np.clip(wide, 0, 65535) // 257).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if picture.mode == "P":  # by way of RGBA: a palette with transparency warns otherwise
            return np.asarray(_decode(picture.convert, "RGBA", path=path))[..., :3]
        return np.asarray(_decode(picture.convert, "RGB", path=path))


def read_ids(path: Path) -> npt.NDArray[np.integer]:
    """Decode a single-channel label file to (H, W) integers; palette and 16-bit PNG included.

    Raises:
        AdaptSegError: missing, unreadable or truncated file, or one of several channels.
    """
    with _decoded_ids(path) as picture:
        return np.asarray(picture)


def count_ids(path: Path) -> tuple[tuple[int, int], npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """Size (H, W) of `read_ids`, the ids that occur, ascending (n,), and the pixels of each, (n,) int64.

    Raises:
        AdaptSegError: as `read_ids`.
    """
    with _decoded_ids(path) as picture:
        size = picture.height, picture.width
        if picture.mode in ("L", "P"):  # counted where it was decoded, in half the time that NumPy needs
            counts = np.array(picture.histogram(), np.int64)
            ids = np.flatnonzero(counts)
            return size, ids, counts[ids]
        return size, *np.unique(np.asarray(picture), return_counts=True)


def read_size(path: Path) -> tuple[int, int]:
    """(H, W) from the header of an image file."""
    with _open(path) as picture:
        return picture.height, picture.width


@contextmanager
def _decoded_ids(path: Path) -> Iterator[Image.Image]:
    with _open(path) as picture:
        if picture.mode not in ("L", "P", "I", "I;16", "1"):
            raise AdaptSegError(f"label file {path} has mode {picture.mode}; one channel of class ids is expected")
        ready = _inflated(picture)
        _decode(ready.load, path=path)
        yield ready


def _inflated(picture: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """The same picture in a form that Pillow decodes faster, if there is one; nothing is decoded yet."""
    file = picture.fp
    if picture.format != "PNG" or file is None:
        return picture
    position = file.tell()
    file.seek(0)
    content = stored(file.read())
    file.seek(position)  # where Pillow goes on with the picture as it is
    return picture if content is None else Image.open(io.BytesIO(content))


def _open(path: Path) -> ImageFile.ImageFile:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise AdaptSegError(f"file {path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise AdaptSegError(f"file {path} is not a readable image: {error}") from error


def _decode(call, *arguments, path: Path):
    try:
        return call(*arguments)
    except (OSError, SyntaxError, ValueError) as error:
        raise AdaptSegError(f"file {path} is truncated or broken: {error}") from error
