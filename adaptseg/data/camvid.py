"""CamVid (Brostow et al., 2009) as distributed with SegNet: 367 / 101 / 233 scenes of 360x480, 11 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CAMVID
from adaptseg.data.files import (
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


class CamVid(Scenes):
    """Scenes of one split; keys are the file stems (`0001TP_006690`).

    Files: `<split>/<key>.png`, `<split>annot/<key>.png` and, optionally, `<split>.txt` with one
    "image-path label-path" per line. The published lists hold their author's absolute paths, so only the stem of the
    image path is used; without a list the split is every image of its folder.

    Args:
        root: the folder that holds `train`, `trainannot`, `val` ...
        split: which of the three.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, the split is empty, the list names an absent image, or a label is missing.
    """

    def __init__(
        self, root: str, split: Literal["train", "val", "test"] = "train", *, count: int | None = None
    ) -> None:
        self.class_table = CAMVID
        base = Path(root).expanduser()
        self._images = base / split
        self._labels = base / f"{split}annot"
        layout = f"{base}/{split}/<scene>.png and {base}/{split}annot/<scene>.png"
        found = list(find_files(self._images, [".png"], layout=layout))
        listing = base / f"{split}.txt"
        if listing.exists():
            stems = [Path(line.split()[0]).stem for line in read_lines(listing)]
            found = choose_listed(found, stems, split=listing, folder=self._images)
        self.keys = choose(found, count, source=f"CamVid split '{split}' in {self._images}", layout=layout)
        labels = find_files(self._labels, [".png"], layout=layout)
        require_labels(self.keys, labels, folder=self._labels, ending=".png")

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._image_path(key))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return read_train_ids(*self._files(key), self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        return count_train_ids(*self._files(key), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._image_path(key))

    def identity(self) -> dict[str, Any]:
        stamps = file_stamps(self._labels / f"{key}.png" for key in self.keys)
        return {**super().identity(), "labels": str(self._labels.resolve()), "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        return self._labels / f"{key}.png", self._image_path(key)

    def _image_path(self, key: str) -> Path:
        return self._images / f"{key}.png"
