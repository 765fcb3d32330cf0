"""Bedrooms of ADE20K (Zhou et al., CVPR 2017) in 30 classes: two-stage eDALD's selection, and the benchmark's.

Which images the paper's authors chose, and how they made 30 classes of ADE20K's thousands, is known from their archive
alone (`ADEBedroom`). `ADE20KBedrooms` reads every bedroom of the 150-class benchmark at native size instead: other
scenes, the same class names, never comparable in numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import VOID, ClassTable, SemanticClass
from adaptseg.data.archives import Root
from adaptseg.data.files import (
    check_same_size,
    choose,
    count_train_ids,
    file_stamps,
    find_files,
    read_train_ids,
    require_labels,
    to_train_ids,
)
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

_ROWS: list[tuple[str, tuple[int, int, int], int]] = [
    # In the paper's order: name, the benchmark's colour of it, the benchmark's id.
    ("wall", (120, 120, 120), 1),
    ("bed", (204, 5, 255), 8),
    ("floor", (80, 50, 50), 4),
    ("table", (255, 6, 82), 16),
    ("lamp", (224, 255, 8), 37),
    ("ceiling", (120, 120, 80), 6),
    ("painting", (255, 6, 51), 23),
    ("windowpane", (230, 230, 230), 9),
    ("pillow", (0, 235, 255), 58),
    ("curtain", (255, 51, 7), 19),
    ("cushion", (255, 194, 7), 40),
    ("door", (8, 255, 51), 15),
    ("chair", (204, 70, 3), 20),
    ("cabinet", (224, 5, 255), 11),
    ("chest", (6, 51, 255), 45),  # of drawers
    ("mirror", (220, 220, 220), 28),
    ("rug", (255, 9, 92), 29),
    ("armchair", (8, 255, 214), 31),
    ("book", (255, 163, 0), 68),
    ("sconce", (0, 41, 255), 135),
    ("plant", (204, 255, 4), 18),
    ("wardrobe", (7, 255, 255), 36),
    ("clock", (102, 255, 0), 149),
    ("light", (255, 173, 0), 83),
    ("flower", (255, 0, 0), 67),
    ("vase", (0, 255, 204), 136),
    ("fan", (0, 245, 255), 140),
    ("box", (0, 255, 20), 42),
    ("shelf", (255, 7, 71), 25),
    ("television", (0, 255, 194), 90),
]
_STUFF = ("wall", "floor", "ceiling", "rug", "plant")
"""Not among the 100 countable classes of the benchmark."""
_CATEGORIES = "sceneCategories.txt"
_BENCHMARK_IDS = 151
"""0 = other, 1 to 150."""

ADE_BEDROOM = ClassTable("ade bedroom", tuple(SemanticClass(n, c, n not in _STUFF) for n, c, _ in _ROWS), (VOID,))
"""The 30 classes; label files hold train ids."""

ADE20K_BEDROOM = ClassTable(
    "ade20k bedrooms",
    tuple(SemanticClass(n, c, n not in _STUFF, (raw,)) for n, c, raw in _ROWS),
    tuple(sorted(set(range(_BENCHMARK_IDS)) - {raw for *_, raw in _ROWS})),
)
"""The same by the ids of the benchmark; its other classes are void ("inferred": coffee table is no table)."""


class ADEBedroom(Scenes):
    """The paper's ADE-Bed: scenes of 256x256, labels as NumPy arrays of train ids.

    Files, as its archive `ADE_Bed_256.tar.gz` unpacks: `real/<split>/<key>.jpg` and `real/<split>/<key>.npy`, (H, W)
    uint8, 255 = void. LEDM's ADE-Bedroom (Baranchuk et al., ICLR 2022: 50 and 650 scenes) has the same layout.

    Args:
        root: the folder that holds `real`.
        split: `train`, or `test` (the paper scores it).
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, the split is empty, or scenes lack their label file.
    """

    def __init__(self, root: str, split: Literal["train", "test"], *, count: int | None = None) -> None:
        self.class_table = ADE_BEDROOM
        base = Path(root).expanduser()
        self._folder = base / "real" / split
        layout = f"{base}/real/{split}/<scene>.jpg and <scene>.npy"
        found = list(find_files(self._folder, [".jpg"], layout=layout))
        self.keys = choose(found, count, source=f"ADE-Bed split '{split}' in {self._folder}", layout=layout)
        labels = find_files(self._folder, [".npy"], layout=layout)
        require_labels(self.keys, labels, folder=self._folder, ending=".npy")

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._folder / f"{key}.jpg")

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        path = self._folder / f"{key}.npy"
        try:
            raw = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise AdaptSegError(f"label file {path} is no readable NumPy array: {error}") from error
        if not isinstance(raw, np.ndarray) or raw.ndim != 2 or raw.dtype != np.uint8:
            form = f"{raw.dtype} {raw.shape}" if isinstance(raw, np.ndarray) else "an archive of arrays"
            raise AdaptSegError(f"label file {path} holds {form}; (height, width) uint8 is expected")
        check_same_size(raw.shape, path, self._folder / f"{key}.jpg")
        return to_train_ids(raw, path, self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._folder / f"{key}.jpg")

    def identity(self) -> dict[str, Any]:
        stamps = file_stamps(self._folder / f"{key}.npy" for key in self.keys)
        return {**super().identity(), "labels": str(self._folder.resolve()), "stamps": stamps}


class ADE20KBedrooms(Scenes):
    """All scenes of ADE20K's 150-class benchmark whose category is bedroom, at native size, which varies.

    Files: `images/<folder>/ADE_<split>_00000001.jpg`, `annotations/<folder>/...png` with <folder> = training or
    validation, and `sceneCategories.txt` with one "scene category" per line.

    Args:
        root: the folder that holds them, or the published archive (`ADEChallengeData2016.zip`).
        split: which of the two.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, `sceneCategories.txt` is missing or names no bedroom of the split, or a
            label is missing.
    """

    def __init__(self, root: str | list[str], split: Literal["train", "val"], *, count: int | None = None) -> None:
        self.class_table = ADE20K_BEDROOM
        folder = {"train": "training", "val": "validation"}[split]
        self._images, self._labels = f"images/{folder}", f"annotations/{folder}"
        self._root = Root(root, [self._images, self._labels, _CATEGORIES])
        layout = f"{self._images}/<scene>.jpg, {self._labels}/<scene>.png and {_CATEGORIES}"
        bedrooms = self._bedrooms()
        found = [key for key in self._root.find(self._images, [".jpg"], layout=layout) if key in bedrooms]
        source = f"ADE20K split '{split}', category bedroom, in {self._root.place(self._images)}"
        self.keys = choose(found, count, source=source, layout=layout)
        labels = self._root.find(self._labels, [".png"], layout=layout)
        require_labels(self.keys, labels, folder=self._root.place(self._labels), ending=".png")

    def _bedrooms(self) -> set[str]:
        place = self._root.place(_CATEGORIES)
        if not self._root.holds(_CATEGORIES):
            raise AdaptSegError(f"{place} does not exist; it is part of the benchmark and says what a scene shows")
        words = [line.split() for line in self._root.content(_CATEGORIES).decode(errors="replace").splitlines()]
        if wrong := next((line for line in words if line and len(line) != 2), None):
            raise AdaptSegError(f'{place} has the line "{" ".join(wrong)}"; "scene category" is expected')
        return {line[0] for line in words if line and line[1] == "bedroom"}

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(self._image(key)))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return read_train_ids(*self._files(key), self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        return count_train_ids(*self._files(key), self.class_table)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(self._image(key)))

    def identity(self) -> dict[str, Any]:
        stamps = self._root.stamps(f"{self._labels}/{key}.png" for key in self.keys)
        return {**super().identity(), "labels": self._root.where(self._labels), "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        """Labels and image, the latter for its header."""
        return self._root.file(f"{self._labels}/{key}.png"), self._root.header(self._image(key))

    def _image(self, key: str) -> str:
        return f"{self._images}/{key}.jpg"
