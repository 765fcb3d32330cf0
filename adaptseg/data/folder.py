"""Bring your own data: a folder of images, a folder of label files, a class table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptseg.classes import ClassTable
from adaptseg.data.files import (
    IMAGE_ENDINGS,
    choose,
    choose_listed,
    count_train_ids,
    file_stamps,
    find_files,
    read_lines,
    read_train_ids,
    require_labels,
)
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError


class Folder(Scenes):
    """Scenes of a folder; a key is the image's path below the image folder, without its extension.

    Files: `<images>/<key>.{png,jpg,jpeg,webp,bmp,tif,tiff}` (sub-folders allowed), `<labels>/<key>.png` with one
    channel of class ids, and a class table in YAML or JSON (`ClassTable.from_file`).

    Args:
        root: the folder all other paths start from.
        classes: class table file, below `root` or, failing that, below the working directory.
        images: image folder below `root`.
        labels: label folder below `root`; None = there are no labels (`labelled` is False).
        split: text file below `root` with one key per line; None = every image.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: a folder or file is missing, two images share a key, the split is empty or names an absent
            image, or a scene lacks its label file.
    """

    def __init__(
        self,
        root: str,
        *,
        classes: str,
        images: str = "images",
        labels: str | None = "labels",
        split: str | None = None,
        count: int | None = None,
    ) -> None:
        base = Path(root).expanduser()
        self._images = base / images
        self._labels = None if labels is None else base / labels
        self.labelled = labels is not None
        layout = f"{self._images}/<scene>.png (or {', '.join(IMAGE_ENDINGS[1:])})"
        found = find_files(self._images, IMAGE_ENDINGS, layout=layout)
        self.class_table = ClassTable.from_file(_class_file(base, classes))
        listed = list(found)
        if split is not None:
            listed = choose_listed(found, read_lines(base / split), split=base / split, folder=self._images)
        self.keys = choose(listed, count, source=f"folder {self._images}", layout=layout)
        self._endings = {key: found[key] for key in self.keys}
        if self._labels is not None:
            label_files = find_files(self._labels, [".png"], layout=f"{self._labels}/<scene>.png, or labels: null")
            require_labels(self.keys, label_files, folder=self._labels, ending=".png")

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._image_path(key))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return read_train_ids(*self._files(key), self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        return count_train_ids(*self._files(key), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._image_path(key))

    def identity(self) -> dict[str, Any]:
        if self._labels is None:
            return super().identity()
        stamps = file_stamps(self._labels / f"{key}.png" for key in self.keys)
        return {**super().identity(), "labels": str(self._labels.resolve()), "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        if self._labels is None:
            raise AdaptSegError(f"Folder: {self._images} is read with labels: null (asked for scene '{key}')")
        return self._labels / f"{key}.png", self._image_path(key)

    def _image_path(self, key: str) -> Path:
        return self._images / f"{key}{self._endings[key]}"


def _class_file(root: Path, classes: str) -> Path:
    given = Path(classes).expanduser()
    candidates = list(dict.fromkeys([root / given, given]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise AdaptSegError(f"classes: no class table at {' nor at '.join(str(path) for path in candidates)}")
