"""Cityscapes (Cordts et al., CVPR 2016) in its official layout; also anything laid out like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES, CITYSCAPES_16
from adaptseg.data.archives import Root
from adaptseg.data.files import check_same_size, choose, count_train_ids, read_train_ids, require_labels
from adaptseg.data.scenes import Scenes, read_ids, read_image, read_size
from adaptseg.errors import AdaptSegError

_IMAGE = "_leftImg8bit.png"
_FIRST_INSTANCE = 1000  # cityscapesScripts: instance id = class id * 1000 + number; smaller ids are stuff or groups


class Cityscapes(Scenes):
    """Scenes `<city>/<city>_000000_000019` of one split, labelled with the 19 evaluated classes.

    Files: `leftImg8bit/<split>/<city>/<key>_leftImg8bit.png` and `gtFine/<split>/<city>/<key>_gtFine_labelIds.png`,
    `..._gtFine_instanceIds.png`; `gtCoarse` likewise.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine` or `gtCoarse`, or the published archives
            (`[leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip]`).
        split: `train` (2,975 scenes), `val` (500), `test` (1,525, annotation is secret: `labelled` is False) or
            `train_extra` (19,998; coarse labels only).
        labels: fine or coarse annotation.
        count: use only so many scenes, spread evenly over the cities; None = all.
        classes: 19, or the 16 that SYNTHIA shows too: terrain, truck and train become void, for networks that have no
            output for them.

    Raises:
        AdaptSegError: the layout is another, the split is empty, or scenes lack their label file.
    """

    def __init__(
        self,
        root: str | list[str],
        split: Literal["train", "val", "test", "train_extra"],
        *,
        labels: Literal["fine", "coarse"] = "fine",
        count: int | None = None,
        classes: Literal[19, 16] = 19,
    ) -> None:
        self.class_table = {19: CITYSCAPES, 16: CITYSCAPES_16}[classes]
        self.labelled = split != "test"
        if split == "train_extra" and labels == "fine":
            raise AdaptSegError("Cityscapes: split 'train_extra' has no fine labels; set labels: coarse")
        kind = {"fine": "gtFine", "coarse": "gtCoarse"}[labels]
        self._images = f"leftImg8bit/{split}"
        self._labels = f"{kind}/{split}"
        self._ids = f"_{kind}_labelIds.png"
        self._instances = f"_{kind}_instanceIds.png"
        self._root = Root(root, [self._images, self._labels])
        layout = f"{self._images}/<city>/<scene>{_IMAGE}"
        found = list(self._root.find(self._images, [_IMAGE.lower()], layout=layout))
        source = f"Cityscapes split '{split}' in {self._root.place(self._images)}"
        self.keys = choose(found, count, source=source, layout=layout)
        if self.labelled:
            self._require_labels(f"{self._labels}/<city>/<scene>{self._ids}", kind)

    def _require_labels(self, layout: str, kind: str) -> None:
        found = self._root.find(self._labels, [self._ids.lower()], layout=layout)
        train_ids = f"_{kind}_labelTrainIds.png"
        if not found and self._root.find(self._labels, [train_ids.lower()], layout=layout):
            raise AdaptSegError(
                f"{self._root.place(self._labels)} holds only *{train_ids}; looked for the official *{self._ids}, "
                "which are mapped to train ids when read"
            )
        require_labels(self.keys, found, folder=self._root.place(self._labels), ending=self._ids)

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(self._image(key)))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return read_train_ids(*self._files(key), self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        return count_train_ids(*self._files(key), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(self._image(key)))

    def instances(self, key: str) -> npt.NDArray[np.int32]:
        """Instance ids (H, W) int32 as the files spell them (raw class id * 1000 + number); 0 = stuff, or a group of
        objects that was annotated as one."""
        file = self._root.file(self._label(key, self._instances))
        ids = read_ids(file)
        check_same_size(ids.shape, file, self._root.header(self._image(key)))
        return np.where(ids >= _FIRST_INSTANCE, ids, 0).astype(np.int32)

    def identity(self) -> dict[str, Any]:
        if not self.labelled:
            return super().identity()
        stamps = self._root.stamps(self._label(key, self._ids) for key in self.keys)
        return {**super().identity(), "labels": self._root.where(self._labels), "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        """Labels and image, the latter for its header."""
        return self._root.file(self._label(key, self._ids)), self._root.header(self._image(key))

    def _image(self, key: str) -> str:
        return f"{self._images}/{key}{_IMAGE}"

    def _label(self, key: str, ending: str) -> str:
        if not self.labelled:
            raise AdaptSegError(f"Cityscapes: the annotation of split 'test' is not public (asked for scene '{key}')")
        return f"{self._labels}/{key}{ending}"
