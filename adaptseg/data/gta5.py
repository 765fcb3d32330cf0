"""GTA5, "Playing for Data" (Richter et al., ECCV 2016): 24,966 rendered street scenes in Cityscapes' label ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES
from adaptseg.data.archives import Root
from adaptseg.data.files import choose, choose_listed, count_train_ids, read_lines, require_labels, to_train_ids
from adaptseg.data.resize import resize_nearest
from adaptseg.data.scenes import Scenes, read_ids, read_image, read_size
from adaptseg.errors import AdaptSegError

_IMAGES, _LABELS = "images", "labels"


class GTA5(Scenes):
    """Scenes `00001` to `24966`, about 1052x1914 pixels, labelled with Cityscapes' 19 classes.

    Files: `images/<key>.png` and `labels/<key>.png`, palette pictures of label ids (not train ids). Domain adaptation
    trains on all of them; the published split is a .mat file, of which only a text version can be read.

    A few published label files differ in size from their image. Training code that resizes images and labels to one
    fixed size, as most does, stretches such labels onto their image without a word; here that must be asked for.

    Args:
        root: the folder that holds `images` and `labels`, or the published archives (`[01_images.zip, 01_labels.zip,
            ...]`).
        split: text file with one key a line, relative to the current folder; None = all scenes.
        resize_labels: stretch labels of another size than their image onto it (nearest neighbour) instead of refusing.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, there is no scene, the split names absent ones, or a label is missing.
    """

    def __init__(
        self,
        root: str | list[str],
        *,
        split: str | None = None,
        resize_labels: bool = False,
        count: int | None = None,
    ) -> None:
        self.class_table = CITYSCAPES
        self._resize_labels = resize_labels
        self._root = Root(root, [_IMAGES, _LABELS])
        layout = "images/<scene>.png and labels/<scene>.png"
        found = list(self._root.find(_IMAGES, [".png"], layout=layout))
        if split is not None:
            listing = Path(split).expanduser()
            lines = [line.removesuffix(".png") for line in read_lines(listing)]
            found = choose_listed(found, lines, split=listing, folder=self._root.place(_IMAGES))
        self.keys = choose(found, count, source=f"GTA5 in {self._root.place(_IMAGES)}", layout=layout)
        labels = self._root.find(_LABELS, [".png"], layout=layout)
        require_labels(self.keys, labels, folder=self._root.place(_LABELS), ending=".png")

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(f"{_IMAGES}/{key}.png"))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        """As `Scenes.labels`. AdaptSegError also for a label of another size than its image, unless `resize_labels`."""
        label = self._root.file(f"{_LABELS}/{key}.png")
        size = self.size(key)
        ids = read_ids(label)
        if ids.shape != size and not self._resize_labels:
            raise AdaptSegError(
                f"{label} is {ids.shape[1]}x{ids.shape[0]} pixels, its image is {size[1]}x{size[0]}; a few published "
                "GTA5 labels are like that: set resize_labels: true to stretch them, or leave the scene out by split"
            )
        return resize_nearest(to_train_ids(ids, label, self.class_table), size)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        image, label = f"{_IMAGES}/{key}.png", f"{_LABELS}/{key}.png"
        if self.size(key) != read_size(self._root.header(label)):  # refused or stretched
            return super().label_counts(key)
        return count_train_ids(self._root.file(label), self._root.header(image), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(f"{_IMAGES}/{key}.png"))

    def identity(self) -> dict[str, Any]:
        stamps = self._root.stamps(f"{_LABELS}/{key}.png" for key in self.keys)
        settings = {"labels": self._root.where(_LABELS), "resize_labels": self._resize_labels}
        return {**super().identity(), **settings, "stamps": stamps}
