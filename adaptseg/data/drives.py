"""What ACDC and Dark Zurich share: Cityscapes' classes, drives under several conditions, one layout of files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES
from adaptseg.data.archives import Root
from adaptseg.data.files import choose, count_train_ids, read_train_ids, require_labels
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

_LABEL = "_gt_labelIds.png"


class Drives(Scenes):
    """Scenes `<condition>/<drive>/<scene>`: images below `rgb_anon`, label ids of Cityscapes below `gt`.

    Args:
        root: the folder that holds `rgb_anon` and `gt`, or archives.
        called: the data set's name in messages.
        split: the split's folder name.
        conditions: whose scenes; not empty, each once (the subclass has checked them).
        labelled: whether the split has public labels.
        image_ending: what follows the scene's name in an image's file name.
        count: use only so many scenes, spread evenly over the conditions; None = all.

    Raises:
        AdaptSegError: the layout is another, a condition is empty, or scenes lack their label.
    """

    def __init__(
        self,
        root: str | list[str],
        *,
        called: str,
        split: str,
        conditions: Sequence[str],
        labelled: bool,
        image_ending: str,
        count: int | None,
    ) -> None:
        self.class_table, self.labelled = CITYSCAPES, labelled
        self._called, self._split, self._image_ending = called, split, image_ending
        folders = [self._folder(kind, condition) for kind in ("rgb_anon", "gt") for condition in conditions]
        self._root = Root(root, folders)
        keys = [key for condition in sorted(conditions) for key in self._listed(condition)]
        layout = self._image("<condition>/<drive>/<scene>")
        self.keys = choose(keys, count, source=f"{called} split '{split}' in {self._root}", layout=layout)

    @abstractmethod
    def _folder(self, kind: Literal["rgb_anon", "gt"], condition: str) -> str:
        """Where the drives of a condition lie."""

    def _listed(self, condition: str) -> list[str]:
        """Keys of one condition; raises unless there are some, and all of them labelled where they should be."""
        images, labels = self._folder("rgb_anon", condition), self._folder("gt", condition)
        layout = f"{images}/<drive>/<scene>{self._image_ending}"
        found = list(self._root.find(images, [self._image_ending], layout=layout))
        found = choose(found, None, source=f"{self._called}: {self._root.place(images)}", layout=layout)
        if self.labelled:
            labelled = self._root.find(labels, [_LABEL.lower()], layout=f"{labels}/<drive>/<scene>{_LABEL}")
            require_labels(found, labelled, folder=self._root.place(labels), ending=_LABEL)
        return [f"{condition}/{key}" for key in found]

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
        return {**super().identity(), "labels": self._root.where("gt"), "split": self._split, "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        """Labels and image, the latter for its header."""
        if not self.labelled:
            raise AdaptSegError(
                f"{self._called}: split '{self._split}' has no public annotation (asked for scene '{key}')"
            )
        return self._root.file(self._label(key)), self._root.header(self._image(key))

    def _image(self, key: str) -> str:
        condition, _, scene = key.partition("/")
        return f"{self._folder('rgb_anon', condition)}/{scene}{self._image_ending}"

    def _label(self, key: str) -> str:
        condition, _, scene = key.partition("/")
        return f"{self._folder('gt', condition)}/{scene}{_LABEL}"
