"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9,400 rendered street scenes with 16 of Cityscapes' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from adaptseg.classes import SYNTHIA, SYNTHIA_16
from adaptseg.data.archives import Root
from adaptseg.data.files import check_same_size, choose, require_labels, to_train_ids
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

_IMAGES, _LABELS = "RGB", "GT/LABELS"
_WIDE = ("RGB;16B", "RGBA;16B")
"""Pillow's names for three and four channels of 16 bits, high byte first, as PNG stores them."""


class Synthia(Scenes):
    """Scenes `0000000` to `0009399` of 760x1280 pixels.

    Files: `RGB/<key>.png` and `GT/LABELS/<key>.png`, 16 bits a channel: the first channel (red; the last one for who
    reads with OpenCV) is SYNTHIA's class id, the second the number of the instance. The class table has Cityscapes' 19
    classes, so that pairs fit, but terrain, truck and train never occur: published results are means over the other 16.

    Args:
        root: the folder that holds `RGB` and `GT` (RAND_CITYSCAPES), or a .zip of it. It is published as .rar, which
            has to be unpacked.
        count: use only so many scenes, spread evenly; None = all.
        classes: 19, or the 16 that occur alone, for networks that have no output for the others; the target needs the
            same (`Cityscapes`, `classes: 16`).

    Raises:
        AdaptSegError: the layout is another, there is no scene, or a label is missing.
    """

    def __init__(self, root: str | list[str], *, count: int | None = None, classes: Literal[19, 16] = 19) -> None:
        self.class_table = {19: SYNTHIA, 16: SYNTHIA_16}[classes]
        self._root = Root(root, [_IMAGES, _LABELS])
        layout = "RGB/<scene>.png and GT/LABELS/<scene>.png"
        found = list(self._root.find(_IMAGES, [".png"], layout=layout))
        self.keys = choose(found, count, source=f"SYNTHIA in {self._root.place(_IMAGES)}", layout=layout)
        labels = self._root.find(_LABELS, [".png"], layout=layout)
        require_labels(self.keys, labels, folder=self._root.place(_LABELS), ending=".png")

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(f"{_IMAGES}/{key}.png"))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return self._annotation(key)[0]

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(f"{_IMAGES}/{key}.png"))

    def instances(self, key: str) -> npt.NDArray[np.int32]:
        """Instance ids (H, W) int32: class id * 65536 + number, so that they are unique even where the numbers of
        another class begin anew; 0 = stuff, or number 0."""
        labels, channels = self._annotation(key)
        ids, numbers = channels[..., 0].astype(np.int32), channels[..., 1].astype(np.int32)
        things = np.append(self.class_table.things, np.zeros(256 - self.class_table.num_classes, bool))
        return np.where(things[labels] & (numbers > 0), (ids << 16) + numbers, 0).astype(np.int32)

    def _annotation(self, key: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
        """Train ids (H, W), and the channels (H, W, 3 or 4) of the label file."""
        file = self._root.file(f"{_LABELS}/{key}.png")
        channels = read_wide(file)
        check_same_size(channels.shape[:2], file, self._root.header(f"{_IMAGES}/{key}.png"))
        return to_train_ids(channels[..., 0], file, self.class_table), channels

    def identity(self) -> dict[str, Any]:
        stamps = self._root.stamps(f"{_LABELS}/{key}.png" for key in self.keys)
        return {**super().identity(), "labels": self._root.where(_LABELS), "stamps": stamps}


def read_wide(path: Path) -> npt.NDArray[np.uint16]:
    """Channels (H, W, 3 or 4) uint16 of a PNG with 16 bits a channel, without loss.

    Pillow shows such a file as 8-bit RGB: the high bytes, which are all 0 for ids below 256. Told that the low byte
    comes first, it shows the low ones. Both passes run in C, unlike a decoder of our own.

    Raises:
        AdaptSegError: the file is missing, broken, or of another kind (a label file that was converted, say).
    """
    high, low = (_bytes(path, order).astype(np.uint16) for order in ("B", "L"))
    return high * np.uint16(256) + low


def _bytes(path: Path, order: str) -> npt.NDArray[np.uint8]:
    """The bytes of each channel that Pillow takes for the high ones in byte order `order` (B = big, L = little)."""
    try:
        with Image.open(path) as picture:
            tiles = getattr(picture, "tile", [])
            if not tiles or tiles[0][-1] not in _WIDE:
                raise AdaptSegError(
                    f"label file {path} has mode {picture.mode}, not three channels of 16 bits; SYNTHIA's own files of "
                    "GT/LABELS are expected (files converted to train ids: use Folder)"
                )
            codec, extents, offset, kind = tiles[0]
            picture.tile = [(codec, extents, offset, kind[:-1] + order)]  # pyright: ignore[reportAttributeAccessIssue]
            return np.asarray(picture)
    except FileNotFoundError:
        raise AdaptSegError(f"file {path} does not exist") from None
    except UnidentifiedImageError as error:
        raise AdaptSegError(f"file {path} is not a readable image: {error}") from error
    except (OSError, SyntaxError) as error:
        raise AdaptSegError(f"file {path} is truncated or broken: {error}") from error
