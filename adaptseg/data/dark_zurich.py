"""Dark Zurich (Sakaridis et al., ICCV 2019): Zurich's streets at night, twilight and day, in Cityscapes' classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES
from adaptseg.data.archives import Root
from adaptseg.data.files import choose, read_train_ids, require_labels
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

Time = Literal["night", "twilight", "day"]
ALL: tuple[Time, ...] = ("night", "twilight", "day")

_IMAGE, _LABEL = "_rgb_anon.png", "_gt_labelIds.png"


class DarkZurich(Scenes):
    """Scenes `<time>/<drive>/<drive>_frame_000321` of 1080x1920 pixels.

    Files: `rgb_anon/<split>/<time>/<drive>/<scene>_rgb_anon.png` and
    `gt/val/night/<drive>/<scene>_gt_labelIds.png`.

    Args:
        root: the folder that holds `rgb_anon` and `gt`, or the published archives (`[Dark_Zurich_train_anon.zip,
            Dark_Zurich_val_anon.zip]`).
        split: `train` (2,416 scenes at night, 2,920 in twilight, 3,041 by day), `val` (50, the only labelled ones) or
            `test` (151, annotation is secret).
        times: which ones; beyond `night` there are training scenes only. Night alone is what methods adapt to.
        count: use only so many scenes, spread evenly over the times; None = all.

    Raises:
        AdaptSegError: the layout is another, a time is unknown, given twice, empty or not of this split, or scenes lack
            their label.
    """

    def __init__(
        self,
        root: str | list[str],
        split: Literal["train", "val", "test"],
        *,
        times: tuple[Time, ...] = ("night",),
        count: int | None = None,
    ) -> None:
        self.class_table = CITYSCAPES
        self.labelled = split == "val"
        allowed = ALL if split == "train" else ("night",)
        if not times or len(set(times)) < len(times) or not set(times) <= set(allowed):
            raise AdaptSegError(
                f"Dark Zurich: times is {list(times)}; some of {', '.join(allowed)}, each once, expected for split "
                f"'{split}'"
            )
        self._split = split
        folders = [f"{kind}/{split}/{time}" for kind in ("rgb_anon", "gt") for time in times]
        self._root = Root(root, folders)
        keys = [key for time in sorted(times) for key in self._listed(time)]
        source = f"Dark Zurich split '{split}' in {self._root}"
        self.keys = choose(keys, count, source=source, layout=self._image("<scene>"))

    def _listed(self, time: str) -> list[str]:
        """Keys of one time; raises unless there are some, and all of them labelled where they should be."""
        images, labels = (f"{kind}/{self._split}/{time}" for kind in ("rgb_anon", "gt"))
        layout = f"{images}/<drive>/<scene>{_IMAGE}"
        found = list(self._root.find(images, [_IMAGE], layout=layout))
        found = choose(found, None, source=f"Dark Zurich: {self._root.place(images)}", layout=layout)
        if self.labelled:
            labelled = self._root.find(labels, [_LABEL.lower()], layout=f"{labels}/<drive>/<scene>{_LABEL}")
            require_labels(found, labelled, folder=self._root.place(labels), ending=_LABEL)
        return [f"{time}/{key}" for key in found]

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(self._image(key)))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        if not self.labelled:
            raise AdaptSegError(f"Dark Zurich: split '{self._split}' has no public annotation (asked for '{key}')")
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
        return f"rgb_anon/{self._split}/{key}{_IMAGE}"

    def _label(self, key: str) -> str:
        return f"gt/{self._split}/{key}{_LABEL}"
