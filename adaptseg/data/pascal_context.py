"""Pascal-Context (Mottaghi et al., CVPR 2014) in the 33 classes of two-stage eDALD, 4,998 and 5,105 scenes."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import VOID, ClassTable, SemanticClass
from adaptseg.data.files import (
    check_same_size,
    choose,
    choose_listed,
    count_train_ids,
    file_stamps,
    find_files,
    read_lines,
    read_train_ids,
    require_labels,
    to_train_ids,
)
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

_IMAGES, _LISTS = "JPEGImages", "ImageSets/SegmentationContext"
_KEY = "LabelMap"
_RAW_IDS = 460
"""Of the release: 0 = unlabelled, 1 to 459."""

# In the paper's order, by their ids in the release (labels.txt). The first twenty are VOC's objects in VOC's order.
_CLASSES = {
    "aeroplane": 2, "bicycle": 23, "bird": 25, "boat": 31, "bottle": 34, "bus": 45, "car": 59, "cat": 65, "chair": 72,
    "cow": 98, "table": 397, "dog": 113, "horse": 207, "motorbike": 258, "person": 284, "pottedplant": 308,
    "sheep": 347, "sofa": 368, "train": 416, "tvmonitor": 427, "sky": 360, "grass": 187, "ground": 189, "road": 324,
    "building": 44, "tree": 420, "water": 445, "mountain": 259, "wall": 440, "floor": 158, "track": 415,
    "keyboard": 220, "ceiling": 68,
}  # fmt: skip
_THINGS = (*list(_CLASSES)[:20], "keyboard")

# The 59 classes that the field evaluates, in the alphabetical order of its label pictures (1 to 59, 0 = the rest).
_FIFTY_NINE = """aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling
chair cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike
mountain mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train
tree truck tvmonitor wall water window wood"""


def _voc_color(index: int) -> tuple[int, int, int]:
    """VOC's colour map: the bits of the index, lowest first, fill those of red, green and blue from the top."""
    red, green, blue = (
        sum((index >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )
    return red, green, blue


def _table(name: str, ids: dict[str, int], all_ids: range, void: tuple[int, ...] = ()) -> ClassTable:
    # The colour map goes on where VOC's objects end: nobody published colours of these 33 ("inferred").
    classes = tuple(
        SemanticClass(c, _voc_color(train_id + 1), c in _THINGS, (ids[c],)) for train_id, c in enumerate(_CLASSES)
    )
    return ClassTable(name, classes, (*sorted(set(all_ids) - {ids[c] for c in _CLASSES}), *void))


PASCAL_CONTEXT = _table("pascal context", _CLASSES, range(_RAW_IDS))
"""The 33 classes by the ids of the release; its other classes are void."""

PASCAL_CONTEXT_PNG = _table(
    "pascal context png", {c: i for i, c in enumerate(_FIFTY_NINE.split(), 1)}, range(60), (VOID,)
)
"""The same by the positions of the 59 common classes."""


class PascalContext(Scenes):
    """Scenes of PASCAL VOC 2010, such as `2008_000002`, of many sizes up to 500 pixels; keys are the file stems.

    Files: `JPEGImages/<key>.jpg`; `trainval/<key>.mat` (the release: variable LabelMap, ids 0 to 459) or
    `SegmentationClassContext/<key>.png` (ids 0 to 59, as mmsegmentation's converter writes them).

    Args:
        root: the folder that holds these.
        split: which list.
        labels: which label files.
        listing: text file with one scene per line, relative to the current folder; null = the layout's own,
            `ImageSets/SegmentationContext/<split>.txt`.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, the list is missing, empty or names an absent image, or a label is
            missing.
    """

    def __init__(
        self,
        root: str,
        split: Literal["train", "val"],
        *,
        labels: Literal["mat", "png"] = "mat",
        listing: str | None = None,
        count: int | None = None,
    ) -> None:
        self.class_table = PASCAL_CONTEXT if labels == "mat" else PASCAL_CONTEXT_PNG
        base = Path(root).expanduser()
        self._images = base / _IMAGES
        self._labels = base / ("trainval" if labels == "mat" else "SegmentationClassContext")
        self._ending = f".{labels}"
        layout = f"{self._images}/<scene>.jpg, {self._labels}/<scene>{self._ending} and {base}/{_LISTS}/{split}.txt"
        found = find_files(self._images, [".jpg"], layout=layout)
        lines = base / _LISTS / f"{split}.txt" if listing is None else Path(listing).expanduser()
        stems = [Path(line).stem for line in read_lines(lines)]
        listed = choose_listed(found, stems, split=lines, folder=self._images)
        self.keys = choose(listed, count, source=f"Pascal-Context split '{split}' ({lines})", layout=layout)
        files = find_files(self._labels, [self._ending], layout=layout)
        require_labels(self.keys, files, folder=self._labels, ending=self._ending)

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._image(key))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        path = self._label(key)
        if self._ending == ".png":
            return read_train_ids(path, self._image(key), self.class_table)
        raw = _label_map(path)
        check_same_size(raw.shape, path, self._image(key))
        return to_train_ids(raw, path, self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        if self._ending == ".png":
            return count_train_ids(self._label(key), self._image(key), self.class_table)
        return super().label_counts(key)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._image(key))

    def identity(self) -> dict[str, Any]:
        stamps = file_stamps(self._label(key) for key in self.keys)
        return {**super().identity(), "labels": str(self._labels.resolve()), "stamps": stamps}

    def _image(self, key: str) -> Path:
        return self._images / f"{key}.jpg"

    def _label(self, key: str) -> Path:
        return self._labels / f"{key}{self._ending}"


def _label_map(path: Path) -> npt.NDArray[np.integer]:
    """The ids (H, W) in a MATLAB file of the release; AdaptSegError says what is wrong with the file."""
    # Here, since no other reader needs it: importing it takes longer than reading the file.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, appendmat=False)
    # A file of MATLAB 7.3 raises NotImplementedError, a foreign one ValueError or TypeError.
    except (OSError, EOFError, ValueError, TypeError, NotImplementedError, MatReadError, zlib.error) as error:
        raise AdaptSegError(f"label file {path} is no readable MATLAB file (version 4 to 7.2): {error}") from error
    if _KEY not in content:
        held = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise AdaptSegError(f"label file {path} holds {held}; the variable {_KEY} of the release is expected")
    raw = np.asarray(content[_KEY])
    if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.integer):
        raise AdaptSegError(f"label file {path}: {_KEY} is {raw.dtype} {raw.shape}; integers (H, W) are expected")
    return raw
