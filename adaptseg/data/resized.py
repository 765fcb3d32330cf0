"""Another set's scenes on a fixed grid: what papers prepare with a script, as a view that writes no files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from adaptseg.data.resize import resize_nearest
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError


class Resized(Scenes):
    """The scenes of another reader, resized and then cut to their centre. Labels change with the image, so pool grid,
    budget and scores live on the new grid, where `data.target_size` leaves evaluation at native size.

    Two-stage eDALD's preprocessing (specification section 3): CamVid and Pascal-Context are squeezed to 256x256;
    Cityscapes is resized to 256x512 (rows x columns) and loses both sides. Images bilinear with anti-aliasing, as
    Pillow resizes; labels take the pixel under the centre. Correct where the released scripts are not: the wrapped
    reader maps raw ids to train ids before (the release keeps Cityscapes' raw ids and takes 19, a traffic light, for
    void), pairs image and label by their scene (file names there never match), and leaves images of Pascal-Context
    uncompressed (saved as JPEG a second time there).

    Args:
        scenes: the reader of the files.
        size: (H, W) that scenes are resized to, whatever their proportions.
        crop: (H, W) of the centre that is kept then; null = all.

    Raises:
        AdaptSegError: a size below 1, or a crop larger than `size`.
    """

    def __init__(self, scenes: Scenes, size: tuple[int, int], *, crop: tuple[int, int] | None = None) -> None:
        kept = size if crop is None else crop
        if min(*size, *kept) < 1 or kept[0] > size[0] or kept[1] > size[1]:
            raise AdaptSegError(
                f"Resized: size {list(size)} and crop {None if crop is None else list(crop)} given; (height, width) of "
                "1 or more are expected, and no crop larger than size"
            )
        self.keys, self.class_table, self.labelled = scenes.keys, scenes.class_table, scenes.labelled
        self._scenes, self._size, self._crop = scenes, (size[0], size[1]), (kept[0], kept[1])

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        height, width = self._size
        picture = Image.fromarray(self._scenes.image(key)).resize((width, height), Image.Resampling.BILINEAR)
        return self._centre(np.asarray(picture))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return self._centre(resize_nearest(self._scenes.labels(key), self._size))

    def instances(self, key: str) -> npt.NDArray[np.int32]:
        return self._centre(resize_nearest(self._scenes.instances(key), self._size))

    def size(self, key: str) -> tuple[int, int]:
        return self._crop

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "of": self._scenes.identity(), "size": self._size, "crop": self._crop}

    def _centre(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        top, left = ((whole - kept) // 2 for whole, kept in zip(self._size, self._crop, strict=True))
        return values[top : top + self._crop[0], left : left + self._crop[1]]
