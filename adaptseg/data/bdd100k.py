"""BDD100K (Yu et al., CVPR 2020): the 10,000 scenes with semantic segmentation, in Cityscapes' 19 classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES, VOID, ClassTable
from adaptseg.data.archives import Root
from adaptseg.data.files import choose, count_train_ids, read_train_ids, require_labels
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

_BDD100K = ClassTable("bdd100k", tuple(replace(c, raw_ids=()) for c in CITYSCAPES.classes), (VOID,))
"""Label files hold Cityscapes' train ids."""


class BDD100K(Scenes):
    """Scenes such as `0a0a0b1a-7c39d841` of 720x1280 pixels.

    Files: `images/10k/<split>/<key>.jpg` and `labels/sem_seg/masks/<split>/<key>.png`, train ids and 255; or, as in the
    first release, `seg/images/<split>/<key>.jpg` and `seg/labels/<split>/<key>_train_id.png`. The coloured copies
    beside them are not read.

    Args:
        root: the folder that holds `images` and `labels` (or `seg`), or the published archives
            (`[bdd100k_images_10k.zip, bdd100k_sem_seg_labels_trainval.zip]`, or `bdd100k_seg.zip`).
        split: `train` (7,000 scenes), `val` (1,000) or `test` (2,000, annotation is secret: `labelled` is False).
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another or holds both releases, the split is empty, or scenes lack their label.
    """

    def __init__(
        self, root: str | list[str], split: Literal["train", "val", "test"], *, count: int | None = None
    ) -> None:
        self.class_table, self.labelled = _BDD100K, split != "test"
        new = f"images/10k/{split}", f"labels/sem_seg/masks/{split}"
        old = f"seg/images/{split}", f"seg/labels/{split}"
        self._root = Root(root, [*new, *old])
        is_old = self._root.holds(old[0])
        if is_old and self._root.holds(new[0]):
            raise AdaptSegError(f"{self._root} holds both {new[0]} and {old[0]}; remove one of the two releases")
        self._images, self._labels = old if is_old else new
        self._ending = "_train_id.png" if is_old else ".png"
        layout = f"{self._images}/<scene>.jpg and {self._labels}/<scene>{self._ending}"
        found = list(self._root.find(self._images, [".jpg"], layout=layout))
        source = f"BDD100K split '{split}' in {self._root.place(self._images)}"
        self.keys = choose(found, count, source=source, layout=layout)
        if self.labelled:
            labels = self._root.find(self._labels, [self._ending], layout=layout)
            require_labels(self.keys, labels, folder=self._root.place(self._labels), ending=self._ending)

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(self._image(key)))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return read_train_ids(*self._files(key), self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        return count_train_ids(*self._files(key), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(self._image(key)))

    def identity(self) -> dict[str, Any]:
        if not self.labelled:
            return super().identity()
        stamps = self._root.stamps(self._label(key) for key in self.keys)
        return {**super().identity(), "labels": self._root.where(self._labels), "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        """Labels and image, the latter for its header."""
        if not self.labelled:
            raise AdaptSegError(f"BDD100K: the annotation of split 'test' is not public (asked for scene '{key}')")
        return self._root.file(self._label(key)), self._root.header(self._image(key))

    def _image(self, key: str) -> str:
        return f"{self._images}/{key}.jpg"

    def _label(self, key: str) -> str:
        return f"{self._labels}/{key}{self._ending}"
