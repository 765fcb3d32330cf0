"""ACDC (Sakaridis et al., ICCV 2021): streets in fog, at night, in rain and in snow, in Cityscapes' classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES
from adaptseg.data.archives import Root
from adaptseg.data.files import choose, read_train_ids, require_labels
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

Condition = Literal["fog", "night", "rain", "snow"]
ALL: tuple[Condition, ...] = ("fog", "night", "rain", "snow")

_LABEL = "_gt_labelIds.png"


class ACDC(Scenes):
    """Scenes `<condition>/<drive>/<drive>_frame_000247` of 1080x1920 pixels.

    Files: `rgb_anon/<condition>/<split>/<drive>/<scene>_rgb_anon.png` and
    `gt/<condition>/<split>/<drive>/<scene>_gt_labelIds.png`; the reference images, taken of the same places in clear
    weather, are `rgb_anon/<condition>/<split>_ref/<drive>/<scene>_rgb_ref_anon.png`.

    Args:
        root: the folder that holds `rgb_anon` and `gt`, or the published archives (`[rgb_anon_trainvaltest.zip,
            gt_trainval.zip]`).
        split: `train` (1,600 scenes), `val` (406) or `test` (2,000); only the first two are `labelled`, as the
            annotation of `test` is secret. `train_ref`, `val_ref` and `test_ref` are reference images, never labelled.
        conditions: which ones.
        count: use only so many scenes, spread evenly over the conditions; None = all.

    Raises:
        AdaptSegError: the layout is another, a condition is unknown, given twice or empty, or scenes lack their label.
    """

    def __init__(
        self,
        root: str | list[str],
        split: Literal["train", "val", "test", "train_ref", "val_ref", "test_ref"],
        *,
        conditions: tuple[Condition, ...] = ALL,
        count: int | None = None,
    ) -> None:
        self.class_table = CITYSCAPES
        self.labelled = split in ("train", "val")
        if not conditions or len(set(conditions)) < len(conditions) or not set(conditions) <= set(ALL):
            raise AdaptSegError(
                f"ACDC: conditions is {list(conditions)}; some of {', '.join(ALL)}, each once, expected"
            )
        self._split = split
        self._image_ending = "_rgb_ref_anon.png" if split.endswith("_ref") else "_rgb_anon.png"
        folders = [f"{kind}/{condition}/{split}" for kind in ("rgb_anon", "gt") for condition in conditions]
        self._root = Root(root, folders)
        keys = [key for condition in sorted(conditions) for key in self._listed(condition)]
        self.keys = choose(keys, count, source=f"ACDC split '{split}' in {self._root}", layout=self._image("<scene>"))

    def _listed(self, condition: str) -> list[str]:
        """Keys of one condition; raises unless there are some, and all of them labelled where they should be."""
        images, labels = (f"{kind}/{condition}/{self._split}" for kind in ("rgb_anon", "gt"))
        layout = f"{images}/<drive>/<scene>{self._image_ending}"
        found = list(self._root.find(images, [self._image_ending], layout=layout))
        found = choose(found, None, source=f"ACDC: {self._root.place(images)}", layout=layout)
        if self.labelled:
            labelled = self._root.find(labels, [_LABEL.lower()], layout=f"{labels}/<drive>/<scene>{_LABEL}")
            require_labels(found, labelled, folder=self._root.place(labels), ending=_LABEL)
        return [f"{condition}/{key}" for key in found]

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(self._image(key)))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        if not self.labelled:
            raise AdaptSegError(f"ACDC: split '{self._split}' has no public annotation (asked for scene '{key}')")
        label = self._root.file(self._label(key))
        return read_train_ids(label, self._root.header(self._image(key)), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(self._image(key)))

    def identity(self) -> dict[str, Any]:
        if not self.labelled:
            return super().identity()
        stamps = self._root.stamps(self._label(key) for key in self.keys)
        return {**super().identity(), "labels": self._root.where("gt"), "split": self._split, "stamps": stamps}

    def _image(self, key: str) -> str:
        return f"{self._below('rgb_anon', key)}{self._image_ending}"

    def _label(self, key: str) -> str:
        return f"{self._below('gt', key)}{_LABEL}"

    def _below(self, kind: str, key: str) -> str:
        condition, _, scene = key.partition("/")
        return f"{kind}/{condition}/{self._split}/{scene}"
