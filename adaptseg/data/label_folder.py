"""Label maps of a network on disk: one PNG of train ids per scene, as `adaptseg predict` and fusion leave them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adaptseg import storage
from adaptseg.classes import VOID, ClassTable
from adaptseg.data.files import find_files, require_labels
from adaptseg.data.scenes import read_ids
from adaptseg.errors import AdaptSegError

CERTAINTY = ".certainty.png"
"""Ending of the map beside `<key>.png` that says how sure the network was: uint8 per cent."""


def write_map(path: Path, values: npt.NDArray[np.uint8]) -> None:
    """Write a map (H, W) uint8 as a grey PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    storage.atomic_write(path, buffer.getvalue())


def read_map(path: Path) -> npt.NDArray[np.uint8]:
    """Read a map (H, W) uint8; AdaptSegError names a file that is missing, broken or of more than 8 bits."""
    values = read_ids(path)
    if values.dtype != np.uint8:
        raise AdaptSegError(f"{path} holds {values.dtype}; a grey PNG of 8 bits is expected")
    return values.astype(np.uint8)  # a copy: decoded arrays may be read-only


class LabelFolder:
    """`<folder>/<key>.png`: train ids (H, W) uint8, 255 = no label, of any size; a training reads them as it reads
    bought labels.

    Args:
        folder: where they lie.
        class_table: whose train ids they hold.
        keys: the scenes that must have a label map.

    Raises:
        AdaptSegError: there is no such folder, or scenes have no file in it.
    """

    def __init__(self, folder: str | Path, class_table: ClassTable, keys: Sequence[str]) -> None:
        self.folder, self.class_table = Path(folder), class_table
        found = find_files(self.folder, [".png"], layout=f"{self.folder}/<scene>.png, train ids, 255 = no label")
        require_labels(keys, found, folder=self.folder, ending=".png")

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        """AdaptSegError names a broken file, or one with ids that are no train ids."""
        path = self.folder / f"{key}.png"
        labels = read_map(path)
        require_train_ids(labels, self.class_table, path)
        return labels


def require_train_ids(labels: npt.NDArray[np.uint8], class_table: ClassTable, path: Path) -> None:
    """Raise AdaptSegError, naming the file, unless labels are train ids of the table or 255."""
    ids = np.flatnonzero(np.bincount(labels.ravel(), minlength=VOID + 1))
    if wrong := [int(i) for i in ids if class_table.num_classes <= i != VOID]:
        raise AdaptSegError(
            f"{path} holds ids {', '.join(map(str, wrong[:8]))}; class table '{class_table.name}' has train ids 0 to "
            f"{class_table.num_classes - 1}, and {VOID} = no label"
        )
